"""Where a store is: a local folder, a zip file, a bucket, or any Zarr store that somebody holds in memory.

This is the one place that knows; everything else asks a `Location`. A kind of place that Zarr can reach is one
more branch in `locate`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from zarr.abc.store import Store as ZarrStore
from zarr.core.sync import sync
from zarr.storage import LocalStore, ZipStore

from featstore.errors import FormatError, StoreError
from featstore.store.files import DurableStore

Place = str | Path | ZarrStore
"""A folder, a zip file, a URL (s3://, gs://, az://), or an open Zarr store."""


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


def locate(place: Place, *, writable: bool = False) -> Location:
    """Find out what a place is; nothing is read yet.

    Raises:
        StoreError: writing into a zip file, or a URL of an unknown kind.
        FormatError: a file that is no zip file.
    """
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
    store = DurableStore(path) if writable else LocalStore(path, read_only=True)
    return Location(str(path), store, folder=path, kvstore={"driver": "file", "path": f"{path.resolve()}/"})


@contextmanager
def reaching(name: str) -> Iterator[None]:
    """Turn what a bucket's library says of the network or the bucket into our own error.

    Raises:
        StoreError: instead.
    """
    try:
        yield
    except Exception as error:
        # obstore's exceptions have a root of their own, and some inherit from Python's
        if type(error).__module__.startswith("obstore") or (type(error) is FileNotFoundError and "://" in name):
            reason = str(error).partition("\n")[0]
            raise StoreError(f"{name} cannot be reached: {reason}") from error
        raise


def _locate_url(url: str, *, writable: bool) -> Location:
    try:
        from obstore.store import from_url
        from zarr.storage import ObjectStore
    except ImportError as error:
        raise StoreError(f"{url}: reaching a bucket needs one more package: pip install 'featstore[remote]'") from error
    url = url.rstrip("/")
    try:
        store = ObjectStore(from_url(url), read_only=not writable)  # credentials and endpoint from the environment
    except Exception as error:  # obstore's own tree of errors, one for each cloud
        raise StoreError(f"{url} cannot be opened: {error}") from error
    return Location(url, store, kvstore=_kvstore(url))


def _kvstore(url: str) -> dict[str, Any] | None:
    """How TensorStore reaches a bucket, with the same environment variables as obstore."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    path = f"{path}/" if path else ""
    if scheme == "gs":
        return {"driver": "gcs", "bucket": bucket, "path": path}
    if scheme != "s3":
        return None
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": path}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")):
        spec["endpoint"] = endpoint
    if region := os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION")):
        spec["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:
        spec["aws_credentials"] = {"type": "environment"}
    return spec
