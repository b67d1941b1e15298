"""The demo as a user runs it, once; the README's commands and the notebook use its slides."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import nbclient
import nbformat
import pandas as pd
import pytest
from runs import command_in, ended, start

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo that was run as a command, with what it printed beside it."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    result = pathfm("demo", "--out", str(folder), cwd=folder.parent)
    (folder / "printed.txt").write_text(result.stdout)
    return folder


def pathfm(*words: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "pathfm", *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == code, result.stderr
    return result


def test_the_demo_finds_the_lesion_and_the_controls_do_not(demo: Path) -> None:
    metrics = json.loads((demo / "crossval" / "metrics.json").read_text())
    controls = {name: block["auroc"]["value"] for name, block in metrics["controls"].items()}
    assert metrics["slide"]["auroc"]["value"] >= 0.9
    assert metrics["patient"]["auroc"]["value"] >= 0.9
    assert 0.3 <= controls["mean_colour"] <= 0.7
    assert 0.3 <= controls["site"] <= 0.7
    assert metrics["lesion"]["attention_auroc"]["value"] >= 0.8
    assert metrics["confounded"]["verdict"] == "not seen"


def test_the_demo_says_its_figures_and_where_the_report_is(demo: Path) -> None:
    printed = (demo / "printed.txt").read_text()
    for words in ("by patient: auroc", "mean colour of the tissue", "the site alone", "AUROC over tiles"):
        assert words in printed
    assert (demo / "report.html").exists()
    assert str(demo / "report.html") in printed


def test_the_demo_leaves_everything_that_a_run_promises(demo: Path) -> None:
    for name in (
        "crossval/predictions.csv",
        "crossval/metrics.json",
        "crossval/folds.csv",
        "model/model.safetensors",
        "model/model.json",
        "report.html",
        "failures.csv",
        "pathfm.log",
        "pathfm-demo.yaml",
    ):
        assert (demo / name).stat().st_size > 0, name
    drawn = {path.stem for path in (demo / "heatmaps").glob("*.geojson")}
    assert drawn == {path.stem for path in (demo / "embeddings").glob("*/*.h5")} - {"P25-A"}


def test_the_damaged_slide_and_the_empty_one_are_said_and_not_hidden(demo: Path) -> None:
    failures = pd.read_csv(demo / "failures.csv")
    assert failures[["slide_id", "reason"]].to_numpy().tolist()[1:] == [["P25-A", "no tissue"]]
    assert failures["reason"][0] == "truncated"
    left_out = {
        one["slide_id"]: one["reason"] for one in json.loads((demo / "crossval/metrics.json").read_text())["left_out"]
    }
    assert left_out == {failures["slide_id"][0]: "no_embeddings", "P25-A": "no_label"}
    report = (demo / "report.html").read_text()
    assert "truncated" in report
    assert failures["slide_id"][0] in report


def test_the_slide_without_tissue_has_a_file_without_tiles(demo: Path) -> None:
    (path,) = (demo / "embeddings").glob("*/P25-A.h5")
    with h5py.File(path) as file:
        assert file["features"].shape[0] == 0


@pytest.mark.long
def test_a_second_demo_does_only_what_has_changed(demo: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in demo.rglob("*") if path.suffix in (".h5", ".safetensors", ".png")
    }
    pathfm("demo", "--out", str(demo), cwd=demo.parent)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((demo / "crossval" / "metrics.json").read_text())["lesion"]


def test_verify_proves_the_demos_embeddings(demo: Path) -> None:
    assert "29 files verified" in pathfm("verify", "--embeddings", str(demo / "embeddings"), cwd=demo).stdout


@pytest.fixture(scope="module")
def users_folder(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's user has: slides/, cohort.csv and the configs; whole slides of ten of the demo's patients."""
    folder = tmp_path_factory.mktemp("user")
    cohort = pd.read_csv(demo / "cohort" / "cohort.csv", dtype=str, keep_default_na=False)
    cohort = cohort[~cohort["slide_id"].isin(pd.read_csv(demo / "failures.csv")["slide_id"]) & (cohort["cancer"] != "")]
    cohort = cohort[
        cohort["patient_id"].isin(cohort.groupby("cancer")["patient_id"].unique().map(lambda ids: list(ids[:5])).sum())
    ]
    cohort.to_csv(folder / "cohort.csv", index=False)
    (folder / "slides").mkdir()
    for path in cohort["path"]:
        shutil.copy(demo / "cohort" / path, folder / path)
    (folder / "new-slides").mkdir()
    for path in cohort["path"][cohort["mpp"] == ""][:3]:
        shutil.copy(demo / "cohort" / path, folder / "new-slides")
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("make ", "pip ", "git "))]


def test_every_command_of_the_readme_runs(users_folder: Path) -> None:
    commands = readme_commands()
    assert len(commands) >= 5
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "pathfm"
        code = ended(start(said := users_folder.parent / "said", command_in, users_folder, *words))
        assert code == (2 if words[0] == "gate" else 0), said.read_text()  # ten patients are too few for any stage


@pytest.mark.parametrize(
    ("name", "n_pictures", "says"),
    [
        ("slide-to-heatmap", 2, "of tissue, "),
        ("exploring-a-cohort", 2, "0 pairs of near-duplicates among 28 slides"),
        pytest.param("reading-heatmaps-and-errors", 4, "of 28 slides wrong", marks=pytest.mark.long),  # it trains
    ],
)
def test_a_notebook_runs_on_the_demo(
    demo: Path, monkeypatch: pytest.MonkeyPatch, name: str, n_pictures: int, says: str
) -> None:
    monkeypatch.setenv("PATHFM_DEMO", str(demo))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == n_pictures
    assert says in "".join(output.get("text", "") for output in outputs)
    assert os.environ["PATHFM_DEMO"] == str(demo)
