"""Files from somebody who means harm, offered to the commands that read them, in a real process: no code of theirs runs,
no byte of another file comes out, memory stays bounded, and what is said is one line.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import time
import tomllib
import traceback
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import RECIPE, planted_embeddings
from hostile import SECRET, forge, pickles, write_secrets
from offers import (
    TAGS,
    Offer,
    offered_backbones,
    offered_checkpoints,
    offered_configs,
    offered_embeddings,
    offered_features,
    offered_models,
)
from packaging.requirements import Requirement
from runs import ended, files_below, start

from pathfm.cli import main
from pathfm.embeddings import embeddings_folder_name, write_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_GROWTH_MIB = 300
MEMORY_BYTES = 6 << 30
"""More address space than a process has when it begins; most of what torch maps is never touched."""


class Seen(NamedTuple):
    """What came of an offer."""

    name: str
    wanted: int
    code: int | str
    said: str
    grown_mib: float


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def secrets(root: Path) -> tuple[Path, Path]:
    found = write_secrets(root / "of another user")
    for path in found:
        os.utime(path, (1, path.stat().st_mtime))  # the next read moves the first, where the file system keeps it
    return found


@pytest.fixture(scope="module")
def cohort(root: Path) -> Path:
    """Eight good embeddings and their table."""
    rows = []
    for number in range(8):
        slide_id = f"s{number}"
        rows.append({"slide_id": slide_id, "patient_id": f"p{number}", "cancer": str(number % 2)})
        path = root / "cohort" / embeddings_folder_name(RECIPE) / f"{slide_id}.h5"
        write_embeddings(path, planted_embeddings(slide_id, number % 2))
    pd.DataFrame(rows).to_csv(root / "cohort" / "cohort.csv", index=False)
    return root / "cohort"


@pytest.fixture(scope="module")
def seen(root: Path, cohort: Path, secrets: tuple[Path, Path]) -> list[Seen]:
    """Every offer, made to one process, one after the other."""
    offers = [
        *offered_embeddings(root / "embeddings", secrets),
        *offered_features(root / "features", secrets),
        *offered_models(root / "models", cohort),
        *offered_backbones(root / "backbones"),
        *offered_checkpoints(root / "checkpoints", cohort),
        *offered_configs(root / "configs"),
    ]
    return taken(root, offers)


def taken(root: Path, offers: list[Offer], cpu_s: int = 300) -> list[Seen]:
    """Makes the offers to a real process, one after the other."""
    results = root / f"results-{len(list(root.glob('results-*')))}"
    results.mkdir()
    process = start(results / "process", take, offers, results, cpu_s)
    code = ended(process)
    assert code == 0, (code, (results / "process").read_text()[-2000:], sorted(results.iterdir())[-1])
    return [Seen(*json.loads((results / f"{number}.json").read_text())) for number in range(len(offers))]


def take(offers: list[Offer], results: Path, cpu_s: int) -> int:
    """In the other process: runs the commands, and writes down how each ended."""
    os.chdir(results.parent)
    sys.path.insert(0, "")  # as with python -m pathfm
    limit_memory()
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    for number, offer in enumerate(offers):
        with redirected(results / f"{number}.said"):
            if offer.before:
                offer.before[0](*offer.before[1:])
            before_mib = memory_mib("VmRSS")
            forget_peak()
            code = run(offer.words)
            grown_mib = memory_mib("VmHWM") - before_mib
        said = (results / f"{number}.said").read_text(errors="replace")
        (results / f"{number}.json").write_text(json.dumps([offer.name, offer.code, code, said, grown_mib]))
    return 0


def run(words: list[str]) -> int | str:
    try:
        return main(words)
    except BaseException as error:  # noqa: BLE001 - it is what the test looks for
        traceback.print_exc()
        return repr(error)


@contextmanager
def redirected(path: Path) -> Iterator[None]:
    """Sends what is printed to a file, also what C libraries print."""
    kept = os.dup(1), os.dup(2)
    with path.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)


def limit_memory() -> None:
    if sys.platform == "linux":
        allowed = int(memory_mib("VmSize") * 2**20) + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def memory_mib(what: str) -> float:
    """A line of /proc/self/status; 0 where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:")), 0.0)


def forget_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def test_the_files_do_harm_to_whoever_is_careless(tmp_path: Path) -> None:
    canary, secrets = tmp_path / "canary", write_secrets(tmp_path / "of another user")
    loaders = {
        "pickle": lambda path: pickle.loads(path.read_bytes()),
        "old pickle": lambda path: pickle.loads(path.read_bytes()),
        "torch": lambda path: torch.load(path, weights_only=False),
        "old torch": lambda path: torch.load(path, weights_only=False),
        "npy": lambda path: np.load(path, allow_pickle=True),
        "npz": lambda path: np.load(path, allow_pickle=True)["arr_0"],
    }
    for kind, data in pickles(canary).items():
        (tmp_path / kind).write_bytes(data)
        loaders[kind](tmp_path / kind)
        assert canary.exists(), kind
        canary.unlink()
    yaml.unsafe_load(TAGS[0].format(canary=canary))
    assert canary.exists()
    for how in ("external features", "virtual features", "external link"):
        write_embeddings(tmp_path / "a.h5", planted_embeddings("a", 1))
        forge(tmp_path / "a.h5", how, secrets)
        with h5py.File(tmp_path / "a.h5") as file:
            assert SECRET in file["features"][:].astype("<f2").tobytes(), how


