"""Words that a run must not say: taken out of its log, of its errors and of its table of failures.

A run with `--pseudonymise` has to hold the true paths, for it opens them, and libraries put them into their messages. So
everything that is said while `scrubbing` holds goes through one `Scrubber`, which knows the words by heart.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHHELD = "(withheld)"
_LEAST_LENGTH = 4  # a slide called 7 or a.svs: its bare stem would stand in half of all sentences, and says nothing

_active: list[Scrubber] = []


class Scrubber(logging.Filter):
    """Puts other words in the place of those it has learned; longest first, and only whole words.

    Each position is looked up once for every length of a word that is known, so the time does not depend on how many
    slides there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, str] = {}
        self._kept: set[str] = set()
        self._folders: set[str] = set()
        self._lengths: list[int] = []

    def learn(self, raw: str, shown: str) -> None:
        """From now on `shown` is said for `raw`."""
        new = [word for word in _spellings(raw) if len(word) >= _LEAST_LENGTH and word not in self._kept]
        self._shown |= dict.fromkeys(new, shown)
        if not {len(word) for word in new} <= set(self._lengths):
            self._lengths = sorted({*self._lengths, *map(len, new)}, reverse=True)

    def learn_file(self, path: Path, shown: str) -> None:
        """Its path, also without links, and its name."""
        for raw in (str(path), str(path.absolute()), str(path.resolve()), path.name):
            self.learn(raw, shown)

    def learn_folder(self, path: Path, shown: str) -> None:
        """Its path, also without links; after a path below it that is not known by itself the rest of the line is left out."""
        for raw in (str(path.absolute()), str(path.resolve())):
            self.learn(raw, shown)
            self._folders |= _spellings(raw) - self._kept

    def keep(self, path: Path) -> None:
        """A path that may be said, such as that of the output, though it lies in a folder that may not."""
        for raw in (str(path), str(path.absolute()), str(path.resolve())):
            self.learn(raw, raw)
            self._kept.add(raw)

    def __call__(self, text: str) -> str:
        """The text with other words in place of the known ones."""
        said, at = [], 0
        while at < len(text):
            raw = self._known_at(text, at)
            said.append(text[at] if raw is None else self._shown[raw])
            at += 1 if raw is None else len(raw)
            if raw in self._folders and text[at : at + 1] in ("/", "\\"):
                said.append(f"/{WITHHELD}")
                at = len(text) if "\n" not in text[at:] else text.index("\n", at)
        return "".join(said)

    def filter(self, record: logging.LogRecord) -> bool:
        """Scrubs a record in place and lets it through, also one that another process made."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # logging would print the arguments as they are
            text = f"{record.msg} {record.args}"
        record.msg, record.args = self(text), None
        if record.exc_info and record.exc_info[1] is not None:
            self.scrub_error(record.exc_info[1])
        return True

    def scrub_error(self, error: BaseException | None) -> None:
        """Scrubs an exception and those it comes from in place: all that a traceback would print of them."""
        todo, seen = [error], set[int]()
        while todo:
            one = todo.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            one.args = tuple(map(self._value, one.args))
            for name, value in vars(one).items():
                setattr(one, name, self._value(value))
            for name in ("filename", "filename2"):  # of an OSError: no part of its args, nor of its dict
                if getattr(one, name, None) is not None:
                    setattr(one, name, self._value(getattr(one, name)))
            todo += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]

    def _value(self, value: Any) -> Any:
        """Text and paths scrubbed, also in lists; anything else as it is."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, Path):
            return Path(self(str(value)))
        return type(value)(map(self._value, value)) if type(value) in (list, tuple) else value

    def _known_at(self, text: str, at: int) -> str | None:
        """The longest known word that starts here, unless it is a part of a longer word."""
        inside = text[at].isalnum() and text[at - 1 : at].isalnum()
        for length in () if inside else self._lengths:
            raw = text[at : at + length]
            if raw in self._shown and not (raw[-1].isalnum() and text[at + length : at + length + 1].isalnum()):
                return raw
        return None


@contextmanager
def scrubbing(scrubber: Scrubber) -> Iterator[None]:
    """While it holds, log records of all loggers are scrubbed where they are made, and exceptions where they leave."""
    make = logging.getLogRecordFactory()

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        scrubber.filter(record)
        return record

    with ExitStack() as stack:
        stack.push(lambda _kind, error, _trace: scrubber.scrub_error(error))
        stack.callback(logging.setLogRecordFactory, make)
        stack.callback(logger.removeFilter, scrubber)
        stack.callback(_active.remove, scrubber)
        logging.setLogRecordFactory(made)
        logger.addFilter(scrubber)  # for records that came from another process
        _active.append(scrubber)
        yield


def scrubbers() -> tuple[Scrubber, ...]:
    """Those that hold now; picklable, so that another process of the run can hold its tongue as well."""
    return tuple(_active)


def withheld(text: str) -> str:
    """The text as a run may say it: as it is, unless `scrubbing` holds."""
    for scrubber in _active:
        text = scrubber(text)
    return text


def _spellings(raw: str) -> set[str]:
    """A word as messages may hold it: quoted, with its white space collapsed, or with its odd characters escaped."""
    escaped = raw.encode("utf-8", "backslashreplace").decode()
    return {raw, " ".join(raw.split()), repr(raw)[1:-1], json.dumps(raw)[1:-1], escaped}
