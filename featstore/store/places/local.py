"""A local folder as a Zarr store in which every file appears whole or not at all.

zarr's own LocalStore writes to a temporary file and renames it, but does not sync the bytes to the disk. It also trusts
the folder. Ours may come from a stranger: what is no file (a named pipe, a device) is not there, and nothing is written
or deleted through a link. A folder that is exchanged for a link while we work is noticed too, because each step goes
from an open folder to the next. The folder of the store itself may be a link. So may a file that is only read, as
tools that version large files make them; if it is written, the link is replaced, and what it points to stays.

Linux and macOS only: `os.writev` and the syncing of a folder do not exist on Windows.
"""

import asyncio
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from featstore.errors import StoreWriteError
from featstore.files import DOCUMENT_BYTES, PART, open_file
from featstore.store.format.integrity import DOCUMENT, is_listed
from featstore.store.places.ranges import span
from featstore.support import size

PARTS_AT_ONCE = 1024  # what one system call takes; few calls, for each has to wait for Python's lock
Data = bytes | bytearray | memoryview
_LEFT = re.compile(r"\.[0-9a-f]{16}" + re.escape(PART))
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission was denied",
    errno.EPERM: "permission was denied",
    errno.EFBIG: "a file would grow over the size limit of this process",
}


class FolderStore(LocalStore):
    """zarr's LocalStore, which reads nothing but files, and of documents no more than any has."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if not self._is_open:
            await self._open()
        return await asyncio.to_thread(self._read, key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self._ensure_open_sync()
        return self._read(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    def _read(self, key: str, prototype: BufferPrototype | None, byte_range: ByteRequest | None) -> Buffer | None:
        try:
            file = open_file(self.root / key)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:  # it is no file
                return None
            raise
        with file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes > DOCUMENT_BYTES and (key == DOCUMENT or is_listed(key)):
                text = f"it has {size(n_bytes)}, and at most {size(DOCUMENT_BYTES)} are read"
                raise OSError(errno.EFBIG, text, str(self.root / key))
            first, end = span(byte_range, n_bytes)
            file.seek(first)
            return (prototype or default_buffer_prototype()).buffer.from_bytes(file.read(max(0, end - first)))


class DurableStore(FolderStore):
    """The same, with every write synced to the disk before its name appears, and none that goes through a link."""

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        if byte_range is not None:
            raise NotImplementedError("a shard is written whole or not at all")
        if not self._is_open:
            await self._open()
        self._check_writable()
        await asyncio.to_thread(write_durably, self.root, key, value.as_buffer_like())

    async def delete(self, key: str) -> None:
        self._check_writable()
        await asyncio.to_thread(_delete, self.root, key)

    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()
        await asyncio.to_thread(_delete, self.root, prefix)


def write_durably(root: Path, key: str, data: Data | Sequence[Data]) -> None:
    """Write a file below a folder, or the parts of one, so that after any crash it is there whole or not at all.

    Raises:
        StoreWriteError: the disk is full, read-only or forbidden, or a folder on the way is a link; nothing stored
            before is touched.
    """
    part = f".{secrets.token_hex(8)}{PART}"
    try:
        _make_folders(root)
        with inside(root, key, make=True) as (folder, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(part, flags, 0o666, dir_fd=folder)
            try:
                try:
                    _write_all(descriptor, [data] if isinstance(data, Data) else data)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(part, dir_fd=folder)  # on a full disk it holds the last free space
                raise
            os.fsync(folder)
    except OSError as error:
        raise cannot_write(root / key, error) from error


@contextmanager
def inside(root: Path, key: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """The folder that a key lies in, opened, and its name there.

    Args:
        make: makes the folders that are not there.

    Raises:
        OSError: a folder between the two is not there, or is a link.
    """
    *folders, name = Path(key).parts
    now = os.open(root, _FOLDER)
    try:
        for place, folder in enumerate(folders, 1):
            try:
                below = _open_folder(folder, now, make=make)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    text = f"{'/'.join(folders[:place])} is a link or a file, and not a folder of the store"
                    raise OSError(errno.ENOTDIR, text, str(root / key)) from error
                raise
            os.close(now)
            now = below
        yield now, name
    finally:
        os.close(now)


def remove_parts(root: Path) -> None:
    """Delete what a killed writer was about to rename; nobody else may be writing."""
    for _, _, names, folder in os.fwalk(root) if root.is_dir() else ():
        for name in filter(_LEFT.fullmatch, names):
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)


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


def _open_folder(name: str, within: int, *, make: bool) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=within)
    except FileNotFoundError:
        if not make:
            raise
    with suppress(FileExistsError):  # another file of it is being written, too
        os.mkdir(name, dir_fd=within)
        os.fsync(within)
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=within)


def _delete(root: Path, key: str) -> None:
    """Delete a file, or a folder and all that is in it; of a link the link. What is not there is no error.

    Raises:
        StoreWriteError: the disk refuses, or a folder on the way is a link.
    """
    try:
        with inside(root, key) as (folder, name):
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_write(root / key, error) from error


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
