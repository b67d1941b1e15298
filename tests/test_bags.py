from __future__ import annotations

import os
import pickle
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import EmbeddingsCohort, planted_embeddings
from torch.utils.data import DataLoader

from pathfm.bags import Bag, BagDataset, SampledBags, collate
from pathfm.cohort import Cohort
from pathfm.embeddings import features_sha256, write_embeddings
from pathfm.errors import EmbeddingsDamagedError, EmbeddingsError
from pathfm.proven import prove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _files(folder: Path, lengths: list[int]) -> list[Path]:
    paths = [folder / f"s{i}.h5" for i in range(len(lengths))]
    for path, n in zip(paths, lengths, strict=True):
        write_embeddings(path, planted_embeddings(path.stem, 1, n=n))
    return paths


def _column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_a_bag_is_the_features_of_its_file_in_float32(tmp_path: Path) -> None:
    (path,) = _files(tmp_path, [30])
    features, truth, covariates, row = BagDataset([path], _column(1))[0]
    assert features.dtype == torch.float32
    assert (truth.tolist(), covariates, row) == ([1], None, 0)
    np.testing.assert_array_equal(features.numpy(), planted_embeddings("s0", 1).features.astype(np.float32))


def test_every_finite_float16_becomes_the_same_number_in_float32(tmp_path: Path) -> None:
    """More rows than are turned at a time, and as many in the last block as in no other."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    features = np.resize(bits[np.isfinite(bits)], (700, 91))
    whole = replace(planted_embeddings("s0", 0, n=700), features=features)
    write_embeddings(tmp_path / "s0.h5", whole)
    found = BagDataset([tmp_path / "s0.h5"])[0].features.numpy()
    np.testing.assert_array_equal(found.view(np.uint32), features.astype(np.float32).view(np.uint32))


def test_a_loader_packs_bags_of_any_length_in_order(tmp_path: Path) -> None:
    dataset = BagDataset(
        _files(tmp_path, [3, 0, 1, 7]), _column(0, 1, 1, 0), np.arange(8, dtype=np.float32).reshape(4, 2)
    )
    first, second = DataLoader(dataset, batch_size=3, collate_fn=collate)
    assert first.bags.lengths.tolist() == [3, 0, 1]
    assert first.truth.tolist() == [[0], [1], [1]]
    assert first.rows.tolist() == [0, 1, 2]
    assert first.bags.covariates.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert second.rows.tolist() == [3]
    assert torch.equal(second.bags.features, dataset[3].features)


def test_a_truth_or_covariates_that_do_not_fit_the_bags_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 bags but 2 rows of truth"):
        BagDataset(_files(tmp_path, [2]), _column(0, 1))
    with pytest.raises(ValueError, match="1 bags but 2 rows of covariates"):
        BagDataset(_files(tmp_path, [2]), None, _column(0, 1))


def test_the_bag_of_a_patient_has_its_slides_one_below_the_other_and_each_of_their_caches_side_by_side(
    tmp_path: Path,
) -> None:
    one, two = _files(tmp_path, [600, 3])
    dataset = BagDataset([((one, one), (two, two))])
    expected = torch.cat([BagDataset([path])[0].features for path in (one, two)])
    assert torch.equal(dataset[0].features, torch.cat([expected, expected], dim=1))
    assert dataset.length(0) == 603
    assert dataset.dim == 16
    assert dataset.size_bytes == 603 * 16 * 4
    rows = np.array([0, 4, 599, 600, 602])
    assert torch.equal(dataset.some(0, rows), dataset[0].features[rows])


def test_drawn_bags_have_no_more_instances_than_asked_other_ones_each_epoch_and_the_same_wherever_they_lie(
    tmp_path: Path,
) -> None:
    dataset = BagDataset(_files(tmp_path, [50, 4]))
    drawn = SampledBags(dataset, 10, seed=3)
    first = drawn[0].features
    assert first.shape == (10, 8)
    known = {tuple(row) for row in dataset.features(0).tolist()}
    assert len({tuple(row) for row in first.tolist()} & known) == 10
    assert torch.equal(drawn[1].features, dataset.features(1))
    assert not torch.equal(drawn[0].features, first)  # of the same epoch, as with drawing with replacement
    drawn.begin(1)
    assert not torch.equal(drawn[0].features, first)
    drawn.begin(0)
    dataset.keep_on(torch.device("cpu"))
    assert torch.equal(drawn[0].features, first)
    assert not torch.equal(SampledBags(dataset, 10, seed=4)[0].features, first)


def test_features_in_memory_are_bags_as_files_are(tmp_path: Path) -> None:
    (path,) = _files(tmp_path, [5])
    file = BagDataset([path])
    held = BagDataset([file.features(0)])
    assert isinstance(held[0], Bag)
    assert torch.equal(held[0].features, file[0].features)
    assert (held.dim, held.length(0), held.size_bytes) == (file.dim, file.length(0), file.size_bytes)
    assert torch.equal(held.moments(0).mean, file.moments(0).mean)
    assert held.digest(0) != BagDataset([file.features(0) + 1]).digest(0)


def test_a_kept_bag_is_read_once(tmp_path: Path) -> None:
    (path,) = _files(tmp_path, [4])
    kept, read = BagDataset([path], keep=True), BagDataset([path])
    assert kept[0].features is kept[0].features
    assert read[0].features is not read[0].features
    assert torch.equal(kept[0].features, read[0].features)
    kept.keep_on(None)
    assert kept[0].features is not kept[0].features


def test_a_dataset_crosses_to_a_worker_without_its_rows(tmp_path: Path) -> None:
    dataset = BagDataset(_files(tmp_path, [3000]), _column(1), keep=True)
    expected = dataset[0].features
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2000
    assert torch.equal(pickle.loads(pickled)[0].features, expected)


def test_more_files_than_a_process_may_hold_open_are_bags_all_the_same(tmp_path: Path) -> None:
    lengths = [3 + i % 5 for i in range(60)]
    cohort = pd.DataFrame({"slide_id": [f"s{i}" for i in range(60)], "patient_id": "p", "site": "", "split": ""})
    dataset = BagDataset(_files(tmp_path, lengths))
    with _descriptors(20):
        proven = prove(Cohort(tmp_path / "cohort.csv", cohort, frozenset(cohort)), cohort, [tmp_path], None)
        assert proven.table["n_tiles"].tolist() == lengths
        assert [dataset.length(i) for i in range(60)] == lengths
        assert dataset.features(59).shape == (7, 8)


def test_a_process_without_free_descriptors_is_no_fault_of_the_file(tmp_path: Path) -> None:
    (path,) = _files(tmp_path, [3])
    with _descriptors(0), pytest.raises(EmbeddingsError, match="ulimit -n") as raised:
        BagDataset([path]).features(0)
    assert not isinstance(raised.value, EmbeddingsDamagedError)
    assert BagDataset([path]).length(0) == 3


@contextmanager
def _descriptors(more: int) -> Iterator[None]:
    """Allows so many files beside those that are open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as lowest:
        first_free = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_negative_index_counts_from_the_end_and_one_past_it_is_an_error(tmp_path: Path) -> None:
    dataset = BagDataset(_files(tmp_path, [3, 4]), _column(0, 1))
    assert dataset[-1].truth.tolist() == [1]
    with pytest.raises(IndexError):
        dataset[2]


