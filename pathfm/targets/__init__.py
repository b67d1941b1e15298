"""Targets: what the columns of a cohort table ask a model to say, how it is learned, written and measured.

To add a kind: write a subclass of `target.Target` like `classes.Classes`, name it in `task.KINDS`, and give
tests/test_targets.py cells of it, which then holds it to what all kinds keep to.
"""

from pathfm.targets.classes import Classes
from pathfm.targets.cox import Cox
from pathfm.targets.hazards import Hazards
from pathfm.targets.multilabel import MultiLabel
from pathfm.targets.ordinal import Ordinal
from pathfm.targets.regression import Regression
from pathfm.targets.survival import Survival
from pathfm.targets.target import Scores, Target, Truth
from pathfm.targets.task import KINDS, Balance, Task, read_task

__all__ = [
    "KINDS",
    "Balance",
    "Classes",
    "Cox",
    "Hazards",
    "MultiLabel",
    "Ordinal",
    "Regression",
    "Scores",
    "Survival",
    "Target",
    "Task",
    "Truth",
    "read_task",
]
