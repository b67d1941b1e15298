from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from claimed import of_two_classes, screening, shift
from drawn import RECIPE, SETTINGS, Study, embeddings_of, make_study

from pathfm.cohort import read_cohort
from pathfm.embeddings import write_embeddings
from pathfm.errors import EmbeddingsStaleError, InputError, ModelError
from pathfm.heatmap import heatmap
from pathfm.model import model_sha256, read_model, write_model
from pathfm.report import _examples, report
from pathfm.report_data import gather
from pathfm.report_plots import draw_plots, line_at
from pathfm.report_rows import _failures
from pathfm.results import metrics_document, no_controls, write_results
from pathfm.targets import KINDS, read_task
from pathfm.train import train
from pathfm.tripoditems import ITEMS
from pathfm.words import gives, interval, number, words_of

if TYPE_CHECKING:
    from pathlib import Path

    from pathfm.patients import Unit

IDS = ["a", "b", "<script>x", "d", "e", "f", "g", "h", "unlabelled"]
DRAWN = ["a", "b", "<script>x", "unlabelled"]
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(tmp_path_factory.mktemp("study"), IDS)
    slides = [study.only(*DRAWN)]
    heatmap(study.crossval, slides, [study.embeddings], study.root / "heatmaps", final_model=study.model)
    (study.root / "failures.csv").write_text(
        "slide_id,path,reason,message\nbroken,/home/ann/broken.svs,truncated,/home/ann/broken.svs ends early; copy it\n"
    )
    return study


@pytest.fixture(scope="module")
def html(study: Study) -> str:
    return full_report(study, study.root / "report.html").read_text()


def full_report(study: Study, out: Path) -> Path:
    root = study.root
    return report(
        out, study.crossval, [study.embeddings], study.cohort, root / "heatmaps", root / "failures.csv", study.model
    )


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html.split("<body>")[1])).split())


def test_first_lines_say_what_it_is_the_auroc_with_its_interval_and_the_verdict_naming_the_control(
    html: str, study: Study
) -> None:
    metrics = json.loads((study.crossval / "metrics.json").read_text())
    first = text_of(html).split("How good it is")[0]
    assert "A slide-level model of “cancer”" in first
    assert "not for diagnosis" in first
    assert "2-fold cross-validation by patient on 8 slides of 8 patients" in first
    auroc = metrics["patient"]["auroc"]
    assert f"{auroc['value']:.2f} 95 % interval {auroc['low']:.2f} to {auroc['high']:.2f}" in first
    names = {"mean_colour": "mean tissue colour", "site": "site", "permuted_labels": "labels dealt out anew"}
    for name in metrics["confounded"]["controls"]:
        assert names[name] in first
    assert all(block["why"][1:] in first for block in metrics["controls"].values())


