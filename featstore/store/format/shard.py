"""An uncompressed shard, byte by byte: rows, each followed by its CRC-32C, then the index of where each lies.

This is the layout of Zarr's own sharding codec (`index_location: end`), so that any Zarr reader reads what is
written here. Doing it ourselves makes writing and reading as fast as the disk: a row is read from the file
straight into its place, and checked while it is still in the processor's cache.
"""

from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from featstore.store.format.layout import blank

CRC_BYTES = 4
ENTRY_BYTES = 16  # offset and length of one row, 8 bytes each
NOTHING = 2**64 - 1  # what the index says of a row that is not there


class ShardError(Exception):
    """A shard is missing or cannot be right; the reader says which rows of what are concerned."""


def row_checksums(rows: NDArray[Any]) -> NDArray[np.uint32]:
    """The CRC-32C of each row's values as they are stored: little-endian, in C order."""
    flat = as_bytes(rows)
    return np.array([google_crc32c.value(row) for row in flat], np.uint32)


def as_bytes(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """(R, row bytes), without a copy of rows that lie in memory as they are stored."""
    stored = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    return stored.reshape(len(rows), -1).view(np.uint8)


def shard_parts(rows: NDArray[Any], checksums: NDArray[np.uint32], n_rows: int) -> list[bytes | memoryview]:
    """The bytes of a shard in pieces, in order, without copying the rows.

    Args:
        rows: the first rows of the block; the `n_rows` of the shard are filled up with blank rows.
        checksums: their CRC-32C.
    """
    flat = as_bytes(rows)
    nothing = as_bytes(np.full_like(rows[:1], blank(rows.dtype), shape=(1, *rows.shape[1:])))[0]
    nothing_sum = google_crc32c.value(nothing)
    parts: list[bytes | memoryview] = []
    for i in range(n_rows):
        parts.append(memoryview(flat[i] if i < len(flat) else nothing))
        parts.append(int(checksums[i] if i < len(flat) else nothing_sum).to_bytes(CRC_BYTES, "little"))
    size = flat.shape[1] + CRC_BYTES
    index = np.array([(i * size, size) for i in range(n_rows)], "<u8").tobytes()
    return [*parts, index, google_crc32c.value(index).to_bytes(CRC_BYTES, "little")]


def parse_index(tail: bytes, n_rows: int, file_bytes: int) -> NDArray[np.uint64]:
    """(n_rows, 2) offset and length of each row, from the last bytes of a shard.

    Raises:
        ValueError: its checksum is wrong, or it points outside the file.
    """
    size = n_rows * ENTRY_BYTES
    if len(tail) != size + CRC_BYTES:
        raise ValueError(f"the file has {file_bytes} bytes, less than its index")
    if google_crc32c.value(tail[:size]) != int.from_bytes(tail[size:], "little"):
        raise ValueError("the checksum of its index is wrong")
    index = np.frombuffer(tail, "<u8", n_rows * 2).reshape(n_rows, 2)
    there = index[index[:, 0] != NOTHING]
    if len(there) and int((there[:, 0] + there[:, 1]).max()) > file_bytes - len(tail):
        raise ValueError("its index points outside the file")
    return index


def check_shard(contents: NDArray[np.uint8], n_rows: int) -> NDArray[np.bool_]:
    """(n_rows,) whether each row's bytes, compressed or not, agree with the CRC-32C behind them.

    Raises:
        ValueError: the index is damaged, or there are bytes in the file that it does not account for.
    """
    tail_bytes = n_rows * ENTRY_BYTES + CRC_BYTES
    index = parse_index(contents[-tail_bytes:].tobytes(), n_rows, len(contents))
    spans = sorted((int(offset), int(length)) for offset, length in index if offset != NOTHING)
    end = 0
    for offset, length in spans:
        if offset != end or length < CRC_BYTES:
            raise ValueError(f"its rows do not lie one behind the other at byte {end}")
        end = offset + length
    if end + tail_bytes != len(contents):
        raise ValueError(f"{len(contents) - tail_bytes - end} bytes belong to no row")
    sound = np.ones(n_rows, bool)
    for row, (offset, length) in enumerate(index.tolist()):
        if offset != NOTHING:
            chunk = contents[offset : offset + length]
            sound[row] = google_crc32c.value(chunk[:-CRC_BYTES]) == int.from_bytes(chunk[-CRC_BYTES:], "little")
    return sound
