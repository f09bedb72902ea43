"""Merging label rows: several ratings of a photo into one label, and several files into one table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heads.errors import LabelsError, RepeatsError
from heads.labels.kinds import Values
from heads.labels.table import LabelTable
from heads.labels.target import Target

Aggregate = Literal["mean", "median"]
RATER_COLUMNS = ("rater", "annotator", "user", "subject", "participant", "worker")
"""Names, also with `_id` or `id` behind them, of a column that says who rated."""


@dataclass(frozen=True)
class Ratings:
    """What was put together: `12,345 ratings by 66 raters, mean of each photo`."""

    n_rows: int
    """Rows with at least one label."""
    n_raters: int | None
    """None if no column says who rated."""
    aggregate: Aggregate

    def __str__(self) -> str:
        by = "" if self.n_raters is None else f" by {self.n_raters:,} raters"
        return f"{self.n_rows:,} ratings{by}, {self.aggregate} of each photo"


def refuse_repeats(table: LabelTable) -> None:
    """
    Raises:
        RepeatsError: a photo has two rows.
    """
    times = Counter(table.keys)
    if len(times) == len(table.keys):
        return
    key, _ = next(each for each in times.items() if each[1] > 1)
    first, second = [i for i, each in zip(table.cells.index, table.keys, strict=True) if each == key][:2]
    n_repeated = sum(n > 1 for n in times.values())
    raise RepeatsError(
        f"{table.file}: {n_repeated} of {len(times)} photos stand several times, as {key!r} on {table.unit}s {first} "
        f"and {second}; one row per photo is expected (if each row is one rater's, say --aggregate mean or "
        "--aggregate median)"
    )


def aggregate_rows(table: LabelTable, values: Values, target: Target, how: Aggregate) -> tuple[list[str], Values]:
    """One row per photo, in order of first appearance, over the known labels of its rows.

    Ratings: their mean or median. Yes or no: what at least half say. Classes: the most frequent, or the first in
    the order of the classes if several are.
    """
    import pandas as pd

    codes, keys = pd.factorize(np.array(table.keys, object))
    if target.kind == "multiclass":
        known = np.isfinite(values[:, 0])
        votes = np.zeros((len(keys), len(target.classes)))
        np.add.at(votes, (codes[known], values[known, 0].astype(int)), 1)
        return list(keys), np.where(votes.any(1), votes.argmax(1), np.nan)[:, None]
    by_photo = pd.DataFrame(values).groupby(codes)
    if target.kind == "regression":
        return list(keys), (by_photo.mean() if how == "mean" else by_photo.median()).to_numpy(np.float64)
    share = by_photo.mean().to_numpy(np.float64)
    return list(keys), np.where(np.isnan(share), np.nan, share >= 0.5)


def count_ratings(tables: Sequence[LabelTable], values: Sequence[Values], how: Aggregate) -> Ratings:
    rated = [np.flatnonzero(np.isfinite(part).any(1)) for part in values]
    raters = {
        text
        for table, known in zip(tables, rated, strict=True)
        for name in rater_columns(table)
        for text in table.cells[name].iloc[known]
    }
    return Ratings(sum(map(len, rated)), len(raters) or None, how)


def rater_columns(table: LabelTable) -> list[str]:
    """The columns that say who rated."""
    names = map(str, table.cells.columns)
    return [name for name in names if name.lower().removesuffix("id").rstrip("_ ") in RATER_COLUMNS]


def merge(
    tables: Sequence[LabelTable], keys: Sequence[Sequence[str]], values: Sequence[Values], target: Target
) -> tuple[list[str], Values, NDArray[np.int64]]:
    """An outer join of one row per photo and file.

    Returns:
        the N photos in order of first appearance, their labels (N, K), and the file (N,) of the first label of each.

    Raises:
        LabelsError: two files say different things of the same photo and task.
    """
    every = list(dict.fromkeys(key for part in keys for key in part))
    place = {key: i for i, key in enumerate(every)}
    merged = np.full((len(every), len(target.tasks)), np.nan)
    sets = np.full((len(every), len(target.tasks)), len(tables))
    for number, (part, added) in enumerate(zip(keys, values, strict=True)):
        rows = np.array([place[key] for key in part])
        before = merged[rows]
        different = np.argwhere(np.isfinite(before) & np.isfinite(added) & (before != added))
        if len(different):
            i, k = different[0]
            first = sets[rows[i], k]
            raise LabelsError(
                f"{tables[first].file} and {tables[number].file} disagree about {target.tasks[k]!r} of {part[i]!r}: "
                f"{_said(before[i, k], target)} and {_said(added[i, k], target)} ({len(different)} such labels); "
                "correct one, or give the column another name in one of them"
            )
        sets[rows] = np.where(np.isnan(before) & np.isfinite(added), number, sets[rows])
        merged[rows] = np.where(np.isnan(before), added, before)
    return every, merged, sets.min(1)


def of_photos(tables: Sequence[LabelTable], column: str) -> dict[str, str]:
    """What a column says of each photo; photos of which it says nothing are left out.

    Raises:
        LabelsError: rows of the same photo differ.
    """
    said: dict[str, tuple[str, str]] = {}
    for table in tables:
        for i, (key, text) in enumerate(zip(table.keys, table.column(column), strict=True)):
            before, where = said.setdefault(key, (text, table.where(i))) if text else (text, "")
            if before != text:
                raise LabelsError(
                    f"{table.where(i, column)}: {key!r} is {text!r} here and {before!r} in {where}; "
                    "a photo has to have the same one in all its rows"
                )
    return {key: text for key, (text, _) in said.items()}


def _said(value: float, target: Target) -> str:
    return repr(target.classes[int(value)]) if target.kind == "multiclass" else f"{value:.15g}"
