"""A store whose shards are as large as real ones, 6 MiB: what is small may go well where what is large does not."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from featstore.store import ImageState, NewImages, RowState, SeenImages, StoredSegment, TensorLayout, Writer
from featstore.store.format.metadata import Compression
from featstore.store.places.place import Place

N_ROWS, BLOCK_ROWS, N_BLOCKS, WIDTH = 12, 8, 16, 24576
LAYOUT = TensorLayout("big", "concat", (StoredSegment("a", {"architecture": "a"}, N_BLOCKS, WIDTH),))
SHARDS = ("tensors/big/c.0.0", "tensors/big/c.1.0")


@cache
def values() -> NDArray[np.float16]:
    """(rows, features), half of them noise, which no codec makes smaller."""
    made = np.random.default_rng(0).normal(size=(N_ROWS, *LAYOUT.row_shape)).astype(np.float16)
    made[:, ::2] = 0
    return made


def write_large(place: Place, compress: Compression | None = None) -> None:
    with Writer(place, block_rows=BLOCK_ROWS) as writer:
        n = N_ROWS
        writer.add_images(NewImages([f"{i}.jpg" for i in range(n)], np.zeros((n, 32), np.uint8), [1] * n, [1] * n))
        writer.ensure_tensor(LAYOUT, "float16", compress=compress)
        for block, start in enumerate(range(0, n, BLOCK_ROWS)):
            here = list(range(n))[start : start + BLOCK_ROWS]
            seen = SeenImages(here, [(40, 60)] * len(here), [ImageState.READABLE] * len(here), [""] * len(here))
            writer.commit(block, {"big": (values()[here], np.full(len(here), RowState.PRESENT, np.uint8))}, seen)


@cache
def large_keys(compress: Compression | None = None) -> dict[str, bytes]:
    """All files of such a store by their keys."""
    files: dict[str, object] = {}
    write_large(MemoryStore(files), compress)  # type: ignore[arg-type]
    return {key: data.to_bytes() for key, data in files.items()}  # type: ignore[attr-defined]
