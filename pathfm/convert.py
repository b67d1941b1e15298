"""Features of other tools into pathfm's embeddings files, and embeddings out to what those tools read: import and export."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pathfm.cohort import read_cohort
from pathfm.embeddings import Embeddings, embeddings_folder_name, find_embeddings, read_embeddings, write_embeddings
from pathfm.errors import (
    EmbeddingsDamagedError,
    EmbeddingsStaleError,
    InputError,
    MppError,
    SlideError,
    SlidesFailedError,
)
from pathfm.failures import Failure, write_failures
from pathfm.files import write_atomically
from pathfm.imported import SlideFacts, Stated, imported_embeddings
from pathfm.isolation import Limits, isolated
from pathfm.layouts import EXPORTS, LayoutName, find_foreign, read_foreign
from pathfm.layouts.foreign import refused
from pathfm.licences import Licence, warn_of_restrictions
from pathfm.privacy import private_run
from pathfm.progress import logger, progress
from pathfm.reading import opened
from pathfm.scale import require_sane_mpp
from pathfm.slide import slide_digest
from pathfm.sources import find_slides

if TYPE_CHECKING:
    from pathfm.privacy import Pseudonyms
    from pathfm.sources import SlideSource

FAILURES = "failures.csv"

_SCALE_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What an import did.

    Attributes:
        folders: where the files are; one folder a recipe.
        done: ids of the slides that were imported.
        skipped: ids of those that were there already, the same.
    """

    folders: tuple[Path, ...]
    done: tuple[str, ...]
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        """A line for the terminal."""
        where = " and ".join(map(str, self.folders))
        return f"{len(self.done)} slides imported, {len(self.skipped)} were already; the embeddings are in {where}"


def import_embeddings(
    features: Path,
    out: Path,
    layout: LayoutName = "auto",
    backbone: str | None = None,
    mpp: float | None = None,
    tile_px: int | None = None,
    tile_mpp: float | None = None,
    stride_px: int | None = None,
    coords: Path | None = None,
    cohort: Path | None = None,
    slides: list[Path] | None = None,
    limits: Limits = Limits(memory_gib=24.0),
    pseudonymise: Path | None = None,
) -> ImportResult:
    """Imports tile features of another tool into `<out>/<backbone>-<recipe8>/<slide_id>.h5`, contiguous and sealed.

    What a file says and what is said here must agree; what neither says is asked for. Rows keep their order, and files of
    one row a chunk are repacked. What nobody proved is named in the recipe. Files that cannot be imported
    are listed in `<out>/failures.csv`; the others go on. A file that is there already, the same, is left alone.

    Args:
        features: the folder with the other tool's features, or one file (.h5, .pt).
        out: the folder for the embeddings.
        layout: whose they are; told by what the files hold where not given. plain says that coords are top-left corners in
            level-0 pixels.
        backbone: the name of the backbone, of pathfm backbones or any other.
        mpp: microns per pixel of level 0, of all slides.
        tile_px: width of a tile in pixels, as it was cut.
        tile_mpp: microns per pixel of a tile.
        stride_px: pixels from one tile to the next, where tiles do not just touch.
        coords: a folder with <slide_id>.h5, <slide_id>_patches.h5 or <slide_id>.npy, where the features come without
            coordinates or without the size of a tile.
        cohort: a cohort table whose column mpp holds microns per pixel of level 0, slide by slide.
        slides: the slides themselves (folders, files or cohort tables), to take mpp, size and digest from.
        limits: what a process that reads a file may take.
        pseudonymise: a key file, made where it is missing; ids of slides become keyed hashes in all that is written and
            said.

    Raises:
        InputError: something that has to be said is missing; the message names the flags.
        SlidesFailedError: at the very end, when some files could not be imported.
        DiskFullError: no space; what was finished is kept.
    """
    stated = Stated(backbone=backbone, tile_px=tile_px, tile_mpp=tile_mpp, stride_px=stride_px)
    with private_run(pseudonymise, out, features=features, coords=coords, cohort=cohort, slides=slides) as names:
        files = find_foreign(features)
        known = _KnownSlides.of(mpp, cohort, slides, names, limits)
        run = _Run(out, layout, stated, coords, known, names, limits)
        later = [pair for pair in progress(files.items(), "import") if not run.take(*pair, last=False)]
        for original_id, path in later:  # they have no tiles and do not say how wide an embedding is: the others do
            run.take(original_id, path, last=True)
        _say_scales(run.scales)
        if run.failed:
            raise SlidesFailedError(len(run.failed), len(files), out / FAILURES)
        return ImportResult(folders=tuple(sorted(run.folders)), done=tuple(run.done), skipped=tuple(run.skipped))


