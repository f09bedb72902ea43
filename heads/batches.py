"""store -> shuffled minibatches, out of core, through Dask.

Features that fit in the memory allowed are read once. Others stream: row blocks in shuffled order, several
at a time, shuffled together in memory while the next ones are being read.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    import featstore


class Features:
    """The rows of a stored tensor that a head learns from, numbered 0 .. N-1.

    Args:
        rows: row numbers in the store, ascending; features are numbered in this order.
        memory_bytes: how much of them may be in memory at once; a few row blocks always are.
    """

    def __init__(self, tensor: "featstore.StoredTensor", rows: NDArray[np.int64], *, memory_bytes: int) -> None:
        self.shape = tensor.layout.row_shape
        self._array: Any = tensor.dask(rows)
        self._starts = np.concatenate([[0], np.cumsum(self._array.chunks[0])])
        self._row_bytes = int(np.prod(self.shape)) * tensor.dtype.itemsize
        self._memory_bytes = memory_bytes
        self._resident: NDArray[Any] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def n_bytes(self) -> int:
        return len(self) * self._row_bytes

    @property
    def fits(self) -> bool:
        return self.n_bytes <= self._memory_bytes

    def load(self, on_progress: Callable[[int, int], None]) -> None:
        """Read everything once, if it fits in the memory allowed."""
        if not self.fits or self._resident is not None:
            return
        resident = np.empty((len(self), *self.shape), self._array.dtype)
        n_blocks = len(self._starts) - 1
        for block in range(n_blocks):
            resident[self._starts[block] : self._starts[block + 1]] = self._read([block])[0]
            on_progress(block + 1, n_blocks)
        self._resident = resident

    def batches(
        self, rows: NDArray[np.int64], size: int, *, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """(rows, float32 features) in batches of `size`, shuffled if `rng` is given, in ascending order if not."""
        if self._resident is not None:
            order = np.sort(rows) if rng is None else rng.permutation(rows)
            for start in range(0, len(order), size):
                part = order[start : start + size]
                yield part, torch.from_numpy(self._resident[part]).float()
            return
        yield from self._stream(rows, size, rng)

    def _stream(
        self, rows: NDArray[np.int64], size: int, rng: np.random.Generator | None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        rest_rows = np.empty(0, np.int64)
        rest = np.empty((0, *self.shape), self._array.dtype)
        for found, values in self._groups(np.sort(rows), rng):
            found, values = np.concatenate([rest_rows, found]), np.concatenate([rest, values])
            order = np.arange(len(found)) if rng is None else rng.permutation(len(found))
            full = len(found) - len(found) % size
            for start in range(0, full, size):
                part = order[start : start + size]
                yield found[part], torch.from_numpy(values[part]).float()
            rest_rows, rest = found[order[full:]], values[order[full:]]
        if len(rest_rows):
            yield rest_rows, torch.from_numpy(rest).float()

    def _groups(
        self, rows: NDArray[np.int64], rng: np.random.Generator | None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """The rows of several row blocks at a time, read by Dask while those before them are in use."""
        cuts = np.searchsorted(rows, self._starts)  # block b has rows[cuts[b]:cuts[b + 1]]
        blocks = np.flatnonzero(np.diff(cuts))
        if rng is not None:
            blocks = rng.permutation(blocks)
        # At most two groups are in use and two being read, beside what Dask and zarr need to read one.
        block_bytes = int(np.diff(self._starts).max(initial=1)) * self._row_bytes
        per_group = max(1, self._memory_bytes // 8 // block_bytes)
        groups = [blocks[i : i + per_group] for i in range(0, len(blocks), per_group)]

        def read(group: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
            wanted = [rows[cuts[block] : cuts[block + 1]] for block in group]
            ends = np.cumsum([len(each) for each in wanted])
            values = np.empty((ends[-1], *self.shape), self._array.dtype)
            for block, here, end, part in zip(group, wanted, ends, self._read(group), strict=True):
                values[end - len(here) : end] = part[here - self._starts[block]]
            return np.concatenate(wanted), values

        with ThreadPoolExecutor(1) as ahead:
            waiting = [ahead.submit(read, group) for group in groups[:1]]
            for following in groups[1:]:
                waiting.append(ahead.submit(read, following))
                yield waiting.pop(0).result()  # and nothing here holds on to it
            if waiting:
                yield waiting.pop().result()

    def _read(self, blocks: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        import dask

        parts: tuple[NDArray[Any], ...]
        parts = dask.compute(*[self._array.blocks[int(block)] for block in blocks], scheduler="threads")
        return parts
