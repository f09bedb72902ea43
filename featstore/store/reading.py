"""Reading a store: the images table, and tensors as rows, row blocks, Dask, xarray or a torch dataset.

Rows that are not present are never handed out: what a reader gives is checked against the commit record.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import GroupNotFoundError, NodeTypeValidationError, ZarrUserWarning

from featstore.errors import AbsentRowsError, FormatError, StoreError, suggest
from featstore.store.layout import TensorLayout

if TYPE_CHECKING:
    import dask.array
    import torch.utils.data
    import xarray

FORMAT = 1
# `state` comes last: its length is the number of rows in the store.
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "path": ("string", ()),
    "digest": ("uint8", (32,)),
    "size": ("int32", (2,)),
    "error": ("string", ()),
    "bytes": ("int64", ()),
    "modified": ("int64", ()),
    "state": ("uint8", ()),
}
"""The columns of the images table: dtype and shape of one row."""


class ImageState(IntEnum):
    """What is known of an image file."""

    UNREAD = 0
    """Listed, not decoded yet."""
    READABLE = 1
    UNREADABLE = 2
    """Its `error` says why."""
    GONE = 3
    """The file's bytes changed: a newer row has its path."""


class RowState(IntEnum):
    """The commit record of one row of one tensor."""

    ABSENT = 0
    PRESENT = 1
    FAILED = 2


@dataclass(frozen=True)
class ImageTable:
    """One row per image, N in all; the same row number everywhere in the store."""

    paths: list[str]
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    """(N, 2) height and width in pixels, upright; 0 while unread."""
    states: NDArray[np.uint8]
    errors: list[str]
    n_bytes: NDArray[np.int64]
    modified_ns: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.states)

    @cached_property
    def rows_by_path(self) -> dict[str, int]:
        """The current row of each path; rows that are gone are left out."""
        return {path: row for row, path in enumerate(self.paths) if self.states[row] != ImageState.GONE}


def open_store(path: str | Path) -> "Store":
    """Open a store for reading; the same as `featstore.open`.

    Raises:
        FormatError: nothing there, not a store, or a store of another format version.
    """
    try:
        group = zarr.open_group(str(path), mode="r", zarr_format=3)
    except (GroupNotFoundError, NodeTypeValidationError, FileNotFoundError) as error:
        raise FormatError(
            f"{path} is not a feature store; `featstore extract PHOTOS --store {path}` makes one"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: its zarr.json cannot be read ({error})") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    about = group.attrs.get("featstore")
    if not isinstance(about, Mapping) or "format" not in about:
        raise FormatError(f"{path} is a Zarr group but not a feature store (no `featstore` attribute)")
    if about["format"] != FORMAT:
        raise FormatError(
            f"{path} has format version {about['format']!r}; this featstore reads version {FORMAT}: "
            "install the featstore that wrote it, or extract into another store"
        )
    block_rows = about.get("block_rows")
    if not isinstance(block_rows, int) or block_rows < 1:
        raise FormatError(f"{path}: its `featstore` attribute says {block_rows!r} where the rows of a block should be")
    return Store(Path(path), group)


class Store:
    """An open store; a mapping from a tensor's name to the tensor."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self._group = group
        self.block_rows = int(group.attrs["featstore"]["block_rows"])  # type: ignore[index,call-overload,arg-type]

    @cached_property
    def images(self) -> ImageTable:
        arrays = arrays_of(self._group, "images")
        if missing := set(COLUMNS) - set(arrays):
            raise FormatError(f"{self.path}: the images table has no column {', '.join(sorted(missing))}")
        # `state` grows last: rows that a killed run had begun to list are not there yet.
        n_rows = arrays["state"].shape[0]
        table = _table({name: _head(arrays[name], n_rows, f"{self.path}: images/{name}") for name in COLUMNS})
        if "" in table.paths:
            raise StoreError(f"{self.path}: row {table.paths.index('')} of the images table has lost its path")
        return table

    @cached_property
    def tensors(self) -> dict[str, "StoredTensor"]:
        records = arrays_of(self._group, "rows")
        arrays = arrays_of(self._group, "tensors")
        if missing := set(arrays) - set(records):
            raise FormatError(f"{self.path}: tensor {min(missing)!r} has no commit record (rows/{min(missing)})")
        return {name: StoredTensor(self, name, array, records[name]) for name, array in arrays.items()}

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

    def __init__(self, store: Store, name: str, array: "zarr.Array[Any]", record: "zarr.Array[Any]") -> None:
        self.store, self.name, self._array = store, name, array
        self.layout = TensorLayout.from_attributes(name, array.attrs.asdict(), array.shape[1:])
        n_rows = len(store.images)
        self.states: NDArray[np.uint8] = np.zeros(n_rows, np.uint8)
        known = _head(record, n_rows, f"{store.path}: rows/{name}")
        self.states[: len(known)] = known

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._array.dtype)

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
            StoreError: some are recorded as present but damaged or missing on disk.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        self.check_present(wanted)
        out = np.empty((len(wanted), *self.layout.row_shape), self.dtype)
        blocks = wanted // self.store.block_rows
        for block in np.unique(blocks):
            here = np.flatnonzero(blocks == block)
            out[here] = self._read_in_block(wanted[here])
        return out

    def blocks(self, rows: NDArray[np.int64] | None = None) -> list[NDArray[np.int64]]:
        """The row numbers (all that are present, or those given) grouped by row block, in ascending order."""
        wanted = self.rows if rows is None else np.sort(np.asarray(rows, dtype=np.int64))
        cuts = np.flatnonzero(np.diff(wanted // self.store.block_rows)) + 1
        return [part for part in np.split(wanted, cuts) if len(part)]

    def iter_blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """(row numbers, rows) of every row block in turn."""
        for rows in self.blocks():
            yield rows, self.read(rows)

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

    def _read_in_block(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        first, last = int(rows.min()), int(rows.max())
        where = f"rows {first} to {last} of tensor {self.name!r} in {self.store.path}"
        try:
            if len(rows) * 4 >= last - first + 1:  # dense: one range, then a selection in memory
                values = np.asarray(self._array[first : last + 1])[rows - first]
            else:
                order = np.unique(rows)
                values = np.asarray(self._array.oindex[order])[np.searchsorted(order, rows)]
        except (ValueError, OSError, IndexError) as error:
            raise StoreError(f"{where} cannot be read: {error}") from error
        # Features are finite when written, and what is not on the disk reads as NaN.
        if self.dtype.kind == "f" and np.isnan(values.reshape(len(rows), -1)[:, 0]).any():
            raise StoreError(f"{where} are recorded as present but missing on the disk")
        return values


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


def _table(columns: Mapping[str, NDArray[Any]]) -> ImageTable:
    return ImageTable(
        paths=[str(path) for path in columns["path"]],
        digests=columns["digest"].astype(np.uint8).reshape(-1, 32),
        sizes=columns["size"].astype(np.int32).reshape(-1, 2),
        states=columns["state"].astype(np.uint8),
        errors=[str(error) for error in columns["error"]],
        n_bytes=columns["bytes"].astype(np.int64),
        modified_ns=columns["modified"].astype(np.int64),
    )


def _some(rows: NDArray[np.int64]) -> str:
    return ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
