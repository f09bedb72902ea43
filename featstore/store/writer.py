"""Writing a store: one writer at a time, whole shards only, and a commit record that is never ahead.

The order of a commit is the promise of the store: the shards of a row block, the checksums of its rows and what was
learned of its images reach the disk side by side, and only when all of them are there its rows are marked present. A
process killed at any moment of it leaves rows that are absent, never rows that are wrong.
"""

import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from featstore.errors import FormatError, StoreError
from featstore.files import PART
from featstore.store.format.images import COLUMNS, ImageState, NewImages, RowState, SeenImages, arrays_of
from featstore.store.format.integrity import DOCUMENT, SealedStore
from featstore.store.format.layout import TensorLayout
from featstore.store.format.limits import check_room_in_memory
from featstore.store.format.making import create_tensor, skeleton
from featstore.store.format.metadata import BLOCK_ROWS, PARTS, Compression, TensorFacts
from featstore.store.format.shard import row_checksums, shard_parts
from featstore.store.lock import WriterLock
from featstore.store.places.local import cannot_write, remove_parts, sync_folder, write_durably
from featstore.store.places.locate import locate
from featstore.store.places.network import reaching
from featstore.store.places.place import Location, Place
from featstore.store.store import open_store

Rows = list[int] | NDArray[np.int64]
BlockRows = Mapping[str, tuple[NDArray[Any], NDArray[np.uint8]]]
"""By tensor, the (rows in the block, ...) features of a row block and their (rows in the block,) states."""


