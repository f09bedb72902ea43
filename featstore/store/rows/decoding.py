"""Decoding the compressed bytes of a row, after it is known that they unpack to exactly what a row takes.

A frame of zstd and one of blosc say at their beginning how long they are when they are unpacked. The codecs are those
of numcodecs, which Zarr itself uses; they let go of Python's lock.
"""

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from featstore.store.format.shard import ShardError

Decode = Callable[[NDArray[np.uint8], NDArray[np.uint8]], None]
"""Unpacks the bytes of a row into its place.

Raises:
    ShardError: they are no frame, or do not unpack to exactly what the place holds.
"""
_ZSTD = 0xFD2FB528
_BLOSC_HEADER = struct.Struct("<BBBBIII")  # two versions, flags, typesize; bytes unpacked, in a block, packed


def decode_zstd(packed: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """As `Decode`, a frame of zstd; one that does not say its length may unpack to no more than the place holds."""
    from numcodecs.zstd import decompress

    n_bytes = _zstd_bytes(packed[:18].tobytes())
    if n_bytes not in (None, out.nbytes):
        raise ShardError(f"it says that it unpacks to {n_bytes} bytes, and a row has {out.nbytes}")
    _run(decompress, packed, out)


def decode_blosc(packed: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """As `Decode`, a frame of blosc."""
    from numcodecs.blosc import decompress

    if len(packed) < _BLOSC_HEADER.size:
        raise ShardError(f"its {len(packed)} bytes are no frame of blosc")
    *_, n_bytes, n_block, n_packed = _BLOSC_HEADER.unpack(packed[: _BLOSC_HEADER.size].tobytes())
    if n_packed != len(packed):
        raise ShardError(f"it says that it has {n_packed} bytes, and has {len(packed)}")
    if n_bytes != out.nbytes or n_block > n_bytes:
        raise ShardError(f"it says that it unpacks to {n_bytes} bytes in blocks of {n_block}; a row has {out.nbytes}")
    _run(decompress, packed, out)


DECODERS: dict[str, Decode] = {"zstd": decode_zstd, "blosc": decode_blosc}


def _run(decompress: Callable[..., object], packed: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    try:
        decompress(packed, out)
    except (RuntimeError, ValueError) as error:
        raise ShardError(f"it does not unpack to a row: {error}") from error


def _zstd_bytes(packed: bytes) -> int | None:
    """What the head of a frame says of its length when unpacked; None if nothing (RFC 8878, 3.1.1.1)."""
    if len(packed) < 6 or int.from_bytes(packed[:4], "little") != _ZSTD:
        raise ShardError("it is no frame of zstd")
    descriptor = packed[4]
    code, single = descriptor >> 6, bool(descriptor & 0x20)
    n_size = (int(single), 2, 4, 8)[code]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    field = packed[start : start + n_size]
    if len(field) < n_size:
        raise ShardError("it is no whole frame of zstd")
    return None if not n_size else int.from_bytes(field, "little") + (256 if n_size == 2 else 0)
