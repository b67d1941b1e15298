"""The command line: every command is a typed function; its signature is its options, its YAML and its help.

This is the one place that turns a `PathfmError` into one line on stderr and an exit code: 0 done, 2 something has to be
done first, 130 interrupted.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import json
import logging
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathfm.errors import DiskFullError, InputError, PathfmError, UnknownNameError
from pathfm.files import is_disk_full, write_text
from pathfm.privacy import make_folder, require_no_pseudonyms
from pathfm.progress import logger
from pathfm.scrub import WITHHELD, Scrubber
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jsonargparse import ArgumentParser, Namespace

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
    "crossval": ("pathfm.crossval:crossval", "cross-validation by patient, with figures and intervals"),
    "predict": ("pathfm.predict:predict", "a model on new slides or embeddings files"),
    "evaluate": ("pathfm.evaluate:evaluate", "a frozen model on a labelled cohort it has not seen"),
    "heatmap": ("pathfm.heatmap:heatmap", "where the model looked: overlay, GeoJSON for QuPath, top tiles"),
    "report": ("pathfm.report:report", "one self-contained HTML file"),
}
_GROUPS = {command.partition(" ")[0] for command in COMMANDS if " " in command}
# The option that the words right after a command are.
_LEADING = {"weights pack": "--names", "weights unpack": "--bundle"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
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
    _read_yaml_for(parser)
    return parser, function


def _read_yaml_for(parser: ArgumentParser) -> None:
    """Has the parser refuse YAML aliases: a few of them stand for more values than fit into memory.

    It takes a value alone for a list of one where an option is a list, as files that were written before it was one.
    """
    import yaml
    from jsonargparse import set_loader

    load, lists = _plain_loader(), {name.removeprefix("--") for name in _list_options(parser)}

    def read(text: str) -> Any:
        alias = next((token for token in yaml.scan(text) if isinstance(token, yaml.AliasToken)), None)
        if alias is not None:
            message = "an alias (*) is not read here, write out what it stands for"
            raise yaml.YAMLError(message)
        found = load(text)
        return _with_lists(found, lists) if isinstance(found, dict) else found

    set_loader("yaml", read, (yaml.YAMLError,))


@functools.cache
def _plain_loader() -> Callable[[str], Any]:
    """The parser's own loader, which is asked for before another takes its place."""
    from jsonargparse import get_loader

    loader: Callable[[str], Any] = get_loader("yaml")
    return loader


def _with_lists(found: dict[str, Any], lists: set[str]) -> dict[str, Any]:
    """The keys and values of a config, each value alone in a list where the option is one."""
    names = found.get("backbone")
    if isinstance(names, list) and "backbone" not in lists:
        message = f'--config has backbone as a list; write it as one text, backbone: "{",".join(map(str, names))}"'
        raise InputError(message)
    alone = {key for key in lists & found.keys() if isinstance(found[key], str | int | float)}
    return {key: [value] if key in alone else value for key, value in found.items()}


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
    settings = _parse(parser, command, options)
    ready = parser.instantiate(settings)
    keywords = {key: value for key, value in ready.items() if key != "config"}
    if not (command in _LEADING or _writes_one_file(keywords.get("out"))):  # a bundle holds what it lists, no more
        if keywords.get("pseudonymise"):
            make_folder(Path(keywords["out"]))
            settings = _without_names(settings)
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


def _without_names(settings: Namespace) -> Namespace:
    """The settings without the paths that may name people; to run from them these have to be said again."""
    shown = settings.clone()
    people = ("slides", "cohort", "outlines", "annotations", "images", "features", "coords")
    for name in (*people, "config", "pseudonymise"):
        if shown.get(name) is not None:
            shown[name] = [WITHHELD] if isinstance(shown[name], list) else WITHHELD
    return shown


def _parse(parser: ArgumentParser, command: str, options: list[str]) -> Any:
    """The settings; what is wrong with the options is said without their values where these may name people."""
    try:
        return _settings(parser, command, options)
    except InputError as error:
        raise InputError(_said_to(options)(str(error))) from error


