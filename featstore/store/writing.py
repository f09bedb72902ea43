"""Writing a store: one writer at a time, whole shards only, and a commit record that is never ahead.

The order of a commit is the promise of the store: the shards of a row block, the checksums of its rows and what was
learned of its images reach the disk side by side, and only when all of them are there its rows are marked present. A
process killed at any moment of it leaves rows that are absent, never rows that are wrong.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from featstore.errors import FormatError, LayoutError, StoreError, StoreWriteError, suggest
from featstore.store.anatomy import list_keys
from featstore.store.files import cannot_write, sync_folder, write_durably
from featstore.store.layout import TensorLayout
from featstore.store.location import Location, Place, locate, reaching
from featstore.store.lock import WriterLock
from featstore.store.reading import Store, arrays_of, open_store
from featstore.store.seals import DOCUMENT, SealedStore, prototype_buffer
from featstore.store.shards import row_checksums, shard_parts
from featstore.store.skeleton import BLOCK_ROWS, PARTS, Compression, TensorFacts, create_tensor, skeleton
from featstore.store.table import COLUMNS, ImageState, RowState

Rows = list[int] | NDArray[np.int64]


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
    """The one process that may change a store; a context manager that holds the store's lock.

    Args:
        block_rows: of a new store.
        before_opening: what to do under the lock with a store that may not open as it is.

    Raises:
        LockedError: another process is writing.
        FormatError: the place holds something that is not a store of this version.
        StoreWriteError: the disk refuses.
    """

    def __init__(
        self,
        place: Place,
        *,
        block_rows: int = BLOCK_ROWS,
        before_opening: Callable[[Location], None] | None = None,
    ) -> None:
        self._place = place
        self._before_opening = before_opening
        self._location = locate(place, writable=True)
        self.path = self._location.name
        self._block_rows = block_rows
        self._lock = WriterLock(self._location)
        self._sealed = SealedStore(self._location.zarr_store, self.path)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self.notice = ""
        """What became of an earlier writer that died at work."""

    def __enter__(self) -> "Writer":
        folder = self._location.folder
        if folder is not None:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error) from error
        with reaching(self.path):
            self.notice = self._lock.acquire()
        try:
            if self._before_opening is not None:
                self._before_opening(self._location)
            self._group = self._open_or_create()
            self._sealed.settle()
            self.reopen()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with suppress(StoreError):  # a disk that refuses has said so before; the next writer does it
                if self._lock.is_mine():
                    self._sealed.settle()
        finally:
            self._lock.release()

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
        with self._transaction():
            for kind in PARTS:
                for array in arrays_of(self._group, kind).values():
                    array.resize((n_rows, *array.shape[1:]))
            for name, (_, row_shape) in COLUMNS.items():
                array = self.array(f"images/{name}")
                array.resize((n_rows, *row_shape))
                array[first:n_rows] = values[name]
        self.reopen()

    def amend(self, changes: Mapping[str, tuple[Rows, Any]]) -> None:
        """Change values of the small arrays, all together; by array (`images/state`), rows and their values."""
        with self._transaction():
            for key, (rows, values) in changes.items():
                self._put(key, rows, values)
        self.reopen()

    def set_image_states(self, rows: list[int], state: ImageState) -> None:
        """As when the bytes of a file have changed, or its photo is to be looked at again."""
        self.amend({"images/state": (rows, [state] * len(rows))})

    def set_row_states(self, name: str, rows: list[int], state: RowState) -> None:
        """Mark rows of a tensor absent, say: `extract` computes them again."""
        self.amend({f"rows/{name}": (rows, [state] * len(rows))})

    def note_unchanged(self, rows: list[int], n_bytes: list[int], modified_ns: list[int]) -> None:
        """These files were touched but hold the same bytes."""
        self.amend({"images/bytes": (rows, n_bytes), "images/modified": (rows, modified_ns)})

    def delete(self, key: str) -> None:
        """Delete a file that is no part of the store."""
        self._lock.check()
        sync(self._location.zarr_store.delete(key))

    def ensure_tensor(self, layout: TensorLayout, dtype: str, *, compress: Compression | None = None) -> None:
        """Create a tensor, or check that the one there has the same layout; one that holds nothing is replaced.

        Raises:
            LayoutError: the store holds something else under this name.
        """
        if layout.name in self.store.tensors:
            check_same_layout(layout, self.store)
            if not layout.differences(self.store[layout.name].layout):
                return
        self.remove(layout.name)  # what a run that failed at once left behind: it holds nothing
        n_rows = len(self.store.images)
        facts = TensorFacts(layout, dtype, compress)
        create_tensor(self._group, facts, n_rows=n_rows, block_rows=self.store.block_rows)
        self.reopen()

    def has_parts_of(self, name: str) -> bool:
        """Whether there are files of a tensor, whole or not."""
        return any(list_keys(self._location.zarr_store, f"{kind}/{name}/") for kind in PARTS)

    def remove(self, name: str) -> int:
        """Take a tensor out of the store; returns the bytes that are free again.

        Once its parts are off the list of digests the tensor is not there; a process killed after that leaves
        files which the next writer of this name removes.
        """
        self._lock.check()
        store = self._location.zarr_store
        n_bytes = sum(int(sync(store.getsize_prefix(f"{kind}/{name}/"))) for kind in PARTS)
        self._sealed.forget([f"{kind}/{name}" for kind in PARTS])
        for kind in PARTS:
            sync(store.delete_dir(f"{kind}/{name}"))
        self.reopen()
        return n_bytes

    def set_aside(self, name: str) -> None:
        """Give a tensor another name, to be copied from until what replaces it is complete.

        Its shards are linked or copied and its rows recorded under the new name before the old name is free: a
        process killed in between leaves the tensor under one of them, or under both.
        """
        tensor = self.store[name]
        taken = [other for other in self.store if (self.store[other].states == RowState.PRESENT).any()]
        aside = next(n for n in (f"{name}_replaced{i or ''}" for i in itertools.count()) if n not in taken)
        self.remove(aside)
        facts = TensorFacts(replace(tensor.layout, name=aside), str(tensor.dtype), tensor.compression)
        create_tensor(self._group, facts, n_rows=len(tensor.states), block_rows=self.store.block_rows)
        self.array(f"tensors/{aside}").update_attributes({"replaced_by": name, "provenance": tensor.provenance})
        for key in list_keys(self._location.zarr_store, f"tensors/{name}/"):
            if not key.endswith(DOCUMENT):
                self._link(key, key.replace(f"tensors/{name}/", f"tensors/{aside}/", 1))
        if self._location.folder is not None:
            sync_folder(self._location.folder / "tensors" / aside)
        rows = np.arange(len(tensor.states))
        self.amend({f"checksums/{aside}": (rows, tensor.checksums), f"rows/{aside}": (rows, tensor.states)})
        self.remove(name)

    def remove_replaced(self, name: str) -> tuple[int, list[str]]:
        """Take out what was set aside for a tensor that is complete now.

        Returns:
            The bytes that are free again, and the tensors that are kept because they alone have rows of some photos.
        """
        old = [tensor for tensor in self.store.tensors.values() if tensor.replaced_by == name]
        if name not in self.store.tensors:  # a run was killed before it made the new one
            return 0, [tensor.name for tensor in old]
        filled = self.store[name].states != RowState.ABSENT
        current = self.store.images.states != ImageState.GONE
        kept = [each.name for each in old if ((each.states == RowState.PRESENT) & current & ~filled).any()]
        return sum(self.remove(each.name) for each in old if each.name not in kept), kept

    def record_run(self, names: list[str], provenance: Mapping[str, Any]) -> None:
        """Note on each tensor what this run ran on."""
        with self._transaction():
            for name in names:
                array = self.array(f"tensors/{name}")
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
        sums = {name: row_checksums(features) for name, (features, _) in rows.items()}
        with ThreadPoolExecutor(1) as pool:  # shards are most of the bytes; the small files need not wait for them
            shards = [pool.submit(self._write_shard, name, block, rows[name][0], sums[name]) for name in rows]
            with self._transaction(before_rows=lambda: [shard.result() for shard in shards]):
                for name, values in sums.items():
                    present = rows[name][1] == RowState.PRESENT
                    self.array(f"checksums/{name}")[start : start + len(values)] = np.where(present, values, 0)
                if images.rows:
                    self._put("images/size", images.rows, images.sizes)
                    if any(images.errors) or any(self.store.images.errors[row] for row in images.rows):
                        self._put("images/error", images.rows, np.array(images.errors, dtype=object))
                    self._put("images/state", images.rows, images.states)
                for name, (_, states) in rows.items():
                    self.array(f"rows/{name}")[start : start + len(states)] = states
        return sum(features.nbytes for features, _ in rows.values())

    def _write_shard(self, name: str, block: int, features: NDArray[Any], sums: NDArray[np.uint32]) -> None:
        if self.store[name].compression is not None:
            start = block * self.store.block_rows
            self.array(f"tensors/{name}")[start : start + len(features)] = features
            return
        parts = shard_parts(features, sums, self.store.block_rows)
        key = f"tensors/{name}/c.{block}" + ".0" * (features.ndim - 1)
        if self._location.folder is not None:
            write_durably(self._location.folder / key, parts)
        else:
            sync(self._location.zarr_store.set(key, prototype_buffer(b"".join(parts))))

    def _transaction(self, **options: Any) -> AbstractContextManager[None]:
        with reaching(self.path):
            self._lock.check()
        return self._sealed.transaction(**options)

    def _link(self, key: str, other: str) -> None:
        store, folder = self._location.zarr_store, self._location.folder
        if folder is not None:
            with suppress(OSError):
                os.link(folder / key, folder / other)
                return
        data = sync(store.get(key, default_buffer_prototype()))
        if data is not None:
            sync(store.set(other, data))

    def _put(self, key: str, rows: Rows, values: Any) -> None:
        wanted, array = np.asarray(rows), self.array(key)
        if len(wanted) and wanted[-1] - wanted[0] == len(wanted) - 1 and (np.diff(wanted) == 1).all():
            array[int(wanted[0]) : int(wanted[-1]) + 1] = np.asarray(values)  # the quicker way
        else:
            array.oindex[wanted] = np.asarray(values)

    def array(self, key: str) -> "zarr.Array[Any]":
        """One of the store's arrays as zarr has it; writing to it is for commits and amendments."""
        if key not in self._arrays:
            array = self._group[key]
            assert isinstance(array, zarr.Array)
            self._arrays[key] = array.with_config({"write_empty_chunks": True})
        return self._arrays[key]

    def _open_or_create(self) -> zarr.Group:
        try:
            open_store(self._place)
        except FormatError:
            if not self._is_empty():
                raise  # something else lives here: leave it alone
            self._create()
        return zarr.open_group(self._sealed, mode="r+", zarr_format=3)

    def _is_empty(self) -> bool:
        folder = self._location.folder
        if folder is not None:
            return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        # What a writer killed while making a store has left: all but the root.
        begun = {"writer.json", *skeleton(block_rows=self._block_rows, n_rows=0)} - {DOCUMENT}
        return set(list_keys(self._location.zarr_store)) <= begun

    def _create(self) -> None:
        """A new empty store appears whole: in a folder it is made beside its place and renamed into it."""
        folder = self._location.folder
        documents = skeleton(block_rows=self._block_rows, n_rows=0)
        if folder is None:
            for key, data in documents.items():
                sync(self._location.zarr_store.set(key, prototype_buffer(data)))
            return
        part = folder.with_name(f".{folder.name}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            for key, data in documents.items():
                write_durably(part / key, data)
            part.rename(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def reopen(self) -> None:
        """Read the records anew, as after commits."""
        self.store = open_store(self._place)
        self._arrays = {}


def remove_tensors(place: Place, names: Sequence[str]) -> dict[str, int]:
    """Take tensors out of a store; by name, the bytes that are free again.

    Raises:
        FormatError: there is no store.
        StoreError: it has no such tensor; nothing is removed.
        LockedError: a process is writing to it.
    """
    open_store(place)  # a writer would make a new one
    with Writer(place) as writer:
        for name in names:
            if not name.isidentifier() or not writer.has_parts_of(name):
                raise StoreError(f"store {writer.path} has no tensor {name!r}; {suggest(name, writer.store)}")
        return {name: writer.remove(name) for name in dict.fromkeys(names)}


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
