"""A zip file as the Zarr store of a feature store: read only, by byte ranges, and never more than its directory says.

Members are stored or deflated; others are refused. A stored one is read where it lies in the zip file, a deflated one
is unpacked whole. A document or small array that is damaged reads as empty: whoever reads it checks it, and says what
is damaged.
"""

import os
import struct
import weakref
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype

from featstore.errors import FormatError, StoreError
from featstore.files import DOCUMENT_BYTES, open_file
from featstore.store.format.shard import ShardError, ShardFile, check_size
from featstore.store.places.ranges import InMemory, Part, Ranges, span
from featstore.support import size

DIRECTORY_BYTES = 1 << 25
"""The most that the directory of a zip file takes: three hundred thousand files, shards of twenty million photos."""
UNPACKED_BYTES = 1 << 28
"""So much of what was unpacked is kept in memory, and always the last shard; what is larger is unpacked one by one."""
PIECE_BYTES = 1 << 20
TURNS = 16
"""Members that are unpacked at a time."""
HEADER = struct.Struct("<4s22xHH")  # of a member: its signature, and the lengths of its name and extra field
LOCAL_HEADER = b"PK\3\4"
ENCRYPTED = 1
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
_ANEW = "it is damaged, or was made to mislead: ask for it anew, or unpack it if you trust it, and open the folder"
_BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, IndexError, KeyError, OverflowError, struct.error)


@dataclass(frozen=True)
class Member:
    """What the directory of a zip file says of one of its files."""

    header: int
    """Where its header begins."""
    end: int
    """Where at most its bytes end: where the next one begins."""
    n_packed: int
    n_bytes: int
    deflated: bool


class ZipArchive:
    """The members of a zip file, by their names; any number of threads and forked processes may read them.

    Raises:
        FormatError: its directory is damaged, too large or contradicts itself; or members are encrypted, or compressed
            in a way that is not read.
        StoreError: it cannot be read.
    """

    near = True

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = open_file(path)
            weakref.finalize(self, self._file.close)
            self._n_bytes = os.fstat(self._file.fileno()).st_size
            self.members = self._directory()
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
        self._unpacked: OrderedDict[str, bytearray] = OrderedDict()
        self._locks()

    def _locks(self) -> None:
        self._turn, self._giant, self._turns = Lock(), Lock(), [Lock() for _ in range(TURNS)]
        self._process = os.getpid()

    def stamp(self, key: str) -> Hashable:
        return None  # the file stays open: it is the same one even if its name is given to another

    @contextmanager
    def open(self, key: str, limit: int) -> Iterator[ShardFile]:
        name = f"{self._path}: {key}"
        member = self.members.get(key)
        if member is None:
            raise ShardError(f"{name} is missing")
        check_size(name, member.n_bytes, limit)
        if not member.deflated:
            yield self._part(name, member)
            return
        if self._process != os.getpid():
            self._locks()  # after a fork the thread that has a lock may not be here
        with self._giant if member.n_bytes > UNPACKED_BYTES else nullcontext():
            yield InMemory(name, self._kept(key, name, member))

    def read(self, key: str) -> bytes | None:
        """The bytes of a member, none if it is damaged; None if it is not there.

        Raises:
            FormatError: it has more than `DOCUMENT_BYTES`.
        """
        name, member = f"{self._path}: {key}", self.members.get(key)
        if member is None:
            return None
        if member.n_bytes > DOCUMENT_BYTES:
            raise FormatError(f"{name} has {size(member.n_bytes)}, and at most {size(DOCUMENT_BYTES)} are read at once")
        try:
            part = self._part(name, member)
            return bytes(_inflate(part, member.n_bytes)) if member.deflated else part.read(0, part.size())
        except ShardError:
            return b""

    def _part(self, name: str, member: Member) -> Part:
        """The bytes of a member as they lie in the file.

        Raises:
            ShardError: they are not where the directory says.
        """
        signature, n_name, n_extra = HEADER.unpack(
            Part(name, self._file.fileno(), 0, self._n_bytes).read(member.header, member.header + HEADER.size)
        )
        start = member.header + HEADER.size + n_name + n_extra
        if signature != LOCAL_HEADER or start + member.n_packed > member.end:
            raise ShardError(f"{name} is not where the directory of the zip file says")
        return Part(name, self._file.fileno(), start, member.n_packed)

    def _kept(self, key: str, name: str, member: Member) -> bytearray:
        """A deflated member, unpacked once for all threads that want it."""
        with self._turns[hash(key) % TURNS]:
            with self._turn:
                data = self._unpacked.get(key)
                if data is not None:
                    self._unpacked.move_to_end(key)
                    return data
                while self._unpacked and sum(map(len, self._unpacked.values())) + member.n_bytes > UNPACKED_BYTES:
                    self._unpacked.popitem(last=False)
            data = _inflate(self._part(name, member), member.n_bytes)
            with self._turn:
                self._unpacked[key] = data
        return data

    def _directory(self) -> dict[str, Member]:
        try:
            with zipfile.ZipFile(_Sipped(self._file, self._n_bytes)) as opened:
                listed, start = opened.infolist(), opened.start_dir
        except _BROKEN as error:
            raise FormatError(f"{self._path} is a zip file whose directory cannot be read: {error}; {_ANEW}") from error
        found: dict[str, Member] = {}
        end = start
        for entry in sorted(listed, key=lambda entry: entry.header_offset, reverse=True):
            self._check(entry, end)
            member = Member(
                entry.header_offset,
                end,
                entry.compress_size,
                entry.file_size,
                entry.compress_type != zipfile.ZIP_STORED,
            )
            end = entry.header_offset
            if entry.filename in found:
                raise FormatError(
                    f"{self._path} lists {entry.filename[:80]!r} twice, and which one is meant is open; {_ANEW}"
                )
            if not entry.is_dir():
                found[entry.filename] = member
        return found

    def _check(self, entry: zipfile.ZipInfo, end: int) -> None:
        name = f"{self._path}: {entry.filename[:80]!r}"
        if entry.flag_bits & ENCRYPTED:
            raise FormatError(f"{name} is encrypted; unpack it with its password, and open the folder")
        if entry.compress_type not in _METHODS:
            method = zipfile.compressor_names.get(entry.compress_type, "unknown")  # type: ignore[attr-defined]
            raise FormatError(
                f"{name} is compressed by method {entry.compress_type} ({method}); stored and deflated ones are read: "
                "unpack it, and open the folder, or zip it anew"
            )
        if entry.header_offset + HEADER.size + entry.compress_size > end:
            raise FormatError(f"{name} overlaps with another file, or with the directory of the zip file; {_ANEW}")
        if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
            raise FormatError(
                f"{name} is stored in {entry.compress_size} bytes, and said to have {entry.file_size}; {_ANEW}"
            )


