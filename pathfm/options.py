"""Options: the words of a command line and its config files become the settings of a command, or one line of error.

The command line is read by jsonargparse; here is what it does not do: near names, `--mpp-override` for `--mpp_override`,
`--mag`, lists without brackets, and YAML that cannot fill the memory.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathfm.errors import InputError
from pathfm.plainyaml import require_plain
from pathfm.scrub import WITHHELD, Scrubber

if TYPE_CHECKING:
    from collections.abc import Callable

    from jsonargparse import ArgumentParser, Namespace


def read_options(parser: ArgumentParser, command: str, options: list[str]) -> Any:
    """The settings of a command, a `Namespace`.

    What is wrong with the options is said without their values where these may name people.

    Raises:
        InputError: an unknown option, with near names, a value of another type, or a config that cannot be read.
    """
    try:
        return _settings(parser, command, options)
    except InputError as error:
        raise InputError(_said_to(options)(str(error))) from error


def read_yaml_for(parser: ArgumentParser) -> None:
    """Has the parser refuse YAML that is not plain, such as aliases.

    It takes a value alone for a list of one where an option is a list, as files that were written before it was one.
    """
    import yaml
    from jsonargparse import set_loader

    load, lists = _plain_loader(), {name.removeprefix("--") for name in _list_options(parser)}

    def read(text: str) -> Any:
        require_plain(text)
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


def without_names(settings: Namespace) -> Namespace:
    """The settings without the paths that may name people; to run from them these have to be said again."""
    shown = settings.clone()
    people = ("slides", "cohort", "outlines", "annotations", "images", "features", "coords", "ledger")
    for name in (*people, "config", "pseudonymise"):
        if shown.get(name) is not None:
            shown[name] = [WITHHELD] if isinstance(shown[name], list) else WITHHELD
    return shown


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
    line = re.sub(r"^Group '([\w.]+)' does not accept option '", r"does not accept option '\1.", line)
    unknown = re.search(r"(?:[Uu]nrecognized arguments: |does not accept option '|Key ')(?:--)?([\w.]+)", line)
    if unknown:
        near = difflib.get_close_matches(f"--{unknown[1]}", known, n=3, cutoff=0.5)
        line = f"unknown option --{unknown[1]}" + (f"; near: {', '.join(near)}" if near else "")
    return f"{line}; pathfm {command} --help lists the options"
