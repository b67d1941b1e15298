"""Patient data stays where it is: words are planted wherever a slide and its tables have room, every command runs, also
into its errors, and all that was written, printed, logged and drawn is searched for them.
"""

from __future__ import annotations

import base64
import gzip
import inspect
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import h5py
import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from canary import (
    APERIO,
    ASSOCIATED,
    COLOURS,
    COLUMNS,
    NAMES,
    OUTLINE,
    SECRETS,
    TAGS,
    painted,
    sniff,
    write_foreign,
    write_scan,
)
from PIL import Image, PngImagePlugin

from pathfm.cli import COMMANDS, command_parser
from pathfm.privacy import Pseudonyms, read_key

if TYPE_CHECKING:
    from collections.abc import Iterator

EXCUSED = {"demo": "it makes its own slides and takes nobody's; what it does is `run`"}
ASKED = {name: set(inspect.signature(command_parser(name)[1]).parameters) for name in COMMANDS}
LACKING = [name for name, asks in ASKED.items() if asks & {"slides", "cohort"} and "pseudonymise" not in asks]
GOOD = 6
TRAINING = ["--training.epochs", "2", "--training.hidden", "8", "--training.attention", "4", "--training.device", "cpu"]
FROZEN = ["--operating-point", "youden", "--claims.calibration", "temperature", "--claims.coverage", "0.5"]
CUT = ["--tiles.size_px", "64", "--tiles.mpp", "1.0"]

# Runs commands one after the other, with all loggers at DEBUG, and writes down every word that is drawn into a picture.
DRIVER = """
import json, logging, sys, traceback
import matplotlib.text
from PIL import ImageDraw

logging.basicConfig(level=logging.DEBUG)
drawn = open("drawn.txt", "a", encoding="utf-8")
set_text, write_text = matplotlib.text.Text.set_text, ImageDraw.ImageDraw.text

def set_and_note(self, s):
    drawn.write(f"{s}\\n")
    set_text(self, s)

def write_and_note(self, xy, text, *args, **kwargs):
    drawn.write(f"{text}\\n")
    return write_text(self, xy, text, *args, **kwargs)

if __name__ == "__main__":
    matplotlib.text.Text.set_text, ImageDraw.ImageDraw.text = set_and_note, write_and_note
    from pathfm.cli import main
    codes = []
    for number, words in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))):
        print(f"command {number}", flush=True)
        print(f"command {number}", file=sys.stderr, flush=True)
        try:
            codes.append(main(words))
        except Exception:
            traceback.print_exc()
            codes.append(1)
    with open("codes.json", "w") as file:
        json.dump(codes, file)
"""


@dataclass
class Hospital:
    """Where the planted data lies.

    Attributes:
        root: above all of it; nothing below is ever searched.
        ward: the folder of the slides.
        cohort: six good slides of two classes; others that are truncated, missing, no scan, and outlined badly.
        other: two slides of other patients.
        outlines: hand-made ones, by the ids of the cohort.
    """

    root: Path

    def __post_init__(self) -> None:
        self.ward = self.root / NAMES["folder"]
        self.cohort = self.ward / f"{NAMES['cohort']}.csv"
        self.other = self.ward / f"{NAMES['other cohort']}.csv"
        self.outlines = self.root / NAMES["outlines"]

    def scan(self, name: str) -> Path:
        return self.ward / NAMES["subfolder"] / f"{NAMES['file']}-{name}.svs"

    def table(self, name: str, rows: list[dict[str, str]], **more: str) -> Path:
        path = self.root / name
        pd.DataFrame([row | more for row in rows]).to_csv(path, index=False)
        return path


