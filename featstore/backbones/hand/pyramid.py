"""A pyramid of cells: the whole picture, its quarters, its sixteenths (Lazebnik, Schmid and Ponce, 2006)."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def cells(shape: tuple[int, int], n: int) -> Iterator[tuple[slice, slice]]:
    """The n x n cells of an array (height, width), row-major, as even as they can be."""
    rows, columns = (np.linspace(0, side, n + 1).round().astype(int) for side in shape)
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            yield slice(top, bottom), slice(left, right)


def cells_of(places: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The cell (P,) of each of P places (P, 2), as parts of the height and the width from 0 to 1."""
    at = np.minimum((places * n).astype(np.int64), n - 1)
    return at[:, 0] * n + at[:, 1]


def parse_levels(levels: str) -> tuple[int, ...]:
    """`1 2 4` -> (1, 2, 4)."""
    return tuple(map(int, levels.split()))
