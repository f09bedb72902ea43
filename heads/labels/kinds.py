"""Kinds of labels: which columns are learned, and whether their cells are ratings, yes or no, or classes."""

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featstore.support import LISTED, few, is_number, numbers_rows, suggest
from heads.errors import LabelsError
from heads.labels.cells import (
    EXACT,
    NO_NUMBER,
    are_bits,
    are_codes,
    as_bit,
    has_decimal_commas,
    is_no_number,
    meant_as_numbers,
    with_points,
)
from heads.labels.limits import MOST_CELLS, MOST_CLASSES, check_names
from heads.labels.table import LabelTable, natural, numbers
from heads.labels.target import Kind, Target

Values = NDArray[np.float64]
"""(rows of a table, K), NaN where a label is missing."""
_SEPARATORS = ("|", ";")


@dataclass(frozen=True)
class Columns:
    """The columns that are learned, and why the others are not."""

    chosen: list[str]
    left_out: dict[str, str]
    """By column; empty where the user named the tasks."""


def choose_columns(
    tables: Sequence[LabelTable],
    named: Sequence[str],
    kind: Kind | None,
    others: Collection[str | None],
    *,
    constants: bool = False,
) -> Columns:
    """The columns named, or else every one that fits the kind but `others`.

    Without a kind these are the columns of numbers or, if there are none, those of yes or no. What counts rows, and
    what is the same in all of them, is left out.

    Args:
        constants: whether to take also what is the same in all rows.

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
        if all(is_no_number(text) for table in tables for text in table.column(name)):
            raise LabelsError(f"{files} has no labels in {name!r}; fill it in, or leave it out of --tasks")
    if named:
        return Columns(list(named), {})
    looks = {name: _look(tables, name) for name in every if name not in others}
    if kind == "multiclass":
        return _only_classes(looks, files, every)
    fits = _fitting(looks, kind)
    still = {} if constants else {name: looks[name].only for name in fits if looks[name].only is not None}
    found = [name for name in fits if name not in still]
    if still and not found:
        one, value = next(iter(still.items()))
        raise LabelsError(f"every label of {one!r} in {files} is {value}; there is nothing to learn")
    if not found:
        what = "numeric column" if kind in (None, "regression") else "column of 0 and 1, or yes and no,"
        listed = few(every, LISTED, quoted=True)
        raise LabelsError(f"{files} has no {what} to learn; it has {listed}; {_instead(looks)}")
    left_out = {
        name: f"always {still[name]}" if name in still else look.why
        for name, look in looks.items()
        if name not in found
    }
    return Columns(found, left_out)


@dataclass(frozen=True)
class _Look:
    """What a column looks like."""

    kind: Literal["numbers", "bits", "codes", "words", "rows", "empty"]
    """`bits` are 0 and 1 or yes and no; `rows`, the numbers or ids of rows."""
    why: str
    """It may be no task, in words."""
    n_classes: int
    """How many different texts there are, if they are names of classes; otherwise 0."""
    written: bool
    """Whether the cells are numbers, 0 and 1 among them."""
    only: str | None
    """What is in all cells, if they are the same."""


def _look(tables: Sequence[LabelTable], name: str) -> _Look:
    parts = [table.column(name) for table in tables if name in table.cells]
    cells = [text for part in parts for text in part if text]
    known = [text for text in cells if not is_no_number(text)]
    numeric = bool(known) and all(map(is_number, known))
    n_different = len(set(cells))
    n_classes = n_different if 1 < n_different <= max(2, len(cells) / 2) else 0
    values = {_value(text) for part in parts for text in with_points(part) if not is_no_number(text)}
    only = known[0] if len(values) == 1 and len(known) > 1 else None
    if not cells:
        return _Look("empty", "empty", 0, False, None)
    if are_codes(known):
        only = only if len(set(known)) == 1 else None
        return _Look("codes", f"numbers that are names, as {known[0]}", n_classes, True, only)
    if numeric and numbers_rows(name):
        return _Look("rows", "ids, by its name", 0, True, None)
    if are_bits(known):
        return _Look("bits", "yes or no", n_classes, numeric, only)
    if meant_as_numbers(known):
        return _Look("numbers", "numbers", n_classes, True, only)
    n_numbers = sum(map(is_number, known))
    if n_numbers * 5 > len(known):
        odd = next(text for text in known if not is_number(text))
        return _Look("words", f"{n_numbers} of {len(known)} are numbers, {odd!r} is none", 0, False, None)
    return _Look("words", f"{n_classes} classes" if n_classes else f"text, as {cells[0]!r}", n_classes, False, None)


def _fitting(looks: Mapping[str, _Look], kind: Kind | None) -> list[str]:
    bits = [name for name, look in looks.items() if look.kind == "bits"]
    if kind in ("binary", "multilabel"):
        return bits
    rated = [name for name, look in looks.items() if look.kind == "numbers" or (look.kind == "bits" and look.written)]
    if kind == "regression":
        return [name for name, look in looks.items() if name in rated or look.kind == "codes"]
    return bits if set(rated) <= set(bits) else rated


def _only_classes(looks: Mapping[str, _Look], files: str, every: Sequence[str]) -> Columns:
    there = [name for name, look in looks.items() if look.kind not in ("empty", "rows")]
    if len(there) != 1:
        listed = few(every, LISTED, quoted=True)
        raise LabelsError(f"--kind multiclass: name the column of the classes with --tasks; {files} has {listed}")
    return Columns(there, {name: look.why for name, look in looks.items() if name not in there})


def _instead(looks: Mapping[str, _Look]) -> str:
    """What can be learned where nothing is by itself."""
    classes = [f"{name!r} ({look.n_classes} classes)" for name, look in looks.items() if look.n_classes]
    if not classes:
        return "a column of classes, as joy and fear, is learned if --tasks names it"
    if len(classes) == 1:
        return f"a column of classes is learned if --tasks names it; {classes[0]} may be one"
    return (
        f"a head learns one column of classes, the one that --tasks names; {few(classes, LISTED)} may be some: "
        "train a head for each"
    )


def settle_kind(tables: Sequence[LabelTable], columns: Sequence[str], kind: Kind | None) -> Kind:
    """The kind that was given, or a guess: one column of text has classes, 0 and 1 alone are binary, all else ratings.

    A column in which several words stand in a cell, as joy|fear, is multilabel.

    Raises:
        LabelsError: the kind is of one column, and there are several.
    """
    looks = {name: _look(tables, name) for name in columns}
    classes = [name for name, look in looks.items() if look.kind in ("words", "codes")]
    if len(columns) > 1 and (kind == "multiclass" or (kind is None and classes)):
        named = columns if kind == "multiclass" else classes
        others = [name for name in columns if name not in named]
        also = f", and {few(others, LISTED, quoted=True)} not" if others else ""
        raise LabelsError(
            f"a head learns one column of classes; found {few(named, LISTED, quoted=True)} of classes{also}: name one "
            f"with --tasks, as --tasks {named[0]!r}, and train a head for each; or give each class a column of 0 and 1 "
            "and say --kind multilabel"
        )
    if kind is not None:
        return kind
    if classes:
        words = any(_separator(table.column(name)) for table in tables for name in columns)
        return "multilabel" if words else "multiclass"
    return "binary" if all(look.kind == "bits" for look in looks.values()) else "regression"


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
    values = [np.column_stack([read(table, name) for name in columns]) for table in tables]
    return Target(kind, tuple(columns)), values


def _classes(tables: Sequence[LabelTable], column: str, like: Target | None) -> tuple[Target, list[Values]]:
    cells = [table.column(column) for table in tables]
    known = {text for part in cells for text in part if text}
    classes = _sorted(known) if like is None else list(like.classes)
    _refuse_unknown(tables[0], column, known, classes)
    if len(classes) < 2:
        raise LabelsError(
            f"column {column!r} of {tables[0].file} has one class, {few(classes, quoted=True)}; two are needed"
        )
    _refuse_many(tables, classes, column)
    index = {text: float(number) for number, text in enumerate(classes)}
    values = [np.array([[index.get(text, np.nan)] for text in part], np.float64).reshape(-1, 1) for part in cells]
    return Target("multiclass", (column,), tuple(classes)), values


def _words(tables: Sequence[LabelTable], column: str, like: Target | None) -> tuple[Target, list[Values]]:
    """Labels written in one cell, as joy|fear; a separator alone says that there are none of them."""
    cells = [table.column(column) for table in tables]
    separator = _separator([text for part in cells for text in part]) or "|"
    words = [
        [None if not text else {w.strip() for w in text.split(separator) if w.strip()} for text in part]
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
    _refuse_many(tables, tasks, column)
    missing = [np.nan] * len(tasks)
    rows = [
        [missing if found is None else [float(task in found) for task in tasks] for found in part] for part in words
    ]
    return Target("multilabel", tuple(tasks)), [np.array(part, np.float64) for part in rows]


def _refuse_many(tables: Sequence[LabelTable], names: Sequence[str], column: str) -> None:
    n_rows = sum(len(table.cells) for table in tables)
    if len(names) > MOST_CLASSES or n_rows * len(names) > MOST_CELLS:
        raise LabelsError(
            f"column {column!r} of {tables[0].file} has {len(names):,} classes in {n_rows:,} rows; at most "
            f"{MOST_CLASSES:,} classes and {MOST_CELLS:,} rows times classes are learned; is it text?"
        )
    check_names(tables[0].file, "the class", names)


def missing_cells(tables: Sequence[LabelTable], columns: Sequence[str], values: Sequence[Values]) -> dict[str, int]:
    """How many cells of the columns were taken for missing, by what they say; the empty ones first.

    Args:
        values: what was read of each table.
    """
    found = Counter(dict.fromkeys(sorted(set().union(*(table.missing for table in tables))), 0))
    for table, part in zip(tables, values, strict=True):
        for k, name in enumerate(columns):
            unknown = np.isnan(part[:, [k]] if len(columns) == part.shape[1] else part).all(1)
            if name in table.cells:
                found.update(table.cells[name].iloc[np.flatnonzero(unknown)])
    return {text: found[text] for text in sorted(found, key=lambda text: (text != "", -found[text]))}


def remarks(tables: Sequence[LabelTable], columns: Sequence[str], target: Target) -> list[str]:
    """What a reader may not expect of how the columns were read: decimal commas, and classes that look alike."""
    names = target.classes or (target.tasks if target.kind == "multilabel" else ())
    found = [
        f"decimal commas of {name!r} read as points"
        for name in columns
        if target.kind == "regression" and any(has_decimal_commas(table.column(name)) for table in tables)
    ]
    for fold, how in ((_as_number, "are one number"), (_without_case, "differ in upper and lower case alone")):
        alike: dict[object, list[str]] = {}
        for name in names:
            alike.setdefault(fold(name), []).append(name)
        found += [
            f"{few(several, quoted=True)} {how}, and stay {len(several)} classes: names of classes are text"
            for several in alike.values()
            if len(several) > 1
        ]
    if rounded := [name for name in names if re.fullmatch(r"-?\d(\.\d+)?[eE]\+?[1-9]\d+", name)]:
        found.append(
            f"{few(rounded, quoted=True)}: were long numbers rounded by a spreadsheet or a column of floating point? "
            "several may have become one; keep such a column as text"
        )
    if words := [name for name in names if name.lower() in (*NO_NUMBER, "-", "--", "?", ".")]:
        said = " ".join(f"--missing={shlex.quote(name)}" for name in words)
        what = "is a class" if len(words) == 1 else "are classes"
        found.append(f"{few(words, quoted=True)} {what} here; {said} if that means that there is none")
    return found


def _as_number(name: str) -> object:
    return float(name) if is_number(name) and abs(float(name)) < EXACT else name


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _refuse_unknown(table: LabelTable, column: str, found: Iterable[str], known: Sequence[str]) -> None:
    unknown = _sorted(set(found) - set(known))
    if unknown:
        raise LabelsError(
            f"column {column!r} of {table.file} has {few(unknown, 12, quoted=True)}, which the run does not know; "
            f"it knows {few(known, 12, quoted=True)}"
        )


def _yes_or_no(table: LabelTable, name: str) -> NDArray[np.float64]:
    cells = table.column(name)
    values = np.full(len(cells), np.nan)
    for i, text in enumerate(cells):
        if is_no_number(text):
            continue
        value = as_bit(text)
        if value is None:
            raise LabelsError(f"{table.where(i, name)}: {text!r} is neither 0 nor 1, yes nor no, true nor false")
        values[i] = value
    return values


def _value(text: str) -> float | str:
    bit = as_bit(text)
    return bit if bit is not None else float(text) if is_number(text) else text


def _separator(cells: Sequence[str]) -> str | None:
    return next((separator for separator in _SEPARATORS if any(separator in text for text in cells)), None)


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (natural(name), name))
