from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tinymodels
from tinymodels import Weighted, save_tiny, tiny_model

from pathfm.backbones import BACKBONES, Backbone, find_backbone, load_backbone, register_backbone
from pathfm.backbones.rows import ELSEWHERE, ROWS, VARIANTS
from pathfm.backbones.sound import require_sound
from pathfm.errors import BackboneError, InputError, UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path

# name elsewhere: (ours, the length of the embedding that it has there)
TRIDENT = {
    "conch_v1": ("conch", 512),
    "conch_v15": ("conch-v1.5", 768),
    "uni_v1": ("uni", 1024),
    "uni_v2": ("uni2-h", 1536),
    "ctranspath": ("ctranspath", 768),
    "phikon": ("phikon", 768),
    "phikon_v2": ("phikon-v2", 1024),
    "resnet50": ("resnet50", 1024),
    "keep": ("keep", 768),
    "gigapath": ("gigapath", 1536),
    "virchow": ("virchow", 2560),
    "virchow2": ("virchow2", 2560),
    "hoptimus0": ("h-optimus-0", 1536),
    "hoptimus1": ("h-optimus-1", 1536),
    "openmidnight": ("openmidnight", 1536),
    "gpfm": ("gpfm", 1024),
    "hibou_l": ("hibou-l", 1024),
    "kaiko-vitb8": ("kaiko-vitb8", 768),
    "kaiko-vitl14": ("kaiko-vitl14", 1024),
    "lunit-vits8": ("lunit-vits8", 384),
    "midnight12k": ("midnight-12k:cls", 1536),
    "genbio-pathfm": ("genbio-pathfm", 4608),
    "gemma4-e4b": ("gemma4-e4b", 768),
}
STAMP = {
    "mahmood-conch": ("conch", 512),
    "mahmood-conch1_5": ("conch-v1.5", 768),
    "conch1_5": ("conch-v1.5", 768),
    "mahmood-uni": ("uni", 1024),
    "mahmood-uni2": ("uni2-h", 1536),
    "uni2": ("uni2-h", 1536),
    "chief-ctranspath": ("chief-ctranspath", 768),
    "virchow_full": ("virchow", 2560),
    "virchow-full": ("virchow", 2560),
    "mstar": ("mstar", 1024),
    "plip": ("plip", 512),
}
SLIDE2VEC = {
    "midnight": ("midnight-12k", 3072),
    "phikonv2": ("phikon-v2", 1024),
    "conchv15": ("conch-v1.5", 768),
    "lunit": ("lunit-vits8", 384),
    "h0-mini": ("h0-mini", 1536),
    "rudolfv2": ("rudolfv2", 1536),
}
EVA = {
    "pathology/kaiko_vits16": ("kaiko-vits16", 384),
    "pathology/kaiko_vitl14": ("kaiko-vitl14", 1024),
    "pathology/owkin_phikon": ("phikon", 768),
    "pathology/paige_virchow2": ("virchow2:cls", 1280),
    "pathology/bioptimus_h0_mini": ("h0-mini:cls", 768),
    "pathology/bioptimus_h_optimus_0": ("h-optimus-0", 1536),
    "pathology/kaiko_midnight_12k": ("midnight-12k:cls", 1536),
    "pathology/mahmood_uni2_h": ("uni2-h", 1536),
    "pathology/prov_gigapath": ("gigapath", 1536),
    "pathology/histai_hibou_b": ("hibou-b", 768),
}


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny", tiny_model())


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathfm.backbones.table.BACKBONES", dict(BACKBONES))


@pytest.mark.parametrize(
    ("alias", "ours", "dim"),
    [(alias, *meant) for names in (TRIDENT, STAMP, SLIDE2VEC, EVA) for alias, meant in names.items()],
)
def test_a_name_of_another_toolkit_gives_the_features_that_it_has_there(alias: str, ours: str, dim: int) -> None:
    row = find_backbone(alias)
    assert (row.name, row.dim) == (ours, dim)
    assert find_backbone(alias.upper()) == row == find_backbone(ours)


