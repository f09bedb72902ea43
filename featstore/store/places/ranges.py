"""Byte ranges of the files of a store: bytes from here to there, the last ones, and never more than was asked for.

This is all that a reader of rows needs of a place. A folder is here, and any Zarr store; a zip file and a bucket have
their own (`zipped.py`, `bucket_store.py`).
"""

import os
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from featstore.errors import StoreError
from featstore.files import open_file
from featstore.store.format.shard import ShardError, ShardFile, check_size
from featstore.store.places.network import reaching


class Ranges(Protocol):
    """The files of a store by their keys; any number of threads may ask."""

    @property
    def near(self) -> bool:
        """Whether reading waits for no other machine and needs no threads of a library, so that a fork may go on."""
        ...

    def stamp(self, key: str) -> Hashable:
        """Something that is another thing after the file was replaced; always the same where that cannot be told.

        Raises:
            ShardError: it is missing.
        """
        ...

    def open(self, key: str, limit: int) -> AbstractContextManager[ShardFile]:
        """A file, to be read from.

        Args:
            limit: how many bytes it may have at most; it is refused here if it is known to have more.

        Raises:
            ShardError: it is missing, is no file, or is too large.
        """
        ...


@runtime_checkable
class HasRanges(Protocol):
    """A Zarr store that reads byte ranges in a way of its own."""

    @property
    def ranges(self) -> Ranges: ...


class FolderRanges:
    """The files of a local folder."""

    near = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stamp(self, key: str) -> Hashable:
        path = self._folder / key
        try:
            found = os.stat(path)  # noqa: PTH116 (a path object would double the time)
        except OSError as error:
            raise ShardError(f"{path} cannot be read: {error.strerror or error}") from error
        return found.st_ino, found.st_size, found.st_mtime_ns

    @contextmanager
    def open(self, key: str, limit: int) -> Iterator[ShardFile]:
        path = self._folder / key
        try:
            file = open_file(path)
        except OSError as error:
            raise ShardError(f"{path} cannot be read: {error.strerror or error}") from error
        with file:
            n_bytes = os.fstat(file.fileno()).st_size
            check_size(str(path), n_bytes, limit)
            yield Part(str(path), file.fileno(), 0, n_bytes)


class Part:
    """A stretch of an open file that is read as a file."""

    def __init__(self, name: str, descriptor: int, start: int, n_bytes: int) -> None:
        self.name, self._descriptor, self._start, self._n_bytes = name, descriptor, start, n_bytes

    def size(self) -> int:
        return self._n_bytes

    def tail(self, n_bytes: int) -> bytes:
        return self.read(max(0, self._n_bytes - n_bytes), self._n_bytes)

    def read(self, start: int, stop: int) -> bytes:
        check_span(self.name, start, stop, self._n_bytes)
        parts, at = [], self._start + start
        while at < self._start + stop:  # a system call takes 2 GiB at most
            try:
                part = os.pread(self._descriptor, self._start + stop - at, at)
            except OSError as error:
                raise ShardError(f"{self.name} cannot be read: {error.strerror or error}") from error
            if not part:
                raise ShardError(f"{self.name} was cut off while it was read")
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class InMemory:
    """A file whose bytes are in memory."""

    def __init__(self, name: str, data: bytes | bytearray) -> None:
        self.name, self._data = name, memoryview(data)

    def size(self) -> int:
        return len(self._data)

    def tail(self, n_bytes: int) -> memoryview:
        return self._data[max(0, len(self._data) - n_bytes) :]

    def read(self, start: int, stop: int) -> memoryview:
        check_span(self.name, start, stop, len(self._data))
        return self._data[start:stop]


class StoreRanges:
    """The files of any Zarr store."""

    near = False

    def __init__(self, store: ZarrStore, name: str) -> None:
        self._store, self._name = store, name

    def stamp(self, key: str) -> Hashable:
        return None

    @contextmanager
    def open(self, key: str, limit: int) -> Iterator[ShardFile]:
        yield _StoredFile(self._store, key, f"{self._name}/{key}")


class _StoredFile:
    def __init__(self, store: ZarrStore, key: str, name: str) -> None:
        self._store, self._key, self.name = store, key, name
        self._n_bytes: int | None = None

    def size(self) -> int:
        if self._n_bytes is None:
            with self._in_words():
                self._n_bytes = int(sync(self._store.getsize(self._key)))
        return self._n_bytes

    def tail(self, n_bytes: int) -> bytes:
        # By its size: of a file that is shorter than that, not every store gives the end.
        return self.read(max(0, self.size() - n_bytes), self.size())

    def read(self, start: int, stop: int) -> bytes:
        with self._in_words():
            data = sync(self._store.get(self._key, default_buffer_prototype(), RangeByteRequest(start, stop)))
        if data is None:
            raise ShardError(f"{self.name} is missing")
        if len(data) != stop - start:
            raise ShardError(f"{self.name}: {len(data)} bytes came where {stop - start} were asked for")
        return data.to_bytes()

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Whatever a store of somebody else's raises."""
        try:
            with reaching(self.name):
                yield
        except (FileNotFoundError, KeyError) as error:
            raise ShardError(f"{self.name} is missing") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise StoreError(f"{self.name} cannot be read: {error}") from error


def check_span(name: str, start: int, stop: int, n_bytes: int) -> None:
    """Refuse bytes that a file does not have.

    Raises:
        ShardError: it ends before, or the span is none.
    """
    if not 0 <= start <= stop <= n_bytes:
        raise ShardError(f"{name} has {n_bytes} bytes; those from {start} to {stop} were asked for")


def span(byte_range: ByteRequest | None, n_bytes: int) -> tuple[int, int]:
    """The first byte of a file that is asked for, and the end."""
    match byte_range:
        case RangeByteRequest(start, end):
            return start, min(end, n_bytes)
        case OffsetByteRequest(offset):
            return offset, n_bytes
        case SuffixByteRequest(suffix):
            return max(0, n_bytes - suffix), n_bytes
        case _:
            return 0, n_bytes
