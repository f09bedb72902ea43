"""Reading a store: the images table, and tensors as rows, row blocks, Dask, xarray or a torch dataset.

Every row that is handed out is marked present in the commit record and has the checksum that was recorded when it
was computed; all ways of reading go through `StoredTensor.read`.
"""

import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync
from zarr.errors import GroupNotFoundError, NodeTypeValidationError, ZarrUserWarning

from featstore.errors import MEND, AbsentRowsError, DamagedError, FormatError, StoreError, suggest
from featstore.store.layout import TensorLayout
from featstore.store.libraries import LibraryRows
from featstore.store.location import Location, Place, locate, reaching
from featstore.store.lock import was_abandoned
from featstore.store.seals import FORMAT, SealedStore, committed_tensors
from featstore.store.shards import MappedShards
from featstore.store.skeleton import PARTS, Compression
from featstore.store.table import COLUMNS, ImageState, ImageTable, RowState

if TYPE_CHECKING:
    import dask.array
    import torch.utils.data
    import xarray


AHEAD = 2  # row blocks read ahead, each on a thread: reading lets go of Python's lock


def open_store(place: Place, *, keep_mapped: bool = True) -> "Store":
    """Open a store for reading: a folder, a zip file, a URL or an open Zarr store; the same as `featstore.open`.

    Args:
        keep_mapped: whether what was read of a file goes on to count as memory of this process, which is faster when it
            is read again, and which the system takes back when it needs memory.

    Raises:
        FormatError: nothing there, not a store, or a store of another format version.
        DamagedError: a part of it is not what was written.
    """
    location = locate(place)
    name = location.name
    sealed = SealedStore(location.zarr_store, name)
    try:
        with reaching(name):
            group = zarr.open_group(sealed, mode="r", zarr_format=3)
    except (GroupNotFoundError, NodeTypeValidationError, FileNotFoundError) as error:
        raise FormatError(
            f"{name} is not a feature store; `featstore extract PHOTOS --store {name}` makes one"
        ) from error
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
    block_rows = about.get("block_rows")
    if not isinstance(block_rows, int) or block_rows < 1:
        raise FormatError(f"{name}: its `featstore` attribute says {block_rows!r} where the rows of a block should be")
    return Store(location, group, sealed, keep_mapped=keep_mapped)


