"""Formats of label tables: CSV, TSV and Parquet files, each one entry of one table, and tables in memory.

To add a format, write a function that reads a file into cells, and its entry in `FORMATS`.
"""

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from featstore.files import open_file
from featstore.support import delimiter_of
from heads.errors import LabelsError
from heads.labels.cells import EXACT
from heads.labels.limits import MOST_CELLS, MOST_CHARACTERS, check_bytes, check_names, check_size

if TYPE_CHECKING:
    import pandas as pd

Unit = Literal["line", "row"]
BATCH = 1 << 12
"""Rows of a Parquet file that are unpacked at a time."""
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
    check_header(names, IN_MEMORY)
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

    csv.field_size_limit(MOST_CHARACTERS)
    rows: list[tuple[int, list[str]]] = []
    n_cells = 0
    try:
        with open_file(file) as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
            delimiter = delimiter_of(stream, delimiter)
            reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=delimiter == ",", strict=True)
            for cells in reader:
                if any(map(str.strip, cells)):
                    n_cells += len(cells)
                    rows.append((reader.line_num, [cell.strip() for cell in cells]))
                    if n_cells > MOST_CELLS or len(rows) == 1:
                        check_size(file, len(rows), len(cells))
                        check_size(file, 1, max(len(cells), n_cells // len(rows)))
    except UnicodeDecodeError as error:
        raise LabelsError(
            f"label table {file} is not UTF-8 (found the byte 0x{error.object[error.start]:02x}); save it as CSV UTF-8"
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise LabelsError(f"label table {file} cannot be read as CSV: {error}") from error
    header = rows[0][1] if rows else []
    check_size(file, len(rows), len(header))
    check_header(header, file)
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
        with open_file(file) as stream, parquet.ParquetFile(stream) as stored:
            schema, facts = stored.schema_arrow, stored.metadata
            check_size(file, facts.num_rows, len(schema.names))
            # What pandas keeps its row numbers in is no label.
            names = [name for name in schema.names if not name.startswith("__index_level_")]
            check_header(names, file)
            # Not of single columns: of damaged ones the library ends the process.
            check_bytes(file, sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups)))
            texts = [name for name in names if _is_text(schema.field(name).type)]
        columns: dict[str, list[str]] = {name: [] for name in names}
        n_bytes = n_values = 0
        with open_file(file) as stream, parquet.ParquetFile(stream, read_dictionary=texts) as stored:
            for name, cells in columns.items():
                for batch in stored.iter_batches(BATCH, columns=[name]):
                    found, text_bytes = _cells_of(batch.column(0))
                    check_bytes(file, n_bytes := n_bytes + text_bytes)
                    check_size(file, n_values := n_values + _n_values(batch.column(0)), 1)
                    cells += found()
                if len(cells) != facts.num_rows:
                    raise ValueError(f"column {name!r} has {len(cells)} cells, and the file {facts.num_rows} rows")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise LabelsError(f"label table {file} cannot be read as Parquet: {error}") from error
    return pd.DataFrame(columns, index=range(1, facts.num_rows + 1), columns=names, dtype=str)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return any(is_it(kind) for is_it in (types.is_string, types.is_large_string, types.is_binary))


def _n_values(column: Any) -> int:
    """How many values there are in a part of a column; of lists, those in them."""
    while hasattr(column, "flatten") and hasattr(column.type, "value_type") and not hasattr(column, "dictionary"):
        column = column.flatten()
    return len(column)


def _cells_of(column: Any) -> tuple[Callable[[], list[str]], int]:
    """How to get the cells of a part of a column, and how many bytes they have all together, before they are made."""
    if not hasattr(column, "dictionary"):
        return lambda: [_as_text(value) for value in column.to_pylist()], column.nbytes
    from pyarrow import compute

    lengths = compute.take(compute.binary_length(column.dictionary), column.indices)

    def cells() -> list[str]:
        texts = [_as_text(value) for value in column.dictionary.to_pylist()]
        return ["" if index is None else texts[index] for index in column.indices.to_pylist()]

    return cells, column.dictionary.nbytes + int(compute.sum(lengths).as_py() or 0)


def _as_text(value: object) -> str:
    """A value as it stands in a file; a whole number is written as one, also if the column holds fractions."""
    if isinstance(value, list):
        return "|".join(map(_as_text, value)) or "|"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return str(int(value))
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()


def check_header(names: Iterable[str], file: Path) -> None:
    """
    Raises:
        LabelsError: two columns have the same name, or one holds control characters.
    """
    seen: set[str] = set()
    for name in filter(None, names):
        if name in seen:
            raise LabelsError(f"label table {file} has two columns {name!r}")
        seen.add(name)
    check_names(file, "the column", seen)


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
