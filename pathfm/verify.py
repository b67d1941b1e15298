"""The proof of a cache: every file complete and its digests right; on request, still what its slide gives."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING

from pathfm.embeddings import embeddings_folder_name, find_embeddings, read_embeddings
from pathfm.errors import EmbeddingsDamagedError, EmbeddingsError, InputError, SlideError
from pathfm.guarded import damaged
from pathfm.isolation import Limits, cancelled_after, isolated, usual_workers
from pathfm.privacy import private_run
from pathfm.progress import logger, progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from pathfm.privacy import Pseudonyms
    from pathfm.recheck import Recheck
    from pathfm.sources import SlideSource

    Check = Callable[[Path, SlideSource], Recheck]

_LIMITS = Limits(deadline_s=600.0, memory_gib=16.0)  # a large file on a slow disk; its rows are mapped


def verify(
    embeddings: Path,
    slides: list[Path] | None = None,
    deep: int = 0,
    outlines: Path | None = None,
    mpp_override: float | None = None,
    device: str = "auto",
    backbone: str | None = None,
    limits: Limits = Limits(),
    pseudonymise: Path | None = None,
) -> str:
    """Proves every embeddings file of a folder and says how many there are.

    Each file is read in a process of its own, so one that crashes its reader is named like any other. With `slides`, each
    file is also held against its slide: whether that has changed since. With `deep`, the tissue of each slide is found
    again, and that many of its tiles are read and embedded again.

    Args:
        embeddings: the folder that extract wrote, or one recipe folder in it.
        slides: the slides that they were made from: folders, slide files or cohort tables.
        deep: how many tiles of each slide are embedded again; needs the slides and the backbone.
        outlines: the folder of outlines that was passed to extract.
        mpp_override: the override that was passed to extract.
        device: where the backbone runs.
        backbone: where the backbone lies here, if it is one from a folder: local-dir:/folder.
        limits: what a process that reads a slide may take.
        pseudonymise: the key file that extract was given, to find the slides of the files again.

    Raises:
        EmbeddingsDamagedError: names the files that are damaged, incomplete, of another recipe than their folder, or not
            what their slides give.
        InputError: deep without slides, or slides that cannot be used.
    """
    if deep < 0 or (deep and not slides):
        message = f"--deep is {deep}; give a number of tiles, and the slides with --slides"
        raise InputError(message)
    files = find_embeddings(embeddings)
    wrong = _wrong_files(files)
    said = f"{len(files)} files verified: complete, digests right, one recipe"
    if slides:
        whole = {slide_id: path for slide_id, path in files.items() if path not in wrong}
        check = (
            _deep_check(whole, deep, outlines, device, backbone, limits) if deep and whole else _digest_check(limits)
        )
        with private_run(pseudonymise, None, [embeddings], slides=slides, outlines=outlines) as pseudonyms:
            against = _against_slides(whole, slides, mpp_override, check, pseudonyms)
        wrong += [path for path, found in against.items() if found.problem]
        compared = sum(one.compared for one in against.values())
        said += f"; {compared} held against their slides" + (_deep_words(against) if deep else "")
        said += f"; {len(against) - compared} do not say which slide they are of" if compared < len(against) else ""
    _mention_unfinished(files)
    if wrong:
        names = ", ".join(path.name for path in wrong[:10]) + (f" and {len(wrong) - 10} more" if wrong[10:] else "")
        message = (
            f"{len(wrong)} of {len(files)} files in {embeddings} are not right: {names}; the lines above say what to do"
        )
        raise EmbeddingsDamagedError(embeddings, message)
    return said


def _wrong_files(files: dict[str, Path]) -> list[Path]:
    """The files that are not right by themselves, each with a line in the log."""
    calls = {path: isolated(path, _LIMITS, usual_workers(), _problem, path) for path in files.values()}
    wrong = []
    with cancelled_after(calls.values()):
        for path, call in progress(calls.items(), "verify", unit="file"):
            try:
                problem = call.result()
            except SlideError as error:  # nothing went wrong with a slide: it is the word for what a reader did
                problem = damaged(path, f"cannot be read ({error.reason} of its reader)").message
            if problem:
                logger.error(problem)
                wrong.append(path)
    return wrong


def _problem(path: Path) -> str | None:
    """What is wrong with a file, in one line; None when nothing is."""
    try:
        found = read_embeddings(path)
    except EmbeddingsError as error:
        return error.message
    if found.slide_id != path.stem:
        return f"{path} holds the embeddings of slide {found.slide_id!r}; it was renamed, give it its name back"
    if embeddings_folder_name(found.recipe) != path.parent.name:
        return f"{path} was made with recipe {found.recipe_sha256[:8]}, its folder is {path.parent.name}; move or delete it"
    return None


def _against_slides(
    files: dict[str, Path],
    slides: list[Path],
    mpp_override: float | None,
    check: Check,
    pseudonyms: Pseudonyms | None,
) -> dict[Path, Recheck]:
    """What became of each file that has its slide; those without, and slides without a file, are mentioned."""
    from pathfm.sources import find_slides  # only here: files are proven on a machine without OpenSlide, too

    sources = {source.slide_id: source for source in find_slides(slides, mpp_override, pseudonyms)}
    for names, what in (
        (files.keys() - sources.keys(), "files have no slide among those given and were not held against one"),
        (sources.keys() - files.keys(), "slides have no file that is right"),
    ):
        if names:
            logger.warning("%d %s: %s", len(names), what, ", ".join(sorted(names)[:10]))
    found: dict[Path, Recheck] = {}
    for slide_id in progress(sorted(files.keys() & sources.keys()), "hold against slides"):
        found[files[slide_id]] = one = check(files[slide_id], sources[slide_id])
        if one.problem:
            logger.error(one.problem)
    return found


def _digest_check(limits: Limits) -> Check:
    from pathfm.recheck import recheck_digest

    return lambda path, source: recheck_digest(path, source, limits)


def _deep_check(
    files: dict[str, Path], count: int, outlines: Path | None, device: str, backbone: str | None, limits: Limits
) -> Check:
    from pathfm.extract import plan_like
    from pathfm.recheck import recheck_tiles

    recipe = read_embeddings(next(iter(files.values())), "shape").recipe
    work = plan_like(recipe, outlines, device, backbone, limits, allow_upsampling=True)
    return lambda path, source: recheck_tiles(path, source, work, count)


def _deep_words(against: dict[Path, Recheck]) -> str:
    n_tiles = sum(one.n_tiles for one in against.values())
    distance = max((one.distance for one in against.values()), default=0.0)
    return f", {n_tiles} of their tiles embedded again (largest relative distance {distance:.2g})"


def _mention_unfinished(files: dict[str, Path]) -> None:
    left = sorted({part for path in files.values() for part in path.parent.glob("*.part")})
    if left:
        names = ", ".join(path.name for path in left[:10])
        logger.warning("%d slides are unfinished: %s; run the same pathfm extract again", len(left), names)
