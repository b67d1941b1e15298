from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pathfm.cli import COMMANDS, command_parser, main
from pathfm.options import read_options

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a command that must fail with exit code 2."""
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pathfm: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_each_of_its_options(command: str) -> None:
    parser, _ = command_parser(command)
    silent = [
        action.option_strings[-1]
        for action in parser._actions
        if action.option_strings and not action.help and not hasattr(action, "_typehint_group")
    ]
    assert silent == []
    assert command in parser.format_help()


@pytest.mark.parametrize("config", [path for path in CONFIGS if path.stem != "gate"], ids=lambda path: path.stem)
def test_every_shipped_config_of_a_command_parses(config: Path) -> None:
    tuned = config.stem == "tune"
    parser, _ = command_parser("tune" if tuned else "run")
    words = ["--cohort", "cohort.csv", "--out", "out", *(["--label", "x", "--embeddings", "e"] if tuned else [])]
    settings = read_options(parser, "run", ["--config", str(config), *words])
    assert settings.label
    assert parser.instantiate(settings)


def test_there_are_shipped_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["verfy"], "unknown command 'verfy'; near: verify"),
        (["verify"], "required: embeddings"),
        (["verify", "--embedings", "x"], "unknown option --embedings; near: --embeddings"),
        (["verify", "--embed", "x"], "unknown option --embed"),
        (["verify", "--embeddings", "nowhere"], "nowhere is not a folder; pass --embeddings"),
        (["verify", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["tile", "--slides", "nowhere", "--out", "out"], "nowhere"),
        (["extract", "--slides", ".", "--out", "out", "--backbone", "virchw2"], "near: virchow2, virchow"),
        (["extract", "--slides", "nowhere", "--out", "out", "--tiles.size", "3"], "near: --tiles.size_px"),
        (["extract", "--slides", "nowhere", "--out", "out", "--tiles.mpp", "fine"], "tiles.mpp"),
        (["train", "--training.hiden", "3"], "unknown option --training.hiden; near: --training.hidden"),
        (["tune", "--cohort", "c", "--inner-fold", "3"], "unknown option --inner_fold; near: --inner_folds"),
        (["compare", "--cohort", "c", "--head", "mean"], "unknown option --head; near: --heads"),
        (["crossval", "--cohort", "c", "--split", "sites"], "split"),
        (["train", "--cohort", "nowhere.csv", "--embeddings", "x", "--label", "y", "--out", "out"], "nowhere.csv"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_where_and_what_now(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.svs").touch()
    assert says in error_of(capsys, *words)


def test_an_unknown_key_of_a_config_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("embeddings: x\nembedings: y\n")
    assert "embedings" in error_of(capsys, "verify", "--config", str(tmp_path / "c.yaml"))


def test_a_config_that_is_no_yaml_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: [1,\n b: }")
    assert "c.yaml" in error_of(capsys, "verify", "--config", str(tmp_path / "c.yaml"))


def test_a_config_with_a_python_tag_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "c.yaml").write_text(f"embeddings: !!python/object/apply:os.mkdir ['{ran}']\n")
    error_of(capsys, "verify", "--config", str(tmp_path / "c.yaml"))
    assert not ran.exists()


def test_help_is_quick_because_it_imports_no_torch() -> None:
    program = "import sys; from pathfm.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert all(command in result.stdout for command in COMMANDS)


def test_the_module_runs_like_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "pathfm", "nonsense"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


def test_a_file_whose_name_starts_with_a_bracket_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "[1] a.svs").touch()
    words = ["tile", "--slides", str(tmp_path / "[1] a.svs"), "--out", str(tmp_path / "out")]
    assert "1 of 1 slides failed" in error_of(capsys, *words)


def test_a_disk_that_is_full_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out/logs/metrics.csv")

    monkeypatch.setattr("pathfm.verify.find_embeddings", full)
    assert "no space left to write out/logs/metrics.csv" in error_of(capsys, "verify", "--embeddings", "x")


def test_ctrl_c_ends_with_130_and_says_that_the_command_can_be_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pathfm.verify.find_embeddings", interrupted)
    assert main(["verify", "--embeddings", "x"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--mag", "20"], ["--mag=20"]])
def test_mag_is_sugar_for_an_mpp(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "a.svs").touch()
    main(["tile", "--slides", str(tmp_path / "a.svs"), "--out", str(tmp_path / "out"), *words])
    assert "mpp: 0.5" in (tmp_path / "out" / "pathfm-tile.yaml").read_text()


def test_a_mag_that_is_no_number_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--mag is 'high'" in error_of(capsys, "tile", "--slides", "x", "--out", "o", "--mag", "high")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--embeddings", "a", "--embeddings", "b"], ["a", "b"]),
        (["--embeddings=a", "--label", "y", "--embeddings", "b", "[c"], ["a", "b", "[c"]),
        (["--embeddings", '["a"]', "--embeddings=b"], ["a", "b"]),
        (["--embeddings", "2024", "--embeddings", "[1] b"], ["2024", "[1] b"]),
    ],
)
def test_a_list_option_that_is_repeated_has_the_values_of_all(words: list[str], wanted: list[str]) -> None:
    parser, _ = command_parser("train")
    settings = read_options(parser, "train", ["--cohort", "c", "--label", "x", "--out", "o", *words])
    assert [str(path) for path in settings.embeddings] == wanted


@pytest.mark.parametrize("text", ["embeddings: folder", "embeddings: [folder]", "embeddings:\n- folder"])
def test_a_config_that_has_a_value_alone_for_a_list_is_read_as_before_it_was_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(f"{text}\nlabel: cancer\n")
    parser, _ = command_parser("train")
    words = ["--config", str(tmp_path / "c.yaml"), "--cohort", "c", "--out", "o"]
    assert read_options(parser, "train", words).embeddings == [Path("folder")]
    assert read_options(parser, "train", [*words, "--embeddings", "a", "--embeddings", "b"]).embeddings == [
        Path("a"),
        Path("b"),
    ]
    parser, _ = command_parser("verify")  # of which it is no list
    (tmp_path / "c.yaml").write_text("embeddings: folder\nslides: here\n")
    settings = read_options(parser, "verify", ["--config", str(tmp_path / "c.yaml")])
    assert (settings.embeddings, settings.slides) == (Path("folder"), [Path("here")])


def test_backbones_as_a_list_in_a_config_are_told_how_to_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("backbone: [uni, virchow2]\n")
    words = ["extract", "--config", str(tmp_path / "c.yaml"), "--slides", "x", "--out", str(tmp_path / "out")]
    assert 'write it as one text, backbone: "uni,virchow2"' in error_of(capsys, *words)


@pytest.mark.parametrize("names", ["colour,", ",colour", "colour,,resnet50"])
def test_an_empty_name_among_backbones_is_said_to_be_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, names: str
) -> None:
    (tmp_path / "a.svs").touch()
    words = ["extract", "--slides", str(tmp_path), "--out", str(tmp_path / "out"), "--backbone", names]
    assert "--backbone has an empty name between its commas" in error_of(capsys, *words)


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_waiting_threads_sleep_soon_where_the_environment_does_not_say_how_long(
    given: dict[str, str], spins: str
) -> None:
    code = (
        "import os, sys\nfrom pathfm.cli import main\nassert 'torch' not in sys.modules\nmain(['heads'])\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{spins} True False"  # nor is the compiler loaded, which takes seconds


def test_commands_that_train_nothing_do_not_load_what_trains() -> None:
    modules = [COMMANDS[name][0].partition(":")[0] for name in ("predict", "evaluate", "gate", "heatmap", "report")]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
