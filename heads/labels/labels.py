"""Labels of photos: one or more tables read into the numbers that a head learns (`read_labels`)."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.support import LISTED, as_path, few, is_number, suggest
from heads.errors import LabelsError
from heads.labels.cells import is_no_number, with_points
from heads.labels.kinds import Values, choose_columns, missing_cells, read_values, remarks, settle_kind
from heads.labels.limits import SMALLEST
from heads.labels.merging import (
    Aggregate,
    Ratings,
    aggregate_rows,
    count_ratings,
    merge,
    of_photos,
    rater_columns,
    refuse_repeats,
)
from heads.labels.raters import Columns, Named, parse, read_spreads, read_votes
from heads.labels.scales import Scale, Scales, from_unit, settle_scales, to_unit
from heads.labels.table import DIGEST_COLUMNS, LabelTable, read_label_table
from heads.labels.target import ALL, KINDS, JointTarget, Kind, Target
from heads.raters.ceilings import Reliability, Spreads, Votes

if TYPE_CHECKING:
    import pandas as pd

    LabelSource = Path | str | pd.DataFrame

GROUPS_BY_PATH = ("name", "folder")
N_BINS = 5
"""Into how many quantiles numbers are cut that the split is stratified by."""
_FEW = 10
"""Numbers with so many different values or fewer are strata as they are."""


@dataclass(frozen=True)
class Labels:
    """N labelled photos."""

    files: tuple[Path, ...]
    """The tables that were read."""
    sha256: tuple[str, ...]
    """Of each file."""
    columns: tuple[str, ...]
    """Those that were read: the tasks, or the one in which several stand."""
    paths: list[str]
    """The photos; their digests if `by_digest`."""
    target: Target
    """The tasks, and what kind of labels they have."""
    values: NDArray[np.float64]
    """(N, K) label units of regression, 0 or 1, or the index of a class; NaN where one is missing."""
    scales: tuple[Scale, ...]
    """The ends of each task's scale; (0, 1) of what is not regression."""
    scale_given: bool
    """Whether the user said the scale of every task; a scale that is not given is the range of the task's labels."""
    groups: list[str] | None
    """Photos that have to stay together; one of which nothing is said is alone."""
    strata: list[str] | None
    """What every part of a split should have the same share of."""
    split: list[str] | None
    """The part that each photo belongs to, as the table says it."""
    sets: NDArray[np.int64]
    """(N,) the index of the first file that has a label of the photo."""
    n_unlabelled: int
    """Photos without any label, left out."""
    ratings: Ratings | None = None
    """How many rows went into the labels, if each was one rater's."""
    raters: Votes | Spreads | None = None
    """What is known of the raters: each one's rows, or standard deviations and counts; None if nothing."""
    by_digest: bool = False
    """Whether photos are told by the SHA-256 of their bytes, not by path."""
    path_column: str = "path"
    """The column that names the photos."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """How many cells of the tasks were taken for missing, by what they say; "" are empty ones."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why columns are no tasks, where none were named."""
    remarks: tuple[str, ...] = ()
    """How cells were read, where a reader may not expect it."""
    parts: tuple["Labels", ...] = ()
    """The labels of each part of a target of several kinds, all of the same N photos."""

    def __repr__(self) -> str:
        if self.parts:
            return f"<Labels of {len(self.paths)} photos in parts: {', '.join(map(repr, self.parts))}>"
        scales = ", ".join(dict.fromkeys(f"{low:g}:{high:g}" for low, high in self.scales)) if self._rated else ""
        what = f"{self.target.kind} of {few(self.target.tasks)}{f', scale {scales}' if scales else ''}"
        return f"<Labels of {len(self.paths)} photos from {self.named}: {what}>"

    def reliability(self, rows: NDArray[np.int64] | None = None) -> dict[str, Reliability]:
        """How far the labels of each task can be trusted, and the ceiling of a model; empty if no raters are known.

        Args:
            rows: the photos that are meant; all if None.
        """
        from heads.raters.measuring import measure_spreads, measure_votes

        if self.parts:
            return {task: found for part in self.parts for task, found in part.reliability(rows).items()}
        if self.raters is None:
            return {}
        some = np.arange(len(self.paths)) if rows is None else rows
        raters, tasks = self.raters.of(some), self.target.tasks
        if isinstance(raters, Spreads):
            known = np.asarray(np.isfinite(raters.counts).any(axis=0))
            return {task: measure_spreads(raters, k, self.values[some, k]) for k, task in enumerate(tasks) if known[k]}
        n_classes = None if self._rated else max(2, len(self.target.classes))
        return {task: measure_votes(raters, k, n_classes) for k, task in enumerate(tasks)}

    @property
    def named(self) -> str:
        """The files, as a message names them."""
        return ", ".join(map(str, self.files))

    def scaled(self) -> NDArray[np.float32]:
        """(N, K) as `Target` says: ratings on -0.5 .. +0.5, all else as it is."""
        if self.parts:
            return np.hstack([part.scaled() for part in self.parts])
        return (to_unit(self.values, self.scales) if self._rated else self.values).astype(np.float32)

    def unscaled(self, predicted: NDArray[np.floating]) -> NDArray[np.float64]:
        """Predictions (..., n_outputs) in label units; probabilities as they are."""
        return from_unit(predicted, self.scales) if self._rated else predicted.astype(np.float64)

    @property
    def _rated(self) -> bool:
        return self.target.kind == "regression"


