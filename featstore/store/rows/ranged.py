"""Rows read by byte ranges: of shards that are compressed, in a zip file, in a bucket or in any other Zarr store.

A shard says at its end where each row lies. Rows that lie side by side are read together, checked against the CRC-32C
behind each, unpacked straight into their places, and checked again against what was recorded when they were computed.
Several threads do so at a time: reading, unpacking and summing let go of Python's lock.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featstore.errors import MEND, DamagedError, StoreError
from featstore.store.format.shard import (
    CRC_BYTES,
    ShardError,
    ShardFile,
    chunk_limit,
    is_whole,
    parse_index,
    shard_limit,
    tail_bytes,
)
from featstore.store.places.ranges import Ranges
from featstore.store.rows.decoding import Decode
from featstore.store.rows.shards import Verify
from featstore.support import n_cores

T = TypeVar("T")
U = TypeVar("U")
Index = NDArray[np.uint64]
NEAR_BYTES = 1 << 20
"""What a thread reads at a time here: enough that handing it out costs nothing, little enough that all have work."""
FAR_BYTES = 1 << 24
"""What one request asks for."""
FAR_GAP = 1 << 18
"""So many bytes between two rows are fetched rather than asked around: a request takes longer."""
AT_ONCE = 16
"""Requests that wait for a bucket at a time."""
INDEX_BYTES = 1 << 26
"""Of all indices that a tensor keeps."""


@dataclass(frozen=True)
class _Stretch:
    """Rows that lie side by side in a shard: (place in what was asked for, row in the shard), in the order of bytes."""

    block: int
    index: Index
    rows: list[tuple[int, int]]
    start: int
    stop: int


class RangedRows:
    """The rows of one tensor.

    Args:
        key_of: the key of the shard of a row block.
        decode: unpacks a row; None if rows are not compressed.
        name: what messages call the tensor.
    """

    def __init__(
        self,
        ranges: Ranges,
        key_of: Callable[[int], str],
        *,
        row_bytes: int,
        block_rows: int,
        decode: Decode | None,
        name: str,
    ) -> None:
        self._ranges, self._key_of, self._name, self._decode = ranges, key_of, name, decode
        self._row_bytes, self._block_rows = row_bytes, block_rows
        self._chunk_limit = chunk_limit(row_bytes, compressed=decode is not None)
        self._shard_limit = shard_limit(row_bytes, block_rows)
        self._process = os.getpid()
        self._indices: OrderedDict[int, tuple[Hashable, Index]] = OrderedDict()
        self._lock = Lock()

    def read(self, rows: NDArray[np.int64], out: NDArray[Any], *, verify: Verify) -> None:
        """Read rows into `out`, in the order asked for; see `ShardRows.read`. Every row is verified every time.

        Raises:
            DamagedError: a shard is missing, or rows of it are not there or do not unpack.
            StoreError: it is far away, and cannot be reached, or was read before this process was forked.
        """
        self._after_fork()
        flat = out.reshape(len(rows), -1).view(np.uint8)
        wanted: dict[int, list[tuple[int, int]]] = {}
        for place, row in enumerate(rows.tolist()):
            block, within = divmod(row, self._block_rows)
            wanted.setdefault(block, []).append((place, within))

        def find(block: int) -> list[_Stretch]:
            with self._in_words(block, wanted[block]):
                return self._stretches(block, wanted[block], self._index(block))

        def bring(stretches: list[_Stretch]) -> None:
            for stretch in stretches:
                with self._in_words(stretch.block, stretch.rows):
                    self._bring(stretch, flat, verify)

        found = [stretch for each in self._map(find, wanted, alone=self._ranges.near) for stretch in each]
        self._map(bring, self._jobs(found))

    def whole(self, block: int, checksums: NDArray[np.uint32]) -> NDArray[np.uint8] | None:
        """As `ShardRows.whole`: none is handed out as it is stored."""
        return None

    def _bring(self, stretch: _Stretch, flat: NDArray[np.uint8], verify: Verify) -> None:
        try:
            self._fill(stretch, flat, verify)
        except (ShardError, DamagedError):
            index = self._index(stretch.block, anew=True)
            if np.array_equal(index, stretch.index):
                raise
            for again in self._stretches(stretch.block, stretch.rows, index):  # the shard was replaced meanwhile
                self._fill(again, flat, verify)

    def _fill(self, stretch: _Stretch, flat: NDArray[np.uint8], verify: Verify) -> None:
        """Read, check and unpack rows that lie side by side."""
        with self._open(stretch.block) as file:
            data = np.frombuffer(file.read(stretch.start, stretch.stop), np.uint8)
            for place, within in stretch.rows:
                start, n_bytes = stretch.index[within].tolist()
                chunk = data[start - stretch.start :][:n_bytes]
                if self._decode is None:
                    flat[place] = chunk[:-CRC_BYTES]
                elif not is_whole(chunk):
                    raise ShardError(f"{file.name}: the checksum of row {within} is wrong")
                else:
                    try:
                        self._decode(chunk[:-CRC_BYTES], flat[place])
                    except ShardError as error:
                        raise ShardError(f"{file.name}: row {within} cannot be unpacked: {error}") from error
                verify(place, flat[place])

    def _stretches(self, block: int, wanted: list[tuple[int, int]], index: Index) -> list[_Stretch]:
        """What is read of a shard, piece by piece.

        Raises:
            ShardError: a row is not there, or takes more than it can.
        """
        at_once, gap = (NEAR_BYTES, 0) if self._ranges.near else (FAR_BYTES, FAR_GAP)
        found: list[_Stretch] = []
        for start, n_bytes, place, within in sorted(
            (*index[within].tolist(), place, within) for place, within in wanted
        ):
            if (self._decode is None and n_bytes != self._chunk_limit) or not CRC_BYTES < n_bytes <= self._chunk_limit:
                raise ShardError(f"{self._key_of(block)} has no whole row {within}")
            last = found[-1] if found else None
            if last is None or start > last.stop + gap or start + n_bytes - last.start > at_once:
                found.append(_Stretch(block, index, [(place, within)], start, start + n_bytes))
            else:
                stop = max(last.stop, start + n_bytes)
                found[-1] = _Stretch(block, index, [*last.rows, (place, within)], last.start, stop)
        return found

    def _jobs(self, stretches: list[_Stretch]) -> list[list[_Stretch]]:
        """What a thread does at a time: one request, or several small reads of files that are here."""
        jobs: list[list[_Stretch]] = []
        n_bytes = 0
        for stretch in stretches:
            n_bytes += stretch.stop - stretch.start
            if not jobs or not self._ranges.near or n_bytes > NEAR_BYTES:
                jobs.append([])
                n_bytes = stretch.stop - stretch.start
            jobs[-1].append(stretch)
        return jobs

    def _index(self, block: int, *, anew: bool = False) -> Index:
        """(rows, 2) where each row of a shard lies, kept until the shard is replaced."""
        stamp = self._ranges.stamp(self._key_of(block))
        with self._lock:
            known = self._indices.get(block)
            if known is not None and known[0] == stamp and not anew:
                self._indices.move_to_end(block)
                return known[1]
        with self._open(block) as file:
            try:
                index = parse_index(file.tail(tail_bytes(self._block_rows)), self._block_rows)
            except ValueError as error:
                raise ShardError(f"{file.name} is damaged: {error}") from error
        with self._lock:
            self._indices[block] = stamp, index
            while len(self._indices) > max(1, INDEX_BYTES // index.nbytes):
                self._indices.popitem(last=False)
        return index

    def _open(self, block: int) -> AbstractContextManager[ShardFile]:
        return self._ranges.open(self._key_of(block), self._shard_limit)

    def _map(self, work: Callable[[T], U], items: Collection[T], *, alone: bool = False) -> list[U]:
        if len(items) < 2 or alone:
            return [work(item) for item in items]
        return list(_threads(os.getpid(), n_cores() if self._ranges.near else AT_ONCE).map(work, items))

    def _after_fork(self) -> None:
        """In a process that was forked, another thread's lock would stay locked for ever, and threads are gone."""
        if os.getpid() == self._process:
            return
        if not self._ranges.near:
            raise StoreError(
                f"{self._name} is far away, and was read before this process was forked: the threads that fetch it are "
                "not here; use multiprocessing_context='spawn', or no worker processes"
            )
        self._process, self._lock, self._indices = os.getpid(), Lock(), OrderedDict()

    @contextmanager
    def _in_words(self, block: int, wanted: list[tuple[int, int]]) -> Iterator[None]:
        try:
            yield
        except ShardError as error:
            rows = [block * self._block_rows + within for _, within in wanted]
            raise DamagedError(f"rows {min(rows)} to {max(rows)} of {self._name}: {error}; {MEND}") from error


def read_alone(
    ranges: Ranges, key: str, within: int, out: NDArray[np.uint8], *, block_rows: int, decode: Decode | None
) -> bool:
    """Read a row of a shard into `out` (row bytes,), whatever the records say; False if it is not whole there."""
    try:
        with ranges.open(key, shard_limit(out.nbytes, block_rows)) as file:
            index = parse_index(file.tail(tail_bytes(block_rows)), block_rows)
            start, n_bytes = index[within].tolist()
            if not CRC_BYTES < n_bytes <= chunk_limit(out.nbytes, compressed=decode is not None):
                return False
            chunk = np.frombuffer(file.read(start, start + n_bytes), np.uint8)
        if not is_whole(chunk) or (decode is None and n_bytes != out.nbytes + CRC_BYTES):
            return False
        if decode is None:
            out[:] = chunk[:-CRC_BYTES]
        else:
            decode(chunk[:-CRC_BYTES], out)
    except (ShardError, ValueError):
        return False
    return True


@cache
def _threads(process: int, n: int) -> ThreadPoolExecutor:
    """The threads of this process; those of the one that it was forked from are not here."""
    return ThreadPoolExecutor(n, thread_name_prefix="featstore-rows")
