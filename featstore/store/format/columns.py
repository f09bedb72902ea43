"""The arrays of a store by name, and the values of the small ones: the columns of the images table, the records."""

import warnings
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from featstore.errors import FormatError, StoreError


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
