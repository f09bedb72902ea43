# mypy: allow-untyped-calls
# scikit-image says that it is typed, and has no annotations yet.
"""Descriptors of many places in a picture, for words to stand for: HOG, dense SIFT, colour names, GIST of tiles."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.feature import hog as blocks_of_gradients

from featstore.backbones.hand.colour import name_probabilities, nearest_names
from featstore.backbones.hand.gist import gist
from featstore.backbones.hand.group import Picture

Matrix = NDArray[np.float64]
DIRECTIONS, CELLS = 8, 4
"""Of SIFT."""
FLAT = 1e-3
"""The sum of squared gradients of a patch, of grey 0 to 1, below which it has no direction."""


@dataclass(frozen=True)
class Descriptors:
    """What P places of a picture look like, and where they are."""

    values: Matrix
    """(P, D)"""
    places: Matrix
    """(P, 2): the middle of each, as parts of the height and of the width."""


Describe = Callable[[Picture], Descriptors]


def hog(picture: Picture, *, block: int, cell: int, directions: int) -> Descriptors:
    """Histograms of gradients in blocks of cells, (P, block x block x directions): Dalal and Triggs, 2005."""
    found = blocks_of_gradients(picture, directions, (cell, cell), (block, block), feature_vector=False, channel_axis=2)
    rows, columns = (cell * (np.arange(n) + block / 2) for n in found.shape[:2])
    return _descriptors(found.reshape(len(rows) * len(columns), -1), rows, columns, picture)


def sift(picture: Picture, *, clip: float, patches: str, step: int) -> Descriptors:
    """Histograms of gradients in 4x4 cells of patches on a grid, (P, 128): Lowe, 2004, without his points.

    Args:
        clip: the largest value of a descriptor of length 1, which is then scaled to that length again.
        patches: pixels of a side, for each size.
        step: pixels between two patches.
    """
    down, across = np.gradient(rgb2gray(picture))
    size, angle = np.hypot(down, across), np.arctan2(down, across) / (2 * np.pi) * DIRECTIONS
    lower = np.floor(angle)
    maps = np.zeros((*size.shape, DIRECTIONS))
    y, x = np.indices(size.shape)
    for bins, part in ((lower, lower + 1 - angle), (lower + 1, angle - lower)):
        maps[y, x, bins.astype(np.int64) % DIRECTIONS] += size * part

    integral = _integral(maps)

    def of_side(side: int) -> Descriptors:
        cells = [
            _sums(integral, side // CELLS, step, (row * side // CELLS, column * side // CELLS), side)
            for row in range(CELLS)
            for column in range(CELLS)
        ]
        values = np.concatenate(cells, 2)
        length = np.linalg.norm(values, axis=2, keepdims=True)
        values = np.minimum(values / np.maximum(length, FLAT), clip)
        values /= np.maximum(np.linalg.norm(values, axis=2, keepdims=True), FLAT)
        return _grid(values, side, step, picture)

    return _joined([of_side(side) for side in map(int, patches.split())])


def colour_names(picture: Picture, *, patches: str, step: int) -> Descriptors:
    """Shares of the eleven colour names in patches on a grid, (P, 11); `patches` and `step` as of `sift`."""
    integral = _integral(name_probabilities(picture, nearest_names()).astype(np.float64))
    sides = map(int, patches.split())
    return _joined([_grid(_sums(integral, side, step) / side**2, side, step, picture) for side in sides])


def gist_of_tiles(picture: Picture, *, step: int, tile: int, **amounts: Any) -> Descriptors:
    """GIST of tiles on a grid, (P, 512)."""
    tops, lefts = (np.arange(0, side - tile + 1, step) for side in picture.shape[:2])
    found = [gist(picture[top : top + tile, left : left + tile], **amounts) for top in tops for left in lefts]
    return _descriptors(np.array(found), tops + tile / 2, lefts + tile / 2, picture)


WIDTHS = {"hog-1": 36, "sift-1": 128, "colour-names-words-1": 11, "gist-words-1": 512}
"""By group, D."""
DESCRIPTORS: dict[str, Callable[..., Descriptors]] = {
    "hog-1": hog,
    "sift-1": sift,
    "colour-names-words-1": colour_names,
    "gist-words-1": gist_of_tiles,
}


def describer(network: str, **amounts: Any) -> Describe:
    """The descriptors of a group, by its name and amounts."""
    return partial(DESCRIPTORS[network], **amounts)


def _integral(maps: Matrix) -> Matrix:
    """Sums of maps (height, width, D) over all that is above and to the left, (height + 1, width + 1, D)."""
    return np.pad(maps.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))


def _sums(integral: Matrix, side: int, step: int, offset: tuple[int, int] = (0, 0), patch: int = 0) -> Matrix:
    """Sums over squares on a grid, (rows, columns, D).

    Args:
        offset: of each square in its patch, which has to lie in the picture as a whole.
        patch: pixels of its side; those of the square if 0.
    """
    height, width, _ = integral.shape
    tops = np.arange(0, height - (patch or side), step) + offset[0]
    lefts = np.arange(0, width - (patch or side), step) + offset[1]
    lower, upper = integral[tops + side], integral[tops]
    sums: Matrix = lower[:, lefts + side] - lower[:, lefts] - upper[:, lefts + side] + upper[:, lefts]
    return np.maximum(sums, 0)


def _grid(values: Matrix, side: int, step: int, picture: Picture) -> Descriptors:
    rows, columns = (step * np.arange(n) + side / 2 for n in values.shape[:2])
    return _descriptors(values.reshape(len(rows) * len(columns), -1), rows, columns, picture)


def _descriptors(values: Matrix, rows: NDArray[Any], columns: NDArray[Any], picture: Picture) -> Descriptors:
    height, width = picture.shape[:2]
    y, x = np.meshgrid(rows / height, columns / width, indexing="ij")
    return Descriptors(values, np.stack([y.ravel(), x.ravel()], 1))


def _joined(parts: list[Descriptors]) -> Descriptors:
    return Descriptors(np.concatenate([each.values for each in parts]), np.concatenate([each.places for each in parts]))
