"""A local folder as a Zarr store in which every file appears whole or not at all.

zarr's own LocalStore writes to a temporary file and renames it, but neither syncs the bytes to the disk
nor cleans up after a process that was killed. Here each file has one temporary name, so that the next
writer overwrites what a dead one left behind.

Linux and macOS only: `os.writev` and the syncing of a folder do not exist on Windows.
"""

import asyncio
import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from featstore.errors import StoreWriteError

PARTS_AT_ONCE = 1024  # what one system call takes; few calls, for each has to wait for Python's lock
Data = bytes | bytearray | memoryview

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission was denied",
    errno.EPERM: "permission was denied",
    errno.EFBIG: "a file would grow over the size limit of this process",
}


class DurableStore(LocalStore):
    """zarr's LocalStore, with every write synced to the disk before its name appears."""

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        if byte_range is not None:
            raise NotImplementedError("a shard is written whole or not at all")
        if not self._is_open:
            await self._open()
        self._check_writable()
        await asyncio.to_thread(write_durably, Path(self.root) / key, value.as_buffer_like())


def write_durably(path: Path, data: Data | Sequence[Data]) -> None:
    """Write a file, or the parts of one, so that after any crash it is there whole or not at all.

    Raises:
        StoreWriteError: the disk is full, read-only or forbidden; nothing stored before is touched.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        _make_folders(path.parent)
        with part.open("wb", buffering=0) as file:
            _write_all(file.fileno(), [data] if isinstance(data, Data) else data)
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)  # on a full disk it holds the last free space
        raise cannot_write(path, error) from error


def cannot_write(path: Path | str, error: OSError) -> StoreWriteError:
    """The error that a refused write becomes."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return StoreWriteError(
        f"cannot write {path}: {reason}; what was stored before is untouched, and the same command goes on from there"
    )


def _write_all(descriptor: int, parts: Sequence[Data]) -> None:
    for first in range(0, len(parts), PARTS_AT_ONCE):
        some = parts[first : first + PARTS_AT_ONCE]
        n_written = os.writev(descriptor, some)
        if n_written < sum(map(len, some)):  # the disk is nearly full, or it is more than a call takes
            rest = memoryview(b"".join(some))[n_written:]
            while rest:
                rest = rest[os.write(descriptor, rest) :]


def _make_folders(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """See to it that the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
