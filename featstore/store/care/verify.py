"""Verifying a store: every file and every row is checked.

A file is either a document (sealed), a chunk of a small array (its digest is on the root's list), a shard (each row
has its checksum) or a leftover; so a change of any byte is noticed.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DamagedError, StoreError
from featstore.store.care.inventory import Inventory, rows_of_chunk
from featstore.store.format.images import ImageState, RowState
from featstore.store.format.integrity import committed_tensors
from featstore.store.format.limits import MAX_BLOCK_BYTES
from featstore.store.format.metadata import TensorFacts
from featstore.store.format.shard import READ_BYTES, ShardError, check_shard, shard_limit
from featstore.store.lock import current_writer
from featstore.store.places.locate import locate
from featstore.store.places.place import Place
from featstore.store.store import Store, open_store
from featstore.store.tensor import StoredTensor
from featstore.support import Progress, few, n_cores, no_progress


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    file: str
    what: str
    tensor: str | None = None
    rows: tuple[int, ...] = ()
    damage: bool = True
    """False for what does no harm, such as the leftovers of a killed writer."""

    def __str__(self) -> str:
        place = f"tensor {self.tensor!r}, " if self.tensor else ""
        return f"{place}{_say(self.rows)}{self.file}: {self.what}"


@dataclass
class Verification:
    """What checking a store found out."""

    store: str
    n_files: int = 0
    n_rows: int = 0
    """Rows marked present, all tensors together."""
    n_bytes: int = 0
    elapsed_s: float = 0.0
    writer: str = ""
    """Who was writing meanwhile: what is just being changed may look damaged."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def damage(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.damage]

    @property
    def sound(self) -> bool:
        return not self.damage


