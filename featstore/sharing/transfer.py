"""The transfer of rows from one store into another: `plan_transfer` finds what is missing, `carry_out` copies it.

Rows that both stores have are compared by their recorded checksums. A row that is copied is checked against the
checksum of the source before it is committed. Row blocks are copied one by one, so a transfer that is cut off keeps
those that it has committed, and the next one copies the rest.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import FormatError, LayoutError, StoreError
from featstore.extraction.rows import ShardBuffer
from featstore.sharing.pairing import Pairs, pair
from featstore.sharing.selection import Selection
from featstore.store import ImageState, NewImages, RowState, Store, StoredTensor, Writer
from featstore.store.format.limits import MAX_BLOCK_BYTES
from featstore.store.writer import WrittenBlock

IN_FLIGHT = 4
"""Row blocks that are read ahead: a request to a bucket waits longer than it transfers."""
WAITING = 4 * IN_FLIGHT
"""Row blocks that may wait to be recorded, so that reading goes on while records are written."""
RECORD_BYTES = 128_000_000
"""So much is recorded at a time; a transfer that is killed copies no more than that again."""
PRIVATE = ("photos",)
"""Facts of a run that say something of its machine only, and are not copied."""
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Transfer:
    """What has to be copied."""

    source: Store
    pairs: Pairs
    tensors: list[StoredTensor]
    """Those of the source that have something the target lacks, or that the target does not know at all."""
    rows: dict[str, tuple[Rows, Rows]]
    """By tensor, rows of the target in ascending order and the rows of the source that fill them."""
    block_rows: int
    """Of the target."""
    different: frozenset[int] = frozenset()
    """Rows of the target that both sides have, with different values of the same features; each keeps its own."""

    @property
    def work(self) -> bool:
        return bool(self.pairs.new or self.tensors)

    @property
    def n_rows(self) -> int:
        return sum(len(rows) for rows, _ in self.rows.values())

    @property
    def n_bytes(self) -> int:
        return sum(len(self.rows[tensor.name][0]) * tensor.row_bytes for tensor in self.tensors)

    @property
    def blocks(self) -> list[int]:
        """The row blocks of the target that are written."""
        every = [rows // self.block_rows for rows, _ in self.rows.values()]
        return [int(block) for block in np.unique(np.concatenate(every))] if every else []


@dataclass
class Carried:
    """What was copied."""

    n_rows: int = 0
    n_bytes: int = 0
    n_images: int = 0
    n_gone: int = 0
    """Images of the target marked as gone, because the source has a newer photo under their path."""
    tensors: set[str] = field(default_factory=set)


def plan_transfer(
    source: Store, target: Store | None, selection: Selection, *, leave_different: bool = False
) -> Transfer:
    """What of a selection the target lacks; nothing is written.

    Args:
        leave_different: where both have different values of one feature, leave each its own instead of refusing.

    Raises:
        LayoutError: both have a tensor of one name and it is not the same features.
        StoreError: they hold different values for the same image and identity, or mean different photos by one path.
    """
    names = selection.tensors_of(source)
    for name in names:
        if not name.isidentifier():
            raise FormatError(f"{source.path} has a tensor {name!r}, which is no name of a tensor; nothing was changed")
        if target is not None and name in target.tensors:
            _check_same_features(source[name], target[name])
    held = np.zeros(len(source.images), bool)
    for name in names:
        held |= source[name].states == RowState.PRESENT
    pairs = pair(source, target, selection.rows_of(source) & held)
    n_rows = (0 if target is None else len(target.images)) + len(pairs.new)
    rows, different = {}, set[int]()
    for name in names:
        there = target[name] if target is not None and name in target.tensors else None
        rows[name], differing = _missing(source[name], there, pairs, n_rows)
        if there is not None and differing and not leave_different:
            raise _different(source[name], there, differing)
        different |= set(differing)
    tensors = [source[name] for name in names if len(rows[name][0]) or target is None or name not in target.tensors]
    block_rows = source.block_rows if target is None else target.block_rows
    return Transfer(source, pairs, tensors, rows, block_rows, frozenset(different))


def carry_out(
    transfer: Transfer,
    writer: Writer,
    *,
    limit_bytes: int | None = None,
    on_block: Callable[[int], object] = lambda n_rows: None,
) -> Carried:
    """Copy what was planned into the store that the plan was made for.

    Args:
        limit_bytes: stop after so many bytes, but not before one row block.
        on_block: called with the number of rows that were committed.

    Raises:
        DamagedError: a row of the source is not what was computed for it.
        StoreWriteError: the disk refuses; what was committed is kept.
    """
    carried = Carried(n_images=len(transfer.pairs.new), n_gone=len(transfer.pairs.gone))
    waiting: list[_Brought] = []
    for brought in _bring(transfer, writer, limit_bytes):
        waiting.append(brought)
        if sum(each.n_bytes for each in waiting) >= RECORD_BYTES:
            _record(waiting, writer, carried, on_block)
    _record(waiting, writer, carried, on_block)
    writer.reopen()
    return carried


def _prepare(transfer: Transfer, writer: Writer) -> None:
    """List the images and make the tensors that the target lacks."""
    pairs, tensors = transfer.pairs, transfer.tensors
    if pairs.gone:  # before those that take their paths are listed: no path has two photos, whenever this is cut off
        writer.set_image_states(sorted(pairs.gone), ImageState.GONE)
    with writer.together():
        if pairs.new:
            writer.add_images(_listed(transfer.source, pairs.new))
        for tensor in tensors:
            writer.ensure_tensor(tensor.layout, str(tensor.dtype), compress=tensor.compression)
        writer.note_runs({tensor.name: [_public(run) for run in tensor.provenance] for tensor in tensors})


@dataclass(frozen=True)
class _Brought:
    """A block whose shards have been written, and what of it is new: rows by tensor, and their bytes."""

    block: WrittenBlock
    n_rows: dict[str, int]
    n_bytes: int


def _record(waiting: list[_Brought], writer: Writer, carried: Carried, on_block: Callable[[int], object]) -> None:
    """Several blocks at once: their records are one small write, whatever the rows are."""
    if not waiting:
        return
    writer.record([each.block for each in waiting])
    n_rows = sum(sum(each.n_rows.values()) for each in waiting)
    carried.n_rows += n_rows
    carried.n_bytes += sum(each.n_bytes for each in waiting)
    carried.tensors |= {name for each in waiting for name in each.n_rows}
    waiting.clear()
    on_block(n_rows)


def _bring(transfer: Transfer, writer: Writer, limit_bytes: int | None) -> Iterator[_Brought]:
    """The blocks in turn, several at a time; reading begins while the target is prepared."""
    blocks, prepared = iter(_within(transfer, limit_bytes)), Future[None]()
    # Large ones one after another: together they take no more memory than the largest that there may be.
    block_bytes = transfer.block_rows * sum(tensor.row_bytes for tensor in transfer.tensors)
    with ThreadPoolExecutor(min(IN_FLIGHT, max(1, MAX_BLOCK_BYTES // max(1, block_bytes)))) as pool:
        bring = partial(_bring_block, transfer, writer, prepared)
        waiting = deque[Future[_Brought]]()
        try:
            waiting += [pool.submit(bring, block) for block in islice(blocks, WAITING)]
            _prepare(transfer, writer)
            writer.store.tensors  # noqa: B018  # read once, and not by each of those that wait
            prepared.set_result(None)
            while waiting:
                brought = waiting.popleft().result()
                waiting += [pool.submit(bring, block) for block in islice(blocks, 1)]
                yield brought
        finally:
            prepared.cancel()  # if it failed, nobody waits for it
            for future in waiting:
                future.cancel()


def _within(transfer: Transfer, limit_bytes: int | None) -> list[int]:
    """The first blocks that make up so many bytes."""
    blocks = transfer.blocks
    if limit_bytes is None:
        return blocks
    sizes = Counter[int]()
    for tensor in transfer.tensors:
        for row in transfer.rows[tensor.name][0].tolist():
            sizes[row // transfer.block_rows] += tensor.row_bytes
    ends = np.cumsum([sizes[block] for block in blocks])
    return blocks[: int(np.searchsorted(ends, limit_bytes)) + 1]


def _bring_block(transfer: Transfer, writer: Writer, prepared: Future[None], number: int) -> _Brought:
    """Read what a block lacks, and write its shards once the target is prepared."""
    source, first = transfer.source, number * transfer.block_rows
    ours: dict[str, tuple[Rows, Rows]] = {}
    for tensor in transfer.tensors:
        rows, from_rows = transfer.rows[tensor.name]
        here = slice(*np.searchsorted(rows, [first, first + transfer.block_rows]).tolist())
        if len(rows[here]):
            ours[tensor.name] = rows[here], from_rows[here]
    n_rows = {name: len(rows) for name, (rows, _) in ours.items()}
    n_bytes = sum(count * source[name].row_bytes for name, count in n_rows.items())
    as_they_are = [name for name, rows in ours.items() if _copy_shard(source[name], rows, writer, prepared)]
    prepared.result()
    target = writer.store
    shard = ShardBuffer(number, target, [target[name].layout for name in ours if name not in as_they_are])
    for name in shard.features:
        rows, from_rows = ours[name]
        shard.copy(source[name], rows, from_rows)
    seen: dict[int, int] = {}
    for rows, from_rows in ours.values():
        seen |= zip(rows.tolist(), from_rows.tolist(), strict=True)
    for row, from_row in sorted(seen.items()):
        if target.images.states[row] not in (ImageState.READABLE, ImageState.GONE):
            height, width = source.images.sizes[from_row].tolist()
            shard.note(row, (height, width), ImageState.READABLE, "")
    put = {name: (shard.features[name], shard.states[name]) for name in shard.features}
    written = writer.write(number, put, shard.seen)
    sums = {name: source[name].checksums[ours[name][1]] for name in as_they_are}
    present = {name: np.full(len(rows), RowState.PRESENT, np.uint8) for name, rows in sums.items()}
    written = replace(written, sums={**written.sums, **sums}, states={**written.states, **present})
    return _Brought(written, n_rows, n_bytes)


def _copy_shard(tensor: StoredTensor, rows: tuple[Rows, Rows], writer: Writer, prepared: Future[None]) -> bool:
    """Write a shard byte by byte as the source has it, where it is the same block on both sides.

    Returns:
        Whether it was; if not, its rows have to be read one by one.
    """
    (to_rows, from_rows), n_rows = rows, writer.store.block_rows
    aligned = len(to_rows) == n_rows == tensor.block_rows and from_rows[0] % n_rows == 0
    target = writer.store.tensors.get(tensor.name, tensor)  # one that is not there yet will be made like it
    if not aligned or target.compression is not None or (np.diff(from_rows) != 1).any():
        return False
    contents = tensor.whole_shard(int(from_rows[0]) // n_rows)
    prepared.result()
    if contents is None:
        return False
    writer.write_shard(tensor.name, int(to_rows[0]) // n_rows, [contents.data])
    return True


def _missing(
    source: StoredTensor, target: StoredTensor | None, pairs: Pairs, n_rows: int
) -> tuple[tuple[Rows, Rows], list[int]]:
    """Rows of the target that the source can fill, and the rows of the source that do; and rows that differ."""
    known = [] if target is None else target.states.tolist()
    states = known + [int(RowState.ABSENT)] * (n_rows - len(known))
    there = (source.states == RowState.PRESENT).tolist()
    fill, different = [], []
    for row, from_rows in sorted(pairs.sources.items()):
        present = [each for each in from_rows if there[each]]
        if not present:
            continue
        if states[row] == RowState.ABSENT:
            fill.append((row, present[0]))
        elif (
            target is not None
            and states[row] == RowState.PRESENT
            and target.checksums[row] not in source.checksums[present]
        ):
            different.append(row)
    both = np.array(fill, np.int64).reshape(-1, 2)
    return (both[:, 0], both[:, 1]), different


def _different(source: StoredTensor, target: StoredTensor, rows: list[int]) -> StoreError:
    here, there = source.location.name, target.location.name
    return StoreError(
        f"tensor {source.name!r}: {here} and {there} hold different values of {len(rows)} images under the same "
        f"identity, of {target.images.paths[rows[0]]!r} for one; neither is overwritten: `featstore diff {here} "
        f"{there}` says how far apart they are, --leave-different lets each side keep its own and moves the rest, and "
        "`featstore rm` and a pull make one side like the other"
    )


def _check_same_features(source: StoredTensor, target: StoredTensor) -> None:
    differing = source.layout.differences(target.layout)
    if not differing and source.dtype == target.dtype:
        return
    raise LayoutError(
        f"tensor {source.name!r} holds other features in {source.location.name} (here) than in "
        f"{target.location.name} (there):\n"
        + "\n".join(f"  - {text}" for text in differing or [f"dtype: {source.dtype} here, {target.dtype} there"])
        + "\nfeatures that differ never mix: extract one of them under another name, or name other --tensors; "
        "nothing was changed"
    )


def _listed(source: Store, rows: list[int]) -> NewImages:
    images = source.images
    return NewImages(
        [images.paths[row] for row in rows],
        images.digests[rows],
        images.n_bytes[rows].tolist(),
        images.modified_ns[rows].tolist(),
    )


def _public(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name not in PRIVATE}
