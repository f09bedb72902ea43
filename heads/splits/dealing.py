"""Dealing whole groups of rows to folds, so that folds are as even as the groups allow.

scikit-learn's shuffled GroupKFold deals the same number of groups to each fold, however large they are: on OASIS by
file name its folds have 146 to 248 of 900 photos. Here a fold that has little gets the next group.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_TRIES = 5
"""Random orders that are tried before groups are dealt strictly by size, which is most even and least random."""


def deal(groups: Sequence[str], strata: NDArray[np.int64] | None, *, n_folds: int, seed: int) -> NDArray[np.int64]:
    """(N,) the fold of each row: whole groups, and folds with nearly the same number of rows, and of each stratum.

    Larger groups are dealt first, each to the fold that has least of what it brings. Groups of about the same size come
    in random order, so that another seed gives other folds.

    Args:
        groups: (N,), at least `n_folds` different ones.
        strata: (N,), numbers of strata.
    """
    rng = np.random.default_rng(seed)
    names, group_of = np.unique(np.array(groups, object).astype(str), return_inverse=True)
    sizes = np.bincount(group_of)
    brings = _brings(group_of, strata, len(names)) * n_folds
    by_size = np.lexsort([rng.random(len(names)), -sizes])
    best = _dealt(brings, by_size, n_folds, rng)
    uneven = _unevenness(brings, best, n_folds)
    for _ in range(_TRIES):
        in_classes = np.lexsort([rng.random(len(names)), -np.floor(np.log2(sizes))])
        folds = _dealt(brings, in_classes, n_folds, rng)
        if _unevenness(brings, folds, n_folds) <= uneven + 1e-9:
            best = folds
            break
    return best[group_of]


def take(groups: Sequence[str], *, share: float, seed: int) -> NDArray[np.bool_]:
    """(N,) whether a row is taken: whole groups in random order, as near to `share` of the rows as they come.

    At least one group is taken, and one is left.
    """
    rng = np.random.default_rng(seed)
    names, group_of = np.unique(np.array(groups, object).astype(str), return_inverse=True)
    sizes = np.bincount(group_of)
    wanted, taken = share * len(group_of), np.zeros(len(names), bool)
    for group in rng.permutation(len(names)):
        missing = wanted - sizes[taken].sum()
        if taken.sum() < len(names) - 1 and (not taken.any() or abs(missing - sizes[group]) < abs(missing)):
            taken[group] = True
    return np.asarray(taken[group_of])


def _brings(group_of: NDArray[np.int64], strata: NDArray[np.int64] | None, n_groups: int) -> NDArray[np.float64]:
    """(G, 1 + S): of all rows, and of the rows of each stratum, the share that a group has."""
    columns = [np.ones(len(group_of))]
    if strata is not None:
        columns += [(strata == stratum).astype(float) for stratum in np.unique(strata)]
    return np.stack([np.bincount(group_of, column, n_groups) / column.sum() for column in columns], axis=1)


def _dealt(
    brings: NDArray[np.float64], order: NDArray[np.int64], n_folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(G,) the fold of each group: the one with the least of what it brings; no fold stays empty."""
    has = np.zeros((n_folds, brings.shape[1]))
    count = np.zeros(n_folds, np.int64)
    folds = np.empty(len(order), np.int64)
    ties = rng.random((len(order), n_folds)) * 1e-9
    for dealt, group in enumerate(order):
        cost = has @ brings[group] + ties[dealt]
        if len(order) - dealt <= (count == 0).sum():
            cost = np.where(count == 0, cost, np.inf)
        fold = int(cost.argmin())
        has[fold] += brings[group]
        count[fold] += 1
        folds[group] = fold
    return folds


def _unevenness(brings: NDArray[np.float64], folds: NDArray[np.int64], n_folds: int) -> float:
    """How far the fold that is farthest from an even share is from it, as a part of that share; of rows and strata."""
    has = np.stack([np.bincount(folds, column, n_folds) for column in brings.T])
    return float(np.abs(has - 1).max())
