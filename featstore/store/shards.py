"""An uncompressed shard, byte by byte: rows, each followed by its CRC-32C, then the index of where each lies.

This is the layout of Zarr's own sharding codec (`index_location: end`), so that any Zarr reader reads what is
written here. Doing it ourselves makes writing and reading as fast as the disk: a row is read from the file
straight into its place, and checked while it is still in the processor's cache.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from featstore.errors import MEND, DamagedError
from featstore.store.layout import blank

Verify = Callable[[int, NDArray[np.uint8]], None]


class ShardError(Exception):
    """A shard is missing or cannot be right; the reader says which rows of what are concerned."""


CRC_BYTES = 4
ENTRY_BYTES = 16  # offset and length of one row, 8 bytes each
AT_ONCE = 8  # rows that are copied before they are checked: few waits for Python's lock, and still in the cache
MAPS = 1024  # shards of a tensor that are mapped at a time
NOTHING = 2**64 - 1  # what the index says of a row that is not there


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


class MappedShards:
    """The rows of an uncompressed tensor in a local folder, copied from the mapped files.

    Args:
        name: what messages call the tensor.
        keep_mapped: whether what was read of a file goes on to count as memory of this process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        row_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        block_rows: int,
        name: str,
        keep_mapped: bool = True,
    ) -> None:
        self._folder, self._block_rows, self._name = folder, block_rows, name
        self._key = "c.{}" + ".0" * len(row_shape)
        self._row_bytes = int(np.prod(row_shape)) * dtype.itemsize
        self._maps: OrderedDict[int, _Mapped] = OrderedDict()
        self._keep_mapped = keep_mapped
        self._lock = Lock()

    def read(self, rows: NDArray[np.int64], out: NDArray[Any], *, verify: Verify) -> None:
        """Copy rows into `out`, in the order asked for.

        Args:
            verify: called with a place in `out` and the bytes that are there now, for each row that has not been
                seen since its file was mapped.

        Raises:
            DamagedError: a file is missing, or its index cannot be right.
        """
        flat = out.reshape(len(rows), -1).view(np.uint8)
        places: dict[int, list[tuple[int, int]]] = {}
        for place, row in enumerate(rows.tolist()):  # plain Python: numpy's own calls would cost more than a row does
            block, within = divmod(row, self._block_rows)
            places.setdefault(block, []).append((place, within))
        for block, wanted in places.items():
            try:
                shard = self._map(block)
            except ShardError as error:
                raise self._damaged(block, wanted, error) from error
            if shard.broken and (broken := shard.broken & {within for _, within in wanted}):
                raise self._damaged(block, wanted, ShardError(f"{shard.file} has no whole row {min(broken)}"))
            unseen = {} if shard.all_seen else {place: within for place, within in wanted if not shard.seen[within]}
            at_once = AT_ONCE if unseen else self._block_rows
            for place, start, n_rows in self._runs(wanted, shard.starts, at_once):
                if n_rows == 1:  # random rows: the shortest way counts
                    flat[place] = shard.contents[start : start + self._row_bytes]
                else:
                    strides = (self._row_bytes + CRC_BYTES, 1)
                    rows_there = np.ndarray((n_rows, self._row_bytes), np.uint8, shard.contents, start, strides)
                    flat[place : place + n_rows] = rows_there
                for each in range(place, place + n_rows) if unseen else ():
                    if each in unseen:
                        verify(each, flat[each])  # at once, while the processor has it in its cache
                        shard.seen[unseen[each]] = True
            if unseen:
                shard.all_seen = all(shard.seen)
            if not self._keep_mapped:
                shard.let_go()

    def _runs(self, wanted: list[tuple[int, int]], starts: list[int], at_once: int) -> list[tuple[int, int, int]]:
        """(place, start in the file, how many) of rows that follow each other in both."""
        runs: list[tuple[int, int, int]] = []
        size = self._row_bytes + CRC_BYTES
        for place, within in wanted:
            first, start, n_rows = runs[-1] if runs else (-1, 0, 0)
            if first + n_rows == place and start + n_rows * size == starts[within] and n_rows < at_once:
                runs[-1] = (first, start, n_rows + 1)
            else:
                runs.append((place, starts[within], 1))
        return runs

    def _map(self, block: int) -> "_Mapped":
        """The shard as it is now: one that was replaced or cut off since it was mapped is mapped anew."""
        file = self._folder / self._key.format(block)
        try:
            stat = os.stat(file)  # noqa: PTH116 (a path object would double the time that a row takes)
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            with self._lock:
                known = self._maps.get(block)
                if known is not None and known.stamp == stamp:
                    self._maps.move_to_end(block)
                    return known
            mapped = _Mapped(file, stamp, block_rows=self._block_rows, row_bytes=self._row_bytes)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise ShardError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        with self._lock:
            self._maps[block] = mapped
            if len(self._maps) > MAPS:
                self._maps.popitem(last=False)
        return mapped

    def _damaged(self, block: int, wanted: list[tuple[int, int]], error: ShardError) -> DamagedError:
        rows = [block * self._block_rows + within for _, within in wanted]
        return DamagedError(f"rows {min(rows)} to {max(rows)} of {self._name}: {error}; {MEND}")


class _Mapped:
    """A shard in the address space, where in it each row begins (-1: nowhere), and which rows were checked."""

    def __init__(self, file: Path, stamp: tuple[int, ...], *, block_rows: int, row_bytes: int) -> None:
        self.file, self.stamp = file, stamp
        self.seen, self.all_seen = [False] * block_rows, False
        with file.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.contents: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        tail = self.contents[-(block_rows * ENTRY_BYTES + CRC_BYTES) :].tobytes()
        try:
            index = parse_index(tail, block_rows, len(self.contents))
        except ValueError as error:
            raise ShardError(f"{file} is damaged: {error}") from error
        self.starts: list[int] = np.where(
            index[:, 1] == row_bytes + CRC_BYTES, index[:, 0].astype(np.int64), -1
        ).tolist()
        self.broken = {row for row, start in enumerate(self.starts) if start < 0}

    def let_go(self) -> None:
        """Its pages no longer count as memory of this process; they stay in the system's cache."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
