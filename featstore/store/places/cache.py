"""The cache of fetched shards on this machine.

A kept shard is named by its repository and by what it has to hold (identities, states and checksums of its rows), so it
serves every version of a repository in which it is the same, and never another repository: checksums tell damage, and
do not stop somebody who makes other values with the same sum.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.errors import StoreWriteError
from featstore.files import read_file, refuse_what_is_no_file, replacing
from featstore.store.format.shard import ShardError


class BlockCache:
    """A folder of shards that were fetched, up to a number of bytes; those used longest ago go first."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self._limit_bytes = folder, limit_bytes
        self._checked: set[str] = set()

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
            refuse_what_is_no_file(file)
            os.utime(file)
            if file.name not in self._checked:
                check(np.frombuffer(read_file(file, self._limit_bytes), np.uint8))
        except (OSError, ShardError, ValueError):
            return False
        return True

    def _keep(self, file: Path, data: NDArray[np.uint8]) -> None:
        """Under its name at once and whole, whoever else is fetching the same block."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part:
                part.write(data.data)
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