class Store:
    """An open store; a mapping from a tensor's name to the tensor."""

    def __init__(self, location: Location, group: zarr.Group, sealed: SealedStore, *, keep_mapped: bool = True) -> None:
        self.location, self.path, self.keep_mapped = location, location.name, keep_mapped
        self._group, self._sealed = group, sealed
        self.block_rows = int(group.attrs["featstore"]["block_rows"])  # type: ignore[index,call-overload,arg-type]

    @property
    def n_bytes(self) -> int:
        """What the store takes on the disk."""
        return int(sync(self.location.zarr_store.getsize_prefix("")))

    @property
    def unfinished(self) -> bool:
        """Whether a writer has died before it could put things in order; opening a `Writer` does."""
        return was_abandoned(self.location) or any(len(digests) != 1 for digests in self._sealed.sums().values())

    @cached_property
    def images(self) -> ImageTable:
        arrays = arrays_of(self._group, "images")
        if missing := set(COLUMNS) - set(arrays):
            raise DamagedError(f"{self.path}: the images table has no column {', '.join(sorted(missing))}")
        # `state` grows last: rows that a killed run had begun to list are not there yet.
        n_rows = arrays["state"].shape[0]
        return ImageTable.from_columns(
            {name: _head(arrays[name], n_rows, f"{self.path}: images/{name}") for name in COLUMNS}
        )

    @cached_property
    def tensors(self) -> dict[str, "StoredTensor"]:
        """The tensors by name.

        Raises:
            DamagedError: a tensor that has committed rows lacks its array or its record.
        """
        parts = {kind: arrays_of(self._group, kind) for kind in PARTS}
        whole = set.intersection(*map(set, parts.values()))
        # What is not whole and has nothing committed is a tensor that a killed run had begun to make or to remove.
        committed = committed_tensors(self._sealed.sums())
        for name in sorted(committed - whole):
            kind = next(kind for kind in PARTS if name not in parts[kind])
            raise DamagedError(f"{self.path}: {kind}/{name}/zarr.json is missing; `featstore repair` writes it anew")
        return {name: StoredTensor(self, name, *(parts[kind][name] for kind in PARTS)) for name in sorted(whole)}

    def __getitem__(self, name: str) -> "StoredTensor":
        if name not in self.tensors:
            raise StoreError(f"store {self.path} has no tensor {name!r}; {suggest(name, self.tensors)}")
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class StoredTensor:
    """One tensor: (N, B, T, F) of a stack, (N, F) of a concatenation."""

    def __init__(
        self,
        store: Store,
        name: str,
        array: "zarr.Array[Any]",
        record: "zarr.Array[Any]",
        checksums: "zarr.Array[Any]",
    ) -> None:
        self.store, self.name, self._array = store, name, array
        self.layout = TensorLayout.from_attributes(name, array.attrs.asdict(), array.shape[1:])
        declared = {str(segment.identity.get("dtype", array.dtype)) for segment in self.layout.segments}
        if declared != {str(array.dtype)}:
            raise FormatError(f"tensor {name!r} holds {array.dtype}, and its segments say {', '.join(declared)}")
        n_rows = len(store.images)
        # The record first: a writer at work commits the checksums before it.
        self.states: NDArray[np.uint8] = _column(record, n_rows, f"{store.path}: rows/{name}")
        self.checksums: NDArray[np.uint32] = _column(checksums, n_rows, f"{store.path}: checksums/{name}")

    def __str__(self) -> str:
        return f"tensor {self.name!r} in {self.store.path}"

    def __getstate__(self) -> dict[str, Any]:
        """For the worker processes of a torch loader: open files stay here, each process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_source"}

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._array.dtype)

    @property
    def compression(self) -> Compression | None:
        """The codec that rows are compressed with, if any."""
        named: Any = self._array.attrs.get("compress")
        return cast(Compression | None, named)

    @property
    def replaced_by(self) -> str | None:
        """The tensor that this one was set aside for, until that one is complete."""
        named = self._array.attrs.get("replaced_by")
        return str(named) if named else None

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.store.images), *self.layout.row_shape)

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """What each run that wrote to this tensor ran on: versions, engine, device, time."""
        return list(self._array.attrs.get("provenance", []))  # type: ignore[arg-type]

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The numbers of the rows that are present, in ascending order, those of changed files left out."""
        current = self.store.images.states != ImageState.GONE
        return np.flatnonzero((self.states == RowState.PRESENT) & current)

    @property
    def paths(self) -> list[str]:
        """The path of each present row, in the order of `rows`."""
        paths = self.store.images.paths
        return [paths[row] for row in self.rows]

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """The named rows, in the order given.

        Raises:
            AbsentRowsError: some are not present.
            DamagedError: some are not what was computed for them, or missing on the disk.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        self.check_present(wanted)
        out = np.empty((len(wanted), *self.layout.row_shape), self.dtype)
        if not len(wanted):
            return out

        def verify(place: int, values: NDArray[np.uint8]) -> None:
            row = wanted[place]
            if google_crc32c.value(values) != self.checksums[row]:
                raise DamagedError(
                    f"row {row} ({self.store.images.paths[row]}) of {self} is damaged: "
                    f"its values are not those that were computed; {MEND}"
                )

        self._source.read(wanted, out, verify=verify)
        return out

    def blocks(self, rows: NDArray[np.int64] | None = None) -> list[NDArray[np.int64]]:
        """The row numbers (all that are present, or those given) grouped by row block, in ascending order."""
        wanted = self.rows if rows is None else np.sort(np.asarray(rows, dtype=np.int64))
        cuts = np.flatnonzero(np.diff(wanted // self.store.block_rows)) + 1
        return [part for part in np.split(wanted, cuts) if len(part)]

    def iter_blocks(
        self, rows: NDArray[np.int64] | None = None, *, shuffle: np.random.Generator | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """(row numbers, rows) of every row block in turn, the next ones being read while one is in use.

        Args:
            rows: all that are present, if not said.
            shuffle: takes the blocks in random order; within each, rows ascend: mix them as you cut minibatches.
        """
        blocks = self.blocks(rows)
        if shuffle is not None:
            blocks = [blocks[i] for i in shuffle.permutation(len(blocks))]
        with ThreadPoolExecutor(AHEAD) as pool:
            waiting = deque(pool.submit(self.read, block) for block in blocks[:AHEAD])
            for i, block in enumerate(blocks):
                values = waiting.popleft().result()
                waiting += [pool.submit(self.read, later) for later in blocks[i + AHEAD : i + AHEAD + 1]]
                yield block, values

    def dask(self, rows: NDArray[np.int64] | None = None) -> "dask.array.Array":
        """Present rows (or those given, in ascending order) as a Dask array with one chunk per row block."""
        import dask
        import dask.array

        blocks = self.blocks(rows)
        for block in blocks:
            self.check_present(block)
        read = dask.delayed(self.read, pure=False)
        parts = [
            dask.array.from_delayed(read(block), (len(block), *self.layout.row_shape), dtype=self.dtype)
            for block in blocks
        ]
        if not parts:
            return dask.array.zeros((0, *self.layout.row_shape), dtype=self.dtype)
        return dask.array.concatenate(parts, axis=0)

    def xarray(self) -> "xarray.DataArray":
        """Present rows as a labelled array: `image` is the path, `backbone` the segment's name."""
        import xarray

        coords: dict[str, list[str]] = {"image": self.paths}
        if self.layout.kind == "stack":
            coords["backbone"] = [segment.name for segment in self.layout.segments]
        return xarray.DataArray(self.dask(), dims=self.layout.axes, coords=coords, name=self.name)

    def torch(self) -> "torch.utils.data.Dataset[Any]":
        """Present rows as a map-style torch dataset of (row number, tensor)."""
        from featstore.store.torch_dataset import RowsDataset

        return RowsDataset(self)

    def check_present(self, rows: NDArray[np.int64]) -> None:
        outside = rows[(rows < 0) | (rows >= len(self.states))]
        if len(outside):
            raise AbsentRowsError(
                f"tensor {self.name!r} has rows 0 to {len(self.states) - 1}; asked for {_some(outside)}"
            )
        absent = rows[self.states[rows] != RowState.PRESENT]
        if len(absent):
            named = ", ".join(self.store.images.paths[row] for row in absent[:3])
            raise AbsentRowsError(
                f"tensor {self.name!r} has no features in {len(absent)} of the rows asked for: rows {_some(absent)} "
                f"({named}{', ...' if len(absent) > 3 else ''}); `featstore extract` computes what is absent"
            )

    @cached_property
    def _source(self) -> MappedShards | LibraryRows:
        """The fastest way to the rows: the files themselves, or a library for what is compressed or far away."""
        location = self.store.location
        if location.folder is not None and self.compression is None:
            return MappedShards(
                location.folder / "tensors" / self.name,
                row_shape=self.layout.row_shape,
                dtype=self.dtype,
                block_rows=self.store.block_rows,
                name=str(self),
                keep_mapped=self.store.keep_mapped,
            )
        kvstore = location.kvstore
        if kvstore is not None:
            kvstore = {**kvstore, "path": f"{kvstore.get('path', '')}tensors/{self.name}/"}
        return LibraryRows(self._array, kvstore, str(self))


