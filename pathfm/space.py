"""A declared space of settings: which of them are looked for, between which bounds, and what a trial of them is."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pathfm.errors import InputError, MissingExtraError, UnknownNameError
from pathfm.heads import HEADS, build_head, require_head
from pathfm.heads.options import own_options
from pathfm.settings import TrainSettings
from pathfm.trainer import torch_device

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

SPACE: dict[str, Any] = {
    "lr": {"low": 3e-5, "high": 3e-3, "log": True},
    "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
    "dropout": {"low": 0.0, "high": 0.6},
    "hidden": [128, 256, 512],
    "attention": [64, 128, 256],
}
"""What is looked for where the user declares nothing; configs/tune.yaml is the same."""

_HEAD, _OPTION = "head", "head_options."
_FIXED = frozenset(["seed", "device", "devices", "keep", "together", "loggers", "head_options", "stop_share"])
_TYPES = {field.name: str(field.type) for field in fields(TrainSettings)}
_SIZES = ("hidden", "attention")  # settings whose values a head may be unable to bring together
_DIM, _OUTPUTS = 64, 2  # of a head that is only tried out


class Candidate(NamedTuple):
    """What a trial tries: a head and how it is trained."""

    head: str
    settings: TrainSettings


class Space:
    """Settings to choose, each by its name: a field of `TrainSettings`, `head`, or `head_options.<option of the head>`."""

    def __init__(self, declared: Mapping[str, Any], given: Candidate) -> None:
        """Reads a declaration.

        Args:
            declared: of each name `{low, high}`, with `log: true` on a logarithmic scale, or a list of choices. Bounds that
                are whole are of whole numbers, unless the setting takes others.
            given: what is not looked for is as it is here, and the first trial is of it.

        Raises:
            UnknownNameError: a name that is no setting, or an option that none of the heads has; near names are listed.
            InputError: bounds or choices that make no sense, or of which no head can be made; the name is said.
            MissingExtraError: Optuna is not installed.
        """
        if not declared:
            message = (
                "--space is empty; name a setting and its bounds, such as lr: {low: 0.0001, high: 0.01, log: true}"
            )
            raise InputError(message)
        self.given, self.declared = given, dict(declared)
        heads = self._heads()
        for head in heads:
            require_head(head)
        options = {name: default for head in heads for name, default in own_options(HEADS[head]).items()}
        names = (set(_TYPES) - _FIXED) | {_OPTION + name for name in options} | {_HEAD}
        for name in declared:
            if name not in names:
                raise UnknownNameError("setting", name, names, "correct --space")
        option = f"option of the head {' or '.join(heads)}"
        for name in given.settings.head_options:
            if name not in options:
                raise UnknownNameError(option, name, options)
        whole = {name for name, kind in _TYPES.items() if "float" not in kind}
        whole |= {_OPTION + name for name, default in options.items() if not isinstance(default, float)}
        self._distributions = {name: _distribution(name, what, whole=name in whole) for name, what in declared.items()}
        self._prove()

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """The values that a trial draws; of options only those that its head has."""
        values = {_HEAD: _draw(trial, _HEAD, self._distributions[_HEAD])} if _HEAD in self._distributions else {}
        own = own_options(HEADS[values.get(_HEAD, self.given.head)])
        for name, distribution in self._distributions.items():
            if name != _HEAD and (not name.startswith(_OPTION) or name.removeprefix(_OPTION) in own):
                values[name] = _draw(trial, name, distribution)
        return values

    def candidate(self, values: Mapping[str, Any]) -> Candidate:
        """The head and the settings that values stand for."""
        head, settings = values.get(_HEAD, self.given.head), self.given.settings
        options = {k: v for k, v in settings.head_options.items() if k in own_options(HEADS[head])}
        options |= {k.removeprefix(_OPTION): v for k, v in values.items() if k.startswith(_OPTION)}
        plain = {k: v for k, v in values.items() if k != _HEAD and not k.startswith(_OPTION)}
        return Candidate(head, replace(settings, head_options=options, **plain))

    def at_ends(self, name: str) -> list[Candidate]:
        """What was given with each bound, or each choice, of one name; alone where the name is not looked for."""
        return [self.candidate({name: value}) for value in self._ends(name)] if name in self.declared else [self.given]

    def first(self) -> dict[str, Any]:
        """The values of what was given, those of them that the space holds."""
        values = {name: getattr(self.given.settings, name) for name in self.declared if name in _TYPES} | {
            _OPTION + key: value for key, value in self.given.settings.head_options.items()
        }
        values |= {_HEAD: self.given.head}
        return {
            name: values[name]
            for name, distribution in self._distributions.items()
            if name in values and _holds(distribution, values[name])
        }

    def distributions(self, values: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Those that values were drawn from."""
        return {name: self._distributions[name] for name in values}

    def _heads(self) -> list[str]:
        """Those that are tried."""
        declared = self.declared.get(_HEAD, [self.given.head])
        return declared if isinstance(declared, list) else [str(declared)]

    def _ends(self, name: str) -> list[Any]:
        """The bounds or the choices of a name."""
        what = self.declared[name]
        return what if isinstance(what, list) else [what["low"], what["high"]]

    def _prove(self) -> None:
        """Refuses what a training would refuse, before the first of them: a value of which nothing can be made.

        A value of which something can be made, but not in company of each other value, costs a trial where they meet.
        """
        sizes = [name for name in self.declared if name in _SIZES or name.startswith(_OPTION)]
        for name in {*self.declared} - {*sizes, _HEAD}:
            for candidate in self.at_ends(name):
                torch_device(candidate.settings)
        for head in self._heads():
            _require_any(self.candidate(values) for values in self._combinations(head, sizes))
        for name in sizes:
            for value in self._ends(name):
                able = [head for head in self._heads() if name in _SIZES or name in _options_of(head)]
                others = [other for other in sizes if other != name]
                _require_any(
                    self.candidate(values | {name: value})
                    for head in able
                    for values in self._combinations(head, others)
                )

    def _combinations(self, head: str, sizes: Iterable[str]) -> Iterable[dict[str, Any]]:
        """All bounds and choices of sizes that a head has, each with each."""
        own = [name for name in sizes if name in _SIZES or name in _options_of(head)]
        for values in product(*map(self._ends, own)):
            yield {_HEAD: head} | dict(zip(own, values, strict=True))


