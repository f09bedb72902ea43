"""Where the rows of a tensor come from: its shards, mapped, fetched whole, or read by byte ranges.

A shard of a shared repository is checked whole before it is kept on this machine: it outlives the process that fetched
it, and another one trusts it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from featstore.errors import FormatError
from featstore.store.format.images import RowState
from featstore.store.format.metadata import TensorFacts
from featstore.store.format.shard import ShardError
from featstore.store.places.place import Location
from featstore.store.rows.decoding import DECODERS
from featstore.store.rows.fetched import FetchedShards
from featstore.store.rows.ranged import RangedRows
from featstore.store.rows.shards import MappedShards, OpenShard, ShardRows, Shards

RowReader = ShardRows | RangedRows
"""What reads the rows of a tensor."""


@dataclass(frozen=True)
class RowFacts:
    """Where the rows of a tensor are, and what they should be."""

    name: str
    """What messages call the tensor."""
    location: Location
    tensor: TensorFacts
    block_rows: int
    states: NDArray[np.uint8]
    checksums: NDArray[np.uint32]

    @property
    def sizes(self) -> dict[str, Any]:
        return {"row_bytes": self.tensor.layout.row_bytes(self.tensor.dtype), "block_rows": self.block_rows}


def source_of(facts: RowFacts, *, keep_mapped: bool) -> RowReader:
    """The fastest way to the rows: files as they are, or byte ranges of what is compressed or not a folder.

    Raises:
        FormatError: they are compressed in a way that is not ours.
    """
    location, compress = facts.location, facts.tensor.compress
    if compress is None and (location.folder is not None or location.remote):
        return ShardRows(_shards(facts, keep_mapped), **facts.sizes, name=facts.name)
    decode = DECODERS.get(str(compress))
    if compress is not None and decode is None:
        raise FormatError(f"{facts.name} is compressed with {compress!r}; rows of {' and '.join(DECODERS)} are read")
    key_of = facts.tensor.layout.shard_key
    return RangedRows(location.ranges, key_of, **facts.sizes, decode=decode, name=facts.name)


def _shards(facts: RowFacts, keep_mapped: bool) -> Shards:
    location, key_of = facts.location, facts.tensor.layout.shard_key
    if location.folder is not None:
        folder = location.folder
        return MappedShards(lambda block: folder / key_of(block), **facts.sizes, keep_mapped=keep_mapped)
    fetched = FetchedShards(location.zarr_store, key_of, **facts.sizes)
    cache = location.blocks
    if cache is None:
        return fetched

    def file_of(block: int) -> Path:
        return cache.file(
            _fingerprint(facts, block),
            lambda: _checked(facts, block, fetched.fetch(block)),
            lambda kept: _checked(facts, block, kept),
        )

    return MappedShards(file_of, **facts.sizes, keep_mapped=keep_mapped)


def _checked(facts: RowFacts, block: int, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A shard that came from far away, if all of its rows are what they should be: it will be kept."""
    first = block * facts.block_rows
    shard = OpenShard(f"block {block}", data, **facts.sizes)
    for within in np.flatnonzero(facts.states[first : first + facts.block_rows] == RowState.PRESENT).tolist():
        values = shard.row(within)
        if values is None or google_crc32c.value(values) != facts.checksums[first + within]:
            raise ShardError(f"row {first + within} is not what was computed for it")
    return data


def _fingerprint(facts: RowFacts, block: int) -> bytes:
    """All that says what the shard of a block holds."""
    rows = slice(block * facts.block_rows, (block + 1) * facts.block_rows)
    shape = [facts.tensor.dtype, facts.block_rows, *facts.tensor.layout.row_shape]
    names = [segment.hash for segment in facts.tensor.layout.segments]
    return (
        json.dumps([facts.location.repository, shape, names]).encode()
        + facts.states[rows].tobytes()
        + facts.checksums[rows].tobytes()
    )