def test_confounded_cohort_is_called_so_in_the_first_lines(study: Study, tmp_path: Path) -> None:
    folder = shutil.copytree(study.crossval, tmp_path / "crossval")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["controls"]["site"] |= {"confounded": True, "why": "the site alone reaches 0.83"}
    metrics["confounded"] = {"verdict": "confounded, or not excluded", "controls": ["site"], "sentence": "so"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    report(tmp_path / "r.html", folder, [study.embeddings], study.cohort)
    assert "Confounded, or not excluded: site" in text_of((tmp_path / "r.html").read_text())[:700]


def test_file_asks_nothing_of_the_network_and_runs_no_script(html: str) -> None:
    assert re.findall(r'\b(?:src|href)="(?!data:|#)', html) == []
    assert "url(" not in html
    assert "<script" not in html
    assert "default-src 'none'" in html


def test_tables_of_the_cohort_stand_below_each_other_in_print(html: str) -> None:
    printed = html.split("@media print {")[1].split("</style>")[0]
    assert ".tables { display: block; }" in printed
    assert "th, th.n { white-space: normal; }" in printed
    beside = html.split('<div class="plots tables">')[1].split("<h3>Slides</h3>")[0]
    assert beside.count("<table>") == 3


def test_names_from_outside_stay_text(html: str) -> None:
    assert "&lt;script&gt;x" in html
    assert "<script>x" in text_of(html)


def test_every_slide_its_heatmap_its_failure_and_its_reason_are_there(html: str) -> None:
    text = text_of(html)
    assert html.count('class="map"') == len(DRAWN)
    assert html.count("data:image/jpeg") == 2 * len(DRAWN)
    assert "unlabelled left out no label no label in the cohort" in text
    assert "broken failed truncated broken.svs ends early; copy it" in text
    assert "/home/ann" not in html


def test_wrong_slides_come_before_right_ones(html: str) -> None:
    marks = re.findall(r'class="mark (\w+)"', html)
    assert marks == sorted(marks, reverse=True)
    assert len(marks) == len(DRAWN) - 1


def test_report_of_three_classes_without_heatmaps_failures_and_model_stands(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", [f"s{i}" for i in range(7)], classes=3)
    report(tmp_path / "r.html", study.crossval, [study.embeddings], study.cohort)
    text = text_of((tmp_path / "r.html").read_text())
    assert "(0, 1, 2)" in text
    assert "mean over one class against the rest" in text
    assert "Where the model looked" not in text


def test_figures_that_could_not_be_computed_are_said_to_be_missing(study: Study, tmp_path: Path) -> None:
    folder = shutil.copytree(study.crossval, tmp_path / "crossval")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= {"patient": None, "slide": None, "warnings": ["nothing was scored"]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    report(tmp_path / "r.html", folder, [study.embeddings], study.cohort)
    text = text_of((tmp_path / "r.html").read_text())
    assert "could not be computed" in text
    assert "nothing was scored" in text


def test_equal_inputs_give_equal_bytes(study: Study, html: str, tmp_path: Path) -> None:
    assert full_report(study, tmp_path / "again.html").read_text() == html


LABELS = {
    "grade:ordinal": ["G1", "G2", "G3", "G2"] * 2,
    "findings:multilabel": ["necrosis;mucin", "none", "mucin", "necrosis"] * 2,
    "score:regression": [f"{index / 8}" for index in range(8)],
    "months/died:cox": [("1", "1"), ("2", "0"), ("3", "1"), ("4", "1")] * 2,
    "months/died:hazards": [("1", "1"), ("2", "0"), ("3", "1"), ("4", "1")] * 2,
}


def write_scores(study: Study, folder: Path, labels: list[str], unit: Unit = "slide", repeats: int = 1) -> Path:
    """A cohort with such labels, and what a cross-validation of the targets would leave, its scores drawn; the cohort."""
    table = pd.read_csv(study.cohort, dtype=str, keep_default_na=False).iloc[:8]
    table["path"], table["patient_id"] = (
        "",
        [f"p{index // 2}" if unit == "patient" else f"p{index}" for index in range(8)],
    )
    for label in labels:
        columns = label.split(":")[0].split("/")
        for at, column in enumerate(columns):
            table[column] = [cell if len(columns) == 1 else cell[at] for cell in LABELS[label]]
    table.to_csv(folder / "cohort.csv", index=False)
    task, truth = read_task(read_cohort(folder / "cohort.csv"), ",".join(labels))
    rng, results = np.random.default_rng(0), {}
    for which, target in enumerate(task.targets):
        bags = table.groupby("patient_id")["slide_id"].agg(";".join) if unit == "patient" else table["slide_id"]
        part = task.truths(truth)[which][:: 8 // len(bags)]
        drawn = pd.DataFrame({"slide_id": list(bags), "patient_id": table["patient_id"].unique(), "fold": 0})
        drawn = drawn.assign(label=target.texts(part), reason="", n_tiles=24)
        all_rows = []
        for repeat in range(repeats):
            scores = task.scores(torch.from_numpy(rng.normal(size=(len(bags), task.n_outputs))))[which]
            columns = dict(zip(target.names, scores.T, strict=True))
            all_rows.append(drawn.assign(predicted=target.predicted(scores), **columns, repeat=repeat))
        rows = pd.concat(all_rows) if repeats > 1 else drawn.assign(predicted=target.predicted(scores), **columns)
        asked = {"target": target, "unit": unit, "protocol": "2-fold cross-validation by patient", "left_out": []}
        metrics = metrics_document(rows, **asked, controls=no_controls("it was not asked for"))
        results[target.name] = (all_rows[0].drop(columns="repeat"), metrics)
    write_results(folder, results)
    if repeats > 1:
        rows.to_csv(folder / "repeats.csv", index=False)
    return folder / "cohort.csv"


@pytest.mark.parametrize("label", LABELS)
def test_report_stands_for_every_kind_of_target(study: Study, tmp_path: Path, label: str) -> None:
    cohort = write_scores(study, tmp_path, [label])
    html = report(tmp_path / "r.html", tmp_path, [study.embeddings], cohort).read_text()
    text = text_of(html)
    main = {"ordinal": "quadratic kappa", "multilabel": "AUROC", "regression": "Pearson's r"}
    assert f"Patient-level {main.get(label.split(':')[1], 'c-index')}" in text
    assert f"model of “{label.split(':')[0]}”" in text
    pictures = set(re.findall(r'alt="([^"]*)"', html))
    curves = {"ROC curve by patient", "Precision-recall curve by patient", "Calibration curve by patient"}
    curves |= {"Decision curve by patient", "Probabilities by what is true"}
    has_probabilities = label.split(":")[1] in ("ordinal", "multilabel")
    assert (curves <= pictures) == has_probabilities
    assert ("Predicted over true score" in pictures) == ("regression" in label)
    assert ("Kaplan-Meier curves by predicted risk" in pictures) == ("Log-rank test" in text) == ("months" in label)
    marked = 'class="right"' in html or 'class="wrong"' in html
    assert marked == has_probabilities


def test_every_figure_of_every_kind_has_a_plain_name() -> None:
    for kind in KINDS.values():
        facts = {"classes": ["0", "1"], "labels": ["x"], "mean": 0.0, "std": 1.0, "cuts": []}
        target = kind.of_facts("y", facts)
        assert [name for name in target.metrics if not words_of(name).meaning] == []
        assert gives(target) != "a score"


def test_report_is_on_the_target_that_is_named_where_there_are_several(study: Study, tmp_path: Path) -> None:
    cohort = write_scores(study, tmp_path, ["grade:ordinal", "score:regression"])
    with pytest.raises(InputError, match=r"several targets; pass --target one of grade, score"):
        report(tmp_path / "r.html", tmp_path, [study.embeddings], cohort)
    out = report(tmp_path / "r.html", tmp_path, [study.embeddings], cohort, target="score")
    assert "model of “score”" in text_of(out.read_text())
    with pytest.raises(InputError, match="shows cancer, and the report is on score"):
        report(tmp_path / "r.html", tmp_path, [study.embeddings], cohort, study.root / "heatmaps", target="score")


def test_report_on_patients_has_no_figures_by_slide_and_says_over_how_many_repeats(
    study: Study, tmp_path: Path
) -> None:
    cohort = write_scores(study, tmp_path, ["score:regression"], unit="patient", repeats=3)
    text = text_of(report(tmp_path / "r.html", tmp_path, [study.embeddings], cohort).read_text())
    assert "A patient-level model" in text
    assert "8 slides of 4 patients" in text
    assert "by slide" not in text
    assert "means over 3 repeats" in text
    for slide_id in ("a", "b"):  # both slides of a patient have the patient's score
        assert f"{slide_id} p0 north" in text


@pytest.mark.parametrize("missing", ["metrics.json", "predictions.csv"])
def test_missing_input_is_named_with_the_flag(study: Study, tmp_path: Path, missing: str) -> None:
    folder = shutil.copytree(study.crossval, tmp_path / "crossval")
    (folder / missing).unlink()
    with pytest.raises(InputError, match=rf"{missing} does not exist; pass --crossval"):
        report(tmp_path / "r.html", folder, [study.embeddings], study.cohort)


def test_folder_without_heatmaps_and_an_out_that_is_no_html_are_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--heatmaps"):
        report(tmp_path / "r.html", study.crossval, [study.embeddings], study.cohort, heatmaps=tmp_path)
    with pytest.raises(InputError, match=r"--out report\.html"):
        report(tmp_path / "report", study.crossval, [study.embeddings], study.cohort)


def test_list_of_failures_that_was_given_and_is_not_there_is_named(study: Study, tmp_path: Path) -> None:
    absent = tmp_path / "failures.csv"
    with pytest.raises(InputError, match=r"failures\.csv does not exist; pass --failures"):
        report(tmp_path / "r.html", study.crossval, [study.embeddings], study.cohort, failures=absent)
    with pytest.raises(InputError, match=r"heatmaps\.csv does not exist; pass --heatmaps"):
        report(tmp_path / "r.html", study.crossval, [study.embeddings], study.cohort, heatmaps=tmp_path / "absent")


BROKEN = [b"", b"[]", b"{", b"\xff\xfe", b"a,b\n1,2\n", b"a,b\n1\n", b'{"format": "zip"}', b"[" * 100_000]


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv", "failures.csv", "heatmaps/heatmaps.csv"])
def test_file_that_is_broken_empty_or_of_another_format_is_one_line(
    study: Study, tmp_path: Path, name: str, content: bytes
) -> None:
    for file in ("metrics.json", "predictions.csv"):
        shutil.copy(study.crossval / file, tmp_path / file)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    failures = tmp_path / name if name == "failures.csv" else None
    heatmaps = tmp_path / "heatmaps" if name.startswith("heatmaps") else None
    with pytest.raises(InputError, match=rf"{name} .*; pass --(crossval|failures|heatmaps)") as caught:
        report(tmp_path / "r.html", tmp_path, [study.embeddings], study.cohort, heatmaps, failures)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 4}, "reads up to 3; upgrade pathfm"),
        ({"format_version": 2}, "format_version 2, which this pathfm does not read"),
        ({"patient": {"auroc": 1}}, "key 'patient.auroc' holds int"),
        ({"target": {"name": "cancer", "kind": "classes", "classes": "01"}}, "key 'target' that cannot be read"),
        ({"figures": ["f1"]}, "key 'figures' that is not auroc, average_precision, balanced_accuracy, f1"),
        ({"controls": {"site": {"available": True, "why": "so"}}}, "lacks the key 'controls.site.auroc'"),
        ({"folds": [{"fold": 0}]}, "lacks the key 'folds.0.n_train_patients'"),
        ({"left_out": [{"slide_id": "a"}]}, "lacks the key 'left_out.0.reason'"),
        ({"warnings": None}, "key 'warnings' holds NoneType"),
        ({"interval": float("nan")}, "is not JSON"),
        ({"n_slides": 3}, "do not belong together"),
    ],
)
def test_metrics_that_do_not_hold_what_they_should_name_the_key(
    study: Study, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    metrics = json.loads((study.crossval / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | change))
    shutil.copy(study.crossval / "predictions.csv", tmp_path)
    with pytest.raises(InputError, match=message):
        report(tmp_path / "r.html", tmp_path, [study.embeddings], study.cohort)


def test_picture_that_is_broken_is_named(study: Study, tmp_path: Path) -> None:
    shutil.copytree(study.root / "heatmaps", tmp_path / "heatmaps")
    (tmp_path / "heatmaps" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"b\.png cannot be read as a picture.*pathfm heatmap again"):
        report(tmp_path / "r.html", study.crossval, [study.embeddings], study.cohort, tmp_path / "heatmaps")


def test_model_that_is_broken_is_a_model_error(study: Study, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ModelError, match=r"model\.json lacks the key 'format'"):
        report(tmp_path / "r.html", study.crossval, [study.embeddings], study.cohort, model=tmp_path)


def test_embeddings_of_another_recipe_than_the_scores_are_refused(study: Study, tmp_path: Path) -> None:
    other = replace(embeddings_of("a", 0), recipe=RECIPE | {"reader": 2})
    write_embeddings(tmp_path / "planted-other" / "a.h5", other)
    with pytest.raises(EmbeddingsStaleError, match=r"a\.h5 was made with another recipe: reader is 2, wanted absent"):
        report(tmp_path / "r.html", study.crossval, [tmp_path / "planted-other"], study.cohort)


def test_final_model_of_another_recipe_than_the_scores_is_refused(study: Study, tmp_path: Path) -> None:
    write_model(tmp_path / "model", replace(read_model(study.model), recipe=RECIPE | {"reader": 2}))
    with pytest.raises(ModelError, match=r"another recipe than .*reader is 2.*pass --model"):
        report(tmp_path / "r.html", study.crossval, [study.embeddings], study.cohort, model=tmp_path / "model")


def test_evaluation_of_another_model_is_refused(study: Study, tmp_path: Path) -> None:
    rest = (tmp_path / "r.html", tmp_path / "crossval", [study.embeddings], study.cohort)
    with_blocks(study, tmp_path / "crossval", model_sha256="0" * 64)
    with pytest.raises(InputError, match=r"metrics\.json holds figures of another model than --model .*; pass --model"):
        report(*rest, model=study.model)
    with_blocks(study, tmp_path / "crossval", model_sha256=model_sha256(study.model))
    assert report(*rest, model=study.model).is_file()


def test_model_of_another_target_or_of_other_figures_than_the_cross_validation_is_refused(
    study: Study, tmp_path: Path
) -> None:
    folder, model = with_blocks(study, tmp_path / "crossval", lesion=None, warnings=["added"]), read_model(study.model)
    rest = (tmp_path / "r.html", folder, [study.embeddings], study.cohort)
    mine = json.loads((study.crossval / "metrics.json").read_text())
    write_model(tmp_path / "mine", replace(model, figures={"cancer": mine}))
    assert report(*rest, model=tmp_path / "mine").is_file()
    write_model(tmp_path / "others", replace(model, figures={"cancer": mine | {"n_patients": 5, "protocol": "so"}}))
    with pytest.raises(InputError, match=r"states other figures than .*\(protocol, n_patients\); pass --model"):
        report(*rest, model=tmp_path / "others")
    cohort = write_scores(study, tmp_path, ["grade:ordinal"])
    with pytest.raises(InputError, match=r"model does not predict grade as .*metrics\.json has it \(ordinal: prob_G1"):
        report(tmp_path / "r.html", tmp_path, [study.embeddings], cohort, model=study.model)


def test_cohort_that_lacks_the_scored_slides_is_refused(study: Study, tmp_path: Path) -> None:
    table = pd.read_csv(study.cohort, dtype=str, keep_default_na=False).assign(path="")
    table.assign(slide_id=[f"x{i}" for i in range(len(table))]).to_csv(tmp_path / "none.csv", index=False)
    table.iloc[5:].to_csv(tmp_path / "few.csv", index=False)
    for name, lacking in (("none.csv", 8), ("few.csv", 5)):
        told = rf"predictions\.csv scores a, which the cohort table does not list \({lacking} of 8 .*; pass --cohort"
        with pytest.raises(InputError, match=told):
            report(tmp_path / "r.html", study.crossval, [study.embeddings], tmp_path / name)
    table.iloc[4:].to_csv(tmp_path / "half.csv", index=False)
    assert report(tmp_path / "r.html", study.crossval, [study.embeddings], tmp_path / "half.csv").is_file()


def test_line_among_the_scores_is_the_frozen_threshold_and_there_is_none_where_folds_have_their_own(
    study: Study, tmp_path: Path
) -> None:
    points = of_two_classes()["operating_points"]
    folds = json.loads(json.dumps(points))
    folds["outcomes"]["1"]["patient"]["threshold"] = None
    plots = {}
    for block, at, told in (
        (points, 0.37, "the dotted line is the threshold of the operating point, 0.370."),
        (folds, None, "Score of each patient, by what is true."),
        (None, 0.5, "the dotted line is 0.5, and no operating point was chosen."),
    ):
        folder = with_blocks(study, tmp_path / f"crossval-{at}", operating_points=block)
        data = gather(folder, [study.embeddings], read_cohort(study.cohort), None, None, None)
        assert line_at(data.target, data.metrics) == at
        plots[at] = draw_plots(data.predictions, data.target, data.metrics)["scores"]
        assert told in text_of(report(tmp_path / "r.html", folder, [study.embeddings], study.cohort).read_text())
    assert len(set(plots.values())) == 3


def test_report_on_a_trained_model_shows_its_held_out_slides_alone(study: Study, tmp_path: Path) -> None:
    table = pd.read_csv(study.cohort, dtype=str, keep_default_na=False)
    split = ["train", "train", "train", "train", "val", "val", "test", "test", ""]
    table["path"] = ""
    table.assign(split=split).to_csv(tmp_path / "cohort.csv", index=False)
    train(tmp_path / "cohort.csv", [study.embeddings], "cancer", tmp_path / "model", training=SETTINGS)
    assert len(pd.read_csv(tmp_path / "model" / "predictions.csv")) == 8
    out = report(
        tmp_path / "r.html", tmp_path / "model", [study.embeddings], tmp_path / "cohort.csv", model=tmp_path / "model"
    )
    html = out.read_text()
    slides = html.split("<h3>Slides</h3>")[1].split("<h2>")[0]
    assert re.findall(r'<tr><td class="id">([^<]*)</td>', slides) == ["g", "h"]
    data = gather(tmp_path / "model", [study.embeddings], read_cohort(tmp_path / "cohort.csv"), None, None, None)
    assert data.predictions["slide_id"].tolist() == ["g", "h"]  # what the plots are drawn from
    assert "held-out test rows of the cohort's split on 2 slides of 2 patients" in text_of(html)
    assert "those of the cross-validation" not in text_of(html)


def test_trained_model_without_held_out_slides_has_nothing_to_report(study: Study, tmp_path: Path) -> None:
    train(study.cohort, [study.embeddings], "cancer", tmp_path / "model", training=SETTINGS)
    with pytest.raises(InputError, match=r"no held-out rows.*run pathfm crossval, or pathfm evaluate"):
        report(tmp_path / "r.html", tmp_path / "model", [study.embeddings], study.cohort)


def test_figures_are_written_with_their_interval_and_a_true_minus() -> None:
    assert interval({"value": 0.5, "low": -0.125, "high": 1.0}) == "0.50 (−0.12 to 1.00)"
    assert interval({"value": None, "low": None, "high": None}) == "not available"
    assert number(None) == ""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
@pytest.mark.parametrize("width_px", [500, 1280])
def test_page_is_no_wider_than_the_window_of_a_phone_or_a_desktop(html: str, tmp_path: Path, width_px: int) -> None:
    page = tmp_path / "page.html"
    measuring = "<script>document.title = document.documentElement.scrollWidth + ' of ' + window.innerWidth</script>"
    bare = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", html)
    page.write_text(bare.replace("</body>", f"{measuring}</body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *flags.split(), f"--window-size={width_px},900", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    needed, given = map(int, re.findall(r"<title>(\d+) of (\d+)</title>", dom)[0])
    assert given <= width_px
    assert needed <= given


def test_the_failures_of_all_caches_are_listed_each_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first / "colour-1", second):
        folder.mkdir(parents=True)
    for folder, names in ((first, "xy"), (second, "yz")):
        lines = [f"{name},/home/{name}.svs,truncated,/home/{name}.svs ends early" for name in names]
        (folder / "failures.csv").write_text("\n".join(["slide_id,path,reason,message", *lines, ""]))
    folders = [first, first / "colour-1", second]
    rows = _failures(folders, None)
    assert rows is not None
    assert rows["slide_id"].tolist() == ["x", "y", "z"]
    assert _failures(folders, second / "failures.csv")["slide_id"].tolist() == ["y", "z"]  # type: ignore[index]
    assert _failures([tmp_path / "nowhere"], None) is None


def with_blocks(study: Study, folder: Path, **blocks: Any) -> Path:
    """The results of the study with such blocks in metrics.json."""
    shutil.copytree(study.crossval, folder, dirs_exist_ok=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | blocks))
    return folder


def headings(html: str) -> list[str]:
    return [unescape(title) for title in re.findall(r"<h2>([^<]*)</h2>", html)]


def section(html: str, name: str) -> str:
    """The text of a section."""
    return text_of("<body>" + html.split(f'<section id="{name}"')[1].split("</section>")[0])


OF_BLOCKS = {
    "operating_points": "At the operating point",
    "conformal": "When it abstains",
    "subgroups": "In which patients it is better or worse",
    "shift": "Are these slides like those it learned from?",
}


def test_every_block_has_its_section_and_its_figures_there(study: Study, tmp_path: Path) -> None:
    folder = with_blocks(study, tmp_path / "crossval", **of_two_classes())
    html = report(tmp_path / "r.html", folder, [study.embeddings], study.cohort, model=study.model).read_text()
    text = text_of(html)
    assert set(OF_BLOCKS.values()) <= set(headings(html))
    assert headings(html)[0] == "In plain words"
    for told in (
        *("with cancer 46 found 4 missed without 10 false alarms 190 rightly left", "46 of 50, 92 % (81 to 97 %)"),
        *("Of 1,000 patients like these, 50 of them with cancer", "3,688 negatives", "exact 81 to 98 %"),
        *("30 of 250, 12 % (9 to 17 %)", "site: weakest is south", "0.81 (0.70 to 0.91)", "p = 0.030"),
        *("patients, slide digests", "near-duplicates, the embeddings have no thumbnail hash", "7 times, by 3 models"),
        *(
            "No shift was seen.",
            "1.05 (0.80 to 1.30)",
            "= 0.004 reliability \u2212 0.104 resolution + 0.160 uncertainty",
        ),
    ):
        assert told in text
    assert 'alt="The main figure by subgroup"' in html
    for anchor in re.findall(r'href="#([a-z]+)"', html):
        assert f'<section id="{anchor}"' in html


def test_blocks_that_are_not_there_have_no_section_and_no_operating_point_says_how_to_get_one(
    study: Study, tmp_path: Path
) -> None:
    folder = with_blocks(study, tmp_path / "crossval", **dict.fromkeys(of_two_classes()))
    html = report(tmp_path / "r.html", folder, [study.embeddings], study.cohort).read_text()
    assert set(headings(html)) & set(OF_BLOCKS.values()) == {"At the operating point"}
    assert "No operating point was chosen" in text_of(html)
    assert "--operating-point" in text_of(html)


def test_shift_that_was_not_tested_says_why(study: Study, tmp_path: Path) -> None:
    absent = shift() | {"available": False, "why": "few", "flagged": None, "alarm": None, "embedding": None}
    absent |= {"sentence": "Not tested: few slides.", "colour": None}
    folder = with_blocks(study, tmp_path / "crossval", shift=absent)
    html = report(tmp_path / "r.html", folder, [study.embeddings], study.cohort).read_text()
    assert section(html, "shift").endswith("Not tested: few slides. the scale of 3 slides is not known")


def test_screening_has_any_its_types_its_strata_and_where_from(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", [f"s{i}" for i in range(7)], classes=3)
    blocks = {"screening": screening(["1", "2"], "0"), "prevalence": 0.01}
    folder = with_blocks(study, tmp_path / "crossval", **blocks)
    html = report(tmp_path / "r.html", folder, [study.embeddings], study.cohort).read_text()
    text = section(html, "screening")
    for told in ("any cancer 50 0.95 (0.91 to 0.98)", "common cancers", "rare cancers", "1 common 25", "2 rare 25"):
        assert told in text
    assert "Right in 40 of 46, 87 % (74 to 94 %)" in text
    assert "true, down; named, across 1 2 1 20 3 2 3 20" in text
    assert html.count('alt="ROC curve by patient"') == 1
    head = text_of(html).split("How good it is")[0]
    assert "Patient-level AUROC of any cancer 0.95 95 % interval 0.91 to 0.98" in head
    assert "AUROC, mean over one class against the rest: " in head
    for name in ("card", "tripod"):
        assert "AUROC of any cancer: 0.95 (0.91 to 0.98)" in section(html, name)
    assert "AUROC of any cancer 0.95 (0.91 to 0.98)" in section(html, "figures")


def test_model_card_says_what_is_stated_and_what_is_not_and_tripod_answers_every_item(
    study: Study, tmp_path: Path
) -> None:
    card = tmp_path / "card.yaml"
    card.write_text("intended_use: Sorting <b>slides</b>\ntripod: {18a: No funding., 1: Our title}\n")
    html = report(
        *(tmp_path / "r.html", study.crossval, [study.embeddings], study.cohort), model=study.model, card=card
    ).read_text()
    assert "Sorting &lt;b&gt;slides&lt;/b&gt;" in html
    assert "Intended use Sorting <b>slides</b> Intended users not stated" in section(html, "card")
    rows = re.findall(r'<tr class="([a-z-]+)"><td>([0-9a-g]+)</td>', html.split('id="tripod"')[1])
    assert [number_ for _, number_ in rows] == [item.number for item in ITEMS]
    status = {number_: kind for kind, number_ in rows}
    assert status["18a"] == status["1"] == "stated"
    assert status["18b"] == status["5b"] == "authors"
    assert status["9c"] == status["24"] == "not-applicable"
    assert status["23a"] == status["12a"] == "filled"
    assert "Our title From the data: Development and internal validation" in section(html, "tripod")


def test_examples_are_of_those_that_are_wrong_and_of_those_that_are_right() -> None:
    rows = [{"slide_id": f"w{i}", "order": 0, "overlay": "x.png"} for i in range(40)]
    rows += [{"slide_id": f"r{i}", "order": 2, "overlay": "x.png" if i else ""} for i in range(9)]
    shown = _examples(rows)
    assert [row["slide_id"] for row in shown] == [f"w{i}" for i in range(16)] + [f"r{i}" for i in range(1, 9)]
    assert _examples(rows[-4:]) == rows[-4:]


def test_texts_of_blocks_that_come_from_anywhere_stay_text(study: Study, tmp_path: Path) -> None:
    hostile = "\"'><script>alert(1)</script>"
    blocks = json.loads(json.dumps(of_two_classes()).replace("south", json.dumps(hostile)[1:-1]))
    blocks["operating_points"]["outcomes"] = {hostile: blocks["operating_points"]["outcomes"]["1"]}
    blocks["shift"]["sentence"] = blocks["ledger"]["file"] = hostile
    folder = with_blocks(study, tmp_path / "crossval", **blocks)
    html = report(tmp_path / "r.html", folder, [study.embeddings], study.cohort).read_text()
    assert "<script" not in html
    assert f"site: weakest is {hostile}" in text_of(html)
