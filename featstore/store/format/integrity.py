"""Integrity: a Zarr store whose documents and small arrays cannot change unnoticed.

The shards of a tensor are guarded row by row (`checksums/`). Everything else is guarded here, wherever the store is:

- every `zarr.json` carries a **seal**, the SHA-256 of its own content and place, as an attribute;
- the root's attributes list the SHA-256 of every other document and of every chunk of the small arrays (the images
  table, the commit records). Before one is replaced the list names both its old and its new digest, so that there is
  no moment at which what is on the disk is not what the list says. What it does not name is not part of the store.

So a flipped bit, a truncated, deleted, swapped or stale file is an error at the moment it is read.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore, WrapperStore

from featstore.errors import MEND, DamagedError, FormatError
from featstore.files import parse_json
from featstore.store.format.attributes import RootAttributes, checked
from featstore.store.format.metadata import check_chunk, check_document, limit_of
from featstore.support import size

T = TypeVar("T")
FORMAT = 2
DOCUMENT = "zarr.json"
SMALL_ARRAYS = ("images", "checksums", "rows")
MISSING = ""
TRIES = 5  # a writer may replace a chunk while we read; each try reads the list of digests anew


class SealedStore(WrapperStore[ZarrStore]):
    """Any Zarr store, with every document and every chunk of the small arrays checked as it is read.

    Args:
        name: what messages call the store.
    """

    def __init__(self, store: ZarrStore, name: str) -> None:
        super().__init__(store)
        self.name = name
        self._root: dict[str, Any] | None = None
        self._pending: dict[str, Buffer] | None = None
        self._interrupted = False
        self._turn = asyncio.Lock()

    def _with_store(self, store: ZarrStore) -> "SealedStore":
        return type(self)(store, self.name)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if self._pending and key in self._pending:
            return self._pending[key]
        if key == DOCUMENT:
            data = await self._read(key, prototype)
            if data is not None:
                self._parse(key, data)
            return data
        if not is_listed(key):
            return await self._store.get(key, prototype, byte_range)
        data = await self._get_checked(key, prototype)
        if data is not None and key.endswith(DOCUMENT):
            self._parse(key, data)
        return data

    async def set(self, key: str, value: Buffer) -> None:
        if key.endswith(DOCUMENT):
            value = prototype_buffer(write_document(key, parse_json(value.to_bytes())))
        if key == DOCUMENT:
            await self._store.set(key, value)
            self._root = None
        elif not is_listed(key):
            await self._store.set(key, value)
        elif self._pending is not None:
            self._pending.pop(key, None)  # the last one written comes last
            self._pending[key] = value
        else:
            await self._alone(self._announce_and_write({key: value}))  # zarr writes several documents at a time

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if await self.get(key, default_buffer_prototype()) is None:  # there is one writer
            await self.set(key, value)

    @property
    def holds_back(self) -> bool:
        """Whether a transaction is under way."""
        return self._pending is not None

    @contextmanager
    def transaction(self, *, before_rows: Callable[[], object] | None = None) -> Iterator[None]:
        """Hold back records and documents, and write them together at the end, in the order of writing.

        Args:
            before_rows: what has to be on the disk before a commit record is; called at that moment.

        Raises:
            RuntimeError: one is under way.
        """
        if self.holds_back:
            raise RuntimeError("a transaction is under way")
        if self._interrupted:
            self.settle()
        self._pending, self._interrupted = {}, True
        try:
            yield
            pending, self._pending = self._pending, None
            sync(self._alone(self._announce(pending)))
            rows = {key: value for key, value in pending.items() if is_chunk(key) and key.startswith("rows/")}
            sync(self._alone(self._write({key: value for key, value in pending.items() if key not in rows})))
            if before_rows is not None:
                before_rows()
            sync(self._alone(self._write(rows)))
            self._interrupted = False
        finally:
            self._pending = None

    def sums(self) -> dict[str, list[str]]:
        """By document and chunk, the digests that it may have: one, or two while it is being replaced."""
        root = self._root or sync(self._read_root())
        return dict(root["attributes"].get("sums", {}))

    def settle(self) -> None:
        """Leave one digest for each file on the list, that of what is there; called when nothing is being written."""
        sync(self._alone(self._read_root()))
        sums = self.sums()
        self._interrupted = False
        unsettled = {key: known for key, known in sums.items() if len(known) != 1}
        for key, known in unsettled.items():
            data = sync(self._read(key, default_buffer_prototype()))
            if (found := _digest(data)) in known:
                sums[key] = [found]
        if unsettled:
            gone = {key for key in unsettled if sums[key] == [MISSING]}  # it was announced and never written
            sync(self._alone(self._write_sums({key: known for key, known in sums.items() if key not in gone})))

    def forget(self, arrays: Sequence[str]) -> None:
        """Take arrays off the list, all at once; what is not on it is not part of the store."""
        sums = self.sums()
        prefixes = tuple(f"{array}/" for array in arrays)
        kept = {key: known for key, known in sums.items() if not key.startswith(prefixes)}
        if kept != sums:
            sync(self._alone(self._write_sums(kept)))
        for key in [key for key in self._pending or () if key.startswith(prefixes)]:
            del self._pending[key]  # type: ignore[union-attr]

    def lists(self, arrays: Sequence[str]) -> bool:
        """Whether a file of any of these arrays is on the list."""
        return any(key.startswith(tuple(f"{array}/" for array in arrays)) for key in self.sums())

    async def _get_checked(self, key: str, prototype: BufferPrototype) -> Buffer | None:
        root = self._root or await self._read_root()
        for _ in range(TRIES):
            known = root["attributes"].get("sums", {}).get(key, [])
            data = await self._read(key, prototype)
            if _digest(data) in (known or [MISSING]):
                if data is not None and is_chunk(key):
                    self._check_chunk(key, data)
                return data
            root = await self._read_root()
        if not known:
            return None  # what the list does not name is what a killed writer left behind
        what = "is missing" if data is None else "is damaged, or is not the one that was written last"
        raise DamagedError(f"{self.name}: {key} {what}; {MEND}")

    async def _announce(self, values: dict[str, Buffer]) -> None:
        """Name the digests of what will be written, beside those of what is there; what is the same is left out."""
        sums = dict((self._root or await self._read_root())["attributes"].get("sums", {}))
        changed = {key: new for key, value in values.items() if sums.get(key) != [new := _digest(value)]}
        for key in set(values) - set(changed):
            del values[key]
        if changed:
            news = {key: list(dict.fromkeys([*sums.get(key, [MISSING])[-1:], new])) for key, new in changed.items()}
            await self._write_sums({**sums, **news})

    async def _alone(self, work: Awaitable[T]) -> T:
        """One thing at a time: what was begun before Ctrl-C still ends, and nothing is written beside it."""
        async with self._turn:
            return await work

    async def _announce_and_write(self, values: dict[str, Buffer]) -> None:
        await self._announce(values)
        await self._write(values)

    async def _write(self, values: dict[str, Buffer]) -> None:
        if all(map(is_chunk, values)):  # several files at once: the disk syncs them together
            writing = [self._store.set(key, value) for key, value in values.items()]
            for error in await asyncio.gather(*writing, return_exceptions=True):
                if error is not None:  # and all others have ended
                    raise error
            return
        for key, value in values.items():
            await self._store.set(key, value)

    async def _write_sums(self, sums: dict[str, list[str]]) -> None:
        root = await self._read_root()
        root["attributes"]["sums"] = dict(sorted(sums.items()))
        await self._store.set(DOCUMENT, prototype_buffer(write_document(DOCUMENT, root)))
        self._root = root

    async def _read_root(self) -> dict[str, Any]:
        data = await self._read(DOCUMENT, default_buffer_prototype())
        if data is None:
            raise DamagedError(f"{self.name}: its {DOCUMENT} is missing")
        self._root = self._parse(DOCUMENT, data)
        return self._root

    async def _read(self, key: str, prototype: BufferPrototype) -> Buffer | None:
        if (n_bytes := await excess(self._store, key)) is not None:
            raise DamagedError(
                f"{self.name}: {key} has {size(n_bytes)}, and at most {size(limit_of(key))} are read; {MEND}"
            )
        return await self._store.get(key, prototype)

    def _check_chunk(self, key: str, data: Buffer) -> None:
        try:
            check_chunk(key, data.to_bytes())
        except ValueError as error:
            raise DamagedError(f"{self.name}: {key} is no chunk of a feature store ({error}); {MEND}") from error

    def _parse(self, key: str, data: Buffer) -> dict[str, Any]:
        block_rows = None if key == DOCUMENT or self._root is None else self._root["attributes"]["featstore"]
        try:
            return read_document(key, data.to_bytes(), block_rows and block_rows["block_rows"])
        except FormatError as error:
            raise FormatError(f"{self.name}: {key}: {error}") from error
        except ValueError as error:
            raise DamagedError(
                f"{self.name}: {key} is damaged, or was changed by something other than featstore ({error}); "
                "`featstore repair` writes it anew"
            ) from error


async def excess(store: ZarrStore, key: str) -> int | None:
    """The size of a document or of a chunk of a small array, if it is larger than one can be.

    In a bucket it is not asked for: that would be one more request for each.
    """
    if isinstance(store, (ObjectStore, WrapperStore)):
        return None
    try:
        n_bytes = await store.getsize(key)
    except (OSError, KeyError):
        return None  # reading it says what is wrong
    return n_bytes if n_bytes > limit_of(key) else None


def is_chunk(key: str) -> bool:
    """Whether a key is a chunk of the images table or of a record."""
    return key.partition("/")[0] in SMALL_ARRAYS and not key.endswith(DOCUMENT)


def is_listed(key: str) -> bool:
    """Whether a key has its digest on the root's list: chunks of small arrays, and all documents but the root."""
    return is_chunk(key) or key.endswith(f"/{DOCUMENT}")


