"""Commands that are offered hostile files: each with the file it reads, and how it should end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import torch
from conftest import RECIPE, planted_embeddings
from hostile import FORGERIES, forge, pickles
from runs import write_slides

from pathfm.cli import COMMANDS
from pathfm.embeddings import embeddings_folder_name, write_embeddings
from pathfm.guarded import sealed
from pathfm.heads import build_head
from pathfm.model import Model, write_model
from pathfm.targets import Classes, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

TAGS = (
    "!!python/object/apply:os.system ['touch {canary}']",
    "!!python/object/new:os.system ['touch {canary}']",
    "!!python/object/apply:subprocess.check_call [['touch', '{canary}']]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!!python/object:pathlib.Path {{}}",
)


class Offer(NamedTuple):
    """A command that reads a hostile file, how it should end, and what has to be done in its process before."""

    name: str
    words: list[str]
    code: int = 2
    before: tuple[Any, ...] = ()


def offered_embeddings(folder: Path, secrets: tuple[Path, Path]) -> Iterator[Offer]:
    good = folder / "good"
    write_embeddings(good / embeddings_folder_name(RECIPE) / "a.h5", planted_embeddings("a", 1))
    yield Offer("verify: good", ["verify", "--embeddings", str(good)], 0)
    yield Offer(
        "export: good", ["export", "--embeddings", str(good), "--out", str(good / "out"), "--format", "clam"], 0
    )
    for how in FORGERIES:
        for seal in (True, False):
            name = f"{how}, {'sealed' if seal else 'broken seal'}"
            path = folder / name / embeddings_folder_name(RECIPE) / "a.h5"
            write_embeddings(path, planted_embeddings("a", 1))
            forge(path, how, secrets)
            path.write_bytes(sealed(path.read_bytes()) if seal else path.read_bytes())
            yield Offer(f"verify: {name}", ["verify", "--embeddings", str(folder / name)])
            out = str(folder / name / "out")
            yield Offer(
                f"export: {name}", ["export", "--embeddings", str(folder / name), "--out", out, "--format", "clam"]
            )
    for name, make in {
        "fifo": os.mkfifo,
        "folder": Path.mkdir,
        "device": lambda at: at.symlink_to("/dev/zero"),
    }.items():
        path = folder / name / embeddings_folder_name(RECIPE) / "a.h5"
        path.parent.mkdir(parents=True)
        make(path)
        yield Offer(f"verify: {name}", ["verify", "--embeddings", str(folder / name)])


def offered_features(folder: Path, secrets: tuple[Path, Path]) -> Iterator[Offer]:
    """What another tool is said to have written: HDF5, or a tensor and the places of its tiles."""
    for how in ("good", *(how for how in FORGERIES if "attribute" not in how and "recipe" not in how)):
        path = folder / how / "features" / "a.h5"
        write_embeddings(path, planted_embeddings("a", 1))
        if how != "good":
            forge(path, how, secrets)
        with h5py.File(path, "a") as file:
            del file.attrs["format"]
        yield _import(folder / how, 0 if how == "good" else 2)
    for name in ("a.npy", "a.index.npz"):
        yield _import(_tensor_features(folder / f"good {name}", name), 0)
    for kind, data in pickles(folder.parent / "canary features").items():
        for role, name in (("features", "a.pt"), ("coords", "a.npy"), ("coords", "a.index.npz")):
            place = _tensor_features(folder / f"{kind} as {name}", name)
            (place / role / name).write_bytes(data)
            yield _import(place, 2)


def _import(place: Path, code: int) -> Offer:
    words = ["import", "--features", str(place / "features"), "--out", str(place / "out"), "--layout", "plain"]
    words += ["--coords", str(place / "coords")] if (place / "coords").is_dir() else []
    cut = ["--backbone", "x", "--mpp", "0.5", "--tile_px", "256", "--tile_mpp", "0.5"]
    return Offer(f"import: {place.name}", words + cut, code)


def _tensor_features(place: Path, name: str) -> Path:
    """A tensor of good features, and good coordinates under this name, or as .npy if that is no name for them."""
    coords = planted_embeddings("a", 1).coords
    for role in ("features", "coords"):
        (place / role).mkdir(parents=True)
    torch.save(torch.zeros(len(coords), 8), place / "features" / "a.pt")
    if name.endswith(".npz"):
        np.savez(place / "coords" / name, arr_0=coords)
    else:
        np.save(place / "coords" / "a.npy", coords)
    return place


def offered_models(folder: Path, cohort: Path) -> Iterator[Offer]:
    def predict(name: str) -> Offer:
        words = [
            "predict",
            "--model",
            str(folder / name),
            "--embeddings",
            str(cohort),
            "--out",
            str(folder / f"{name} out"),
        ]
        return Offer(f"predict: {name}", words, 0 if name == "good" else 2)

    head = build_head("gated-abmil", 8, 2, hidden=16, attention=8)
    task = Task((Classes("a", ("0", "1")),))
    training: dict[str, Any] = {
        "fingerprint": "f",
        "epochs": 3,
        "patients": ["p1"],
        "slides": {"s1": "ab"},
        "sites": [],
    }
    write_model(folder / "good", Model(heads=(head.eval(),), task=task, recipe=RECIPE, training=training))
    good = json.loads((folder / "good" / "model.json").read_text())
    yield predict("good")
    for kind, data in pickles(folder.parent / "canary model").items():
        for name in ("model.safetensors", "model.json"):
            shutil.copytree(folder / "good", folder / f"{kind} {name}")
            (folder / f"{kind} {name}" / name).write_bytes(data)
            if name != "model.json":
                (folder / f"{kind} {name}" / "model.json").write_text(
                    json.dumps(good | {"weights_sha256": hashlib.sha256(data).hexdigest()})
                )
            yield predict(f"{kind} {name}")
    targets: list[Any] = good["targets"]

    def heads(name: str, **kwargs: Any) -> dict[str, Any]:
        return {"heads": [{"name": name, "kwargs": kwargs, "targets": targets}]}

    absurd = {
        "width": {"dim": 1 << 40},
        "layers": heads("gated-abmil", hidden=1 << 40, attention=1 << 20),
        "depth": heads("transformer", layers=10**9),
        "negative": heads("gated-abmil", hidden=-1),
        "module": heads("os.system", command="true"),
        "argument": heads("gated-abmil", __class__="x"),
        "nested": heads("gated-abmil", hidden={"__class__": "x"}),
        "members": {"heads": good["heads"] * 10_000},
        "kind": {"targets": [targets[0] | {"kind": "os.system"}]},
        "outputs": {"targets": [targets[0] | {"classes": [str(one) for one in range(100_000)]}]},
        "covariates": {"covariates": [{"name": str(one), "levels": []} for one in range(100_000)]},
        "unit": {"unit": "os.system"},
    }
    for name, change in absurd.items():
        shutil.copytree(folder / "good", folder / name)
        (folder / name / "model.json").write_text(json.dumps(good | change))
        yield predict(name)
    shutil.copytree(folder / "good", folder / "deep")
    (folder / "deep" / "model.json").write_text("[" * 100_000 + "]" * 100_000)
    yield predict("deep")


def offered_backbones(folder: Path) -> Iterator[Offer]:
    slides = write_slides(folder / "slides")
    config: dict[str, Any] = {
        "architecture": "test_vit",
        "num_classes": 0,
        "pretrained_cfg": {
            "input_size": [3, 160, 160],
            "interpolation": "bicubic",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
    }
    (folder / "good").mkdir()
    (folder / "good" / "config.json").write_text(json.dumps(config))

    def extract(name: str) -> Offer:
        words = ["extract", "--slides", str(slides), "--out", str(folder / f"{name} out"), "--backbone"]
        tiles = ["--tiles.size_px", "160", "--tiles.mpp", "0.5", "--device", "cpu", "--workers", "1"]
        return Offer(f"extract: {name}", [*words, f"local-dir:{folder / name}", *tiles])

    yield extract("whole")._replace(code=0, before=(save_network, folder / "whole"))
    for kind, data in pickles(folder.parent / "canary backbone").items():
        for name in ("model.safetensors", "pytorch_model.bin", "weights.pth", "config.json"):
            place = shutil.copytree(folder / "good", folder / f"{kind} {name}")
            (place / ("model.safetensors" if name == "config.json" else name)).touch()
            (place / name).write_bytes(data)
            yield extract(place.name)
    elsewhere = folder.parent / "of another user" / "secret"
    hints = {"file": str(elsewhere), "custom_load": True, "url": elsewhere.as_uri(), "hf_hub_id": "a/b"}
    for key, value in hints.items():
        place = shutil.copytree(folder / "good", folder / key)
        (place / "pytorch_model.bin").write_bytes(pickles(folder.parent / "canary backbone")["torch"])
        inner = config["pretrained_cfg"] | {key: value}
        (place / "config.json").write_text(json.dumps(config | {"pretrained_cfg": inner}))
        yield extract(key)


def save_network(folder: Path) -> None:
    """A network as its makers would give it away; in the other process, for the import takes seconds."""
    import timm

    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=0), folder, safe_serialization=True)


def offered_checkpoints(folder: Path, cohort: Path) -> Iterator[Offer]:
    def train(name: str, *before: Any) -> Offer:
        words = ["train", "--cohort", str(cohort / "cohort.csv"), "--embeddings", str(cohort), "--label", "cancer"]
        options = ["--training.epochs", "2", "--training.hidden", "8", "--training.device", "cpu"]
        return Offer(f"train: {name}", [*words, "--out", str(folder / name), *options], 0, before)

    yield train("good", warm_up)
    for kind, data in pickles(folder.parent / "canary checkpoint").items():
        yield train(kind, plant_checkpoint, folder / "good", folder / kind, data)


def warm_up() -> None:
    """What a training imports is no memory that a file took."""
    import pathfm.crossval  # noqa: F401


def plant_checkpoint(good: Path, out: Path, data: bytes) -> None:
    """A checkpoint that says it belongs to the training that is about to start."""
    (out / "checkpoints").mkdir(parents=True)
    fingerprint = json.loads((good / "model.json").read_text())["training"]["fingerprint"]
    (out / "checkpoints" / "fingerprint.txt").write_text(fingerprint + "\n")
    (out / "checkpoints" / "last.ckpt").write_bytes(data)


def offered_configs(folder: Path) -> Iterator[Offer]:
    folder.mkdir()
    for number, tag in enumerate(TAGS):
        config, outer = folder / f"{number}.yaml", folder / f"{number}-outer.yaml"
        config.write_text(f"out: {tag.format(canary=folder.parent / 'canary config')}\n")
        outer.write_text(f"tiles: {config}\n")
        for command in COMMANDS if number == 0 else ["extract"]:
            yield Offer(f"{command}: {tag}", [*command.split(), "--config", str(config)])
        yield Offer(f"extract: {tag} in a part", ["extract", "--config", str(outer)])
        yield Offer(f"extract: {tag} as an option", ["extract", "--out", tag, "--slides", "x", "--tiles", tag])
