"""A look at labels before anything is trained: what each task holds, what is missing, and what can be reached."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featstore.support import counted, few
from heads.labels.joining import said_missing, said_of_columns
from heads.labels.labels import Labels
from heads.labels.raters import stray_spreads
from heads.raters.ceilings import HEADER, Reliability, note_of, table_of, to_json, without_empty


@dataclass(frozen=True)
class TaskLook:
    """What the labels of one task are."""

    n_photos: int
    """With a label."""
    n_missing: int
    """Photos that have a label of another task only."""
    scale: tuple[float, float] | None
    """That was given; None if none was, or the labels are no ratings."""
    low: float | None
    high: float | None
    """Of ratings, the least and the greatest label."""
    mean: float | None
    """Of yes or no, the share of yes; None of classes."""
    spread: float | None
    """The standard deviation; None of classes."""
    classes: Mapping[str, int]
    """How many photos each class has; of yes or no also."""


@dataclass(frozen=True)
class Look:
    """What a label table holds."""

    labels: Labels
    tasks: Mapping[str, TaskLook]
    raters: Mapping[str, Reliability]
    notes: list[str]

    @property
    def title(self) -> str:
        """The files and how much there is."""
        labels = self.labels
        many = counted(len(labels.target.tasks), "task")
        return f"{labels.named}: {counted(len(labels.paths), 'photo')}, {many}, {labels.target.kind}"

    def of_tasks(self) -> tuple[list[str], list[list[str]]]:
        """A row for each task, or for each class."""
        if self.labels.target.kind == "multiclass":
            (found,) = self.tasks.values()
            rows = [[name, str(n), f"{n / found.n_photos:.1%}".replace("%", " %")] for name, n in found.classes.items()]
            return ["class", "photos", "share"], rows
        if self.labels.target.kind == "regression":
            rows = [
                [name, str(each.n_photos), str(each.n_missing), f"{each.low:g} to {each.high:g}", _scale(each),
                 f"{each.mean:.3f} ± {each.spread:.3f}"]
                for name, each in self.tasks.items()
            ]  # fmt: skip
            return ["task", "photos", "missing", "found", "scale", "mean"], rows
        rows = [
            [name, str(each.n_photos), str(each.n_missing), str(each.classes["yes"]), f"{each.mean:.3f}"]
            for name, each in self.tasks.items()
        ]
        return ["task", "photos", "missing", "yes", "share"], rows

    def of_raters(self) -> tuple[list[str], list[list[str]]] | None:
        """A row for each task; None if nothing is known of raters."""
        return without_empty(HEADER, table_of(self.raters)) if self.raters else None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        labels = self.labels
        return {
            "files": [str(file) for file in labels.files],
            "kind": labels.target.kind,
            "n_photos": len(labels.paths),
            "n_unlabelled": labels.n_unlabelled,
            "n_rows_of_raters": labels.ratings.n_rows if labels.ratings else None,
            "tasks": {name: asdict(each) for name, each in self.tasks.items()},
            "raters": to_json(self.raters),
            "notes": self.notes,
        }


def look_at(labels: Labels) -> Look:
    """What labels hold, task by task, and how far their raters agree."""
    raters = labels.reliability()
    tasks = {task: _look_at_task(labels, k) for k, task in enumerate(labels.target.tasks)}
    return Look(labels, tasks, raters, _notes(labels, raters))


def _look_at_task(labels: Labels, k: int) -> TaskLook:
    values = labels.values[:, k]
    known = values[np.isfinite(values)]
    n_missing = len(values) - len(known)
    if labels.target.kind == "multiclass":
        counts = np.bincount(known.astype(int), minlength=len(labels.target.classes)).tolist()
        return TaskLook(
            len(known), n_missing, None, None, None, None, None, dict(zip(labels.target.classes, counts, strict=True))
        )
    mean, spread = float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else 0.0
    if labels.target.kind != "regression":
        yes = int(known.sum())
        return TaskLook(len(known), n_missing, None, None, None, mean, spread, {"yes": yes, "no": len(known) - yes})
    scale = labels.scales[k] if labels.scale_given else None
    return TaskLook(len(known), n_missing, scale, float(known.min()), float(known.max()), mean, spread, {})


def _notes(labels: Labels, raters: Mapping[str, Reliability]) -> list[str]:
    notes = []
    if labels.ratings is not None:
        notes.append(f"{labels.ratings}")
    if labels.n_unlabelled:
        notes.append(f"{counted(labels.n_unlabelled, 'photo')} without any label")
    names = Counter(path.lower() for path in labels.paths)
    if alike := [path for path in labels.paths if names[path.lower()] > 1]:
        notes.append(
            f"{len(alike)} photos have names that differ in case only: {few(alike)}; are they the same photos?"
        )
    if not labels.scale_given and labels.target.kind == "regression":
        notes.append("no scale was given: that of each task is the range found (--scale 1:7 says it)")
    for column, task in stray_spreads(labels.target.tasks):
        notes.append(
            f"{column!r} is read as a task; if it is the standard deviation of {task!r} between raters, say "
            f"--sd {task}={column} and --n-raters"
        )
    if not raters:
        notes.append(
            "nothing is known of the raters, so no ceiling: --sd and --n-raters name columns of standard deviations "
            "and counts; a row per rater needs --aggregate"
        )
    if missing := said_missing(labels):
        notes.append(f"taken for missing: {missing}")
    return [*notes, *said_of_columns(labels), *note_of(raters, "pearson")]


def _scale(look: TaskLook) -> str:
    return "as found" if look.scale is None else f"{look.scale[0]:g}:{look.scale[1]:g}"
