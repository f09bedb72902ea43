"""BMP files: bit masks that Pillow does not know, and the colour profile of the newest header."""

import struct

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ImageError

BITFIELDS = (3, 6)  # compression: masks of three channels, of four


def profile_of(data: bytes) -> bytes | None:
    """The colour profile that a file embeds, if it does."""
    if len(data) < 138 or struct.unpack_from("<I", data, 14)[0] < 124 or data[70:74] != b"DEBM":
        return None
    start, length = struct.unpack_from("<II", data, 14 + 112)
    return data[14 + start : 14 + start + length]


def has_masks(data: bytes) -> bool:
    """Whether the pixels are told by bit masks."""
    if len(data) < 54 or struct.unpack_from("<I", data, 14)[0] < 40:
        return False
    bits, compression = struct.unpack_from("<HI", data, 28)
    return compression in BITFIELDS and bits in (16, 32)


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height, as the header says."""
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)


def read_masks(data: bytes) -> NDArray[np.uint8]:
    """(height, width, 3 or 4) RGB or RGBA of a file with bit masks, whatever they are.

    Raises:
        ImageError: truncated.
    """
    start, header, width, height = struct.unpack_from("<IIii", data, 10)
    bits, compression = struct.unpack_from("<HI", data, 28)
    masks = struct.unpack_from("<IIII", data, 54)
    alpha = (header >= 56 or compression == 6) and masks[3] != 0
    stride = (width * bits // 8 + 3) // 4 * 4
    if len(data) < start + stride * abs(height):
        raise ImageError("damaged or truncated: the file ends before its last row")
    rows = np.frombuffer(data, np.uint8, stride * abs(height), start).reshape(abs(height), stride)
    values = rows[:, : width * bits // 8].view("<u2" if bits == 16 else "<u4")[:: -1 if height > 0 else 1]
    pixels = np.dstack([_channel(values, mask) for mask in masks[: 4 if alpha else 3]])
    # Programs that mean no transparency at all leave the alpha at zero.
    return pixels if alpha and pixels[..., 3].any() else pixels[..., :3]


def _channel(values: NDArray[np.integer], mask: int) -> NDArray[np.uint8]:
    if not mask:
        return np.zeros(values.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    found = (values >> shift).astype(np.uint32) & (mask >> shift)
    return (found * (255 / (mask >> shift)) + 0.5).astype(np.uint8)
