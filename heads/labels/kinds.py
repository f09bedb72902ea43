"""Kinds of labels: which columns are learned, and whether their cells are ratings, yes or no, or classes."""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.support import LISTED, few, suggest
from heads.errors import LabelsError
from heads.labels.table import LabelTable, is_missing, is_number, known_cells, mostly_numbers, natural, numbers
from heads.labels.target import Kind, Target

if TYPE_CHECKING:
    import pandas as pd

Values = NDArray[np.float64]
"""(rows of a table, K), NaN where a label is missing."""
_YES, _NO = ("yes", "true"), ("no", "false")
_SEPARATORS = ("|", ";")


def choose_columns(
    tables: Sequence[LabelTable], named: Sequence[str], kind: Kind | None, others: Collection[str | None]
) -> list[str]:
    """The columns named, or else every numeric column but `others`; yes or no counts as numeric if `kind` says so.

    Raises:
        LabelsError: a column is unknown, empty or named twice, or none was named and there is none to take.
    """
    files = ", ".join(str(table.file) for table in tables)
    every = list(dict.fromkeys(str(name) for table in tables for name in table.cells))
    for name in named:
        if name not in every:
            raise LabelsError(f"{files} has no column {name!r}; {suggest(name, every)}")
    if len(set(named)) < len(named):
        raise LabelsError(f"a task is named twice in {few(named, LISTED)}")
    for name in named:
        if not any(known_cells(table.cells[name]) for table in tables if name in table.cells):
            raise LabelsError(f"{files} has no labels in {name!r}; fill it in, or leave it out of --tasks")
    if named:
        return list(named)
    if kind == "multiclass":
        listed = few(every, 12, quoted=True)
        raise LabelsError(f"--kind multiclass: name the column of the classes with --tasks; {files} has {listed}")
    fits = mostly_numbers if kind in (None, "regression") else _is_yes_or_no
    found = [
        name
        for name in every
        if name not in others and any(name in table.cells and fits(table.cells[name]) for table in tables)
    ]
    if not found:
        what = "numeric column" if fits is mostly_numbers else "column of 0 and 1, or yes and no,"
        raise LabelsError(
            f"{files} has no {what} to learn; it has {few(every, 12, quoted=True)}; "
            "a column of classes, as joy and fear, is learned if --tasks names it"
        )
    return found


def settle_kind(tables: Sequence[LabelTable], columns: Sequence[str], kind: Kind | None) -> Kind:
    """The kind that was given, or a guess: one column of text has classes, 0 and 1 alone are binary, all else ratings.

    A column in which several words stand in a cell, as joy|fear, is multilabel.

    Raises:
        LabelsError: the kind is of one column, and there are several.
    """
    if kind is not None:
        if kind == "multiclass" and len(columns) > 1:
            raise LabelsError(
                f"--kind multiclass learns one column of classes; found {few(columns, 12, quoted=True)}: "
                "name one with --tasks"
            )
        return kind
    parts = [table.cells[name] for table in tables for name in columns if name in table.cells]
    if all(map(_is_yes_or_no, parts)):
        return "binary"
    if len(columns) == 1 and not any(map(mostly_numbers, parts)):
        return "multilabel" if any(_separator(known_cells(part)) for part in parts) else "multiclass"
    return "regression"


def read_values(
    tables: Sequence[LabelTable], columns: Sequence[str], kind: Kind, like: Target | None = None
) -> tuple[Target, list[Values]]:
    """The target and, for each table, the labels of its rows; of tasks that a table does not have, NaN.

    Classes and labels of a single column are sorted, numbers by value.

    Args:
        like: names the classes, or the labels of a single column; if None, they are those that occur.

    Raises:
        LabelsError: a cell does not fit the kind, or there are fewer than two classes or labels, or one unknown.
    """
    if kind == "multiclass":
        return _classes(tables, columns[0], like)
    if kind == "multilabel" and len(columns) == 1 and (like is None or columns[0] not in like.tasks):
        return _words(tables, columns[0], like)
    read = numbers if kind == "regression" else _yes_or_no
    values = [
        np.column_stack([read(t, name) if name in t.cells else np.full(len(t.keys), np.nan) for name in columns])
        for t in tables
    ]
    return Target(kind, tuple(columns)), values


