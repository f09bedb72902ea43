"""Repairing a store: what is damaged becomes absent, so that `extract` computes just that again.

In this order: documents are written anew (each follows from the others); records that are lost are worked out
again from the shards; rows that are not what was computed for them are marked absent, and their shard is written
without them. What is whole is kept as it is.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from featstore.errors import DamagedError, StoreError
from featstore.files import parse_json
from featstore.store.care.inventory import Inventory, rows_of_chunk
from featstore.store.care.verify import Finding, verify
from featstore.store.format.images import COLUMNS, ImageState, RowState, SeenImages
from featstore.store.format.integrity import (
    DOCUMENT,
    MISSING,
    committed_tensors,
    digest_of,
    write_document,
)
from featstore.store.format.layout import blank, is_blank
from featstore.store.format.shard import CRC_BYTES, ShardError, shard_limit
from featstore.store.places.place import Location, Place, plain
from featstore.store.places.repository import Repository, is_repository, who
from featstore.store.rows.decoding import DECODERS
from featstore.store.rows.ranged import read_alone
from featstore.store.tensor import StoredTensor
from featstore.store.writer import Writer
from featstore.support import Progress

# Temporary files anywhere, and in our own folders what is named as documents and chunks are.
OURS = re.compile(
    r"(.*/)?\.[^/]*\.part|(.*/)?[^/]*\.partial|(images|rows|checksums|tensors)/(.*/)?(c(\.\d+)+|zarr\.json)"
)


@dataclass
class Repair:
    """What mending a store did."""

    store: str
    documents: list[str] = field(default_factory=list)
    """`zarr.json` files written anew."""
    records: list[str] = field(default_factory=list)
    """Chunks of the images table and of records that were lost and have been worked out again."""
    absent: dict[str, list[int]] = field(default_factory=dict)
    """By tensor, the rows that `extract` has to compute again."""
    gone: list[int] = field(default_factory=list)
    """Images whose path is lost: `extract` lists their photos anew."""
    removed: list[str] = field(default_factory=list)
    """Files that belonged to nothing."""
    remaining: list[Finding] = field(default_factory=list)
    """Damage that is beyond this."""

    snapshot: str = ""
    """The version of a shared repository that is without the damage."""

    @property
    def changed(self) -> bool:
        return bool(self.documents or self.records or self.absent or self.gone or self.removed)


def repair(place: Place, *, on_progress: Progress | None = None) -> Repair:
    """Mend what can be mended, and say what was done; a shared repository gets a new version without the damage.

    Raises:
        FormatError: it is not a store of this format.
        LockedError: a process is writing to it.
        StoreWriteError: the disk refuses.
    """
    place = plain(place)
    if isinstance(place, str) and is_repository(place):
        return _repair_repository(place, on_progress)
    done = Repair(str(place))
    with Writer(place, before_opening=lambda location: _mend_documents(location, done)) as writer:
        _rebuild_images(writer, done)
        for name in writer.store:
            _rebuild_records(writer, name, done)
        for name, block in _damaged_blocks(verify(place, on_progress=on_progress).damage):
            _write_without(writer, name, block, done)
        _remove_leftovers(writer, done)
    done.remaining = verify(place).damage
    return done


def _repair_repository(name: str, on_progress: Progress | None) -> Repair:
    transaction = Repository(name).begin()
    done = replace(repair(transaction.location, on_progress=on_progress), store=name)
    if not done.changed:
        return done
    n_rows = sum(map(len, done.absent.values()))
    message = f"repaired: {n_rows} damaged rows are absent; whoever has them pushes them again"
    return replace(done, snapshot=transaction.commit(message, {"who": who()}))


def _mend_documents(location: Location, done: Repair) -> None:
    """Write what documents are missing or damaged, and note on the list of digests which chunks are lost."""
    inventory = Inventory(location)
    hopeless = committed_tensors(inventory.sums) - set(inventory.tensors)
    if hopeless:
        name = min(hopeless)
        raise StoreError(
            f"tensor {name!r} in {location.name}: tensors/{name}/zarr.json and rows/{name}/zarr.json are both lost, "
            f"and with them what the tensor is; put one back from a copy, or `featstore rm {name}`, and repair again"
        )
    sums = {**inventory.sums, **{key: [MISSING] for key in inventory.broken_chunks}}
    for key, data in inventory.expected_documents.items():
        if key in inventory.documents:
            continue
        done.documents.append(key)
        if key != DOCUMENT:
            location.write(key, data)
            sums[key] = [digest_of(data)]
    if done.documents or inventory.broken_chunks:
        root = inventory.documents.get(DOCUMENT) or parse_json(inventory.expected_documents[DOCUMENT])
        root["attributes"]["sums"] = dict(sorted(sums.items()))
        location.write(DOCUMENT, write_document(DOCUMENT, root))
    for key in inventory.broken_chunks:
        if key in inventory.keys:
            location.delete(key)
    done.records += sorted(inventory.broken_chunks)


def _lost_rows(done: Repair, prefix: str, n_rows: int) -> NDArray[np.bool_]:
    """(N,) which rows a lost chunk was about."""
    lost = np.zeros(n_rows, bool)
    for key in done.records:
        if key.startswith(f"{prefix}/"):
            rows = rows_of_chunk(key, n_rows)
            lost[rows.start : rows.stop] = True
    return lost


def _rebuild_images(writer: Writer, done: Repair) -> None:
    """What is lost of the images table, as far as the rest of the store tells it.

    Sizes, times and digests that are lost stay zero: `extract` notes them again.
    """
    images = writer.store.images
    lost = {name: _lost_rows(done, f"images/{name}", len(images)) for name in COLUMNS}
    for name, (dtype, row_shape) in COLUMNS.items():  # what is lost reads as nothing; let it be written so
        if len(rows := np.flatnonzero(lost[name])):
            nothing = np.full(len(rows), "", object) if dtype == "string" else np.zeros((len(rows), *row_shape), dtype)
            writer.amend({f"images/{name}": (rows, nothing)})
    states = images.states.copy()
    if lost["state"].any():
        held = np.zeros((2, len(images)), bool)
        for tensor in writer.store.tensors.values():
            held |= [tensor.states == RowState.PRESENT, tensor.states == RowState.FAILED]
        known = np.where(held[0], ImageState.READABLE, np.where(held[1], ImageState.UNREADABLE, ImageState.UNREAD))
        states = np.where(lost["state"], known, states).astype(np.uint8)
        latest = {path: row for row, path in enumerate(images.paths)}
        older = np.array([latest[path] != row for row, path in enumerate(images.paths)])
        states[older & lost["state"]] = ImageState.GONE  # a newer row has its path
    unknown = lost["path"] & (states != ImageState.GONE)
    done.gone = np.flatnonzero(unknown).tolist()
    states[unknown] = ImageState.GONE
    changed = np.flatnonzero(states != images.states)
    if len(changed):
        writer.amend({"images/state": (changed, states[changed])})
    silent = np.flatnonzero(lost["error"] & (states == ImageState.UNREADABLE))
    if len(silent):
        reason = "its reason was lost with a damaged file; `featstore retry` finds it out again"
        writer.amend({"images/error": (silent, np.array([reason] * len(silent), dtype=object))})


def _rebuild_records(writer: Writer, name: str, done: Repair) -> None:
    """Lost states and checksums of rows, from what the shards hold: a row is on the disk whole or is blank."""
    tensor = writer.store[name]
    lost_states = _lost_rows(done, f"rows/{name}", len(tensor.states))
    lost_sums = _lost_rows(done, f"checksums/{name}", len(tensor.states))
    rows = np.flatnonzero(lost_states | lost_sums)
    if not len(rows):
        return
    states, checksums = tensor.states.copy(), tensor.checksums.copy()
    for block in np.unique(rows // writer.store.block_rows):
        stored = _stored_rows(writer, tensor, int(block))
        for row in rows[rows // writer.store.block_rows == block]:
            found, nothing = stored.get(int(row), (0, True))
            # A blank row of features is none; one of pixels may be a black photo, unless nothing at all vouches for it.
            if nothing and (np.issubdtype(tensor.dtype, np.floating) or (lost_states[row] and lost_sums[row])):
                found = 0
            if lost_sums[row]:
                checksums[row] = found if lost_states[row] or states[row] == RowState.PRESENT else 0
            if lost_states[row]:
                states[row] = RowState.PRESENT if found and found == checksums[row] else RowState.ABSENT
    writer.amend({f"checksums/{name}": (rows, checksums[rows]), f"rows/{name}": (rows, states[rows])})
    known = np.isin(writer.store.images.states, (ImageState.READABLE, ImageState.GONE))
    if again := np.flatnonzero(lost_states & known & (states == RowState.ABSENT)).tolist():
        done.absent.setdefault(name, []).extend(again)


def _stored_rows(writer: Writer, tensor: StoredTensor, block: int) -> dict[int, tuple[int, bool]]:
    """The checksum of each row of a block that is whole on the disk, and whether the row is blank."""
    first = block * writer.store.block_rows
    found = {}
    for row in range(first, min(first + writer.store.block_rows, len(tensor.states))):
        values = _unchecked_row(writer, tensor, row)
        if values is not None:
            checksum = google_crc32c.value(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
            found[row] = checksum, is_blank(values)
    return found


def _unchecked_row(writer: Writer, tensor: StoredTensor, row: int) -> NDArray[Any] | None:
    """A row as it lies in its shard, whatever the record says; None if its own checksum is wrong."""
    block, within = divmod(row, writer.store.block_rows)
    values = np.empty(tensor.layout.row_shape, tensor.dtype.newbyteorder("<"))
    found = read_alone(
        writer.location.ranges,
        tensor.layout.shard_key(block),
        within,
        values.reshape(-1).view(np.uint8),
        block_rows=writer.store.block_rows,
        decode=DECODERS.get(str(tensor.compression)),
    )
    return values if found else None


def _damaged_blocks(damage: list[Finding]) -> list[tuple[str, int]]:
    """The tensors and row blocks whose shard is not as it should be."""
    shards = {(each.tensor, each.file.rpartition("/")[2]) for each in damage if each.file.startswith("tensors/")}
    return sorted((name, int(file.split(".")[1])) for name, file in shards if name is not None and file[0] == "c")


def _write_without(writer: Writer, name: str, block: int, done: Repair) -> None:
    """Write a shard anew with the rows of it that are right, and mark the others absent."""
    tensor = writer.store[name]
    first = block * writer.store.block_rows
    rows = range(first, min(first + writer.store.block_rows, len(tensor.states)))
    states = tensor.states[rows.start : rows.stop].copy()
    features = np.full((len(rows), *tensor.layout.row_shape), blank(tensor.dtype), tensor.dtype)
    for row in rows:
        if states[row - first] != RowState.PRESENT:
            continue
        values = _salvage(writer, tensor, row)
        if values is None:
            states[row - first] = RowState.ABSENT
            done.absent.setdefault(name, []).append(row)
        else:
            features[row - first] = values
    writer.commit(block, {name: (features, states)}, SeenImages([], [], [], []))


def _salvage(writer: Writer, tensor: StoredTensor, row: int) -> NDArray[Any] | None:
    """A row, if anything on the disk in its place is what was computed for it."""
    try:
        values: NDArray[Any] = tensor.read([row])[0]
        return values
    except DamagedError:
        pass
    except StoreError:
        return None
    if tensor.compression is not None:
        return None
    # The index of the shard may be all that is damaged: rows lie where they always do.
    block, within = divmod(row, writer.store.block_rows)
    start = within * (tensor.row_bytes + CRC_BYTES)
    try:
        limit = shard_limit(tensor.row_bytes, writer.store.block_rows)
        with writer.location.ranges.open(tensor.layout.shard_key(block), limit) as file:
            candidate = bytes(file.read(start, start + tensor.row_bytes))
    except ShardError:
        return None
    if google_crc32c.value(candidate) != tensor.checksums[row]:
        return None
    return np.frombuffer(candidate, tensor.dtype).reshape(tensor.layout.row_shape)


def _remove_leftovers(writer: Writer, done: Repair) -> None:
    """Delete what a killed writer left; what looks like somebody else's stays."""
    inventory = Inventory(writer.store.location)
    ours = [key for key in inventory.leftovers if OURS.fullmatch(key)]
    for name in inventory.half_made:
        writer.remove(name)
    for key in ours:
        writer.delete(key)
    done.removed += ours
