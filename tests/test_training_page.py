"""docs/training.md: what it says of settings, labels and heads is what the code does, and its example runs."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from docstring_parser import parse_from_object
from drawn import RECIPE, embeddings_of

from pathfm.cohort import read_cohort
from pathfm.embeddings import embeddings_folder_name, write_embeddings
from pathfm.settings import TrainSettings
from pathfm.targets import KINDS, read_task

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parent.parent / "docs" / "training.md"


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cohort with a column of every kind, and embeddings of its slides."""
    ids = [f"s{index}" for index in range(8)]
    table = pd.DataFrame({"slide_id": ids, "patient_id": [f"p{index}" for index in range(8)]})
    table = table.assign(
        cancer=[index % 2 for index in range(8)],
        er=["pos", "neg", "", "pos"] * 2,
        pr=["pos", "", "neg", "pos"] * 2,
        grade=["G1", "G2", "G3", "G2"] * 2,
        findings=["necrosis;mucin", "none", "mucin", ""] * 2,
        score=[f"{index / 8:.3f}" for index in range(8)],
        months=[f"{index + 1}" for index in range(8)],
        died=["1", "0", "1", "1"] * 2,
    )
    table.to_csv(tmp_path / "cohort.csv", index=False)
    for index, slide_id in enumerate(ids):
        file = tmp_path / "embeddings" / embeddings_folder_name(RECIPE) / f"{slide_id}.h5"
        write_embeddings(file, embeddings_of(slide_id, index % 2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_of_settings_is_that_of_the_code(page: str) -> None:
    table = page.split("keeps this table -->\n")[1].split("<!-- end -->")[0].strip()
    assert table == "\n".join(rows_of_settings()), "the code has this table:\n" + "\n".join(rows_of_settings())


def test_every_kind_of_target_and_every_label_of_the_page_is_read(page: str, folder: Path) -> None:
    cohort = read_cohort(folder / "cohort.csv")
    labels = re.findall(r"--label ([\w,:/]+)", page) + re.findall(
        r"^\| \w+ \| `([\w,:/]+)` \|", page, flags=re.MULTILINE
    )
    tasks = [read_task(cohort, label)[0] for label in labels]
    assert {target.kind for task in tasks for target in task.targets} == set(KINDS)
    assert set(re.findall(r"^\| (\w+) \| `[^-]", page, flags=re.MULTILINE)) == set(KINDS)


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's own
@pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device`:UserWarning")  # and so it should be
def test_the_example_with_a_trainer_of_ones_own_runs(page: str) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert names["probabilities"].shape == (1, 2)
    np.testing.assert_allclose(names["probabilities"].sum(), 1)
    assert len(names["output"].attention) == len(names["bags"][0].features)


def test_the_notebook_trains_a_head_that_looks_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    path = PAGE.parent.parent / "notebooks" / "training-a-head.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    (found,) = re.findall(r"median (\d+) times the average on the six, 0\.\d+ times on the others", printed)
    assert int(found) >= 5


def rows_of_settings() -> Iterator[str]:
    """The table as the page has it, from the fields of the settings and their docstrings."""
    said = {one.arg_name: one.description for one in parse_from_object(TrainSettings).params}
    yield from ("| setting | default | what it does |", "|---|---|---|")
    for field in fields(TrainSettings):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        yield f"| `{field.name}` | {_text(default)} | {said[field.name]} |"


def _text(default: Any) -> str:
    if default is None or default in ([], {}):
        return ""
    return " ".join(default) if isinstance(default, list) else str(default)
