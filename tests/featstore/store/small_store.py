"""A small store of two tensors whose every value is known: what it should hold, and how it is made."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.store import ImageState, NewImages, RowState, SeenImages, StoredSegment, TensorLayout, Writer, open_store

BLOCK_ROWS = 4

PRESENT = RowState.PRESENT


def segment(name: str, *, n_blocks: int, width: int, weights: str = "ab") -> StoredSegment:
    return StoredSegment(name, {"architecture": name, "weights": {"sha256": weights}}, n_blocks, width)


STACK = TensorLayout("grid", "stack", (segment("a", n_blocks=2, width=3), segment("b", n_blocks=2, width=5)), width=6)

CONCAT = TensorLayout("whole", "concat", (segment("a", n_blocks=1, width=3), segment("b", n_blocks=2, width=5)))

LAYOUTS = (STACK, CONCAT)


def features_of(row: int, layout: TensorLayout) -> NDArray[np.float16]:
    """What the oracle says is in this row."""
    out = np.empty(layout.row_shape, np.float16)
    rng = np.random.default_rng([row, len(layout.name)])
    layout.assemble(out, {s.hash: rng.normal(size=(s.n_blocks, s.width)) for s in layout.segments})
    return out


def list_images(writer: Writer, n_images: int) -> None:
    """List images until there are `n_images` of them."""
    new = range(len(writer.store.images), n_images)
    writer.add_images(
        NewImages(
            [f"photo {row}.jpg" for row in new],
            np.array([[row] * 32 for row in new], np.uint8),
            [1000 + row for row in new],
            list(new),
        )
    )


def commit(writer: Writer, block: int, *, layouts: tuple[TensorLayout, ...] = LAYOUTS) -> None:
    """Commit a row block, every row of it present."""
    rows = list(range(len(writer.store.images)))[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
    values = {layout.name: np.stack([features_of(row, layout) for row in rows]) for layout in layouts}
    states = np.full(len(rows), PRESENT, np.uint8)
    seen = SeenImages(rows, [(40, 60)] * len(rows), [ImageState.READABLE] * len(rows), [""] * len(rows))
    writer.commit(block, {name: (each, states) for name, each in values.items()}, seen)


def fill(path: Path, *, n_images: int = 10) -> None:
    """Bring a store to `n_images` rows, all present, doing only what is not done: a run, or the run after it."""
    with Writer(path, block_rows=BLOCK_ROWS) as writer:
        if len(writer.store.images) < n_images:
            list_images(writer, n_images)
        for layout in LAYOUTS:
            writer.ensure_tensor(layout, "float16")
        for block in range(-(-n_images // BLOCK_ROWS)):
            rows = slice(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)
            if any((writer.store[layout.name].states[rows] != PRESENT).any() for layout in LAYOUTS):
                commit(writer, block)


def assert_sound(path: Path) -> None:
    """Everything marked present is right."""
    store = open_store(path)
    for layout in LAYOUTS:
        if layout.name in store.tensors:
            tensor = store[layout.name]
            for row, values in zip(tensor.rows, tensor.read(tensor.rows), strict=True):
                assert np.array_equal(values, features_of(int(row), layout))


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def open_writer(path: Path) -> None:
    with Writer(path):
        pass
