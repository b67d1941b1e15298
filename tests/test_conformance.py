from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pathfm.backbones import BACKBONES, Backbone, find_backbone, register_backbone
from pathfm.backbones.conformance import Check, Size, check_backbone, check_row
from pathfm.backbones.conformance.blueprint import blueprint_checks, drawn
from pathfm.backbones.conformance.consistency import row_checks
from pathfm.backbones.conformance.numerics import numeric_checks
from pathfm.backbones.conformance.planted import planted_checks
from pathfm.backbones.conformance.roundtrip import save_as_published, weights_check
from pathfm.backbones.conformance.trial import on_trial, random_network
from pathfm.backbones.network import build_network
from pathfm.backbones.transform import to_input
from pathfm.backbones.weights import state_sha256
from pathfm.errors import BackboneError, PathfmError

if TYPE_CHECKING:
    from collections.abc import Callable

BUILT = [name for name, row in BACKBONES.items() if row.library in ("timm", "transformers", "python")]
# One row of each network, the first: "mstar" has that of "uni", with other weights.
DISTINCT = {
    (row.arch or row.source, row.output, row.crop_px or row.resize_px, row.n_params): row.name
    for row in reversed([BACKBONES[name] for name in BUILT])
}
WIDE = 768  # numbers in an embedding from which a quick test only looks at tokens

