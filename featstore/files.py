"""Files that strangers may have made: opened only if they are files, read up to a limit, replaced in one step.

Whatever reads a document of a store, a run, a cache or a configuration goes through here, so that a named pipe does
not hang us, a device does not fill the memory, and a link does not lead what we write elsewhere.
"""

import errno
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from featstore.support import size

__all__ = [
    "DOCUMENT_BYTES",
    "PART",
    "fresh_path",
    "open_file",
    "parse_json",
    "read_file",
    "refuse_what_is_no_file",
    "replacing",
]

DOCUMENT_BYTES = 1 << 28
"""The most that is read of a document, 256 MiB: a root that lists ten million images has half of it."""
DEEPEST = 64
"""How deep a document may be nested. Ours are less than ten levels deep."""
PART = ".part"
"""How the name of a file ends that is being written; it begins with a dot."""
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_file(path: Path | str) -> io.BufferedReader:
    """Open a file for reading, if it is one; links are followed.

    Raises:
        OSError: it is a named pipe, a device or a socket (`strerror` says so), or it cannot be opened.
    """
    _check_regular(os.stat(path).st_mode, path)  # noqa: PTH116 (opening a device may already do something)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # of a pipe that came in between
    except BlockingIOError:
        # Another process, as a file server, has a lease on the file, and gives it back soon.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: Path | str, limit: int = DOCUMENT_BYTES) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it has more than `limit` bytes, or as `open_file`.
    """
    with open_file(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        data = b"" if n_bytes > limit else file.read((n_bytes or limit) + 1)  # Python asks for so much memory at once
    if max(n_bytes, len(data)) > limit:
        raise OSError(
            errno.EFBIG, f"it has {size(max(n_bytes, len(data)))}, and at most {size(limit)} are read", str(path)
        )
    return data


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON in UTF-8, or is nested more than `DEEPEST` levels deep.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    level: list[Any] = [value]
    for _ in range(DEEPEST + 1):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
            if isinstance(child, (dict, list))
        ]
        if not level:
            return value
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def refuse_what_is_no_file(path: Path | str) -> None:
    """Refuse a name under which there is anything but a file, a link too; that nothing is there is right.

    For a file that is opened for writing where it lies, as that of a lock.

    Raises:
        OSError: it is something else.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "it is a link, and nothing is written through one; remove it", str(path))
    _check_regular(mode, path)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` when the block ends without an error; otherwise what was there stays.

    Its bytes are on the disk before its name is. It has a name that nobody can foresee until then, and is made new, so
    that no link which lies there already is written through. A killed process may leave it behind: `.*.part`.

    Raises:
        OSError: the disk refuses.
    """
    part, file = _new_part(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def fresh_path(path: Path) -> Iterator[Path]:
    """As `replacing`, for a library that takes the name of a file and not an open one.

    Raises:
        OSError: the disk refuses.
    """
    part, file = _new_part(path)
    file.close()
    try:
        yield part
        descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    part = path.with_name(f".{secrets.token_hex(8)}{PART}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return part, cast(BinaryIO, os.fdopen(os.open(part, flags, 0o666), "wb"))


def _check_regular(mode: int, path: Path | str) -> None:
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a file", str(path))