def test_an_embedding_that_is_not_finite_is_an_error_that_names_file_and_row(tmp_path: Path) -> None:
    good = planted_embeddings("s0", 0)
    features = good.features.copy()
    features[4, 2] = np.inf
    write_embeddings(tmp_path / "s0.h5", replace(good, features=features))
    with pytest.raises(EmbeddingsDamagedError, match=r"s0\.h5.*first: row 4"):
        BagDataset([tmp_path / "s0.h5"])[0]


def test_a_changed_byte_in_the_features_is_seen_before_training(
    embeddings_cohort: Callable[..., EmbeddingsCohort],
) -> None:
    path = embeddings_cohort(patients=2).file("p00-0")
    data = bytearray(path.read_bytes())
    features = planted_embeddings("p00-0", 0).features.tobytes()
    data[data.find(features) + 5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(EmbeddingsDamagedError, match="does not match the digest"):
        BagDataset([path])[0]


def test_the_digest_of_features_follows_the_features_and_nothing_else(tmp_path: Path) -> None:
    one = planted_embeddings("s0", 0)
    write_embeddings(tmp_path / "a.h5", one)
    write_embeddings(tmp_path / "b.h5", replace(one, versions={"torch": "99"}, mean_rgb=np.zeros(3, dtype=np.float32)))
    write_embeddings(tmp_path / "c.h5", replace(one, features=one.features[::-1]))
    a, b, c = (features_sha256(tmp_path / f"{name}.h5") for name in "abc")
    assert a == b != c
