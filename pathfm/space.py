"""A declared space of settings: which of them are looked for, between which bounds, and what a trial of them is."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pathfm.errors import InputError, MissingExtraError, UnknownNameError
from pathfm.heads import HEADS, require_head
from pathfm.heads.options import own_options
from pathfm.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

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
            InputError: bounds or choices that make no sense; the name is said.
            MissingExtraError: Optuna is not installed.
        """
        if not declared:
            message = (
                "--space is empty; name a setting and its bounds, such as lr: {low: 0.0001, high: 0.01, log: true}"
            )
            raise InputError(message)
        self.given, self.declared = given, dict(declared)
        self._distributions = {name: _distribution(name, what) for name, what in declared.items()}
        heads = declared.get(_HEAD, [given.head])
        for head in heads:
            require_head(head)
        known = {_OPTION + option for head in heads for option in own_options(HEADS[head])}
        names = (set(_TYPES) - _FIXED) | known | {_HEAD}
        for name in declared:
            if name not in names:
                raise UnknownNameError("setting", name, names, "correct --space")
            if not name.startswith(_OPTION):
                self._prove(name)

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

    def _prove(self, name: str) -> None:
        """Refuses what a training would refuse, before the first of them."""
        what = self.declared[name]
        for value in what if isinstance(what, list) else (what["low"], what["high"]):
            self.candidate({name: value})


def _distribution(name: str, what: Any) -> BaseDistribution:
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
            whole = isinstance(low, int) and isinstance(high, int) and "float" not in _TYPES.get(name, "")
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
