"""The licence of a backbone as it travels: with its embeddings, with what is trained on them, and in what is said of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

UNKNOWN = "unknown"
# SPDX ids that allow commercial use and derivatives, and ask for no more than credit.
_PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "isc"})


@dataclass(frozen=True)
class Licence:
    """Under which terms the weights of a backbone, and what is made with them, may be used.

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
        clause = f": {self.derivatives}" if self.derivatives else ""
        where = f" ({self.page})" if self.page and not self.permissive else ""
        return f"{self.backbone} is under {self.licence} licence{clause}{where}"