def read_labels(
    files: "LabelSource | Sequence[LabelSource]",
    *,
    path_column: str = "path",
    tasks: Sequence[str] = (),
    kind: Kind | None = None,
    scales: Scales | None = None,
    aggregate: Aggregate | None = None,
    sd: Columns | None = None,
    n_raters: Columns | None = None,
    group: str | None = None,
    stratify: str | None = None,
    split: str | None = None,
    missing: str | Sequence[str] = (),
    like: Target | None = None,
) -> Labels:
    """Read one or more tables (CSV, TSV, Parquet or a pandas DataFrame) with a row per photo, or per photo and rater.

    Several are joined on the photo: tasks that one does not have are missing there.

    Args:
        path_column: the photos' paths; or, if it is called `digest` or `sha256`, the SHA-256 of the photos.
        tasks: the columns to learn; if none is named, every numeric column, or else every column of yes or no.
        kind: what the labels are; a guess from their cells if not given (see `settle_kind`).
        scales: the ends of the rating scales, for all tasks or by task; the range of a task's labels if not given.
        aggregate: how the rows of one photo become one (see `aggregate_rows`); without it they are refused.
        sd: columns of standard deviations between the raters of a photo: `{task}_sd`, or by task.
        n_raters: how many they were: a number or a column for all tasks, or by task.
        group: a column, or `name` (the file name without its trailing number), or `folder`.
        stratify: a column or a task; numbers with more than ten values are cut into five quantiles.
        split: a column that says which part of a split a photo belongs to.
        missing: words that mean that there is no label, as `NA` or `-9`. An empty cell always means it; in columns of
            numbers, and of yes or no, NA, NaN, N/A, null and none do as well. Elsewhere they are classes.
        like: what a run learnt; its classes are taken, also those that do not occur here.

    Raises:
        LabelsError: a file cannot be read, a column is unknown, a path stands twice, files or raters contradict
            each other, or a label does not fit its kind or scale; names the file, the column and the line.
    """
    sources = tuple(files) if isinstance(files, list | tuple) else (files,)
    if not sources:
        raise LabelsError("no label table named")
    if kind is not None and kind not in KINDS:
        raise LabelsError(f"unknown kind {kind!r}; {suggest(kind, KINDS)}")
    if aggregate not in (None, "mean", "median"):
        raise LabelsError(f"--aggregate {aggregate!r}: expected mean or median")
    absent = [missing] if isinstance(missing, str) else [str(each) for each in missing]
    tables = [
        read_label_table(as_path(each) if isinstance(each, str | Path) else each, path_column, absent)
        for each in sources
    ]
    read = tuple(table.file for table in tables)
    if not aggregate:  # before all else: what one rater says of himself would be taken for a label
        for table in tables:
            refuse_repeats(table)
    others = {path_column, group, split}
    if aggregate:
        others |= {name for table in tables for name in rater_columns(table)}
    spread = _spread(tables, sd, n_raters, aggregate)
    others |= {
        name for each in spread if each for table in tables for name in each.columns(list(map(str, table.cells)))
    }
    chosen = choose_columns(tables, tasks, kind, others, constants=like is not None)
    columns = chosen.chosen
    target, raw = read_values(tables, columns, settle_kind(tables, columns, kind), like)
    _check_names(target, read)
    wanted = _wanted_scales(scales, target)
    for table, part in zip(tables, raw, strict=True):
        _check_scales(table, part, target, wanted)
    keys = [table.keys for table in tables]
    values = raw
    if aggregate:
        both = [aggregate_rows(t, part, target, aggregate) for t, part in zip(tables, raw, strict=True)]
        keys, values = [part for part, _ in both], [part for _, part in both]
    photos, merged, sets = merge(tables, keys, values, target)
    keep = np.flatnonzero(np.isfinite(merged).any(1))
    paths, merged = [photos[i] for i in keep], merged[keep]
    if target.kind != "regression" and any(spread):
        raise LabelsError(f"--sd is for ratings, and the labels {few(target.tasks, LISTED)} are {target.kind}")
    raters: Votes | Spreads | None = read_spreads(tables, paths, target.tasks, merged, wanted, *spread)
    if aggregate:
        raters = read_votes(tables, raw, paths, target.tasks, aggregate)
    return Labels(
        files=read,
        columns=tuple(columns),
        sha256=tuple(table.sha256 for table in tables),
        paths=paths,
        target=target,
        values=merged,
        scales=_settled(wanted, merged, target, read, learnt=like is None),
        scale_given=all(wanted),
        groups=_groups(tables, paths, group, path_column),
        strata=_strata(tables, paths, stratify, merged, target),
        split=_split(tables, paths, split),
        sets=sets[keep],
        n_unlabelled=len(photos) - len(keep),
        ratings=count_ratings(tables, raw, aggregate) if aggregate else None,
        raters=raters,
        by_digest=path_column in DIGEST_COLUMNS,
        path_column=path_column,
        missing=missing_cells(tables, columns, raw),
        left_out={name: why for name, why in chosen.left_out.items() if name != stratify},
        remarks=tuple(remarks(tables, columns, target)),
    )


