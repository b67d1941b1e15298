"""The house of docs/design.md, kept by a test: modules import only downward, and the two halves never meet below floor 5."""

from __future__ import annotations

import ast
from pathlib import Path

import pathfm

ROOT = Path(pathfm.__file__).parent

# floor: module -> half ("hinge" may be read by both; from floor 5 up a room may use both)
HOUSE: dict[int, dict[str, str]] = {
    0: {"errors": "hinge", "version": "hinge"},
    1: {
        "files": "hinge",
        "guarded": "hinge",
        "hollow": "hinge",
        "thumbnailhash": "hinge",
        "contents": "hinge",
        "progress": "hinge",
        "licences": "hinge",
        "failures": "hinge",
        "tables": "hinge",
        "figures": "hinge",
        "settings": "learning",
        "metrics": "learning",
        "claims": "learning",
        "proportions": "learning",
        "delong": "learning",
        "calibrationfigures": "learning",
        "netbenefit": "learning",
        "survivalcurves": "learning",
        "curves": "learning",
        "tripoditems": "learning",
        "journal": "hinge",
        "confined": "hinge",
        "isolation": "hinge",
        "process": "hinge",
        "sharedmemory": "hinge",
        "privacy": "hinge",
        "scrub": "hinge",
        "options": "hinge",
        "plainyaml": "hinge",
        "scale": "imaging",
        "slidefiles": "imaging",
        "pixels": "imaging",
    },
    2: {
        "embeddings": "hinge",
        "cohort": "hinge",
        "heads": "learning",
        "targets": "learning",
        "covariates": "learning",
        "slide": "imaging",
        "readers": "imaging",
        "overview": "imaging",
        "backbones": "imaging",
        "histology": "imaging",
        "scanner": "imaging",
        "synthetic": "imaging",
    },
    3: {
        "bags": "learning",
        "folds": "learning",
        "grid": "learning",
        "sitefolds": "learning",
        "cohortfigures": "learning",
        "decisions": "learning",
        "operating": "learning",
        "atpoint": "learning",
        "recalibration": "learning",
        "frozen": "learning",
        "freezing": "learning",
        "conformal": "learning",
        "shift": "learning",
        "reference": "learning",
        "stage": "learning",
        "cardfile": "learning",
        "words": "learning",
        "labelled": "learning",
        "splits": "learning",
        "patients": "learning",
        "proven": "learning",
        "model": "learning",
        "modelheads": "learning",
        "epochs": "learning",
        "tissue": "imaging",
        "outlines": "imaging",
        "tiles": "imaging",
        "sources": "imaging",
        "overlay": "imaging",
        "layouts": "hinge",
        "joined": "hinge",
    },
    4: {
        "checkpoints": "learning",
        "datamodule": "learning",
        "fit": "learning",
        "grouping": "learning",
        "jointmodule": "learning",
        "stacked": "learning",
        "keeping": "learning",
        "loggers": "learning",
        "milmodule": "learning",
        "trainer": "learning",
        "together": "learning",
        "probetasks": "learning",
        "probejudge": "learning",
        "probes": "learning",
        "probescores": "learning",
        "probeplot": "learning",
        "beside": "learning",
        "scoring": "learning",
        "calibrationblock": "learning",
        "screening": "learning",
        "subgroups": "learning",
        "nearduplicates": "learning",
        "leakage": "learning",
        "ledger": "learning",
        "shiftblock": "learning",
        "appraisal": "learning",
        "bounds": "learning",
        "evidence": "learning",
        "criteria": "learning",
        "results": "learning",
        "frequencies": "learning",
        "plainly": "learning",
        "performance": "learning",
        "phrases": "learning",
        "train": "learning",
        "space": "learning",
        "trials": "learning",
        "recipe": "imaging",
        "reading": "imaging",
        "tilereads": "imaging",
        "imagelist": "imaging",
        "tileimages": "imaging",
        "slidesample": "imaging",
        "tilesamples": "imaging",
        "tilefeatures": "imaging",
        "rows": "imaging",
        "work": "imaging",
        "embed_cohort": "imaging",
        "devices": "imaging",
        "stale": "imaging",
        "checkup": "imaging",
        "pictures": "imaging",
        "embed": "imaging",
        "underway": "imaging",
        "plan": "imaging",
        "extract": "imaging",
        "imported": "imaging",
    },
    5: {
        "linear": "learning",
        "permuted": "learning",
        "controls": "both",
        "probe": "both",
        "predict": "both",
        "evaluate": "both",
        "crossval": "both",
        "outoffold": "both",
        "promises": "both",
        "handon": "both",
        "choices": "both",
        "heatmap": "both",
        "heatmaprows": "both",
        "preview": "both",
        "recheck": "both",
        "convert": "both",
        "verify": "both",
        "weights": "imaging",
    },
    6: {
        "tune": "both",
        "compare": "both",
        "gate": "both",
        "modelcard": "both",
        "tripod": "both",
        "report_cohort": "both",
        "report_plots": "both",
        "report_data": "both",
        "report_rows": "both",
        "report_consistency": "both",
        "report": "both",
        "doctor": "both",
    },
    7: {"study": "both"},
    8: {"demo": "both"},
    9: {"cli": "both", "__main__": "both", "__init__": "both"},
}
FLOOR = {room: floor for floor, rooms in HOUSE.items() for room in rooms}
HALF = {room: half for rooms in HOUSE.values() for room, half in rooms.items()}


def test_every_module_has_a_room() -> None:
    rooms = {_room(path) for path in ROOT.rglob("*.py")}
    assert rooms == set(FLOOR)


def test_modules_import_only_downward() -> None:
    upward = [
        f"{path.relative_to(ROOT)} (floor {FLOOR[_room(path)]}) imports {target} (floor {FLOOR[target]})"
        for path, target in _imports()
        if target != _room(path) and FLOOR[target] > FLOOR[_room(path)]
    ]
    assert upward == []


def test_rooms_of_one_floor_do_not_form_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path, target in _imports():
        if target != _room(path):
            graph.setdefault(_room(path), set()).add(target)
    for start in graph:
        seen, todo = set(), list(graph[start])
        while todo:
            room = todo.pop()
            assert room != start, f"{start} imports itself by way of others"
            if room not in seen:
                seen.add(room)
                todo += graph.get(room, ())


def test_the_learning_half_and_the_imaging_half_never_import_each_other() -> None:
    pairs = [
        f"{_room(path)} imports {target}"
        for path, target in _imports()
        if {HALF[_room(path)], HALF[target]} == {"learning", "imaging"}
    ]
    assert pairs == []


def test_training_needs_no_openslide_and_extraction_no_lightning() -> None:
    banned = {"learning": {"openslide", "timm", "cv2", "tifffile"}, "imaging": {"lightning", "sklearn"}}
    found = [
        f"{path.name} imports {name}"
        for path in ROOT.rglob("*.py")
        for name in _third_party(path)
        if name in banned.get(HALF[_room(path)], set())
    ]
    assert found == []


def _room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def _imports() -> list[tuple[Path, str]]:
    """Every import of a room by a file, also those inside functions and for type checking."""
    found = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pathfm":
                parts = (node.module or "").split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
                found += [(path, name) for name in names if name in FLOOR]
    return found


def _third_party(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}
