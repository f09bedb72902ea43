"""Rows of tensors that are compressed or far away, through the fastest library that reaches them.

That is TensorStore, by measurement (docs/benchmarks.md); zarr itself where TensorStore has no driver.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from featstore.errors import StoreError
from featstore.store.shards import Verify, as_bytes

CACHE_BYTES = 32_000_000  # holds the indices of shards between reads


class LibraryRows:
    """The rows of one tensor, read by a library.

    Args:
        kvstore: how TensorStore reaches the tensor's folder, if it can.
    """

    def __init__(self, array: "zarr.Array[Any]", kvstore: Mapping[str, Any] | None, name: str) -> None:
        self._name = name
        self._read = _zarr_reader(array) if kvstore is None else _tensorstore_reader(kvstore, name)

    def read(self, rows: NDArray[np.int64], out: NDArray[Any], *, unchecked: NDArray[np.bool_], verify: Verify) -> None:
        """Read rows into `out`, in the order asked for; see `MappedShards.read`. Every row is verified every time.

        Raises:
            StoreError: a chunk is missing or damaged, or the library cannot reach it; says what it said.
        """
        try:
            self._read(rows, out)
        except (ValueError, OSError, IndexError, RuntimeError) as error:
            raise StoreError(f"{self._name} cannot be read: {error}") from error
        for place, values in enumerate(as_bytes(out)):
            verify(place, values)


def _zarr_reader(array: "zarr.Array[Any]") -> Any:
    def read(rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        for start, stop in _runs(rows):
            first = int(rows[start])
            out[start:stop] = np.asarray(array[first : first + stop - start])

    return read


def _tensorstore_reader(kvstore: Mapping[str, Any], name: str) -> Any:
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": dict(kvstore), "fill_missing_data_reads": False}
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    try:
        array = tensorstore.open(spec, context=context, read=True, open=True).result()
    except (ValueError, OSError, RuntimeError) as error:
        raise StoreError(f"{name} cannot be opened: {error}") from error

    def read(rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        waiting = []
        for start, stop in _runs(rows):
            first = int(rows[start])
            waiting.append((start, stop, array[first : first + stop - start].read()))
        for start, stop, future in waiting:
            out[start:stop] = future.result()

    return read


def _runs(rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The stretches of consecutive rows, as places in `rows`."""
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return list(itertools.pairwise(cuts)) if len(rows) else []
