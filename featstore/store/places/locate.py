"""From a path, a URL or an open Zarr store to a `Location`: a folder, a zip file, a bucket, a repository.

This is the one place that knows; everything else asks a `Location`. A kind of place that Zarr can reach is one
more branch in `locate`. It is also the one place that reads FEATSTORE_BLOCKS and FEATSTORE_BLOCKS_GB.
"""

import os
from pathlib import Path
from zipfile import is_zipfile

from zarr.abc.store import Store as ZarrStore
from zarr.core.sync import sync
from zarr.storage import LocalStore

from featstore.errors import ConfigError, FormatError, StoreError
from featstore.store.format.integrity import DOCUMENT
from featstore.store.places.bucket_store import BucketStore
from featstore.store.places.cache import BlockCache
from featstore.store.places.local import DurableStore, FolderStore
from featstore.store.places.network import reaching
from featstore.store.places.place import Location, Place, plain
from featstore.store.places.repository import Repository, is_repository, split_version
from featstore.store.places.zipped import ZippedStore
from featstore.support import as_path

CACHE_GB = 20.0
"""The most that the cache of fetched shards takes, unless FEATSTORE_BLOCKS_GB says otherwise."""


def locate(place: Place, *, writable: bool = False, version: str | None = None) -> Location:
    """Find out what a place is.

    Args:
        version: of a repository, a tag or the beginning of a snapshot's name.

    Raises:
        StoreError: writing into a zip file or a repository, a URL of an unknown kind, or a version that is not there.
        FormatError: a file that is no zip file.
        ConfigError: FEATSTORE_BLOCKS_GB is no number.
    """
    place = plain(place)
    if isinstance(place, Location):
        return place
    if version is not None:
        if not isinstance(place, str):
            raise StoreError(f"{place} has no versions; a shared repository does")
        return Repository(place).at(version, blocks=block_cache())
    if isinstance(place, LocalStore):
        place = str(place.root)
    if isinstance(place, ZarrStore):
        if writable and place.read_only:
            raise StoreError(f"{place} was opened for reading only")
        return Location(str(place), place)
    if "://" in str(place):
        return _locate_url(str(place).rstrip("/"), writable=writable)
    return _locate_path(place, writable=writable)


def block_cache() -> BlockCache | None:
    """The cache that the environment asks for: FEATSTORE_BLOCKS, its folder; FEATSTORE_BLOCKS_GB, 0 for none at all.

    None as well where the folder cannot be written: what is fetched is then kept in memory while it is used.

    Raises:
        ConfigError: FEATSTORE_BLOCKS_GB is no number.
    """
    text = os.environ.get("FEATSTORE_BLOCKS_GB", str(CACHE_GB))
    try:
        limit_bytes = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        raise ConfigError(f"FEATSTORE_BLOCKS_GB is {text!r}; expected a number of gigabytes") from None
    folder = Path(os.environ.get("FEATSTORE_BLOCKS", Path("cache") / "blocks")).absolute()
    return BlockCache(folder, limit_bytes) if limit_bytes > 0 and _can_be_written(folder) else None


def _locate_url(url: str, *, writable: bool) -> Location:
    store = BucketStore(url, read_only=not writable)
    with reaching(url):
        is_store = sync(store.exists(DOCUMENT))
    if not is_store and (found := _in_repository(url, writable=writable)):
        return found
    return Location(url, store)


def _locate_path(place: str | Path, *, writable: bool) -> Location:
    path = as_path(place)
    try:
        is_file = path.is_file()
    except OSError as error:  # a name that is too long, say
        raise StoreError(f"{str(place)[:200]} cannot be read: {error.strerror}") from error
    if is_file:
        if not is_zipfile(path):
            raise FormatError(f"{path} is a file, not a feature store")
        if writable:
            raise StoreError(f"{path} is a zip file, which can only be read; unpack it to go on writing")
        return Location(str(path), ZippedStore(path.absolute()))
    if not (path / DOCUMENT).exists() and (found := _in_repository(str(path), writable=writable)):
        return found
    store = DurableStore(path) if writable else FolderStore(path, read_only=True)
    return Location(str(path), store, folder=path)


def _in_repository(text: str, *, writable: bool) -> Location | None:
    """What is at a place that is a repository, or that names a version of one."""
    named, version = split_version(text)
    for place, at in [(text, None), *([] if version is None else [(named, version)])]:
        if is_repository(place):
            if writable:
                raise StoreError(f"{place} is a shared repository: it changes only by `featstore push STORE {place}`")
            return Repository(place).at(at, blocks=block_cache())
    return None


def _can_be_written(folder: Path) -> bool:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
