"""Where a store is and how to reach it; `locate` finds it out from a user's words."""

from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from featstore.store.format.integrity import prototype_buffer
from featstore.store.places.cache import BlockCache
from featstore.store.places.ranges import FolderRanges, HasRanges, Ranges, StoreRanges


@dataclass(frozen=True)
class Location:
    """Where a store is and how to reach it."""

    name: str
    """What messages call it."""
    zarr_store: ZarrStore
    folder: Path | None = None
    """The local folder that it is, if it is one."""
    repository: str | None = None
    """The shared repository that it is in, if it is in one: read only, or a transaction that nobody else can see."""
    blocks: BlockCache | None = None
    """Where shards are kept that were read from far away."""

    @property
    def remote(self) -> bool:
        """Whether it is in a shared repository."""
        return self.repository is not None

    @property
    def ranges(self) -> Ranges:
        """Byte ranges of its files."""
        if self.folder is not None:
            return FolderRanges(self.folder)
        if isinstance(self.zarr_store, HasRanges):
            return self.zarr_store.ranges
        return StoreRanges(self.zarr_store, self.name)

    def keys(self, prefix: str = "") -> list[str]:
        """Every file whose key begins so; the folders that a zip file may list are left out."""

        async def collect() -> list[str]:
            return [key async for key in self.zarr_store.list_prefix(prefix) if not key.endswith("/")]

        return sync(collect())

    def read(self, key: str) -> bytes | None:
        """The bytes of a file, unchecked; None if it is not there."""
        data = sync(self.zarr_store.get(key, default_buffer_prototype()))
        return None if data is None else data.to_bytes()

    def n_bytes(self, prefix: str = "") -> int:
        """What the files whose key begins so take."""
        return int(sync(self.zarr_store.getsize_prefix(prefix)))

    def write(self, key: str, data: bytes) -> None:
        """Write a file whole."""
        sync(self.zarr_store.set(key, prototype_buffer(data)))

    def delete(self, key: str) -> None:
        """Delete a file; one that is not there is no error."""
        sync(self.zarr_store.delete(key))


Place = str | PathLike[str] | ZarrStore | Location
"""A folder, a zip file, a URL (s3://, gs://, az://), an open `Store` or Zarr store, or what was located before.

Folders and URLs may be Icechunk repositories; PLACE@VERSION is one as it was at a tag or a snapshot.
"""


def plain(place: Place) -> str | ZarrStore | Location:
    """A place without what was opened there: of an open `Store`, where it is."""
    return fspath(place) if isinstance(place, PathLike) else place
