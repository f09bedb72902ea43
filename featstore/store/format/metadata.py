"""The Zarr documents that a store consists of: written when it is made, expected when it is checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from featstore.store.format.images import COLUMNS
from featstore.store.format.integrity import DOCUMENT, FORMAT, SealedStore
from featstore.store.format.layout import TensorLayout, blank

BLOCK_ROWS = 64
TABLE_CHUNK = 16384  # rows in a chunk of the small arrays
PARTS = ("tensors", "rows", "checksums")
"""What a tensor consists of: its array, its commit record, and the checksum of each row."""

Compression = Literal["zstd", "blosc"]


@dataclass(frozen=True)
class TensorFacts:
    """All that decides the documents of a tensor."""

    layout: TensorLayout
    dtype: str
    compress: Compression | None = None


def skeleton(*, block_rows: int, n_rows: int, tensors: Sequence[TensorFacts] = ()) -> dict[str, bytes]:
    """By key, the `zarr.json` of every group and array of a store; the root comes last."""
    files: dict[str, Any] = {}
    store = SealedStore(MemoryStore(files), "a new store")
    attributes = {"featstore": {"format": FORMAT, "block_rows": block_rows}}
    group = zarr.create_group(store, zarr_format=3, attributes=attributes)
    for name in ("images", *PARTS):
        group.create_group(name)
    for name, (dtype, row_shape) in COLUMNS.items():
        create_column(group, f"images/{name}", dtype, row_shape, n_rows=n_rows)
    for facts in tensors:
        create_tensor(group, facts, n_rows=n_rows, block_rows=block_rows)
    root = files.pop(DOCUMENT)
    return {key: data.to_bytes() for key, data in {**files, DOCUMENT: root}.items()}


def create_column(
    group: zarr.Group,
    key: str,
    dtype: str,
    row_shape: tuple[int, ...],
    *,
    n_rows: int,
    attributes: dict[str, Any] | None = None,
) -> None:
    """One of the small arrays: a value of each row."""
    group.create_array(
        key,
        shape=(n_rows, *row_shape),
        chunks=(TABLE_CHUNK, *row_shape),
        dtype=dtype,
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("image", *(f"{key.partition('/')[2]}_{i}" for i in range(len(row_shape)))),
        attributes=attributes,
    )


def create_tensor(group: zarr.Group, facts: TensorFacts, *, n_rows: int, block_rows: int) -> None:
    """The arrays of a tensor: a shard is a row block, an inner chunk is a row."""
    layout, dtype = facts.layout, facts.dtype
    # The record repeats what describes the array, so that either can be written anew from the other.
    described = {
        **layout.to_attributes(),
        "row_shape": list(layout.row_shape),
        "dtype": dtype,
        "compress": facts.compress,
    }
    create_column(group, f"rows/{layout.name}", "uint8", (), n_rows=n_rows, attributes=described)
    create_column(group, f"checksums/{layout.name}", "uint32", (), n_rows=n_rows)
    squeeze: dict[str | None, list[Any]] = {
        None: [],
        "zstd": [ZstdCodec(level=1)],
        "blosc": [BloscCodec(cname="zstd", clevel=1, typesize=np.dtype(dtype).itemsize)],
    }
    group.create_array(
        f"tensors/{layout.name}",
        shape=(n_rows, *layout.row_shape),
        chunks=(1, *layout.row_shape),
        shards=(block_rows, *layout.row_shape),
        dtype=dtype,
        fill_value=blank(np.dtype(dtype)),
        compressors=[*squeeze[facts.compress], Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("image", *(f"{layout.name}_{axis}" for axis in layout.axes[1:])),
        attributes=described,
        config={"write_empty_chunks": True},
    )
