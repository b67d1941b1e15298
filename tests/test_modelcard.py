from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pathfm.cardfile import NOT_STATED, Card, read_card
from pathfm.errors import InputError, UnknownNameError
from pathfm.modelcard import card_of
from pathfm.tripoditems import ITEMS

if TYPE_CHECKING:
    from pathlib import Path

STATED = """
intended_use: Triage of biopsies
intended_users: [Pathologists, Researchers]
contact: no
limits: |
  One scanner.
  One stain.
tripod:
  5b: 2024-05-01 to 2025-01-31
  18a: None
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "card.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_texts_stay_as_they_are_written_and_what_is_missing_is_not_stated(tmp_path: Path) -> None:
    card = read_card(written(tmp_path, STATED))
    assert card.text("intended_use") == "Triage of biopsies"
    assert card.text("intended_users") == "Pathologists\nResearchers"
    assert card.text("contact") == "no"
    assert card.text("limits") == "One scanner.\nOne stain."
    assert card.text("owner") == NOT_STATED
    assert card.tripod == {"5b": "2024-05-01 to 2025-01-31", "18a": "None"}


def test_card_of_a_model_is_taken_where_no_file_is_given_and_reads_back_as_it_was(tmp_path: Path) -> None:
    card = read_card(written(tmp_path, STATED))
    assert Card.of_facts(card.facts()) == card
    assert card_of(None, {"card": card.facts()}) == card
    assert card_of(None, {"card": None}) == card_of(None, None) == Card()
    other = written(tmp_path, "contact: me")
    assert card_of(other, {"card": card.facts()}).texts == {"contact": "me"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read as YAML"),
        ("- a\n- b", "holds no mapping"),
        ("", "holds no mapping"),
        ("contact: {a: b}", "contact is no text"),
        ("contact: [[a]]", "contact is no text"),
        ("tripod: [18a]", "tripod is no mapping"),
        ("contact: &a x\nowner: *a", "an alias"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"contact: " + b"x" * 30_000, "contact is no text of up to 20,000"),
        (b"#" * 200_001, "larger than 200,000 bytes"),
        (b"[" * 100_000, "more than 20 levels"),
    ],
)
def test_file_that_is_no_card_is_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_card(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "near"), [("intended_uses: x", "intended_use"), ("tripod: {18g: x}", "18")])
def test_unknown_key_or_item_is_named_with_the_near_ones(tmp_path: Path, text: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=near):
        read_card(written(tmp_path, text))


def test_missing_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"card\.yaml does not exist"):
        read_card(tmp_path / "card.yaml")


@pytest.mark.parametrize(
    "facts",
    [
        *(None, [], {}, {"texts": {}}, {"texts": {"x": "y"}, "tripod": {}}, {"texts": {}, "tripod": {"18a": 1}}),
        {"texts": {"limits": "x" * 20_001}, "tripod": {}},
    ],
)
def test_facts_of_a_stranger_are_refused(facts: Any) -> None:
    with pytest.raises(ValueError, match=r"key|object|holds"):
        Card.of_facts(facts)


def test_tripod_has_27_items_in_52_parts_numbered_as_published() -> None:
    numbers = [item.number for item in ITEMS]
    assert len(set(numbers)) == len(numbers) == 52
    assert sorted({int(number.rstrip("abcdefg")) for number in numbers}) == list(range(1, 28))
    several = {number: "".join(one[-1] for one in numbers if one[:-1] == number) for number in ("3", "12", "18", "27")}
    assert several == {"3": "abc", "12": "abcdefg", "18": "abcdef", "27": "abc"}