@dataclass(frozen=True)
class WrittenBlock:
    """A row block whose shards are there and whose rows are not recorded yet; by tensor, of its rows."""

    number: int
    start: int
    """Its first row."""
    sums: Mapping[str, NDArray[np.uint32]]
    states: Mapping[str, NDArray[np.uint8]]
    images: SeenImages

    def rows(self, name: str) -> NDArray[np.int64]:
        return np.arange(self.start, self.start + len(self.states[name]))

    def recorded_sums(self, name: str) -> NDArray[np.uint32]:
        return np.where(self.states[name] == RowState.PRESENT, self.sums[name], 0).astype(np.uint32)


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
        self.location = locate(place, writable=True)
        self.path = self.location.name
        self._block_rows = block_rows
        self._lock = WriterLock(self.location)
        self._sealed = SealedStore(self.location.zarr_store, self.path)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self.notice = ""
        """What became of an earlier writer that died at work."""

    def __enter__(self) -> "Writer":
        folder = self.location.folder
        if folder is not None:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error) from error
        with reaching(self.path):
            self.notice = self._lock.acquire()
        try:
            if self.notice and folder is not None:
                remove_parts(folder)
            if self._before_opening is not None:
                self._before_opening(self.location)
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

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is listed, made and noted inside is written at once, at the end; `store` shows it from then on.

        Images are listed before tensors are made: those grow that are there. A process killed while it is written
        leaves a part of it, in this order, as without this.
        """
        with self._transaction():
            yield
        self.reopen()

    def add_images(self, images: NewImages) -> None:
        """List images as new rows at the end of the table; every tensor grows with it."""
        first = self._n_images()
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
        self._arrays = {}  # tensors have grown
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
        self.location.delete(key)

    def ensure_tensor(self, layout: TensorLayout, dtype: str, *, compress: Compression | None = None) -> None:
        """Create a tensor, or check that the one there has the same layout; one that holds nothing is replaced.

        Raises:
            LayoutError: the store holds something else under this name, or its row blocks would be too large.
        """
        check_room_in_memory(layout, dtype, self.store.block_rows)
        if layout.name in self.store.tensors:
            self.store[layout.name].check_same_layout(layout)
            if not layout.differences(self.store[layout.name].layout):
                return
        if self.has_parts_of(layout.name) or self._sealed.lists(self._parts_of(layout.name)):
            self.remove(layout.name)  # what a run that failed at once left behind: it holds nothing
        self.create(TensorFacts(layout, dtype, compress))
        self.reopen()

    def create(self, facts: TensorFacts) -> None:
        """Make the arrays of a tensor none of whose rows is present; `reopen` shows it."""
        with self._transaction():
            create_tensor(self._group, facts, n_rows=self._n_images(), block_rows=self.store.block_rows)

    def has_parts_of(self, name: str) -> bool:
        """Whether there are files of a tensor, whole or not."""
        return any(self.location.keys(f"{part}/") for part in self._parts_of(name))

    def remove(self, name: str) -> int:
        """Take a tensor out of the store; returns the bytes that are free again.

        Once its parts are off the list of digests the tensor is not there; a process killed after that leaves
        files which the next writer of this name removes.
        """
        self._lock.check()
        n_bytes = sum(self.location.n_bytes(f"{part}/") for part in self._parts_of(name))
        self._sealed.forget(self._parts_of(name))
        for part in self._parts_of(name):
            sync(self.location.zarr_store.delete_dir(part))
        self.reopen()
        return n_bytes

    def record_run(self, names: list[str], provenance: Mapping[str, Any]) -> None:
        """Note on each tensor what this run ran on."""
        with self._transaction():
            for name in names:
                self._add_runs(name, [{**provenance, "started": datetime.now(UTC).isoformat(timespec="seconds")}])

    def note_runs(self, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Note, by tensor, the runs of another store that made it; those that are noted already are left out."""
        with self._transaction():
            for name, made in runs.items():
                known = self._runs(name)
                self._add_runs(name, [run for run in made if run not in known])

    def _add_runs(self, name: str, made: Sequence[Mapping[str, Any]]) -> None:
        if made:
            runs = [*self._runs(name), *map(dict, made)]
            self.array(f"tensors/{name}").update_attributes({"provenance": runs})

    def _runs(self, name: str) -> list[Any]:
        noted: Any = self.array(f"tensors/{name}").attrs.get("provenance", [])
        return list(noted)

    def commit(self, block: int, rows: BlockRows, images: SeenImages) -> int:
        """Commit one row block whole.

        Args:
            rows: by tensor, the (rows in the block, ...) features and their (rows in the block,) states.

        Returns:
            The number of feature bytes written.
        """
        written = self._sum_up(block, rows, images)
        with ThreadPoolExecutor(1) as pool:  # shards are most of the bytes; the small files need not wait for them
            shards = pool.submit(self._write_shards, written, rows)
            self.record([written], before_rows=shards.result)
        return sum(features.nbytes for features, _ in rows.values())

    def write(self, block: int, rows: BlockRows, images: SeenImages) -> WrittenBlock:
        """Write the shards of one row block as `commit` does; until `record` its rows are what they were before."""
        written = self._sum_up(block, rows, images)
        self._write_shards(written, rows)
        return written

    def record(self, blocks: Sequence[WrittenBlock], *, before_rows: Callable[[], object] | None = None) -> None:
        """Record row blocks, all together.

        Args:
            before_rows: what has to be on the disk before their rows are present; called at that moment.
        """
        names = dict.fromkeys(name for block in blocks for name in block.sums)
        rows = {name: np.concatenate([block.rows(name) for block in blocks if name in block.sums]) for name in names}
        images = SeenImages.joined([block.images for block in blocks])
        with self._transaction(before_rows=before_rows):
            for name, places in rows.items():
                sums = np.concatenate([block.recorded_sums(name) for block in blocks if name in block.sums])
                self._put(f"checksums/{name}", places, sums)
            if images.rows:
                self._put("images/size", images.rows, images.sizes)
                if any(images.errors) or any(self.store.images.errors[row] for row in images.rows):
                    self._put("images/error", images.rows, np.array(images.errors, dtype=object))
                self._put("images/state", images.rows, images.states)
            for name, places in rows.items():
                states = np.concatenate([block.states[name] for block in blocks if name in block.sums])
                self._put(f"rows/{name}", places, states)

    def _sum_up(self, block: int, rows: BlockRows, images: SeenImages) -> WrittenBlock:
        sums = {name: row_checksums(features) for name, (features, _) in rows.items()}
        states = {name: states for name, (_, states) in rows.items()}
        return WrittenBlock(block, block * self.store.block_rows, sums, states, images)

    def _write_shards(self, written: WrittenBlock, rows: BlockRows) -> None:
        for name, (features, _) in rows.items():
            if self.store[name].compression is None:
                self.write_shard(name, written.number, shard_parts(features, written.sums[name], self.store.block_rows))
            else:
                self.array(f"tensors/{name}")[written.start : written.start + len(features)] = features

    def write_shard(self, name: str, block: int, parts: list[bytes | memoryview]) -> None:
        """Write an uncompressed shard of one row block, in pieces as `shard_parts` makes them."""
        key = self.store[name].layout.shard_key(block)
        if self.location.folder is not None:
            write_durably(self.location.folder, key, parts)
        else:
            self.location.write(key, b"".join(parts))

    @contextmanager
    def _transaction(self, before_rows: Callable[[], object] | None = None) -> Iterator[None]:
        if self._sealed.holds_back and before_rows is None:  # a part of the one that is under way
            yield
            return
        with reaching(self.path):
            self._lock.check()
        try:
            with self._sealed.transaction(before_rows=before_rows):
                yield
        except BaseException:
            self._arrays = {}  # they have changed here, and not where the store is
            raise

    def _parts_of(self, name: str) -> list[str]:
        return [f"{kind}/{name}" for kind in PARTS]

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
            if not _is_empty(self.location, block_rows=self._block_rows):
                raise  # something else lives here: leave it alone
            _create_store(self.location, block_rows=self._block_rows)
        return zarr.open_group(self._sealed, mode="r+", zarr_format=3)

    def _n_images(self) -> int:
        """Those that are listed, and are about to be."""
        return int(self.array("images/state").shape[0])

    def reopen(self) -> None:
        """Read the records anew, as after commits."""
        if self._sealed.holds_back:
            return
        self.store = open_store(self._place)
        self._arrays = {}


def _is_empty(location: Location, *, block_rows: int) -> bool:
    """Whether there is nothing at a place, or at most what a writer killed while making such a store has left."""
    folder = location.folder
    if folder is not None:
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    begun = {"writer.json", *skeleton(block_rows=block_rows, n_rows=0)} - {DOCUMENT}  # the root is written last
    return set(location.keys()) <= begun


def _create_store(location: Location, *, block_rows: int) -> None:
    """A new store without images: in a folder it is made beside its place and renamed into it.

    Raises:
        StoreWriteError: the disk refuses.
    """
    folder = location.folder
    documents = skeleton(block_rows=block_rows, n_rows=0)
    if folder is None:
        for key, data in documents.items():
            location.write(key, data)
        return
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{PART}")
    begun = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{16}}{re.escape(PART)}")
    try:
        for left in folder.parent.iterdir():
            if begun.fullmatch(left.name):  # by a killed writer: the lock of this store is ours
                shutil.rmtree(left, ignore_errors=True)  # which refuses a link
        part.mkdir()
        for key, data in documents.items():
            write_durably(part, key, data)
        part.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(location.name, error) from error
