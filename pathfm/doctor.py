"""What this machine can do, and what is wrong with the slides given, before hours are spent on them."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import openslide
import torch
from huggingface_hub import constants, get_token

from pathfm.errors import SlideError
from pathfm.privacy import private_run
from pathfm.scrub import withheld
from pathfm.slide import Slide, open_slide
from pathfm.sources import SlideSource, find_slides
from pathfm.version import __version__

_LIBRARIES = ("openslide-python", "openslide-bin", "torch", "timm", "lightning", "h5py", "numpy", "scikit-learn")
_FORMATS = "Aperio, DICOM, Hamamatsu, Leica, MIRAX, Philips, Sakura, Trestle, Ventana, Zeiss, generic tiled TIFF"
_HUB_TIMEOUT_S = 3.0
_CORNER_PX = 64


def doctor(
    slides: list[Path] | None = None, mpp_override: float | None = None, pseudonymise: Path | None = None
) -> str:
    """Says what is installed, where the work would run and where weights would come from; given slides, checks each.

    Args:
        slides: a folder, slide files, or a cohort table.
        mpp_override: microns per pixel of level 0 for slides that state none or a wrong one.
        pseudonymise: a key file, made where it is missing; slides are then called by keyed hashes of their ids.

    Returns:
        One line a fact, then one line a slide: what is wrong with it, or its scale, size, levels and readable corners.
    """
    with private_run(pseudonymise, slides=slides) as names:
        lines = [f"{name:<18}{value}" for name, value in _facts()]
        if slides:
            sources = find_slides(slides, mpp_override, names)
            verdicts = [_check(source) for source in sources]
            well = sum(verdict.startswith("ok") for verdict in verdicts)
            lines += ["", f"{len(sources)} slides, {well} fit for use"]
            lines += [f"{source.slide_id}  {verdict}" for source, verdict in zip(sources, verdicts, strict=True)]
        return "\n".join(map(withheld, lines))


def _facts() -> list[tuple[str, str]]:
    return [
        ("pathfm", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, _version(name)) for name in _LIBRARIES),
        ("OpenSlide", f"{openslide.__library_version__}: {_FORMATS}"),
        ("CPU", f"{_cores()} cores, torch uses {torch.get_num_threads()} threads"),
        ("GPU", _gpu()),
        ("hub", _hub()),
        ("weights cache", constants.HF_HUB_CACHE),
        ("free disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB in {Path.cwd()}"),
    ]


def _check(source: SlideSource) -> str:
    """`ok` and the facts, or the typed reason and what to do."""
    try:
        with open_slide(source.path, source.mpp_override, source.mpp_source) as slide:
            corners = _readable_corners(slide)
            return (
                f"{'ok' if corners == 4 else 'corners unreadable'}  {slide.vendor}  {slide.mpp:g} mpp ({slide.mpp_source})  "
                f"{slide.size_px0[0]} x {slide.size_px0[1]} px  levels {', '.join(f'{d:g}' for d in slide.level_downsamples)}  "
                f"{corners}/4 corners readable"
            )
    except SlideError as error:
        return f"{error.reason}: {error}"


def _readable_corners(slide: Slide) -> int:
    width, height = slide.size_px0
    readable = 0
    for x_px0 in (0, max(0, width - _CORNER_PX)):
        for y_px0 in (0, max(0, height - _CORNER_PX)):
            try:
                slide.read_tile(x_px0, y_px0, min(_CORNER_PX, width, height), slide.mpp)
                readable += 1
            except SlideError:
                continue
    return readable


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cores() -> int:
    """The cores this process may use, which on a shared cluster are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> str:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return "; ".join(f"{p.name}, {p.total_memory / 1e9:.0f} GB" for p in names)
    return "Apple MPS" if torch.backends.mps.is_available() else "none, work runs on the CPU"


def _hub() -> str:
    """Whether weights could be fetched; a name lookup and a connection, nothing is sent."""
    token = "a token is set" if get_token() else "no token (hf auth login), gated weights are out of reach"
    if constants.HF_HUB_OFFLINE:
        return f"offline by HF_HUB_OFFLINE; {token}"
    host = urlsplit(constants.ENDPOINT).hostname or ""
    try:
        socket.create_connection((host, 443), timeout=_HUB_TIMEOUT_S).close()
    except OSError as error:
        return f"not reachable ({error.strerror or error}); only weights in the cache or local-dir: work; {token}"
    return f"reachable; {token}"
