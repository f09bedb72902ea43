"""The target that a head learns: its kind, its tasks and its classes; or several side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

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
        """How many numbers a model gives for a photo."""
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


JOINT = "joint"
"""The kind of a target of several parts."""


@dataclass(frozen=True)
class JointTarget(Target):
    """Targets of several kinds that one model learns: their labels side by side, and so their outputs."""

    parts: tuple[Target, ...] = ()
    """Each with its own kind, tasks and classes."""

    @classmethod
    def of(cls, parts: Sequence[Target]) -> "JointTarget":
        """The target that has these parts."""
        tasks = tuple(task for part in parts for task in part.tasks)
        classes = tuple(name for part in parts for name in part.classes)
        return cls(cast("Kind", JOINT), tasks, classes, tuple(parts))

    @property
    def n_outputs(self) -> int:
        """How many numbers a model gives for a photo."""
        return sum(part.n_outputs for part in self.parts)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The name of each output, part by part."""
        return tuple(name for part in self.parts for name in part.outputs)

    def slices(self) -> Iterator[tuple[Target, slice, slice]]:
        """Of each part: itself, its columns of the labels (N, K), its columns of the outputs (N, n_outputs)."""
        task = output = 0
        for part in self.parts:
            yield part, slice(task, task + len(part.tasks)), slice(output, output + part.n_outputs)
            task, output = task + len(part.tasks), output + part.n_outputs

    def names(self) -> list[str]:
        """A name for each part, for folders and tables: its task, if it has only one of a plain name."""
        found: list[str] = []
        for number, part in enumerate(self.parts, 1):
            plain = len(part.tasks) == 1 and part.tasks[0].isascii() and part.tasks[0].replace("_", "").isalnum()
            found.append(part.tasks[0] if plain and part.tasks[0] not in found else f"part{number}")
        return found


def parts_of(target: Target) -> tuple[Target, ...]:
    """The parts of a target; itself if it is one."""
    return target.parts if isinstance(target, JointTarget) else (target,)
