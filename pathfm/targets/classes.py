"""One class out of several: two, or more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from pathfm.cohort import sort_classes
from pathfm.errors import InputError
from pathfm.metrics import auroc, average_precision, balanced_accuracy, f1
from pathfm.targets.facts import different_names
from pathfm.targets.target import Target, known, require_known, warn_of_spellings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.metrics import Metric
    from pathfm.targets.target import Outcomes, Scores, Truth


@dataclass(frozen=True)
class Classes(Target):
    """One class out of several, by a softmax over one logit a class; the last of two is the positive one.

    Truth is the index of the class, (n, 1).
    """

    classes: tuple[str, ...]

    kind: ClassVar[str] = "classes"
    chance: ClassVar[float] = 0.5
    gives_probabilities: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """One index."""
        return 1

    @property
    def n_outputs(self) -> int:
        """One logit a class."""
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        """prob_<class> for each class; they sum to 1."""
        return [f"prob_{name}" for name in self.classes]

    @property
    def metrics(self) -> dict[str, Metric]:
        """AUROC and average precision of the last of two classes, else mean one-vs-rest; then at the most probable class."""
        return {
            "auroc": auroc,
            "average_precision": average_precision,
            "balanced_accuracy": balanced_accuracy,
            "f1": f1,
        }

    @property
    def groups(self) -> list[str]:
        """The classes."""
        return list(self.classes)

    @classmethod
    def read(cls, name: str, cells: pd.DataFrame) -> tuple[Self, Truth]:
        """The distinct cells are the classes, sorted as numbers where all are numbers."""
        texts = list(cells[name])
        target = cls(name, tuple(sort_classes(set(texts) - {""})))
        warn_of_spellings(name, target.classes)
        return target, target.of_texts(texts)

    def of_cells(self, name: str, cells: pd.DataFrame) -> Truth:
        """The index of the class, of those that there are here."""
        texts = list(cells[name])
        truth = self.of_texts(texts)
        require_known(name, texts, truth, self.classes)
        return truth

    def texts(self, truth: Truth) -> list[str]:
        """The name of the class."""
        return ["" if np.isnan(index) else self.classes[int(index)] for index in truth[:, 0]]

    def of_texts(self, texts: Sequence[str]) -> Truth:
        """The index of the class."""
        index = {name: float(code) for code, name in enumerate(self.classes)}
        return np.array([[index.get(text, np.nan)] for text in texts], dtype=np.float32).reshape(-1, 1)

    def balance(self, truth: Truth) -> Tensor | None:
        """Inverse class frequencies, float32 (c,), of mean 1 over the rows; 0 for a class without rows."""
        codes = self.strata(truth)
        counts = torch.bincount(torch.from_numpy(codes[codes >= 0]), minlength=len(self.classes))
        n_found = max(int((counts > 0).sum()), 1)
        return torch.where(counts > 0, int(counts.sum()) / (n_found * counts.clamp(min=1)), 0.0)

    def losses(self, logits: Tensor, truth: Tensor, balance: Tensor | None = None) -> Tensor:
        """Cross-entropy, each bag weighted by its class."""
        labelled = known(truth)
        codes = torch.where(labelled, truth[:, 0].nan_to_num(), 0).long()
        # functional.cross_entropy, which under vmap is a dozen calls
        losses = -torch.log_softmax(logits, dim=1).gather(1, codes[:, None]).squeeze(1)
        if balance is not None:
            losses = losses * balance[codes]
        return torch.where(labelled, losses, 0.0)

    def scores(self, logits: Tensor) -> Scores:
        """The softmax."""
        return torch.softmax(logits.double(), dim=1).numpy()

    def predicted(self, scores: Scores) -> list[str]:
        """The most probable class; the first of equals."""
        return [self.classes[index] for index in scores.argmax(axis=1)]

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        """The class."""
        return np.nan_to_num(truth[:, 0], nan=-1).astype(np.int64)

    def outcomes(self, truth: Truth, scores: Scores) -> Outcomes:
        """Whether it is the last of two classes, else for each whether it is that one."""
        asked = list(enumerate(self.classes))
        return {name: (truth[:, 0] == index, scores[:, index]) for index, name in asked[1 if len(asked) == 2 else 0 :]}

    def branch(self, scores: Scores) -> NDArray[np.int64]:
        """That of the most probable class."""
        return np.asarray(scores.argmax(axis=1), dtype=np.int64)

    def require(self, truth: Truth) -> None:
        """A class that nothing was learned of would still get a probability."""
        found = set(self.strata(truth)) - {-1}
        missing = [name for index, name in enumerate(self.classes) if index not in found]
        if missing or len(found) < 2:
            message = (
                f"the slides to learn from hold no slide of {self.name} {', '.join(missing) or 'but one class'};"
                " label more of them, empty the label of that class, or see the column split and --folds"
            )
            raise InputError(message)

    def facts(self) -> dict[str, Any]:
        """The classes."""
        return {"classes": list(self.classes)}

    @classmethod
    def of_facts(cls, name: str, facts: dict[str, Any]) -> Self:
        """Two or more different names."""
        return cls(name, different_names(facts, "classes", 2))
