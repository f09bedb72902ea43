"""store -> groups of rows -> minibatches, out of core, through Dask.

Features that fit in the memory allowed are read once and are one group. Others stream: groups of row blocks in
shuffled order, each in use by all models that are trained together while the next one is being read.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.errors import FeaturesError

if TYPE_CHECKING:
    import featstore

    Rows = NDArray[np.int64]

Prepare = Callable[[int, Tensor], None]
"""(number of the tensor, rows of it as float32) -> None: changes them in place, a few at a time, still in the cache."""
LARGE_BYTES = 1 << 16
MINIBATCH = 32
"""Rows of float32 features that a thread is at, or so; what is only looked at comes in batches of this size."""
SHARE_IN_MEMORY = 0.5
"""Features that take more than this of the memory allowed stream: models and minibatches need the rest."""
IN_FLIGHT = 3
"""Groups in memory: two in use, as models do not end with one at the same time, and one being read."""


class Group:
    """Rows of one or more tensors in memory.

    Args:
        rows: (n,) numbers of the rows, in the order of `blocks`.
        blocks: for each tensor, arrays whose rows together are those n.
    """

    def __init__(self, rows: "Rows", blocks: Sequence[Sequence[NDArray[Any]]]) -> None:
        self.rows = rows
        self._order = np.argsort(rows)
        self._sorted = rows[self._order]
        self.blocks = blocks
        self._blocks = [[torch.from_numpy(block) for block in tensor] for tensor in blocks]
        self._starts = np.concatenate([[0], np.cumsum([len(block) for block in blocks[0]])]).astype(np.int64)

    def holds(self, rows: "Rows") -> "Rows":
        """Those of the rows that are here."""
        return rows[np.isin(rows, self._sorted, assume_unique=True)]

    def batch(
        self, rows: "Rows", prepare: Prepare | None = None, device: torch.device | None = None
    ) -> tuple["Rows", tuple[Tensor, ...]]:
        """The rows in another order that is quicker to gather, and their float32 features."""
        places = np.sort(self._order[np.searchsorted(self._sorted, rows)])
        features = [self._gather(number, places, prepare, device) for number in range(len(self._blocks))]
        return self.rows[places], tuple(features)

    def _gather(self, number: int, places: "Rows", prepare: Prepare | None, device: torch.device | None) -> Tensor:
        blocks = self._blocks[number]
        shape = blocks[0].shape[1:]
        if device is not None and device.type != "cpu":
            parts = [blocks[block][torch.from_numpy(here)] for block, here in self._parts(places)]
            features = torch.cat(parts).to(device, non_blocking=True).float()
            if prepare:
                prepare(number, features)
            return features
        features = torch.empty((len(places), *shape))
        large = 4 * shape.numel() >= LARGE_BYTES
        end = 0
        for block, here in self._parts(places):
            if large:  # row by row: what has been converted is still in the cache when it is prepared
                for place in here.tolist():
                    row = features[end]
                    row.copy_(blocks[block][place])
                    if prepare:
                        prepare(number, row)
                    end += 1
            else:
                some = features[end : end + len(here)]
                some.copy_(blocks[block][torch.from_numpy(here)])
                if prepare:
                    prepare(number, some)
                end += len(here)
        return features

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

    Raises:
        FeaturesError: values that are not floats.
    """

    def __init__(self, tensors: Sequence["featstore.StoredTensor"], rows: "Rows", *, memory_bytes: int) -> None:
        for tensor in tensors:
            if tensor.dtype.kind != "f":
                raise FeaturesError(f"{tensor} holds {tensor.dtype}; heads learn from floats")
        self._tensors, self._rows = list(tensors), rows
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
    def row_bytes(self) -> int:
        return sum(int(np.prod(tensor.layout.row_shape)) * tensor.dtype.itemsize for tensor in self._tensors)

    @property
    def n_bytes(self) -> int:
        return len(self) * self.row_bytes

    @property
    def stream_bytes(self) -> int:
        """What is left of the memory allowed for groups of rows and models, when features stream."""
        minibatches = 6 * MINIBATCH * sum(4 * int(np.prod(shape)) for shape in self.shapes)
        return max(0, self.memory_bytes - minibatches)

    @property
    def fits(self) -> bool:
        return self.n_bytes <= SHARE_IN_MEMORY * self.memory_bytes

    def load(self, on_progress: Callable[[int, int], None]) -> None:
        """Read everything once, if it fits in the memory allowed."""
        if not self.fits or self._resident is not None:
            return
        rows: list[Rows] = []
        blocks: list[list[NDArray[Any]]] = [[] for _ in self._tensors]
        for group in self._stream(np.arange(len(self)), None, 0):
            rows.append(group.rows)
            for held, more in zip(blocks, group.blocks, strict=True):
                held += more
            on_progress(sum(map(len, rows)), len(self))
        self._resident = Group(np.concatenate(rows), blocks)

    @property
    def resident(self) -> bool:
        return self._resident is not None

    def groups(
        self, rows: "Rows | None" = None, *, rng: np.random.Generator | None = None, budget_bytes: int | None = None
    ) -> Iterator[Group]:
        """Groups that together hold the rows (all if None): one if they are resident, or else of some row blocks each.

        Which blocks come together, and when, depends on `rng` and the budget, not on the rows asked for, so that a
        model sees its rows in the same order whichever others are trained with it.

        Args:
            rng: shuffles the blocks.
            budget_bytes: for all groups that are in memory at a time.
        """
        if self._resident is not None:
            yield self._resident
            return
        wanted = np.arange(len(self)) if rows is None else np.sort(rows)
        yield from self._stream(wanted, rng, self.stream_bytes if budget_bytes is None else budget_bytes)

    def _stream(self, rows: "Rows", rng: np.random.Generator | None, budget_bytes: int) -> Iterator[Group]:
        cuts = np.searchsorted(rows, self._starts)  # block b has rows[cuts[b]:cuts[b + 1]]
        blocks = np.arange(len(cuts) - 1)
        if rng is not None:
            blocks = rng.permutation(blocks)
        block_bytes = int(np.diff(self._starts).max(initial=1)) * self.row_bytes
        per_group = max(1, budget_bytes // (IN_FLIGHT * block_bytes))
        groups = [blocks[i : i + per_group] for i in range(0, len(blocks), per_group)]
        held = [[rows[cuts[block] : cuts[block + 1]] for block in group] for group in groups]
        held = [wanted for group in held if (wanted := [each for each in group if len(each)])]
        with ThreadPoolExecutor(1) as ahead:
            waiting = [ahead.submit(self._read, wanted) for wanted in held[:1]]
            for following in held[1:]:
                group = waiting.pop().result()
                waiting.append(ahead.submit(self._read, following))
                yield group
                del group  # nothing here holds on to it while the next one is awaited
            if waiting:
                yield waiting.pop().result()

    def _read(self, blocks: list["Rows"]) -> Group:
        """The rows of some row blocks, read by Dask side by side."""
        import dask

        lazy = [
            dask.delayed(tensor.read, pure=False)(self._rows[block]) for tensor in self._tensors for block in blocks
        ]
        read: tuple[NDArray[Any], ...] = dask.compute(*lazy, scheduler="threads", optimize_graph=False)
        n = len(blocks)
        return Group(np.concatenate(blocks), [read[i * n : (i + 1) * n] for i in range(len(self._tensors))])
