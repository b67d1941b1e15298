"""The release gate: a model held against criteria that were declared before, and stamped with the stage that it reaches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Any

from pathfm.criteria import CRITERIA, EVALUATIONS, Criteria, read_criteria
from pathfm.errors import InputError, StageRefusedError, UnknownNameError
from pathfm.evaluate import PROTOCOL
from pathfm.evidence import SCREENED, figure_names
from pathfm.files import sha256_file
from pathfm.metrics import SHAPE as FIGURE
from pathfm.model import model_sha256, read_model
from pathfm.progress import logger
from pathfm.results import BLOCKS, find_results, read_metrics
from pathfm.stage import STAGES, Check, Stage, write_stage
from pathfm.tables import misfit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_REMEDY = "run pathfm evaluate again, with the model that is to be stamped"
_SHAPE = {
    "figures": [str],
    "n_slides": int,
    "n_patients": int,
    "protocol": str,
    "left_out": [{"slide_id": str, "reason": str}],
    "patient": ({"n": int, "n_by_class": {"*": int}}, None),
    "controls": {"*": ({"available": True, "why": str}, {"available": False, "why": str})},
    "confounded": {"verdict": str, "controls": [str]},
    **{name: (shape, None) for name, shape in BLOCKS.items()},
}


@dataclass(frozen=True)
class GateResult:
    """What `gate` found and did; prints a line a criterion.

    Attributes:
        model: the directory that was stamped.
        stage: that it was given.
        checks: of all criteria of the file.
        not_checked: criteria that the file leaves out.
    """

    model: Path
    stage: Stage
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...]

    def __str__(self) -> str:
        lines = [str(one) for one in self.checks]
        if self.not_checked:
            lines.append(f"not checked, for the criteria leave it out: {', '.join(self.not_checked)}")
        return "\n".join([*lines, f"{self.model}: {self.stage}"])


def gate(model: Path, criteria: Path, evaluation: list[Path] | None = None, stage: Stage | None = None) -> GateResult:
    """Checks a model against declared criteria and stamps its directory: development, silent, or assisted.

    A stage is given where all criteria of it and of those below it are met; a criterion that cannot be checked is not met,
    and assisted needs an external evaluation. The model gets the highest stage that it reaches, or at most the one that is
    asked for, in place of the stamp that it had. It ends with exit code 2 where the stage that is asked for is not
    reached, and without --stage where none above development is.

    Args:
        model: the model directory.
        criteria: a YAML file such as configs/gate.yaml, written before the figures were seen.
        evaluation: folders that evaluate wrote for this very model; all of them have to meet the external criteria.
        stage: the stage to reach, and not to go beyond; development takes a stamp away. Where not given the highest.

    Raises:
        StageRefusedError: the stage is not reached; what failed was logged, a line a criterion, and the stamp says it.
        InputError: criteria that cannot be read, or an evaluation of another model.
        UnknownNameError: a criterion that nobody knows, or a figure that no target of the model has.
        ModelError: not a model directory.
    """
    declared = read_criteria(criteria)
    if stage is not None and stage != "development" and stage not in declared.stages:
        message = f"{criteria} declares no criteria for the stage {stage}; declare them, or pass another --stage"
        raise InputError(message)
    evidence = _Evidence.of(model, evaluation or [])
    _require_figures(criteria, declared, evidence)
    checks = tuple(one for name in declared.stages for one in _checks(declared, name, evidence))
    given = _reached(declared, checks, stage)
    left_out = tuple(declared.left_out(next(reversed(declared.stages)) if given == "development" else given))
    write_stage(model, given, declared.sha256, checks, left_out, stage, evidence.facts)
    result = GateResult(model, given, checks, left_out)
    wanted = stage or "silent"
    if STAGES.index(given) < STAGES.index(wanted):
        for line in str(result).splitlines():
            logger.info("%s", line)
        failed = [one for one in checks if not one.met and _counts_for(one, wanted)]
        raise StageRefusedError(wanted, given, failed, _names(declared, failed, evidence))
    return result


@dataclass(frozen=True)
class _Evidence:
    """Metrics documents by what they are called in a line.

    Attributes:
        cross_validation: of each target the figures that the model carries; None for one that carries none.
        external: of each evaluation and target the figures.
        n_evaluations: of different test sets.
        facts: of each evaluation and target what the stamp says of it.
    """

    cross_validation: dict[str, Mapping[str, Any] | None]
    external: dict[str, Mapping[str, Any]]
    n_evaluations: int
    facts: list[dict[str, Any]]

    @classmethod
    def of(cls, folder: Path, evaluations: Sequence[Path]) -> _Evidence:
        model = read_model(folder)  # whole, so that what is stamped can also be used
        targets = [target.name for target in model.task.targets]
        own = {name: (model.figures or {}).get(name) for name in targets}
        for name, document in own.items():
            if document is not None:
                _require_shape(f"{folder / 'model.json'} key figures.{name}", document, "train the model again")
        digest, facts = model_sha256(folder), []
        external: dict[str, Mapping[str, Any]] = {}
        for place, path in enumerate(evaluations, 1):
            for name in targets:
                found = find_results(path, name, _REMEDY) / "metrics.json"
                document = read_metrics(found, _REMEDY)
                _require_own(found, document, digest)
                _require_shape(str(found), document, _REMEDY)
                external[
                    _called(f"external evaluation {place}" if len(evaluations) > 1 else "external", name, targets)
                ] = document
                facts.append(
                    {"target": name, "metrics_sha256": sha256_file(found), "n_patients": document["n_patients"]}
                )
        _require_different(evaluations, facts, list(external.values()))
        called = {_called("cross-validation", name, targets): document for name, document in own.items()}
        return cls(called, external, len(evaluations), facts)


def _checks(declared: Criteria, stage: Stage, evidence: _Evidence) -> list[Check]:
    asked = declared.stages[stage]
    found = [
        Check(stage, where, name, *CRITERIA[name].check(document, bound))
        if document is not None
        else Check(
            stage, where, name, "cannot be checked: the model carries no figures of a cross-validation", met=False
        )
        for part, documents in (("cross_validation", evidence.cross_validation), ("external", evidence.external))
        for where, document in documents.items()
        for name, bound in asked[part].items()  # type: ignore[index]
    ]
    least, n = declared.evaluations[stage], evidence.n_evaluations
    if least:
        line = f"at least {least}, found {n}" + ("" if n else "; pass --evaluation what pathfm evaluate wrote")
        found.append(Check(stage, "external", EVALUATIONS, line, n >= least))
    return found


def _reached(declared: Criteria, checks: Sequence[Check], most: Stage | None) -> Stage:
    reached: Stage = "development"
    for stage in STAGES[1:]:
        met = all(one.met for one in checks if _counts_for(one, stage))
        if not met or stage not in declared.stages or (most and STAGES.index(stage) > STAGES.index(most)):
            break
        reached = stage
    return reached


def _names(declared: Criteria, failed: Sequence[Check], evidence: _Evidence) -> list[str]:
    """Each criterion once, whatever it was held against, and of the controls which."""
    names: dict[str, list[str]] = {}
    for one in failed:
        which = names.setdefault(one.criterion, [])
        document = evidence.cross_validation.get(one.evidence)
        if one.criterion == "controls" and document is not None:
            asked, check = declared.stages[one.stage]["cross_validation"]["controls"], CRITERIA["controls"].check
            which += [name.replace("_", " ") for name in asked if not check(document, (name,)).met]
    return [f"{name} ({', '.join(dict.fromkeys(which))})" if which else name for name, which in names.items()]


def _counts_for(check: Check, stage: Stage) -> bool:
    return STAGES.index(check.stage) <= STAGES.index(stage)


def _called(what: str, target: str, targets: Sequence[str]) -> str:
    return what if len(targets) == 1 else f"{what} of {target}"


def _require_own(path: Path, document: Mapping[str, Any], digest: str) -> None:
    if document["protocol"] != PROTOCOL:
        message = f"{path} holds figures of '{document['protocol']}', not of an external evaluation; {_REMEDY}"
        raise InputError(message)
    if document["model_sha256"] != digest:
        message = f"{path} holds figures of another model than --model; {_REMEDY}"
        raise InputError(message)


def _require_different(
    folders: Sequence[Path], facts: Sequence[Mapping[str, Any]], documents: Sequence[Mapping[str, Any]]
) -> None:
    """One test set in two folders would count as two."""
    sets = [
        (one["ledger"] or {}).get("test_set") or fact["metrics_sha256"]
        for one, fact in zip(documents, facts, strict=True)
    ]
    of_target = [(fact["target"], test_set) for fact, test_set in zip(facts, sets, strict=True)]
    if len(set(of_target)) < len(of_target):
        message = f"--evaluation names one test set twice among {', '.join(map(str, folders))}; pass each once"
        raise InputError(message)


def _require_shape(where: str, document: Mapping[str, Any], remedy: str) -> None:
    what = misfit(dict(document), _SHAPE)
    for name in document["figures"] if not what and document["patient"] else []:
        what = what or misfit(document["patient"].get(name), FIGURE, f"patient.{name}")
    if what:
        message = f"{where} {what}; {remedy}"
        raise InputError(message)


def _require_figures(path: Path, declared: Criteria, evidence: _Evidence) -> None:
    """A figure that no target has would otherwise fail without saying that it was misspelt."""
    documents = [*filter(None, evidence.cross_validation.values()), *evidence.external.values()]
    of_part = {
        "cross_validation": list(filter(None, evidence.cross_validation.values())),
        "external": list(evidence.external.values()),
    }
    for parts in declared.stages.values():
        for where, part in parts.items():
            known = {name for document in of_part[where] or documents for name in figure_names(document)}
            for name in part.get("figure_at_least", {}):
                if documents and name not in known:
                    remedy = f"correct {where}.figure_at_least in {path}"
                    if name in SCREENED:
                        remedy += ", or train a screening (--claims.negative) with an operating point"
                    raise UnknownNameError("figure", name, known, remedy)