def test_hostile_files_run_no_code(root: Path, seen: list[Seen]) -> None:
    assert [path.name for path in root.iterdir() if path.name.startswith("canary")] == []
    print(f"{len(seen)} offers of hostile files to {len({one.name.partition(':')[0] for one in seen})} commands")


def test_hostile_files_bring_out_no_byte_of_another_file(
    root: Path, seen: list[Seen], secrets: tuple[Path, Path]
) -> None:
    tells = read_moves_the_time(root / "probe")
    assert [path.name for path in secrets if tells and path.stat().st_atime != 1] == []
    written = {name: data for name, data in files_below(root).items() if not name.startswith("of another user/")}
    assert [name for name, data in written.items() if SECRET in data] == []
    assert [one.name for one in seen if SECRET.decode() in one.said] == []


def test_hostile_files_are_refused_in_one_line(seen: list[Seen]) -> None:
    for one in seen:
        if one.wanted == 2:
            assert_refused(one)


def test_good_files_in_their_place_are_taken(seen: list[Seen]) -> None:
    """Else the others might have been refused for anything."""
    good = [one for one in seen if one.wanted == 0]
    assert [one for one in good if one.code != 0] == []
    assert {one.name.partition(":")[0] for one in good} == {"verify", "export", "import", "predict", "extract", "train"}


def test_hostile_files_take_no_memory(seen: list[Seen]) -> None:
    most = max(seen, key=lambda one: one.grown_mib)
    print(f"most memory taken: {most.grown_mib:.0f} MiB by {most.name}")
    assert most.grown_mib < MOST_GROWTH_MIB, most


def test_a_training_starts_again_where_its_checkpoint_is_hostile(root: Path, seen: list[Seen]) -> None:
    trained = [one for one in seen if one.name.startswith("train:") and one.wanted == 0][1:]
    assert len(trained) == 6
    for one in trained:
        assert "is damaged; this training starts again" in one.said, one
        folder = root / "checkpoints" / one.name.removeprefix("train: ")
        assert (folder / "model.safetensors").read_bytes() == (root / "checkpoints/good/model.safetensors").read_bytes()


CLASSES = (
    "tiles: {class_path: evil0.Tiles}",
    "tiles: evil1.Tiles",
    "tiles.class_path: evil2.Tiles",
    "limits: {class_path: evil3.Limits, init_args: {deadline_s: 1}}",
    "tiles: {class_path: subprocess.Popen, init_args: {args: [touch, canary]}}",
)


def test_a_config_that_names_a_class_imports_nothing(tmp_path: Path) -> None:
    for number, text in enumerate(CLASSES):
        (tmp_path / f"evil{number}.py").write_text(f"open('canary{number}', 'w').close()\nclass Tiles: pass\n")
        (tmp_path / f"{number}.yaml").write_text(f"{text}\nout: out\nslides: [x]\n")
    offers = [Offer(text, ["extract", "--config", f"{number}.yaml"]) for number, text in enumerate(CLASSES)]
    for one in taken(tmp_path, offers):
        assert_refused(one)
    assert list(tmp_path.glob("canary*")) == []


ODD = {
    "nested and long": ("slides: " + "[" * 5000 + "]" * 5000, "batch_size: " + "9" * 5000),
    "bomb": (
        "\n".join(
            [
                "a: &a [x, x]",
                *(f"{b}: &{b} [*{a}, *{a}]" for a, b in pairwise("abcdefghijklmnopqrstuvwxy")),
                "tiles: *y",
            ]
        ),
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_a_config_that_nobody_would_write_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    for number, text in enumerate(ODD[what]):
        (tmp_path / f"{number}.yaml").write_text(f"{text}\nout: out\n")
    offers = [Offer(what, ["extract", "--config", f"{number}.yaml"]) for number in range(len(ODD[what]))]
    for one in taken(tmp_path, offers, cpu_s=5):
        assert_refused(one)
        assert one.grown_mib < MOST_GROWTH_MIB


def test_no_version_of_a_library_that_unpickles_is_let_in() -> None:
    """timm reads the weights of a folder with weights_only from 1.0.26 on, torch's own bypass was closed in 2.10."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    floors = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    for name, flawed in {"timm": "1.0.25", "torch": "2.9.1", "lightning": "2.5.5"}.items():
        assert flawed not in floors[name], name


def assert_refused(one: Seen) -> None:
    assert (one.code, "Traceback" in one.said) == (2, False), one
    assert one.said.splitlines()[-1].startswith("pathfm: "), one


def read_moves_the_time(path: Path) -> bool:
    """Whether this file system notes when a file was read."""
    path.write_bytes(b"text")
    os.utime(path, (1, time.time()))
    path.read_bytes()
    return path.stat().st_atime != 1
