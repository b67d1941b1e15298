"""Files as somebody makes them who means harm: they run code when they are unpickled, or hold what lies in other files."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = b"zq-secret-57ab06-of-another-user-"
"""As float16 these bytes are finite numbers, so nothing but a guard keeps them from being read as features."""
N, DIM = 30, 8


@dataclass(frozen=True)
class Payload:
    """Makes a file when it is unpickled."""

    canary: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.canary)!r}, 'w').close()",)


def pickles(canary: Path) -> dict[str, bytes]:
    """One payload in the formats that loaders of weights know."""
    inside = {"state_dict": {"weight": torch.zeros(3)}, "hyper_parameters": Payload(canary)}
    objects = np.array([Payload(canary)], dtype=object)
    return {
        "pickle": pickle.dumps(Payload(canary)),
        "old pickle": pickle.dumps(Payload(canary), protocol=0),
        "torch": _written(lambda file: torch.save(inside, file)),
        "old torch": _written(lambda file: torch.save(inside, file, _use_new_zipfile_serialization=False)),
        "npy": _written(lambda file: np.save(file, objects, allow_pickle=True)),
        "npz": _written(lambda file: np.savez(file, arr_0=objects)),
    }


def write_secrets(folder: Path) -> tuple[Path, Path]:
    """A plain file and an HDF5 file with something to steal: the bytes of features and coords for `N` tiles."""
    folder.mkdir()
    plain, h5 = folder / "secret", folder / "secret.h5"
    data = (SECRET * 4096)[: 1 << 16]
    plain.write_bytes(data)
    with h5py.File(h5, "w") as file:
        file["features"] = np.frombuffer(data, "<f2", N * DIM).reshape(N, DIM)
        file["coords"] = np.frombuffer(data, "<i4", N * 2).reshape(N, 2)
    return plain, h5


def forge(path: Path, how: str, secrets: tuple[Path, Path]) -> None:
    """Turns a good file into a hostile one, in the newest format; who wants it sealed seals it."""
    good = path.rename(path.with_suffix(".good"))
    with h5py.File(good) as source, h5py.File(path, "w", libver="latest", track_order=False) as file:
        for name in source:
            source.copy(name, file)
        for name, value in source.attrs.items():
            file.attrs[name] = value
        FORGERIES[how](file, *secrets)
    good.unlink()


def _replaced(file: h5py.File, name: str, **options: Any) -> None:
    del file[name]
    file.create_dataset(name, **options)


def _linked(file: h5py.File, name: str, link: Any) -> None:
    del file[name]
    file[name] = link


def _external(name: str, dtype: str, width: int) -> Callable[[h5py.File, Path, Path], None]:
    def forge(file: h5py.File, plain: Path, h5: Path) -> None:
        size = N * width * np.dtype(dtype).itemsize
        _replaced(file, name, shape=(N, width), dtype=dtype, external=[(str(plain), 0, size)])

    return forge


def _virtual(name: str, dtype: str, width: int) -> Callable[[h5py.File, Path, Path], None]:
    def forge(file: h5py.File, plain: Path, h5: Path) -> None:
        layout = h5py.VirtualLayout(shape=(N, width), dtype=dtype)
        layout[:] = h5py.VirtualSource(str(h5), name, shape=(N, width))
        del file[name]
        file.create_virtual_dataset(name, layout)

    return forge


def _unknown_filter(file: h5py.File, plain: Path, h5: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((N, DIM))
    plist.set_filter(32123, h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
    del file["features"]
    space = h5py.h5s.create_simple((N, DIM))
    h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F16LE, space, plist)


def _bomb(file: h5py.File, plain: Path, h5: Path) -> None:
    _replaced(file, "features", shape=(1 << 24, 64), dtype="<f2", chunks=(1 << 20, 64), compression="gzip")
    file["features"][: 1 << 20] = 0


def _huge_attribute(file: h5py.File, plain: Path, h5: Path) -> None:
    file.attrs["recipe"] = np.zeros(8 << 20, dtype=np.uint8)


def _many_attributes(file: h5py.File, plain: Path, h5: Path) -> None:
    for number in range(2000):
        file.attrs[f"a{number}"] = number


def _reference(file: h5py.File, plain: Path, h5: Path) -> None:
    reference = file["coords"].ref
    _replaced(file, "features", shape=(N, DIM), dtype=h5py.ref_dtype)
    file["features"][:] = reference


def _loop(file: h5py.File, plain: Path, h5: Path) -> None:
    del file["features"]
    group = file.create_group("features")
    group["features"] = group


FORGERIES: dict[str, Callable[[h5py.File, Path, Path], None]] = {
    "external features": _external("features", "<f2", DIM),
    "external coords": _external("coords", "<i4", 2),
    "virtual features": _virtual("features", "<f2", DIM),
    "virtual coords": _virtual("coords", "<i4", 2),
    "external link": lambda file, _, h5: _linked(file, "features", h5py.ExternalLink(str(h5), "features")),
    "soft link": lambda file, *_: _linked(file, "features", h5py.SoftLink("/coords")),
    "dangling link": lambda file, *_: _linked(file, "features", h5py.SoftLink("/nowhere")),
    "unknown filter": _unknown_filter,
    "compression bomb": _bomb,
    "8 TB": lambda file, *_: _replaced(file, "features", shape=(1 << 39, DIM), dtype="<f2"),
    "wide and empty": lambda file, *_: _replaced(file, "features", shape=(N, 0), dtype="<f2"),
    "vlen": lambda file, *_: _replaced(file, "features", shape=(N, DIM), dtype=h5py.vlen_dtype(np.float16)),
    "strings": lambda file, *_: _replaced(file, "features", shape=(N, DIM), dtype=h5py.string_dtype()),
    "references": _reference,
    "compound": lambda file, *_: _replaced(file, "features", shape=(N, DIM), dtype=[("a", "<f2")]),
    "complex": lambda file, *_: _replaced(file, "features", shape=(N, DIM), dtype="<c8"),
    "one dimension": lambda file, *_: _replaced(file, "features", shape=(N * DIM,), dtype="<f2"),
    "three dimensions": lambda file, *_: _replaced(file, "features", shape=(N, DIM, 1), dtype="<f2"),
    "group": _loop,
    "huge attribute": _huge_attribute,
    "many attributes": _many_attributes,
    "attribute of objects": lambda file, *_: file.attrs.create("mpp", [["a", "b"]], dtype=h5py.string_dtype()),
    "empty attribute": lambda file, *_: file.attrs.create("mpp", h5py.Empty("f")),
    "deep attribute": lambda file, *_: file.attrs.create("recipe", "[" * 20000 + "]" * 20000),
    "recipe of another type": lambda file, *_: file.attrs.create("recipe", json.dumps([1])),
}


def _written(write: Callable[[Any], None]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()
