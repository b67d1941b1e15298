"""Blocks of metrics.json for reports, each as its module writes it, of a study that has them all."""

from __future__ import annotations

from typing import Any

from pathfm.proportions import predictive_values, proportion


def figure(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def at_point(
    tp: int, fn: int, fp: int, tn: int, prevalence: float | None = None, threshold: float | None = None
) -> dict[str, Any]:
    found, spared = proportion(tp, tp + fn), proportion(tn, tn + fp)
    return {
        "threshold": threshold,
        **{"tp": tp, "fp": fp, "fn": fn, "tn": tn},
        **{"sensitivity": found, "specificity": spared},
        **{"ppv": proportion(tp, tp + fp), "npv": proportion(tn, tn + fn)},
        "at_prevalence": predictive_values(found, spared, prevalence) if prevalence else None,
    }


def operating_points(outcome: str, prevalence: float | None = 0.05) -> dict[str, Any]:
    point = at_point(46, 4, 10, 190, prevalence, 0.37)
    return {
        "rule": "specificity>=0.95",
        "outcomes": {outcome: {"patient": point, "slide": at_point(50, 6, 12, 220)}},
        "notes": ["99.9 % needs 3,688 negatives without a false positive, and there are 200"],
    }


def calibration(outcome: str, slope: dict[str, float] | None = None) -> dict[str, Any]:
    one = {"n": 250, "n_positive": 50, "brier": figure(0.06, 0.04, 0.08), "ece": figure(0.03, 0.02, 0.06)}
    one |= {"slope": slope or figure(1.05, 0.8, 1.3), "intercept": figure(0.02, -0.3, 0.35)}
    one |= {"reliability": 0.004, "resolution": 0.104, "uncertainty": 0.16}
    return {"method": "temperature", "outcomes": {outcome: one}}


def subgroups(main: str) -> dict[str, Any]:
    rows = [
        {"value": "north", "n": 130, "n_by_class": {"0": 100, "1": 30}, "figure": figure(0.95, 0.9, 0.99)},
        {"value": "south", "n": 115, "n_by_class": {"0": 95, "1": 20}, "figure": figure(0.81, 0.7, 0.91)},
        {
            "value": "not stated",
            "n": 5,
            "n_by_class": {"0": 5, "1": 0},
            "figure": dict.fromkeys(("value", "low", "high")),
        },
    ]
    shares = {"sensitivity": proportion(18, 20), "specificity": proportion(90, 100)}
    column = {"rows": [row | shares for row in rows], "worst": "south", "p": 0.03, "note": "2 groups were compared"}
    return {"figure": main, "columns": {"site": column}}


def conformal(classes: list[str]) -> dict[str, Any]:
    return {
        "coverage": 0.9,
        "classes": {name: proportion(46, 50) for name in classes},
        **{"overall": proportion(230, 250), "abstained": proportion(30, 250), "right_of_rest": proportion(210, 220)},
        **{"empty": 4, "several": 26, "notes": ["the sets hold what they promise on slides like these alone"]},
    }


def shift(alarm: str = "") -> dict[str, Any]:
    test = {"p": 0.001 if alarm else 0.4, "effect": 0.3, "alarm": bool(alarm), "n_reference": 120, "n": 250}
    return {
        **{"available": True, "why": None, "flagged": proportion(9, 250), "flag_rate": 0.05, "false_alarm_rate": 0.05},
        **{"n_reference": {"slides": 130, "patients": 120}, "n": {"slides": 288, "patients": 250}},
        **{"embedding": test, "colour": test | {"p": 0.3, "alarm": False}, "mpp": None},
        **{
            "alarm": bool(alarm),
            "sentence": alarm or "No shift was seen.",
            "notes": ["the scale of 3 slides is not known"],
        },
    }


def screening(types: list[str], negative: str, prevalence: float | None = 0.01) -> dict[str, Any]:
    point = at_point(46, 4, 10, 190, prevalence)
    whole = {"n": 50, "auroc": figure(0.95, 0.91, 0.98), "auroc_delong": figure(0.95, 0.92, 0.97), "at_point": point}
    rows = [
        {"name": name, "stratum": "rare" if name == types[-1] else "common", "n": 25, "few": False}
        | {"auroc": figure(0.94, 0.88, 0.98), "sensitivity": proportion(23, 25)}
        for name in types
    ]
    named = {name: {one: 20 if one == name else 3 for one in types} for name in types}
    top = {"top1": proportion(40, 46), "top1_of_all": proportion(40, 50), "top1_without_point": proportion(42, 50)}
    return {
        "negative": negative,
        **{"n_negative": 200, "any": whole, "types": rows, "strata": {"common": whole, "rare": whole}},
        **{"origin": top | {"confusion": named}, "notes": ["types with few patients have rough figures"]},
    }


LEAKAGE = {
    "checked": ["patients", "slide digests"],
    "not_checked": [{"what": "near-duplicates", "why": "the embeddings have no thumbnail hash"}],
}
LEDGER = {"looks": 7, "models": 3, "test_set": "0a1b2c3d", "first": "2024-05-01", "file": "cohort.ledger.csv"}


def of_two_classes() -> dict[str, Any]:
    """All blocks of a target of two classes, "0" and "1"."""
    return {
        "prevalence": 0.05,
        "calibration": calibration("1"),
        "operating_points": operating_points("1"),
        "screening": None,
        "subgroups": subgroups("auroc"),
        "conformal": conformal(["0", "1"]),
        "shift": shift(),
        "leakage": LEAKAGE,
        "ledger": LEDGER,
    }
