"""What a model is trained for: one target, or several at once with labels missing here and there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pathfm.errors import CohortError, InputError, UnknownNameError
from pathfm.heads.packed import Criterion
from pathfm.targets.classes import Classes
from pathfm.targets.cox import Cox
from pathfm.targets.hazards import Hazards
from pathfm.targets.multilabel import MultiLabel
from pathfm.targets.ordinal import Ordinal
from pathfm.targets.regression import Regression
from pathfm.targets.survival import Survival
from pathfm.targets.target import folder_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pathfm.cohort import Cohort
    from pathfm.targets.target import Scores, Target, Truth

Balance = tuple[Tensor | None, ...]

KINDS: dict[str, type[Target]] = {kind.kind: kind for kind in (Classes, Ordinal, MultiLabel, Regression, Cox, Hazards)}


@dataclass(frozen=True)
class Task:
    """The targets of a model, whose truths, logits and scores stand side by side in their order.

    Attributes:
        targets: one or more, of different names.
    """

    targets: tuple[Target, ...]

    @property
    def label(self) -> str:
        """The names of the targets with commas between."""
        return ",".join(target.name for target in self.targets)

    @property
    def n_outputs(self) -> int:
        """Logits of the head."""
        return sum(target.n_outputs for target in self.targets)

    @property
    def width(self) -> int:
        """Numbers of a row of truth."""
        return sum(target.width for target in self.targets)

    def truths(self, truth: NDArray[np.float32]) -> list[Truth]:
        """Truth float32 (n, width) cut into that of each target."""
        ends = np.cumsum([target.width for target in self.targets])
        return np.split(truth, ends[:-1], axis=1)

    def fitted(self, truth: Truth) -> Task:
        """The task with what has to be learned from the training rows."""
        parts = zip(self.targets, self.truths(truth), strict=True)
        return replace(self, targets=tuple(target.fitted(part) for target, part in parts))

    def balance(self, truth: Truth) -> Balance:
        """Of each target the weights that make its classes count alike."""
        return tuple(target.balance(part) for target, part in zip(self.targets, self.truths(truth), strict=True))

    def require(self, truth: Truth) -> None:
        """Refuses training rows from which a target cannot be learned.

        Raises:
            InputError: what is missing.
        """
        for target, part in zip(self.targets, self.truths(truth), strict=True):
            target.require(part)

    def can_judge(self, truth: Truth) -> bool:
        """Whether the loss of these rows, float32 (n, width), depends on what a model says of them."""
        return any(target.can_judge(part) for target, part in zip(self.targets, self.truths(truth), strict=True))

    def criterion(self, truth: Tensor, balance: Balance = ()) -> Criterion:
        """What a head needs of a batch in training: the mean of the targets' losses, and the classes of a lone one.

        A target whose label a bag lacks adds 0 to its mean, so that a label weighs the same whether or not the bag has the
        others. A target that compares bags gives each batch the same weight instead, however many labels it holds.

        Args:
            truth: float32 (b, width).
            balance: what `balance` gave for the training rows; () for none.
        """
        balances = balance or (None,) * len(self.targets)
        parts = torch.split(truth, [target.width for target in self.targets], dim=1)
        widths = [target.n_outputs for target in self.targets]

        def losses(logits: Tensor) -> Tensor:
            logits = (
                logits.float() if logits.dtype.itemsize < 4 else logits
            )  # sums of bags, in whatever precision they came
            rows = zip(self.targets, torch.split(logits, widths, dim=1), parts, balances, strict=True)
            each = [target.losses(some, part, weights) for target, some, part, weights in rows]
            return each[0] if len(each) == 1 else torch.stack(each).mean(dim=0)

        first = self.targets[0]
        alone = len(self.targets) == 1 and isinstance(first, Classes) and first.n_outputs == len(first.classes)
        return Criterion(losses, truth[:, 0].nan_to_num(nan=-1).long() if alone else None)

    def scores(self, logits: Tensor) -> list[Scores]:
        """What is written of bags for each target, from logits (b, n_outputs)."""
        widths = [target.n_outputs for target in self.targets]
        parts = torch.split(logits.detach().cpu().double(), widths, dim=1)
        return [target.scores(part) for target, part in zip(self.targets, parts, strict=True)]

    def first_output(self, which: int) -> int:
        """The place of the first logit of a target."""
        return sum(target.n_outputs for target in self.targets[:which])

    def which(self, name: str) -> int:
        """The place of a target.

        Raises:
            UnknownNameError: near names are listed.
        """
        names = [target.name for target in self.targets]
        if name not in names:
            raise UnknownNameError("target", name, names)
        return names.index(name)

    def facts(self) -> list[dict[str, Any]]:
        """What model.json says of the targets."""
        return [{"name": target.name, "kind": target.kind} | target.facts() for target in self.targets]

    @classmethod
    def of_facts(cls, facts: Sequence[dict[str, Any]]) -> Task:
        """The task of such facts, which may come from anywhere.

        Raises:
            ValueError: no target, a kind nobody knows, or facts that make no sense; the key is named.
        """
        names = [one.get("name") for one in facts]
        texts = [name for name in names if isinstance(name, str) and name]
        if not facts or len(texts) < len(facts) or len({folder_name(name).lower() for name in texts}) < len(facts):
            message = "key 'targets' is not a list of one or more targets of different names"
            raise ValueError(message)
        for one in facts:
            if one.get("kind") not in list(KINDS):  # of a list, which JSON may hold there, a dict cannot ask
                message = (
                    f"key 'kind' of the target {one.get('name')} is {one.get('kind')!r}; known: {', '.join(KINDS)}"
                )
                raise ValueError(message)
        return cls(tuple(KINDS[one["kind"]].of_facts(one["name"], one) for one in facts))


def read_task(cohort: Cohort, label: str, like: Task | None = None) -> tuple[Task, Truth]:
    """The task that a label asks for, and the truth of every row of the cohort, float32 (n, width).

    Args:
        cohort: the table.
        label: COLUMN or COLUMN:KIND, several with commas between; a survival target is TIME/EVENT:cox or :hazards. A
            column that is called just so goes before this reading.
        like: the task of a model, of as many targets of these kinds, whose classes, labels and so on the rows then have;
            columns of some of the targets may be empty. None to learn them from the cells.

    Raises:
        UnknownNameError: no such column or kind.
        CohortError: a column that is empty in every row, all of them with `like`, or a cell that is not what its kind
            holds, or `like` knows.
        InputError: a target twice, or nothing to learn.
    """
    asked = _asked(cohort, label)
    found = [_read(cohort, *one) for one in asked] if like is None else _read_like(cohort, asked, like)
    task = Task(tuple(target for target, _ in found))
    in_order = sorted(task.targets, key=lambda target: target.folder.lower())
    twice = [
        f"{one.name} and {other.name}"
        for one, other in pairwise(in_order)
        if one.folder.lower() == other.folder.lower()
    ]
    if twice:
        message = f"--label names {', '.join(twice)}, which are one name to a folder; keep one, or rename a column"
        raise InputError(message)
    return task, np.concatenate([truth for _, truth in found], axis=1)


def _asked(cohort: Cohort, label: str) -> list[tuple[str, str]]:
    """(name, kind) of each target."""
    if label in cohort.stated:
        return [(label, Classes.kind)]
    asked = []
    for word in label.split(","):
        name, colon, kind = word.strip().rpartition(":")
        if not colon or word.strip() in cohort.stated:
            name, kind = word.strip(), Classes.kind
        if kind not in KINDS:
            raise UnknownNameError("kind of target", kind, KINDS, "write --label COLUMN:KIND")
        asked.append((name, kind))
    return asked


def _read(cohort: Cohort, name: str, kind: str) -> tuple[Target, Truth]:
    name, columns = _columns(name, kind)
    cells = cohort.cells(columns)
    if not (cells != "").all(axis=1).any():
        raise _empty(cohort, [name])
    return KINDS[kind].read(name, cells)


def _read_like(cohort: Cohort, asked: Sequence[tuple[str, str]], like: Task) -> list[tuple[Target, Truth]]:
    found = []
    for (given, kind), target in zip(asked, like.targets, strict=True):
        name, columns = _columns(given, kind)
        found.append((replace(target, name=name), target.of_cells(name, cohort.cells(columns))))
    if all(np.isnan(truth).all() for _, truth in found):
        raise _empty(cohort, [target.name for target, _ in found])
    return found


def _columns(name: str, kind: str) -> tuple[str, list[str]]:
    """The name of a target without spaces beside its stroke, and its columns."""
    if not issubclass(KINDS[kind], Survival):
        return name, [name]
    columns = [part.strip() for part in name.split("/")]
    if len(columns) != 2 or not all(columns) or columns[0] == columns[1]:
        message = (
            f"--label {name}:{kind} needs the time and the event: write --label TIME_COLUMN/EVENT_COLUMN:{kind};"
            " a column with / in its name can be neither"
        )
        raise InputError(message)
    return "/".join(columns), columns


def _empty(cohort: Cohort, names: Sequence[str]) -> CohortError:
    what = f"column {names[0]!r} is" if len(names) == 1 else f"columns {', '.join(map(repr, names))} are"
    return CohortError(f"{cohort.source}: {what} empty in every row; fill it, or pass another --label")
