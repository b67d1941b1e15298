from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from pathfm.errors import ModelError
from pathfm.reference import Reference
from pathfm.shift import FLAGGED, optical_density, shift_of
from pathfm.shiftblock import FALSE_ALARMS, SHAPE, shift_block
from pathfm.tables import misfit

RANK, DIM = 8, 32


class _World:
    """Slides whose embeddings vary along a few directions, and those of a patient less than those of several."""

    def __init__(self, seed: int, dim: int = DIM, rank: int = RANK) -> None:
        self.rng = np.random.default_rng(seed)
        self.loads = self.rng.normal(size=(rank, dim))

    def slides(
        self, patients: int, prefix: str, most: int = 1, tissue: float = 0.0, stain: float = 0.0, mpp: float = 0.25
    ) -> Reference:
        """Slides of new patients, 1 to `most` of each; tissue and stain are shifted by so many deviations."""
        whose = np.repeat(np.arange(patients), self.rng.integers(1, most + 1, size=patients))
        rank = len(self.loads)
        embeddings = self._varied(whose, rank) @ self.loads
        embeddings += 0.3 * self.rng.normal(size=embeddings.shape) + tissue * self.loads.std(axis=0) * np.sqrt(rank)
        colours = 180 + 12 * (self._varied(whose, 3) + stain)
        return Reference(
            slide_ids=tuple(f"{prefix}{row}" for row in range(len(whose))),
            patient_ids=tuple(f"{prefix}-{one}" for one in whose),
            embeddings=embeddings.astype(np.float32),
            mean_rgb=np.clip(colours, 1, 255).astype(np.float32),
            mpp=mpp * self.rng.uniform(0.998, 1.002, size=len(whose)),
            thumbnail_hashes=("",) * len(whose),
        )

    def _varied(self, whose: Any, columns: int) -> Any:
        of_patients = self.rng.normal(size=(int(whose.max()) + 1, columns))[whose]
        return 0.9 * of_patients + np.sqrt(1 - 0.9**2) * self.rng.normal(size=(len(whose), columns))


def _block(reference: Reference, slides: Reference) -> dict[str, Any]:
    block = shift_block(reference, slides, shift_of(reference, slides))
    assert misfit(json.loads(json.dumps(block, allow_nan=False)), SHAPE) == ""
    return block


def _replaced(slides: Reference, **changes: Any) -> Reference:
    return Reference(**{name: changes.get(name, getattr(slides, name)) for name in Reference.__dataclass_fields__})


def test_optical_density_is_zero_for_glass_and_one_where_a_tenth_of_the_light_passes() -> None:
    np.testing.assert_allclose(optical_density(np.array([[255, 25.5, 0]], np.float32)), [[0, 1, np.log10(255)]])


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"tissue": 5.0}, "its tissue"), ({"stain": -5.0}, "its stain"), ({"mpp": 0.5}, "its scale")],
)
def test_a_slide_far_from_the_reference_is_flagged_and_what_is_unlike_it_is_named(
    changed: dict[str, float], word: str
) -> None:
    world = _World(0)
    table = shift_of(world.slides(60, "a"), world.slides(5, "b", **changed))
    assert table["flagged"].all()
    assert table["why"].str.startswith(word).all()
    column = {"its tissue": "ood", "its stain": "colour", "its scale": "mpp"}[word]
    np.testing.assert_allclose(table[column], 60 / 61)


def test_the_share_of_nearer_slides_is_that_of_the_distances_written_out() -> None:
    world = _World(3)
    reference, slides = world.slides(25, "a", most=3), world.slides(4, "b", tissue=0.8)
    x, y, whose = reference.embeddings, slides.embeddings, np.array(reference.patient_ids)

    def far(one: Any, others: Any) -> float:
        apart = np.sqrt((((one - others) / others.std(axis=0)) ** 2).sum(axis=1))
        return float(np.sort(apart)[:5].mean())

    own = np.array([far(x[row].astype(float), x[whose != whose[row]].astype(float)) for row in range(len(x))])
    wanted = [np.sum(own < far(one.astype(float), x.astype(float))) / (len(x) + 1) for one in y]
    np.testing.assert_allclose(shift_of(reference, slides)["ood"], wanted)


def _flagged_share(runs: int, patients: int, most: int, dim: int, rank: int) -> float:
    """Of slides like those of the reference."""
    shares = []
    for seed in range(runs):
        world = _World(seed, dim, rank)
        shares.append(shift_of(world.slides(patients, "a", most), world.slides(60, "b", most))["flagged"].mean())
    found, error = float(np.mean(shares)), float(np.std(shares) / np.sqrt(runs))
    print(
        f"{patients} patients of 1 to {most} slides, {dim} numbers: {found:.4f} flagged (error {error:.4f}), {runs} runs"
    )
    return found - 3 * error


@pytest.mark.parametrize(("patients", "most", "dim", "rank"), [(80, 1, 32, 8), (40, 3, 32, 8), (25, 1, 512, 200)])
def test_slides_like_those_of_the_reference_are_flagged_at_no_more_than_the_stated_rate(
    patients: int, most: int, dim: int, rank: int
) -> None:
    assert _flagged_share(20, patients, most, dim, rank) <= FLAGGED


@pytest.mark.long
@pytest.mark.parametrize(("patients", "most", "dim", "rank"), [(200, 1, 32, 8), (60, 4, 32, 8), (25, 1, 512, 200)])
def test_the_stated_rate_of_flags_holds_over_1000_references(patients: int, most: int, dim: int, rank: int) -> None:
    assert _flagged_share(1000, patients, most, dim, rank) <= FLAGGED