@pytest.mark.parametrize(
    ("toolkit", "name", "ours", "dim"),
    [(*entry, dim) for entry, dim in zip(ELSEWHERE, (1280, 1280, 768, 1024, 2048), strict=True)],
)
def test_a_name_that_means_other_features_elsewhere_is_ours_here_and_theirs_has_a_name(
    toolkit: str, name: str, ours: str, dim: int
) -> None:
    assert toolkit in ("STAMP", "TRIDENT", "AtlasPatch")
    assert find_backbone(name).name == name
    assert (find_backbone(ours).name, find_backbone(ours).dim) == (ours, dim)
    assert find_backbone(name).dim != dim


def test_no_two_rows_share_a_name() -> None:
    names = [name for row in ROWS for name in (row.name, *row.aliases)] + list(VARIANTS)
    assert len(set(names)) == len(names)
    assert len(ROWS) == len(BACKBONES) >= 35


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_row_of_the_table_is_sound_and_says_its_terms(row: Backbone) -> None:
    require_sound(row)
    assert row.dim or row.name == "colour"
    assert row.terms.licence == row.licence
    assert row.gated is not None or row.page
    if "NC-ND" in row.licence:
        assert "non-commercial" in row.derivatives
        assert not row.terms.permissive


def test_a_page_that_forbids_what_its_licence_allows_is_not_permissive() -> None:
    assert BACKBONES["virchow"].terms.permissive
    assert not BACKBONES["gigapath"].terms.permissive
    assert not BACKBONES["gpfm"].terms.permissive
    assert "models trained on its outputs" in BACKBONES["uni2-h"].derivatives


@pytest.mark.parametrize(
    ("name", "found", "output", "dim"),
    [
        ("virchow2:cls", "virchow2:cls", "cls", 1280),
        ("virchow2:mean", "virchow2:mean", "mean", 1280),
        ("Virchow2:cls+mean", "virchow2", "cls+mean", 2560),
        ("uni:cls+mean", "uni:cls+mean", "cls+mean", 2048),
        ("uni_v2:mean", "uni2-h:mean", "mean", 1536),
        ("virchow_full:cls", "virchow:cls", "cls", 1280),
        ("midnight12k:mean", "midnight-12k:mean", "mean", 1536),
        ("resnet50:layer3", "resnet50", "layer3", 1024),
    ],
)
def test_a_variant_has_its_own_name_and_length(name: str, found: str, output: str, dim: int) -> None:
    row = find_backbone(name)
    assert (row.name, row.output, row.dim) == (found, output, dim)
    assert find_backbone(row.name) == row


