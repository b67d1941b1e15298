"""Slides shared out to the devices of one machine; here a CPU stands for each."""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import TILES, files_below, write_slides

from pathfm.backbones import BACKBONES, Backbone, register_backbone
from pathfm.devices import devices_of, shared_out
from pathfm.errors import BackboneError, InputError, SlidesFailedError
from pathfm.extract import extract

if TYPE_CHECKING:
    from pathlib import Path

    from pathfm.extract import ExtractResult


class Deadly(torch.nn.Module):
    """A backbone whose process dies as soon as it is used."""

    dim = 4

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return tiles


def run(slides: Path, out: Path, device: str, **more: Any) -> ExtractResult:
    return extract([slides], out, tiles=TILES, device=device, batch_size=4, workers=2, **more)


@given(st.lists(st.integers(0, 10_000), max_size=40), st.integers(1, 8))
def test_every_slide_is_dealt_once_and_no_device_has_more_than_a_slide_too_much(counts: list[int], parts: int) -> None:
    shares = shared_out(list(range(len(counts))), counts, parts)
    assert sorted(at for share in shares for at in share) == list(range(len(counts)))
    sums = [sum(counts[at] for at in share) for share in shares]
    assert len(shares) == parts
    assert max(sums) - min(sums) <= max(counts, default=0)
    assert all([counts[at] for at in share] == sorted((counts[at] for at in share), reverse=True) for share in shares)


def test_two_devices_write_what_one_writes_and_a_run_goes_on_on_another_number_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slides = write_slides(tmp_path / "slides", 3)
    (slides / "s3.tiff").write_bytes(b"no slide")
    for device in ("cpu", "cpu,cpu"):
        with pytest.raises(SlidesFailedError):
            run(slides, tmp_path / device, device)
    one, two = (files_below(tmp_path / device, "*.h5") for device in ("cpu", "cpu,cpu"))
    assert len(one) == 3
    assert one == two
    assert files_below(tmp_path / "cpu", "*.csv") == files_below(tmp_path / "cpu,cpu", "*.csv")
    assert "s3," in (tmp_path / "cpu,cpu" / "failures.csv").read_text()
    log = (tmp_path / "cpu,cpu" / "pathfm-extract.log").read_text()
    assert all(log.count(f"{name}: done, ") == 1 for name in ("s0", "s1", "s2"))
    (slides / "s3.tiff").unlink()
    folder = next((tmp_path / "cpu,cpu").glob("colour-*"))
    (folder / "s1.h5").unlink()
    result = run(slides, tmp_path / "cpu,cpu", "cpu")
    assert (result.done, result.skipped) == (("s1",), ("s0", "s2"))
    assert files_below(tmp_path / "cpu,cpu", "*.h5") == one


def test_true_names_are_said_by_no_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pathfm")
    slides = write_slides(tmp_path / "Mustermann", 2)
    (slides / "s0.tiff").rename(slides / "erika-1.tiff")
    (slides / "s1.tiff").rename(slides / "erika-2.tiff")
    (slides / "erika-3.tiff").write_bytes(b"no slide")
    with pytest.raises(SlidesFailedError):
        run(slides, tmp_path / "out", "cpu,cpu", pseudonymise=tmp_path / "key.txt")
    written = files_below(tmp_path / "out")
    assert len([name for name in written if name.endswith(".h5")]) == 2
    for word in (b"erika", b"Mustermann"):
        assert all(word not in name.encode() and word not in content for name, content in written.items())
    assert "erika" not in caplog.text
    assert caplog.text.count(": done, ") == 2


def test_a_device_whose_process_dies_ends_the_run_in_one_line(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 2)
    register_backbone(Backbone(name="deadly", source="python:test_devices:Deadly", library="python", dim=4))
    try:
        with pytest.raises(BackboneError, match=r"died, .*; run the same command again"):
            run(slides, tmp_path / "out", "cpu,cpu", backbone="deadly")
    finally:
        del BACKBONES["deadly"]


@pytest.mark.parametrize(
    ("name", "devices"), [("cpu", ["cpu"]), ("auto", ["auto"]), ("cuda:0, cuda:1", ["cuda:0", "cuda:1"])]
)
def test_a_list_of_devices_is_what_its_commas_say(name: str, devices: list[str]) -> None:
    assert devices_of(name) == devices


@pytest.mark.parametrize("name", ["cuda:0,cuda:0", "cpu,", "", ","])
def test_a_list_that_names_a_gpu_twice_or_nothing_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="--device"):
        devices_of(name)


def test_all_gpus_of_a_machine_without_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices_of("cuda:all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="--device cuda:all"):
        devices_of("cuda:all")
