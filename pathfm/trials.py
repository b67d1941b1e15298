"""A search for the best settings: trials one after the other, each written down, so that a killed search goes on."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

from pathfm.errors import InputError, ModelError
from pathfm.files import canonical_json, read_json, sha256_text, write_json
from pathfm.progress import logger
from pathfm.space import require_buildable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pathfm.space import Candidate, Space

_RUNNING = "running"


class Tried(NamedTuple):
    """A trial that is over.

    Attributes:
        values: what it drew, by the names of the space.
        value: its figure, the higher the better; None where it could not be had.
        why: "" or why it could not.
    """

    values: dict[str, Any]
    value: float | None
    why: str


def search(
    folder: Path,
    fingerprint: str,
    space: Space,
    trials: int,
    seed: int,
    evaluate: Callable[[Candidate, Path], float | None],
    what: str,
) -> list[Tried]:
    """Tries settings of a space and says how each did, in their order; the first is what the space was given.

    The settings are drawn by the tree-structured Parzen estimator of Optuna (Bergstra et al. 2011, NeurIPS 24; Akiba et
    al. 2019, KDD). Each draw depends on the seed and the trials before it alone: a search that is killed and run again
    ends like one that was not. A training that diverges, or a head that the values do not make, costs its trial, not the search.

    Args:
        folder: gets <number>.json of each trial; while one is under way also running/, which `evaluate` may use and where
            it finds what a killed one has left.
        fingerprint: of all that decides how a trial does, but its settings; trials of another are removed.
        space: what is looked for.
        trials: how many.
        seed: of the draws.
        evaluate: the figure of settings, the higher the better; None where it cannot be computed.
        what: what is looked for, in the user's words.

    Raises:
        InputError: no trial came to an end.
        MissingExtraError: Optuna is not installed.
    """
    done = _taken_up(folder, sha256_text(canonical_json([fingerprint, space.declared, seed])))
    for number in range(len(done), trials):
        drawn = _drawn(space, done, seed, number)
        known = next((one for one in done if one.values == drawn), None)  # it would do the same again
        tried = known or _evaluated(space, drawn, folder / _RUNNING, evaluate)
        write_json(folder / f"{number}.json", tried._asdict())
        shutil.rmtree(folder / _RUNNING, ignore_errors=True)
        done.append(tried)
        best = max((one.value for one in done if one.value is not None), default=None)
        shown, top = (_text(value) for value in (tried.value, best))
        logger.info(
            "%s, trial %d of %d: %s, best %s%s", what, number + 1, trials, shown, top, tried.why and f" ({tried.why})"
        )
    if all(one.value is None for one in done[:trials]):
        message = f"{what}: none of {trials} trials came to an end; the first: {done[0].why}; narrow --space"
        raise InputError(message)
    return done[:trials]


def best_of(tried: list[Tried]) -> int:
    """The number of the best trial, the first of equals."""
    values = [-float("inf") if one.value is None else one.value for one in tried]
    return values.index(max(values))


def _drawn(space: Space, done: list[Tried], seed: int, number: int) -> dict[str, Any]:
    """The values of the next trial. The study is made anew from the trials before, so that it is the same after a kill."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own_seed = int(sha256_text(f"{seed} {number}")[:8], 16)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=own_seed))
    if not done:
        study.enqueue_trial(space.first())
    for one in done:
        if one.value is not None:
            distributions = space.distributions(one.values)
            study.add_trial(optuna.trial.create_trial(params=one.values, distributions=distributions, value=one.value))
    return space.suggest(study.ask())


def _evaluated(
    space: Space, values: dict[str, Any], folder: Path, evaluate: Callable[[Candidate, Path], float | None]
) -> Tried:
    try:
        candidate = space.candidate(values)
        require_buildable(candidate)
    except InputError as error:
        return Tried(values, None, str(error))
    try:
        value = evaluate(candidate, folder)
    except ModelError as error:
        return Tried(values, None, str(error))
    return Tried(values, value, "" if value is not None else "the figure cannot be computed")


def _taken_up(folder: Path, wanted: str) -> list[Tried]:
    """The trials that are done; those of other inputs are removed."""
    stated = folder / "search.json"
    try:
        known = read_json(stated) == {"fingerprint": wanted}
    except (OSError, ValueError):  # none, or a damaged one: what it stood for cannot be told
        known = False
    if not known:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(stated, {"fingerprint": wanted})
    done: list[Tried] = []
    try:
        while (path := folder / f"{len(done)}.json").is_file():
            done.append(Tried(**read_json(path)))
    except (ValueError, TypeError):
        logger.warning("%s is damaged; the search goes on from there", path)
    return done


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