# A second source against slips in the rows, typed from the models' pages and not from the rows: tile, width after the
# resize, width of the input, normalisation, tokens before the patches, dimension of each output, the default first.
IN, INC, CLIP, OWN = "ImageNet", "halves", "CLIP", "none"
STATED: dict[str, tuple[int, int, int, str, int, dict[str, int]]] = {
    "resnet50": (256, 224, 224, IN, 0, {"layer3": 1024}),
    "resnet50-full": (256, 224, 224, IN, 0, {"pooled": 2048}),
    "dinov2-vitb14": (224, 224, 224, IN, 1, {"cls": 768, "cls+mean": 1536, "mean": 768}),
    "gemma4-e4b": (224, 768, 768, OWN, 0, {"mean": 768}),
    "lunit-vits16": (224, 224, 224, "Lunit", 1, {"cls": 384, "cls+mean": 768, "mean": 384}),
    "lunit-vits8": (224, 224, 224, "Lunit", 1, {"cls": 384, "cls+mean": 768, "mean": 384}),
    "kaiko-vits16": (256, 224, 224, INC, 1, {"cls": 384, "cls+mean": 768, "mean": 384}),
    "kaiko-vits8": (256, 224, 224, INC, 1, {"cls": 384, "cls+mean": 768, "mean": 384}),
    "kaiko-vitb16": (256, 224, 224, INC, 1, {"cls": 768, "cls+mean": 1536, "mean": 768}),
    "kaiko-vitb8": (256, 224, 224, INC, 1, {"cls": 768, "cls+mean": 1536, "mean": 768}),
    "kaiko-vitl14": (256, 224, 224, INC, 5, {"cls": 1024, "cls+mean": 2048, "mean": 1024}),
    "uni": (256, 224, 224, IN, 1, {"cls": 1024, "cls+mean": 2048, "mean": 1024}),
    "uni2-h": (256, 224, 224, IN, 9, {"cls": 1536, "cls+mean": 3072, "mean": 1536}),
    "virchow": (224, 224, 224, IN, 1, {"cls+mean": 2560, "cls": 1280, "mean": 1280}),
    "virchow2": (224, 224, 224, IN, 5, {"cls+mean": 2560, "cls": 1280, "mean": 1280}),
    "gigapath": (256, 256, 224, IN, 1, {"cls": 1536, "cls+mean": 3072, "mean": 1536}),
    "h-optimus-0": (224, 224, 224, "H-optimus", 5, {"cls": 1536, "cls+mean": 3072, "mean": 1536}),
    "h-optimus-1": (224, 224, 224, "H-optimus", 5, {"cls": 1536, "cls+mean": 3072, "mean": 1536}),
    "h0-mini": (224, 224, 224, "H-optimus", 5, {"cls+mean": 1536, "cls": 768, "mean": 768}),
    "phikon": (224, 224, 224, IN, 1, {"cls": 768, "cls+mean": 1536, "mean": 768}),
    "phikon-v2": (224, 224, 224, IN, 1, {"cls": 1024, "cls+mean": 2048, "mean": 1024}),
    "midnight-12k": (224, 224, 224, INC, 1, {"cls+mean": 3072, "cls": 1536, "mean": 1536}),
    "openmidnight": (224, 224, 224, IN, 5, {"cls": 1536, "cls+mean": 3072, "mean": 1536}),
    "gpfm": (256, 224, 224, IN, 1, {"cls": 1024, "cls+mean": 2048, "mean": 1024}),
    "mstar": (256, 224, 224, IN, 1, {"cls": 1024, "cls+mean": 2048, "mean": 1024}),
    "pathorchestra": (224, 224, 224, IN, 1, {"cls": 1024, "cls+mean": 2048, "mean": 1024}),
    "plip": (224, 224, 224, CLIP, 1, {"pooled": 512}),
    "conch": (512, 448, 448, CLIP, 1, {"pooled": 512}),
    "conch-v1.5": (512, 448, 448, IN, 1, {"pooled": 768}),
    "musk": (384, 384, 384, INC, 1, {"pooled": 2048}),
    "musk-single-scale": (384, 384, 384, INC, 1, {"pooled": 1024}),
    "keep": (256, 224, 224, IN, 1, {"pooled": 768}),
    "ctranspath": (256, 224, 224, IN, 0, {"pooled": 768}),
    "chief-ctranspath": (256, 224, 224, IN, 0, {"pooled": 768}),
    "hibou-b": (224, 224, 224, "Hibou", 5, {"cls": 768, "cls+mean": 1536, "mean": 768}),
    "hibou-l": (224, 224, 224, "Hibou", 5, {"cls": 1024, "cls+mean": 2048, "mean": 1024}),
    "rudolfv2": (224, 224, 224, "RudolfV", 9, {"cls": 1536, "cls+mean": 3072}),
    "rudolfv2-b": (224, 224, 224, "RudolfV", 9, {"cls": 768, "cls+mean": 1536}),
    "rudolfv2-s": (224, 224, 224, "RudolfV", 9, {"cls": 384, "cls+mean": 768}),
    "genbio-pathfm": (224, 224, 224, "GenBio", 5, {"pooled": 4608}),
}
AT_ANY_MPP = {"resnet50", "resnet50-full", "dinov2-vitb14", "gemma4-e4b"}
AT_10X = {"ctranspath", "chief-ctranspath"}  # one micron a pixel
# Only of these do the makers say how they resize; the others' `Resize` leaves it open.
BILINEAR = {
    "ctranspath",
    "chief-ctranspath",
    "resnet50",
    *(f"kaiko-vit{size}" for size in ("s16", "s8", "b16", "b8", "l14")),
}
BICUBIC = {"virchow", "virchow2", "gigapath", "h0-mini", "gpfm", "hibou-b", "hibou-l", "conch-v1.5", "musk", "keep"}

# What a flat tile of (128, 64, 200) is after the transform, computed by hand: (value / 255 - mean) / deviation.
FLAT = (128, 64, 200)
FLAT_AS = {
    IN: (0.07406, -0.91527, 1.68139),
    INC: (0.00392, -0.49804, 0.56863),
    CLIP: (0.07634, -0.79160, 1.36379),
    OWN: (0.50196, 0.25098, 0.78431),
    "H-optimus": (-0.96875, -1.42427, 0.45459),
    "Hibou": (-1.05046, -1.40121, 0.34314),
    "Lunit": (-0.92680, -1.09305, 0.59521),
    "GenBio": (-1.03744, -1.35008, 0.30114),
    "RudolfV": (-0.96857, -1.42425, 0.45473),
}