@dataclass
class Night:
    """What a night of commands left behind.

    Attributes:
        place: working folder, home and temporary files of the process, with its stdout and stderr: all is searched.
        commands: what was run, with the exit code that it must have.
        codes: what it ended with.
        failed: names of those that had to fail.
    """

    place: Path
    commands: list[tuple[list[str], int]]
    codes: list[int] = field(default_factory=list)

    @property
    def said(self) -> list[str]:
        """stderr of each command."""
        return [part.partition("\n")[2] for part in (self.place / "stderr").read_text().split("command ")[1:]]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    made = Hospital(tmp_path_factory.mktemp("hospital"))
    rows = [_row(made, str(k), k, write_scan(made.scan(str(k)), k, dark=bool(k % 2))) for k in range(GOOD)]
    others = [_row(made, f"x{k}", 50 + k, write_scan(made.scan(f"x{k}"), 50 + k, dark=bool(k))) for k in range(2)]
    truncated = write_scan(made.ward / f"{NAMES['truncated']}.svs", 90, dark=True)
    truncated.write_bytes(truncated.read_bytes()[:-4000])
    tags: list[Any] = [(tag, "s", 0, word, True) for tag, word in TAGS.items() if tag not in (305, 306)]
    foreign = made.ward / f"{NAMES['foreign']}.tif"
    described = "|".join(APERIO.values()).encode()
    tifffile.imwrite(foreign, painted("label pixels"), description=described, extratags=tags, software=TAGS[305])
    bad = [truncated, foreign, made.ward / f"{NAMES['missing']}.svs", write_scan(made.scan("bad"), 91, dark=False)]
    rows += [_row(made, f"bad{k}", 90 + k, path) for k, path in enumerate(bad)]
    pd.DataFrame(rows).to_csv(made.cohort, index=False)
    pd.DataFrame(others).to_csv(made.other, index=False)
    for row in (rows[0], rows[-1], rows[-2]):
        write_foreign(made.ward / "features" / f"{row['slide_id']}.h5", row["slide_id"])
    made.outlines.mkdir()
    (made.outlines / f"{rows[0]['slide_id']}.geojson").write_text(json.dumps(_outline()))
    (made.outlines / f"{rows[-1]['slide_id']}.geojson").write_text(f'"{OUTLINE}')
    return made


@pytest.fixture(scope="module")
def nights(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Night]:
    """Two at a time, for most of a night is spent on importing."""
    begun = {
        "private": _begin(tmp_path_factory.mktemp("private"), _private_commands(hospital)),
        "plain": _begin(tmp_path_factory.mktemp("plain"), _commands(hospital)),
    }
    done = {}
    for name, (night, process) in begun.items():
        assert process.wait(timeout=600) == 0
        done[name] = replace(night, codes=json.loads((night.place / "codes.json").read_text()))
    return done


@pytest.fixture(scope="module")
def private_night(nights: dict[str, Night]) -> Night:
    return nights["private"]


@pytest.fixture(scope="module")
def plain_night(nights: dict[str, Night]) -> Night:
    return nights["plain"]


def test_there_are_forty_markers_and_more() -> None:
    words = [*SECRETS, *NAMES.values(), *COLOURS]
    assert len(words) == len(set(words)) == len(APERIO) + len(TAGS) + len(ASSOCIATED) + len(COLUMNS) + 2 + 11 + 2
    assert len(words) >= 40


def test_the_scan_really_carries_what_must_not_come_out(hospital: Hospital) -> None:
    with openslide.OpenSlide(hospital.scan("0")) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert {slide.properties[f"aperio.{key}"] for key in APERIO} == set(APERIO.values())
        assert set(slide.associated_images) == {"label", "macro", "thumbnail"}
        for name in ("label", "macro"):
            pixels = np.asarray(slide.associated_images[name])[..., :3]
            assert np.array_equal(pixels, painted(f"{name} pixels"))
    raw = hospital.scan("0").read_bytes()
    assert all(word.encode() in raw for word in (*TAGS.values(), *ASSOCIATED.values()))


@pytest.mark.parametrize(
    "disguise", ["utf-8", "utf-16-le", "utf-16-be", "latin-1", "json", "url", "base64", "upper", "hex"]
)
@pytest.mark.parametrize("marker", ["zqaa11ümlaut", "7734510093", TAGS[306], "zqaf03 ärger's"])
def test_the_nose_finds_a_marker_in_every_disguise(tmp_path: Path, marker: str, disguise: str) -> None:
    written = {
        "json": json.dumps([marker]).encode(),
        "url": quote(marker).encode(),
        "upper": marker.upper().encode(),
        "hex": marker.encode().hex().encode(),
    }
    for shift in range(3):
        raw = base64.b64encode(b"?" * shift + marker.encode() + b"!" * 5) if disguise == "base64" else None
        data = raw or written.get(disguise) or marker.encode(disguise)
        (tmp_path / f"file{shift}").write_bytes(b"before" + data + b"after")
        assert {hit.marker for hit in sniff(tmp_path, [marker])} == {marker}
        (tmp_path / f"file{shift}").unlink()