class ZippedStore(ZarrStore):
    """A zip file, for zarr; see `ZipArchive`."""

    def __init__(self, path: Path) -> None:
        super().__init__(read_only=True)
        self.path, self._archive = path, ZipArchive(path)

    @property
    def ranges(self) -> Ranges:
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens it anew."""
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZippedStore) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __str__(self) -> str:
        return f"zip://{self.path}"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """A document or a chunk of a small array; shards, which may be larger, are read by `ranges`.

        Raises:
            FormatError: it has more than `DOCUMENT_BYTES`.
        """
        data = self._archive.read(key)
        if data is None:
            return None
        return prototype.buffer.from_bytes(data[slice(*span(byte_range, len(data)))])

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self._archive.members

    async def getsize(self, key: str) -> int:
        if key not in self._archive.members:
            raise FileNotFoundError(key)
        return self._archive.members[key].n_bytes

    async def list(self) -> AsyncIterator[str]:
        for key in self._archive.members:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._archive.members:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = f"{prefix.strip('/')}/".lstrip("/")
        for name in {key[len(start) :].partition("/")[0] for key in self._archive.members if key.startswith(start)}:
            yield name

    async def getsize_prefix(self, prefix: str) -> int:
        return sum(member.n_bytes for key, member in self._archive.members.items() if key.startswith(prefix))

    supports_writes = supports_deletes = False
    supports_listing = True

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()

    async def delete(self, key: str) -> None:
        self._check_writable()


class _Sipped:
    """A file that is read in sips: whoever asks for more than a directory may have is refused."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self._file, self._n_bytes = file, n_bytes
        self.seek, self.tell = file.seek, file.tell

    def seekable(self) -> bool:
        return True

    def read(self, n_bytes: int = -1) -> bytes:
        there = max(0, self._n_bytes - self.tell())
        wanted = there if n_bytes < 0 else min(n_bytes, there)
        if wanted > DIRECTORY_BYTES:
            raise zipfile.BadZipFile(
                f"it says that it takes {size(wanted)}, and at most {size(DIRECTORY_BYTES)} are read"
            )
        return self._file.read(wanted)


def _inflate(part: Part, n_bytes: int) -> bytearray:
    """What a member unpacks to.

    Raises:
        ShardError: it is damaged, or does not unpack to `n_bytes`.
    """
    out, stream = bytearray(), zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for start in range(0, part.size(), PIECE_BYTES):
            piece = part.read(start, min(start + PIECE_BYTES, part.size()))
            out += stream.decompress(piece, n_bytes + 1 - len(out))
            if len(out) > n_bytes:
                raise ShardError(f"{part.name} unpacks to more than the {n_bytes} bytes that it is said to have")
    except zlib.error as error:
        raise ShardError(f"{part.name} cannot be unpacked: {error}") from error
    if len(out) != n_bytes or not stream.eof:
        raise ShardError(f"{part.name} unpacks to {len(out)} bytes, and is said to have {n_bytes}")
    return out
