"""Samples of any number of bits, as 8 bits: 0 stays 0, the largest becomes 255, what lies between is rounded."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROWS = 256  # converted at a time, so that a large photo does not take its memory several times


def to_8_bits(values: NDArray[np.uint8 | np.uint16], bits: int = 16) -> NDArray[np.uint8]:
    """Samples of `bits` each, 1 to 16: of 16 bits scaled by 1/257, of any others by 255 / (2^bits - 1)."""
    if bits == 8 and values.dtype == np.uint8:
        return np.asarray(values, np.uint8)
    table = _table(bits)
    found = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS):
        found[start : start + ROWS] = table[values[start : start + ROWS]]
    return found


def image_of(samples: NDArray[np.uint8], *, premultiplied: bool = False) -> Image.Image:
    """Grey, grey and alpha, RGB or RGBA, by the number of samples of (height, width, samples).

    Args:
        premultiplied: whether the colours have been multiplied by the alpha.
    """
    height, width, n_samples = samples.shape
    if premultiplied:  # of grey, Pillow has no way back
        colours = samples[..., [0, 0, 0, 1]] if n_samples == 2 else samples
        return Image.frombytes("RGBa", (width, height), np.ascontiguousarray(colours).tobytes()).convert("RGBA")
    return Image.fromarray(np.ascontiguousarray(samples[..., 0] if n_samples == 1 else samples))


@lru_cache(maxsize=4)
def _table(bits: int) -> NDArray[np.uint8]:
    """As long as any sample may be: what is too large is the largest."""
    most = 2**bits - 1
    values = np.arange(65536 if bits > 8 else 256)
    table: NDArray[np.uint8] = (values.clip(max=most) * 255 / most + 0.5).astype(np.uint8)
    return table