def _planted() -> Iterator[tuple[str, bytes]]:
    """A marker in each container that a command might write."""
    word = APERIO["User"]
    yield "gzip", gzip.compress(word.encode())
    for level, name in ((zipfile.ZIP_DEFLATED, "zip"), (zipfile.ZIP_STORED, "ckpt")):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", level) as archive:
            archive.writestr("inside", f"x{word}" * 50)
        yield name, buffer.getvalue()
    for name in ("attribute", "text", "compressed", "named"):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            if name == "attribute":
                file.create_dataset("a/b", data=[1]).attrs["user"] = word
            if name == "text":
                file["strings"] = [word, "other"]
            if name == "compressed":
                raw = np.frombuffer((word * 90).encode(), np.uint8)
                file.create_dataset("bytes", data=raw, compression="gzip", shuffle=True)
            if name == "named":
                file.create_group(word)
        yield f"hdf5 {name}", buffer.getvalue()
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", word, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG", pnginfo=text)
    yield "png text", buffer.getvalue()
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "JPEG", comment=word)
    yield "jpeg comment", buffer.getvalue()
    page = b'<img src="data:application/zip;base64,' + base64.b64encode(gzip.compress(word.encode())) + b'">'
    yield "data address", page


@pytest.mark.parametrize(
    ("container", "data"), list(_planted()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_nose_looks_into_what_is_packed(tmp_path: Path, container: str, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    assert APERIO["User"] in {hit.marker for hit in sniff(tmp_path, SECRETS)}, container


@pytest.mark.parametrize("suffix", ["png", "jpeg", "html", "h5", "npz"])
@pytest.mark.parametrize("name", COLOURS)
def test_the_nose_knows_the_label_and_the_macro_image_by_their_pixels(tmp_path: Path, suffix: str, name: str) -> None:
    pixels = np.full((300, 300, 3), 240, np.uint8)
    pixels[7:71, 11:107] = painted(name)
    buffer = io.BytesIO()
    if suffix == "h5":
        with h5py.File(buffer, "w") as file:
            file.create_dataset("thumbnail", data=pixels, compression="gzip")
    elif suffix == "npz":
        np.savez_compressed(buffer, pixels=pixels)
    else:
        small = Image.fromarray(pixels).resize((75, 75)) if suffix == "jpeg" else Image.fromarray(pixels)
        small.save(buffer, "JPEG" if suffix == "jpeg" else "PNG", **({"quality": 60} if suffix == "jpeg" else {}))
    data = buffer.getvalue()
    if suffix == "html":
        data = b'<img src="data:image/png;base64,' + base64.b64encode(data) + b'"/>'
    (tmp_path / f"file.{suffix}").write_bytes(data)
    assert {hit.marker for hit in sniff(tmp_path, [])} == {name}


def test_the_nose_smells_names_of_files_and_folders_and_where_links_lead(tmp_path: Path) -> None:
    (tmp_path / NAMES["folder"]).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / NAMES["missing"])
    assert {hit.marker for hit in sniff(tmp_path, NAMES.values())} == {NAMES["folder"], NAMES["missing"]}
    assert sniff(tmp_path, SECRETS) == []


def test_every_command_that_takes_slides_or_a_cohort_takes_a_key_file() -> None:
    assert LACKING == []


def test_every_command_runs_in_a_night(hospital: Hospital) -> None:
    run = {_command(words) for words, _ in _commands(hospital)}
    assert run | set(EXCUSED) == set(COMMANDS)


@pytest.mark.parametrize("night", ["private_night", "plain_night"])
def test_every_command_of_the_night_ends_as_it_must(night: str, request: pytest.FixtureRequest) -> None:
    done: Night = request.getfixturevalue(night)
    wanted = [(words, code) for words, code in done.commands]
    assert [(words, code) for (words, _), code in zip(done.commands, done.codes, strict=True)] == wanted
    errors = [sum(line.startswith("pathfm: ") for line in said.splitlines()) for said in done.said]
    assert errors == [int(code == 2) for _, code in done.commands]
    assert "Traceback" not in (done.place / "stderr").read_text()


def test_under_pseudonyms_nothing_comes_out(private_night: Night) -> None:
    hits = sniff(private_night.place, [*SECRETS, *NAMES.values()])
    assert hits == [], "\n".join(f"{hit.marker} as {hit.disguise} in {hit.place}" for hit in hits)


def test_without_pseudonyms_only_what_the_user_keeps_comes_out(plain_night: Night) -> None:
    hits = sniff(plain_night.place, SECRETS)
    assert hits == [], "\n".join(f"{hit.marker} as {hit.disguise} in {hit.place}" for hit in hits)
    kept = {hit.marker for hit in sniff(plain_night.place, NAMES.values())}
    assert kept == set(NAMES.values())  # the nose finds what is there


def test_what_the_nose_searched_is_all_that_the_commands_left(private_night: Night) -> None:
    found = {path.relative_to(private_night.place).as_posix() for path in private_night.place.rglob("*")}
    for name in (
        "run/report.html",
        "run/failures.csv",
        "run/pathfm.log",
        "run/pathfm-run.yaml",
        "extract/failures.csv",
    ):
        assert name in found
    assert "DEBUG" in (private_night.place / "stderr").read_text()
    assert len((private_night.place / "drawn.txt").read_text().splitlines()) > 50
    assert any(name.startswith("run/model/logs/") and "tfevents" in name for name in found)


def test_pseudonyms_are_those_of_the_key_and_every_table_has_them(private_night: Night, hospital: Hospital) -> None:
    names = Pseudonyms(read_key(hospital.root / "key"))
    slides = {names.slide(f"{NAMES['slide_id']}-{k}") for k in range(GOOD)}
    patients = {names.patient(f"{NAMES['patient_id']}-{k}") for k in range(GOOD)}
    folds = pd.read_csv(private_night.place / "run" / "crossval" / "folds.csv", dtype=str)
    assert set(folds["slide_id"]) >= slides
    assert set(folds["patient_id"]) >= patients
    model = json.loads((private_night.place / "train" / "model.json").read_text())
    assert (set(model["training"]["slides"]), set(model["training"]["patients"])) == (slides, patients)
    failures = pd.read_csv(private_night.place / "extract" / "failures.csv", dtype=str, keep_default_na=False)
    assert set(failures["path"]) == {""}
    reasons = dict(zip(failures["slide_id"], failures["reason"], strict=True))
    bad = ["truncated", "no mpp", "unreadable", "tissue outline"]
    assert reasons == {names.slide(f"{NAMES['slide_id']}-bad{k}"): reason for k, reason in enumerate(bad)}
    for slide_id, message in zip(failures["slide_id"], failures["message"], strict=True):
        assert slide_id in message


def test_the_module_as_a_process_of_its_own_says_nothing_either(hospital: Hospital, tmp_path: Path) -> None:
    words = ["tile", "--slides", str(hospital.ward / f"{NAMES['truncated']}.svs"), "--out", "out"]
    words += ["--pseudonymise", str(tmp_path / "own.key")]
    place = tmp_path / "place"
    place.mkdir()
    result = subprocess.run([sys.executable, "-m", "pathfm", *words], cwd=place, capture_output=True, check=False)
    (place / "said").write_bytes(result.stdout + result.stderr)
    assert result.returncode == 2
    assert b"1 of 1 slides failed" in result.stderr
    assert sniff(place, [*SECRETS, *NAMES.values()]) == []


def _row(made: Hospital, name: str, number: int, path: Path) -> dict[str, str]:
    return {
        "slide_id": f"{NAMES['slide_id']}-{name}",
        "patient_id": f"{NAMES['patient_id']}-{name}",
        "path": path.relative_to(made.ward).as_posix(),
        "cancer": str(number % 2),
        "site": "north",
        **COLUMNS,
    }


def _outline() -> dict[str, Any]:
    square = [[64, 64], [448, 64], [448, 448], [64, 448], [64, 64]]
    said = {"name": OUTLINE, "metadata": {"by": OUTLINE}, "classification": {"name": OUTLINE}}
    line = {"type": "Feature", "geometry": {"type": "LineString", "coordinates": square}, "properties": said}
    area = line | {"geometry": {"type": "Polygon", "coordinates": [square]}}
    return {"type": "FeatureCollection", "name": OUTLINE, "features": [area, line]}


def _begin(place: Path, commands: list[tuple[list[str], int]]) -> tuple[Night, subprocess.Popen[bytes]]:
    """Starts the commands in one real process, whose every file lies in one place."""
    script = place.parent / f"{place.name}.py"
    script.write_text(DRIVER)
    (place.parent / f"{place.name}.json").write_text(json.dumps([words for words, _ in commands]))
    for name in ("home", "tmp"):
        (place / name).mkdir()
    # the list of fonts is the machine's own, and takes long to make
    fonts = os.environ.get("MPLCONFIGDIR", str(Path.home() / ".config" / "matplotlib"))
    own = {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "MPLCONFIGDIR": fonts, "HF_HUB_OFFLINE": "1"}
    with (place / "stdout").open("wb") as out, (place / "stderr").open("wb") as err:
        words = [sys.executable, script, script.with_suffix(".json")]
        process = subprocess.Popen(words, stdout=out, stderr=err, cwd=place, env=os.environ | own)
    return Night(place, commands), process


def _command(words: list[str]) -> str:
    """The command of some words, which is one or two of them."""
    return words[0] if words[0] in COMMANDS else " ".join(words[:2])


def _commands(hospital: Hospital) -> list[tuple[list[str], int]]:
    """Every command once, on slides of which some cannot be used, and then into every error that names somebody."""
    cohort, other, outlines = str(hospital.cohort), str(hospital.other), ["--outlines", str(hospital.outlines)]
    foreign = str(hospital.root / NAMES["folder"] / "features")
    label, joined = ["--label", "cancer"], ["--cohort", cohort, "--embeddings", "extract"]
    criteria = str(Path(__file__).parent.parent / "configs" / "gate.yaml")
    return [
        (["backbones"], 0),
        (["heads"], 0),
        (["weights", "pack", "uni", "--out", "bundle"], 2),
        (["weights", "unpack", "bundle"], 2),
        (["doctor", "--slides", cohort], 0),
        (["tile", "--slides", str(hospital.ward), "--out", "tile"], 2),
        (["extract", "--slides", cohort, other, "--out", "extract", *CUT, *outlines, "--workers", "1"], 2),
        (["probe", "--slides", cohort, *label, "--out", "probe", *CUT, "--folds", "2", "--max_tiles", "4"], 2),
        (["verify", "--embeddings", "extract", "--slides", cohort], 0),
        (["train", *joined, *label, "--out", "train", *TRAINING], 0),
        (["crossval", *joined, *label, "--out", "crossval", "--folds", "2", *TRAINING, *FROZEN], 0),
        (["crossval", *joined, *label, "--out", "by-site", "--folds", "9", "--split", "site", *TRAINING], 2),
        (
            [
                "tune",
                *joined,
                *label,
                "--out",
                "tune",
                "--folds",
                "3",
                "--inner_folds",
                "2",
                "--trials",
                "1",
                *TRAINING,
            ],
            0,
        ),
        (["compare", *joined, *label, "--out", "compare", "--folds", "2", "--heads", "mean", *TRAINING], 0),
        (["predict", "--model", "train", "--embeddings", "extract", "--out", "predict"], 0),
        (["predict", "--model", "train", "--slides", cohort, "--out", "predict-slides"], 2),
        (["evaluate", "--model", "train", "--cohort", other, "--embeddings", "extract", "--out", "evaluate"], 0),
        (["gate", "--model", "crossval/ensemble", "--criteria", criteria, "--evaluation", "evaluate"], 2),
        (["gate", "--model", "crossval/ensemble", "--criteria", criteria], 2),
        (["heatmap", "--model", "train", "--slides", other, "--embeddings", "extract", "--out", "heatmap"], 0),
        (["report", "--out", "report.html", "--crossval", "crossval", *joined, "--heatmaps", "heatmap"], 0),
        (["run", "--cohort", cohort, *label, "--out", "run", "--folds", "2", *CUT, *TRAINING, "--workers", "1"], 2),
        (
            [
                "import",
                "--features",
                foreign,
                "--slides",
                cohort,
                "--backbone",
                "uni",
                "--tile_mpp",
                "1",
                "--out",
                "import",
            ],
            2,
        ),
        (["export", "--embeddings", "extract", "--out", "export", "--format", "stamp"], 0),
        *_mistakes(hospital),
    ]


def _mistakes(hospital: Hospital) -> list[tuple[list[str], int]]:
    table = pd.read_csv(hospital.cohort, dtype=str)
    rows: list[dict[str, str]] = table.to_dict("records")
    ward = NAMES["folder"]
    nameless = hospital.ward / f"{NAMES['cohort']}-nameless.csv"
    table.to_csv(nameless, index=False, header=False)
    twice = hospital.table(f"{ward}/{NAMES['cohort']}-twice.csv", [*rows, rows[0]])
    split = hospital.table(
        f"{ward}/{NAMES['cohort']}-split.csv",
        [
            r | {"patient_id": rows[0]["patient_id"], "split": s}
            for r, s in zip(rows, ["train", "test"] * 9, strict=False)
        ],
    )
    slipped = hospital.table(f"{ward}/{NAMES['cohort']}-slipped.csv", rows, split=COLUMNS["name"])
    config = hospital.root / f"{NAMES['folder']}.yaml"
    config.write_text(f"pseudonymise: key\nslides: [{hospital.ward}\nout: }}")
    learn = ["--embeddings", "extract", "--label", "cancer", "--out", "mistake"]
    return [
        (["train", "--cohort", str(hospital.cohort), *learn[:3], "nobody", "--out", "mistake"], 2),
        *((["train", "--cohort", str(path), *learn], 2) for path in (nameless, twice, split, slipped)),
        (["train", "--cohort", str(hospital.ward / NAMES["missing"]), *learn], 2),
        (
            [
                "evaluate",
                "--model",
                "train",
                "--cohort",
                str(hospital.cohort),
                "--embeddings",
                "extract",
                "--out",
                "no",
            ],
            2,
        ),
        (["predict", "--model", "nowhere", "--slides", str(hospital.ward), "--out", "no"], 2),
        (["tile", "--slides", str(hospital.ward / NAMES["missing"]), "--out", "no"], 2),
        (["tile", "--slides", str(hospital.ward), "--outlines", str(hospital.outlines / "x"), "--out", "no"], 2),
        (["extract", "--slides", str(hospital.ward), "--out", "no", "--tiles.mpp", NAMES["folder"]], 2),
        (["extract", str(hospital.ward), "--out", "no"], 2),
        (["run", "--config", str(config)], 2),
    ]


def _private_commands(hospital: Hospital) -> list[tuple[list[str], int]]:
    key = ["--pseudonymise", str(hospital.root / "key")]
    other = hospital.root / "other.key"
    other.write_text("ab" * 32)
    other.chmod(0o600)
    open_key = hospital.root / "open.key"
    open_key.write_text("cd" * 32)
    open_key.chmod(0o644)
    train = [
        "train",
        "--cohort",
        str(hospital.cohort),
        "--embeddings",
        "extract",
        "--label",
        "cancer",
        "--out",
        "wrong",
    ]
    wrong = [other, open_key, hospital.root / "no.key", Path("extract") / "in.key"]
    return [
        *(
            ([*words, *(key if "pseudonymise" in ASKED[_command(words)] else [])], code)
            for words, code in _commands(hospital)
        ),
        *(([*train, "--pseudonymise", str(path)], 2) for path in wrong),
    ]
