from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pyramids import write_pyramid

from pathfm.errors import InputError, SlidesFailedError
from pathfm.failures import COLUMNS, Failure, write_failures
from pathfm.preview import tile
from pathfm.tiles import TileSpec

if TYPE_CHECKING:
    from pathlib import Path

SPEC = TileSpec(64, 1.0)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A slide with a square of tissue (512 x 512 of 1024 x 768 pixels at 1 mpp), one without, and one that is none."""
    folder = tmp_path / "slides"
    folder.mkdir()
    pixels = np.full((768, 1024, 3), 243, np.uint8)
    write_pyramid(folder / "empty.tiff", pixels, 1.0, (4,))
    pixels[128:640, 256:768] = (190, 110, 170)
    write_pyramid(folder / "square.tiff", pixels, 1.0, (4,))
    return folder


def test_tile_writes_a_picture_an_outline_and_a_row_for_each_slide(tmp_path: Path, slides: Path) -> None:
    out = tmp_path / "out"
    table = tile([slides], out, SPEC)
    common = {"mpp": 1.0, "mpp_source": "metadata"}
    empty, square = table.to_dict("records")
    assert empty == {"slide_id": "empty", **common, "tissue_mm2": 0.0, "n_tiles": 0, "note": "no tissue"}
    area = pytest.approx(0.262, abs=0.01)
    assert square == {"slide_id": "square", **common, "tissue_mm2": area, "n_tiles": 64, "note": ""}
    assert pd.read_csv(out / "tiles.csv", keep_default_na=False).to_dict("records") == table.to_dict("records")
    assert (out / "failures.csv").read_text() == "slide_id,path,reason,message\n"
    assert len(json.loads((out / "square.geojson").read_text())["features"]) == 1
    assert json.loads((out / "empty.geojson").read_text())["features"] == []
    picture = np.asarray(Image.open(out / "square.png"))
    assert (picture == (0, 114, 178)).all(axis=2).sum() > 1000
    assert (picture == (0, 158, 115)).all(axis=2).sum() > 1000
    empty = np.asarray(Image.open(out / "empty.png"))
    assert not (empty == (0, 114, 178)).all(axis=2).any()


def test_an_edited_outline_takes_the_place_of_the_tissue_found(tmp_path: Path, slides: Path) -> None:
    outlines = tmp_path / "edited"
    outlines.mkdir()
    ring = [[0, 0], [128, 0], [128, 64], [0, 64], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (outlines / "empty.geojson").write_text(json.dumps(feature))
    table = tile([slides], tmp_path / "out", SPEC, outlines=outlines).set_index("slide_id")
    assert table["n_tiles"].to_dict() == {"empty": 2, "square": 64}
    assert table.loc["empty", "note"] == "tissue by outline"
    with pytest.raises(InputError, match="--outlines"):
        tile([slides], tmp_path / "out", SPEC, outlines=tmp_path / "typo")


def test_a_slide_in_the_output_folder_is_never_overwritten(tmp_path: Path) -> None:
    slide = tmp_path / "scan.png"
    Image.new("RGB", (300, 300), "white").save(slide)
    before = slide.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "link", tmp_path / "link" / ".." / tmp_path.name):
        with pytest.raises(InputError, match=r"scan\.png is one of the slides .* --out"):
            tile([slide], out, SPEC, mpp_override=1.0)
    assert slide.read_bytes() == before
    assert not (tmp_path / "tiles.csv").exists()
    assert len(tile([slide], tmp_path / "out", SPEC, mpp_override=1.0)) == 1


def test_an_outline_edited_by_hand_is_never_overwritten(
    tmp_path: Path, slides: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    tile([slides], out, SPEC)
    tile([slides], out, SPEC)
    assert not caplog.records
    ring = [[0, 0], [128.25, 3], [128, 64], [0, 64], [0, 0]]
    edited = json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}})
    outline = out / "square.geojson"
    outline.write_text(edited)
    table = tile([slides], out, SPEC, outlines=out).set_index("slide_id")
    assert table.loc["square", "note"] == "tissue by outline"
    assert outline.read_text() == edited
    assert not caplog.records
    for text in (edited, "{not json"):
        outline.write_text(text)
        tile([slides], out, SPEC)
        assert outline.read_text() == text
        assert f"--outlines {out}" in caplog.records[-1].getMessage()
    outline.unlink()
    tile([slides], out, SPEC)
    assert len(json.loads(outline.read_text())["features"]) == 1


@pytest.mark.parametrize("size", [(20_000, 4), (4, 20_000), (1, 1)])
def test_a_very_thin_slide_is_drawn_too(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (190, 110, 170)).save(tmp_path / "thin.png")
    table = tile([tmp_path / "thin.png"], tmp_path / "out", TileSpec(64, 2.0), mpp_override=2.0)
    assert table["note"].tolist() == ["smaller than a tile"]
    with Image.open(tmp_path / "out" / "thin.png") as picture:
        assert picture.width >= 420


def test_a_slide_that_fails_is_listed_and_the_others_are_done(tmp_path: Path, slides: Path) -> None:
    (slides / "broken.svs").write_bytes(b"no slide" * 99)
    write_pyramid(slides / "coarse.tiff", np.full((100, 100, 3), 243, np.uint8), 4.0)
    out = tmp_path / "out"
    with pytest.raises(SlidesFailedError, match="2 of 4 slides failed") as caught:
        tile([slides], out, SPEC)
    assert caught.value.failures_csv == out / "failures.csv"
    with (out / "failures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["slide_id"], row["reason"]) for row in rows] == [("broken", "unsupported"), ("coarse", "upsampling")]
    assert all(row["path"] in row["message"] for row in rows)
    assert pd.read_csv(out / "tiles.csv")["slide_id"].tolist() == ["empty", "square"]
    (slides / "broken.svs").unlink()
    (slides / "coarse.tiff").unlink()
    tile([slides], out, SPEC)
    assert (out / "failures.csv").read_text() == "slide_id,path,reason,message\n"


def test_what_the_table_notes_says_what_to_know_of_a_slide(tmp_path: Path, slides: Path) -> None:
    write_pyramid(slides / "small.tiff", np.full((40, 400, 3), 243, np.uint8), 1.0)
    table = tile([slides], tmp_path / "out", SPEC, mpp_override=1.05).set_index("slide_id")
    assert table.loc["small", "note"] == "the slide states 1 mpp; tiles 5 % finer than the scan; smaller than a tile"
    assert set(table["mpp_source"]) == {"override"}


def test_failures_with_commas_and_quotes_come_back_whole(tmp_path: Path) -> None:
    failure = Failure("a,b", 'x "y".svs', "no mpp", "what, where; what now")
    write_failures(tmp_path / "failures.csv", [failure])
    with (tmp_path / "failures.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [list(COLUMNS), ["a,b", 'x "y".svs', "no mpp", "what, where; what now"]]
