"""Calibration: what makes probabilities of a model's scores, fitted on rows that the model had not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.isotonic import IsotonicRegression

from pathfm.errors import InputError
from pathfm.targets import Classes, MultiLabel, Ordinal
from pathfm.targets.facts import finite_numbers

if TYPE_CHECKING:
    from pathfm.metrics import Booleans, Floats
    from pathfm.targets import Scores, Target, Truth

LOWEST, HIGHEST = 0.1, 10.0
"""Temperatures that are looked for; a model that needs another one has another fault."""
_TINY = 1e-12  # probabilities below it are taken as it, for logarithms
_FAR = 0.05  # between a mean probability and the share, from which on it is said
_MOST_POINTS = 100_000  # of a curve: more rows than any development set has


class Curve(NamedTuple):
    """A rising line through points, level outside of them; from a score to a probability."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """A map from the scores of a target to scores of the same columns that are closer to probabilities.

    Temperature: softmax(log(p) / T), which is softmax(logits / T) of one model, for the logarithms of its probabilities are
    its logits but for a constant (Guo et al., On calibration of modern neural networks, ICML 2017, equation 9); of labels
    each has a T of its own, sigmoid(logit(p) / T). The order of two classes stays as it is.

    Isotonic: a rising step curve from the score of each yes/no question to its share (Zadrozny and Elkan, KDD 2002): of two
    classes the last; of several each against the rest, divided by their sum; of an order each threshold, then the running
    least of them, so that being above never rises with the threshold; of labels each. Steps make ties.

    Attributes:
        kind: which of the two.
        temperatures: one, of labels one each; () of curves.
        curves: one a question; () of temperatures.
    """

    kind: Literal["temperature", "isotonic"]
    temperatures: tuple[float, ...] = ()
    curves: tuple[Curve, ...] = ()

    @classmethod
    def fitted(
        cls,
        kind: Literal["temperature", "isotonic"],
        target: Target,
        truth: Truth,
        scores: Scores,
        weights: Floats | None = None,
    ) -> Self:
        """The calibration of labelled rows.

        Truths are softened as by Platt (Advances in large margin classifiers, 1999): of n rows of a class that class has
        the probability (n + 1) / (n + k), each other of the k one of 1 / (n + k). Scores that tell all rows apart would
        otherwise ask for a temperature of 0, and curves end in the certainty of 0 and 1.

        Args:
            kind: which.
            target: of classes, in an order or not, or of labels.
            truth: float32 (n, width), without NaN.
            scores: float64 (n, k), of models that had not seen these rows.
            weights: float64 (n,), such as 1 over the slides of a patient; None counts each row once.

        Raises:
            InputError: a kind of target that has no probabilities.
        """
        require_probabilities(target, f"--claims.calibration {kind}")
        mass = np.ones(len(truth)) if weights is None else weights
        if kind == "isotonic":
            asked = zip(_of_questions(target, scores).T, _positives(target, truth).T, strict=True)
            return cls(kind, curves=tuple(_curve(score, positive, mass) for score, positive in asked))
        if isinstance(target, MultiLabel):
            pairs = [(np.c_[1 - score, score], at) for score, at in zip(scores.T, truth.T, strict=True)]
        else:
            pairs = [(scores, truth[:, 0])]
        return cls(kind, tuple(_temperature(_logs(p), at.astype(np.int64), mass) for p, at in pairs))

    def apply(self, target: Target, scores: Scores) -> Scores:
        """Calibrated scores, float64 (n, k), of the same columns; rows of NaN stay so.

        Args:
            target: as `fitted` had it.
            scores: float64 (n, k).
        """
        if self.kind == "isotonic":
            asked = zip(_of_questions(target, scores).T, self.curves, strict=True)
            return _from_questions(target, np.stack([np.interp(score, *curve) for score, curve in asked], axis=1))
        if isinstance(target, MultiLabel):
            pairs = zip(scores.T, self.temperatures, strict=True)
            return np.stack([_softmax(_logs(np.c_[1 - p, p]) / t)[:, 1] for p, t in pairs], axis=1)
        return _softmax(_logs(scores) / self.temperatures[0])

    def facts(self) -> dict[str, Any]:
        """As JSON; `of_facts` reads it."""
        if self.kind == "temperature":
            return {"kind": self.kind, "temperatures": list(self.temperatures)}
        return {"kind": self.kind, "curves": [{"x": list(curve.x), "y": list(curve.y)} for curve in self.curves]}

    @classmethod
    def of_facts(cls, facts: object, target: Target) -> Self:
        """The calibration of these facts, which may come from anywhere.

        Raises:
            ValueError: what does not fit the target, or is no rising curve of shares; the key is named.
        """
        kind = facts.get("kind") if isinstance(facts, dict) else None
        if not isinstance(facts, dict) or kind not in ("temperature", "isotonic") or not has_probabilities(target):
            message = f"key 'kind' is no calibration of a target of the kind {target.kind}"
            raise ValueError(message)
        if kind == "temperature":
            temperatures = finite_numbers(facts.get("temperatures"), "temperatures")
            wanted = len(target.names) if isinstance(target, MultiLabel) else 1
            if len(temperatures) != wanted or not all(LOWEST <= one <= HIGHEST for one in temperatures):
                message = f"key 'temperatures' does not hold {wanted} from {LOWEST} to {HIGHEST}"
                raise ValueError(message)
            return cls("temperature", temperatures)
        curves, wanted = facts.get("curves"), _of_questions(target, np.zeros((1, len(target.names)))).shape[1]
        if not isinstance(curves, list) or len(curves) != wanted:
            message = f"key 'curves' does not hold {wanted}"
            raise ValueError(message)
        return cls("isotonic", curves=tuple(map(_curve_of_facts, curves)))

    def notes(self, target: Target, truth: Truth, scores: Scores, n_patients: int) -> list[str]:
        """What to say of it, in sentences without a full stop.

        Args:
            target: as `fitted` had it.
            truth: that it was fitted to.
            scores: what it made of the scores of these rows.
            n_patients: how many they are of.
        """
        if self.kind == "isotonic":
            return [
                f"isotonic calibration was fitted on {n_patients} patients and follows them closely;"
                f" temperature, which is one number, is the better choice below {FEW_FOR_CURVES}"
            ] * (n_patients < FEW_FOR_CURVES)
        ends = [one for one in self.temperatures if min(one - LOWEST, HIGHEST - one) < 0.01 * one]
        said = [f"a temperature of {target.name} is {one:.2g}, an end of what is looked for" for one in ends]
        for name, (positive, score) in target.outcomes(truth, scores).items():
            share, mean = float(positive.mean()), float(score.mean())
            if abs(mean - share) > max(_FAR, 3 * np.sqrt(share * (1 - share) / n_patients)):
                said.append(
                    f"at its temperature {target.name} has a mean probability of {mean:.2f} for {name}, which {share:.2f}"
                    " have: training that balances classes moves all scores, which isotonic can mend and one number cannot"
                )
        return said


FEW_FOR_CURVES = 200
"""Patients below which an isotonic curve is warned of."""


def require_probabilities(target: Target, what: str) -> None:
    """Refuses a target whose scores are no probabilities of yes/no questions.

    Args:
        target: what is asked.
        what: the option that needs them.

    Raises:
        InputError: the kind is named.
    """
    if not has_probabilities(target):
        message = (
            f"{what} needs a target of classes, ordinal or multilabel, {target.name} is of the kind {target.kind},"
            " whose scores answer no yes/no question; leave the option out, or cut the column into classes"
        )
        raise InputError(message)


def has_probabilities(target: Target) -> bool:
    """Whether the scores of a target answer yes/no questions with probabilities: classes, in an order or not, and labels."""
    return isinstance(target, Classes | MultiLabel)


def _of_questions(target: Target, scores: Scores) -> Floats:
    """The scores of the yes/no questions that have a curve each, float64 (n, questions)."""
    if isinstance(target, Ordinal):
        return np.asarray(np.cumsum(scores[:, :0:-1], axis=1)[:, ::-1])
    return scores[:, 1:] if isinstance(target, Classes) and scores.shape[1] == 2 else scores


def _positives(target: Target, truth: Truth) -> Booleans:
    """The answers to the same questions, bool (n, questions)."""
    if isinstance(target, MultiLabel):
        return np.asarray(truth > 0)
    places = np.arange(len(target.names))
    if isinstance(target, Ordinal):
        return np.asarray(truth >= places[1:])
    return np.asarray(truth == places[1 if len(places) == 2 else 0 :])


def _from_questions(target: Target, answers: Floats) -> Scores:
    """The columns of the target from its calibrated questions."""
    if isinstance(target, MultiLabel):
        return answers
    if isinstance(target, Ordinal):
        ends = np.ones((len(answers), 1))
        above = np.c_[ends, np.minimum.accumulate(answers, axis=1), 0 * ends]
        return np.asarray(above[:, :-1] - above[:, 1:])
    if answers.shape[1] == 1:
        return np.asarray(np.c_[1 - answers, answers])
    return np.asarray(answers / answers.sum(axis=1, keepdims=True))


def _logs(probabilities: Scores) -> Floats:
    return np.log(np.maximum(probabilities, _TINY))


def _softmax(logs: Floats) -> Scores:
    return np.asarray(np.exp(logs - logsumexp(logs, axis=1, keepdims=True)))


def _temperature(logs: Floats, codes: Any, weights: Floats) -> float:
    """The temperature of the highest likelihood; it is convex in 1 / T, so there is one lowest point between the ends."""
    n_classes = logs.shape[1]
    mass = np.bincount(codes, weights, minlength=n_classes)[codes][:, None]
    wanted = (np.eye(n_classes)[codes] * mass + 1) / (mass + n_classes)

    def loss(log_temperature: float) -> float:
        scaled = logs / np.exp(log_temperature)
        return float(weights @ (logsumexp(scaled, axis=1) - (wanted * scaled).sum(axis=1)))

    found = minimize_scalar(loss, bounds=np.log([LOWEST, HIGHEST]), method="bounded", options={"xatol": 1e-6})
    return float(np.clip(np.exp(found.x), LOWEST, HIGHEST))


def _curve(score: Floats, positive: Booleans, weights: Floats) -> Curve:
    least = 1 / (float(weights.sum()) + 2)
    fit = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    fit.fit(score, positive.astype(np.float64), sample_weight=weights)
    return Curve(tuple(map(float, fit.X_thresholds_)), tuple(map(float, fit.y_thresholds_)))


def _curve_of_facts(facts: object) -> Curve:
    x, y = (finite_numbers(facts.get(key) if isinstance(facts, dict) else None, key) for key in ("x", "y"))
    shares = all(0 <= one <= 1 + 1e-6 for one in (*x, *y))
    rising = bool(np.all(np.diff(x) > 0)) and bool(np.all(np.diff(y) >= 0))
    # where every question had a share of 0, there would be nothing to divide by; no fitted curve reaches 0
    if not 0 < len(x) == len(y) <= _MOST_POINTS or not shares or not rising or not y[0] > 0:
        message = "key 'curves' holds something else than points of a rising curve of shares"
        raise ValueError(message)
    return Curve(x, y)