def join_parts(parts: Sequence[Labels]) -> Labels:
    """Labels of several kinds that one model learns, of all photos that any of them has.

    Raises:
        LabelsError: a task stands in two of them, or one names photos by path and another by digest.
    """
    tasks = Counter(task for part in parts for task in part.target.tasks)
    if twice := [task for task, n_times in tasks.items() if n_times > 1]:
        raise LabelsError(f"task {twice[0]!r} is in two parts of the target; a part has tasks of its own")
    if len({part.by_digest for part in parts}) > 1:
        raise LabelsError("one part of the target names photos by path and another by digest; name all in one way")
    paths = list(dict.fromkeys(path for part in parts for path in part.paths))
    aligned = tuple(_aligned(part, paths) for part in parts)
    first, groups = aligned[0], _first_said([part.groups for part in aligned])
    return replace(
        first,
        files=tuple(dict.fromkeys(file for part in parts for file in part.files)),
        sha256=tuple({file: sha for part in parts for file, sha in zip(part.files, part.sha256, strict=True)}.values()),
        columns=tuple(dict.fromkeys(name for part in parts for name in part.columns)),
        target=JointTarget.of([part.target for part in parts]),
        values=np.hstack([part.values for part in aligned]),
        scales=tuple(scale for part in parts for scale in part.scales),
        scale_given=all(part.scale_given for part in parts),
        groups=groups and [group or path for group, path in zip(groups, paths, strict=True)],
        strata=_first_said([part.strata for part in aligned]),
        split=_first_said([part.split for part in aligned]),
        sets=np.min([np.where(np.isfinite(part.values).any(1), part.sets, len(parts)) for part in aligned], axis=0),
        n_unlabelled=min(part.n_unlabelled for part in parts),
        ratings=None,
        raters=None,
        missing={text: n for part in parts for text, n in part.missing.items()},
        left_out={},
        remarks=tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
        parts=aligned,
    )


