"""The stage that a release gate has given a model: `stage.json`, which holds for one `model.json` and for no other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from pathfm.errors import InputError, ModelError
from pathfm.files import canonical_json, sha256_text, write_json
from pathfm.model import model_sha256
from pathfm.tables import read_document
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Stage = Literal["development", "silent", "assisted"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""From the lowest: to be looked at by those who build it; run and logged beside the work, unseen; seen by who decides."""

STAGE_JSON = "stage.json"
_FORMAT, _FORMAT_VERSION = "pathfm-stage", 1
_SHAPE = {
    "pathfm_version": str,
    "stage": STAGES,
    "when": str,
    "model_sha256": str,
    "criteria_sha256": str,
    "asked": (*STAGES, None),
    "evaluations": [{"target": str, "metrics_sha256": str, "n_patients": int}],
    "checked": [{"stage": STAGES, "evidence": str, "criterion": str, "line": str, "met": bool}],
    "not_checked": [str],
    "sha256": str,
}


class Check(NamedTuple):
    """One criterion, held against one piece of evidence.

    Attributes:
        stage: for which it has to be met.
        evidence: where the figures are from, in words.
        criterion: its name in the criteria file.
        line: what was wanted and what was found.
        met: whether it is; what cannot be checked is not.
    """

    stage: Stage
    evidence: str
    criterion: str
    line: str
    met: bool

    def __str__(self) -> str:
        return f"{self.stage}, {self.evidence}: {self.criterion} {'ok' if self.met else 'FAILED'}: {self.line}"


class StageStamp(NamedTuple):
    """The stage of a model, and why it is that.

    Attributes:
        stage: "development" for a model that no gate has let pass.
        reasons: of "development" why no higher one, a line each; of the others what they were given for.
        criteria_sha256: hex sha256 of the criteria file, "" where no stamp holds.
        when: ISO 8601, UTC, "" where no stamp holds.
    """

    stage: Stage
    reasons: tuple[str, ...]
    criteria_sha256: str
    when: str

    def __str__(self) -> str:
        """One line, for a log, a title or a page."""
        if self.stage == "development":
            return f"stage: development, not for use on patients ({self.reasons[0]})"
        return f"stage: {self.stage}, given {self.when[:10]} by criteria {self.criteria_sha256[:8]}"


def read_stage(folder: Path) -> StageStamp:
    """The stage of a model directory: that of its `stage.json`, or "development" with the reason why that does not hold.

    A stamp lapses where `model.json` is no longer the one that was stamped, which holds the digests of the weights and of
    what is frozen with them; and where its own content was changed. This finds accidents and careless edits. It does not
    find forgery: who can write a digest can write any.

    Args:
        folder: the model directory.

    Raises:
        ModelError: there is no model.json in it.
    """
    path = folder / STAGE_JSON
    if not (folder / "model.json").is_file():
        message = f"{folder} is not a model directory, it has no model.json; pass --model a folder that train, crossval or run wrote"
        raise ModelError(message)
    if not path.exists():
        return _development("no release gate has let it pass; pathfm gate checks it")
    try:
        found = read_document(path, _FORMAT, _FORMAT_VERSION, _SHAPE, "run pathfm gate again")
    except InputError as error:
        return _development(str(error).replace(str(path), STAGE_JSON))  # folders name people
    if found["sha256"] != _digest(found):
        return _development(f"{STAGE_JSON} was changed after it was written; run pathfm gate again")
    if found["model_sha256"] != model_sha256(folder):
        return _development("the model has changed since it was stamped; run pathfm gate again")
    return StageStamp(found["stage"], _reasons(found), found["criteria_sha256"], found["when"])


def write_stage(
    folder: Path,
    stage: Stage,
    criteria_sha256: str,
    checked: Sequence[Check],
    not_checked: Sequence[str],
    asked: Stage | None = None,
    evaluations: Sequence[dict[str, Any]] = (),
) -> None:
    """Stamps a model directory, in place of the stamp that it had.

    Args:
        folder: the model directory.
        stage: what it is given.
        criteria_sha256: hex sha256 of the criteria file.
        checked: all criteria of the file.
        not_checked: names of criteria that the file leaves out.
        asked: the stage that was asked for, beyond which it does not go; None for the highest.
        evaluations: of each external evaluation `target`, `metrics_sha256` and `n_patients`.
    """
    stamp = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "pathfm_version": __version__,
        "stage": stage,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_sha256": model_sha256(folder),
        "criteria_sha256": criteria_sha256,
        "asked": asked,
        "evaluations": list(evaluations),
        "checked": [one._asdict() for one in checked],
        "not_checked": list(not_checked),
    }
    write_json(folder / STAGE_JSON, stamp | {"sha256": _digest(stamp)})


def _reasons(stamp: dict[str, Any]) -> tuple[str, ...]:
    """What a stage was given for; of "development" what the lowest stage above it failed for, or that it was asked for."""
    checks = [Check(**one) for one in stamp["checked"]]
    at = STAGES.index(stamp["stage"])
    lines = [str(one) for one in checks if one.met and STAGES.index(one.stage) <= at]
    if at == 0:
        failed = [str(one) for one in checks if not one.met]
        lines = failed if failed and stamp["asked"] != "development" else ["it was stamped so, by --stage development"]
    more = f"not checked, for the criteria leave it out: {', '.join(stamp['not_checked'])}"
    return (*lines, more) if stamp["not_checked"] else tuple(lines)


def _digest(stamp: dict[str, Any]) -> str:
    return sha256_text(canonical_json({name: value for name, value in stamp.items() if name != "sha256"}))


def _development(why: str) -> StageStamp:
    return StageStamp("development", (why,), "", "")
