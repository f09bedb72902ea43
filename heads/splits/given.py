"""Given splits: a column of the labels, a CSV, or the folds of an earlier run."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from featstore.support import LISTED, but_for_case, few
from heads.errors import LabelsError
from heads.labels.table import DIGEST_COLUMNS, read_label_table
from heads.splits.folds import Part, Split

COLUMNS = ("fold", "split")
"""Where a CSV says what a photo belongs to; the first that is there."""
_SIDES: Mapping[str, Literal["train", "val", "test"]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "dev"), "val"),
    "test": "test",
}


def further_folds(n_repeats: int) -> list[str]:
    """The columns of the folds of all repeats but the first."""
    return [f"fold_{repeat}" for repeat in range(1, n_repeats)]


def fixed(values: Sequence[str], where: str, *, groups: Sequence[str] | None = None) -> Split:
    """A split that is given: training, validation and test, or folds by name.

    Args:
        values: (N,) `train` or `training`, `val`, `validation` or `dev`, and `test`; or anything else, and then each
            value is a fold that is tested by a model of all others.
        where: where they come from, for the words: `column 'split' of labels.csv`.

    Raises:
        LabelsError: a value is empty; sides are mixed with folds; nothing is left to train or to test; or a group
            lies on both sides.
    """
    names = [value.strip() for value in values]
    if empty := names.count(""):
        raise LabelsError(
            f"{where} is empty for {empty} of {len(names)} photos; say train, val or test there, or the name of a fold"
        )
    sides = [_SIDES.get(name.lower()) for name in names]
    named = {name for name, side in zip(names, sides, strict=True) if side is None}
    if named and any(sides):
        raise LabelsError(
            f"{where} has both train, val or test and other values ({few(sorted(named), quoted=True)}); "
            "let it say only train, val and test, or only folds"
        )
    split = _folds_by_name(names, where) if named else _one_part([str(side) for side in sides], where)
    if groups is not None:
        _refuse_parted_groups(groups, split.folds, where)
    return split


def read_splits(place: Path, paths: Sequence[str], path_column: str = "path") -> list[list[str]]:
    """What each of the named photos belongs to, for `fixed`; once for each repeat that has folds of its own.

    Args:
        place: a table with the columns `path` and `fold` (or `split`), or a run folder, whose `folds.csv` is read. The
            columns `fold_1`, `fold_2`, ... are the folds of further repeats.
        path_column: what the labels call the column of the paths; the table may call it so, too.

    Raises:
        LabelsError: the file cannot be read, lacks a column, says two things about a photo, or does not name one
            of the photos.
    """
    file = place / "folds.csv" if place.is_dir() else place
    found = _read_values(file, place, path_column)
    missing = [path for path in paths if _key(path) not in found]
    if missing:
        case = but_for_case(list(found.keys() - set(map(_key, paths))), map(_key, missing))
        raise LabelsError(
            f"{file} does not name {len(missing)} of {len(paths)} photos: {few(missing, quoted=True)}; "
            f"{case or 'add them, or leave them out of the labels'}"
        )
    return [list(column) for column in zip(*(found[_key(path)] for path in paths), strict=True)]


def _folds_by_name(names: Sequence[str], where: str) -> Split:
    folds = sorted(set(names), key=_natural)
    if len(folds) < 2:
        raise LabelsError(f"{where} says {folds[0]!r} of every photo; folds need at least two values")
    rows = np.array(names, dtype=object)
    parts = tuple(Part(name, np.flatnonzero(rows != name), np.flatnonzero(rows == name)) for name in folds)
    return Split(f"{len(folds)} folds of {where}", parts, list(names))


def _one_part(sides: Sequence[str], where: str) -> Split:
    rows = {
        side: np.array([i for i, each in enumerate(sides) if each == side], np.int64)
        for side in ("train", "val", "test")
    }
    for side in ("train", "test"):
        if not len(rows[side]):
            found = ", ".join(f"{len(each)} {name}" for name, each in rows.items() if len(each))
            raise LabelsError(f"{where} has no photo to {side} ({found}); say {side!r} of some")
    part = Part("test", rows["train"], rows["test"], rows["val"] if len(rows["val"]) else None)
    counts = ", ".join(f"{len(each)} {name}" for name, each in rows.items() if len(each))
    return Split(f"{counts} of {where}", (part,), list(sides))


def _refuse_parted_groups(groups: Sequence[str], folds: Sequence[str], where: str) -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for group, fold in zip(groups, folds, strict=True):
        found[group].add(fold)
    parted = [group for group, among in found.items() if len(among) > 1]
    if parted:
        among = sorted(found[parted[0]], key=_natural)
        raise LabelsError(
            f"{where} parts {len(parted)} groups: {parted[0]!r} is in {' and '.join(map(repr, among[:3]))}; "
            "put each group, and photos of the same bytes, on one side"
        )


def _read_values(file: Path, place: Path, path_column: str) -> dict[str, tuple[str, ...]]:
    """By photo, what a table says of it: of each repeat that has a column."""
    if not file.is_file():  # nor what is never read to its end, as a pipe or a device
        what = "does not exist" if not file.exists() else "is no file"
        what = "is not a run folder: it has no folds.csv" if place.is_dir() else what
        raise LabelsError(f"{place} {what}; a split is a CSV with path and fold, or a finished run")
    table = read_label_table(file, ["path"] if path_column in DIGEST_COLUMNS else [path_column, "path"])
    header = list(map(str, table.cells))
    column = next((name for name in COLUMNS if name in header), None)
    if column is None:
        raise LabelsError(f"{file} has no column 'fold' or 'split'; it has {few(header, LISTED)}")
    columns = [table.column(name) for name in (column, *further_folds(len(header))) if name in header]
    found: dict[str, tuple[str, ...]] = {}
    for i, (path, values) in enumerate(zip(table.keys, zip(*columns, strict=True), strict=True)):
        before = found.setdefault(_key(path), values)
        if before != values:
            here, above = next((a, b) for a, b in zip(values, before, strict=True) if a != b)
            raise LabelsError(f"{table.where(i)}: {path!r} is in {here!r} here, in {above!r} above")
    return found


def _key(path: str) -> str:
    """A path as it is compared: the same photo, whoever wrote its name."""
    return unicodedata.normalize("NFC", str(PurePosixPath(path.strip().replace("\\", "/"))))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `2` before `10`, by how many digits there are: Python makes no number of some thousands of them."""
    parts = [text.lstrip("0") if text.isdecimal() else text for text in re.split(r"(\d+)", name) if text]
    return [*((1, 0, text) if text and not text.isdecimal() else (0, len(text), text) for text in parts), (-1, 0, name)]
