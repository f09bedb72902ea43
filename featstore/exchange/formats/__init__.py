"""Tables of features in other people's formats: rows with a key each. Every reader gives a `FeatureTable`.

A format is one reader that is named in `_READERS`, and, if features are exported to it, one writer in `writers.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from featstore.errors import ExchangeError, suggest
from featstore.exchange.formats.csv_parquet import read_csv, read_parquet
from featstore.exchange.formats.hdf5_zarr import read_hdf5, read_zarr
from featstore.exchange.formats.npy import read_npy, read_npz
from featstore.exchange.formats.table import FeatureFile, FeatureTable, Keys, refuse_options

__all__ = ["FeatureFile", "FeatureTable", "Keys", "read_table"]

_READERS: dict[str, tuple[Callable[[FeatureFile], FeatureTable], frozenset[str]]] = {
    ".npy": (read_npy, frozenset()),
    ".npz": (read_npz, frozenset({"dataset", "by"})),
    ".h5": (read_hdf5, frozenset({"dataset", "by"})),
    ".hdf5": (read_hdf5, frozenset({"dataset", "by"})),
    ".parquet": (read_parquet, frozenset({"path_column", "columns", "by"})),
    ".csv": (read_csv, frozenset({"path_column", "columns", "by"})),
    ".tsv": (read_csv, frozenset({"path_column", "columns", "by"})),
}
"""By suffix, the reader and the options that it takes beside the files of keys."""


def read_table(file: FeatureFile) -> FeatureTable:
    """Open a file, folder or URL of features: what it holds is known then, its rows are read as they are asked for.

    Raises:
        ExchangeError: nothing there, of no known format, damaged, or it is not clear what in it is meant.
    """
    place = str(file.place)
    if "://" in place or Path(place).is_dir() or Path(place).suffix.lower() in (".zarr", ".zip"):
        refuse_options(file, frozenset({"dataset", "by"}), "Zarr")
        return read_zarr(file)
    path = Path(place)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        known = ", ".join([*_READERS, "or a Zarr folder"])
        raise ExchangeError(f"{path}: the format is told by the suffix, and {suffix or 'none'!r} is not {known}")
    if not path.is_file():
        near = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggest(path.name, near)
        raise ExchangeError(f"{path} does not exist" + (f"; {hint}" if hint.startswith("did") else ""))
    read, options = _READERS[suffix]
    refuse_options(file, options, suffix)
    return read(replace(file, place=path))
