"""The target that a head learns: regression, binary, multiclass or multilabel, its tasks and its classes."""

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["regression", "binary", "multiclass", "multilabel"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ALL = "all"
"""The task of a multilabel target under which metrics of all labels together stand."""


@dataclass(frozen=True)
class Target:
    """What a head has to say about an image.

    Labels are (N, K) float32 with NaN where one is missing: of `regression`, ratings whose scale is mapped to
    -0.5 .. +0.5; of `binary` and `multilabel`, 0 or 1; of `multiclass`, (N, 1) the index of the class.

    Outputs of a model are (N, n_outputs): scaled ratings of `regression`, logits of everything else. Predictions
    are scaled ratings or probabilities.
    """

    kind: Kind
    """regression, binary, multiclass or multilabel."""
    tasks: tuple[str, ...]
    """(K,) names of what is learned: columns of the label table, or labels of `multilabel`."""
    classes: tuple[str, ...] = ()
    """Of `multiclass`, which has a single task."""

    @property
    def n_outputs(self) -> int:
        return len(self.classes) if self.kind == "multiclass" else len(self.tasks)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The name of each output: a class of `multiclass`, a task of everything else."""
        return self.classes if self.kind == "multiclass" else self.tasks

    @property
    def class_columns(self) -> list[str]:
        """TASK_is_CLASS for each class of `multiclass`."""
        return [f"{self.tasks[0]}_is_{name}" for name in self.classes] if self.kind == "multiclass" else []

    @property
    def columns(self) -> list[str]:
        """Those of predictions.csv: repeat, fold, path, for each task TASK and TASK_predicted, and `class_columns`."""
        by_task = [name for task in self.tasks for name in (task, f"{task}_predicted")]
        return ["repeat", "fold", "path", *by_task, *self.class_columns]

    def only(self, task: int) -> "Target":
        """The target of a model that learns one task alone."""
        return Target(self.kind, (self.tasks[task],), self.classes)