def verify(place: Place, *, on_progress: Progress | None = None) -> Verification:
    """Check everything that a store holds; nothing is changed.

    Raises:
        FormatError: it is not a store of this format.
        StoreError: it cannot be read at all, as when the disk is gone.
    """
    started = time.perf_counter()
    inventory = Inventory(locate(place))
    result = Verification(inventory.location.name, n_files=len(inventory.keys))
    result.findings += _check_documents(inventory) + _check_small_arrays(inventory)
    store = None
    if result.sound:
        try:
            store = open_store(place)
            result.findings += _check_images(store)
            result.n_rows = sum(int((t.states == RowState.PRESENT).sum()) for t in store.tensors.values())
        except StoreError as error:
            result.findings.append(Finding("zarr.json", str(error)))
            store = None
    shards = [(name, facts, block) for name, facts in inventory.tensors.items() for block in range(inventory.n_blocks)]

    def check(shard: tuple[str, TensorFacts, int]) -> tuple[list[Finding], int]:
        name, facts, block = shard
        return _check_block(inventory, facts, block, None if store is None else store[name])

    report = on_progress or no_progress
    row_bytes = max((facts.layout.row_bytes(facts.dtype) for facts in inventory.tensors.values()), default=1)
    with ThreadPoolExecutor(
        max(1, min(8, 2 * n_cores(), MAX_BLOCK_BYTES // (inventory.block_rows * row_bytes)))
    ) as pool:
        for done, (findings, n_bytes) in enumerate(pool.map(check, shards)):
            result.findings += findings
            result.n_bytes += n_bytes
            report("verify", done + 1, len(shards))
    result.findings += [
        Finding(key, "belongs to nothing: left behind by a killed writer, or put here by somebody", damage=False)
        for key in inventory.leftovers
    ]
    if not result.sound and (holder := current_writer(inventory.location)) is not None:
        result.writer = str(holder)
    result.elapsed_s = time.perf_counter() - started
    return result


def _check_documents(inventory: Inventory) -> list[Finding]:
    found = [
        Finding(key, f"is damaged, or was changed by something other than featstore ({why})", _tensor_of(key))
        for key, why in inventory.broken_documents.items()
    ]
    missing = sorted(set(inventory.expected_documents) - set(inventory.documents) - set(inventory.broken_documents))
    found += [Finding(key, "is missing", _tensor_of(key)) for key in missing]
    committed = committed_tensors(inventory.sums)
    found += [
        Finding(f"tensors/{name}/zarr.json", "and its record are lost: nothing says any more what the tensor is", name)
        for name in sorted(committed - set(inventory.tensors))
    ]
    return found


def _check_small_arrays(inventory: Inventory) -> list[Finding]:
    found = []
    for key, what in inventory.broken_chunks.items():
        rows = rows_of_chunk(key, inventory.n_rows)
        found.append(Finding(key, f"{what} (concerns rows {rows.start} to {rows.stop - 1})", _tensor_of(key)))
    found += [
        Finding(
            key,
            "holds checksums of rows that no record vouches for: a writer was killed before it recorded them, or the "
            "record was taken out; they count as absent",
            _tensor_of(key),
            damage=False,
        )
        for key in inventory.unrecorded
    ]
    return found


def _check_images(store: Store) -> list[Finding]:
    """Every path has one current row."""
    images = store.images
    found = []
    seen: dict[str, int] = {}
    for row, path in enumerate(images.paths):
        if images.states[row] == ImageState.GONE:
            continue
        if not path:
            found.append(Finding("images/path", "the row has no path", rows=(row,)))
        elif path in seen:
            found.append(Finding("images/path", f"{path} has two rows", rows=(seen[path], row)))
        seen[path] = row
    return found


def _check_block(
    inventory: Inventory, facts: TensorFacts, block: int, tensor: StoredTensor | None
) -> tuple[list[Finding], int]:
    """The shard of one row block, against the commit record if there is one to trust."""
    name = facts.layout.name
    key = facts.layout.shard_key(block)
    first = block * inventory.block_rows
    rows = np.arange(first, min(first + inventory.block_rows, inventory.n_rows))
    present = rows[tensor.states[rows] == RowState.PRESENT] if tensor is not None else rows
    if key not in inventory.keys:
        missing = Finding(key, "is missing", name, _ints(present))
        return ([missing] if tensor is not None and len(present) else []), 0
    row_bytes = facts.layout.row_bytes(facts.dtype)
    n_bytes = 0
    try:
        with inventory.location.ranges.open(key, shard_limit(row_bytes, inventory.block_rows)) as file:
            n_bytes = file.size()
            sound = check_shard(file, inventory.block_rows, row_bytes)
    except ShardError as error:
        return [Finding(key, f"cannot be read: {error}", name, _ints(present))], n_bytes
    except ValueError as error:
        return [Finding(key, f"is damaged: {error}", name, _ints(present))], n_bytes
    bad = [row for row in range(inventory.block_rows) if not sound[row]]
    found = []
    if bad:
        found.append(Finding(key, "its checksum is wrong", name, tuple(first + row for row in bad)))
    if tensor is not None and len(others := np.setdiff1d(present, first + np.array(bad, int))):
        found += _check_rows(tensor, others, key)
    return found, n_bytes


def _check_rows(tensor: StoredTensor, rows: NDArray[np.int64], key: str) -> list[Finding]:
    """Rows whose bytes are whole: are they those of this row?"""
    at_once = max(1, READ_BYTES // tensor.row_bytes)  # not a whole shard in the memory of each thread
    try:
        for start in range(0, len(rows), at_once):
            tensor.read(rows[start : start + at_once])
        return []
    except StoreError:
        wrong = tuple(int(row) for row in rows if not _reads(tensor, int(row)))
        return [Finding(key, "holds other values than those that were computed for this row", tensor.name, wrong)]


def _reads(tensor: StoredTensor, row: int) -> bool:
    try:
        tensor.read([row])
    except DamagedError:
        return False
    return True


def _tensor_of(key: str) -> str | None:
    kind, *rest = key.split("/")
    return rest[0] if kind in ("tensors", "rows", "checksums") and len(rest) > 1 else None


def _ints(rows: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(rows.tolist())


def _say(rows: tuple[int, ...]) -> str:
    if not rows:
        return ""
    if len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1:
        return f"rows {rows[0]} to {rows[-1]}, "
    return f"row{'s' if len(rows) > 1 else ''} {few(map(str, rows), 8)}, "
