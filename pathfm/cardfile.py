"""What only people can say of a model: the texts of its card, from a YAML file or from model.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import yaml

from pathfm.errors import InputError, UnknownNameError
from pathfm.plainyaml import read_text, yaml_texts
from pathfm.tables import first_line, misfit
from pathfm.tripoditems import ITEMS

if TYPE_CHECKING:
    from pathlib import Path

NOT_STATED = "not stated"
SHAPE = {"texts": {"*": str}, "tripod": {"*": str}}
TEXTS = {
    "intended_use": "Intended use",
    "intended_users": "Intended users",
    "patients": "Patients it is meant for",
    "out_of_scope": "Out of scope",
    "limits": "Limits",
    "owner": "Made by, and answered for by",
    "contact": "Contact",
    "licence": "Licence of the model",
    "reference": "Reference",
}
"""What a card file may say, and the words for it; `tripod` beside them maps numbers of TRIPOD+AI items to texts."""
_LONGEST = 20_000
_REMEDY = "write a YAML file of texts, such as `intended_use: ...`; docs/report.md lists its keys"
_NUMBERS = {item.number: item.topic for item in ITEMS}


@dataclass(frozen=True)
class Card:
    """The texts that only people can give.

    Attributes:
        texts: by a key of `TEXTS`.
        tripod: by the number of an item of TRIPOD+AI, such as 18a.
    """

    texts: dict[str, str] = field(default_factory=dict)
    tripod: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, dict[str, str]]:
        """As JSON, for model.json; `of_facts` reads it."""
        return asdict(self)

    @classmethod
    def of_facts(cls, facts: object) -> Self:
        """The card of these facts, which may come from anywhere.

        Raises:
            ValueError: they are not those of a card; the key is named.
        """
        what = misfit(facts, SHAPE)
        if what or not isinstance(facts, dict):
            raise ValueError(what or "is no object")
        for name, known in (("texts", TEXTS), ("tripod", _NUMBERS)):
            odd = [key for key, text in facts[name].items() if key not in known or len(text) > _LONGEST]
            if odd:
                message = f"key '{name}.{odd[0]}' is unknown, or too long"
                raise ValueError(message)
        return cls(dict(facts["texts"]), dict(facts["tripod"]))

    def text(self, key: str) -> str:
        """One of its texts, or that nobody stated it."""
        return self.texts.get(key, NOT_STATED)


def read_card(path: Path) -> Card:
    """The texts of a YAML file.

    Every value is a text, or a list of texts, which become its lines; `no`, `1.0` and dates stay as they are written.

    Raises:
        InputError: missing, too large, no YAML, or no texts.
        UnknownNameError: a key, or an item of TRIPOD+AI, that there is not.
    """
    found = _mapping(path)
    items = found.pop("tripod", {})
    if not isinstance(items, dict):
        message = f"{path}: tripod is no mapping of item numbers to texts; {_REMEDY}"
        raise InputError(message)
    return Card(_texts(path, "card key", found, TEXTS), _texts(path, "TRIPOD+AI item", items, _NUMBERS))


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        message = f"{path} does not exist; {_REMEDY}"
        raise InputError(message)
    try:
        found = yaml_texts(read_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"{path} cannot be read as YAML ({first_line(error)}); {_REMEDY}"
        raise InputError(message) from error
    if not isinstance(found, dict):
        message = f"{path} holds no mapping; {_REMEDY}"
        raise InputError(message)
    return found


def _texts(path: Path, what: str, found: dict[Any, Any], known: dict[str, str]) -> dict[str, str]:
    texts = {}
    for key, value in found.items():
        if key not in known:
            raise UnknownNameError(what, str(key), known, f"{path} may hold these; {_REMEDY}")
        lines = value if isinstance(value, list) else [value]
        if not all(isinstance(line, str) for line in lines) or sum(map(len, lines)) > _LONGEST:
            message = f"{path}: {key} is no text of up to {_LONGEST:,} characters, nor a list of texts; {_REMEDY}"
            raise InputError(message)
        stated = "\n".join(line.strip() for line in lines).strip()
        if stated:
            texts[str(key)] = stated
    return texts
