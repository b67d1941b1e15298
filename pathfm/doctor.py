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

from pathfm.backbones.hub import hub_cache
from pathfm.backbones.mirror import VARIABLE, mirror
from pathfm.backbones.own import VARIABLE as OWN_VARIABLE
from pathfm.backbones.own import own_rows
from pathfm.backbones.table import BACKBONES, known_backbones
from pathfm.backbones.weights import weights_available
from pathfm.checkup import check_slide
from pathfm.errors import InputError, SlideError
from pathfm.isolation import Limits, cancelled_after, isolated, usable_cores, usual_workers
from pathfm.privacy import private_run
from pathfm.scrub import withheld
from pathfm.sources import SlideSource, find_slides
from pathfm.version import __version__

_LIBRARIES = (
    *("openslide-python", "openslide-bin", "simplejpeg", "torch", "timm", "lightning", "h5py", "numpy", "scikit-learn"),
    *("openvino", "cucim-cu12"),  # by choice: --engine openvino, --reader cucim
)
_FORMATS = "Aperio, DICOM, Hamamatsu, Leica, MIRAX, Philips, Sakura, Trestle, Ventana, Zeiss, generic tiled TIFF"
_HUB_TIMEOUT_S = 3.0


def doctor(
    slides: list[Path] | None = None,
    mpp_override: float | None = None,
    limits: Limits = Limits(),
    pseudonymise: Path | None = None,
) -> str:
    """Says what is installed, where the work would run and where weights would come from; given slides, checks each.

    Args:
        slides: a folder, slide files, or a cohort table.
        mpp_override: microns per pixel of level 0 for slides that state none or a wrong one.
        limits: what a process that reads a slide may take.
        pseudonymise: a key file, made where it is missing; slides are then called by keyed hashes of their ids.

    Returns:
        One line a fact, then one line a slide: what is wrong with it, or its scale, size, levels and readable corners.
    """
    with private_run(pseudonymise, slides=slides) as names:
        lines = [f"{name:<18}{value}" for name, value in _facts()]
        if slides:
            sources = find_slides(slides, mpp_override, names)
            verdicts = _verdicts(sources, limits)
            well = sum(verdict.startswith("ok") for verdict in verdicts)
            lines += ["", f"{len(sources)} slides, {well} fit for use"]
            lines += [f"{source.slide_id}  {verdict}" for source, verdict in zip(sources, verdicts, strict=True)]
        return "\n".join(map(withheld, lines))


def _verdicts(sources: list[SlideSource], limits: Limits) -> list[str]:
    """A line a slide; each is looked at in another process, for it is here that suspicious ones are brought."""
    calls = [
        isolated(source.path, limits.for_whole_slide(), usual_workers(), check_slide, source) for source in sources
    ]
    verdicts = []
    with cancelled_after(calls):
        for call in calls:
            try:
                verdicts.append(call.result())
            except SlideError as error:
                verdicts.append(f"{error.reason}: {error}")
    return verdicts


def _facts() -> list[tuple[str, str]]:
    return [
        ("pathfm", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, _version(name)) for name in _LIBRARIES),
        ("OpenSlide", f"{openslide.__library_version__}: {_FORMATS}"),
        ("CPU", f"{usable_cores()} cores, torch uses {torch.get_num_threads()} threads"),
        ("GPU", _gpu()),
        ("hub", _hub()),
        ("weights cache", f"{hub_cache()}, {_free(hub_cache())} free (HF_HUB_CACHE or HF_HOME moves it)"),
        ("weights mirror", _mirror()),
        *_backbones(),
        ("free disk", f"{_free(Path.cwd())} in {Path.cwd()}"),
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return "; ".join(f"{p.name}, {p.total_memory / 1e9:.0f} GB" for p in names)
    return "Apple MPS" if torch.backends.mps.is_available() else "none, work runs on the CPU"


def _free(folder: Path) -> str:
    """Space on the disk of a folder that may not be there yet."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return f"{shutil.disk_usage(there).free / 1e9:.1f} GB"


def _mirror() -> str:
    folder = mirror()
    if folder is None:
        return f"none ({VARIABLE} names no folder)"
    return f"{folder}, looked at first" if folder.is_dir() else f"{folder} is not there; mount it, or unset {VARIABLE}"


def _backbones() -> list[tuple[str, str]]:
    """Those whose weights are here, and the user's own file, which may be one that cannot be used."""
    known = BACKBONES
    try:
        own, known = own_rows(), known_backbones()
        said = f"{os.environ[OWN_VARIABLE]}: {', '.join(row.name for row in own)}" if own else ""
    except InputError as error:
        said = str(error)
    here = sorted(name for name, row in known.items() if row.library != "remote" and weights_available(row))
    return [("weights here", ", ".join(here)), ("your backbones", said or f"none ({OWN_VARIABLE} names no file)")]


def _hub() -> str:
    """Whether weights could be fetched; a name lookup and a connection, nothing is sent."""
    token = "a token is set" if get_token() else "no token (hf auth login), gated weights are out of reach"
    if constants.HF_HUB_OFFLINE:
        return f"offline by HF_HUB_OFFLINE; {token}"
    url = urlsplit(constants.ENDPOINT)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), timeout=_HUB_TIMEOUT_S).close()
    except OSError as error:
        return f"not reachable directly ({error.strerror or error}); only weights in the mirror, the cache or local-dir: work; {token}"
    return f"reachable; {token}"
