"""Who is trained on and who is tested: folds, a hold-out, or a split that somebody else has made.

A split depends on the number of rows, their groups and strata and the seed, and on nothing else: every head with the
same labels is tested on the same rows. Groups stay together everywhere: across folds, and between what is fitted
and what early stopping looks at.
"""

import csv
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featstore import suggest
from heads.errors import LabelsError

Rows = NDArray[np.int64]

COLUMNS = ("fold", "split")
"""Where a CSV says what a photo belongs to; the first that is there."""
_SIDES: Mapping[str, Literal["train", "val", "test"]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "dev"), "val"),
    "test": "test",
}
_FINEST = 20
"""Shares of a stratified hold-out are multiples of at least one twentieth: 0.15 is 3 of 20 folds, 0.2 is 1 of 5."""


@dataclass(frozen=True)
class Part:
    """One training and what it is tested on; rows are 0 .. N-1, ascending, and no row is in two of the arrays."""

    name: str
    """`0`, `1`, ... of folds, or what the split calls them; `test` of a hold-out."""
    train: Rows
    test: Rows
    inner: Rows | None = None
    """The validation part that the split itself names; if None, it is to be cut from `train`."""


@dataclass(frozen=True)
class Split:
    """Every training of a run, in words, in parts and by row."""

    words: str
    parts: tuple[Part, ...]
    folds: list[str]
    """(N,) the name of the part that tests a row; `train` or `val` for rows that are never tested."""


def k_fold(
    n: int, *, n_folds: int, groups: Sequence[str] | None, strata: Sequence[str] | None, seed: int, by: str = ""
) -> Split:
    """Cross-validation by scikit-learn's shuffled KFold, GroupKFold, StratifiedKFold or StratifiedGroupKFold.

    Args:
        n: rows; `groups` and `strata` have as many items.
        by: what the strata are, for the words.

    Raises:
        LabelsError: fewer than two folds; fewer rows or groups than folds; or no stratum has as many rows as there
            are folds.
    """
    if n_folds < 2:
        raise LabelsError(f"{n_folds} folds: at least 2 are needed")
    folds = _assign(n, n_folds, groups, strata, seed)
    parts = tuple(
        Part(str(fold), np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(n_folds)
    )
    return Split(f"{n_folds} folds{_how(groups, strata, by)}", parts, [str(fold) for fold in folds])


def hold_out(
    n: int, *, share: float, groups: Sequence[str] | None, strata: Sequence[str] | None, seed: int, by: str = ""
) -> Split:
    """A share of the rows to test on, the others to train on.

    Args:
        share: of the rows, or of the groups if there are any, that are tested.
        by: what the strata are, for the words.

    Raises:
        LabelsError: the share is not between 0 and 1, or there are too few rows, groups or rows of a stratum.
    """
    if not 0 < share < 1:
        raise LabelsError(f"a hold-out of {share:g}: a share between 0 and 1 is expected, as 0.2")
    units, what = _units(n, groups)
    if units < 2:
        raise LabelsError(f"a hold-out needs at least 2 {what}; there are {units}")
    train, test = _part(n, share, groups, strata, seed)
    words = f"hold-out of {len(test) / n:.0%}{_how(groups, strata, by)}"
    return Split(words, (Part("test", train, test),), _by_row(n, {"train": train, "test": test}))


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
            f"{where} has both train, val or test and other values ({_some(sorted(named))}); "
            "let it say only train, val and test, or only folds"
        )
    split = _folds_by_name(names, where) if named else _one_part([str(side) for side in sides], where)
    if groups is not None:
        _refuse_parted_groups(groups, split.folds, where)
    return split


def read_split(place: Path, paths: Sequence[str]) -> list[str]:
    """What each of the named photos belongs to, for `fixed`.

    Args:
        place: a CSV with the columns `path` and `fold` (or `split`), or a run folder, whose `folds.csv` is read.

    Raises:
        LabelsError: the file cannot be read, lacks a column, says two things about a photo, or does not name one
            of the photos.
    """
    file = place / "folds.csv" if place.is_dir() else place
    found = _read_values(file, place)
    missing = [path for path in paths if _key(path) not in found]
    if missing:
        raise LabelsError(
            f"{file} does not name {len(missing)} of {len(paths)} photos: {_some(missing)}; "
            "add them, or leave them out of the labels"
        )
    return [found[_key(path)] for path in paths]


def split_inner(
    rows: Rows, *, groups: Sequence[str] | None, strata: Sequence[str] | None, share: float, seed: int
) -> tuple[Rows, Rows]:
    """Training rows parted into those that are fitted and those that early stopping looks at.

    Args:
        rows: into `groups` and `strata`, which are those of all N rows.
        share: of the rows, or groups, for early stopping; 0 leaves all to be fitted. Stratified as far as the
            strata allow.

    Raises:
        LabelsError: a single row or group is left, which cannot be parted.
    """
    if not share:
        return rows, rows[:0]
    groups, strata = _of_rows(rows, groups), _of_rows(rows, strata)
    units, what = _units(len(rows), groups)
    if units < 2:
        raise LabelsError(
            f"a training part has {units} {what}, and early stopping needs some of its own: "
            "use fewer folds, or --set inner=0"
        )
    try:
        fit, inner = _part(len(rows), share, groups, strata, seed)
    except LabelsError:
        if strata is None:
            raise
        fit, inner = _part(len(rows), share, groups, None, seed)
    return rows[fit], rows[inner]


