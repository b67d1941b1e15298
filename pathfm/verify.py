"""The proof of a cache: every file complete, its digests right, its recipe the folder's."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the command line reads the annotation

from pathfm.embeddings import embeddings_folder_name, find_embeddings, read_embeddings
from pathfm.errors import EmbeddingsDamagedError, EmbeddingsError
from pathfm.progress import logger, progress


def verify(embeddings: Path) -> str:
    """Proves every embeddings file of a folder and says how many there are.

    Args:
        embeddings: the folder that extract wrote, or one recipe folder in it.

    Raises:
        EmbeddingsDamagedError: names the files that are damaged, incomplete or of another recipe than their folder.
    """
    files = find_embeddings(embeddings)
    wrong: list[str] = []
    for path in progress(files.values(), "verify", unit="file"):
        problem = _problem(path)
        if problem:
            logger.error(problem)
            wrong.append(path.name)
    if wrong:
        names = ", ".join(wrong[:10]) + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        message = f"{len(wrong)} of {len(files)} files in {embeddings} are not right: {names}; delete them and run pathfm extract again"
        raise EmbeddingsDamagedError(embeddings, message)
    return f"{len(files)} files verified: complete, digests right, one recipe"


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
