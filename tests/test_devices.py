"""Slides shared out to the devices of one machine; here a CPU stands for each."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import OPTIONS, PATIENCE_S, TILES, alive, descendants, files_below, wait_for, write_slides

from pathfm.backbones import BACKBONES, Backbone, register_backbone
from pathfm.devices import devices_of, shared_out
from pathfm.errors import BackboneError, InputError, SlidesFailedError
from pathfm.extract import extract

if TYPE_CHECKING:
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
        with pytest.raises(BackboneError, match=r"the process of cpu died \(Killed\), .*; run the same command again"):
            run(slides, tmp_path / "out", "cpu,cpu", backbone="deadly")
    finally:
        del BACKBONES["deadly"]


class Uneven(torch.nn.Module):
    """A backbone that gives no numbers in the process of which its file speaks, and takes its time in others."""

    dim = 4

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        with contextlib.suppress(FileExistsError):
            Path(os.environ["PATHFM_TEST_FIRST"]).touch(exist_ok=False)
            return torch.full((len(tiles), self.dim), torch.nan)
        time.sleep(1)
        return torch.zeros(len(tiles), self.dim)


def test_what_ends_one_device_ends_the_others_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHFM_TEST_FIRST", str(tmp_path / "first"))
    slides = write_slides(tmp_path / "slides", 2, 1536)  # the other one would take minutes
    register_backbone(Backbone(name="uneven", source="python:test_devices:Uneven", library="python", dim=4))
    try:
        started_s = time.monotonic()
        with pytest.raises(BackboneError, match="not finite"):
            extract(
                [slides], tmp_path / "out", tiles=TILES, device="cpu,cpu", batch_size=1, workers=2, backbone="uneven"
            )
        assert time.monotonic() - started_s < 60
    finally:
        del BACKBONES["uneven"]
    assert not descendants(os.getpid()) & working("pathfm.devices")


def working(module: str) -> set[int]:
    """The processes that were started to do something of a module."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,args="], check=True, capture_output=True, text=True).stdout
    return {int(line.split()[0]) for line in listed.splitlines() if f"from {module} import" in line}


def test_ctrl_c_stops_all_devices_and_the_same_command_goes_on(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 4, 1024)
    words = ["extract", "--slides", str(slides), "--out", str(tmp_path / "out"), *OPTIONS, "--batch_size", "1"]
    program = [sys.executable, "-m", "pathfm", *words, "--device", "cpu,cpu"]
    process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    assert wait_for(lambda: any(part.stat().st_size > 1000 for part in (tmp_path / "out").rglob("*.part")))
    of_devices = descendants(process.pid) & working("pathfm.devices")
    process.send_signal(signal.SIGINT)  # to it alone
    assert process.wait(PATIENCE_S) == 130
    assert wait_for(lambda: not alive(of_devices), 10)
    result = run(slides, tmp_path / "out", "cpu")
    assert len(result.done) + len(result.skipped) == 4


@pytest.mark.long
def test_a_script_without_a_guard_may_use_several_devices(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 2)
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom pathfm.extract import extract\nfrom pathfm.tiles import TileSpec\n"
        f"print(extract([Path({str(slides)!r})], Path({str(tmp_path / 'out')!r}), tiles=TileSpec(64, 1.0), device='cpu,cpu'))\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("2 slides embedded")


@pytest.mark.parametrize(("name", "devices"), [("cpu", ["cpu"]), ("auto", ["auto"]), ("cpu, cpu", ["cpu", "cpu"])])
def test_a_list_of_devices_is_what_its_commas_say(name: str, devices: list[str]) -> None:
    assert devices_of(name) == devices


@pytest.mark.parametrize("name", ["cuda:0,cuda:0", "cuda,cuda:0", "auto,cuda:0"])
def test_a_list_that_names_a_gpu_twice_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="twice"):
        devices_of(name)


@pytest.mark.parametrize("name", ["cpu,", ",", "cpu,cuda:7"])
def test_a_list_with_a_device_that_is_not_there_is_refused_before_anything_is_done(name: str, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 1)
    with pytest.raises(InputError, match="no device"):
        run(slides, tmp_path / "out", name)


def test_all_gpus_of_a_machine_without_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices_of("cuda:all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    slides = write_slides(tmp_path / "slides", 1)
    with pytest.raises(InputError, match="no device 'cuda' on this machine"):
        run(slides, tmp_path / "out", "cuda:all")