def committed_tensors(sums: Mapping[str, object]) -> set[str]:
    """The names of the tensors that something was ever committed to."""
    return {key.split("/")[1] for key in sums if key.startswith("rows/") and is_chunk(key)}


def digest_of(data: bytes | None) -> str:
    """What the list says of a chunk: the first 16 hexadecimal digits of its SHA-256; MISSING if there is none.

    No CRC-32C: chunks end with their own, and a CRC over data and its CRC is the same number for all data.
    """
    return MISSING if data is None else hashlib.sha256(data).hexdigest()[:16]


def write_document(key: str, document: dict[str, Any]) -> bytes:
    """The bytes of a `zarr.json`, with its seal."""
    attributes = {name: value for name, value in document.get("attributes", {}).items() if name != "seal"}
    document = {**document, "attributes": attributes}
    attributes["seal"] = _seal(key, document)
    return json.dumps(document, indent=2, ensure_ascii=False).encode()


def read_document(key: str, data: bytes, block_rows: int | None = None) -> dict[str, Any]:
    """The content of a `zarr.json` whose seal is right and that may be in this place.

    Args:
        block_rows: of the store, if it is known.

    Raises:
        ValueError: it is no JSON, not what was sealed in this place, or not what a store has here. The root of another
            format version is let through, for `open_store` to say so.
        FormatError: its attributes do not fit.
    """
    document = parse_json(data)
    if not isinstance(document, dict) or not isinstance(document.get("attributes", {}), dict):
        raise ValueError("it is no Zarr document")
    attributes = document.setdefault("attributes", {})
    if key == DOCUMENT:
        about = attributes.get("featstore")
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            return document
    if attributes.get("seal") != _seal(key, document):
        raise ValueError("its content is not what was sealed")
    check_document(key, document, block_rows)
    if key == DOCUMENT:
        checked(RootAttributes, attributes, "its attributes are not those of a store")
    return document


def prototype_buffer(data: bytes) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(data)


def _digest(data: Buffer | None) -> str:
    return digest_of(None if data is None else data.to_bytes())


def _seal(key: str, document: dict[str, Any]) -> str:
    attributes = {name: value for name, value in document["attributes"].items() if name != "seal"}
    content = json.dumps({**document, "attributes": attributes}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{key}\n{content}".encode()).hexdigest()[:16]
