"""What there is to see in a study: the photos of a store with their labels, and what runs say of them, as columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import featstore
from featstore.support import harmless
from heads.errors import HeadsError, RunError
from heads.inference.metrics import SHOWN, tasks_of
from heads.labels.joining import UNKNOWN, join
from heads.labels.labels import Labels
from heads.runs.predictions import Outcomes, from_table
from heads.runs.run import Run

Role = Literal["label", "prediction", "error", "probability", "group", "fold", "state"]
MOST_PHOTOS = 1_000_000
SURE = 0.9
"""Of a run's photos, the share whose prediction is off by no more than the interval that a photo is shown with."""
DIGITS = 5


@dataclass(frozen=True)
class Column:
    """One thing that is known of the photos."""

    title: str
    role: Role
    values: Sequence[Any]
    """(N,) numbers or text; None where it is not known."""
    task: str = ""
    run: int | None = None
    """The place of its run in `Study.runs`."""
    of: str = ""
    """The class that a probability is of."""

    @property
    def kind(self) -> str:
        return "text" if any(isinstance(value, str) for value in self.values) else "number"


@dataclass(frozen=True)
class Shown:
    """A run, and how its N photos lie in the study."""

    run: Run
    outcomes: Outcomes
    rows: NDArray[np.int64]
    """(M,) the photo of the study that each photo of the outcomes is; -1 where it is not there."""
    off: dict[str, float]
    """By task of regression: nine of ten predictions are off by no more."""


@dataclass
class Study:
    """N photos of a store, numbered from 0, and all that is known of them."""

    store: featstore.Store
    rows: NDArray[np.int64]
    """(N,) the rows of the store that are shown: all but those of photos that are gone."""
    photos: Path | None
    """The photo folder."""
    columns: list[Column]
    runs: list[Shown]
    notes: list[str] = field(default_factory=list)
    """What the user has to know: labels and predictions that belong to no photo of the store."""

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, photo: int) -> str:
        """The path of a photo, as the store writes it."""
        return str(self.store.images.paths[self.rows[photo]])

    def digest(self, photo: int) -> str:
        """The SHA-256 of its file."""
        return str(self.store.images.digests[self.rows[photo]].tobytes().hex())

    @property
    def name(self) -> str:
        return Path(self.store.path).stem or self.store.path

    def document(self) -> dict[str, Any]:
        """All of it but the features, for the page: plain values that JSON can hold, and text without control codes."""
        images = self.store.images
        unread = {
            str(i): harmless(images.errors[row]) for i, row in enumerate(self.rows.tolist()) if images.errors[row]
        }
        return {
            "title": harmless(self.name),
            "n": len(self),
            "paths": [harmless(images.paths[row]) for row in self.rows.tolist()],
            "errors": unread,
            "columns": [_column(column) for column in self.columns],
            "runs": [_run(shown) for shown in self.runs],
            "notes": [harmless(note) for note in self.notes],
        }


def make_study(
    store: featstore.Store,
    *,
    labels: Labels | None = None,
    runs: Sequence[Run] = (),
    photos: Path | None = None,
) -> Study:
    """Bring together what is known of the photos of a store.

    Args:
        labels: of the photos; what they do not have is taken from the runs.
        runs: finished runs on photos of this store; predictions of photos that it has not are left out.
        photos: the folder in which the photos lie.

    Raises:
        HeadsError: labels or runs belong to no photo of the store.
        RunError: a run cannot be read.
    """
    images = store.images
    rows = np.flatnonzero(images.states != featstore.ImageState.GONE).astype(np.int64)
    if not len(rows):
        raise HeadsError(f"{store.path} has no photos; `featstore extract PHOTOS --store {store.path}` lists them")
    if len(rows) > MOST_PHOTOS:
        raise HeadsError(f"{store.path} has {len(rows):,} photos; the page holds {MOST_PHOTOS:,}")
    study = Study(store, rows, photos, [], [])
    if labels is not None:
        study.columns += _of_labels(study, labels)
    place = {images.paths[row]: i for i, row in enumerate(rows.tolist())}
    for number, run in enumerate(runs):
        shown = _shown(study, run, place)
        study.runs.append(shown)
        study.columns += _of_run(study, shown, number)
    states = [featstore.ImageState(images.states[row]).name.lower() for row in rows]
    if len(set(states)) > 1:
        study.columns.append(Column("state", "state", states))
    return study


def _of_labels(study: Study, labels: Labels) -> list[Column]:
    images = study.store.images
    paths = [images.paths[row] for row in study.rows]
    digests = [images.digests[row].tobytes().hex() for row in study.rows] if labels.by_digest else None
    found = join(labels, paths, np.arange(len(study)), digests=digests)
    if found.only_labels:
        study.notes.append(f"{len(found.only_labels):,} labelled photos are not in the store")
    columns = []
    for part in labels.parts or (labels,):
        values = np.full((len(study), len(part.target.tasks)), np.nan)
        values[found.store_rows] = part.values[found.label_rows]
        for k, task in enumerate(part.target.tasks):
            columns.append(Column(task, "label", _said(values[:, k], part.target.classes), task))
    if labels.groups is not None:
        groups: list[str | None] = [None] * len(study)
        for photo, row in zip(found.store_rows.tolist(), found.label_rows.tolist(), strict=True):
            groups[photo] = labels.groups[row]
        columns.append(Column("group", "group", groups))
    return columns