def arrays_of(group: zarr.Group, name: str) -> dict[str, "zarr.Array[Any]"]:
    """The arrays of a subgroup by name, in alphabetical order; files that are no part of it are passed over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # of an array that a killed run had begun, or a .DS_Store
        try:
            arrays = dict(_subgroup(group, name).arrays())
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise FormatError(
                f"{group.store_path}/{name}: the metadata of an array cannot be read ({error})"
            ) from error
    return {name: arrays[name] for name in sorted(arrays)}


def _column(array: "zarr.Array[Any]", n_rows: int, where: str) -> NDArray[Any]:
    """The first `n_rows` of a record; what it has not grown to yet is zero."""
    column = np.zeros(n_rows, array.dtype)
    known = _head(array, n_rows, where)
    column[: len(known)] = known
    return column


def _head(array: "zarr.Array[Any]", n_rows: int, where: str) -> NDArray[Any]:
    try:
        return np.asarray(array[:n_rows])
    except (ValueError, OSError, IndexError) as error:
        raise StoreError(f"{where} cannot be read: {error}") from error


def _subgroup(group: zarr.Group, name: str) -> zarr.Group:
    try:
        node = group[name]
    except KeyError as error:
        raise FormatError(f"{group.store_path}: a feature store has a group {name!r}; this one has none") from error
    if not isinstance(node, zarr.Group):
        raise FormatError(f"{group.store_path}: {name!r} is not a group")
    return node


def _some(rows: NDArray[np.int64]) -> str:
    return ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
