"""The plan: what has to be computed, what can be copied, and why; made before anything is written.

Made without loading a network where it can be, so that a run with nothing to do says so at once.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from featstore.errors import LayoutError
from featstore.extraction.changes import Listing
from featstore.extraction.networks import Networks
from featstore.extraction.rows import Copies
from featstore.store import ImageState, RowState, Store, StoredTensor, TensorLayout
from featstore.store.format.limits import check_room_in_memory
from featstore.store.format.metadata import BLOCK_ROWS
from featstore.support import LISTED, few

NEW, CHANGED, ABSENT, NEW_TENSOR, REPLACED = "new photo", "changed photo", "absent", "new tensor", "replaced"
REASONS = {
    NEW: "photos that the store does not know",
    CHANGED: "photos whose bytes have changed",
    ABSENT: "rows not computed yet: a run was stopped before them, or `repair` or `retry` marked them",
    NEW_TENSOR: "photos, for the tensor is new",
    REPLACED: "photos, for the tensor is replaced",
}


@dataclass
class TensorWork:
    """What one tensor needs."""

    layout: TensorLayout
    row_bytes: int
    differences: list[str] = field(default_factory=list)
    """How what the store has under this name differs, if it is to be replaced."""
    reasons: dict[str, list[str]] = field(default_factory=dict)
    """By reason, the paths of the photos whose row has to be filled."""
    copied: Counter[str] = field(default_factory=Counter)
    """By segment, how many photos' features the store has already."""
    computed: Counter[str] = field(default_factory=Counter)
    """By segment, how many photos' features have to be computed."""
    waiting: list[str] = field(default_factory=list)
    """Photos whose row cannot be filled yet: it takes features that have to be imported."""
    n_shards: int = 0
    """Files that this adds."""
    shard_bytes: int = 0

    @property
    def n_rows(self) -> int:
        return sum(map(len, self.reasons.values()))

    @property
    def n_bytes(self) -> int:
        """What the disk needs for it: a shard has its full size from the beginning."""
        return self.n_shards * self.shard_bytes


@dataclass
class ExtractionPlan:
    """What an extraction will do."""

    listing: Listing
    tensors: list[TensorWork]
    passes: Counter[str]
    """By segment hash, the photos that it has to be computed for."""
    n_computed: int = 0
    """Photos for which some network has to run."""
    again: frozenset[str] = frozenset()
    """Hashes of segments that photos which could not be read are tried for again, as their tensor is new."""
    reuse: Sequence[Store] = ()
    """Other stores to copy from."""
    unreached: dict[str, str] = field(default_factory=dict)
    """Those that were to be looked into and could not be opened, and why."""

    @property
    def layouts(self) -> list[TensorLayout]:
        return [tensor.layout for tensor in self.tensors]

    @property
    def names(self) -> list[str]:
        return [tensor.layout.name for tensor in self.tensors]

    @property
    def work(self) -> bool:
        if self.listing.changes or any(tensor.n_rows or tensor.differences for tensor in self.tensors):
            return True
        store = self.listing.store
        if store is None:
            return False
        # A run that was killed at its very end has left things to put in order, or what it had replaced.
        replaced = {tensor.replaced_by for tensor in store.tensors.values()}
        return store.unfinished or bool(replaced & set(self.names))

    @property
    def n_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)


