"""The licence of a backbone as it travels: with its embeddings, with what is trained on them, and in what is said of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pathfm.errors import LicenceError
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNKNOWN = "unknown"

MOST_LICENCES = 64
"""In a file or a model: more than any head reads caches."""

_MOST_CHARACTERS = 1000
# SPDX ids that allow commercial use and derivatives, and ask for no more than credit.
_PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "isc"})


@dataclass(frozen=True)
class Licence:
    """Under which terms the weights of a backbone, and what is made with them, may be used.

    All four are one line of printable text of at most 1000 characters: what is given otherwise is made so.

    Attributes:
        backbone: name of the backbone.
        licence: an SPDX id where there is one, "unknown" where nobody states one.
        derivatives: what the licence or its page says of embeddings and of models trained on them; "" where nothing
            beyond a permissive licence.
        page: where its makers state it; "" where there is none.
    """

    backbone: str
    licence: str = UNKNOWN
    derivatives: str = ""
    page: str = ""

    def __post_init__(self) -> None:
        """Makes each a line, for it ends in logs and tables, and may come from a stranger's model card."""
        for name, value in asdict(self).items():
            object.__setattr__(self, name, _one_line(value))

    @property
    def permissive(self) -> bool:
        """Whether it is known to allow everything, commercial use and derivatives included, for credit alone."""
        return self.licence.lower() in _PERMISSIVE and not self.derivatives

    def facts(self) -> dict[str, str]:
        """As JSON; `of_facts` reads it."""
        return asdict(self)

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Licence:
        """The licence in JSON that may come from anywhere: what is missing or no text is unknown."""
        known = {name: value for name in cls.__match_args__ if isinstance(value := facts.get(name), str)}
        return cls(**{"backbone": UNKNOWN} | known)

    def __str__(self) -> str:
        """One line for a log, a table or a report."""
        terms = "not stated" if self.licence == UNKNOWN else self.licence
        clause = f": {self.derivatives}" if self.derivatives else ""
        where = f" ({self.page})" if self.page and not self.permissive else ""
        return f"the licence of {self.backbone} is {terms}{clause}{where}"


def licences_of(listed: Any) -> tuple[Licence, ...]:
    """The licences in a JSON list that may come from anywhere, as `Licence.facts` gives each.

    Raises:
        ValueError: it is no list of such, has too many, or a text that no `Licence` has.
    """
    if not isinstance(listed, list) or len(listed) > MOST_LICENCES:
        message = f"it is no list of up to {MOST_LICENCES} licences"
        raise ValueError(message)
    licences = tuple(Licence.of_facts(one) for one in listed if isinstance(one, dict))
    if [one.facts() for one in licences] != listed:  # what of_facts had to mend was not written by us
        message = f"an entry is not {', '.join(Licence.__match_args__)}, each a line of text"
        raise ValueError(message)
    return licences


def licences_in_recipe(recipe: Mapping[str, Any]) -> tuple[Licence, ...]:
    """What a recipe itself says of the licence of its backbones: only those of older files do, else it is unknown."""
    joined = recipe.get("joined")
    parts = joined if isinstance(joined, list) and joined else [recipe]
    backbones = [part.get("backbone") if isinstance(part, dict) else None for part in parts]
    facts = [one if isinstance(one, dict) else {} for one in backbones]
    return tuple(Licence.of_facts({"backbone": one.get("name"), "licence": one.get("licence")}) for one in facts)


def unknown_licences(recipe: Mapping[str, Any]) -> tuple[Licence, ...]:
    """Those of the backbones of a recipe where nobody states one."""
    return tuple(Licence(one.backbone) for one in licences_in_recipe(recipe))


def restricted(licences: Iterable[Licence]) -> tuple[Licence, ...]:
    """Those that are not permissive, or not known to be, each once."""
    return tuple(dict.fromkeys(one for one in licences if not one.permissive))


def require_permissive(licences: Iterable[Licence], what: str) -> None:
    """Refuses what would inherit a restriction: what `--require_license permissive` asks for.

    Args:
        licences: of all backbones it depends on.
        what: what is refused, such as "training on cache/virchow2-1a2b3c4d".

    Raises:
        LicenceError: a licence is not permissive, or not known.
    """
    found = restricted(licences)
    if found:
        message = (
            f"--require_license permissive refuses {what}: {'; '.join(map(str, found))};"
            " use a backbone under a permissive licence (pathfm backbones lists them), or leave the flag out"
        )
        raise LicenceError(message)


def warn_of_restrictions(licences: Iterable[Licence]) -> None:
    """Logs one line that what is trained inherits the terms of these backbones; nothing where all are permissive."""
    found = restricted(licences)
    if found:
        logger.warning("what is trained on these embeddings inherits their terms: %s", "; ".join(map(str, found)))


def _one_line(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:_MOST_CHARACTERS].rstrip()
