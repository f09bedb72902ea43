"""GIST: the spatial envelope of a scene (Oliva and Torralba, Modeling the Shape of the Scene, 2001)."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from featstore.backbones.hand.group import Picture, Vector

Matrix = NDArray[np.float64]
BORDER = 5
"""Pixels that are mirrored around a picture before it is whitened."""
BANDWIDTH, ANGULAR = 0.35, 16 / 32**2
"""Of a Gabor filter along its frequency, and around it for a filter bank of one orientation."""


def gist(
    picture: Picture,
    *,
    cells: int,
    cutoff: float,
    highest: float,
    orientations: int,
    padding: int,
    ratio: float,
    scales: int,
) -> Vector:
    """Energy of Gabor filters in each of `cells` x `cells` cells, scale by scale from the finest, (512,).

    Args:
        cutoff: of the whitening, in cycles a picture.
        highest: frequency of the finest filters, in cycles a pixel; each other scale is by `ratio` lower.
        padding: pixels that are mirrored around the whitened picture.
    """
    white = np.pad(whitened(picture.mean(2), cutoff), padding, mode="symmetric")
    gabors = _gabors(white.shape, highest, orientations, ratio, scales)
    spectrum = fft.fft2(white)
    found = []
    for gabor in gabors:
        energy = np.abs(fft.ifft2(spectrum * gabor))[padding:-padding, padding:-padding]
        found.append(_cell_means(energy, cells))
    return np.concatenate(found)


def whitened(grey: Matrix, cutoff: float) -> Matrix:
    """A grey picture, stretched to 0 .. 255, in logarithms, without its low frequencies and of even local contrast."""
    grey = grey - grey.min()
    logs = np.log1p(255 * grey / max(grey.max(), np.finfo(float).tiny))
    height, width = (side + 2 * BORDER for side in grey.shape)
    padded = np.pad(logs, BORDER, mode="symmetric")
    padded = np.pad(padded, ((0, height % 2), (0, width % 2)), mode="symmetric")
    y, x = (fft.fftfreq(side, 1 / side) for side in padded.shape)
    low = np.exp(-(x**2 + y[:, None] ** 2) * np.log(2) / cutoff**2)
    high = padded - fft.ifft2(fft.fft2(padded) * low).real
    spread = np.sqrt(np.abs(fft.ifft2(fft.fft2(high**2) * low)))
    white: Matrix = high / (0.2 + spread)
    return white[BORDER : height - BORDER, BORDER : width - BORDER]


@lru_cache(4)
def _gabors(
    shape: tuple[int, int], highest: float, orientations: int, ratio: float, scales: int
) -> NDArray[np.float64]:
    """Filters (scales x orientations, height, width) in the order of frequencies of a Fourier transform."""
    y, x = (fft.fftfreq(side) for side in shape)
    frequency, angle = np.hypot(x, y[:, None]), np.arctan2(y[:, None], np.broadcast_to(x, shape))
    found = []
    for scale in range(scales):
        along = np.exp(-10 * BANDWIDTH * (frequency / (highest / ratio**scale) - 1) ** 2)
        for turn in range(orientations):
            away = (angle + np.pi * turn / orientations + np.pi) % (2 * np.pi) - np.pi
            found.append(along * np.exp(-2 * np.pi * ANGULAR * orientations**2 * away**2))
    return np.array(found)


def _cell_means(values: Matrix, n: int) -> Vector:
    """Means over n x n cells, row-major."""
    rows, columns = (np.linspace(0, side, n + 1).astype(int) for side in values.shape)
    sums = np.add.reduceat(np.add.reduceat(values, rows[:-1], 0), columns[:-1], 1)
    means: Vector = sums / np.outer(np.diff(rows), np.diff(columns))
    return means.ravel()