def _aligned(part: Labels, paths: list[str]) -> Labels:
    """The same labels as of other photos; those of which they say nothing have none."""
    if part.paths == paths:
        return part
    place = {path: row for row, path in enumerate(part.paths)}
    rows = np.array([place.get(path, -1) for path in paths])

    def taken(values: list[str] | None) -> list[str] | None:
        return None if values is None else [values[row] if row >= 0 else "" for row in rows]

    return replace(
        part,
        paths=paths,
        values=np.where(rows[:, None] >= 0, part.values[rows], np.nan),
        groups=taken(part.groups),
        strata=taken(part.strata),
        split=taken(part.split),
        sets=np.where(rows >= 0, part.sets[rows], 0),
        raters=None,
    )


def _first_said(columns: Sequence[list[str] | None]) -> list[str] | None:
    """Of each photo what the first part says of it that says anything."""
    said = [column for column in columns if column is not None]
    return [next((text for text in texts if text), "") for texts in zip(*said, strict=True)] if said else None


def _spread(
    tables: Sequence[LabelTable], sd: Columns | None, n_raters: Columns | None, aggregate: Aggregate | None
) -> tuple[Named | None, Named | None]:
    """What the options --sd and --n-raters name."""
    every = [str(name) for table in tables for name in table.cells]
    named = parse("--sd", sd, every), parse("--n-raters", n_raters, every)
    if aggregate and any(named):
        raise LabelsError(
            f"--aggregate {aggregate} is for a row per rater, which say how far apart they are themselves; leave out "
            "--sd and --n-raters"
        )
    return named


def _check_names(target: Target, files: Sequence[Path]) -> None:
    """A run's tables have columns for every task."""
    names = target.columns
    for name, n_times in Counter(names).items():
        if n_times > 1:
            raise LabelsError(
                f"{_names(files)}: {name!r} has the name of a column of a run's predictions.csv; "
                "rename it, or leave it out with --tasks"
            )
    if target.kind == "multilabel" and ALL in target.tasks:
        raise LabelsError(f"{_names(files)}: a label is called {ALL!r}, as the metrics of all labels are; rename it")


def _wanted_scales(scales: Scales | None, target: Target) -> list[Scale | None]:
    if target.kind == "regression":
        return settle_scales(scales, target.tasks)
    if scales:
        raise LabelsError(
            f"--scale is for ratings, and the labels {few(target.tasks, LISTED)} are {target.kind}; "
            "leave it out, or say --kind regression"
        )
    return [(0.0, 1.0)] * len(target.tasks)


def _check_scales(table: LabelTable, values: Values, target: Target, scales: Sequence[Scale | None]) -> None:
    if target.kind != "regression":
        return
    for k, scale in enumerate(scales):
        low, high = scale or (-np.inf, np.inf)
        outside = np.flatnonzero((values[:, k] < low) | (values[:, k] > high))
        if len(outside):
            raise LabelsError(
                f"{table.where(outside[0], target.tasks[k])}: {values[outside[0], k]:g} is outside the scale "
                f"{low:g}:{high:g} ({len(outside)} such labels); correct them, the --scale, or the --tasks"
            )