def make_plan(
    listing: Listing,
    layouts: Sequence[TensorLayout],
    dtypes: Sequence[str],
    *,
    computable: Collection[str],
    replace: bool = False,
    reuse: Sequence[Store] = (),
) -> ExtractionPlan:
    """Hold what is asked for against what the store has.

    Args:
        dtypes: of the layouts.
        computable: hashes of the segments that networks are here for; the others have to be copied.
        replace: whether a tensor with other features under its name may be replaced.
        reuse: other stores to copy from.

    Raises:
        LayoutError: it may not, and there is one; says in words what differs. Or it would lose features whose
            weights are not here, or its row blocks would be too large.
    """
    store = listing.store
    sources = [*([] if store is None else [store]), *reuse]
    copies = Copies(sources, {s.hash for layout in layouts for s in layout.segments})
    rows, digests, new = listing.rows(), listing.digests(), {photo.path for photo, _ in listing.new}
    passes: dict[str, set[str]] = {}
    again: set[str] = set()
    tensors, block_rows = [], BLOCK_ROWS if store is None else store.block_rows
    for layout, dtype in zip(layouts, dtypes, strict=True):
        stored = None if store is None else store.tensors.get(layout.name)
        check_room_in_memory(layout, dtype, block_rows)
        work = TensorWork(layout, layout.row_bytes(dtype))
        if store is not None and stored is not None:
            if not replace:
                stored.check_same_layout(layout)
            work.differences = layout.differences(stored.layout) if _holds_something(stored) else []
            lost = {segment.name for segment in stored.layout.segments} & set(layout.missing)
            if work.differences and lost:
                raise LayoutError(
                    f"tensor {layout.name!r} holds {few(sorted(lost), LISTED)}, whose weights are not here: replacing "
                    "it loses what cannot be made again; extract under another name, or `featstore rm` it first"
                )
        kept = None if stored is None or layout.differences(stored.layout) else stored
        for path, row in rows.items():
            reason = _reason(path, row, kept, new=new, listing=listing, replaced=bool(work.differences))
            if not reason and kept is not None:
                continue
            at_hand = copies.available(digests[path])
            if not reason:
                again.update(s.hash for s in layout.segments if s.hash in computable and s.hash not in at_hand)
                continue
            if any(s.hash not in at_hand and s.hash not in computable for s in layout.segments):
                work.waiting.append(path)
                continue
            work.reasons.setdefault(reason, []).append(path)
            for segment in layout.segments:
                (work.copied if segment.hash in at_hand else work.computed)[segment.name] += 1
                if segment.hash not in at_hand:
                    passes.setdefault(segment.hash, set()).add(path)
        blocks = {rows[path] // block_rows for paths in work.reasons.values() for path in paths}
        there = set() if kept is None else set((np.flatnonzero(kept.states) // block_rows).tolist())
        work.n_shards, work.shard_bytes = len(blocks - there), block_rows * (work.row_bytes + 20) + 4
        tensors.append(work)
    counts = Counter({key: len(paths) for key, paths in passes.items()})
    return ExtractionPlan(listing, tensors, counts, len(set().union(*passes.values())), frozenset(again), reuse)


def foretell(plan: ExtractionPlan, networks: Networks) -> list[str]:
    """What a plan will leave undone, in words."""
    told = [f"{place} was not looked into before computing: {reason}" for place, reason in plan.unreached.items()]
    told += networks.resized
    told += [f"left out: {why}" for why in dict.fromkeys(networks.unfit.values())]
    if networks.left_out:
        told.append(f"left out, as their weights are not here: {few(networks.left_out, LISTED)}; the tensors say so")
    if networks.dropped:
        told.append(f"not made, as nothing is left of them: {few(networks.dropped, LISTED)}")
    for tensor in plan.tensors:
        if tensor.waiting:
            told.append(
                f"tensor {tensor.layout.name}: {len(tensor.waiting)} rows wait for features that have to be imported, "
                f"as of {few(tensor.waiting)}"
            )
    return told


def _holds_something(tensor: StoredTensor) -> bool:
    return bool((tensor.states == RowState.PRESENT).any())


def _reason(
    path: str, row: int, kept: StoredTensor | None, *, new: set[str], listing: Listing, replaced: bool
) -> str | None:
    """Why a row has to be filled, if it has to."""
    if path in new:
        return CHANGED if path in listing.changed else NEW
    if kept is None:
        assert listing.store is not None
        if int(listing.store.images.states[row]) == ImageState.UNREADABLE:
            return None
        return REPLACED if replaced else NEW_TENSOR
    return ABSENT if int(kept.states[row]) == RowState.ABSENT else None
