"""Splits: cross-validation folds, a hold-out, and the inner parts of training rows.

A split depends on the number of rows, their groups and strata and the seed, and on nothing else: every head with the
same labels is tested on the same rows. Groups stay together everywhere: across folds, and between what is fitted
and what early stopping looks at. `heads.splits.given` reads splits that somebody else has made, `heads.splits.dealing`
deals groups.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from heads.errors import LabelsError
from heads.splits.dealing import deal, take

Rows = NDArray[np.int64]

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

    @property
    def partition(self) -> Rows:
        """(N,) the number of the part that tests a row; -1 for rows that are never tested."""
        numbers = np.full(len(self.folds), -1, np.int64)
        for number, part in enumerate(self.parts):
            numbers[part.test] = number
        return numbers


def k_fold(
    n: int, *, n_folds: int, groups: Sequence[str] | None, strata: Sequence[str] | None, seed: int, by: str = ""
) -> Split:
    """Cross-validation by scikit-learn's shuffled KFold or StratifiedKFold; groups are dealt by `heads.splits.dealing`.

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
        share: of the rows that are tested, as near to it as whole groups allow.
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


def split_inner(
    rows: Rows, *, groups: Sequence[str] | None, strata: Sequence[str] | None, share: float, seed: int
) -> tuple[Rows, Rows]:
    """Training rows parted into those that are fitted and those that early stopping looks at.

    Args:
        rows: into `groups` and `strata`, which are those of all N rows.
        share: of the rows for early stopping, as near to it as whole groups allow; 0 leaves all to be fitted.
            Stratified as far as the strata allow.

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
    """Training rows in folds, each of which can be held out in turn to choose an option by.

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
    from sklearn.model_selection import KFold, StratifiedKFold

    units, what = _units(n, groups)
    if units < n_folds:
        raise LabelsError(f"{n_folds} folds need at least as many {what}; there are {units}")
    pooled = None if strata is None else _pooled(strata, n_folds)
    if groups is not None:
        return deal(groups, pooled, n_folds=n_folds, seed=seed)
    splitter = (KFold if pooled is None else StratifiedKFold)(n_folds, shuffle=True, random_state=seed)
    folds = np.empty(n, np.int64)
    for fold, (_, test) in enumerate(splitter.split(np.empty(n), pooled)):
        folds[test] = fold
    return folds


def _part(
    n: int, share: float, groups: Sequence[str] | None, strata: Sequence[str] | None, seed: int
) -> tuple[Rows, Rows]:
    """Rows parted in two, the second with `share` of them; of strata, some of many folds."""
    from sklearn.model_selection import ShuffleSplit

    units, _ = _units(n, groups)
    if strata is None:
        if groups is not None:
            held_out = take(groups, share=share, seed=seed)
            return np.flatnonzero(~held_out), np.flatnonzero(held_out)
        held = min(max(share, 1 / units), 1 - 1 / units)
        first, second = next(ShuffleSplit(1, test_size=held, random_state=seed).split(np.empty(n)))
        return np.sort(first), np.sort(second)
    finest = min(_FINEST, units, max(Counter(strata).values()))
    if finest < 2:
        raise LabelsError("every image is a stratum of its own; stratify by something that images share")
    near = Fraction(share).limit_denominator(finest)
    near = min(max(near, Fraction(1, finest)), Fraction(finest - 1, finest))
    folds = _assign(n, near.denominator, groups, strata, seed)
    return np.flatnonzero(folds >= near.numerator), np.flatnonzero(folds < near.numerator)


def _pooled(strata: Sequence[str], n_folds: int) -> NDArray[np.int64]:
    """Strata as numbers; those too rare for every fold are pooled, with the rarest other one if the pool is too."""
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


def _by_row(n: int, names: Mapping[str, Rows]) -> list[str]:
    folds = np.empty(n, dtype=object)
    for name, rows in names.items():
        folds[rows] = name
    return [str(fold) for fold in folds]