def test_a_revision_is_part_of_the_name_and_drops_the_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = dataclasses.replace(BACKBONES["uni"], weights_sha256="a" * 64)
    monkeypatch.setitem(BACKBONES, "uni", pinned)
    row = find_backbone("uni_v1:mean@v9")
    assert (row.name, row.revision, row.weights_sha256) == ("uni:mean@v9", "v9", "")
    assert find_backbone(row.name) == row
    assert find_backbone(f"uni@{pinned.revision}") == pinned
    assert find_backbone("uni@main").weights_sha256 == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("virchow2:layer3", "no output 'layer3'; its outputs are cls, cls+mean, mean"),
        ("resnet50:cls", "its outputs are layer3"),
        ("uni:", "no output ''"),
        ("uni@", "write a branch, a tag or a commit"),
        ("uni@0f6d29f", "write all 40 digits"),
        ("colour@main", "no repository of the hub"),
        ("ctranspath@main", "no repository of the hub"),
    ],
)
def test_a_variant_that_there_is_not_is_refused_with_those_that_there_are(name: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        find_backbone(name)


@pytest.mark.parametrize("name", ["uni@a:cls", "uni:cls:mean", "unknown:cls", "", ":cls", "@main"])
def test_what_is_no_name_is_unknown(name: str) -> None:
    with pytest.raises(UnknownNameError):
        find_backbone(name)


def test_an_unknown_name_lists_near_ones_of_other_toolkits_too() -> None:
    with pytest.raises(UnknownNameError, match=r"near: hoptimus0"):
        find_backbone("hoptimus00")
    with pytest.raises(UnknownNameError, match=r"virchow2.*hf-hub:owner/name"):
        find_backbone("virchov2")


@pytest.mark.usefixtures("registered")
def test_a_row_made_from_another_does_not_take_its_other_names() -> None:
    register_backbone(dataclasses.replace(BACKBONES["uni"], name="our-uni"))
    assert find_backbone("uni_v1").name == "uni"
    with pytest.raises(InputError, match=r"'hoptimus0' is registered already \(h-optimus-0\)"):
        register_backbone(dataclasses.replace(BACKBONES["uni"], name="other", aliases=("hoptimus0",)))
    with pytest.raises(InputError, match="registered already"):
        register_backbone(dataclasses.replace(BACKBONES["uni"], name="UNI"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, "its name is ''"),
        ({"name": "a:b"}, "letters, digits and dashes"),
        ({"name": "a@b"}, "letters, digits and dashes"),
        ({"aliases": ("Upper",)}, "names in lower case"),
        ({"library": "keras"}, "one of python, timm"),
        ({"source": "/folder"}, "one of hf-hub:..., local-dir:..."),
        ({"library": "package", "build": "no.such:f"}, "module:function"),
        ({"library": "package"}, "module:function"),
        ({"output": "token"}, "one of cls, mean"),
        ({"outputs": ("mean",)}, "cls among them"),
        ({"dim": 0}, "its dim is 0"),
        ({"dim": 7, "output": "cls+mean", "outputs": ()}, "even"),
        ({"prefix_tokens": 0}, "1 or more"),
        ({"size_px": -1}, "above 0"),
        ({"crop_px": 225}, "at most the 224 px"),
        ({"mpp": 20.0}, "between 0.05 and 5"),
        ({"other_mpp": (0.0,)}, "between 0.05 and 5"),
        ({"interpolation": "nearest"}, "bicubic"),
        ({"mean_std": ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5))}, "three above 0"),
        ({"mean_std": ((0.5, 0.5), (0.5, 0.5))}, "three numbers"),
        ({"precision": "int8"}, "one of float32"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("registered")
def test_a_row_that_cannot_be_is_refused_in_one_line(change: dict[str, Any], said: str) -> None:
    row = dataclasses.replace(BACKBONES["uni"], **({"name": "mine", "aliases": ()} | change))
    with pytest.raises(InputError) as caught:
        register_backbone(row)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("registered")
def test_a_backbone_of_ones_own_is_registered_with_one_call_and_only_once() -> None:
    row = Backbone(
        name="mine", source=f"python:{tinymodels.__name__}:{Weighted.__name__}", library="python", output="pooled"
    )
    register_backbone(row)
    loaded = load_backbone("mine", "cpu")
    tiles = np.full((2, 32, 32, 3), 255, dtype=np.uint8)
    assert np.array_equal(loaded.embed(tiles), np.full((2, 5), 2.0, dtype=np.float16))
    assert (loaded.row.dim, loaded.identity["version"]) == (5, "3")
    with pytest.raises(InputError, match="registered already"):
        register_backbone(row)
    with pytest.raises(InputError, match="letters, digits and dashes"):
        register_backbone(dataclasses.replace(row, name="hf-hub:a/b"))


@pytest.mark.usefixtures("registered")
def test_a_class_that_cannot_be_imported_is_named() -> None:
    register_backbone(Backbone(name="gone", source="python:no.such.module:Net", library="python"))
    with pytest.raises(BackboneError, match=r"no\.such\.module:Net"):
        load_backbone("gone", "cpu")


def test_a_configuration_of_another_library_is_refused(tiny_folder: Path) -> None:
    (tiny_folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(BackboneError, match="no timm model"):
        load_backbone(f"local-dir:{tiny_folder}", "cpu")


@pytest.mark.parametrize(
    "odd",
    [
        {"architecture": 5},
        {"architecture": None},
        {"pretrained_cfg": None},
        {"pretrained_cfg": {"input_size": 5}},
        {"pretrained_cfg": {"input_size": []}},
        {"pretrained_cfg": {"input_size": [3, 160, "160"]}},
        {"pretrained_cfg": {"mean": 1}},
        {"pretrained_cfg": {"mean": ["a", "b", "c"]}},
        {"pretrained_cfg": {"mean": [0.5, 0.5]}},
        {"pretrained_cfg": {"std": [0.5, 0, 0.5]}},
    ],
    ids=json.dumps,
)
def test_a_configuration_that_says_what_no_model_has_is_refused_in_one_line(
    odd: dict[str, Any], tiny_folder: Path
) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(config | odd))
    with pytest.raises(BackboneError, match=r"config\.json") as caught:
        find_backbone(f"local-dir:{tiny_folder}")
    assert "\n" not in str(caught.value)