def require_buildable(candidate: Candidate) -> None:
    """Refuses a head that cannot be made of its settings.

    Raises:
        InputError: why.
    """
    with torch.device("meta"):  # sizes without memory, and nothing drawn from the generator
        build_head(candidate.head, _DIM, _OUTPUTS, **candidate.settings.head_kwargs())


def _require_any(candidates: Iterable[Candidate]) -> None:
    """Refuses candidates of which none can be made, for the reason of the first."""
    errors: list[InputError] = []
    for candidate in candidates:
        try:
            require_buildable(candidate)
        except InputError as error:
            errors.append(error)
        else:
            return
    if errors:
        raise errors[0]


def _options_of(head: str) -> set[str]:
    return {_OPTION + name for name in own_options(HEADS[head])}


def _distribution(name: str, what: Any, *, whole: bool) -> BaseDistribution:
    try:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    except ModuleNotFoundError as error:
        command = "pathfm tune"
        raise MissingExtraError(command, "tune") from error
    if isinstance(what, list) and what and all(isinstance(one, str | int | float | None) for one in what):
        return CategoricalDistribution(what)
    if isinstance(what, dict) and {"low", "high"} <= set(what) <= {"low", "high", "log"}:
        low, high, log = what["low"], what["high"], what.get("log", False)
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (low, high))
        if numbers and isinstance(log, bool) and low < high and (low > 0 or not log):
            whole = whole and isinstance(low, int) and isinstance(high, int)
            return IntDistribution(low, high, log) if whole else FloatDistribution(low, high, log)
    message = (
        f"--space has {name}: {what}; write {{low: 1, high: 2}} with low below high (above 0 with log: true), or a list of"
        " choices"
    )
    raise InputError(message)


def _draw(trial: Trial, name: str, distribution: Any) -> Any:
    if hasattr(distribution, "choices"):
        return trial.suggest_categorical(name, distribution.choices)
    draw = trial.suggest_int if isinstance(distribution.low, int) else trial.suggest_float
    return draw(name, distribution.low, distribution.high, log=distribution.log)


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return value in choices
    low, high = (getattr(distribution, end) for end in ("low", "high"))
    return isinstance(value, int | float) and bool(low <= value <= high)
