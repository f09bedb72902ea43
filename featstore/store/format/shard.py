"""A shard, byte by byte: rows, compressed or not, each followed by its CRC-32C, then the index of where each lies.

This is the layout of Zarr's own sharding codec (`index_location: end`), so that any Zarr reader reads what is
written here. Doing it ourselves makes writing and reading as fast as the disk: a row is read from the file
straight into its place, and checked while it is still in the processor's cache. And nothing is read or unpacked before
it is known how large it is: whoever made the shard may have lied.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from featstore.store.format.layout import blank
from featstore.support import size

CRC_BYTES = 4
ENTRY_BYTES = 16  # offset and length of one row, 8 bytes each
NOTHING = 2**64 - 1  # what the index says of a row that is not there
LAST = 2**63 - 1
READ_BYTES = 1 << 22
"""So much of a shard is checked at a time: it stays in the processor's cache."""


class ShardError(Exception):
    """A shard is missing or cannot be right; the reader says which rows of what are concerned."""


class ShardFile(Protocol):
    """The bytes of a shard, wherever it is."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def size(self) -> int:
        """How many bytes it has.

        Raises:
            ShardError: it is missing.
        """
        ...

    def tail(self, n_bytes: int) -> bytes | memoryview:
        """Its last bytes; fewer if it has fewer.

        Raises:
            ShardError: it is missing, or cannot be read.
        """
        ...

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes [start, stop), all of them.

        Raises:
            ShardError: it is missing, ends before, or cannot be read.
        """
        ...


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
    length = flat.shape[1] + CRC_BYTES
    index = np.array([(i * length, length) for i in range(n_rows)], "<u8").tobytes()
    return [*parts, index, google_crc32c.value(index).to_bytes(CRC_BYTES, "little")]


def tail_bytes(n_rows: int) -> int:
    """How long the index of a shard is, with its checksum."""
    return n_rows * ENTRY_BYTES + CRC_BYTES


def chunk_limit(row_bytes: int, *, compressed: bool) -> int:
    """The most that a row takes in a shard, with its checksum: compressors add little to what they cannot compress."""
    return row_bytes + CRC_BYTES + (row_bytes // 100 + 4096 if compressed else 0)


def shard_limit(row_bytes: int, n_rows: int) -> int:
    """The most that a shard takes, compressed or not; others may leave gaps between rows."""
    return n_rows * chunk_limit(row_bytes, compressed=True) + tail_bytes(n_rows)


def check_size(name: str, n_bytes: int, limit: int) -> None:
    """Refuse a file that is larger than it can be.

    Raises:
        ShardError: it is.
    """
    if n_bytes > limit:
        raise ShardError(f"{name} has {size(n_bytes)} where {size(limit)} are the most that it can have")


def parse_index(tail: bytes | memoryview, n_rows: int, file_bytes: int | None = None) -> NDArray[np.uint64]:
    """(n_rows, 2) offset and length of each row, from the last bytes of a shard.

    Args:
        file_bytes: how long the shard is, where that is known.

    Raises:
        ValueError: its checksum is wrong, or it points outside the file.
    """
    n_bytes = n_rows * ENTRY_BYTES
    if len(tail) != n_bytes + CRC_BYTES:
        raise ValueError(f"the file has {len(tail) if file_bytes is None else file_bytes} bytes, less than its index")
    if google_crc32c.value(bytes(tail[:n_bytes])) != int.from_bytes(tail[n_bytes:], "little"):
        raise ValueError("the checksum of its index is wrong")
    index = np.frombuffer(tail, "<u8", n_rows * 2).reshape(n_rows, 2)
    there = index[index[:, 0] != NOTHING]
    end = np.uint64(LAST if file_bytes is None else file_bytes - len(tail))
    # Not their sum, which may come out small where it is too large for 64 bits.
    if len(there) and (there.max() > end or (there[:, 1] > end - there[:, 0]).any()):
        raise ValueError("its index points outside the file")
    return index


def check_shard(file: ShardFile, n_rows: int, row_bytes: int) -> NDArray[np.bool_]:
    """(n_rows,) whether each row's bytes, compressed or not, agree with the CRC-32C behind them.

    Args:
        row_bytes: what a row takes, uncompressed.

    Raises:
        ShardError: it cannot be read.
        ValueError: it is too large, its index is damaged, or there are bytes in it that the index does not account for.
    """
    n_bytes, limit, row_limit = file.size(), shard_limit(row_bytes, n_rows), chunk_limit(row_bytes, compressed=True)
    if n_bytes > limit:
        raise ValueError(f"it has {size(n_bytes)} where {size(limit)} are the most that it can have")
    index = parse_index(file.tail(tail_bytes(n_rows)), n_rows, n_bytes)
    rows = [row for row in np.argsort(index[:, 0], kind="stable").tolist() if index[row, 0] != NOTHING]
    spans = index[rows].tolist()
    end = 0
    for offset, length in spans:
        if offset != end or length < CRC_BYTES:
            raise ValueError(f"its rows do not lie one behind the other at byte {end}")
        if length > row_limit:
            raise ValueError(f"a row takes {size(length)} where {size(row_limit)} are the most that it can take")
        end = offset + length
    if end + tail_bytes(n_rows) != n_bytes:
        raise ValueError(f"{n_bytes - tail_bytes(n_rows) - end} bytes belong to no row")
    sound = np.ones(n_rows, bool)
    for first, last in _stretches(spans):
        start = spans[first][0]
        part = np.frombuffer(file.read(start, sum(spans[last])), np.uint8)
        for row, (offset, length) in zip(rows[first : last + 1], spans[first : last + 1], strict=True):
            sound[row] = is_whole(part[offset - start : offset - start + length])
    return sound


def is_whole(chunk: NDArray[np.uint8]) -> bool:
    """Whether the bytes of a row, as they lie in a shard, agree with the CRC-32C behind them."""
    return bool(google_crc32c.value(chunk[:-CRC_BYTES]) == int.from_bytes(chunk[-CRC_BYTES:].tobytes(), "little"))


def _stretches(spans: list[list[int]]) -> Iterator[tuple[int, int]]:
    """The first and the last of spans that are read at once."""
    first = 0
    for i in range(1, len(spans) + 1):
        if i == len(spans) or sum(spans[i]) - spans[first][0] > READ_BYTES:
            yield first, i - 1
            first = i
