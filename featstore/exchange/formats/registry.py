"""The table of formats: a format is one entry here, with its reader, and its writer if features are exported to it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from featstore.errors import ExchangeError, suggest
from featstore.exchange.formats.csv_parquet import read_csv, read_parquet
from featstore.exchange.formats.hdf5_zarr import read_hdf5, read_zarr
from featstore.exchange.formats.npy import read_npy, read_npz
from featstore.exchange.formats.table import FeatureFile, FeatureTable, refuse_options
from featstore.exchange.formats.writers import Contents, write_hdf5, write_npz, write_parquet, write_zarr

_ARRAYS = frozenset({"dataset", "by"})
_COLUMNS = frozenset({"path_column", "columns", "by"})


@dataclass(frozen=True)
class Format:
    """One format: its name, the suffixes that mean it, and how it is read and written."""

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[FeatureFile], FeatureTable]
    options: frozenset[str] = frozenset()
    """The fields of `FeatureFile` that it takes, beside the place and the files of keys."""
    write: Callable[[Path, Contents], None] | None = None
    """None where features are not exported to it."""


ZARR = Format("zarr", (".zarr",), read_zarr, _ARRAYS, write_zarr)
FORMATS = (
    Format("npy", (".npy",), read_npy),
    Format("npz", (".npz",), read_npz, _ARRAYS, write_npz),
    Format("hdf5", (".h5", ".hdf5"), read_hdf5, _ARRAYS, write_hdf5),
    Format("parquet", (".parquet",), read_parquet, _COLUMNS, write_parquet),
    Format("csv", (".csv", ".tsv"), read_csv, _COLUMNS),
    ZARR,
)
BY_SUFFIX = {suffix: each for each in FORMATS for suffix in each.suffixes}


def read_table(file: FeatureFile) -> FeatureTable:
    """Open a file, folder or URL of features; its rows are read later, as they are asked for.

    A URL, a folder or a zip file is Zarr, whatever it is called.

    Raises:
        ExchangeError: nothing is there, the format is unknown, the file is damaged, or it is not clear which part of
            it is meant.
    """
    place = str(file.place)
    path = Path(place)
    suffix = path.suffix.lower()
    found = ZARR if "://" in place or path.is_dir() or suffix == ".zip" else BY_SUFFIX.get(suffix)
    if found is ZARR:
        refuse_options(file, ZARR.options, "Zarr")
        return read_zarr(file)
    if found is None:
        known = ", ".join([*(each for each in BY_SUFFIX if each not in ZARR.suffixes), "or a Zarr folder"])
        raise ExchangeError(f"{path}: the format is told by the suffix, and {suffix or 'none'!r} is not {known}")
    if not path.is_file():
        near = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggest(path.name, near)
        raise ExchangeError(f"{path} does not exist" + (f"; {hint}" if hint.startswith("did") else ""))
    refuse_options(file, found.options, suffix)
    return found.read(replace(file, place=path))
