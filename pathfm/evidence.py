"""What a metrics document answers to each criterion of a release gate: always by the end of the interval that is worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pathfm.patients import NO_LABEL
from pathfm.words import interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Document = Mapping[str, Any]

_NOT_FAILED = (NO_LABEL, "no_split")  # not asked for, rather than failed
SCREENED = ("auroc_any", "auroc_common", "auroc_rare")
"""Figures of a screening by the names that a criteria file asks for them by; a label so named is meant before them."""


class Found(NamedTuple):
    """What was wanted and what was found, and whether that is enough; what cannot be checked is not."""

    line: str
    met: bool


def patients(document: Document, least: int) -> Found:
    """Scored patients with a label."""
    return Found(f"at least {least}, found {document['n_patients']}", document["n_patients"] >= least)


def patients_each_class(document: Document, least: int) -> Found:
    """Those of the class, or the group, that has fewest."""
    counts = (document["patient"] or {}).get("n_by_class", {})
    if not counts:
        return _unknown("there are no classes, or no figures")
    rarest = min(counts, key=lambda name: int(counts[name]))
    return Found(f"at least {least}, found {counts[rarest]} of class {rarest}", counts[rarest] >= least)


def figures(document: Document, least: Mapping[str, float]) -> Found:
    """The lower ends of figures by patient; of those that are none of this target's, one at least has to be."""
    block = _figures_of_screening(document) | dict(document["patient"] or {})
    mine = [name for name in least if name in figure_names(document)]
    if not mine or not document["patient"]:
        return _unknown(
            f"the target has no figure {' or '.join(least)}"
            if document["patient"]
            else "there are no figures by patient"
        )
    return _all(_at_least(name.replace("_", " "), _worse_of(block, name), least[name]) for name in mine)


def figure_names(document: Document) -> list[str]:
    """What `figures` can be asked of: the target's own and, of a screening, the AUROC of any, the common and the rare."""
    own = list(document["figures"])
    return own + [name for name in SCREENED if document["screening"] is not None and name not in own]


def sensitivity(document: Document, least: float) -> Found:
    """At the frozen operating point, by patient, of each outcome."""
    return _at_point(document, "sensitivity", least)


def specificity(document: Document, least: float) -> Found:
    """The same of those without it."""
    return _at_point(document, "specificity", least)


def calibration_slope(document: Document, within: tuple[float, float]) -> Found:
    """The whole interval, by patient, of each outcome."""
    low, high = within

    def one(name: str, figure: Mapping[str, float | None]) -> Found:
        if figure["low"] is None or figure["high"] is None:
            return _unknown(f"of {name} there is none")
        met = low <= figure["low"] and figure["high"] <= high
        return Found(f"{name} within {low:g} to {high:g}, found {_said(figure)}", met)

    return _of_calibration(document, "slope", one)


def calibration_error(document: Document, most: float) -> Found:
    """The upper end of the expected calibration error, by patient, of each outcome."""

    def one(name: str, figure: Mapping[str, float | None]) -> Found:
        if figure["high"] is None:
            return _unknown(f"of {name} there is none")
        return Found(f"{name} at most {most:g}, found {_said(figure)}", figure["high"] <= most)

    return _of_calibration(document, "ece", one)


def worst_group(document: Document, least: Mapping[str, float]) -> Found:
    """Of each column the group with the lowest lower end, by patient; of one group alone there is no worst."""

    def one(column: str, bound: float) -> Found:
        block = ((document["subgroups"] or {}).get("columns") or {}).get(column)
        if block is None:
            return _unknown(f"no figures by {column}")
        shown = [row for row in block["rows"] if row["figure"]["low"] is not None]
        if len(shown) < 2:
            return _unknown(f"{len(shown)} of {len(block['rows'])} groups by {column} large enough to be judged")
        worst = min(shown, key=lambda row: float(row["figure"]["low"]))
        few = len(block["rows"]) - len(shown)
        of = f"{column} {worst['value']}, the worst of {len(shown)}" + (
            f" and {few} too small to be judged" if few else ""
        )
        return _at_least(of, worst["figure"], bound)

    return _all(one(column, bound) for column, bound in least.items())


def controls(document: Document, asked: tuple[str, ...]) -> Found:
    """Each was fitted and does not speak against the model; that of the site need not be where the folds keep sites apart."""

    def one(name: str) -> Found:
        block, plain = document["controls"].get(name), name.replace("_", " ")
        if name in document["confounded"]["controls"]:
            return Found(
                f"{plain} speaks against the model: {block['why'] if block else 'see metrics.json'}", met=False
            )
        if name == "site" and "site" in (document["leakage"] or {}).get("checked", ()):
            return Found("no site stands in two folds", met=True)
        if block is None or not block["available"]:
            return _unknown(f"{plain} was not tested" + (f", {block['why']}" if block else ""))
        return Found(f"{plain}: not against the model", met=True)

    return _all(map(one, asked))


