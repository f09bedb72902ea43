# mypy: allow-untyped-calls
# scikit-image says that it is typed, and has no annotations yet.
"""Texture by hand: local binary patterns in a pyramid."""

import numpy as np
from skimage.color import rgb2gray
from skimage.feature import local_binary_pattern

from featstore.backbones.hand.group import Picture, Vector
from featstore.backbones.hand.pyramid import cells, parse_levels


def lbp(picture: Picture, *, factors: str, levels: str, points: int, radius: int) -> Vector:
    """Histograms of uniform patterns in the cells of each level, and their largest over the cells of each finer level.

    Each level has the sum of its factor. Of 8 points there are 59 patterns: 58 uniform ones, and all others in one.
    Patterns: Ojala, Pietikäinen and Mäenpää, 2002. Factors: Khosla et al., 2012.
    """
    grey = np.pad(np.rint(255 * rgb2gray(picture)).astype(np.uint8), radius, mode="edge")
    patterns = local_binary_pattern(grey, points, radius, "nri_uniform").astype(np.int64)
    patterns = patterns[radius:-radius, radius:-radius]
    n_patterns = points * (points - 1) + 3
    found, largest = [], []
    for n, factor in zip(parse_levels(levels), map(float, factors.split()), strict=True):
        parts = [np.bincount(patterns[cell].ravel(), minlength=n_patterns) for cell in cells(patterns.shape, n)]
        level = np.array(parts) * (factor / patterns.size)
        found.append(level.ravel())
        if n > 1:
            largest.append(level.max(0))
    return np.concatenate([*found, *largest])
