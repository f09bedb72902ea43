"""An Icechunk session as the Zarr store of a feature store: a transaction that others see whole or not at all.

Icechunk takes chunk keys with slashes only (its issue 2180), a feature store has dots; so keys and documents are
translated on their way, and what a store reads back is byte by byte what it wrote. A plain Zarr reader of the session
finds arrays with slashes, which are as valid.

Icechunk is imported when it is needed. Credentials and endpoint come from the environment, and are not kept.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from featstore.errors import LostError, StoreError
from featstore.files import parse_json
from featstore.store.format.integrity import DOCUMENT, is_chunk, prototype_buffer
from featstore.store.places.bucket import azure_account, check_url, s3_settings, split_url
from featstore.store.places.network import ask

if TYPE_CHECKING:
    from icechunk import Session

T = TypeVar("T")
Again = Callable[[], Awaitable["Session"]]
_CHUNK = re.compile(r"(?P<array>.+)/c/(?P<place>\d+(/\d+)*)")


class SessionStore(WrapperStore[ZarrStore]):
    """The store of one session.

    The chunks of the small arrays are held back until `flush`: they change with every row block, and each change would
    be one more object in the bucket for ever.

    Args:
        name: what messages call the repository.
        again: begins the same session anew, where nothing is lost by it.
    """

    def __init__(
        self, store: ZarrStore, name: str, *, again: Again | None = None, held: dict[str, Buffer] | None = None
    ) -> None:
        super().__init__(store)
        self.name, self._again = name, again
        self._held: dict[str, Buffer] = {} if held is None else held

    @classmethod
    def of(cls, session: "Session", name: str, again: Again | None = None) -> "SessionStore":
        return cls(session.store, name, again=again)

    def _with_store(self, store: ZarrStore) -> "SessionStore":
        return type(self)(store, self.name, again=self._again, held=self._held)

    async def _ask(self, question: Callable[[ZarrStore], Awaitable[T]], *, long: bool = False) -> T:
        async def begin_anew() -> None:
            if self._again is not None:
                self._store = (await self._again()).store

        afresh = None if self._again is None else begin_anew
        return await ask(self.name, lambda: question(self._store), long=long, afresh=afresh)

    def flush(self) -> None:
        """Hand over what was held back, as before a commit."""

        async def write() -> None:
            await asyncio.gather(*(self._put(key, held[key]) for key in held))

        held = dict(self._held)
        sync(write())
        self._held.clear()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key in self._held and byte_range is None:
            return self._held[key]
        if not _is_key(key):
            return None
        path = to_slashes(key)
        try:
            data = await self._ask(lambda store: store.get(path, prototype, byte_range), long=_is_data(key))
        except LostError:
            if key.endswith(DOCUMENT):
                raise
            return None  # a chunk that is not there: who reads it knows what that means
        return data if data is None or not key.endswith(DOCUMENT) else _with_separator(data, "/", ".")

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    # By way of `get` and `set`; zarr's wrapper would hand them on as they are, with keys that Icechunk does not take.
    _get_many = ZarrStore._get_many
    _set_many = ZarrStore._set_many
    if hasattr(ZarrStore, "get_ranges"):  # zarr 3.2 and later
        get_ranges = ZarrStore.get_ranges

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    async def exists(self, key: str) -> bool:
        return key in self._held or (_is_key(key) and await self._exists(to_slashes(key)))

    async def set(self, key: str, value: Buffer) -> None:
        if is_chunk(key):
            self._held[key] = value
        elif not _is_key(key):
            raise StoreError(
                f"{self.name}: {key} is no part of a Zarr store; an Icechunk repository takes nothing else"
            )
        else:
            value = _with_separator(value, ".", "/") if key.endswith(DOCUMENT) else value
            await self._put(key, value)

    async def delete(self, key: str) -> None:
        self._held.pop(key, None)
        if _is_key(key):
            await self._ask(lambda store: store.delete(to_slashes(key)))

    async def delete_dir(self, prefix: str) -> None:
        for key in [key for key in self._held if key.startswith(f"{prefix.rstrip('/')}/")]:
            del self._held[key]
        if await self._is_node(prefix):
            await self._ask(lambda store: store.delete_dir(prefix))

    def list(self) -> AsyncIterator[str]:
        return self.list_prefix("")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        found = set(filter(lambda key: key.startswith(prefix), self._held))
        if await self._is_node(prefix):
            found |= set(map(to_dots, await self._ask(lambda store: _all(store.list_prefix(prefix)))))
        for key in sorted(found):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        if await self._is_node(prefix):
            for name in await self._ask(lambda store: _all(store.list_dir(prefix))):
                yield name

    async def getsize(self, key: str) -> int:
        if key in self._held:
            return len(self._held[key])
        return int(await self._ask(lambda store: store.getsize(to_slashes(key))))

    async def getsize_prefix(self, prefix: str) -> int:
        held = sum(len(data) for key, data in self._held.items() if key.startswith(prefix))
        if not await self._is_node(prefix):
            return held
        return held + int(await self._ask(lambda store: store.getsize_prefix(prefix)))

    async def _is_node(self, prefix: str) -> bool:
        """Whether a prefix is a group or an array: Icechunk lists nothing else."""
        path = f"{prefix.rstrip('/')}/{DOCUMENT}".lstrip("/")
        return await self._exists(path)

    async def _exists(self, path: str) -> bool:
        return bool(await self._ask(lambda store: store.exists(path)))

    async def _put(self, key: str, value: Buffer) -> None:
        await self._ask(lambda store: store.set(to_slashes(key), value), long=_is_data(key))


def import_icechunk() -> Any:
    """The package, quiet.

    Raises:
        StoreError: it is not installed.
    """
    try:
        import icechunk
    except ImportError as error:
        raise StoreError("a shared repository needs one more package: pip install 'featstore[sharing]'") from error
    # It warns of folders, which a lock takes care of, and draws boxes on the user's terminal.
    os.environ.setdefault("ICECHUNK_LOG", "error")
    icechunk.set_logs_filter(os.environ["ICECHUNK_LOG"])
    return icechunk


def retrying() -> Any:
    """How often Icechunk asks again where the answer is an error."""
    icechunk = import_icechunk()
    retries = icechunk.StorageRetriesSettings(max_tries=5, initial_backoff_ms=100, max_backoff_ms=3000)
    return icechunk.RepositoryConfig(storage=icechunk.StorageSettings(retries=retries))


def storage_of(name: str) -> Any:
    """How it reaches a folder or a URL.

    Raises:
        StoreError: the URL is of an unknown kind or has a password in it, or the environment lacks the account.
    """
    icechunk = import_icechunk()
    if "://" not in name:
        return icechunk.local_filesystem_storage(str(Path(name).absolute()))
    check_url(name)
    scheme, bucket, prefix = split_url(name)
    if scheme == "s3":
        settings = s3_settings()
        return icechunk.s3_storage(
            bucket=bucket,
            prefix=prefix,
            region=settings.get("region"),
            endpoint_url=settings.get("endpoint"),
            allow_http=os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes"),
            force_path_style="endpoint" in settings,
            from_env=True,
        )
    if scheme == "gs":
        return icechunk.gcs_storage(bucket=bucket, prefix=prefix, from_env=True)
    if scheme == "az":
        return icechunk.azure_storage(account=azure_account(name), container=bucket, prefix=prefix, from_env=True)
    raise StoreError(f"{name}: unknown kind of URL; say s3://, gs:// or az://, or name a folder")


async def _all(names: AsyncIterator[str]) -> list[str]:
    return [name async for name in names]


def to_slashes(key: str) -> str:
    """As Icechunk calls it: c.0.0 becomes c/0/0."""
    folder, _, last = key.rpartition("/")
    return f"{folder}/{last.replace('.', '/')}" if last.startswith("c.") else key


def to_dots(key: str) -> str:
    """As a feature store calls it."""
    found = _CHUNK.fullmatch(key)
    return f"{found['array']}/c.{found['place'].replace('/', '.')}" if found else key


def _is_key(key: str) -> bool:
    """Whether Icechunk can have such a key: documents and chunks."""
    last = key.rpartition("/")[2]
    return last == DOCUMENT or bool(_CHUNK.fullmatch(to_slashes(key)))


def _is_data(key: str) -> bool:
    """Whether it is a shard of features, the only thing that is large."""
    return key.startswith("tensors/") and not key.endswith(DOCUMENT)


def _with_separator(data: Buffer, old: str, new: str) -> Buffer:
    """A document with another separator in its chunk keys, otherwise byte by byte the same."""
    try:
        document = parse_json(data.to_bytes())
        encoding = document["chunk_key_encoding"]["configuration"]
        if encoding["separator"] != old:
            return data
    except (ValueError, KeyError, TypeError):  # a group, or what the one who reads it will refuse
        return data
    encoding["separator"] = new
    return prototype_buffer(json.dumps(document, indent=2, ensure_ascii=False).encode())