def _said_to(options: list[str]) -> Callable[[str], str]:
    """Hides the values on the command line, and the words of its config files, where one of them says `pseudonymise`."""
    values = [part for word in options for part in word.split("=", 1) if not part.startswith("--")]
    configs = [path.read_text(encoding="utf-8", errors="replace") for path in map(Path, values) if _is_config(path)]
    if not any("pseudonymise" in text for text in (*options, *configs)):
        return str
    scrubber = Scrubber()
    for word in (*values, *(word for text in configs for word in re.findall(r"[^\s'\"\[\]{},]+", text))):
        if not word.endswith(":"):
            scrubber.learn(word, WITHHELD)
    return scrubber


def _is_config(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml") and path.is_file()


def _settings(parser: ArgumentParser, command: str, options: list[str]) -> Any:
    from jsonargparse import ArgumentError

    known = sorted({name for action in parser._actions for name in action.option_strings if name.startswith("--")})
    try:
        return parser.parse_args(_gather_lists(_mpp_for_mag(_underscored(options)), _list_options(parser)))
    except ArgumentError as error:
        config = re.search(r"--config[= ](\S+)", " ".join(options))
        where = f"{config[1]}: " if config and "config" in str(error) else ""
        raise InputError(where + _one_line(str(error), known, command)) from error
    except (OSError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        message = (
            f"--config cannot be read ({said}); pass a YAML file in UTF-8 with the options that pathfm {command} has"
        )
        raise InputError(message) from error


def _underscored(options: list[str]) -> list[str]:
    """`--mpp-override 0.25` is what people type; the names are Python's."""
    return [re.sub(r"^--[\w.-]+", lambda m: "--" + m[0][2:].replace("-", "_"), word) for word in options]


def _mpp_for_mag(options: list[str]) -> list[str]:
    """`--mag 20` is sugar for `--tiles.mpp 0.5`: by convention a 10x objective is 1 micron per pixel."""
    words = [part for word in options for part in (word.split("=", 1) if word.startswith("--mag=") else [word])]
    for at, word in enumerate(words[:-1]):
        if word == "--mag":
            try:
                words[at : at + 2] = ["--tiles.mpp", f"{10 / float(words[at + 1]):g}"]
            except (ValueError, ZeroDivisionError) as error:
                message = f"--mag is {words[at + 1]!r}; give a magnification such as 20 or 20.0, or --tiles.mpp 0.5"
                raise InputError(message) from error
    return words


def _list_options(parser: ArgumentParser) -> frozenset[str]:
    return frozenset(
        name
        for action in parser._actions
        if "list[" in str(getattr(action, "_typehint", ""))
        for name in action.option_strings
    )


def _gather_lists(words: list[str], list_options: frozenset[str]) -> list[str]:
    """Turns `--slides a b`, or `--slides a --slides b`, into `--slides ["a","b"]`, the only form that jsonargparse takes."""
    gathered: list[str] = []
    listed: dict[str, list[Any]] = {}
    while words:
        word, *words = words
        name, _, value = word.partition("=")
        if value and name in list_options:
            word, words = name, [value, *words]
        if word not in list_options:
            gathered.append(word)
            continue
        count = next((i for i, w in enumerate(words) if w.startswith("--")), len(words))
        values, words = words[:count], words[count:]
        if word in listed and values:  # the last would count alone: it takes those before it along
            at = gathered.index(word)
            del gathered[at : at + 2]
        if values:
            listed[word] = listed.get(word, []) + _listed(values)
        gathered += [word, json.dumps(listed[word])] if values else [word]
    return gathered


def _listed(values: list[str]) -> list[Any]:
    """The values, also where they are in the parser's own form already; a name may start with a bracket all the same."""
    try:
        found = json.loads(" ".join(values))
    except ValueError:
        return values
    return found if isinstance(found, list) else values


def _one_line(text: str, known: list[str], command: str) -> str:
    """The parser's message without its line breaks, and near names where an option is unknown."""
    line = re.sub(r"\s+", " ", text).strip().removeprefix("error: ")
    unknown = re.search(r"(?:[Uu]nrecognized arguments: |does not accept option '|Key ')(?:--)?([\w.]+)", line)
    if unknown:
        near = difflib.get_close_matches(f"--{unknown[1]}", known, n=3, cutoff=0.5)
        line = f"unknown option --{unknown[1]}" + (f"; near: {', '.join(near)}" if near else "")
    return f"{line}; pathfm {command} --help lists the options"


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
    """Tables are plain, left-aligned, untruncated, one row a line; other results say themselves."""
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
