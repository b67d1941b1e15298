from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pyramids import waves, write_pyramid

from pathfm.doctor import doctor

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_it_says_versions_device_hub_cache_and_free_disk() -> None:
    said = doctor()
    for fact in (
        "pathfm",
        "torch",
        "OpenSlide",
        "DICOM",
        "CPU",
        "GPU",
        "offline by HF_HUB_OFFLINE",
        "weights cache",
        "GB in",
    ):
        assert fact in said


def test_it_says_where_weights_are_looked_for_and_what_is_usable_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.delenv("PATHFM_WEIGHTS", raising=False)
    monkeypatch.delenv("PATHFM_BACKBONES", raising=False)
    facts = facts_of(doctor())
    assert facts["weights cache"].startswith(f"{tmp_path / 'cache' / 'hub'}, ")
    assert " GB free" in facts["weights cache"]
    assert facts["weights mirror"] == "none (PATHFM_WEIGHTS names no folder)"
    assert facts["weights here"] == "colour"
    assert facts["your backbones"].startswith("none")

    folder = tmp_path / "mirror" / "MahmoodLab" / "UNI"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    monkeypatch.setenv("PATHFM_WEIGHTS", str(tmp_path / "mirror"))
    (tmp_path / "ours.yaml").write_text(f"- name: ours\n  source: local-dir:{folder}\n  output: pooled\n")
    monkeypatch.setenv("PATHFM_BACKBONES", str(tmp_path / "ours.yaml"))
    facts = facts_of(doctor())
    assert facts["weights mirror"] == f"{tmp_path / 'mirror'}, looked at first"
    assert facts["weights here"] == "colour, ours, uni"
    assert facts["your backbones"] == f"{tmp_path / 'ours.yaml'}: ours"
    (tmp_path / "ours.yaml").write_text("ours")
    facts = facts_of(doctor())
    assert facts["weights here"] == "colour, uni"
    assert "is no list of backbones" in facts["your backbones"]
    monkeypatch.setenv("PATHFM_WEIGHTS", str(tmp_path / "unmounted"))
    assert "unmounted is not there" in facts_of(doctor())["weights mirror"]


def test_it_says_of_each_slide_whether_it_is_fit_and_why_not(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    write_pyramid(slides / "good.tiff", waves(512, 512, 0.5), 0.5, levels=(4,))
    write_pyramid(slides / "unscaled.tiff", waves(512, 512, 0.5), None, levels=(4,))
    (slides / "empty.tiff").write_bytes(b"")
    lines = doctor([slides]).splitlines()
    assert "3 slides, 1 fit for use" in lines
    (good,) = [line for line in lines if line.startswith("good")]
    assert "0.5 mpp (metadata)" in good
    assert "levels 1, 4" in good
    assert "4/4 corners readable" in good
    assert any(line.startswith("unscaled  no mpp:") and "--mpp-override" in line for line in lines)
    assert any(line.startswith("empty  empty file:") for line in lines)


def test_an_override_makes_an_unscaled_slide_fit(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "unscaled.tiff", waves(512, 512, 0.5), None, levels=(4,))
    assert "0.25 mpp (override)" in doctor([tmp_path / "unscaled.tiff"], mpp_override=0.25)


def facts_of(said: str) -> dict[str, str]:
    return {line[:18].strip(): line[18:] for line in said.splitlines()}
