"""The settings of what a model is to promise: fields, help texts and command-line options are one and the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pathfm.errors import InputError

CalibrationKind = Literal["none", "temperature", "isotonic"]


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What is chosen on predictions for patients that a model had not seen, and frozen with it; and what is shown beside."""

    calibration: CalibrationKind = "none"
    """What makes probabilities of scores: temperature, one number, or isotonic, a curve, which wants hundreds of patients."""
    coverage: float | None = None
    """Share of each class whose set of possible classes is to hold the true one, such as 0.9; of a set of several it abstains."""
    negative: str | None = None
    """Of several classes the one that says no cancer; all others are then asked as one, and where from."""
    rare: list[str] = field(default_factory=list)
    """Of these classes the rare ones, which have figures of their own."""
    prevalence: float | None = None
    """Share of patients with the condition where the model is to be used, for its predictive values there."""
    subgroups: list[str] = field(default_factory=list)
    """Columns of the cohort table by whose values the figures are shown again; site and scanner need not be named."""

    def __post_init__(self) -> None:
        """Refuses shares that are none."""
        for name, value in (("coverage", self.coverage), ("prevalence", self.prevalence)):
            if value is not None and not 0 < value < 1:
                message = f"the {name} is {value}; it must be a share between 0 and 1, such as 0.1 for 10 %"
                raise InputError(message)
        if self.rare and self.negative is None:
            message = (
                "--claims.rare names rare cancers, but nothing says which class is no cancer; pass --claims.negative"
            )
            raise InputError(message)