SMALL = Backbone(
    name="small",
    source="hf-hub:owner/small",
    arch="test_vit",
    arch_kwargs={
        "img_size": 96,
        "reg_tokens": 4,
        "no_embed_class": True,
        "dynamic_img_size": True,
        "mlp_ratio": 3.0,
        "init_values": 1e-5,
    },
    n_params=303_104,
    outputs=("cls+mean", "cls", "mean"),
    output="cls+mean",
    prefix_tokens=5,
    dim=128,
    size_px=128,
    mpp=0.5,
    resize_px=112,
    crop_px=96,
    mean_std=((0.5, 0.4, 0.6), (0.2, 0.3, 0.1)),
    licence="CC-BY-NC-ND-4.0",
    derivatives="not to be shared",
    citation="nobody, nowhere",
)


class Own(nn.Module):
    """A backbone of the user's own."""

    dim = 6
    VERSION = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.mean((2, 3)), images.amax((2, 3))], dim=1)


class Random(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(images), training=True)


class Neighbourly(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        given = super().forward(images)
        return given - given.mean(0)


class Blind(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 6)


class Overflowing(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) @ (1e6 * torch.eye(6)) + 1


class Wider(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).repeat(1, 2)


class Bomb:
    """Runs code where it is unpickled."""

    went_off: ClassVar[list[int]] = []

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return go_off, (1,)


def go_off(number: int) -> None:
    Bomb.went_off.append(number)


@pytest.fixture(autouse=True)
def _nothing_from_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("PATHFM_WEIGHTS", raising=False)
    monkeypatch.delenv("PATHFM_BACKBONES", raising=False)
    monkeypatch.setattr("pathfm.backbones.table.BACKBONES", dict(BACKBONES))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_row_and_the_tokens_of_its_network_are_what_the_row_says(name: str) -> None:
    row = BACKBONES[name]
    checks = row_checks(row)
    if name in BUILT:
        checks += network_checks(row)
    assert [check for check in checks if check.passed is False] == []
    if row.output in ("cls", "cls+mean", "mean") and name in BUILT:
        renamed = {"shapes"} if row.library == "transformers" else set()  # from version to version
        assert {check.what for check in checks if check.passed is None} <= {"licence", "citation"} | renamed


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in BUILT])
def test_of_a_network_that_others_build_the_row_alone_is_looked_at(name: str) -> None:
    (network,) = (check for check in check_backbone(name) if check.what == "network")
    assert network.passed is None
    assert "not looked at" in network.found


@pytest.mark.long
@pytest.mark.parametrize("name", DISTINCT.values())
def test_a_network_is_what_its_row_says(name: str) -> None:
    library(BACKBONES[name])
    checks = check_backbone(name)
    assert [check for check in checks if check.passed is False] == []
    scale = next(check.found for check in checks if check.what == "forward")
    print(name, len(checks), "checks,", sum(check.passed is None for check in checks), "not looked at;", scale)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "colour"])
def test_a_row_says_what_the_makers_state(name: str) -> None:
    size_px, resize_px, input_px, norm, prefix, outputs = STATED[name]
    row = BACKBONES[name]
    assert (row.size_px, row.resize_px or row.size_px) == (size_px, resize_px)
    assert row.mpp == (None if name in AT_ANY_MPP else 1.0 if name in AT_10X else 0.5)
    assert name not in BILINEAR or row.interpolation == "bilinear"
    assert name not in BICUBIC or row.interpolation == "bicubic"
    assert (row.output, *sorted(row.outputs or (row.output,))) == (next(iter(outputs)), *sorted(outputs))
    assert {output: find_backbone(f"{name}:{output}").dim for output in outputs} == outputs
    assert row.prefix_tokens == (0 if row.output == "pooled" else prefix)
    assert is_stated(flat(row), norm, input_px)


@pytest.mark.parametrize("norm", FLAT_AS)
def test_no_other_normalisation_gives_the_stated_tensor(norm: str) -> None:
    others = [name for name, stated in STATED.items() if stated[3] != norm]
    assert len(others) > 20
    assert [name for name in others if is_stated(flat(BACKBONES[name]), norm, STATED[name][2])] == []


