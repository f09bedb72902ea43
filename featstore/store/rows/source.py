"""Where the rows of a tensor come from: its shards, mapped or fetched, or a library that reads them for us.

A shard of a shared repository is checked whole before it is kept on this machine: it outlives the process that fetched
it, and another one trusts it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from featstore.store.format.images import RowState
from featstore.store.format.shard import ShardError
from featstore.store.rows.fetched import FetchedShards
from featstore.store.rows.library import LibraryRows
from featstore.store.rows.shards import MappedShards, OpenShard, ShardRows, Shards

if TYPE_CHECKING:
    from featstore.store.tensor import StoredTensor


def source_of(tensor: "StoredTensor", array: "zarr.Array[Any]") -> ShardRows | LibraryRows:
    """The fastest way to the rows: the shards themselves, or a library for what is compressed or in a bucket."""
    location = tensor.store.location
    if tensor.compression is None and (location.folder is not None or location.remote):
        sizes: Any = {"row_bytes": tensor.row_bytes, "block_rows": tensor.store.block_rows}
        return ShardRows(_shards(tensor, sizes), **sizes, name=str(tensor))
    kvstore = location.kvstore
    if kvstore is not None:
        kvstore = {**kvstore, "path": f"{kvstore.get('path', '')}tensors/{tensor.name}/"}
    return LibraryRows(array, kvstore, str(tensor))


def _shards(tensor: "StoredTensor", sizes: Any) -> Shards:
    store, key = tensor.store, f"tensors/{tensor.name}/c.{{}}" + ".0" * len(tensor.layout.row_shape)
    location, keep_mapped = store.location, store.keep_mapped
    if location.folder is not None:
        folder = location.folder
        return MappedShards(lambda block: folder / key.format(block), **sizes, keep_mapped=keep_mapped)
    fetched = FetchedShards(location.zarr_store, key.format, **sizes)
    cache = location.blocks
    if cache is None:
        return fetched

    def file_of(block: int) -> Path:
        return cache.file(
            _facts(tensor, block),
            lambda: _checked(tensor, block, fetched.fetch(block)),
            lambda kept: _checked(tensor, block, kept),
        )

    return MappedShards(file_of, **sizes, keep_mapped=keep_mapped)


def _checked(tensor: "StoredTensor", block: int, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A shard that came from far away, if all of its rows are what they should be: it will be kept."""
    first, n_rows = block * tensor.store.block_rows, tensor.store.block_rows
    shard = OpenShard(f"block {block}", data, block_rows=n_rows, row_bytes=tensor.row_bytes)
    for within in np.flatnonzero(tensor.states[first : first + n_rows] == RowState.PRESENT).tolist():
        values = shard.row(within)
        if values is None or google_crc32c.value(values) != tensor.checksums[first + within]:
            raise ShardError(f"row {first + within} is not what was computed for it")
    return data


def _facts(tensor: "StoredTensor", block: int) -> bytes:
    """All that says what the shard of a block holds."""
    store = tensor.store
    rows = slice(block * store.block_rows, (block + 1) * store.block_rows)
    shape = [str(tensor.dtype), store.block_rows, *tensor.layout.row_shape]
    names = [segment.hash for segment in tensor.layout.segments]
    return (
        json.dumps([store.location.repository, shape, names]).encode()
        + tensor.states[rows].tobytes()
        + tensor.checksums[rows].tobytes()
    )
