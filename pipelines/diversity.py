"""Diversity: how many classes the photos of each group fall into, made comparable, and which are typical of one group.

Everything here is of a table of counts (groups, classes): how many photos of a group have a class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

Counts = NDArray[np.int64]


def count(groups: NDArray[np.int64], classes: NDArray[np.int64], n_groups: int, n_classes: int) -> Counts:
    """(n_groups, n_classes) from the group and the class of each of N photos."""
    counts = np.zeros((n_groups, n_classes), np.int64)
    np.add.at(counts, (groups, classes), 1)
    return counts


def most_frequent(counts: Counts, most: int) -> list[int]:
    """The classes (C,) of one group that occur most often, at most so many; of equal ones the lower number first."""
    order = np.argsort(-counts, kind="stable")[:most]
    return [int(each) for each in order if counts[each]]


def entropy(counts: Counts) -> float:
    """Shannon's entropy of one group, in bits; 0 if all photos have one class."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def n_for_half(counts: Counts) -> int:
    """How many classes, the most frequent ones, have half of the photos of one group."""
    reached = np.cumsum(np.sort(counts)[::-1])
    return int(np.searchsorted(2 * reached, counts.sum())) + 1


def rarefied(counts: Counts, n: int) -> float:
    """The expected number of distinct classes among n photos of one group, drawn without replacement.

    Distinct classes grow with the number of photos; at one n groups can be compared (Hurlbert, The nonconcept of
    species diversity, 1971).

    Args:
        n: at most the photos of the group.
    """
    occurring = counts[counts > 0]
    return float((1 - hypergeom.pmf(0, counts.sum(), occurring, n)).sum())


def over_frequent(counts: Counts) -> NDArray[np.float64]:
    """P-values (groups, classes): is a class in a group more often than if the group were drawn from all photos?

    Fisher's exact test to one side, corrected by Holm for all classes that occur in any group, in every group: that one
    or more of those below .05 are chance has a probability of less than .05. Photos are taken for independent.
    """
    n_photos, of_group, of_class = counts.sum(), counts.sum(1), counts.sum(0)
    occurring = np.flatnonzero(of_class)
    some = counts[:, occurring]
    # A class as a draw, and the group as what may be drawn: the same probability, and fewer terms.
    p = hypergeom.sf(some - 1, n_photos, of_group[:, None], of_class[occurring])
    order = np.argsort(p, axis=None, kind="stable")
    stepped = np.maximum.accumulate(p.flat[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty(p.size)
    adjusted[order] = stepped.clip(max=1)
    found = np.ones(counts.shape)
    found[:, occurring] = adjusted.reshape(p.shape)
    return found