def export_embeddings(embeddings: Path, out: Path, format: Literal["trident", "clam", "stamp"]) -> str:
    """Writes embeddings as another tool reads them: float32 for trident and clam, float16 and microns for stamp.

    Nothing that is there and differs is overwritten. A slide without tiles has no file in clam and stamp. No such file
    can say a licence, so one that restricts is logged.

    Args:
        embeddings: the folder that extract or import wrote.
        out: the folder to write to.
        format: whose layout.

    Raises:
        InputError: a file is there already and holds something else.
        EmbeddingsError: embeddings that cannot be used.
        DiskFullError: no space.
    """
    files = find_embeddings(embeddings)
    if out.resolve() in {folder.resolve() for path in files.values() for folder in (path.parent, path.parent.parent)}:
        message = f"--out {out} holds the embeddings; pass another folder, or nobody could tell them apart"
        raise InputError(message)
    written, licences = 0, set[Licence]()
    for slide_id, path in progress(files.items(), "export"):
        one = read_embeddings(path)
        if one.slide_id != slide_id:  # it names the files that are written
            message = f"{path} holds the embeddings of slide {one.slide_id!r}; it was renamed, give it its name back"
            raise EmbeddingsStaleError(path, message)
        if not len(one.features) and format != "trident":
            logger.warning("%s has no tiles, and %s has no file for such a slide; it is left out", slide_id, format)
            continue
        for target, data in EXPORTS[format](one, out).items():
            if target.exists() and target.read_bytes() != data:
                message = f"{target} is there already and holds something else; pass another folder to --out"
                raise InputError(message)
            write_atomically(target, data)
        written += 1
        licences.update(one.licences)
    warn_of_restrictions(sorted(licences, key=str))
    return f"{written} slides written to {out} as {format} reads them"


@dataclass
class _Run:
    """An import under way."""

    out: Path
    layout: LayoutName
    stated: Stated
    coords: Path | None
    known: _KnownSlides
    names: Pseudonyms | None
    limits: Limits
    dim: int | None = None
    folders: set[Path] = field(default_factory=set)
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    scales: list[tuple[float, float]] = field(default_factory=list)

    def take(self, original_id: str, path: Path, *, last: bool) -> bool:
        """Imports one file or lists it as failed; False where it has to wait for the others."""
        slide_id = self._named(original_id, path)
        try:
            beside = _coords_file(self.coords, original_id)
            wanted = (path, self.layout, self.stated.backbone, beside)
            foreign = isolated(path, self.limits.for_whole_slide(), 1, read_foreign, *wanted).result()
            if foreign.features.shape == (0, 0) and self.dim is None:
                if not last:
                    return False
                raise refused(path, "has no tiles and does not say how wide an embedding is; import it with others")
            facts = self.known.facts(slide_id, path)
            self._write(imported_embeddings(slide_id, path, foreign, self.stated, facts, self.dim))
        except SlideError as error:
            self._fail(slide_id, error)
        except InputError as error:  # the first file asks for what the others lack too; later it is this one's own lack
            if not self.done and not self.skipped:
                raise
            self._fail(slide_id, refused(path, f"does not say what the others say: {error}"))
        write_failures(self.out / FAILURES, self.failed)
        return True

    def _fail(self, slide_id: str, error: SlideError) -> None:
        logger.error("%s: failed, %s: %s", slide_id, error.reason, error.message)
        self.failed.append(Failure.of(slide_id, error))

    def _named(self, original_id: str, path: Path) -> str:
        """What the slide is called from here on."""
        if self.names is None:
            return original_id
        slide_id = self.names.slide(original_id)
        self.names.scrubber.learn_file(path, slide_id)
        self.names.scrubber.learn(original_id, slide_id)
        return slide_id

    def _write(self, one: Embeddings) -> None:
        folder = self.out / embeddings_folder_name(one.recipe)
        if folder not in self.folders:
            _say_what_travels(one)
        self.folders.add(folder)
        self.dim = one.features.shape[1]
        self.scales.append((one.tile_extent_px0 * one.mpp / one.recipe["tiles"]["size_px"], one.recipe["tiles"]["mpp"]))
        path = folder / f"{one.slide_id}.h5"
        same = _is_there(path, one)
        if not same:
            write_embeddings(path, one)
        (self.skipped if same else self.done).append(one.slide_id)


