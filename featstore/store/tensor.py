"""Reading a tensor: as rows, row blocks, NumPy, pandas, Dask, xarray or a torch dataset.

Every row that is handed out is marked present in the commit record and has the checksum that was recorded when it
was computed; all ways of reading go through `StoredTensor.read`.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from featstore.errors import MEND, AbsentRowsError, DamagedError, FormatError, LayoutError
from featstore.store.format.images import ImageState, ImageTable, RowState, read_record
from featstore.store.format.layout import TensorLayout
from featstore.store.format.limits import check_block
from featstore.store.format.metadata import PARTS, Compression, TensorFacts
from featstore.store.places.place import Location
from featstore.store.rows.source import RowFacts, RowReader, source_of
from featstore.support import few, html_table

if TYPE_CHECKING:
    import dask.array
    import pandas
    import torch.utils.data
    import xarray

AHEAD = 2  # row blocks read ahead, each on a thread: reading lets go of Python's lock


class StoredTensor:
    """One tensor: (N, B, T, F) of a stack, (N, F) of a concatenation.

    It is read like an array whose rows are those of `Store.images`: `tensor[3]`, `tensor[:10]`, `np.asarray(tensor)`.
    A row that is not present is an error and never data; `tensor.pandas()` has those that are, under their paths.

    Args:
        arrays: its three, by the names that `PARTS` lists: features, commit record, checksums.
        images: the images table of its store.
        location: where its store is.
        keep_mapped: see `open_store`.

    Raises:
        FormatError: what the arrays say of themselves cannot be, or does not agree.
    """

    def __init__(
        self,
        name: str,
        arrays: Mapping[str, "zarr.Array[Any]"],
        *,
        images: ImageTable,
        location: Location,
        block_rows: int,
        keep_mapped: bool = True,
    ) -> None:
        self.name, self.images, self.location, self.block_rows = name, images, location, block_rows
        self._keep_mapped = keep_mapped
        array, record, checksums = (arrays[part] for part in PARTS)
        self._array = array
        self.layout = TensorLayout.from_attributes(name, array.attrs.asdict(), array.shape[1:])
        """Its kind, axes and segments."""
        declared = {str(segment.identity.get("dtype", array.dtype)) for segment in self.layout.segments}
        if declared != {str(array.dtype)}:
            raise FormatError(f"tensor {name!r} holds {array.dtype}, and its segments say {', '.join(declared)}")
        check_block(block_rows, self.row_bytes, str(self))
        places = [f"{location.name}: {part}/{name}" for part in ("rows", "checksums")]
        # The record first: a writer at work commits the checksums before it.
        self.states: NDArray[np.uint8] = read_record(record, len(images), places[0])
        """(N,) the `RowState` of every row."""
        self.checksums: NDArray[np.uint32] = read_record(checksums, len(images), places[1])
        """(N,) the CRC-32C of every row."""

    def __str__(self) -> str:
        return f"tensor {self.name!r} in {self.location.name}"

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis} {n}" for axis, n in zip(self.layout.axes, self.shape, strict=True))
        present = f"{len(self.rows)} of {len(self)} rows present"
        return f"<{self}: {self.layout.kind} ({axes}), {self.dtype}, {present}>"

    def _repr_html_(self) -> str:
        header = ("segment", *(("blocks",) if self.layout.kind == "stack" else ()), "width", "identity")
        segments = self.layout.segments
        rows = [(s.name, *((s.n_blocks,) if len(header) == 4 else ()), s.width, s.hash) for s in segments]
        return html_table(header, rows, above=repr(self)[1:-1])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Rows by their numbers, as NumPy has them: one, a slice, a list, a mask of all; then the other axes.

        Raises:
            AbsentRowsError, DamagedError: as `read`.
            IndexError: there is no such row or place in it.
        """
        first, *others = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis or first is None:
            raise IndexError(f"{self}: say which rows, as [:10] or [:, 0]")
        rows = np.arange(len(self))[first]
        found = self.read(np.atleast_1d(rows))
        return found[(0 if np.ndim(rows) == 0 else slice(None), *others)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All rows: row i belongs to image i of the store, so that none may be absent."""
        if copy is False:
            raise ValueError(f"{self} is read from its store, which makes a copy")
        if (self.states != RowState.PRESENT).any():
            absent = np.flatnonzero(self.states != RowState.PRESENT)
            raise AbsentRowsError(
                f"{self} has no features of {len(absent)} of {len(self)} images "
                f"({few((self.images.paths[row] for row in absent), 3)}), so it is no whole array; "
                "take those that are there: tensor.pandas(), or tensor.read(tensor.rows) beside tensor.paths"
            )
        return self.read(np.arange(len(self))).astype(dtype or self.dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        """For the worker processes of a torch loader: open files stay here, each process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_source"}

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the stored features."""
        return np.dtype(self._array.dtype)

    @property
    def compression(self) -> Compression | None:
        """The codec that rows are compressed with, if any."""
        named: Any = self._array.attrs.get("compress")
        return cast(Compression | None, named)

    @property
    def replaced_by(self) -> str | None:
        """The tensor that this one was set aside for, until that one is complete."""
        named = self._array.attrs.get("replaced_by")
        return str(named) if named else None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, B, T, F) of a stack, (N, F) of a concatenation; N counts absent rows too."""
        return (len(self.images), *self.layout.row_shape)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def row_bytes(self) -> int:
        """The bytes of one row, uncompressed."""
        return self.layout.row_bytes(self.dtype)

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """What each run that wrote to this tensor ran on: versions, engine, device, time."""
        return list(self._array.attrs.get("provenance", []))  # type: ignore[arg-type]

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The numbers of the rows that are present, in ascending order, those of changed files left out."""
        current = self.images.states != ImageState.GONE
        return np.flatnonzero((self.states == RowState.PRESENT) & current)

    @property
    def paths(self) -> list[str]:
        """The path of each present row, in the order of `rows`."""
        paths = self.images.paths
        return [paths[row] for row in self.rows]

    def read(self, rows: Sequence[int] | NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The named rows, in the order given.

        Args:
            out: where they go, contiguous, if not into an array of their own.

        Raises:
            AbsentRowsError: some are not present.
            DamagedError: some are not what was computed for them, or missing on the disk.
            ValueError: `out` is no such place.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        self.check_present(wanted)
        shape = (len(wanted), *self.layout.row_shape)
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"{self}: rows of {shape} {self.dtype} do not go into {out.shape} {out.dtype} as it lies")
        if not len(wanted):
            return out

        def verify(place: int, values: NDArray[np.uint8]) -> None:
            row = wanted[place]
            if google_crc32c.value(values) != self.checksums[row]:
                raise DamagedError(
                    f"row {row} ({self.images.paths[row]}) of {self} is damaged: "
                    f"its values are not those that were computed; {MEND}"
                )

        self._source.read(wanted, out, verify=verify)
        return out

    def whole_shard(self, block: int) -> NDArray[np.uint8] | None:
        """The bytes of a row block as they are stored, each row checked; None if some are absent, or compressed."""
        rows = slice(block * self.block_rows, (block + 1) * self.block_rows)
        if (self.states[rows] == RowState.PRESENT).all():
            return self._source.whole(block, self.checksums[rows])
        return None

    def blocks(self, rows: NDArray[np.int64] | None = None) -> list[NDArray[np.int64]]:
        """The row numbers (all that are present, or those given) grouped by row block, in ascending order."""
        wanted = self.rows if rows is None else np.sort(np.asarray(rows, dtype=np.int64))
        cuts = np.flatnonzero(np.diff(wanted // self.block_rows)) + 1
        return [part for part in np.split(wanted, cuts) if len(part)]

    def iter_blocks(
        self, rows: NDArray[np.int64] | None = None, *, shuffle: np.random.Generator | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """(row numbers, rows) of every row block in turn, the next ones being read while one is in use.

        Args:
            rows: all that are present, if not said.
            shuffle: takes the blocks in random order; within each, rows ascend: mix them as you cut minibatches.
        """
        blocks = self.blocks(rows)
        if shuffle is not None:
            blocks = [blocks[i] for i in shuffle.permutation(len(blocks))]
        with ThreadPoolExecutor(AHEAD) as pool:
            waiting = deque(pool.submit(self.read, block) for block in blocks[:AHEAD])
            for i, block in enumerate(blocks):
                values = waiting.popleft().result()
                waiting += [pool.submit(self.read, later) for later in blocks[i + AHEAD : i + AHEAD + 1]]
                yield block, values

    def dask(self, rows: NDArray[np.int64] | None = None) -> "dask.array.Array":
        """Present rows (or those given, in ascending order) as a Dask array with one chunk per row block."""
        import dask
        import dask.array

        blocks = self.blocks(rows)
        for block in blocks:
            self.check_present(block)
        read = dask.delayed(self.read, pure=False)
        parts = [
            dask.array.from_delayed(read(block), (len(block), *self.layout.row_shape), dtype=self.dtype)
            for block in blocks
        ]
        if not parts:
            return dask.array.zeros((0, *self.layout.row_shape), dtype=self.dtype)
        return dask.array.concatenate(parts, axis=0)

    def xarray(self) -> "xarray.DataArray":
        """Present rows as a labelled array: `image` is the path, `backbone` the segment's name."""
        import xarray

        coords: dict[str, list[str]] = {"image": self.paths}
        if self.layout.kind == "stack":
            coords["backbone"] = [segment.name for segment in self.layout.segments]
        return xarray.DataArray(self.dask(), dims=self.layout.axes, coords=coords, name=self.name)

    def pandas(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> "pandas.DataFrame":
        """Present rows (or those given) as a table of numbers: the index `path` is the photo, a column is a feature.

        Columns are called SEGMENT[FEATURE], and SEGMENT[BLOCK,FEATURE] where a segment has blocks, as resnet50[7,2047];
        features that have names, as concepts, are called by these. What fills up a stack to its width is left out.
        float16 becomes float32, in which pandas calculates.

        Raises:
            AbsentRowsError, DamagedError: as `read`.
        """
        import pandas

        wanted = self.rows if rows is None else np.asarray(rows, dtype=np.int64)
        found = self.read(wanted)
        names: list[str] = []
        parts, seen = [], set[str]()
        for index, segment in enumerate(self.layout.segments):
            part = np.stack([self.layout.part(row, index) for row in found]) if len(found) else None
            copies = () if segment.n_copies is None else (segment.n_copies,)
            shape = (*copies, *((segment.n_blocks,) if segment.n_blocks > 1 else ()), segment.width)
            name = segment.name if segment.name not in seen else f"{segment.name}#{index}"
            seen.add(name)
            named = segment.columns if segment.n_copies is None else ()
            names += named or [f"{name}[{','.join(map(str, place))}]" for place in np.ndindex(shape)]
            parts.append(np.empty((0, math.prod(shape))) if part is None else part.reshape(len(found), -1))
        values = np.concatenate(parts, axis=1)
        paths = self.images.paths
        return pandas.DataFrame(
            values.astype(np.float32) if self.dtype == np.float16 else values,
            index=pandas.Index([paths[row] for row in wanted], name="path"),
            columns=names,
        )

    def torch(self) -> "torch.utils.data.Dataset[Any]":
        """Present rows as a map-style torch dataset of (row number, tensor)."""
        from featstore.store.torch_dataset import RowsDataset

        return RowsDataset(self)

    def check_same_layout(self, layout: TensorLayout) -> None:
        """Refuse to write features into this tensor if it holds others.

        Raises:
            LayoutError: says in words what differs and how to go on.
        """
        differing = layout.differences(self.layout)
        if differing and (self.states == RowState.PRESENT).any():
            raise LayoutError(
                f"{self} holds other features:\n"
                + "\n".join(f"  - {text}" for text in differing)
                + "\n--replace computes what differs and copies the rest; or give the new tensor another name "
                "(--tensor NAME=...), or use another --store; nothing was changed"
            )

    def check_present(self, rows: NDArray[np.int64]) -> None:
        """Make sure that the named rows are there.

        Raises:
            AbsentRowsError: one is not.
        """
        outside = rows[(rows < 0) | (rows >= len(self.states))]
        if len(outside):
            raise AbsentRowsError(
                f"tensor {self.name!r} has rows 0 to {len(self.states) - 1}; asked for {few(map(str, outside))}"
            )
        absent = rows[self.states[rows] != RowState.PRESENT]
        if len(absent):
            named = few((self.images.paths[row] for row in absent), 3)
            raise AbsentRowsError(
                f"tensor {self.name!r} has no features in {len(absent)} of the rows asked for: rows "
                f"{few(map(str, absent))} ({named}); "
                "`featstore extract` computes what is absent"
            )

    @cached_property
    def _source(self) -> RowReader:
        facts = RowFacts(
            str(self),
            self.location,
            TensorFacts(self.layout, str(self.dtype), self.compression),
            self.block_rows,
            self.states,
            self.checksums,
        )
        return source_of(facts, keep_mapped=self._keep_mapped)
