"""Opening a store for reading: its images table and its tensors, validated first."""

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import zarr
from zarr.errors import GroupNotFoundError, NodeTypeValidationError

from featstore.errors import DamagedError, FormatError, StoreError, suggest
from featstore.store.format.images import COLUMNS, ImageState, ImageTable, arrays_of, read_head
from featstore.store.format.integrity import FORMAT, SealedStore, committed_tensors, is_chunk
from featstore.store.format.limits import TABLE_CHUNK, check_length, check_path, goes_out
from featstore.store.format.metadata import PARTS
from featstore.store.lock import was_abandoned
from featstore.store.places.locate import locate
from featstore.store.places.network import reaching
from featstore.store.places.place import Location, Place
from featstore.store.tensor import StoredTensor
from featstore.support import html_table

T = TypeVar("T")
AT_ONCE = 8
_OTHER_STATES = (ImageState.UNREADABLE, ImageState.UNREAD, ImageState.GONE)


def open_store(place: Place, *, version: str | None = None, keep_mapped: bool = True) -> "Store":
    """Open a store for reading: a folder, a zip file, a URL or an open Zarr store; the same as `featstore.open`.

    Args:
        version: of a shared repository, a tag or the beginning of a snapshot's name; as PLACE@VERSION says it too.
        keep_mapped: whether what was read of a file goes on to count as memory of this process, which is faster when it
            is read again, and which the system takes back when it needs memory.

    Raises:
        FormatError: nothing there, not a store, or a store of another format version.
        DamagedError: a part of it is not what was written.
    """
    location = locate(place, version=version)
    name = location.name
    sealed = SealedStore(location.zarr_store, name)
    try:
        with reaching(name):
            group = zarr.open_group(sealed, mode="r", zarr_format=3)
    except (GroupNotFoundError, NodeTypeValidationError, FileNotFoundError) as error:
        raise FormatError(_nothing_at(location)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{name}: its zarr.json cannot be read ({error})") from error
    except OSError as error:
        raise StoreError(f"{name} cannot be read: {error.strerror or error}") from error
    about = group.attrs.get("featstore")
    if not isinstance(about, Mapping) or "format" not in about:
        raise FormatError(f"{name} is a Zarr group but not a feature store (no `featstore` attribute)")
    if about["format"] != FORMAT:
        raise FormatError(
            f"{name} has format version {about['format']!r}; this featstore reads version {FORMAT}: "
            "install the featstore that wrote it, or extract into another store"
        )
    return Store(location, group, sealed, keep_mapped=keep_mapped)


def existing_store(place: Place) -> "Store | None":
    """The store at a place, or None if nothing is there yet.

    Raises:
        FormatError: something else is there.
    """
    try:
        return open_store(place)
    except FormatError:
        folder = locate(place).folder
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise
        return None


def _nothing_at(location: Location) -> str:
    if location.remote:
        return (
            f"{location.name} is a shared repository without a feature store in it: nothing was pushed yet, or this "
            "version is damaged (`featstore log` lists others)"
        )
    return f"{location.name} is not a feature store; `featstore extract PHOTOS --store {location.name}` makes one"


class Store:
    """An open store; a mapping from a tensor's name to the tensor."""

    def __init__(self, location: Location, group: zarr.Group, sealed: SealedStore, *, keep_mapped: bool = True) -> None:
        self.location, self.path, self.keep_mapped = location, location.name, keep_mapped
        self._group, self._sealed = group, sealed
        self.block_rows = int(group.attrs["featstore"]["block_rows"])  # type: ignore[index,call-overload,arg-type]
        """How many rows a shard has."""

    def __fspath__(self) -> str:
        """Its place, so that an open store stands for it wherever a place is asked for."""
        return self.path

    def __repr__(self) -> str:
        try:
            tensors = ", ".join(f"{name} {' x '.join(map(str, each.shape))}" for name, each in self.tensors.items())
            return f"<Store {self.path}: {self._counts()}; {tensors or 'no tensors'}>"
        except StoreError as error:
            return f"<Store {self.path}: {error}>"

    def _repr_html_(self) -> str:
        rows = [
            (
                name,
                each.layout.kind,
                " x ".join(map(str, each.shape)),
                each.dtype,
                len(each.rows),
                ", ".join(segment.name for segment in each.layout.segments),
            )
            for name, each in self.tensors.items()
        ]
        header = ("tensor", "layout", "shape", "dtype", "present", "segments")
        return html_table(header, rows, above=f"Store {self.path}: {self._counts()}")

    def _counts(self) -> str:
        states = self.images.states
        others = [f"{n} {state.name.lower()}" for state in _OTHER_STATES if (n := int((states == state).sum()))]
        return f"{len(states)} images" + (f" ({', '.join(others)})" if others else "")

    @property
    def n_bytes(self) -> int:
        """What the store takes on the disk."""
        return self.location.n_bytes()

    @property
    def unfinished(self) -> bool:
        """Whether a writer has died before it could put things in order; opening a `Writer` does."""
        return was_abandoned(self.location) or any(len(digests) != 1 for digests in self._sealed.sums().values())

    @cached_property
    def images(self) -> ImageTable:
        """The images table: for each row of every tensor, its path, digest, size and state.

        Raises:
            DamagedError: a column is missing or too short.
            FormatError: it names an image outside of a photo folder.
        """
        arrays = arrays_of(self._group, "images")
        if missing := set(COLUMNS) - set(arrays):
            raise DamagedError(f"{self.path}: the images table has no column {', '.join(sorted(missing))}")
        # `state` grows last: rows that a killed run had begun to list are not there yet.
        n_rows = arrays["state"].shape[0]
        for name in COLUMNS:
            self._check_length(arrays[name], name, n_rows)
        columns = self._map(lambda name: read_head(arrays[name], n_rows, f"{self.path}: images/{name}"), COLUMNS)
        images = ImageTable.from_columns(dict(zip(COLUMNS, columns, strict=True)))
        for path in filter(None, images.paths):  # one that was lost is empty
            if self.location.remote:
                check_path(path, self.path)
            elif goes_out(path, foreign=False):
                raise FormatError(f"{self.path} names an image {path[:80]!r}, which is not below any photo folder")
        return images

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors by name.

        Raises:
            DamagedError: a tensor that has committed rows lacks its array or its record.
        """
        parts = dict(zip(PARTS, self._map(lambda kind: arrays_of(self._group, kind), PARTS), strict=True))
        whole = set.intersection(*map(set, parts.values()))
        # What is not whole and has nothing committed is a tensor that a killed run had begun to make or to remove.
        committed = committed_tensors(self._sealed.sums())
        for name in sorted(committed - whole):
            kind = next(kind for kind in PARTS if name not in parts[kind])
            raise DamagedError(f"{self.path}: {kind}/{name}/zarr.json is missing; `featstore repair` writes it anew")
        _, names = self.images, sorted(whole)  # the table first, once for all of them
        made = self._map(lambda name: self._open_tensor(name, {kind: parts[kind][name] for kind in PARTS}), names)
        return dict(zip(names, made, strict=True))

    def _check_length(self, array: "zarr.Array[Any]", name: str, n_rows: int) -> None:
        key = f"images/{name}"
        if array.shape[0] < n_rows:
            raise DamagedError(
                f"{self.path}: {key} has {array.shape[0]} rows, and images/state has {n_rows}; `featstore repair` "
                "writes anew what is lost"
            )
        n_chunks = sum(is_chunk(each) and each.startswith(f"{key}/") for each in self._sealed.sums())
        check_length(min(n_rows, array.shape[0]), n_chunks, TABLE_CHUNK, f"{self.path}: {key}")

    def _open_tensor(self, name: str, arrays: Mapping[str, "zarr.Array[Any]"]) -> StoredTensor:
        return StoredTensor(
            name,
            arrays,
            images=self.images,
            location=self.location,
            block_rows=self.block_rows,
            keep_mapped=self.keep_mapped,
        )

    def _map(self, read: Callable[[str], T], names: Collection[str]) -> list[T]:
        """One after another from a folder; side by side from far away, where each is a request or several."""
        if self.location.folder is not None or len(names) < 2:
            return [read(name) for name in names]
        with ThreadPoolExecutor(min(len(names), AT_ONCE)) as pool:
            return list(pool.map(read, names))

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self.tensors:
            raise StoreError(f"store {self.path} has no tensor {name!r}; {suggest(name, self.tensors)}")
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