def test_scales_that_differ_in_their_last_digits_are_one_scale() -> None:
    world = _World(1)
    reference, slides = world.slides(40, "a"), world.slides(20, "b", mpp=0.253)
    block = _block(reference, slides)
    assert block["mpp"] == {"p": 1.0, "effect": 0.0, "alarm": False, "n_reference": 40, "n": 20}
    assert not shift_of(reference, slides)["why"].str.contains("scale").any()


def _alarms(runs: int, reference: int, new: int, most: int = 1, **shifted: float) -> int:
    found = 0
    for seed in range(runs):
        world = _World(seed)
        found += _block(world.slides(reference, "a", most), world.slides(new, "b", most, **shifted))["alarm"]
    print(
        f"{new} patients of 1 to {most} slides against {reference}, shifted by {shifted}: {found} alarms in {runs} runs"
    )
    return found


@pytest.mark.parametrize("most", [1, 4])
def test_a_cohort_like_the_reference_raises_no_more_than_the_stated_share_of_false_alarms(most: int) -> None:
    assert _alarms(25, 40, 20, most) <= binom.ppf(0.999, 25, FALSE_ALARMS)


@pytest.mark.long
@pytest.mark.parametrize(("reference", "new", "most"), [(100, 49, 1), (40, 20, 4), (20, 10, 1)])
def test_the_stated_share_of_false_alarms_holds_over_1000_cohorts(reference: int, new: int, most: int) -> None:
    assert _alarms(1000, reference, new, most) <= binom.ppf(0.999, 1000, FALSE_ALARMS)


@pytest.mark.parametrize(("new", "shifted"), [(49, {"tissue": 0.5}), (49, {"stain": 0.75}), (10, {"mpp": 0.5})])
def test_a_moderate_shift_of_a_few_dozen_slides_is_found(new: int, shifted: dict[str, float]) -> None:
    # Olsson 2022 found another scanner with 49 slides, another scanner and laboratory with 10
    assert _alarms(5, 100, new, **shifted) == 5


def test_if_slides_of_the_same_patient_were_not_left_out_too_many_new_patients_would_look_far() -> None:
    found = []
    for seed in range(10):
        world = _World(seed)
        reference, slides = world.slides(40, "a", most=6), world.slides(60, "b")
        nobody = _replaced(reference, patient_ids=("",) * len(reference))
        found.append([shift_of(one, slides)["flagged"].mean() for one in (reference, nobody)])
    left_out, not_left_out = np.mean(found, axis=0)
    assert left_out <= FLAGGED + 0.02
    assert not_left_out > 2 * FLAGGED


def test_a_stain_that_is_not_known_is_left_out_of_the_judgement() -> None:
    world = _World(0)
    reference, slides = world.slides(40, "a"), world.slides(20, "b")
    unknown = _replaced(slides, mean_rgb=np.full((20, 3), np.nan, np.float32))
    table, block = shift_of(reference, unknown), _block(reference, unknown)
    assert table["colour"].isna().all()
    assert table["ood"].notna().all()
    assert block["colour"] is None
    assert block["alarm"] is False
    assert "too few slides say what it is" in block["notes"][0]


def test_a_reference_too_small_to_say_what_is_usual_says_so() -> None:
    world = _World(0)
    slides = world.slides(10, "b", tissue=9)
    for reference in (world.slides(19, "a"), world.slides(9, "a", most=8), None):
        block = shift_block(reference, slides, shift_of(reference, slides))
        assert misfit(block, SHAPE) == ""
        assert not block["available"]
        assert block["alarm"] is None
        assert "was not tested" in block["sentence"]
        table = shift_of(reference, slides)
        assert not table["flagged"].any()
        assert table[["ood", "colour", "mpp"]].isna().all(axis=None)


def test_a_few_patients_are_flagged_but_make_no_alarm() -> None:
    world = _World(0)
    block = _block(world.slides(40, "a"), world.slides(4, "b", tissue=9))
    assert (block["flagged"]["k"], block["alarm"]) == (4, None)
    assert "too few to say whether the cohort has shifted" in block["sentence"]


def test_patients_that_nobody_names_are_said_and_the_share_of_flags_is_by_patient_where_they_are_known() -> None:
    world = _World(0)
    reference, slides = world.slides(40, "a"), world.slides(20, "b", most=4)
    assert _block(reference, slides)["flagged"]["exact_low"] is None
    alone = _block(reference, _replaced(slides, patient_ids=("",) * len(slides)))
    assert alone["flagged"]["exact_low"] is not None
    assert any("patients of" in note for note in alone["notes"])


def test_the_order_of_the_slides_decides_nothing() -> None:
    world = _World(5)
    reference, slides = world.slides(40, "a", most=3), world.slides(20, "b", most=3, tissue=0.3)
    back = np.arange(len(slides))[::-1]
    first, other = _block(reference, slides), _block(reference.at(np.arange(len(reference))[::-1]), slides.at(back))
    assert first["embedding"]["effect"] == pytest.approx(other["embedding"]["effect"])
    assert first["flagged"]["k"] == other["flagged"]["k"]


def test_embeddings_of_another_width_are_refused() -> None:
    reference, slides = _World(0).slides(40, "a"), _World(0, dim=16).slides(4, "b")
    with pytest.raises(ModelError, match="width 32, these have 16"):
        shift_of(reference, slides)
