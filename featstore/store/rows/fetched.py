"""Shards of a shared repository that are fetched whole, a row block in one request, and read from memory."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from featstore.store.format.shard import ShardError, check_size, shard_limit
from featstore.store.rows.shards import OpenShard

KEPT_IN_MEMORY = 4


class FetchedShards:
    """Shards that are read straight into memory; the last few are kept there."""

    def __init__(self, store: ZarrStore, key_of: Callable[[int], str], *, row_bytes: int, block_rows: int) -> None:
        self._store, self._key_of, self._row_bytes, self._block_rows = store, key_of, row_bytes, block_rows
        self._limit = shard_limit(row_bytes, block_rows)
        self._kept: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = Lock()

    def open(self, block: int) -> OpenShard:
        """As `Shards.open`."""
        with self._lock:
            if block in self._kept:
                self._kept.move_to_end(block)
                return self._kept[block]
        name, contents = self._key_of(block), self.fetch(block)
        shard = OpenShard(name, contents, block_rows=self._block_rows, row_bytes=self._row_bytes)
        with self._lock:
            self._kept[block] = shard
            while len(self._kept) > KEPT_IN_MEMORY:
                self._kept.popitem(last=False)
        return shard

    def fetch(self, block: int) -> NDArray[np.uint8]:
        """The bytes of a shard.

        Raises:
            ShardError: it is missing, or larger than it can be.
        """
        key = self._key_of(block)
        check_size(key, sync(self._store.getsize(key)), self._limit)
        data = sync(self._store.get(key, default_buffer_prototype()))
        if data is None:
            raise ShardError(f"{key} is missing")
        return np.asarray(data.as_numpy_array()).view(np.uint8)  # no copy
