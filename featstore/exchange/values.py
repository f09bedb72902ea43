"""The first pass over a table of features: every value is checked before anything is written into a store.

A file that can only be read from its beginning gives the rows in its own order, and the store needs them in another:
they wait in a temporary file.
"""

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ExchangeError, FeatureRangeError
from featstore.exchange.formats.table import FeatureTable
from featstore.store.format.limits import check_space
from featstore.store.places.local import cannot_write
from featstore.support import Progress

SLAB_BYTES = 4 << 20
"""About how much of a table is in memory at a time."""


class Screening:
    """Rows of a table as a segment of T blocks and F features; a context manager.

    Args:
        wanted: the rows of the table that will be read, in the order in which they will be.
        backbone: which one to take of (N, B, T, F).
        folder: where a temporary file may be.

    Raises:
        ExchangeError: the shape is not that of a segment.
        StoreWriteError: the disk refuses.
    """

    def __init__(
        self, table: FeatureTable, wanted: NDArray[np.int64], *, dtype: str, backbone: int | None, folder: Path
    ) -> None:
        self._table, self._wanted, self._backbone, self._folder = table, wanted, backbone, folder
        self._dtype = np.dtype(dtype)
        self.shape = _segment_shape(table, backbone)
        """T blocks and F features."""
        self.sha256 = ""
        """Of the keys and values of the whole table as float32, in its order."""
        self.zeros: list[str] = []
        """Keys of rows that are all zeros."""
        self._row_bytes = int(np.prod(self.shape)) * self._dtype.itemsize
        self._file: IO[bytes] | None = None
        """The wanted rows as they will be read; none where the table can give any row at any time."""

    def __enter__(self) -> "Screening":
        if self._table.mapped is None:
            check_space(self._folder, len(self._wanted) * self._row_bytes)
            try:  # it has no name, so a process that is killed leaves none behind
                self._file = tempfile.TemporaryFile(dir=self._folder, prefix=".featstore-")
            except OSError as error:
                raise cannot_write(self._folder, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # what a full disk has not taken yet
                self._file.close()

    def check(self, report: Progress) -> None:
        """Look at every value.

        Raises:
            FeatureRangeError: one is not finite, or the dtype cannot hold it.
            ExchangeError: the file is damaged.
        """
        table, digest, first = self._table, hashlib.sha256(), 0
        order = np.argsort(self._wanted)
        in_order = self._wanted[order]
        row_bytes = int(np.prod(table.row_shape)) * 8
        report("check", 0, len(table))
        for block in table.blocks(max(1, SLAB_BYTES // row_bytes)):
            keys = table.keys.values[first : first + len(block)]
            values = self._widen(block)
            narrow = self._narrow(values, keys, block)
            for key, row in zip(keys, values, strict=True):
                digest.update(f"{key}\n".encode(errors="surrogateescape"))
                digest.update(np.ascontiguousarray(row, "<f4").data)
            if self._file is not None:
                here = slice(*np.searchsorted(in_order, (first, first + len(block))))
                self._put(self._file, order[here], narrow[in_order[here] - first])
            first += len(block)
            report("check", first, len(table))
        if first != len(table):
            raise ExchangeError(
                f"{table.name} holds {first} rows and not the {len(table)} that it said; it was cut short"
            )
        self.sha256 = digest.hexdigest()

    def read(self, first: int, last: int) -> NDArray[Any]:
        """The wanted rows from one place up to another, (n, T, F), as they will be stored."""
        if self._file is not None:
            self._file.seek(first * self._row_bytes)
            data = self._file.read((last - first) * self._row_bytes)
            return np.frombuffer(data, self._dtype).reshape(last - first, *self.shape)
        assert self._table.mapped is not None
        return self._widen(self._table.mapped[self._wanted[first:last]]).astype(self._dtype)

    def _put(self, file: IO[bytes], places: NDArray[np.int64], rows: NDArray[Any]) -> None:
        try:
            for place, row in zip(places.tolist(), rows, strict=True):
                file.seek(place * self._row_bytes)
                file.write(row.tobytes())
            file.flush()
        except OSError as error:
            raise cannot_write(f"a temporary file in {self._folder}", error) from error

    def _widen(self, block: NDArray[Any]) -> NDArray[np.float32]:
        values = block if self._backbone is None or block.ndim < 4 else block[:, self._backbone]
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            return values.reshape(-1, *self.shape).astype(np.float32)

    def _narrow(self, values: NDArray[np.float32], keys: list[str], block: NDArray[Any]) -> NDArray[Any]:
        axes = (1, 2)
        largest = np.abs(values).max(axis=axes)
        limit = float(np.finfo(self._dtype).max)
        bad = np.flatnonzero(~(largest <= limit))
        if len(bad):
            row = int(bad[0])
            source = block[row]
            place = np.unravel_index(int(np.argmax(~(np.abs(values[row]) <= limit))), self.shape)
            where = f"{self._table.name}: feature {place[-1]} of {keys[row]}"
            if not np.isfinite(source.astype(np.float64)).all():
                raise FeatureRangeError(
                    f"{where} is {values[row][place]}, not a number; {len(bad)} rows here are so; nothing was changed"
                )
            way_out = "; import it with --dtype float32" if self._dtype == np.float16 else ""
            raise FeatureRangeError(
                f"{where} is {values[row][place]:.4g}, more than {self._dtype} holds{way_out}; nothing was changed"
            )
        self.zeros += [keys[row] for row in np.flatnonzero(largest == 0)]
        return values.astype(self._dtype)


def _segment_shape(table: FeatureTable, backbone: int | None) -> tuple[int, int]:
    shape = table.row_shape
    if backbone is not None and len(shape) != 3:
        raise ExchangeError(
            f"{table.name}: --backbone chooses of (rows, backbones, blocks, features), and the features are of shape "
            f"{(len(table), *shape)}"
        )
    if len(shape) == 1:
        return 1, shape[0]
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 3:
        if backbone is None and shape[0] > 1:
            raise ExchangeError(
                f"{table.name}: the features of {shape[0]} backbones stand side by side, {(len(table), *shape)}, and a "
                f"segment is of one; import each by itself with --backbone 0 to {shape[0] - 1}"
            )
        if backbone is not None and not 0 <= backbone < shape[0]:
            raise ExchangeError(f"{table.name} has backbones 0 to {shape[0] - 1}; found --backbone {backbone}")
        return shape[1], shape[2]
    raise ExchangeError(
        f"{table.name}: the features are of shape {(len(table), *shape)}; expected (rows, features), "
        "(rows, blocks, features) or (rows, backbones, blocks, features)"
    )
