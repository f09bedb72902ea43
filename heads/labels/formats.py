"""Formats of label tables: CSV, TSV and Parquet files, each one entry of one table, and tables in memory.

To add a format, write a function that reads a file into cells, and its entry in `FORMATS`.
"""

import csv
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from featstore.support import delimiter_of
from heads.errors import LabelsError
from heads.labels.cells import EXACT

if TYPE_CHECKING:
    import pandas as pd

Unit = Literal["line", "row"]
IN_MEMORY = Path("DataFrame")
"""What messages call a table that is in no file."""


class Format(NamedTuple):
    """How files of a format are read."""

    read: Callable[[Path], "pd.DataFrame"]
    """The cells, as text without spaces around it under the column names, indexed by line or row."""
    unit: Unit
    """What the index counts, for messages."""


def format_of(file: Path) -> Format:
    """The format of a file by its suffix; CSV if the suffix is unknown.

    Raises:
        LabelsError: it is a spreadsheet.
    """
    suffix = file.suffix.lower()
    if suffix in _SPREADSHEETS:
        raise LabelsError(f"label table {file} is a spreadsheet; save it as CSV (UTF-8) and name that file")
    return FORMATS.get(suffix, _CSV)


def cells_of(frame: "pd.DataFrame", path_column: str) -> "pd.DataFrame":
    """The cells of a table in memory, indexed by row from 0; an index of words is the column of paths, if it has none.

    Raises:
        LabelsError: two columns have the same name.
    """
    import pandas as pd

    if path_column not in frame and pd.api.types.infer_dtype(frame.index) == "string":
        frame = frame.rename_axis(index=path_column).reset_index()
    names = [str(name) for name in frame.columns]
    _refuse_doubles(names, IN_MEMORY)
    known = frame.notna()
    columns = {
        name: [
            _as_text(value) if there else "" for value, there in zip(frame.iloc[:, i], known.iloc[:, i], strict=True)
        ]
        for i, name in enumerate(names)
    }
    return pd.DataFrame(columns, index=range(len(frame)), columns=names, dtype=str)


def _read_text(file: Path, *, delimiter: str) -> "pd.DataFrame":
    """The cells, indexed by line number; blank lines and columns without a name are left out."""
    import pandas as pd

    csv.field_size_limit(sys.maxsize)  # a forgotten column of features is longer than the library expects
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            delimiter = delimiter_of(stream, delimiter)
            reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=delimiter == ",", strict=True)
            rows = [
                (reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))
            ]
    except UnicodeDecodeError as error:
        raise LabelsError(
            f"label table {file} is not UTF-8 (found the byte 0x{error.object[error.start]:02x}); save it as CSV UTF-8"
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise LabelsError(f"label table {file} cannot be read as CSV: {error}") from error
    header = rows[0][1] if rows else []
    _refuse_doubles(header, file)
    for line, cells in rows[1:]:
        if any(cells[len(header) :]):
            raise LabelsError(f"{file}, line {line}: {len(cells)} cells under {len(header)} column names")
    filled = [[*cells, *[""] * len(header)][: len(header)] for _, cells in rows[1:]]
    table = pd.DataFrame(filled, index=[line for line, _ in rows[1:]], columns=header, dtype=str)
    return table[[name for name in header if name]]


def _read_parquet(file: Path) -> "pd.DataFrame":
    """The cells, indexed by row from 1; lists become words parted by "|"."""
    import pandas as pd

    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise LabelsError(
            f"label table {file} needs pyarrow to be read; pip install 'featstore[exchange]', or save it as CSV"
        ) from error
    try:
        stored = parquet.ParquetFile(file).read()
    except (OSError, pyarrow.ArrowException) as error:
        raise LabelsError(f"label table {file} cannot be read as Parquet: {error}") from error
    # What pandas keeps its row numbers in is no label.
    names = [name for name in stored.column_names if not name.startswith("__index_level_")]
    _refuse_doubles(names, file)
    columns = {name: [_as_text(value) for value in stored.column(name).to_pylist()] for name in names}
    return pd.DataFrame(columns, index=range(1, stored.num_rows + 1), columns=names, dtype=str)


def _as_text(value: object) -> str:
    """A value as it stands in a file; a whole number is written as one, also if the column holds fractions."""
    if isinstance(value, list):
        return "|".join(map(_as_text, value)) or "|"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return str(int(value))
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()


def _refuse_doubles(names: Iterable[str], file: Path) -> None:
    seen: set[str] = set()
    for name in filter(None, names):
        if name in seen:
            raise LabelsError(f"label table {file} has two columns {name!r}")
        seen.add(name)


_CSV, _TSV = (Format(partial(_read_text, delimiter=delimiter), "line") for delimiter in (",", "\t"))
_PARQUET = Format(_read_parquet, "row")
FORMATS: Mapping[str, Format] = {
    ".csv": _CSV,
    ".tsv": _TSV,
    ".tab": _TSV,
    ".parquet": _PARQUET,
    ".pq": _PARQUET,
}
"""By suffix."""
_SPREADSHEETS = (".xlsx", ".xls", ".ods")
