"""Which slides a command is about: folders, files and cohort tables made into one list."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pathfm.cohort import IMAGE_SUFFIXES, SLIDE_SUFFIXES, read_cohort
from pathfm.errors import CohortError, InputError
from pathfm.progress import logger
from pathfm.scale import MppSource, require_sane_mpp
from pathfm.slide import Reader, Slide, open_slide
from pathfm.slidefiles import dicom_series, series_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pathfm.privacy import Pseudonyms

_INDEX_SUFFIXES = (".mrxs", ".vms", ".vmu")
_LONGEST_ID_BYTES = 200
"""A file name has 255 on most disks, and suffixes are added to ids."""


@dataclass(frozen=True)
class SlideSource:
    """A slide that a command was given; picklable.

    Attributes:
        slide_id: its name: the file stem, or what the cohort says.
        path: its file; the first of a DICOM series.
        mpp_override: microns per pixel of level 0 in place of what the slide states, None to believe it.
        mpp_source: where the override comes from.
        original_id: what it was called before it had a pseudonym, "" where it has none; hand-made outlines are called so.
    """

    slide_id: str
    path: Path
    mpp_override: float | None = None
    mpp_source: MppSource = "override"
    original_id: str = field(default="", repr=False)

    def open(self, reader: Reader = "auto") -> Slide:
        """Opens it; raises what `open_slide` raises."""
        return open_slide(self.path, self.mpp_override, self.mpp_source, self.slide_id, reader)


def find_slides(
    sources: Sequence[Path], mpp_override: float | None = None, names: Pseudonyms | None = None
) -> list[SlideSource]:
    """The slides in cohort tables, then those in folders and files as given; a folder's are sorted by path.

    Folders are searched to any depth, through links, without hidden files; plain images (.png, .jpg) count there only where no slide is
    found, else they are taken for thumbnails. A DICOM series is one slide. A slide given twice is one; a
    cohort's row counts before a folder's find. The cohort's `mpp` is per slide and wins over `mpp_override`. A file that a
    cohort names need not exist: it fails by itself when it is opened, and the others go on.

    Args:
        sources: cohort tables (.csv), folders and files.
        mpp_override: microns per pixel of level 0, in place of what the slides state.
        names: gives pseudonyms in place of the ids, and learns what must not be said.

    Raises:
        InputError: nothing there, a folder without slides, an absurd override, an id that is no file name, two slides of one id.
        CohortError: a table that cannot be used, or rows without `path`.
    """
    if mpp_override is not None:
        require_sane_mpp(mpp_override, f"--mpp-override {mpp_override:g}")
    if not sources:
        message = "no slides given; pass --slides a folder, files or a cohort table"
        raise InputError(message)
    given = sources if names is None else [source.absolute() for source in sources]
    tables_first = sorted(given, key=lambda source: source.suffix.lower() != ".csv")
    found = [slide for source in tables_first for slide in _slides_of(source, mpp_override, names)]
    unique = _without_twins(found)
    slides = unique if names is None else _renamed(unique, names)
    _require_ids(slides)
    return slides


def _renamed(slides: list[SlideSource], names: Pseudonyms) -> list[SlideSource]:
    """The slides under their pseudonyms, which are to be said in place of all that they were known by."""
    for folder in {slide.path.parent for slide in slides}:
        names.scrubber.learn_folder(folder, "the folder of a slide")
    renamed = []
    for slide in slides:
        original_id = slide.original_id or slide.slide_id
        slide_id = names.slide(original_id)
        names.scrubber.learn_file(slide.path, slide_id)
        for word in (slide.path.stem, original_id):
            names.scrubber.learn(word, slide_id)
        renamed.append(replace(slide, slide_id=slide_id, original_id=original_id))
    return renamed


def _slides_of(source: Path, mpp_override: float | None, names: Pseudonyms | None) -> list[SlideSource]:
    if source.suffix.lower() == ".csv":
        return _of_cohort(source, mpp_override, names)
    if source.is_dir():
        return [SlideSource(path.stem, path, mpp_override) for path in _of_folder(source)]
    if not source.exists():
        message = f"no file or folder at {source}; pass --slides a folder, files or a cohort table"
        raise InputError(message)
    return [SlideSource(_first_file(source).stem, _first_file(source), mpp_override)]


def _of_cohort(source: Path, mpp_override: float | None, names: Pseudonyms | None) -> list[SlideSource]:
    cohort = read_cohort(source, names)
    table = cohort.table
    missing = [str(row + 2) for row, path in enumerate(table["path"]) if path is None]
    if missing:
        rows = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        message = f"{cohort.source}: path is empty in row {rows}; fill `path` (relative to the table) so that the slides are found"
        raise CohortError(message)
    twice = table.loc[table["path"].duplicated(keep=False), "slide_id"]
    if len(twice):
        message = f"{cohort.source}: {' and '.join(twice[:5])} have the same path; a slide has one row"
        raise CohortError(message)
    slides = []
    original_ids = cohort.original_ids or [""] * len(table)
    for slide_id, original_id, path, mpp in zip(
        table["slide_id"], original_ids, table["path"], table["mpp"], strict=True
    ):
        if not math.isnan(mpp):
            require_sane_mpp(mpp, f"{cohort.source}: mpp {mpp:g} of {slide_id}")
        known: tuple[float | None, MppSource] = (
            (mpp_override, "override") if math.isnan(mpp) else (float(mpp), "cohort")
        )
        slides.append(SlideSource(slide_id, path, *known, original_id))
    return slides


def _of_folder(folder: Path) -> list[Path]:
    files = sorted(_files_below(folder))
    slides = [path for path in files if path.suffix.lower() in SLIDE_SUFFIXES]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not slides and not images:
        message = f"no slides in {folder} ({len(files)} other files); pass --slides a folder with {', '.join(sorted(SLIDE_SUFFIXES))}"
        raise InputError(message)
    if slides and images:
        logger.info("%d plain images beside the slides of %s are left out; name them to use them", len(images), folder)
    return _one_per_slide(slides or images)


def _files_below(folder: Path) -> Iterator[Path]:
    """Files to any depth without hidden ones; each folder once, however many links lead to it."""
    visited: set[tuple[int, int]] = set()
    for here, folders, names in os.walk(folder, onerror=_warn_of, followlinks=True):
        found = Path(here).stat()
        if (found.st_dev, found.st_ino) in visited:
            folders.clear()
            continue
        visited.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folders.sort(key=lambda name: (Path(here) / name).is_symlink())  # a folder's own path before its links
        yield from (path for name in names if not name.startswith(".") and _is_file(path := Path(here) / name))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        _warn_of(error)
        return False


def _warn_of(error: OSError) -> None:
    logger.warning("%s cannot be searched (%s); slides in it are left out", error.filename, error.strerror)


def _one_per_slide(files: list[Path]) -> list[Path]:
    """Leaves out what belongs to another file's slide: the rest of a DICOM series, the parts that an index names."""
    parts = {
        part for path in files if path.suffix.lower() in _INDEX_SUFFIXES for part in _files_of(path) if part != path
    }
    seen: set[tuple[Path, str]] = set()
    kept = []
    for path in files:
        series = dicom_series(path) if path.suffix.lower() == ".dcm" else ""
        if path in parts or (series and (path.parent, series) in seen):
            continue
        seen.add((path.parent, series))
        kept.append(path)
    return kept


