"""A bucket as the Zarr store of a feature store: what it answers is held against what was asked, and never without end.

Obstore asks again where a server fails or says nothing. It takes whatever comes, so that the length of an answer is
watched here while it comes: a server that ignores a range, or goes on for ever, is cut off.
"""

import asyncio
from collections.abc import AsyncGenerator, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from featstore.errors import BrokenOffError, FormatError, StoreError
from featstore.files import DOCUMENT_BYTES
from featstore.store.format.shard import ShardError, ShardFile
from featstore.store.places.bucket import open_bucket
from featstore.store.places.network import LONG_PATIENCE_S, reaching
from featstore.store.places.ranges import Ranges
from featstore.support import size

if TYPE_CHECKING:
    from obstore import ObjectMeta

MAX_KEYS = 1 << 22
"""Files that a bucket may list: those of a hundred million photos."""
_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_RETRY = "run this again; if it stays so, something between you and the bucket is broken"


class BucketStore(ObjectStore[Any]):
    """A folder of a bucket, for zarr.

    Args:
        url: `s3://`, `gs://` or `az://`.

    Raises:
        StoreError: as `open_bucket`; each question, if the bucket cannot be reached or answers something else.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        super().__init__(open_bucket(url), read_only=read_only)
        self.url = url

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.url, read_only=read_only)

    @property
    def ranges(self) -> Ranges:
        return _BucketRanges(self)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As zarr has it.

        Raises:
            FormatError: it has more than `DOCUMENT_BYTES`.
        """
        match byte_range:
            case RangeByteRequest(start, end):
                found = await self.fetch(key, (start, end), limit=end - start)
            case OffsetByteRequest(offset):
                found = await self.fetch(key, {"offset": offset}, limit=DOCUMENT_BYTES)
            case SuffixByteRequest(suffix):
                found = await self.fetch(key, {"suffix": suffix}, limit=suffix)
            case _:
                found = await self.fetch(key, None, limit=DOCUMENT_BYTES)
        return None if found is None else prototype.buffer.from_bytes(found[0])

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        with reaching(self.url):
            return await super().exists(key)

    async def getsize(self, key: str) -> int:
        with reaching(self.url):
            return int(await super().getsize(key))

    async def _list(self, prefix: str | None = None) -> "AsyncGenerator[ObjectMeta, None]":
        n_keys = 0
        with reaching(self.url):
            async for found in super()._list(prefix):
                n_keys += 1
                if n_keys > MAX_KEYS:
                    raise StoreError(f"{self.url} lists more than {MAX_KEYS} files; no store has as many")
                yield found

    async def fetch(
        self, key: str, part: tuple[int, int] | dict[str, int] | None, *, limit: int
    ) -> tuple[bytes, int] | None:
        """Bytes of a file and the size of all of it; None if it is not there.

        Args:
            part: start and stop, or what obstore has for an offset or the last bytes.
            limit: how many bytes may come.

        Raises:
            FormatError: it has more.
            BrokenOffError: other bytes came than were asked for, or too few, or not in time.
            StoreError: it cannot be reached.
        """
        name = f"{self.url}/{key}"
        try:
            return await asyncio.wait_for(self._fetch(name, key, part, limit), LONG_PATIENCE_S)
        except TimeoutError as error:
            raise BrokenOffError(f"{name} cannot be read: no whole answer came within {LONG_PATIENCE_S:g} s") from error

    async def _fetch(
        self, name: str, key: str, part: tuple[int, int] | dict[str, int] | None, limit: int
    ) -> tuple[bytes, int] | None:
        from obstore import get_async, head_async
        from obstore.exceptions import GenericError, NotSupportedError

        with reaching(self.url):
            try:
                options: Any = None if part is None else {"range": part}
                answer = await get_async(self.store, key, options=options)
            except _NOT_THERE:
                return None
            except NotSupportedError:
                if not isinstance(part, dict) or "suffix" not in part:
                    raise
                n_bytes = (await head_async(self.store, key))["size"]  # of Azure, which gives no last bytes
                return await self._fetch(name, key, (max(0, n_bytes - part["suffix"]), n_bytes), limit)
            except GenericError:
                # A file without a byte has no range; some servers refuse it, others send the whole file.
                if part is None or (await head_async(self.store, key))["size"]:
                    raise
                return b"", 0
            (start, stop), n_bytes = answer.range, answer.meta["size"]
            if isinstance(part, tuple) and (start, stop) != part:
                raise BrokenOffError(
                    f"{name}: the bytes {start} to {stop} came where {part[0]} to {part[1]} were asked"
                )
            if stop - start > limit:
                raise FormatError(f"{name} has {size(stop - start)}, and at most {size(limit)} are read at once")
            parts, left = [], stop - start
            async for each in answer.stream():
                left -= len(each)
                if left < 0:
                    break
                parts.append(each)
        if left:
            what = "more" if left < 0 else "fewer"
            raise BrokenOffError(f"{name}: {what} bytes came than the {stop - start} that were announced; {_RETRY}")
        return b"".join(parts), n_bytes


class _BucketRanges:
    """Byte ranges of the files of a bucket."""

    near = False

    def __init__(self, store: BucketStore) -> None:
        self._store = store

    def stamp(self, key: str) -> Hashable:
        return None

    @contextmanager
    def open(self, key: str, limit: int) -> Iterator[ShardFile]:
        yield _Object(self._store, key)


class _Object:
    """A file of a bucket."""

    def __init__(self, store: BucketStore, key: str) -> None:
        self._store, self._key, self.name = store, key, f"{store.url}/{key}"
        self._n_bytes: int | None = None

    def size(self) -> int:
        if self._n_bytes is None:
            try:
                self._n_bytes = sync(self._store.getsize(self._key))
            except FileNotFoundError as error:
                raise ShardError(f"{self.name} is missing") from error
        return self._n_bytes

    def tail(self, n_bytes: int) -> bytes:
        data, self._n_bytes = self._fetch({"suffix": n_bytes}, n_bytes)
        return data

    def read(self, start: int, stop: int) -> bytes:
        return self._fetch((start, stop), stop - start)[0]

    def _fetch(self, part: tuple[int, int] | dict[str, int], limit: int) -> tuple[bytes, int]:
        found = sync(self._store.fetch(self._key, part, limit=limit))
        if found is None:
            raise ShardError(f"{self.name} is missing")
        return found
