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