def _first_file(path: Path) -> Path:
    """The file that stands for a DICOM series whichever of its files is named."""
    return _files_of(path)[0] if path.suffix.lower() == ".dcm" else path


def _files_of(path: Path) -> list[Path]:
    """The files of a slide; itself alone where they cannot be listed, which it will say itself when it is opened."""
    try:
        return series_files(path)
    except OSError as error:
        logger.warning("%s: its files cannot be listed (%s)", path, error.strerror)
        return [path]


def _without_twins(slides: Iterable[SlideSource]) -> list[SlideSource]:
    """One source a file, the first that names it."""
    unique: dict[Path, SlideSource] = {}
    for slide in slides:
        unique.setdefault(_first_file(slide.path).resolve(), slide)
    return list(unique.values())


def _require_ids(slides: list[SlideSource]) -> None:
    """Ids name files, so they must be file names and unique."""
    seen: dict[str, Path] = {}
    for slide in slides:
        _require_encodable(slide)
        if slide.slide_id.startswith(".") or set(slide.slide_id) & set("/\\\0"):
            message = f"slide_id {slide.slide_id!r} of {slide.path} is no file name; use letters, digits, '-' and '_' in the cohort"
            raise InputError(message)
        if slide.slide_id in seen:
            message = (
                f"two slides are called {slide.slide_id!r}: {seen[slide.slide_id]} and {slide.path};"
                " rename one, or give each its slide_id in a cohort table"
            )
            raise InputError(message)
        seen[slide.slide_id] = slide.path


def _require_encodable(slide: SlideSource) -> None:
    shown = str(slide.path).encode("utf-8", "backslashreplace").decode()
    try:
        length = len(slide.slide_id.encode())
    except UnicodeEncodeError as error:
        message = f"the name of {shown} is not UTF-8; rename the file, or give it a slide_id in a cohort table"
        raise InputError(message) from error
    if length > _LONGEST_ID_BYTES:
        message = (
            f"slide_id of {shown} has {length} bytes, over {_LONGEST_ID_BYTES}; give it a shorter one in a cohort table"
        )
        raise InputError(message)
