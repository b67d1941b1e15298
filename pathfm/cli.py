"""The command line: every command is a typed function; its signature is its options, its YAML and its help.

This is the one place that turns a `PathfmError` into one line on stderr and an exit code: 0 done, 2 something has to be
done first, 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathfm.errors import DiskFullError, PathfmError, UnknownNameError
from pathfm.files import is_disk_full, write_text
from pathfm.options import read_options, read_yaml_for, without_names
from pathfm.privacy import make_folder, require_no_pseudonyms
from pathfm.progress import logger
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jsonargparse import ArgumentParser

# command: (module:function, what it does); imported only when asked for, so that --help is quick.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("pathfm.demo:demo", "make a cohort of slides and take it the whole way to a report"),
    "run": ("pathfm.study:run", "slides and labels to a model and a report, from one config file"),
    "doctor": ("pathfm.doctor:doctor", "what this machine can do, and what is wrong with the slides given"),
    "backbones": (
        "pathfm.backbones:backbones",
        "the table of backbones, the card of one, or a check of one, your own too",
    ),
    "weights pack": ("pathfm.weights:pack_weights", "weights of backbones into a bundle for machines without network"),
    "weights unpack": ("pathfm.weights:unpack_weights", "a bundle, proven, into the cache of weights"),
    "probe": ("pathfm.probe:probe", "how well backbones tell labels apart, and how well they tell the site"),
    "tile": ("pathfm.preview:tile", "tissue and tile grid, without a backbone"),
    "extract": ("pathfm.extract:extract", "slides to embeddings files"),
    "import": (
        "pathfm.convert:import_embeddings",
        "features of CLAM, TRIDENT, STAMP, AtlasPatch, slideflow to embeddings files",
    ),
    "export": ("pathfm.convert:export_embeddings", "embeddings files to what CLAM, TRIDENT or STAMP read"),
    "verify": ("pathfm.verify:verify", "prove that every embeddings file is complete and unchanged"),
    "train": ("pathfm.train:train", "cohort and embeddings to a model directory"),
    "heads": ("pathfm.heads.listing:heads_table", "the table of heads, with their options and papers"),
    "crossval": ("pathfm.crossval:crossval", "cross-validation by patient or site, with figures and intervals"),
    "tune": ("pathfm.tune:tune", "good settings found on inner folds, and honest figures of models tuned so"),
    "compare": (
        "pathfm.compare:compare",
        "heads and backbones over one cohort on the same folds, with paired intervals",
    ),
    "predict": ("pathfm.predict:predict", "a model on new slides or embeddings files"),
    "evaluate": ("pathfm.evaluate:evaluate", "a frozen model on a labelled cohort it has not seen"),
    "heatmap": ("pathfm.heatmap:heatmap", "where the model looked: overlay, GeoJSON for QuPath, top tiles"),
    "report": ("pathfm.report:report", "one self-contained HTML file"),
    "gate": ("pathfm.gate:gate", "a model held against criteria that were declared before, and its stage"),
}
_GROUPS = {command.partition(" ")[0] for command in COMMANDS if " " in command}
# The option that the words right after a command are.
_LEADING = {"weights pack": "--names", "weights unpack": "--bundle"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _sleep_soon()
    try:
        with _log_to_stderr():
            return _dispatch(words)
    except PathfmError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `pathfm backbones | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if is_disk_full(error):
            return _fail(str(DiskFullError(Path(str(error.filename or "the output folder")))))
        return _fail(
            f"{error.filename or 'a file'}: {error.strerror or error}; check that it exists and may be read or written"
        )
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is kept, and the same command goes on from there")
        return 130


def _sleep_soon() -> None:
    """Has a thread that waits for the others of a product sleep after microseconds, unless the environment says how long.

    By default GNU's OpenMP, which torch has on Linux, lets it spin for milliseconds. Where another process has one of the
    cores, the thread that is waited for gets no turn meanwhile, and small products take 2 to 50 times as long; on cores of
    its own little or nothing is lost (`benchmarks/busy.py`). It is read as torch is loaded, which no command has done yet.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def command_parser(command: str) -> tuple[ArgumentParser, Callable[..., Any]]:
    """The parser of a command and its function; YAML keys, options and keyword arguments are the same names."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    target, summary = COMMANDS[command]
    module, name = target.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    # No option names a class, and jsonargparse would import the module of one before it refuses it.
    set_parsing_settings(docstring_parse_attribute_docstrings=True, import_path_denylist=["*"])
    parser = ArgumentParser(
        prog=f"pathfm {command}",
        description=f"{summary[0].upper()}{summary[1:]}.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with these options as keys")
    parser.add_function_arguments(function, sub_configs=True)
    read_yaml_for(parser)
    return parser, function


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    if words[0] in _GROUPS and (len(words) == 1 or words[1] in ("-h", "--help", "help")):
        print(_overview(f"{words[0]} "))
        return 0
    command, options = _command(words)
    parser, function = command_parser(command)
    settings = read_options(parser, command, options)
    ready = parser.instantiate(settings)
    keywords = {key: value for key, value in ready.items() if key != "config"}
    if not (command in _LEADING or _writes_one_file(keywords.get("out"))):  # a bundle holds what it lists, no more
        if keywords.get("pseudonymise"):
            make_folder(Path(keywords["out"]))
            settings = without_names(settings)
        elif "pseudonymise" in keywords:
            require_no_pseudonyms(Path(keywords["out"]))
        write_text(Path(keywords["out"]) / f"pathfm-{command}.yaml", parser.dump(settings, skip_validation=True))
    result = function(**keywords)
    if result is not None:
        _print(result)
        sys.stdout.flush()
    return 0


def _command(words: list[str]) -> tuple[str, list[str]]:
    """The command, of one word or of two, and its options."""
    count = 2 if words[0] in _GROUPS else 1
    command, options = " ".join(words[:count]), words[count:]
    if command not in COMMANDS:
        kind = "command"
        raise UnknownNameError(kind, command, COMMANDS, "pathfm --help says what each does")
    if command in _LEADING and options and not options[0].startswith("-"):
        options = [_LEADING[command], *options]
    return command, options


def _writes_one_file(out: object) -> bool:
    return not isinstance(out, Path) or out.suffix.lower() in (".html", ".htm")


def _overview(start: str = "") -> str:
    """What each command does; of those that start like this."""
    shown = {name: summary for name, (_, summary) in COMMANDS.items() if name.startswith(start)}
    width = max(map(len, shown))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in shown.items()]
    head = f"pathfm {__version__}: whole-slide images and a table of labels in, a slide-level model and a report out."
    tail = "pathfm COMMAND --help lists the options of one; --config FILE.yaml takes them from a file."
    return "\n".join([head, "", "usage: pathfm COMMAND ...", "", *lines, "", tail])


def _print(result: Any) -> None:
    """Tables are plain, left-aligned, untruncated, one row a line, each of several by name; other results say themselves."""
    if isinstance(result, dict):  # a table a target
        for name, table in result.items():
            if len(result) > 1:
                print(f"{name}:")
            _print(table)
        return
    if not hasattr(result, "columns"):
        print(result)
        return
    rows = [list(result.columns), *([("" if v is None or v != v else v) for v in row] for row in result.to_numpy())]
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _fail(message: str) -> int:
    print("pathfm: " + re.sub(r"\s*\n\s*", " ", message), file=sys.stderr)
    return 2


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Shows what pathfm logs, as plain lines, while a command runs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
