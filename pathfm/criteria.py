"""The criteria of a release gate: their names, the bounds that a YAML file declares for them, and how each is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from pathfm.bounds import BOUNDS
from pathfm.errors import InputError, UnknownNameError
from pathfm.evidence import (
    Found,
    abstained,
    calibration_error,
    calibration_slope,
    controls,
    coverage,
    failed,
    figures,
    leakage,
    looks,
    patients,
    patients_each_class,
    sensitivity,
    shift,
    specificity,
    worst_group,
)
from pathfm.files import sha256_file
from pathfm.plainyaml import read_text, yaml_values
from pathfm.stage import STAGES, Stage
from pathfm.tables import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Evidence = Literal["cross_validation", "external"]
EVALUATIONS = "evaluations_at_least"
"""The one criterion that is of all external evaluations together; 1 where the file does not say it."""


class Criterion(NamedTuple):
    """A row of `CRITERIA`.

    Attributes:
        bound: what is declared for it, a row of `bounds.BOUNDS`.
        asks: what it asks, in words.
        check: from a metrics document and the bound to what was found.
        of: the evidence that can answer it.
    """

    bound: str
    asks: str
    check: Callable[[Mapping[str, Any], Any], Found]
    of: tuple[Evidence, ...] = ("cross_validation", "external")


CRITERIA: dict[str, Criterion] = {
    "patients_at_least": Criterion("count", "patients with a label and a score", patients),
    "patients_each_class_at_least": Criterion("count", "patients of the rarest class", patients_each_class),
    "figure_at_least": Criterion("figures", "the lower end of the interval of figures, by patient", figures),
    "sensitivity_at_least": Criterion("share", "the lower end of the interval at the frozen point", sensitivity),
    "specificity_at_least": Criterion("share", "the lower end of the interval at the frozen point", specificity),
    "slope_within": Criterion("range", "the whole interval of the calibration slope", calibration_slope),
    "calibration_error_at_most": Criterion("share", "the upper end of the interval of the ECE", calibration_error),
    "worst_group_at_least": Criterion("shares", "the lowest lower end among the groups of a column", worst_group),
    "controls": Criterion(
        "controls", "controls that must not speak against the model", controls, ("cross_validation",)
    ),
    "leakage_checked": Criterion("leaks", "what must have been looked for on both sides of a split", leakage),
    "failed_at_most": Criterion("share", "slides with a label that got no score", failed),
    "coverage_at_least": Criterion("share", "the lowest lower end among the classes of the conformal sets", coverage),
    "abstained_at_most": Criterion("share", "the upper end of the share of patients without one class", abstained),
    "no_shift": Criterion("yes", "no alarm that the cohort is unlike the development set", shift, ("external",)),
    "looks_at_most": Criterion(
        "count", "looks at the test set up to and including that evaluation", looks, ("external",)
    ),
}


@dataclass(frozen=True)
class Criteria:
    """What a file declares.

    Attributes:
        sha256: hex, of the file.
        stages: of each stage above development, in their order, by the evidence the criteria with their bounds.
        evaluations: of each of these stages the number of external evaluations that it asks for.
    """

    sha256: str
    stages: dict[Stage, dict[Evidence, dict[str, Any]]]
    evaluations: dict[Stage, int]

    def left_out(self, stage: Stage) -> list[str]:
        """The criteria that neither this stage nor one below it declares for any evidence."""
        below = STAGES[: STAGES.index(stage) + 1]
        named = {name for one in below for part in self.stages.get(one, {}).values() for name in part}
        return [name for name in CRITERIA if name not in named]


def read_criteria(path: Path) -> Criteria:
    """The criteria of a YAML file, in which nothing may stand that is not understood.

    Raises:
        UnknownNameError: a stage, an evidence or a criterion that nobody knows; near names are listed.
        InputError: too large, not YAML, a key twice, a bound that is none, a criterion that its evidence cannot answer, or a stage
            without criteria; the key is named.
    """
    declared = _mapping(path, _load(path), "", STAGES[1:], "stage")
    if "silent" not in declared:
        raise _refused(path, "declares no stage 'silent', which comes first; its criteria hold for 'assisted' too")
    stages: dict[Stage, dict[Evidence, dict[str, Any]]] = {}
    evaluations: dict[Stage, int] = {}
    for stage in (one for one in STAGES[1:] if one in declared):
        parts = _mapping(path, declared[stage], stage, ("cross_validation", "external"), "evidence")
        external = dict(
            _mapping(path, parts.get("external", {}), f"{stage}.external", (*_names("external"), EVALUATIONS))
        )
        asked = external.pop(EVALUATIONS, 1 if "external" in parts or stage == "assisted" else 0)
        evaluations[stage] = _bound(path, f"{stage}.external.{EVALUATIONS}", "count", asked) if asked != 0 else 0
        of = _mapping(path, parts.get("cross_validation", {}), f"{stage}.cross_validation", _names("cross_validation"))
        stages[stage] = {
            "cross_validation": _bounds(path, f"{stage}.cross_validation", of),
            "external": _bounds(path, f"{stage}.external", external),
        }
        if not any(stages[stage].values()):
            raise _refused(path, f"declares no criterion for the stage {stage!r}")
    return Criteria(sha256_file(path), stages, evaluations)


def _names(evidence: Evidence) -> tuple[str, ...]:
    return tuple(name for name, one in CRITERIA.items() if evidence in one.of)


def _bounds(path: Path, where: str, declared: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _bound(path, f"{where}.{name}", CRITERIA[name].bound, value) for name, value in declared.items()}


def _bound(path: Path, key: str, kind: str, value: Any) -> Any:
    try:
        return BOUNDS[kind](value)
    except ValueError as error:
        raise _refused(path, f"has {key}: {str(value)[:60]}; it must be {error}") from error


def _mapping(path: Path, value: Any, where: str, known: tuple[str, ...], kind: str = "criterion") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refused(path, f"has no keys under {where}" if where else "has no keys")
    for name in value:
        if name in CRITERIA and name not in known and kind == "criterion":
            raise _refused(path, f"has {where}.{name}, which only {' or '.join(CRITERIA[name].of)} can answer")
        if name not in known:
            raise UnknownNameError(kind, str(name), known, f"correct {path}" + (f" under {where}" if where else ""))
    return value


def _load(path: Path) -> Any:
    try:
        return yaml_values(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:200] or first_line(error)
        raise _refused(path, f"cannot be read ({said})") from error


def _refused(path: Path, what: str) -> InputError:
    return InputError(f"{path} {what}; see docs/release-gate.md")