def leakage(document: Document, asked: tuple[str, ...]) -> Found:
    """It was looked for, and what is found stops the command that looks; of some slides only is not enough."""
    block = document["leakage"]
    if block is None:
        return _unknown("nothing was looked for")
    blind = {one["what"]: one["why"] for one in block["not_checked"]}
    missing = [name for name in asked if name not in block["checked"] or name in blind]
    if missing:
        return _unknown("; ".join(f"{name} ({blind.get(name, 'not looked for')})" for name in missing))
    return Found(f"none found of {', '.join(asked)}", met=True)


def failed(document: Document, most: float) -> Found:
    """Slides with a label that have no score, whatever the reason."""
    lost = sum(one["reason"] not in _NOT_FAILED for one in document["left_out"])
    total = document["n_slides"] + lost
    if not total:
        return _unknown("there are no slides")
    return Found(f"at most {most:g}, found {lost} of {total}, {lost / total:.3f}", lost / total <= most)


def coverage(document: Document, least: float) -> Found:
    """How often the set holds the true class, of the class of which that is rarest."""
    block = document["conformal"]
    if block is None:
        return _unknown("the model has no conformal sets")
    return _all(_share_at_least(name, one, least) for name, one in block["classes"].items())


def abstained(document: Document, most: float) -> Found:
    """Patients whose set is not one class."""
    block = document["conformal"]
    if block is None or block["abstained"]["high"] is None:
        return _unknown("the model has no conformal sets")
    met = block["abstained"]["high"] <= most
    return Found(f"at most {most:g}, found {_said(block['abstained'])}", met)


def shift(document: Document, _: bool) -> Found:
    """The alarm of the cohort."""
    block = document["shift"]
    if block is None or block["alarm"] is None:
        return _unknown(block["sentence"] if block else "the model has no reference")
    return Found(block["sentence"], not block["alarm"])


def looks(document: Document, most: int) -> Found:
    """The ledger of the test set, this evaluation included."""
    block = document["ledger"]
    if block is None:
        return _unknown("there is no ledger")
    found = f"found {block['looks']} by {block['models']} models, up to and including that evaluation"
    return Found(f"at most {most}, {found}", block["looks"] <= most)


def _figures_of_screening(document: Document) -> dict[str, Any]:
    """Named the way those of a target are; where a stratum has nobody it has none."""
    screening = document["screening"]
    if screening is None:
        return {}
    sides = {"auroc_any": screening["any"], **{f"auroc_{name}": one for name, one in screening["strata"].items()}}
    known = {name: one for name, one in sides.items() if one is not None and name not in document["figures"]}
    by_delong = {f"{name}_delong": one["auroc_delong"] for name, one in known.items()}
    return {name: one["auroc"] for name, one in known.items()} | by_delong


def _at_point(document: Document, name: str, least: float) -> Found:
    block = document["operating_points"]
    if block is None:
        return _unknown("the model has no frozen operating point")
    levels = {outcome: at["patient"] for outcome, at in block["outcomes"].items()}
    return _all(
        _unknown(f"of {outcome} there is nobody") if at is None else _share_at_least(outcome, at[name], least)
        for outcome, at in levels.items()
    )


def _of_calibration(document: Document, name: str, one: Any) -> Found:
    block = document["calibration"]
    if block is None:
        return _unknown("the target has no probabilities")
    return _all(one(outcome, its[name]) for outcome, its in block["outcomes"].items())


def _share_at_least(name: str, found: Mapping[str, Any], least: float) -> Found:
    if found["low"] is None:
        return _unknown(f"of {name} there is nobody")
    return Found(f"{name} at least {least:g}, found {_said(found)}", found["low"] >= least)


def _at_least(name: str, figure: Mapping[str, float | None] | None, least: float) -> Found:
    if figure is None or figure["low"] is None:
        return _unknown(f"{name} is not computable")
    if figure["low"] == figure["high"]:  # no resample differs, as of a perfect AUROC of few patients: it shows nothing
        return _unknown(f"the interval of {name} ({interval(figure, 3)}) has no width")
    return Found(f"{name} at least {least:g}, found {_said(figure)}", figure["low"] >= least)


def _worse_of(block: Mapping[str, Any], name: str) -> Mapping[str, float | None] | None:
    """A figure of patients; of an AUROC that of its two intervals, bootstrap and DeLong, that begins lower."""
    known = [
        one for one in (block.get(name), block.get(f"{name}_delong")) if one is not None and one["low"] is not None
    ]
    return min(known, key=lambda one: float(one["low"])) if known else block.get(name)


def _all(found: Iterable[Found]) -> Found:
    """All of them at once; of those that fail alone the lines."""
    every = list(found)
    if not every:
        return _unknown("there is nothing to look at")
    failing = [one for one in every if not one.met]
    return Found("; ".join(one.line for one in failing or every), not failing)


def _said(figure: Mapping[str, Any]) -> str:
    """With three digits, so that an end seldom looks like the bound that it misses."""
    counted = f"{figure['k']} of {figure['n']}, " if "k" in figure else ""
    return counted + interval(figure, 3)


def _unknown(why: str) -> Found:
    return Found(f"cannot be checked: {why}", met=False)