def test_a_small_row_passes_every_check() -> None:
    checks = check_row(SMALL)
    assert [check for check in checks if check.passed is not True] == [
        Check("shapes", "not stated", checks[[c.what for c in checks].index("shapes")].found, passed=None)
    ]
    assert {check.what for check in checks} >= {
        "transform",
        "parameters",
        "dimension",
        "prefix tokens",
        "weights",
        "tokens in cls",
        "tokens in mean",
        "tokens in cls+mean",
        "batch of 1 and of 8",
        "float16",
    }


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"prefix_tokens": 1}, {"prefix tokens", "tokens in cls+mean", "tokens in mean"}),
        ({"prefix_tokens": 9}, {"prefix tokens", "tokens in cls+mean", "tokens in mean"}),
        ({"dim": 64}, {"dimension", "forward"}),
        ({"n_params": 303_105}, {"parameters"}),
        ({"shapes_sha8": "00000000"}, {"shapes"}),
        ({"swiglu": True}, {"parameters"}),
        ({"arch_kwargs": {**SMALL.arch_kwargs, "mlp_ratio": 4.0}}, {"parameters"}),
        ({"arch_kwargs": {**SMALL.arch_kwargs, "no_embed_class": False}}, {"parameters"}),
        ({"arch_kwargs": {**SMALL.arch_kwargs, "colour": 1}}, {"network"}),
        ({"arch": "vit_of_nobody"}, {"network"}),
        ({"crop_px": None}, {"input"}),  # it would run, on 112 px
        ({"crop_px": 90}, {"forward"}),
        ({"resize_px": 90}, {"row", "transform", "field of view"}),
        ({"least_px": 200}, {"tiles"}),
        ({"mean_std": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))}, {"mean and deviation"}),
        ({"mean_std": ((0.5, 0.5, 0.5), (0.2, 0.0, 0.2))}, {"row", "transform"}),
        ({"source": "hf-hub:small"}, {"source"}),
        ({"weights_sha256": "not hex"}, {"source"}),
        ({"output": "layer3"}, {"row"}),
        ({"licence": ""}, {"licence"}),
        ({"derivatives": ""}, {"derivatives"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_row_that_is_wrong_is_named(wrong: dict[str, Any], named: set[str]) -> None:
    failed = {check.what for check in check_row(dataclasses.replace(SMALL, **wrong)) if check.passed is False}
    assert failed >= named


def test_averaged_registers_are_named_whatever_averages_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def pool(tokens: torch.Tensor, output: str, _prefix: int) -> torch.Tensor:
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1) if output == "cls+mean" else tokens[:, 0]

    monkeypatch.setattr("pathfm.backbones.network.pool_tokens", pool)
    found = {check.what: check.found for check in check_row(SMALL) if check.passed is False}
    assert found["tokens in cls+mean"] == "registers in mean"
    assert "registers in mean" not in found["tokens in mean"]  # there it is the class token that was taken


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda row: dataclasses.replace(row, crop_px=None, resize_px=96), {"transform", "field of view"}),
        (lambda row: dataclasses.replace(row, interpolation="bilinear"), {"transform"}),
        (lambda row: dataclasses.replace(row, mean_std=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))), {"transform"}),
        (lambda row: dataclasses.replace(row, mean_std=None), {"transform"}),
    ],
    ids=["crop forgotten", "another filter", "another normalisation", "no normalisation"],
)
def test_a_transform_that_does_not_do_what_the_row_says_is_named(
    mistake: Callable[[Backbone], Backbone], named: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "pathfm.backbones.conformance.consistency.to_input"
    monkeypatch.setattr(place, lambda tiles, row: to_input(tiles, mistake(row)))
    assert {check.what for check in row_checks(SMALL) if check.passed is False} >= named


@pytest.mark.parametrize(
    "shift", [lambda image: image.flip(3), lambda image: image.roll(4, 2)], ids=["mirrored", "shifted"]
)
def test_an_image_that_is_not_where_it_was_is_named(
    shift: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "pathfm.backbones.conformance.consistency.to_input"
    monkeypatch.setattr(place, lambda tiles, row: shift(to_input(tiles, row)))
    assert {check.what for check in row_checks(SMALL) if check.passed is False} == {"transform", "field of view"}


@pytest.mark.parametrize(
    ("network", "named"),
    [
        ("Own", set()),
        ("Random", {"same image again", "batch of 1 and of 8", "order in a batch"}),
        ("Neighbourly", {"batch of 1 and of 8"}),
        ("Blind", {"other images"}),
        ("Overflowing", {"float16"}),
        ("Wider", {"dimension", "forward"}),
    ],
)
def test_a_network_whose_embeddings_do_not_depend_on_their_image_alone_is_named(network: str, named: set[str]) -> None:
    row = Backbone(
        name="mine", source=f"python:{__name__}:{network}", library="python", output="pooled", dim=6, licence="MIT"
    )
    register_backbone(row)
    failed = {check.what for check in check_backbone("mine") if check.passed is False}
    assert failed >= named
    assert bool(failed) == bool(named)


def test_a_folder_of_ones_own_is_checked_with_its_own_weights(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=7)
    timm.models.save_for_hf(model, tmp_path / "own", safe_serialization=True)
    checks = {check.what: check for check in check_backbone(f"local-dir:{tmp_path / 'own'}")}
    assert [check for check in checks.values() if check.passed is False] == []
    assert checks["forward"].found == "(8, 64); its own weights"
    assert checks["tokens in pooled"].passed
    weights = load_file(tmp_path / "own" / "model.safetensors")
    del weights["norm.weight"]
    save_file(weights, tmp_path / "own" / "model.safetensors")
    (failed,) = (check for check in check_backbone(f"local-dir:{tmp_path / 'own'}") if check.passed is False)
    assert "norm.weight" in failed.found


FAMILIES = {
    "registers": SMALL,
    "swiglu": dataclasses.replace(SMALL, swiglu=True, n_params=None),
    "another input": dataclasses.replace(SMALL, arch_kwargs={"img_size": 64}, prefix_tokens=1, outputs=()),
    "as it comes": dataclasses.replace(SMALL, arch_kwargs={}, prefix_tokens=1, outputs=()),
    "518 px": dataclasses.replace(
        BACKBONES["dinov2-vitb14"], arch_kwargs={"dynamic_img_size": True, "depth": 1, "embed_dim": 48, "num_heads": 2}
    ),
    "bare file": dataclasses.replace(
        SMALL, weights_file="weights/teacher.pth", arch_kwargs={"img_size": 96}, prefix_tokens=1
    ),
    "resnet": dataclasses.replace(BACKBONES["resnet50"], arch="test_resnet", output="pooled", dim=None),
    "layer3": dataclasses.replace(BACKBONES["resnet50"], arch_kwargs={"layers": (1, 1, 1, 1)}),
    "ViTModel": dataclasses.replace(
        BACKBONES["phikon"],
        arch_kwargs={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 64,
        },
    ),
    "Dinov2Model": dataclasses.replace(
        BACKBONES["midnight-12k"],
        arch_kwargs={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 70,
            "patch_size": 14,
        },
    ),
    "CLIPVisionModelWithProjection": dataclasses.replace(
        BACKBONES["plip"],
        arch_kwargs={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 32,
            "projection_dim": 16,
        },
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_come_back_strictly_from_a_folder_and_from_the_cache_of_the_hub(family: str, tmp_path: Path) -> None:
    row = published(FAMILIES[family], tmp_path / "own")
    wanted = state_sha256(random_network(row))
    folder = dataclasses.replace(row, source=f"local-dir:{tmp_path / 'own'}")
    cached = dataclasses.replace(row, source="hf-hub:owner/cached")
    into_cache(tmp_path / "own", "owner/cached")
    assert state_sha256(build_network(folder)) == wanted
    assert state_sha256(build_network(cached)) == wanted
    for file in (tmp_path / "own").rglob("*.safetensors"):
        torch.save(load_file(file), file.with_name("pytorch_model.bin"))
        file.unlink()
        assert state_sha256(build_network(folder)) == wanted


@pytest.mark.parametrize("family", ["registers", "bare file", "resnet", "ViTModel"])
@pytest.mark.parametrize("damage", ["missing", "misshaped", "extra"])
def test_weights_that_do_not_fit_are_refused_with_the_name_of_the_tensor(
    family: str, damage: str, tmp_path: Path
) -> None:
    row = published(FAMILIES[family], tmp_path)
    (file,) = (path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".pth"))
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    name = sorted(key for key in state if key.endswith(".weight"))[0]
    damaged = {
        "missing": {key: value for key, value in state.items() if key != name},
        "misshaped": {**state, name: torch.zeros(3, 5)},
        "extra": {**state, "of.nobody": torch.zeros(3)},
    }[damage]
    if file.suffix == ".safetensors":
        save_file(damaged, file, metadata={"format": "pt"})
    else:
        torch.save(damaged, file)
    row = dataclasses.replace(row, source=f"local-dir:{tmp_path}")
    if (family, damage) == ("ViTModel", "extra"):  # as the text half of CLIP is in the file of its image half
        build_network(row)
        return
    with pytest.raises(BackboneError) as caught:
        build_network(row)
    assert ("of.nobody" if damage == "extra" else name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["registers", "bare file", "ViTModel"])
def test_a_pickle_is_refused_and_never_run(family: str, tmp_path: Path) -> None:
    row = published(FAMILIES[family], tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    hostile = tmp_path / (row.weights_file or "pytorch_model.bin")
    row = dataclasses.replace(row, source=f"local-dir:{tmp_path}")
    for write in (torch.save, dump):
        write({"norm.weight": Bomb()}, hostile)
        with pytest.raises(PathfmError):
            build_network(row)
    assert Bomb.went_off == []
    with hostile.open("rb") as file:
        pickle.load(file)
    assert Bomb.went_off.pop() == 1  # it would have


def network_checks(row: Backbone) -> list[Check]:
    """The quick ones of a network: of its tokens one layer deep, and of a narrow one the others too."""
    library(row)
    size = Size(layers=1, grid=2)
    blueprint = drawn(row)
    trial = on_trial(row, blueprint, size, torch.device("cpu"))
    checks = [*blueprint_checks(row, blueprint), *planted_checks(trial)]
    if (row.dim or 0) < WIDE:
        checks += [*numeric_checks(trial), weights_check(row, blueprint, size)]
    return checks


def library(row: Backbone) -> None:
    if row.library == "transformers":
        pytest.importorskip("transformers", reason="the extra 'hf' is not installed")


def flat(row: Backbone) -> torch.Tensor:
    """The input that a row makes of a flat tile."""
    size_px = row.default_size_px
    return to_input(torch.tensor(FLAT, dtype=torch.uint8).expand(1, size_px, size_px, 3), row)


def is_stated(image: torch.Tensor, norm: str, input_px: int) -> bool:
    wanted = torch.tensor(FLAT_AS[norm]).view(1, 3, 1, 1).expand(1, 3, input_px, input_px)
    return image.shape == wanted.shape and torch.allclose(image, wanted, rtol=0, atol=3e-5)


def published(row: Backbone, folder: Path) -> Backbone:
    """Saves a network of the row with random weights, and gives the row without what is known of the real one."""
    library(row)
    row = dataclasses.replace(row, n_params=None, shapes_sha8="", weights_sha256="", revision="main")
    folder.mkdir(exist_ok=True)
    whole = dataclasses.replace(row, output="pooled") if row.output == "layer3" else row
    save_as_published(random_network(whole), whole, folder)
    return row


def into_cache(folder: Path, repo: str) -> None:
    """Lays the files of a folder into the hub's cache, as its own client does it."""
    root = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    commit = "a" * 40
    for path in folder.rglob("*"):
        if path.is_file():
            target = root / "snapshots" / commit / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)


def dump(what: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(what, protocol=2))
