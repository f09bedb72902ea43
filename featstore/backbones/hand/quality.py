"""How a photo was taken, by hand: contrast, the spread of its edges, how far it compresses."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import convolve
from skimage.color import rgb2gray

from featstore.backbones.hand.group import Picture, Vector


def contrast(picture: Picture, *, middle: float) -> Vector:
    """The standard deviation of grey (0 to 1), and the width of the middle part of its histogram."""
    grey = rgb2gray(picture)
    low, high = np.quantile(grey, [(1 - middle) / 2, (1 + middle) / 2])
    return np.array([grey.std(), high - low])


def edges(picture: Picture, *, alpha: float, cells: int, middle: float, side: int) -> Vector:
    """How close together the edges are, and the share of them in each of `cells` x `cells` cells, row-major.

    The Laplacian of each channel, its mean over channels, shrunk to `side` x `side`, of sum 1; the first number is 1 -
    width x height of what holds the middle part of it along either side (Ke, Tang and Jing, The Design of High-Level
    Features for Photo Quality Assessment, 2006). A picture without an edge gives zeros.
    """
    kernel = np.array([[alpha, 1 - alpha, alpha], [1 - alpha, -4, 1 - alpha], [alpha, 1 - alpha, alpha]]) / (1 + alpha)
    found = np.abs([convolve(channel, kernel, mode="nearest") for channel in np.moveaxis(picture / 255, 2, 0)]).mean(0)
    small = Image.fromarray(found.astype(np.float32)).resize((side, side), Image.Resampling.BOX)
    shares = np.asarray(small, np.float64)
    if shares.sum() < side * side * np.finfo(np.float32).eps:  # rounding of a picture of one colour
        return np.zeros(1 + cells * cells)
    shares = shares / shares.sum()
    height, width = (_width_of(shares.sum(axis), middle) for axis in (1, 0))
    return np.array([1 - width * height, *shares.reshape(cells, side // cells, cells, side // cells).sum((1, 3)).flat])


def _width_of(shares: NDArray[np.float64], middle: float) -> float:
    """The part of a side that holds the middle part of what is along it."""
    reached = np.cumsum(shares)
    first, last = np.searchsorted(reached, [(1 - middle) / 2, (1 + middle) / 2])
    return float(min(last, len(shares) - 1) - first + 1) / len(shares)


def jpeg(picture: Picture, *, quality: int) -> Vector:
    """Bytes as a JPEG over bytes of the pixels: how busy a picture is."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.array([file.tell() / picture.size])
