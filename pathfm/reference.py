"""What a model is to remember of the slides that it was made from, one row a slide: for shift, and to find copies of them.

It lies beside the weights as `reference.safetensors`, bound to `model.json` by its digest. A model without it works; what
needs it is then not available.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pathfm.bags import BagDataset
from pathfm.files import sha256_file, write_atomically
from pathfm.joined import facts_of, read_parts
from pathfm.modelheads import damaged
from pathfm.patients import slides_of_bag
from pathfm.progress import logger, progress
from pathfm.tables import first_line, misfit
from pathfm.thumbnailhash import is_thumbnail_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.joined import Files
    from pathfm.labelled import LabelledSlides

REFERENCE = "reference.safetensors"
_NAMES = {"slide_ids": [str], "patient_ids": [str], "thumbnail_hashes": [str]}
_DTYPES = {"embeddings": "F32", "mean_rgb": "F32", "mpp": "F64", "names": "U8"}


@dataclass(frozen=True, eq=False)
class Reference:
    """Slides with tissue, in the order of their rows.

    Attributes:
        slide_ids: n of them, all different.
        patient_ids: of each slide, "" where nobody said.
        embeddings: float32 (n, dim), mean of the slide's tiles, of several caches side by side.
        mean_rgb: float32 (n, 3), mean colour of the tissue tiles in 0-255, NaN where not known.
        mpp: float64 (n,), microns per pixel of level 0.
        thumbnail_hashes: of each slide 16 hex digits, "" where not known.
    """

    slide_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    embeddings: NDArray[np.float32]
    mean_rgb: NDArray[np.float32]
    mpp: NDArray[np.float64]
    thumbnail_hashes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.slide_ids)

    @property
    def patients(self) -> tuple[str, ...]:
        """Of each slide whose it is; one whose patient is not known is a patient of its own."""
        pairs = zip(self.slide_ids, self.patient_ids, strict=True)
        return tuple(f"patient {patient}" if patient else f"slide {slide}" for slide, patient in pairs)

    def at(self, rows: Sequence[int] | NDArray[np.int64]) -> Reference:
        """Some of the slides, in the order of these rows."""
        places = np.asarray(rows, dtype=np.int64)
        slide_ids, patient_ids, hashes = (
            tuple(of[place] for place in places) for of in (self.slide_ids, self.patient_ids, self.thumbnail_hashes)
        )
        return Reference(
            slide_ids, patient_ids, self.embeddings[places], self.mean_rgb[places], self.mpp[places], hashes
        )


def reference_of(slides: LabelledSlides, chosen: pd.Series[bool]) -> Reference:
    """The slides of those rows of a cohort that are chosen and usable; of a patient's bag each slide.

    Args:
        slides: the cohort with its embeddings, which training has read already: the means are those of its standardiser.
        chosen: of each row of `slides.table`, such as those that a model is trained on.

    Raises:
        EmbeddingsError: a file that is damaged.
    """
    rows = slides.rows(chosen)
    if slides.unit == "patient":
        return facts_of_slides(*_files_and_patients(slides, rows))
    bags = slides.bags()
    return _gathered(*_files_and_patients(slides, rows), [_mean(bags, row) for row in rows])


def facts_of_slides(files: Mapping[str, Files | None], patients: Mapping[str, str]) -> Reference:
    """New slides in the form of a reference, to be held against one; those without tiles are left out.

    Args:
        files: of each slide its embeddings files, one a cache, in the order of the model's; None where there are none.
        patients: slide_id to patient; "" or absent where not known.

    Raises:
        EmbeddingsError: a file that is damaged, or files of a slide that are not of the same tiles.
    """
    found = {name: one for name, one in files.items() if one and len(read_parts(one)[0].features)}
    bags = BagDataset([(one,) for one in found.values()])
    return _gathered(found, patients, [_mean(bags, row) for row in progress(range(len(bags)), "mean embeddings")])


def join(references: Sequence[Reference]) -> Reference:
    """The slides of several, such as of the members of an ensemble; each slide once, as the first that has it says.

    Raises:
        ValueError: none, or embeddings of different widths.
    """
    whole = Reference(
        tuple(one for part in references for one in part.slide_ids),
        tuple(one for part in references for one in part.patient_ids),
        np.concatenate([part.embeddings for part in references]),
        np.concatenate([part.mean_rgb for part in references]),
        np.concatenate([part.mpp for part in references]),
        tuple(one for part in references for one in part.thumbnail_hashes),
    )
    first = {name: place for place, name in reversed(list(enumerate(whole.slide_ids)))}
    return whole.at(sorted(first.values()))


def write_reference(folder: Path, reference: Reference) -> str:
    """Writes `reference.safetensors`; equal references give equal bytes.

    Returns:
        Hex sha256 of the file, for the key `reference_sha256` of model.json.

    Raises:
        DiskFullError: no space; a model that was there before is then either whole or refused.
    """
    names = {key: list(getattr(reference, key)) for key in _NAMES}
    data = save(
        {
            "embeddings": np.ascontiguousarray(reference.embeddings, np.float32),
            "mean_rgb": np.ascontiguousarray(reference.mean_rgb, np.float32),
            "mpp": np.ascontiguousarray(reference.mpp, np.float64),
            # not as metadata of the file, whose keys safetensors writes in any order
            "names": np.frombuffer(json.dumps(names, ensure_ascii=True).encode(), np.uint8),
        }
    )
    write_atomically(folder / REFERENCE, data)
    return hashlib.sha256(data).hexdigest()


def read_reference(folder: Path, sha256: str | None) -> Reference | None:
    """Reads the reference of a model directory that may come from anywhere; sizes are checked before allocation.

    Args:
        folder: the model directory.
        sha256: what the key `reference_sha256` of its model.json says; None where the model has none.

    Returns:
        None where the model has none, and where the file was taken out, as before a model is given away: that is logged.

    Raises:
        ModelError: not the file that belongs to the model, or damaged.
    """
    path = folder / REFERENCE
    if sha256 is None:
        return None
    if not path.is_file():
        logger.warning("%s is not there: shift and copies of the slides of the training are not looked for", path)
        return None
    if sha256_file(path) != sha256:
        raise damaged(path, "does not match key 'reference_sha256' of model.json")
    try:
        with safe_open(path, framework="numpy") as file:
            _require_shapes(path, file)
            tensors = {name: file.get_tensor(name) for name in _DTYPES}
        names = json.loads(tensors["names"].tobytes().decode())
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"cannot be read ({first_line(error)})") from error
    return _checked(path, names, tensors)


def _files_and_patients(slides: LabelledSlides, rows: Sequence[int]) -> tuple[dict[str, Files], dict[str, str]]:
    """Of each slide of some bags its files and its patient."""
    files: dict[str, Files] = {}
    patients: dict[str, str] = {}
    for bag in slides.usable.iloc[list(rows)].to_dict("records"):
        names = slides_of_bag(bag["slide_id"], slides.unit)
        files |= zip(names, bag["files"], strict=True)
        patients |= dict.fromkeys(names, bag["patient_id"])
    return files, patients


def _gathered(
    files: Mapping[str, Files], patients: Mapping[str, str], means: Sequence[NDArray[np.float32]]
) -> Reference:
    """The reference of slides whose mean embeddings are known; their files are open one at a time."""
    known = []
    for one in files.values():
        facts = facts_of(read_parts(one))
        known.append((facts.mean_rgb, facts.mpp, facts.thumbnail_hash))
    n, dim = len(known), len(means[0]) if means else 0
    return Reference(
        tuple(files),
        tuple(patients.get(name, "") for name in files),
        np.array(means, dtype=np.float32).reshape(n, dim),
        np.array([colour for colour, _, _ in known], dtype=np.float32).reshape(n, 3),
        np.array([mpp for _, mpp, _ in known], dtype=np.float64),
        tuple(thumbnail for _, _, thumbnail in known),
    )


def _mean(bags: BagDataset, row: int) -> NDArray[np.float32]:
    return np.asarray(bags.moments(row).mean.cpu().numpy(), dtype=np.float32)


def _require_shapes(path: Path, file: Any) -> None:
    """What the header claims; that the claims fit the size of the file safetensors has proven on opening it."""
    if set(file.keys()) != set(_DTYPES):
        raise damaged(path, f"holds other tensors than {', '.join(_DTYPES)}")
    slices = {name: file.get_slice(name) for name in _DTYPES}
    wrong = [name for name, dtype in _DTYPES.items() if slices[name].get_dtype() != dtype]
    shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
    n, dim = shapes["embeddings"] if len(shapes["embeddings"]) == 2 else (0, 0)
    wanted = {"embeddings": (n, dim), "mean_rgb": (n, 3), "mpp": (n,), "names": shapes["names"][:1]}
    wrong += [name for name, shape in wanted.items() if shapes[name] != shape]
    if wrong or n < 1 or dim < 1:
        raise damaged(path, f"tensor {(wrong or ['embeddings'])[0]!r} has a type or a shape that a reference never has")


def _checked(path: Path, names: Any, tensors: Mapping[str, NDArray[Any]]) -> Reference:
    what = misfit(names, _NAMES)
    if what:
        raise damaged(path, what)
    n = len(tensors["mpp"])
    if any(len(names[key]) != n for key in _NAMES) or len(set(names["slide_ids"])) != n:
        raise damaged(path, f"does not name {n} different slides")
    if not all(map(is_thumbnail_hash, names["thumbnail_hashes"])):
        raise damaged(path, "key 'thumbnail_hashes' holds something else than 16 hex digits")
    colours = tensors["mean_rgb"]
    known = ~np.isnan(colours).any(axis=1)
    sound = {
        "embeddings": np.isfinite(tensors["embeddings"]).all(),
        "mean_rgb": ((colours[known] >= 0) & (colours[known] <= 255)).all(),
        "mpp": (np.isfinite(tensors["mpp"]) & (tensors["mpp"] > 0)).all(),
    }
    wrong = [name for name, is_sound in sound.items() if not is_sound]
    if wrong:
        raise damaged(path, f"tensor {wrong[0]!r} holds a number that cannot be")
    texts = {key: tuple(names[key]) for key in _NAMES}
    return Reference(**texts, embeddings=tensors["embeddings"], mean_rgb=colours, mpp=tensors["mpp"])
