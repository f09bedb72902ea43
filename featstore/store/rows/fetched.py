"""Shards of a shared repository: fetched whole, a row block in one request, and kept on this machine.

A kept block is named by its repository and by what it has to hold (identities, states and checksums of its rows), so it
serves every version of a repository in which it is the same, and never another repository: checksums tell damage, and
do not stop somebody who makes other values with the same sum.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from featstore.errors import ConfigError, StoreWriteError
from featstore.store.rows.shards import OpenShard, ShardError

KEPT_IN_MEMORY = 4
LIMIT_GB = 20.0


class FetchedShards:
    """Shards that are read straight into memory; the last few are kept there."""

    def __init__(self, store: ZarrStore, key_of: Callable[[int], str], *, row_bytes: int, block_rows: int) -> None:
        self._store, self._key_of, self._row_bytes, self._block_rows = store, key_of, row_bytes, block_rows
        self._kept: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = Lock()

    def open(self, block: int) -> OpenShard:
        """As `Shards.open`."""
        with self._lock:
            if block in self._kept:
                self._kept.move_to_end(block)
                return self._kept[block]
        name, contents = self._key_of(block), self.fetch(block)
        shard = OpenShard(name, contents, block_rows=self._block_rows, row_bytes=self._row_bytes)
        with self._lock:
            self._kept[block] = shard
            while len(self._kept) > KEPT_IN_MEMORY:
                self._kept.popitem(last=False)
        return shard

    def fetch(self, block: int) -> NDArray[np.uint8]:
        """The bytes of a shard.

        Raises:
            ShardError: it is missing.
        """
        data = sync(self._store.get(self._key_of(block), default_buffer_prototype()))
        if data is None:
            raise ShardError(f"{self._key_of(block)} is missing")
        return np.asarray(data.as_numpy_array()).view(np.uint8)  # no copy


class BlockCache:
    """A folder of shards that were fetched, up to a number of bytes; those used longest ago go first."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self._limit_bytes = folder, limit_bytes
        self._checked: set[str] = set()

    @classmethod
    def usual(cls) -> "BlockCache | None":
        """The one that the environment names: FEATSTORE_BLOCKS, the folder; FEATSTORE_BLOCKS_GB, 0 for none at all.

        None as well where the folder cannot be written: what is fetched is then kept in memory while it is used.

        Raises:
            ConfigError: the number is none.
        """
        text = os.environ.get("FEATSTORE_BLOCKS_GB", str(LIMIT_GB))
        try:
            limit_bytes = int(float(text) * 1e9)
        except (ValueError, OverflowError):
            raise ConfigError(f"FEATSTORE_BLOCKS_GB is {text!r}; expected a number of gigabytes") from None
        folder = Path(os.environ.get("FEATSTORE_BLOCKS", Path("cache") / "blocks"))
        return cls(folder.absolute(), limit_bytes) if limit_bytes > 0 and _can_be_written(folder.absolute()) else None

    def file(
        self, facts: bytes, make: Callable[[], NDArray[np.uint8]], check: Callable[[NDArray[np.uint8]], object]
    ) -> Path:
        """The file of a block, fetched if it is not there, or is not what it was when it was kept.

        Args:
            make: fetches it.
            check: raises ShardError if the contents of a file are not those of the block.

        Raises:
            StoreWriteError: the disk refuses.
        """
        file = self.folder / hashlib.sha256(facts).hexdigest()
        if not self._is_kept(file, check):
            data = make()
            self._make_room(len(data))
            self._keep(file, data)
        self._checked.add(file.name)
        return file

    def _is_kept(self, file: Path, check: Callable[[NDArray[np.uint8]], object]) -> bool:
        try:
            os.utime(file)
            if file.name not in self._checked:
                check(np.fromfile(file, np.uint8))
        except (OSError, ShardError, ValueError):
            return False
        return True

    def _keep(self, file: Path, data: NDArray[np.uint8]) -> None:
        """Under its name at once and whole, whoever else is fetching the same block."""
        part = file.with_name(f".{file.name}.{os.getpid()}.{uuid4().hex}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(data.data)
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise StoreWriteError(
                f"cannot keep what was fetched in {self.folder}: {error.strerror or error}; name another folder with "
                "FEATSTORE_BLOCKS, or set FEATSTORE_BLOCKS_GB=0 to keep nothing"
            ) from error

    def _make_room(self, n_bytes: int) -> None:
        files = []
        for file in self.folder.glob("[!.]*") if self.folder.is_dir() else ():
            with suppress(OSError):  # another process makes room too
                stat = file.stat()
                files.append((stat.st_mtime, stat.st_size, file))
        total = n_bytes + sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= self._limit_bytes:
                return
            with suppress(OSError):
                file.unlink()
            total -= size


def _can_be_written(folder: Path) -> bool:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
