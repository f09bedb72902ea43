"""Where a store is: a local folder, a zip file, a bucket, an Icechunk repository, or any open Zarr store.

This is the one place that knows; everything else asks a `Location`. A kind of place that Zarr can reach is one
more branch in `locate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from zarr.abc.store import Store as ZarrStore
from zarr.core.sync import sync
from zarr.storage import LocalStore, ZipStore

from featstore.errors import FormatError, StoreError
from featstore.store.format.integrity import DOCUMENT
from featstore.store.places.bucket import kvstore_of, open_bucket
from featstore.store.places.local import DurableStore
from featstore.store.places.network import reaching
from featstore.store.rows.fetched import BlockCache


@dataclass(frozen=True)
class Location:
    """Where a store is and how to reach it."""

    name: str
    """What messages call it."""
    zarr_store: ZarrStore
    folder: Path | None = None
    """The local folder that it is, if it is one."""
    kvstore: Mapping[str, Any] | None = None
    """How TensorStore reaches it, if it can."""
    remote: bool = False
    """Whether it is in a shared repository: read only, or a transaction that nobody else can see."""
    blocks: BlockCache | None = None
    """Where row blocks are kept that were read from far away."""


Place = str | Path | ZarrStore | Location
"""A folder, a zip file, a URL (s3://, gs://, az://), an open Zarr store, or what was located before.

Folders and URLs may be Icechunk repositories; PLACE@VERSION is one as it was at a tag or a snapshot.
"""


def locate(place: Place, *, writable: bool = False, version: str | None = None) -> Location:
    """Find out what a place is.

    Args:
        version: of a repository, a tag or the beginning of a snapshot's name.

    Raises:
        StoreError: writing into a zip file or a repository, a URL of an unknown kind, or a version that is not there.
        FormatError: a file that is no zip file.
    """
    if isinstance(place, Location):
        return place
    if version is not None:
        return _at_version(place, version)
    if isinstance(place, LocalStore):
        place = place.root
    if isinstance(place, ZarrStore):
        if writable and place.read_only:
            raise StoreError(f"{place} was opened for reading only")
        return Location(str(place), place)
    if "://" in str(place):
        return _locate_url(str(place), writable=writable)
    path = Path(place)
    try:
        is_file = path.is_file()
    except OSError as error:  # a name that is too long, say
        raise StoreError(f"{str(place)[:200]} cannot be read: {error.strerror}") from error
    if is_file:
        if not is_zipfile(path):
            raise FormatError(f"{path} is a file, not a feature store")
        if writable:
            raise StoreError(f"{path} is a zip file, which can only be read; unpack it to go on writing")
        kvstore = {"driver": "zip", "base": {"driver": "file", "path": str(path.resolve())}}
        return Location(str(path), sync(ZipStore.open(path, mode="r")), kvstore=kvstore)
    if not (path / DOCUMENT).exists() and (found := _in_repository(str(place), writable=writable)):
        return found
    store = DurableStore(path) if writable else LocalStore(path, read_only=True)
    return Location(str(path), store, folder=path, kvstore={"driver": "file", "path": f"{path.resolve()}/"})


def _locate_url(url: str, *, writable: bool) -> Location:
    url = url.rstrip("/")
    bucket = open_bucket(url)
    from zarr.storage import ObjectStore

    store = ObjectStore(bucket, read_only=not writable)
    with reaching(url):
        is_store = sync(store.exists(DOCUMENT))
    if not is_store and (found := _in_repository(url, writable=writable)):
        return found
    return Location(url, store, kvstore=kvstore_of(url))


def _at_version(place: Place, version: str) -> Location:
    from featstore.store.places.repository import Repository

    if not isinstance(place, str | Path):
        raise StoreError(f"{place} has no versions; a shared repository does")
    return Repository(place).at(version, blocks=BlockCache.usual())


def _in_repository(text: str, *, writable: bool) -> Location | None:
    """What is at a place that is a repository, or that names a version of one."""
    from featstore.store.places.repository import Repository, is_repository, split_version

    named, version = split_version(text)
    for place, at in [(text, None), *([] if version is None else [(named, version)])]:
        if is_repository(place):
            if writable:
                raise StoreError(f"{place} is a shared repository: it changes only by `featstore push STORE {place}`")
            return Repository(place).at(at, blocks=BlockCache.usual())
    return None
