"""Writing a store: one writer at a time, whole shards only, and a commit record that is never ahead.

The order of a commit is the promise of the store: the shards of a row block reach the disk, then what was
learned of its images, and only then its rows are marked present. A process killed between any two of these
steps leaves rows that are absent, never rows that are wrong.
"""

import json
import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from featstore.errors import FormatError, LayoutError, LockedError, StoreWriteError
from featstore.store.files import DurableStore, cannot_write
from featstore.store.layout import TensorLayout
from featstore.store.reading import COLUMNS, FORMAT, ImageState, RowState, Store, arrays_of, open_store

BLOCK_ROWS = 64
TABLE_CHUNK = 16384  # rows in a chunk of the small arrays


@dataclass(frozen=True)
class NewImages:
    """Images to list: paths, (N, 32) SHA-256 digests, file sizes in bytes and modification times in ns."""

    paths: list[str]
    digests: NDArray[np.uint8]
    n_bytes: list[int]
    modified_ns: list[int]


@dataclass(frozen=True)
class SeenImages:
    """What decoding found out about the images of some rows."""

    rows: list[int]
    sizes: list[tuple[int, int]]
    states: list[ImageState]
    errors: list[str]


class Writer:
    """The one process that may change a store's records; a context manager that holds the store's lock.

    Raises:
        LockedError: another process is writing.
        FormatError: the path holds something that is not a store of this version.
        StoreWriteError: the disk refuses.
    """

    def __init__(self, path: Path, *, block_rows: int = BLOCK_ROWS) -> None:
        self.path = path
        self._block_rows = block_rows
        self._lock = FileLock(f"{path}.lock")
        self._holder = Path(f"{path}.lock.json")

    def __enter__(self) -> "Writer":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._holder.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}))
        except Timeout:
            raise LockedError(self._who_holds()) from None
        except OSError as error:
            self._lock.release()
            raise cannot_write(self.path, error) from error
        try:
            self._group = self._open_or_create()
            self.store = open_store(self.path)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def add_images(self, images: NewImages) -> None:
        """List images as new rows at the end of the table; every tensor grows with it."""
        first = len(self.store.images)
        n_rows = first + len(images.paths)
        values: dict[str, Any] = {
            "path": np.array(images.paths, dtype=object),
            "digest": images.digests,
            "size": 0,
            "error": "",
            "bytes": np.array(images.n_bytes, np.int64),
            "modified": np.array(images.modified_ns, np.int64),
            "state": ImageState.UNREAD,
        }
        for kind in ("rows", "tensors"):
            for array in arrays_of(self._group, kind).values():
                array.resize((n_rows, *array.shape[1:]))
        for name, (_, row_shape) in COLUMNS.items():
            array = self._array(f"images/{name}")
            array.resize((n_rows, *row_shape))
            array[first:n_rows] = values[name]
        self._reopen()

    def mark_gone(self, rows: list[int]) -> None:
        """These rows are of files whose bytes have changed since."""
        self._put("images/state", rows, [ImageState.GONE] * len(rows))
        self._reopen()

    def note_unchanged(self, rows: list[int], n_bytes: list[int], modified_ns: list[int]) -> None:
        """These files were touched but hold the same bytes."""
        self._put("images/bytes", rows, n_bytes)
        self._put("images/modified", rows, modified_ns)

    def ensure_tensor(self, layout: TensorLayout, dtype: str) -> None:
        """Create a tensor, or check that the one there has the same layout; one that holds nothing is replaced.

        Raises:
            LayoutError: the store holds something else under this name.
        """
        if layout.name in self.store.tensors:
            check_same_layout(layout, self.store)
            if not layout.differences(self.store[layout.name].layout):
                return
            for kind in ("rows", "tensors"):  # what a run that failed at once left behind: it holds nothing
                del self._group[f"{kind}/{layout.name}"]
        n_rows = len(self.store.images)
        if f"rows/{layout.name}" not in self._group:
            _create_column(self._group, f"rows/{layout.name}", "uint8", ())
        self._array(f"rows/{layout.name}").resize((n_rows,))
        self._group.create_array(
            f"tensors/{layout.name}",
            shape=(n_rows, *layout.row_shape),
            chunks=(1, *layout.row_shape),
            shards=(self.store.block_rows, *layout.row_shape),
            dtype=dtype,
            fill_value=float("nan"),  # what is not there must never look like a feature
            compressors=[Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=("image", *(f"{layout.name}_{axis}" for axis in layout.axes[1:])),
            attributes=layout.to_attributes(),
            config={"write_empty_chunks": True},
        )
        self._reopen()

    def record_run(self, names: list[str], provenance: Mapping[str, Any]) -> None:
        """Note on each tensor what this run ran on."""
        for name in names:
            array = self._array(f"tensors/{name}")
            earlier: Any = array.attrs.get("provenance", [])
            array.update_attributes({"provenance": [*earlier, {**provenance, "started": _now()}]})

    def commit(self, block: int, rows: Mapping[str, tuple[NDArray[Any], NDArray[np.uint8]]], images: SeenImages) -> int:
        """Commit one row block whole.

        Args:
            rows: by tensor, the (rows in the block, ...) features and their (rows in the block,) states.

        Returns:
            The number of feature bytes written.
        """
        start = block * self.store.block_rows
        n_bytes = 0
        for name, (features, _) in rows.items():
            self._array(f"tensors/{name}")[start : start + len(features)] = features
            n_bytes += features.nbytes
        if images.rows:
            self._put("images/size", images.rows, images.sizes)
            self._put("images/error", images.rows, np.array(images.errors, dtype=object))
            self._put("images/state", images.rows, images.states)
        for name, (_, states) in rows.items():
            self._array(f"rows/{name}")[start : start + len(states)] = states
        return n_bytes

    def _put(self, key: str, rows: list[int], values: Any) -> None:
        self._array(key).oindex[np.asarray(rows)] = np.asarray(values)

    def _array(self, key: str) -> "zarr.Array[Any]":
        array = self._group[key]
        assert isinstance(array, zarr.Array)
        return array.with_config({"write_empty_chunks": True})

    def _open_or_create(self) -> zarr.Group:
        try:
            open_store(self.path)
        except FormatError:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise  # something else lives here: leave it alone
            self._create()
        return zarr.open_group(DurableStore(self.path), mode="r+", zarr_format=3)

    def _create(self) -> None:
        """A new empty store appears whole: it is made beside its place and renamed into it."""
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            attributes = {"featstore": {"format": FORMAT, "block_rows": self._block_rows}}
            group = zarr.create_group(DurableStore(part), zarr_format=3, attributes=attributes)
            for name in ("images", "tensors", "rows"):
                group.create_group(name)
            for name, (dtype, row_shape) in COLUMNS.items():
                _create_column(group, f"images/{name}", dtype, row_shape)
            part.rename(self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _reopen(self) -> None:
        self.store = open_store(self.path)

    def _release(self) -> None:
        with suppress(OSError):  # the disk may have become read-only; the lock itself is the kernel's
            self._holder.unlink(missing_ok=True)
        self._lock.release()

    def _who_holds(self) -> str:
        try:
            holder = json.loads(self._holder.read_text())
            who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            who = "another process"
        return f"store {self.path} is being written by {who}; wait for it to end, or stop it and run this again"


def _create_column(group: zarr.Group, key: str, dtype: str, row_shape: tuple[int, ...]) -> None:
    group.create_array(
        key,
        shape=(0, *row_shape),
        chunks=(TABLE_CHUNK, *row_shape),
        dtype=dtype,
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("image", *(f"{key.partition('/')[2]}_{i}" for i in range(len(row_shape)))),
    )


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
            + "\ngive this tensor another name (--tensor NAME=...) or use another --store; nothing was changed"
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


__all__ = ["NewImages", "RowState", "SeenImages", "Writer", "check_same_layout", "check_space"]
