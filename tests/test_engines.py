from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import platform
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from pathfm.backbones import BACKBONES, Backbone, Engine, LoadedBackbone, Precision, load_backbone, register_backbone
from pathfm.backbones import engines as module
from pathfm.backbones.engines import check_tiles
from pathfm.backbones.memory import channels_last_pays
from pathfm.backbones.pending import Pending
from pathfm.errors import BackboneError, InputError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SEED = 0
LEAST_COSINE = 0.9999
CPU = torch.device("cpu")

CNN = Backbone(name="small-cnn", source="", arch="test_resnet", output="layer3", dim=192, resize_px=96)
VIT = Backbone(
    name="small-vit",
    source="",
    arch="test_vit",
    arch_kwargs={"reg_tokens": 4, "img_size": 160},
    output="cls+mean",
    prefix_tokens=5,
    dim=128,
    resize_px=160,
    mean_std=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)


class Undecomposable(nn.Module):
    """OpenVINO has no eigenvalues."""

    dim = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(images[:, :, :3, :3].mean(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of both networks, as timm writes them."""
    root = tmp_path_factory.mktemp("weights")
    for row in (CNN, VIT):
        torch.manual_seed(SEED)
        model = timm.create_model(row.arch, **row.arch_kwargs)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):  # as trained ones have them, so that no layer gives what it takes
                layer.running_mean.uniform_(-0.2, 0.2)
                layer.running_var.uniform_(0.5, 2)
        timm.models.save_for_hf(model, root / row.name, safe_serialization=True)
    return root


@pytest.fixture
def registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathfm.backbones.table.BACKBONES", dict(BACKBONES))
    for row in (CNN, VIT):
        register_backbone(dataclasses.replace(row, source=f"local-dir:{folder / row.name}"))


@pytest.fixture
def openvino() -> None:
    """Not imported here: the package takes care of what is imported with it."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("the extra 'openvino' is not installed")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("row", [CNN, VIT], ids=lambda row: row.name)
def test_a_compiled_network_gives_the_embeddings_of_plain_torch_in_batches_of_any_size(row: Backbone) -> None:
    _require_equal(row, "compile", (5, 2))


@pytest.mark.usefixtures("registered", "openvino")
@pytest.mark.parametrize("row", [CNN, VIT], ids=lambda row: row.name)
def test_openvino_gives_the_embeddings_of_plain_torch_in_batches_of_any_size(row: Backbone) -> None:
    loaded = _require_equal(row, "openvino", (5, 2, 1))
    assert loaded.engine.startswith("openvino 20")


@pytest.mark.usefixtures("registered")
def test_channels_last_does_not_change_an_embedding() -> None:
    loaded = load_backbone(CNN.name, "cpu")
    weights = next(layer.weight for layer in loaded.model.modules() if isinstance(layer, nn.Conv2d))
    assert weights.is_contiguous(memory_format=torch.channels_last)
    tiles = tissue(4, 128)
    fast = loaded.embed(tiles)
    loaded.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert not weights.is_contiguous(memory_format=torch.channels_last)
    assert least_cosine(fast, loaded.embed(tiles)) >= LEAST_COSINE


@pytest.mark.parametrize(
    ("arch", "pays"),
    [
        ("test_resnet", True),
        ("test_convnext", True),
        ("test_efficientnet", True),
        ("test_vit", False),
        ("swin_tiny_patch4_window7_224", False),
    ],
)
def test_channels_last_is_for_networks_whose_windows_overlap_on_a_cpu(arch: str, *, pays: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model(arch)
    assert channels_last_pays(model, CPU) == pays
    assert not channels_last_pays(model, torch.device("cuda"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize("threaded", [False, True], ids=["main", "thread"])
def test_freed_memory_is_kept_and_used_again(*, threaded: bool) -> None:
    """In a process of its own, for it holds for all of one: page faults of filling blocks of 80 MiB again and again."""
    n_blocks, pages = 30, 80 * 2**20 // 4096
    program = f"""
import resource, threading, torch
from pathfm.backbones.memory import keep_activations_mapped
assert keep_activations_mapped()
def fill():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({n_blocks}):
        torch.ones(20, 2**20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
thread = threading.Thread(target=fill)
thread.run() if {not threaded} else (thread.start(), thread.join())
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    # 30 * pages without, unless the kernel gives huge ones; some more than one where the heap has gaps at first
    assert int(said.stdout) < 10 * pages


def test_elsewhere_nothing_is_done_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathfm.backbones.memory import keep_activations_mapped

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_activations_mapped()


@pytest.mark.usefixtures("registered", "openvino")
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_tiles_may_be_overwritten_and_results_asked_for_in_any_order(engine: Engine) -> None:
    loaded = load_backbone(VIT.name, "cpu", engine=engine)
    batches = [tissue(count, 160, seed=count) for count in (3, 3, 2, 0, 1)]
    expected = [loaded.embed(batch) for batch in batches]
    buffer = np.empty((3, 160, 160, 3), np.uint8)
    pending = []
    for batch in batches:
        buffer[: len(batch)] = batch
        pending.append(loaded.submit(buffer[: len(batch)]))
        buffer[:] = 0
    for at in (4, 1, 3, 0, 2):
        pending[at].wait()
        assert pending[at].done()
        assert np.array_equal(pending[at].result(), expected[at])
    assert np.array_equal(pending[0].result(), expected[0])
    assert expected[3].shape == (0, VIT.dim)


@pytest.mark.usefixtures("registered")
def test_tiles_that_may_not_be_written_to_are_taken_too() -> None:
    loaded, tiles = load_backbone(CNN.name, "cpu"), tissue(2, 96)
    expected = loaded.embed(tiles)
    tiles.flags.writeable = False
    assert np.array_equal(loaded.embed(tiles), expected)


@pytest.mark.usefixtures("registered")
def test_two_threads_get_their_own_embeddings() -> None:
    loaded = load_backbone(CNN.name, "cpu")
    batches = [tissue(2, 96, seed=seed) for seed in range(2)]
    expected = [loaded.embed(batch) for batch in batches]
    wrong: list[int] = []

    def work(at: int) -> None:
        wrong.extend(at for _ in range(20) if not np.array_equal(loaded.embed(batches[at]), expected[at]))

    threads = [threading.Thread(target=work, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("embeddings", "said"), [(torch.full((2, 192), 1e6), "not finite"), (torch.ones(2, 5), "shape")]
)
def test_a_result_that_is_no_embedding_is_refused_when_it_is_asked_for(embeddings: torch.Tensor, said: str) -> None:
    pending = Pending(embeddings, CNN, "float32")
    with pytest.raises(BackboneError, match=said):
        pending.result()


@pytest.mark.usefixtures("registered", "openvino")
@pytest.mark.parametrize("wrong", [lambda x: x + x.abs().mean(), lambda x: 1.1 * x, lambda x: x * float("nan")])
def test_an_engine_with_other_embeddings_is_refused_with_the_cosine_and_the_remedy(
    wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    convert = openvino.convert_model

    class Wrong(nn.Module):
        def __init__(self, right: nn.Module) -> None:
            super().__init__()
            self.right = right

        def forward(self, images: torch.Tensor) -> Any:
            return wrong(self.right(images))

    monkeypatch.setattr(openvino, "convert_model", lambda plain, **kwargs: convert(Wrong(plain), **kwargs))
    with pytest.raises(BackboneError, match=r"small-cnn: cosine .*0\.999 is asked for.*--engine torch") as caught:
        load_backbone(CNN.name, "cpu", engine="openvino")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("registered", "openvino")
def test_a_network_that_an_engine_cannot_run_is_refused_in_one_line() -> None:
    row = Backbone(
        name="odd", source=f"python:{__name__}:Undecomposable", library="python", output="pooled", resize_px=32
    )
    register_backbone(row)
    with pytest.raises(BackboneError, match=r"cannot run backbone odd \(.*\); pass --engine torch") as caught:
        load_backbone("odd", "cpu", engine="openvino")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("registered", "openvino")
def test_openvino_leaves_what_others_log_alone() -> None:
    before = logging.root.level, logging.root.handlers[:]
    load_backbone(CNN.name, "cpu", engine="openvino")
    register_backbone(
        Backbone(
            name="odder", source=f"python:{__name__}:Undecomposable", library="python", output="pooled", resize_px=32
        )
    )
    with pytest.raises(BackboneError, match="cannot run"):
        load_backbone("odder", "cpu", engine="openvino")
    assert (logging.root.level, logging.root.handlers[:]) == before


def test_openvino_does_not_take_inputs_of_any_width() -> None:
    with pytest.raises(InputError, match=r"colour takes any; pass --engine torch"):
        load_backbone("colour", "cpu", engine="openvino")


@pytest.mark.usefixtures("registered")
def test_openvino_that_is_not_installed_says_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pathfm\[openvino\]'"):
        load_backbone(CNN.name, "cpu", engine="openvino")


def test_openvino_runs_on_a_cpu_only() -> None:
    embedder = module.Embedder(nn.Identity(), CNN, torch.device("meta"), "float32")
    with pytest.raises(InputError, match=r"not on meta; pass --device cpu, or --engine torch"):
        module.started("openvino", embedder)


@pytest.mark.usefixtures("registered", "openvino")
def test_openvino_reports_nothing_to_its_makers() -> None:
    load_backbone(CNN.name, "cpu", engine="openvino")
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


@pytest.mark.usefixtures("registered")
def test_a_machine_without_a_compiler_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with pytest.raises(BackboneError, match=r"--engine compile cannot run .*; pass --engine torch") as caught:
        load_backbone(CNN.name, "cpu", engine="compile")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("registered")
def test_the_engine_is_recorded_and_is_no_part_of_the_recipe() -> None:
    plain, other = load_backbone(VIT.name, "cpu"), load_backbone(VIT.name, "cpu", "bfloat16")
    assert plain.engine == "torch"
    assert "engine" not in json.dumps(plain.identity)
    assert {key for key in plain.identity if plain.identity[key] != other.identity[key]} == {"precision"}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("given", "resolved"), [(None, "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")])
def test_a_cpu_computes_in_float32_unless_told_otherwise(given: Precision | None, resolved: Precision) -> None:
    row = dataclasses.replace(BACKBONES["colour"], name="half", precision="float16")
    register_backbone(row)
    loaded = load_backbone("half", "cpu", given)
    assert (loaded.precision, loaded.identity["precision"]) == (resolved, resolved)


@pytest.mark.usefixtures("registered")
def test_a_gpu_computes_in_the_precision_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network stays where it is: nothing is run, so no GPU is needed."""
    monkeypatch.setattr("pathfm.backbones.load.resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(nn.Module, "to", lambda model, *_, **__: model)
    register_backbone(dataclasses.replace(BACKBONES["colour"], name="half", precision="bfloat16"))
    assert load_backbone("half", "cuda").identity["precision"] == "bfloat16"
    assert load_backbone("half", "cuda", "float32").identity["precision"] == "float32"
    assert load_backbone("colour", "cuda").identity["precision"] == "float32"


def test_engines_are_held_against_the_same_tiles_each_time() -> None:
    tiles = check_tiles(96)
    assert torch.equal(tiles, check_tiles(96))
    assert tiles.shape == (7, 96, 96, 3)
    deviations = tiles.float().flatten(1).std(dim=1)
    assert (deviations[:4] > 30).all()
    assert (deviations[4:] == 0).all()


def _require_equal(row: Backbone, engine: Engine, counts: tuple[int, ...]) -> LoadedBackbone:
    plain, other = load_backbone(row.name, "cpu"), load_backbone(row.name, "cpu", engine=engine)
    assert other.identity == plain.identity
    assert other.engine.startswith(engine)
    for count in counts:
        tiles = tissue(count, 128, seed=count)
        assert least_cosine(plain.embed(tiles), other.embed(tiles)) >= LEAST_COSINE
    assert other.embed(tissue(0, 128)).shape == (0, row.dim)
    return other


def least_cosine(one: NDArray[np.float16], other: NDArray[np.float16]) -> float:
    assert (one.shape, one.dtype) == (other.shape, np.float16)
    a, b = one.astype(float), other.astype(float)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def tissue(count: int, size_px: int, seed: int = SEED) -> NDArray[np.uint8]:
    """Tiles of blots of different colours."""
    rng = np.random.default_rng(seed)
    blots = rng.integers(60, 250, (count, size_px // 16, size_px // 16, 3)).repeat(16, axis=1).repeat(16, axis=2)
    return (blots + rng.integers(-20, 6, blots.shape)).astype(np.uint8)
