"""What is refused while nothing is written: features unlike those that are there, and more than there is room for."""

import math
import shutil
from pathlib import Path

import numpy as np

from featstore.errors import LayoutError, StoreWriteError
from featstore.store.format.images import RowState
from featstore.store.format.layout import TensorLayout
from featstore.store.format.limits import MAX_BLOCK_BYTES
from featstore.store.store import Store


def check_same_layout(layout: TensorLayout, store: Store) -> None:
    """Refuse to write features into a tensor that holds other features.

    Raises:
        LayoutError: says in words what differs and how to go on.
    """
    tensor = store[layout.name]
    differing = layout.differences(tensor.layout)
    if differing and (tensor.states == RowState.PRESENT).any():
        raise LayoutError(
            f"tensor {layout.name!r} in {store.path} holds other features:\n"
            + "\n".join(f"  - {text}" for text in differing)
            + "\n--replace computes what differs and copies the rest; or give the new tensor another name "
            "(--tensor NAME=...), or use another --store; nothing was changed"
        )


def check_room_in_memory(layout: TensorLayout, dtype: str, block_rows: int) -> None:
    """Refuse a tensor that could be written and never be opened.

    Raises:
        LayoutError: a row block is larger than any that is read.
    """
    n_bytes = block_rows * math.prod(layout.row_shape) * np.dtype(dtype).itemsize
    if n_bytes > MAX_BLOCK_BYTES:
        raise LayoutError(
            f"tensor {layout.name!r}: a block of {block_rows} rows of {layout.row_shape} {dtype} takes "
            f"{n_bytes / 1e9:.1f} GB; at most {MAX_BLOCK_BYTES / 1e9:.1f} GB are kept together: take fewer backbones, "
            "blocks or copies, or make several tensors of them; nothing was written"
        )


def check_space(path: Path, n_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        StoreWriteError: fewer bytes are free than the features will take.
    """
    folder = next(each for each in (path, *path.absolute().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise StoreWriteError(
            f"the features will take {n_bytes / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free; "
            "free some space or choose another --store; nothing was written"
        )