def _classes(tables: Sequence[LabelTable], column: str, like: Target | None) -> tuple[Target, list[Values]]:
    cells = [list(table.cells[column]) if column in table.cells else [""] * len(table.keys) for table in tables]
    known = {text for part in cells for text in part if not is_missing(text)}
    # 3 and 3.0 are one class: spreadsheets write either.
    name = {text: f"{float(text):.15g}" if all(map(is_number, known)) else text for text in known}
    classes = _sorted(name.values()) if like is None else list(like.classes)
    _refuse_unknown(tables[0], column, name.values(), classes)
    if len(classes) < 2:
        raise LabelsError(
            f"column {column!r} of {tables[0].file} has one class, {few(classes, quoted=True)}; two are needed"
        )
    index = {text: float(classes.index(name[text])) for text in known}
    values = [np.array([[index.get(text, np.nan)] for text in part], np.float64).reshape(-1, 1) for part in cells]
    return Target("multiclass", (column,), tuple(classes)), values


def _words(tables: Sequence[LabelTable], column: str, like: Target | None) -> tuple[Target, list[Values]]:
    """Labels written in one cell, as joy|fear; a separator alone says that there are none of them."""
    cells = [list(table.cells[column]) if column in table.cells else [""] * len(table.keys) for table in tables]
    separator = _separator([text for part in cells for text in part]) or "|"
    words = [
        [None if is_missing(text) else {w.strip() for w in text.split(separator) if w.strip()} for text in part]
        for part in cells
    ]
    every = [word for part in words for found in part for word in found or ()]
    tasks = _sorted(every) if like is None else list(like.tasks)
    _refuse_unknown(tables[0], column, every, tasks)
    if len(tasks) < 2:
        raise LabelsError(
            f"--kind multilabel: column {column!r} of {tables[0].file} has one label, "
            f"{few(tasks, quoted=True)}; expected several in a cell, as joy|fear, or several columns of 0 and 1 "
            "(of one column of 0 and 1, --kind is binary)"
        )
    missing = [np.nan] * len(tasks)
    rows = [
        [missing if found is None else [float(task in found) for task in tasks] for found in part] for part in words
    ]
    return Target("multilabel", tuple(tasks)), [np.array(part, np.float64) for part in rows]


def _refuse_unknown(table: LabelTable, column: str, found: Iterable[str], known: Sequence[str]) -> None:
    unknown = _sorted(set(found) - set(known))
    if unknown:
        raise LabelsError(
            f"column {column!r} of {table.file} has {few(unknown, 12, quoted=True)}, which the run does not know; "
            f"it knows {few(known, 12, quoted=True)}"
        )


def _yes_or_no(table: LabelTable, name: str) -> NDArray[np.float64]:
    values = np.full(len(table.keys), np.nan)
    for i, text in enumerate(table.cells[name]):
        if is_missing(text):
            continue
        value = _as_bit(text)
        if value is None:
            raise LabelsError(f"{table.where(i, name)}: {text!r} is neither 0 nor 1, yes nor no, true nor false")
        values[i] = value
    return values


def _is_yes_or_no(column: "pd.Series[str]") -> bool:
    known = known_cells(column)
    return bool(known) and all(_as_bit(text) is not None for text in known)


def _as_bit(text: str) -> float | None:
    if text.lower() in _YES or text.lower() in _NO:
        return float(text.lower() in _YES)
    return float(text) if is_number(text) and float(text) in (0, 1) else None


def _separator(cells: Sequence[str]) -> str | None:
    return next((separator for separator in _SEPARATORS if any(separator in text for text in cells)), None)


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (natural(name), name))
