# mypy: allow-untyped-calls
# scikit-image says that it is typed, and has no annotations yet.
"""Measures of a photograph that have one right answer, each a plain formula of its pixels.

Every measure takes an RGB image (H, W, 3) of uint8 and returns a float. Luma Y is `skimage.color.rgb2gray`,
the Rec. 709 weighting of the gamma-coded channels, between 0 and 1. The first paragraph of each docstring is
the formula, and is copied into the README of the demo set.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.feature import structure_tensor
from skimage.filters import laplace, sobel
from skimage.measure import shannon_entropy

Rgb = NDArray[np.uint8]
Luma = NDArray[np.float64]

STRONG_EDGE = 0.05


def colourfulness(image: Rgb) -> float:
    """sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2), where rg = R - G and yb = (R + G) / 2 - B.

    Source: Hasler and Suesstrunk, Measuring colourfulness in natural images, SPIE 5007, 2003.
    """
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def contrast(image: Rgb) -> float:
    """Standard deviation of Y, which is RMS contrast.

    Source: Peli, Contrast in complex images, JOSA A 7(10), 1990.
    """
    return float(_luma(image).std())


def sharpness(image: Rgb) -> float:
    """log(1 + variance of the 3 x 3 Laplacian of 255 Y).

    Source: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000; the log is ours.
    """
    return float(np.log1p(laplace(255 * _luma(image)).var()))


def brightness(image: Rgb) -> float:
    """Mean of Y."""
    return float(_luma(image).mean())


def saturation(image: Rgb) -> float:
    """Mean of S = (max - min) / max over the channels of a pixel, the saturation of HSV; 0 for black.

    Source: Smith, Color gamut transform pairs, SIGGRAPH 1978.
    """
    highest, lowest = image.max(axis=-1).astype(np.float64), image.min(axis=-1)
    return float(((highest - lowest) / np.maximum(highest, 1)).mean())


def edge_density(image: Rgb) -> float:
    """Share of pixels whose Sobel gradient magnitude of Y exceeds 0.05."""
    return float((sobel(_luma(image)) > STRONG_EDGE).mean())


def entropy(image: Rgb) -> float:
    """-sum p log2 p over the 256 grey levels of Y, in bits.

    Source: Shannon, A mathematical theory of communication, 1948.
    """
    return float(shannon_entropy(np.rint(255 * _luma(image)).astype(np.uint8)))


def symmetry(image: Rgb) -> float:
    """Pearson correlation of Y with its left-right mirror image; 1 where Y is constant."""
    centred = _luma(image) - _luma(image).mean()
    power = float((centred**2).mean())
    return float((centred * centred[:, ::-1]).mean()) / power if power > np.finfo(np.float32).eps else 1.0


def warmth(image: Rgb) -> float:
    """Mean of (R - B) / 255: above zero for warm images, below for cool ones."""
    return float(image[..., 0].mean() - image[..., 2].mean()) / 255


def directionality(image: Rgb) -> float:
    """|sum (Jxx - Jyy) + 2i Jxy| / sum (Jxx + Jyy) for the structure tensor J of Y; 0 where Y is constant.

    1 for parallel stripes, near 0 for gravel. Source: Bigun and Granlund, Optimal orientation detection of
    linear symmetry, ICCV 1987.
    """
    tensor = structure_tensor(_luma(image), sigma=1.0, mode="nearest", order="rc")
    j_rr, j_rc, j_cc = (part.mean() for part in tensor)
    energy = j_rr + j_cc
    return float(np.hypot(j_cc - j_rr, 2 * j_rc) / energy) if energy > np.finfo(np.float32).eps else 0.0


def centre_light(image: Rgb) -> float:
    """Mean of Y in the central half of the height and width minus the mean of Y around it."""
    luma = _luma(image)
    n_rows, n_columns = luma.shape
    centre = np.zeros(luma.shape, dtype=bool)
    centre[n_rows // 4 : n_rows - n_rows // 4, n_columns // 4 : n_columns - n_columns // 4] = True
    return float(luma[centre].mean() - luma[~centre].mean())


def top_light(image: Rgb) -> float:
    """Mean of Y in the upper half minus its mean in the lower half."""
    luma = _luma(image)
    half = luma.shape[0] // 2
    return float(luma[:half].mean() - luma[-half:].mean())


def _luma(image: Rgb) -> Luma:
    return np.asarray(rgb2gray(image), dtype=np.float64)


MEASURES: MappingProxyType[str, Callable[[Rgb], float]] = MappingProxyType(
    {
        measure.__name__: measure
        for measure in (
            colourfulness,
            contrast,
            sharpness,
            brightness,
            saturation,
            edge_density,
            entropy,
            symmetry,
            warmth,
            directionality,
            centre_light,
            top_light,
        )
    }
)