def fold_inner(
    rows: Rows, *, groups: Sequence[str] | None, strata: Sequence[str] | None, n_folds: int, seed: int
) -> tuple[Rows, ...]:
    """Training rows in parts, each of which can be held out in turn to choose by what the others say of it.

    Args:
        rows: into `groups` and `strata`, which are those of all N rows.
        n_folds: at most; fewer where there are fewer rows or groups, and none if that leaves less than two. Stratified
            as far as the strata allow.
    """
    groups, strata = _of_rows(rows, groups), _of_rows(rows, strata)
    n_folds = min(n_folds, _units(len(rows), groups)[0])
    if n_folds < 2:
        return ()
    try:
        folds = _assign(len(rows), n_folds, groups, strata, seed)
    except LabelsError:
        folds = _assign(len(rows), n_folds, groups, None, seed)
    return tuple(rows[folds == fold] for fold in range(n_folds))


# ------------------------------------------------------------------------------------------ by scikit-learn


def _of_rows(rows: Rows, values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else [values[row] for row in rows]


def _assign(
    n: int, n_folds: int, groups: Sequence[str] | None, strata: Sequence[str] | None, seed: int
) -> NDArray[np.int64]:
    """The fold of each row."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    units, what = _units(n, groups)
    if units < n_folds:
        raise LabelsError(f"{n_folds} folds need at least as many {what}; there are {units}")
    kinds = {(0, 0): KFold, (1, 0): GroupKFold, (0, 1): StratifiedKFold, (1, 1): StratifiedGroupKFold}
    splitter = kinds[groups is not None, strata is not None](n_folds, shuffle=True, random_state=seed)
    pooled = None if strata is None else _pooled(strata, n_folds)
    folds = np.empty(n, np.int64)
    for fold, (_, test) in enumerate(splitter.split(np.empty(n), pooled, groups)):
        folds[test] = fold
    if len(np.unique(folds)) < n_folds:
        # With hardly more groups than folds, rounding lets StratifiedGroupKFold leave a fold empty.
        return _assign(n, n_folds, groups, None, seed)
    return folds


def _part(
    n: int, share: float, groups: Sequence[str] | None, strata: Sequence[str] | None, seed: int
) -> tuple[Rows, Rows]:
    """Rows parted in two, the second with `share` of them; of strata, some of many folds."""
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

    units, _ = _units(n, groups)
    if strata is None:
        held = min(max(share, 1 / units), 1 - 1 / units)
        splitter = (ShuffleSplit if groups is None else GroupShuffleSplit)(1, test_size=held, random_state=seed)
        first, second = next(splitter.split(np.empty(n), groups=groups))
        return np.sort(first), np.sort(second)
    finest = min(_FINEST, units, max(Counter(strata).values()))
    if finest < 2:
        raise LabelsError("every image is a stratum of its own; stratify by something that images share")
    near = Fraction(share).limit_denominator(finest)
    near = min(max(near, Fraction(1, finest)), Fraction(finest - 1, finest))
    folds = _assign(n, near.denominator, groups, strata, seed)
    return np.flatnonzero(folds >= near.numerator), np.flatnonzero(folds < near.numerator)


def _pooled(strata: Sequence[str], n_folds: int) -> NDArray[np.int64]:
    """Strata as numbers; those too rare for every fold count as one, with the rarest other if they still are."""
    names, number, sizes = np.unique(np.array(strata), return_inverse=True, return_counts=True)
    rare = sizes < n_folds
    if rare.all():
        raise LabelsError(
            f"{n_folds} stratified folds need a stratum of as many images; the largest, "
            f"{str(names[sizes.argmax()])!r}, has {sizes.max()}: use fewer folds, or do not stratify"
        )
    if sizes[rare].sum() < n_folds:
        rare[np.where(rare, sizes.max() + 1, sizes).argmin()] = True
    return np.where(rare[number], -1, number)


def _units(n: int, groups: Sequence[str] | None) -> tuple[int, str]:
    return (n, "labelled images") if groups is None else (len(set(groups)), "groups")


def _how(groups: Sequence[str] | None, strata: Sequence[str] | None, by: str) -> str:
    together = "" if groups is None else ", groups kept together"
    return together + ("" if strata is None else f", stratified by {by}" if by else ", stratified")


# ------------------------------------------------------------------------------------------ given by somebody


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


def _read_values(file: Path, place: Path) -> dict[str, str]:
    """By photo, what a CSV says of it."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = [str(name) for name in reader.fieldnames or ()]
            if "path" not in header:
                raise LabelsError(f"{file} has no column 'path'; {suggest('path', header)}")
            column = next((name for name in COLUMNS if name in header), None)
            if column is None:
                raise LabelsError(f"{file} has no column 'fold' or 'split'; it has {', '.join(header)}")
            found: dict[str, str] = {}
            for row in reader:
                path, value = row["path"] or "", row[column] or ""
                if found.setdefault(_key(path), value) != value:
                    raise LabelsError(
                        f"{file}, line {reader.line_num}: {path!r} is in {value!r} here, in {found[_key(path)]!r} above"
                    )
            return found
    except FileNotFoundError as error:
        what = "is not a run folder: it has no folds.csv" if place.is_dir() else "does not exist"
        raise LabelsError(f"{place} {what}; a split is a CSV with path and fold, or a finished run") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"{file} is not UTF-8; save it as CSV UTF-8") from error
    except (OSError, csv.Error) as error:
        raise LabelsError(f"{file} cannot be read as a CSV: {error}") from error


def _key(path: str) -> str:
    """A path as it is compared: the same photo, whoever wrote its name."""
    return unicodedata.normalize("NFC", str(PurePosixPath(path.strip().replace("\\", "/"))))


def _by_row(n: int, names: Mapping[str, Rows]) -> list[str]:
    folds = np.empty(n, dtype=object)
    for name, rows in names.items():
        folds[rows] = name
    return [str(fold) for fold in folds]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `2` before `10`."""
    return [(0, int(text), "") if text.isdecimal() else (1, 0, text) for text in re.split(r"(\d+)", name) if text]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
