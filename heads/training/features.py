"""The data loader: store -> groups of rows -> minibatches, out of core, through Dask.

Features that fit in the memory allowed are read once and are one group. Others stream: groups of row blocks in
shuffled order, each in use by all models that are trained together while the next one is being read.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.support import Progress, n_cores, no_progress
from heads.errors import FeaturesError

if TYPE_CHECKING:
    import featstore

    Rows = NDArray[np.int64]

Prepare = Callable[[int, Tensor], None]
"""(number of the tensor, rows of it as float32) -> None: changes them in place, a few at a time, still in the cache.

Pixels stay bytes until a model has cut its crops out of them: as float32 they would be four times the traffic."""
LARGE_BYTES = 1 << 16
MINIBATCH = 32
"""Rows of float32 features that a thread is at, or so; what is only looked at comes in batches of this size."""
SHARE_IN_MEMORY = 0.5
"""Features that take more than this of the memory allowed stream: models and minibatches need the rest."""
AHEAD = 2
"""Groups that are being read while others are in use."""
IN_FLIGHT = 2 + AHEAD
"""Groups in memory: two in use, as models do not end with one at the same time, and those being read."""


class Group:
    """Rows of one or more tensors in memory.

    Args:
        rows: (n,) numbers of the rows, in the order of `blocks`.
        blocks: for each tensor, arrays whose rows together are those n.
        copies: for each tensor the same rows of its augmented copies, and their axis; empty if there are none.
    """

    def __init__(
        self,
        rows: "Rows",
        blocks: Sequence[Sequence[NDArray[Any]]],
        copies: Sequence[tuple[Sequence[NDArray[Any]], int]] = (),
    ) -> None:
        self.rows = rows
        self._order = np.argsort(rows)
        self._sorted = rows[self._order]
        self.blocks, self.copies = blocks, copies
        # By tensor, by view (0 the photo itself, then its copies), by block.
        self._views = [[[torch.from_numpy(block) for block in tensor]] for tensor in blocks]
        for views, (held, axis) in zip(self._views, copies, strict=False):
            by_block = [torch.from_numpy(block).unbind(axis) for block in held]
            views += [list(copy) for copy in zip(*by_block, strict=True)]
        self._starts = np.concatenate([[0], np.cumsum([len(block) for block in blocks[0]])]).astype(np.int64)

    @property
    def n_views(self) -> int:
        """The photo itself and its augmented copies."""
        return len(self._views[0])

    @property
    def device(self) -> torch.device:
        """Where the features lie."""
        return self._views[0][0][0].device

    def on(self, device: torch.device) -> "Group":
        """The same rows on another device, from where minibatches are gathered without this one."""
        there = copy(self)
        there._views = [[[_joined_on(device, view)] for view in views] for views in self._views]
        there._starts = np.array([0, len(self.rows)], np.int64)
        return there

    def holds(self, rows: "Rows") -> "Rows":
        """Those of the rows that are here."""
        return rows[np.isin(rows, self._sorted, assume_unique=True)]

    def batch(
        self,
        rows: "Rows",
        prepare: Prepare | None = None,
        device: torch.device | None = None,
        *,
        views: "Rows | None" = None,
        out: Sequence[Tensor] | None = None,
    ) -> tuple["Rows", tuple[Tensor, ...]]:
        """The rows in another order that is quicker to gather, and their float32 features.

        Args:
            views: (n,) of which view of each photo, 0 for the photo itself; the photos themselves if None.
            out: where the features of each tensor go; new tensors if None.
        """
        places = self._order[np.searchsorted(self._sorted, rows)]
        if views is None:
            pieces = [(0, np.sort(places))]
        else:
            pieces = [(int(view), np.sort(places[views == view])) for view in np.unique(views)]
        first = [views[0][0] for views in self._views]
        features = out or [
            torch.empty((len(rows), *block.shape[1:]), dtype=learnt_as(block.dtype), device=device) for block in first
        ]
        for number, place in enumerate(features):
            self._gather(number, pieces, prepare, place)
        return self.rows[np.concatenate([places for _, places in pieces])], tuple(features)

    def _gather(self, number: int, pieces: list[tuple[int, "Rows"]], prepare: Prepare | None, features: Tensor) -> None:
        views = self._views[number]
        parts = [(views[view][block], here) for view, places in pieces for block, here in self._parts(places)]
        if features.device.type != "cpu":
            found = torch.cat([rows[index_on(rows.device, here)] for rows, here in parts])
            features.copy_(found, non_blocking=True)
            if prepare:
                prepare(number, features)
            return
        large = features.element_size() * features.shape[1:].numel() >= LARGE_BYTES
        end = 0
        for rows, here in parts:
            if large:  # row by row: what has been converted is still in the cache when it is prepared
                for place in here.tolist():
                    row = features[end]
                    row.copy_(rows[place])
                    if prepare:
                        prepare(number, row)
                    end += 1
            else:
                some = features[end : end + len(here)]
                some.copy_(rows[torch.from_numpy(here)])
                if prepare:
                    prepare(number, some)
                end += len(here)

    def _parts(self, places: "Rows") -> Iterator[tuple[int, "Rows"]]:
        """For each block with any of the ascending places, its number and the places within it."""
        cuts = np.searchsorted(places, self._starts)
        for block in np.flatnonzero(np.diff(cuts)):
            yield int(block), places[cuts[block] : cuts[block + 1]] - self._starts[block]


class Features:
    """The rows of one or more stored tensors that heads learn from, numbered 0 .. N-1.

    Args:
        rows: row numbers in the store, ascending, present in every tensor; features are numbered in this order.
        memory_bytes: how much of them may be in memory at once; a few row blocks always are.
        copies: for each tensor that of its augmented copies; none if empty.

    Raises:
        FeaturesError: values that are neither floats nor pixels.
    """

    def __init__(
        self,
        tensors: Sequence["featstore.StoredTensor"],
        rows: "Rows",
        *,
        memory_bytes: int,
        copies: Sequence["featstore.StoredTensor"] = (),
    ) -> None:
        for tensor in (*tensors, *copies):
            if tensor.dtype.kind != "f" and tensor.layout.kind != "pixels":
                raise FeaturesError(f"{tensor} holds {tensor.dtype}; heads learn from floats")
        self._tensors, self._copies, self._rows = list(tensors), list(copies), rows
        self.memory_bytes = memory_bytes
        self._starts = np.concatenate([[0], np.cumsum([len(block) for block in tensors[0].blocks(rows)])])
        self._resident: Group | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of one row of each tensor."""
        return tuple(tensor.layout.row_shape for tensor in self._tensors)

    @property
    def layouts(self) -> tuple[str, ...]:
        """Of each tensor: stack or concat."""
        return tuple(tensor.layout.kind for tensor in self._tensors)

    @property
    def segments(self) -> tuple[tuple[str, int], ...]:
        """What stands side by side in a row of all tensors, flattened: the name of a segment, and how many features."""
        return tuple(
            (segment.name, int(np.prod(shape[1:])) if kind == "stack" else segment.n_blocks * segment.width)
            for tensor, shape, kind in zip(self._tensors, self.shapes, self.layouts, strict=True)
            for segment in tensor.layout.segments
        )

    @property
    def row_bytes(self) -> int:
        every = (*self._tensors, *self._copies)
        return sum(int(np.prod(tensor.layout.row_shape)) * tensor.dtype.itemsize for tensor in every)

    @property
    def learnt_bytes(self) -> int:
        """What a row takes in a minibatch: float32, and of pixels their bytes."""
        return sum(
            int(np.prod(tensor.layout.row_shape)) * (1 if tensor.layout.kind == "pixels" else 4)
            for tensor in self._tensors
        )

    @property
    def n_bytes(self) -> int:
        return len(self) * self.row_bytes

    @property
    def stream_bytes(self) -> int:
        """What is left of the memory allowed for groups of rows and models, when features stream."""
        return max(0, self.memory_bytes - 12 * MINIBATCH * self.learnt_bytes)

    @property
    def fits(self) -> bool:
        return self.n_bytes <= SHARE_IN_MEMORY * self.memory_bytes

    def load(self, on_progress: Progress = no_progress) -> None:
        """Read everything once, if it fits in the memory allowed."""
        if not self.fits or self._resident is not None:
            return
        parts: list[Group] = []
        for group in self._stream(np.arange(len(self)), None, 0, copies=True):
            parts.append(group)
            on_progress("read", sum(len(part.rows) for part in parts), len(self))
        self._resident = _joined(parts)

    @property
    def resident(self) -> bool:
        return self._resident is not None

    def groups(
        self,
        rows: "Rows | None" = None,
        *,
        rng: np.random.Generator | None = None,
        budget_bytes: int | None = None,
        copies: bool = False,
    ) -> Iterator[Group]:
        """Groups that together hold the rows (all if None): one if they are resident, or else of some row blocks each.

        Which blocks come together, and when, depends on `rng` and the budget, not on the rows asked for, so that a
        model sees its rows in the same order whichever others are trained with it.

        Args:
            rng: shuffles the blocks.
            budget_bytes: for all groups that are in memory at a time.
            copies: read the augmented copies as well; features in memory have them anyway.
        """
        if self._resident is not None:
            yield self._resident
            return
        wanted = np.arange(len(self)) if rows is None else np.sort(rows)
        budget_bytes = self.stream_bytes if budget_bytes is None else budget_bytes
        yield from self._stream(wanted, rng, budget_bytes, copies=copies)

    def _stream(
        self, rows: "Rows", rng: np.random.Generator | None, budget_bytes: int, *, copies: bool
    ) -> Iterator[Group]:
        cuts = np.searchsorted(rows, self._starts)  # block b has rows[cuts[b]:cuts[b + 1]]
        blocks = np.arange(len(cuts) - 1)
        if rng is not None:
            blocks = rng.permutation(blocks)
        block_bytes = int(np.diff(self._starts).max(initial=1)) * self.row_bytes
        per_group = max(1, budget_bytes // (IN_FLIGHT * block_bytes))
        groups = [blocks[i : i + per_group] for i in range(0, len(blocks), per_group)]
        held = [[rows[cuts[block] : cuts[block + 1]] for block in group] for group in groups]
        held = [wanted for group in held if (wanted := [each for each in group if len(each)])]
        with ThreadPoolExecutor(_n_readers()) as readers, ThreadPoolExecutor(AHEAD) as reading:
            waiting = deque(reading.submit(self._read, wanted, readers, copies) for wanted in held[:AHEAD])
            for number in range(len(held)):
                group = waiting.popleft().result()
                waiting += [
                    reading.submit(self._read, wanted, readers, copies) for wanted in held[number + AHEAD :][:1]
                ]
                yield group
                del group  # nothing here holds on to it while the next one is awaited

    def _read(self, blocks: list["Rows"], readers: ThreadPoolExecutor, copies: bool) -> Group:
        """The rows of some row blocks, read by Dask side by side."""
        import dask.threaded

        every = [*self._tensors, *(self._copies if copies else ())]
        # The graph is written out: dask.delayed would take as long to make it as the reading does.
        graph = {
            (number, place): (tensor.read, self._rows[block])
            for number, tensor in enumerate(every)
            for place, block in enumerate(blocks)
        }
        keys = [[(number, place) for place in range(len(blocks))] for number in range(len(every))]
        if len(graph) == 1:  # the scheduler would take a seventh of the time of a single read
            read = [[every[0].read(self._rows[blocks[0]])]]
        else:
            read = [list(tensor) for tensor in dask.threaded.get(graph, keys, pool=readers)]
        n = len(self._tensors)
        axes = [tensor.layout.axes.index("copy") for tensor in every[n:]]
        return Group(np.concatenate(blocks), read[:n], list(zip(read[n:], axes, strict=True)))


def index_on(device: torch.device, places: "Rows") -> Tensor:
    """Numbers of rows, for what lies on a device; nobody waits until it is done with what it was given before."""
    here = torch.from_numpy(places)
    return here if device.type == "cpu" else here.pin_memory().to(device, non_blocking=True)


def _joined_on(device: torch.device, blocks: Sequence[Tensor]) -> Tensor:
    """The rows of all blocks in one piece, of which there is never a second copy."""
    whole = torch.empty((sum(map(len, blocks)), *blocks[0].shape[1:]), dtype=blocks[0].dtype, device=device)
    start = 0
    for block in blocks:
        whole[start : start + len(block)] = block
        start += len(block)
    return whole


def learnt_as(dtype: torch.dtype) -> torch.dtype:
    """Of stored values, what a model is given: float32, or pixels as they are."""
    return dtype if dtype == torch.uint8 else torch.float32


def _joined(groups: Sequence[Group]) -> Group:
    """All rows of some groups, without a copy of them."""
    blocks = [[block for each in tensor for block in each] for tensor in zip(*(g.blocks for g in groups), strict=True)]
    copies = [
        ([block for held, _ in tensor for block in held], tensor[0][1])
        for tensor in zip(*(g.copies for g in groups), strict=True)
    ]
    return Group(np.concatenate([group.rows for group in groups]), blocks, copies)


def _n_readers() -> int:
    return max(AHEAD, min(n_cores(), 8))
