"""Small stores of made-up features, for the tests of sharing."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.extraction.rows import ShardBuffer
from featstore.store import (
    ImageState,
    NewImages,
    RowState,
    Store,
    StoredSegment,
    TensorLayout,
    Writer,
    open_store,
    verify,
)
from featstore.store.places.place import Place

BLOCK_ROWS = 4


def segment(name: str, *, width: int = 5, **facts: Any) -> StoredSegment:
    identity = {"architecture": name, "weights": {"sha256": "ab"}, "dtype": "float16", "arithmetic": "fp32", **facts}
    return StoredSegment(name, identity, 2, width)


GRID = TensorLayout("grid", "stack", (segment("a", width=3), segment("b")), width=6)
WHOLE = TensorLayout("whole", "concat", (segment("a"), segment("b")))


def digest_of(photo: str) -> bytes:
    return hashlib.sha256(photo.encode()).digest()


def features_of(photo: str, layout: TensorLayout, seed: int = 0) -> NDArray[Any]:
    """What every machine computes of a photo, unless its seed says otherwise."""
    rng = np.random.default_rng([*digest_of(photo), len(layout.name), seed])
    row = np.empty(layout.row_shape, np.float16)
    layout.assemble(row, {s.hash: rng.normal(size=(s.n_blocks, s.width)) for s in layout.segments})
    return row


def make_store(
    place: Place,
    photos: Iterable[str] | Mapping[str, str],
    *,
    layouts: tuple[TensorLayout, ...] = (GRID, WHOLE),
    seed: int = 0,
    block_rows: int = BLOCK_ROWS,
    compress: Any = None,
) -> Place:
    """A store with features of photos: their paths, or by path what is on them (else the path itself)."""
    shown = dict(photos) if isinstance(photos, Mapping) else {path: path for path in photos}
    with Writer(place, block_rows=block_rows) as writer:
        known = writer.store.images.rows_by_path
        new = [path for path in shown if path not in known]
        digests = np.array([list(digest_of(shown[path])) for path in new], np.uint8).reshape(-1, 32)
        if new:
            writer.add_images(NewImages(new, digests, [100] * len(new), [1] * len(new)))
        for layout in layouts:
            writer.ensure_tensor(layout, "float16", compress=compress)
        rows = writer.store.images.rows_by_path
        for number in sorted({rows[path] // block_rows for path in shown}):
            block = ShardBuffer(number, writer.store, list(layouts))
            for path, row in rows.items():
                if path in shown and row // block_rows == number:
                    block.note(row, (40, 60), ImageState.READABLE, "")
                    for layout in block.lacking(row):
                        block.features[layout.name][row - block.start] = features_of(shown[path], layout, seed)
                        block.states[layout.name][row - block.start] = RowState.PRESENT
            put = {name: (block.features[name], block.states[name]) for name in block.features}
            writer.commit(number, put, block.seen)
        writer.record_run([layout.name for layout in layouts], {"device": "cpu", "photos": "/home/anna/photos"})
    return place


def held(place: Place, name: str = "grid") -> dict[str, bytes]:
    """By path, the values of each present row."""
    tensor = open_store(place)[name]
    return {path: tensor.read([row])[0].tobytes() for path, row in zip(tensor.paths, tensor.rows, strict=True)}


def expected(photos: Iterable[str], layout: TensorLayout = GRID) -> dict[str, bytes]:
    return {photo: features_of(photo, layout).tobytes() for photo in photos}


def check_sound(place: Place) -> Store:
    found = verify(place)
    assert found.sound, list(map(str, found.findings))
    assert not found.findings or "://" in str(place), list(map(str, found.findings))
    return open_store(place)


def photos(first: int, last: int, folder: str = "") -> list[str]:
    return [f"{folder}photo {i}.jpg" for i in range(first, last)]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