@dataclass(frozen=True)
class _KnownSlides:
    """What the user says of each slide: a flag for all, a table, or the slides themselves."""

    mpp: float | None
    table: dict[str, float] | None
    sources: dict[str, SlideSource] | None
    limits: Limits

    @classmethod
    def of(
        cls, mpp: float | None, cohort: Path | None, slides: list[Path] | None, names: Pseudonyms | None, limits: Limits
    ) -> _KnownSlides:
        """Reads the table and finds the slides, without opening one."""
        if mpp is not None:
            require_sane_mpp(mpp, f"--mpp {mpp:g}")
        table = sources = None
        if cohort is not None:
            rows = read_cohort(cohort, names).table
            table = dict(zip(rows["slide_id"], map(float, rows["mpp"]), strict=True))
        if slides is not None:
            sources = {source.slide_id: source for source in find_slides(slides, mpp, names)}
        return cls(mpp, table, sources, limits)

    def facts(self, slide_id: str, path: Path) -> SlideFacts:
        """What is known of one slide; the slide itself counts before the table, and the table before the flag.

        Raises:
            SlideError: the slide is not among those given, cannot be opened, or its scale is not clear.
        """
        if self.sources is not None:
            if slide_id not in self.sources:
                raise refused(path, f"is of slide {slide_id}, which --slides does not hold; add it")
            source = self.sources[slide_id]
            return isolated(source.path, self.limits.for_whole_slide(), 1, _facts_of, source).result()
        of_table = math.nan if self.table is None else self.table.get(slide_id, math.nan)
        if not math.isnan(of_table):
            return SlideFacts(mpp=of_table, mpp_source="cohort")
        if self.mpp is None and self.table is not None:
            message = (
                f"{path}: the cohort states no mpp of slide {slide_id}; fill its column mpp, or pass --mpp for the rest"
            )
            raise MppError(path, "no mpp", message)
        return SlideFacts(mpp=self.mpp)


def _facts_of(source: SlideSource) -> SlideFacts:
    with opened(source) as slide:
        digest = slide_digest(source.path)
        return SlideFacts(mpp=slide.mpp, mpp_source=slide.mpp_source, size_px0=slide.size_px0, digest=digest)


def _coords_file(folder: Path | None, slide_id: str) -> Path | None:
    """The file with a slide's coordinates."""
    if folder is None:
        return None
    if not folder.is_dir():
        message = f"no folder at {folder}; pass --coords a folder with <slide_id>.h5 or <slide_id>.npy"
        raise InputError(message)
    names = (f"{slide_id}.h5", f"{slide_id}_patches.h5", f"{slide_id}.npy", f"{slide_id}.index.npz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _is_there(path: Path, one: Embeddings) -> bool:
    """Whether a file holds just these embeddings; one that is damaged is written again."""
    try:
        found = read_embeddings(path)
    except (FileNotFoundError, EmbeddingsDamagedError):
        return False
    return all(_equal(getattr(found, f.name), getattr(one, f.name)) for f in fields(one) if f.name != "versions")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return bool(a == b)


def _say_what_travels(one: Embeddings) -> None:
    warn_of_restrictions(one.licences)
    imported = one.recipe["imported"]
    logger.info("read as %s; not verified: %s", imported["tool"], ", ".join(imported["unverified"]))


def _say_scales(scales: list[tuple[float, float]]) -> None:
    """One line where the tiles are not as fine as stated, as with tools that bin magnifications."""
    off = [here for here, stated in scales if abs(here / stated - 1) > _SCALE_TOLERANCE]
    if off:
        logger.warning(
            "%d of %d slides have tiles of %.3g to %.3g microns per pixel, more than 5 %% off the %g that is stated"
            " (binned magnifications?)",
            len(off),
            len(scales),
            min(off),
            max(off),
            scales[0][1],
        )
