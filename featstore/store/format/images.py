"""The images table: one row per image, its columns, and how the small arrays of a store are read.

The small arrays are the columns of this table and, for each tensor, its commit record and the checksums of its rows.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from featstore.errors import FormatError, StoreError

if TYPE_CHECKING:
    import pandas

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
    """Decoded; its height and width are known."""
    UNREADABLE = 2
    """Its `error` says why."""
    GONE = 3
    """No longer a photo of this store: a newer row has its path, or it was pruned."""


class RowState(IntEnum):
    """The commit record of one row of one tensor."""

    ABSENT = 0
    """Not computed yet, or found damaged."""
    PRESENT = 1
    """Its features are there."""
    FAILED = 2
    """Its photo cannot be read."""


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

    def __repr__(self) -> str:
        return f"<ImageTable: {len(self)} images; .pandas() is a table>"

    def pandas(self) -> "pandas.DataFrame":
        """A table whose row is an image's: path, state (`ImageState` in words), height, width, error."""
        import pandas

        height, width = self.sizes.T
        states = [ImageState(state).name.lower() for state in self.states]
        facts = {"path": self.paths, "state": states, "height": height, "width": width, "error": self.errors}
        return pandas.DataFrame(facts)

    @cached_property
    def rows_by_path(self) -> dict[str, int]:
        """The current row of each path; rows that are gone are left out."""
        return {path: row for row, path in enumerate(self.paths) if self.states[row] != ImageState.GONE}

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[Any]]) -> "ImageTable":
        return cls(
            paths=[str(path) for path in columns["path"]],
            digests=columns["digest"].astype(np.uint8).reshape(-1, 32),
            sizes=columns["size"].astype(np.int32).reshape(-1, 2),
            states=columns["state"].astype(np.uint8),
            errors=[str(error) for error in columns["error"]],
            n_bytes=columns["bytes"].astype(np.int64),
            modified_ns=columns["modified"].astype(np.int64),
        )


@dataclass(frozen=True)
class NewImages:
    """Images to list: paths, (N, 32) SHA-256 digests, file sizes in bytes and modification times in ns."""

    paths: list[str]
    digests: NDArray[np.uint8]
    n_bytes: list[int]
    modified_ns: list[int]


@dataclass(frozen=True)
class SeenImages:
    """What decoding found out about the images of some rows."""

    rows: list[int]
    sizes: list[tuple[int, int]]
    states: list[ImageState]
    errors: list[str]

    @classmethod
    def joined(cls, parts: Sequence["SeenImages"]) -> "SeenImages":
        return cls(
            [row for part in parts for row in part.rows],
            [size for part in parts for size in part.sizes],
            [state for part in parts for state in part.states],
            [error for part in parts for error in part.errors],
        )


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


def read_record(array: "zarr.Array[Any]", n_rows: int, where: str) -> NDArray[Any]:
    """The first `n_rows` of a record; what it has not grown to yet is zero."""
    record = np.zeros(n_rows, array.dtype)
    known = read_head(array, n_rows, where)
    record[: len(known)] = known
    return record


def read_head(array: "zarr.Array[Any]", n_rows: int, where: str) -> NDArray[Any]:
    """The first `n_rows` of a column, or as many as there are.

    Raises:
        StoreError: it cannot be read, or decoded.
    """
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
