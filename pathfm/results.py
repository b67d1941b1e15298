"""What a command leaves of a model's predictions: predictions.csv and metrics.json, written, read back and summed up."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from pathfm.calibrationblock import SHAPE as CALIBRATION
from pathfm.cohortfigures import cohort_figures, is_scored
from pathfm.conformal import SHAPE as CONFORMAL
from pathfm.errors import InputError, UnknownNameError
from pathfm.files import write_json, write_text
from pathfm.freezing import SHAPE as OPERATING_POINTS
from pathfm.leakage import SHAPE as LEAKAGE
from pathfm.ledger import SHAPE as LEDGER
from pathfm.patients import Unit, n_slides_of
from pathfm.screening import SHAPE as SCREENING
from pathfm.shiftblock import SHAPE as SHIFT
from pathfm.subgroups import SHAPE as SUBGROUPS
from pathfm.tables import first_line, misfit, read_document, read_table
from pathfm.targets import Task
from pathfm.targets.target import folder_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pathfm.labelled import LeftOut
    from pathfm.targets import Target

_FORMAT, _FORMAT_VERSION = "pathfm-metrics", 3
_RESULTS = ("predictions.csv", "patients.csv", "metrics.json", "repeats.csv")
BLOCKS = {
    "prevalence": float,
    "calibration": CALIBRATION,
    "operating_points": OPERATING_POINTS,
    "screening": SCREENING,
    "subgroups": SUBGROUPS,
    "conformal": CONFORMAL,
    "shift": SHIFT,
    "leakage": LEAKAGE,
    "ledger": LEDGER,
    "model_sha256": str,
}
"""What metrics.json holds beside the figures, each null where it is not known, and its shape."""
_NUMBER = (float, None)
_FIGURE = {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER}
_FOLD = dict.fromkeys(("fold", "n_train_patients", "n_stop_patients", "n_scored_patients", "epochs"), int)
_SHAPE = {
    "target": {"name": str, "kind": str},
    "unit": get_args(Unit),
    "figures": [str],
    "protocol": str,
    "n_slides": int,
    "n_patients": int,
    "left_out": [{"slide_id": str, "reason": str}],
    "slide": (dict, None),
    "patient": (dict, None),
    "interval": (str, None),
    "controls": {"*": dict},
    "confounded": {"verdict": str, "controls": [str]},
    "folds": [_FOLD | {"stopped_early": bool}],
    "warnings": [str],
    **{name: (shape, None) for name, shape in BLOCKS.items()},
    "lesion?": ({"attention_auroc": (_FIGURE, float, None)}, None),
}


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV, atomically; NaN is an empty cell, floats read back exactly."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_results(
    out: Path,
    results: Mapping[str, tuple[pd.DataFrame, Mapping[str, Any] | None]],
    patients: Mapping[str, pd.DataFrame] | None = None,
) -> None:
    """Writes predictions.csv and metrics.json: of one target into a folder, of several each into a folder of its own in it.

    What an earlier run left in their places goes first, with the results of targets that are none of these, so that
    nobody takes them for those of this run.

    Args:
        out: the folder.
        results: by the name of the target its predictions and its figures; None where there are no labels.
        patients: by the name of the target what is decided of patients, for patients.csv.
    """
    drop_results(out)
    for name, (predictions, metrics) in results.items():
        folder = out if len(results) == 1 else out / folder_name(name)
        write_table(folder / "predictions.csv", predictions)
        if patients and name in patients:
            write_table(folder / "patients.csv", patients[name])
        if metrics is not None:
            write_json(folder / "metrics.json", dict(metrics))


def drop_results(out: Path) -> None:
    """Removes what `write_results` left in a folder, and nothing else."""
    for folder in (out, *_folders_of_targets(out).values()):
        for name in _RESULTS:
            (folder / name).unlink(missing_ok=True)
        if folder != out and not any(folder.iterdir()):
            folder.rmdir()


def find_results(folder: Path, target: str | None, remedy: str) -> Path:
    """The folder in which `write_results` left the metrics.json of a target.

    Args:
        folder: the folder that was given to it.
        target: the name of the target; None where there is one only.
        remedy: what now, for the messages.

    Raises:
        InputError: no results, or several targets and none named.
        UnknownNameError: no results of this target; those that are there are listed.
    """
    found = _folders_of_targets(folder)
    if not found or (folder / "metrics.json").is_file():
        found = {read_metrics(folder / "metrics.json", remedy)["target"]["name"]: folder}
    if target is None and len(found) > 1:
        message = f"{folder} holds results of several targets; pass --target one of {', '.join(sorted(found))}"
        raise InputError(message)
    name = target if target is not None else next(iter(found))
    if name not in found:
        raise UnknownNameError("target", name, found, f"{folder} holds these; pass --target one of them")
    return found[name]


def _folders_of_targets(folder: Path) -> dict[str, Path]:
    """Of each target of several its folder; results that somebody else put below this one are not called like theirs."""
    found = {}
    for path in sorted(folder.glob("*/metrics.json")):
        with suppress(InputError):
            name = read_document(path, _FORMAT, _FORMAT_VERSION, {"target": {"name": str}}, "")["target"]["name"]
            if path.parent.name == folder_name(name):
                found[name] = path.parent
    return found


def read_predictions(path: Path, target: Target, remedy: str) -> pd.DataFrame:
    """A predictions table: ids, labels and folds as text ("" where empty), scores as numbers (NaN where empty).

    Raises:
        InputError: missing, broken, of other columns, or a score that is none; the message ends in the remedy.
    """
    table = read_table(path, ("slide_id", "patient_id", "label", "predicted", "reason", *target.names), remedy)
    for name in target.names:
        text, table[name] = table[name], pd.to_numeric(table[name], errors="coerce").astype(float)
        what, most = ("probabilities", 1.0) if target.gives_probabilities else ("numbers", float("inf"))
        sound = table[name].between(0 if most == 1 else -most, most, inclusive="both" if most == 1 else "neither")
        if ((text != "") & ~sound).any():
            message = f"{path} holds something else than {what} in the column {name}; {remedy}"
            raise InputError(message)
    return table


def read_metrics(path: Path, remedy: str) -> dict[str, Any]:
    """metrics.json as `metrics_document` made it.

    Raises:
        InputError: missing, broken, of an older format, or no metrics.json; the key is named and the message ends in the
            remedy.
    """
    stated = read_document(path, _FORMAT, _FORMAT_VERSION, {"format_version": int}, remedy)["format_version"]
    if stated < _FORMAT_VERSION:
        message = f"{path} is of format_version {stated}, which this pathfm does not read; {remedy}"
        raise InputError(message)
    metrics = read_document(path, _FORMAT, _FORMAT_VERSION, _SHAPE, remedy)
    what = _misfit_of_figures(metrics)
    if what:
        message = f"{path} {what}; {remedy}"
        raise InputError(message)
    return metrics


def target_of(metrics: Mapping[str, Any]) -> Target:
    """The target of a metrics document that `read_metrics` has checked."""
    return Task.of_facts([metrics["target"]]).targets[0]


def metrics_document(
    predictions: pd.DataFrame,
    *,
    target: Target,
    unit: Unit,
    protocol: str,
    left_out: Sequence[LeftOut],
    controls: Mapping[str, Any],
    blocks: Mapping[str, Any] | None = None,
    folds: Sequence[Mapping[str, Any]] = (),
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """metrics.json of predictions for bags that the model had not seen; figures are null where there are none.

    Args:
        predictions: a predictions table, of held-out bags only.
        target: what they are of.
        unit: what a row is.
        protocol: how the bags were held out, in words.
        left_out: slides of the cohort that were not used, with the reason.
        controls: the blocks "controls" and "confounded".
        blocks: what of `BLOCKS` is known, by name.
        folds: what each fold was fitted on.
        warnings: come before those of the figures.
    """
    scored = predictions[is_scored(predictions, target)] if len(predictions) else predictions
    figures: dict[str, Any] = {"slide": None, "patient": None, "interval": None, "warnings": []}
    if len(scored):
        figures = cohort_figures(predictions, target, unit)
    bags = scored["slide_id"].drop_duplicates()
    return {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "target": Task((target,)).facts()[0],
        "unit": unit,
        "figures": list(target.metrics),
        "protocol": protocol,
        "n_slides": n_slides_of(list(bags), unit),
        "n_patients": int(scored["patient_id"].nunique()),
        "left_out": [one._asdict() for one in left_out],
        "slide": figures["slide"],
        "patient": figures["patient"],
        "interval": figures["interval"],
        **controls,
        **dict.fromkeys(BLOCKS),
        **(blocks or {}),
        "folds": list(folds),
        "warnings": [*warnings, *figures["warnings"]],
    }


def no_controls(why: str) -> dict[str, Any]:
    """The blocks "controls" and "confounded" where the controls cannot be fitted."""
    absent = {"available": False, "why": why}
    sentence = f"Confounding was not tested: {why}."
    return {
        "controls": {"mean_colour": absent, "site": absent, "permuted_labels": absent},
        "confounded": {"verdict": "not tested", "controls": [], "sentence": sentence},
    }


def summary(metrics: Mapping[str, Any]) -> str:
    """A metrics document in a few lines for a terminal: figures by patient with intervals, confounding, warnings."""
    name, n_slides, n_patients = metrics["target"]["name"], metrics["n_slides"], metrics["n_patients"]
    lines = [f"{name}, {metrics['protocol']}: {n_slides} slides of {n_patients} patients"]
    for unit in ("patient", "slide"):
        block = metrics[unit]
        if block:
            figures = ", ".join(f"{figure.replace('_', ' ')} {_text(block[figure])}" for figure in metrics["figures"])
            lines.append(f"by {unit}: {figures}")
    lines += _at_points(metrics["operating_points"])
    lines.append(metrics["confounded"]["sentence"])
    lines += [metrics["shift"]["sentence"]] if metrics["shift"] else []
    lines += [_looks(metrics["ledger"])] if metrics["ledger"] else []
    lines += [f"warning: {warning}" for warning in metrics["warnings"]]
    if metrics["left_out"]:
        lines.append(f"left out: {len(metrics['left_out'])} slides, see metrics.json")
    return "\n".join(lines)


def _at_points(block: Mapping[str, Any] | None) -> list[str]:
    """What the operating point comes to, a line an outcome, and what has to be said of it."""
    if not block:
        return []
    lines = []
    for name, levels in block["outcomes"].items():
        point = levels["patient"] or levels["slide"]
        by = "patient" if levels["patient"] else "slide"
        shares = ", ".join(f"{what} {_share(point[what])}" for what in ("sensitivity", "specificity"))
        lines.append(f"at {block['rule']}, {name} by {by}: {shares}")
    return [*lines, *(f"note: {note}" for note in block["notes"])]


def _share(one: Mapping[str, Any]) -> str:
    return f"{one['k']} of {one['n']}, {_text(one)}"


def _looks(ledger: Mapping[str, Any]) -> str:
    times, models = ("once" if ledger["looks"] == 1 else f"{ledger['looks']} times"), ledger["models"]
    return f"this test set ({ledger['test_set']}) has been looked at {times}, with {models} model{'s' * (models > 1)}"


def _misfit_of_figures(metrics: Mapping[str, Any]) -> str:
    """What keeps the blocks from holding the figures that the target has, "" where nothing does."""
    try:
        known = list(target_of(metrics).metrics)
    except (ValueError, InputError) as error:
        return f"has a key 'target' that cannot be read: {first_line(error)}"
    if metrics["figures"] != known:
        return f"has a key 'figures' that is not {', '.join(known)}"
    block = dict.fromkeys(known, _FIGURE) | {"n": int, "n_by_class": {"*": int}}
    tested = {"available": True, known[0]: _FIGURE, "difference": _FIGURE, "confounded": bool, "why": str}
    shape = {
        "slide": (block, None),
        "patient": (block, None),
        "controls": {"*": (tested, {"available": False, "why": str})},
    }
    return misfit(metrics, shape)


def _text(figure: Mapping[str, float | None]) -> str:
    if figure["value"] is None:
        return "not computable"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
