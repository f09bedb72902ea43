"""Rows of tensors that are compressed or far away, read by the fastest library that reaches them.

That is TensorStore, by measurement (docs/benchmarks.md); zarr itself where TensorStore has no driver.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from featstore.errors import StoreError
from featstore.store.format.shard import as_bytes
from featstore.store.rows.shards import Verify

CACHE_BYTES = 32_000_000  # holds the indices of shards between reads


class LibraryRows:
    """The rows of one tensor, read by a library.

    Args:
        kvstore: how TensorStore reaches the tensor's folder, if it can.
    """

    def __init__(self, array: "zarr.Array[Any]", kvstore: Mapping[str, Any] | None, name: str) -> None:
        self._name, self._process = name, os.getpid()
        self._read = _zarr_reader(array) if kvstore is None else _tensorstore_reader(kvstore, name)

    def read(self, rows: NDArray[np.int64], out: NDArray[Any], *, verify: Verify) -> None:
        """Read rows into `out`, in the order asked for; see `ShardRows.read`. Every row is verified every time.

        Raises:
            StoreError: a chunk is missing or damaged, or the library cannot reach it; says what it said.
        """
        if os.getpid() != self._process:
            raise StoreError(
                f"{self._name} is compressed or far away, and was read before this process was forked: the library's "
                "threads are not here; use multiprocessing_context='spawn', or no worker processes"
            )
        try:
            self._read(rows, out)
        except (ValueError, OSError, IndexError, RuntimeError) as error:
            raise StoreError(f"{self._name} cannot be read: {error}") from error
        for place, values in enumerate(as_bytes(out)):
            verify(place, values)

    def whole(self, block: int, checksums: NDArray[np.uint32]) -> NDArray[np.uint8] | None:
        """As `ShardRows.whole`: a library hands out no shard as it is stored."""
        return None


def _zarr_reader(array: "zarr.Array[Any]") -> Any:
    def read(rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        for places, start, stop in _runs(rows):
            out[places] = np.asarray(array[start:stop])

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
        waiting = [(places, array[start:stop].read()) for places, start, stop in _runs(rows)]
        for places, future in waiting:
            out[places] = future.result()

    return read


def _runs(rows: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], int, int]]:
    """Stretches of consecutive rows, whatever the order asked for: their places in it, the first and the end."""
    order = np.argsort(rows, kind="stable")
    cuts = np.flatnonzero(np.diff(rows[order]) != 1) + 1
    return [(run, int(rows[run[0]]), int(rows[run[-1]]) + 1) for run in np.split(order, cuts) if len(run)]
