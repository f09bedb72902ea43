"""Colour by hand: arousal, a histogram, the eleven basic names."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor
from skimage.color import rgb2hsv, rgb2lab
from torch import Tensor

from featstore.backbones.hand.group import Group, Picture, Vector

NAMES = ("black", "blue", "brown", "grey", "green", "orange", "pink", "purple", "red", "white", "yellow")
"""The basic names of colours (Berlin and Kay, 1969), in the order of van de Weijer's table."""
TABLE = (32 * 32 * 32, len(NAMES))
"""How probable each name is of each colour, 32 steps of red (fastest), green and blue."""


def arousal(picture: Picture, *, saturation: float, value: float) -> Vector:
    """How arousing the colours are: the mean of a weighed sum of saturation and value, both 0 to 1, in HSV.

    Weights: Machajdik and Hanbury, 2010, after Valdez and Mehrabian, 1994.
    """
    hsv = rgb2hsv(picture)
    return np.array([np.mean(saturation * hsv[..., 1] + value * hsv[..., 2])])


def colour_histogram(picture: Picture, *, bins: int) -> Vector:
    """The share of pixels in each of `bins` x `bins` x `bins` boxes of HSV; hue slowest."""
    steps = np.minimum((rgb2hsv(picture) * bins).astype(np.int64), bins - 1).reshape(-1, 3)
    counts = np.bincount(steps @ (bins * bins, bins, 1), minlength=bins**3)
    shares: Vector = counts / len(steps)
    return shares


class ColourNames(Group):
    """The share of each basic colour name in a picture.

    `table` is how probable each name is of each colour, as van de Weijer's w2c (Learning color names for real-world
    applications, 2009), which a user may have; ours is the nearest of the colours that CSS gives these names.
    """

    table: Tensor

    def __init__(self) -> None:
        super().__init__(self.names_of)
        self.register_buffer("table", torch.tensor(nearest_names()))

    def names_of(self, picture: Picture) -> Vector:
        """(11,), sum 1 with a table of probabilities."""
        shares: Vector = name_probabilities(picture, self.table.numpy(force=True)).mean((0, 1), dtype=np.float64)
        return shares


def name_probabilities(picture: Picture, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """How probable each name is at each pixel, (height, width, 11)."""
    found: NDArray[np.float32] = table[(picture // 8).astype(np.int64) @ (1, 32, 1024)]
    return found


@cache
def nearest_names() -> NDArray[np.float32]:
    """A table (32768, 11) that has 1 for the name whose colour is nearest to the middle of a step, in CIELAB."""
    steps = np.arange(len(range(0, 256, 8)))
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    colours = 8 * np.stack([red, green, blue], -1).reshape(-1, 3) + 3.5
    named = np.array([ImageColor.getrgb(name) for name in NAMES], np.float64)
    lab, of_names = (rgb2lab(each[None] / 255)[0] for each in (colours, named))
    nearest = np.square(lab[:, None] - of_names).sum(2).argmin(1)
    table: NDArray[np.float32] = np.eye(len(NAMES), dtype=np.float32)[nearest]
    table.setflags(write=False)  # it is kept for all
    return table
