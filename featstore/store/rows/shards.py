"""Rows of uncompressed shards, memory-mapped or fetched, each checked at its first read."""

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from featstore.errors import MEND, DamagedError
from featstore.files import open_file
from featstore.store.format.shard import CRC_BYTES, ENTRY_BYTES, ShardError, check_size, parse_index, shard_limit

AT_ONCE = 8  # rows that are copied before they are checked: few waits for Python's lock, and still in the cache
MAPS = 1024  # shards of a tensor that are mapped at a time
Verify = Callable[[int, NDArray[np.uint8]], None]


class Shards(Protocol):
    """Where the shards of one tensor are."""

    def open(self, block: int) -> "OpenShard":
        """The shard of a row block as it is now.

        Raises:
            ShardError: it is missing, or its index cannot be right.
        """
        ...


class ShardRows:
    """The rows of a tensor.

    Args:
        name: what messages call the tensor.
    """

    def __init__(self, shards: Shards, *, row_bytes: int, block_rows: int, name: str) -> None:
        self._shards, self._row_bytes, self._block_rows, self._name = shards, row_bytes, block_rows, name

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
                shard = self._shards.open(block)
            except ShardError as error:
                raise self._damaged(block, wanted, error) from error
            if shard.broken and (broken := shard.broken & {within for _, within in wanted}):
                raise self._damaged(block, wanted, ShardError(f"{shard.name} has no whole row {min(broken)}"))
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

    def whole(self, block: int, checksums: NDArray[np.uint32]) -> NDArray[np.uint8] | None:
        """The bytes of a shard as it is, if it is as `shard_parts` writes it and its rows have these checksums."""
        try:
            shard = self._shards.open(block)
        except ShardError:
            return None
        size = self._row_bytes + CRC_BYTES
        if shard.starts != list(range(0, self._block_rows * size, size)) or len(checksums) != self._block_rows:
            return None
        n_bytes = self._block_rows * (size + ENTRY_BYTES) + CRC_BYTES
        sums = [int(checksum).to_bytes(CRC_BYTES, "little") for checksum in checksums]
        for start, checksum in zip(shard.starts, sums, strict=True):
            end = start + self._row_bytes
            values = shard.contents[start:end]
            if google_crc32c.value(values).to_bytes(CRC_BYTES, "little") != checksum:
                return None
            if shard.contents[end : end + CRC_BYTES].tobytes() != checksum:
                return None
        return shard.contents if len(shard.contents) == n_bytes else None

    def _damaged(self, block: int, wanted: list[tuple[int, int]], error: ShardError) -> DamagedError:
        rows = [block * self._block_rows + within for _, within in wanted]
        return DamagedError(f"rows {min(rows)} to {max(rows)} of {self._name}: {error}; {MEND}")


class OpenShard:
    """The bytes of a shard, where in it each row begins (-1: nowhere), and which rows were checked.

    Args:
        name: what messages call it.

    Raises:
        ShardError: its index cannot be right.
    """

    def __init__(
        self,
        name: str,
        contents: NDArray[np.uint8],
        *,
        block_rows: int,
        row_bytes: int,
        let_go: Callable[[], object] = lambda: None,
    ) -> None:
        self.name, self.contents, self.let_go = name, contents, let_go
        self.seen, self.all_seen = [False] * block_rows, False
        tail = contents[-(block_rows * ENTRY_BYTES + CRC_BYTES) :].tobytes()
        try:
            index = parse_index(tail, block_rows, len(contents))
        except ValueError as error:
            raise ShardError(f"{name} is damaged: {error}") from error
        self._row_bytes = row_bytes
        self.starts: list[int] = np.where(
            index[:, 1] == row_bytes + CRC_BYTES, index[:, 0].astype(np.int64), -1
        ).tolist()
        self.broken = {row for row, start in enumerate(self.starts) if start < 0}

    def row(self, within: int) -> NDArray[np.uint8] | None:
        """The bytes of a row, unchecked; None if there are none."""
        start = self.starts[within]
        return None if start < 0 else self.contents[start : start + self._row_bytes]


class MappedShards:
    """Shards that are local files, mapped into the address space.

    Args:
        file_of: the file of a row block; may raise ShardError.
        keep_mapped: whether what was read of a file goes on to count as memory of this process.
    """

    def __init__(
        self, file_of: Callable[[int], Path], *, row_bytes: int, block_rows: int, keep_mapped: bool = True
    ) -> None:
        self._file_of, self._row_bytes, self._block_rows = file_of, row_bytes, block_rows
        self._keep_mapped = keep_mapped
        self._maps: OrderedDict[int, tuple[tuple[int, ...], OpenShard]] = OrderedDict()
        self._lock = Lock()

    def open(self, block: int) -> OpenShard:
        """As `Shards.open`: one that was replaced or cut off since it was mapped is mapped anew."""
        file = self._file_of(block)
        try:
            stat = os.stat(file)  # noqa: PTH116 (a path object would double the time that a row takes)
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            with self._lock:
                known = self._maps.get(block)
                if known is not None and known[0] == stamp:
                    self._maps.move_to_end(block)
                    return known[1]
            mapped = self._map(file)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise ShardError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        with self._lock:
            self._maps[block] = (stamp, mapped)
            if len(self._maps) > MAPS:
                self._maps.popitem(last=False)
        return mapped

    def _map(self, file: Path) -> OpenShard:
        with open_file(file) as stream:
            n_bytes = os.fstat(stream.fileno()).st_size
            check_size(str(file), n_bytes, shard_limit(self._row_bytes, self._block_rows))
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

        def let_go() -> None:
            """Its pages no longer count as memory of this process; they stay in the system's cache."""
            if not self._keep_mapped:
                mapped.madvise(mmap.MADV_DONTNEED)

        contents = np.frombuffer(mapped, np.uint8)
        return OpenShard(str(file), contents, block_rows=self._block_rows, row_bytes=self._row_bytes, let_go=let_go)