def _shown(study: Study, run: Run, place: dict[str, int]) -> Shown:
    outcomes = from_table(run.predictions, run.config.target)
    rows = np.array([place.get(path, -1) for path in outcomes.paths], np.int64)
    changed = _changed(study, run, outcomes.paths, rows)
    rows[changed] = -1
    if (rows < 0).all():
        raise RunError(
            f"{run.folder} was tested on no photo that {study.store.path} has: it has {outcomes.paths[0]!r}, the store "
            f"{study.path(0)!r}; name the store that it learnt from"
        )
    if missing := int((rows < 0).sum()):
        why = f", {int(changed.sum()):,} of them since the photo changed" if changed.any() else ""
        study.notes.append(f"{run.name}: {missing:,} of its photos are not in the store{why}")
    off = {}
    if run.config.target.kind == "regression":
        means = outcomes.predicted.mean(axis=0)
        for k, task in enumerate(run.config.target.tasks):
            errors = np.abs(means[:, k] - outcomes.labels[:, k])
            if (errors := errors[np.isfinite(errors)]).size:
                off[task] = float(np.quantile(errors, SURE))
    return Shown(run, outcomes, rows, off)


def _changed(study: Study, run: Run, paths: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(M,) whether the store has another photo under the path now than the run was tested on."""
    if "digest" not in run.folds:
        return np.zeros(len(paths), np.bool_)
    then = dict(zip(run.folds["path"], run.folds["digest"], strict=True))
    return np.array(
        [
            row >= 0 and str(then.get(path, "")) not in ("", "nan", UNKNOWN, study.digest(row))
            for path, row in zip(paths, rows.tolist(), strict=True)
        ],
        np.bool_,
    )


def _of_run(study: Study, shown: Shown, number: int) -> list[Column]:
    run, outcomes, target = shown.run, shown.outcomes, shown.run.config.target
    means = outcomes.predicted.mean(axis=0)  # (M, n_outputs)
    columns: list[Column] = []

    def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.full(len(study), np.nan)
        out[shown.rows[shown.rows >= 0]] = values[shown.rows >= 0]
        return out

    labelled = {column.task for column in study.columns if column.role == "label"}
    for k, task in enumerate(target.tasks):
        if task not in labelled:
            columns.append(Column(task, "label", _said(spread(outcomes.labels[:, k]), target.classes), task))
    by = f" ({run.name})"
    if target.kind == "multiclass":
        task, truth = target.tasks[0], outcomes.labels[:, 0]
        known = np.isfinite(means).all(axis=1)
        best = np.where(known, np.where(known[:, None], means, 0).argmax(axis=1), np.nan)
        columns.append(Column(f"{task} predicted{by}", "prediction", _said(spread(best), target.classes), task, number))
        both = known & np.isfinite(truth)
        missed = np.full(len(means), np.nan)
        missed[both] = 1 - means[both, truth[both].astype(int)]
        columns.append(Column(f"{task} error{by}", "error", _said(spread(missed)), task, number))
        for c, name in enumerate(target.classes):
            columns.append(
                Column(f"chance of {name}{by}", "probability", _said(spread(means[:, c])), task, number, name)
            )
    else:
        what = "predicted" if target.kind == "regression" else "chance"
        for k, task in enumerate(target.tasks):
            columns.append(Column(f"{task} {what}{by}", "prediction", _said(spread(means[:, k])), task, number))
            errors = np.abs(means[:, k] - outcomes.labels[:, k])
            columns.append(Column(f"{task} error{by}", "error", _said(spread(errors)), task, number))
    names, numbers = np.unique(outcomes.folds[0].astype(str), return_inverse=True)
    columns.append(Column(f"fold{by}", "fold", _said(spread(numbers.astype(float)), tuple(names)), run=number))
    if run.config.group is not None and not any(column.role == "group" for column in study.columns):
        groups = dict(zip(run.folds["path"], run.folds["group"].astype(str), strict=True))
        columns.append(Column("group", "group", [groups.get(study.path(i)) for i in range(len(study))]))
    return columns


def _said(values: NDArray[np.float64], names: Sequence[str] = ()) -> list[Any]:
    """Numbers, or the names that they stand for; None where there is none."""
    if names:
        return [None if np.isnan(value) else names[int(value)] for value in values]
    return [None if not np.isfinite(value) else float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _column(column: Column) -> dict[str, Any]:
    values = column.values
    document: dict[str, Any] = {
        "title": harmless(column.title),
        "role": column.role,
        "kind": column.kind,
        "task": harmless(column.task),
        "run": column.run,
        "of": harmless(column.of),
    }
    if column.kind == "number":
        return {**document, "values": list(values)}
    names = sorted({value for value in values if value is not None})
    place = {name: c for c, name in enumerate(names)}
    return {
        **document,
        "names": [harmless(name) for name in names],
        "values": [None if value is None else place[value] for value in values],
    }


def _run(shown: Shown) -> dict[str, Any]:
    run, target = shown.run, shown.run.config.target
    figures = [
        {
            "task": harmless(task),
            "metric": SHOWN[target.kind][0],
            **{name: run.metrics[task][SHOWN[target.kind][0]].get(name) for name in ("mean", "low", "high")},
        }
        for task in tasks_of(target)
    ]
    return {
        "name": harmless(run.name),
        "title": harmless(run.title),
        "kind": target.kind,
        "tasks": [harmless(task) for task in target.tasks],
        "classes": [harmless(name) for name in target.classes],
        "figures": figures,
        "off": {harmless(task): float(f"{value:.3g}") for task, value in shown.off.items()},
        "attention": run.attention is not None,
    }
