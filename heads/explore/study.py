"""What there is to see in a study: the photos of a store with their labels, and what runs say of them, as columns."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
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
    name: str
    """That of the run, and a number where two have the same."""

    def apart(self, one: int, other: int) -> bool:
        """Whether two photos of the study were in different folds, in any repeat."""
        places = [np.flatnonzero(self.rows == photo) for photo in (one, other)]
        if not all(len(place) for place in places):
            return False
        first, second = (self.outcomes.folds[:, place[0]] for place in places)
        return bool(((first != second) & (first != "") & (second != "")).any())


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
    has_table: bool = False
    """Whether labels come from a table of the user's, and not from what the runs have learnt from."""
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
        labels: of the photos; other tasks, or all if there are none, have the labels that the runs have learnt.
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
    study = Study(store, rows, photos, [], [], has_table=labels is not None)
    if labels is not None:
        study.columns += _of_labels(study, labels)
    place = {images.paths[row]: i for i, row in enumerate(rows.tolist())}
    for number, run in enumerate(runs):
        shown = _shown(study, run, place, _name(run, [each.name for each in study.runs]))
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


def _shown(study: Study, run: Run, place: dict[str, int], name: str) -> Shown:
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
        study.notes.append(f"{name}: {missing:,} of its photos are not in the store{why}")
    off = {}
    if run.config.target.kind == "regression":
        means = outcomes.predicted.mean(axis=0)
        for k, task in enumerate(run.config.target.tasks):
            errors = np.abs(means[:, k] - outcomes.labels[:, k])
            if (errors := errors[np.isfinite(errors)]).size:
                off[task] = float(np.quantile(errors, SURE))
    return Shown(run, outcomes, rows, off, name)


def _name(run: Run, taken: Sequence[str]) -> str:
    """That of its head where its folder says no more than that and when, if no other run has it."""
    system = run.config.system
    plain = [system] if re.fullmatch(rf"{re.escape(system)}-\d{{8}}-\d{{6}}", run.name) else []
    names = chain(plain, [run.name], (f"{run.name} ({n})" for n in count(2)))
    return next(name for name in names if name not in taken)


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

    for k, task in enumerate(target.tasks):
        given = _said(spread(outcomes.labels[:, k]), target.classes)
        before = next((c for c, each in enumerate(study.columns) if each.role == "label" and each.task == task), None)
        if before is None:
            columns.append(Column(task, "label", given, task))
        elif not study.has_table:
            column = study.columns[before]
            both = [mine if theirs is None else theirs for theirs, mine in zip(column.values, given, strict=True)]
            study.columns[before] = replace(column, values=both)
    by = f" ({shown.name})"
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
    tested = np.where(names[numbers] == "", np.nan, numbers.astype(np.float64))  # not all may be, in a first repeat
    repeat = " of the first repeat" if len(outcomes.folds) > 1 else ""
    columns.append(Column(f"fold{repeat}{by}", "fold", _said(spread(tested), tuple(names)), run=number))
    if run.config.group is not None and not any(column.role == "group" for column in study.columns):
        groups = {
            path: None if group == "" or group != group else str(group)
            for path, group in zip(run.folds["path"], run.folds["group"], strict=True)
        }
        columns.append(Column("group", "group", [groups.get(study.path(i)) for i in range(len(study))]))
    return columns


def _said(values: NDArray[np.float64], names: Sequence[str] = ()) -> list[Any]:
    """Numbers, or the names that they stand for; None where there is none."""
    if names:
        return [None if np.isnan(value) else names[int(value)] for value in values]
    return [None if not np.isfinite(value) else float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _natural(name: str) -> tuple[bool, float, str]:
    """Names that are numbers in the order of the numbers, after all others."""
    number = float(name) if name.isascii() and name.isdigit() else 0.0
    return name.isascii() and name.isdigit(), number, name


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
    names = sorted({value for value in values if value is not None}, key=_natural)
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
        "name": harmless(shown.name),
        "title": harmless(run.title),
        "kind": target.kind,
        "tasks": [harmless(task) for task in target.tasks],
        "classes": [harmless(name) for name in target.classes],
        "figures": figures,
        "off": {harmless(task): float(f"{value:.3g}") for task, value in shown.off.items()},
        "attention": run.attention is not None,
        "caveats": [harmless(said) for said in (*run.caveats, run.doubt) if said],
    }