def _settled(
    scales: Sequence[Scale | None], values: Values, target: Target, files: Sequence[Path], *, learnt: bool
) -> tuple[Scale, ...]:
    settled = []
    for k, scale in enumerate(scales):
        known = values[np.isfinite(values[:, k]), k]
        low, high = float(known.min()), float(known.max())
        if learnt and low == high and (len(known) > 1 or scale is None):
            what = target.classes[int(low)] if target.kind == "multiclass" else f"{low:.15g}"
            raise LabelsError(
                f"every label of {target.tasks[k]!r} in {_names(files)} is {what}; there is nothing to learn"
            )
        if low < high and high - low < SMALLEST:
            raise LabelsError(
                f"the labels of {target.tasks[k]!r} in {_names(files)} differ by {high - low:g}; write them in another "
                f"unit, so that they differ by {SMALLEST:g} at least"
            )
        settled.append(scale or (low, high))
    return tuple(settled)


def _groups(
    tables: Sequence[LabelTable], paths: Sequence[str], group: str | None, path_column: str
) -> list[str] | None:
    if group is None:
        return None
    if _has(tables, group):
        said = of_photos(tables, group)
        return [said.get(path, path) for path in paths]
    if group in GROUPS_BY_PATH and path_column in DIGEST_COLUMNS:
        raise LabelsError(f"--group {group}: photos named by {path_column!r} have no {group}; name a column")
    if (by_path := groups_by_path(group, paths)) is not None:
        return by_path
    raise _no_column(tables, group, "group", GROUPS_BY_PATH)


def groups_by_path(group: str | None, paths: Sequence[str]) -> list[str] | None:
    """(N,) groups by the names of the photos, or by their folders; None if `group` is neither."""
    if group == "name":
        stems = [PurePosixPath(path).stem for path in paths]
        return [re.sub(r"[\s_\-]*\d+$", "", stem) or stem for stem in stems]
    if group == "folder":
        return [str(PurePosixPath(path).parent) for path in paths]
    return None


def _strata(
    tables: Sequence[LabelTable], paths: Sequence[str], stratify: str | None, values: Values, target: Target
) -> list[str] | None:
    if stratify is None:
        return None
    if stratify in target.tasks:
        # By the labels themselves, because those of several raters or files are put together.
        column = values[:, target.tasks.index(stratify)]
        texts = ["" if np.isnan(value) else f"{value:.15g}" for value in column]
        if target.kind == "multiclass":
            return [target.classes[int(float(text))] if text else "" for text in texts]
    elif _has(tables, stratify):
        said = of_photos(tables, stratify)
        texts = with_points([said.get(path, "") for path in paths])
    else:
        raise _no_column(tables, stratify, "stratify", target.tasks)
    known = [text for text in texts if not is_no_number(text)]
    if len(set(known)) <= _FEW or not all(map(is_number, known)):
        return texts
    cuts = np.quantile([float(text) for text in known], np.arange(1, N_BINS) / N_BINS)
    return [
        "" if is_no_number(text) else f"{np.searchsorted(cuts, float(text), side='right') + 1} of {N_BINS}"
        for text in texts
    ]


def _split(tables: Sequence[LabelTable], paths: Sequence[str], split: str | None) -> list[str] | None:
    if split is None:
        return None
    if not _has(tables, split):
        raise _no_column(tables, split, "split", ())
    said = of_photos(tables, split)
    without = [path for path in paths if path not in said]
    if without:
        raise LabelsError(
            f"column {split!r} says of {len(without)} labelled photos no part of the split, {without[0]!r} the first; "
            "fill it in, or take their labels out"
        )
    return [said[path] for path in paths]


def _has(tables: Sequence[LabelTable], column: str) -> bool:
    return any(column in table.cells for table in tables)


def _no_column(tables: Sequence[LabelTable], name: str, purpose: str, also: Sequence[str]) -> LabelsError:
    known = [*(str(column) for table in tables for column in table.cells), *also]
    files = _names([table.file for table in tables])
    return LabelsError(f"{files} has no column {name!r} to {purpose} by; {suggest(name, known)}")


def _names(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files))
