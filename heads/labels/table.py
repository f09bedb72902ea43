"""Files of labels, CSV, TSV or Parquet: cells as text under column names, each row with its photo and its place."""

import csv
import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.support import suggest
from heads.errors import LabelsError

if TYPE_CHECKING:
    import pandas as pd

DIGEST_COLUMNS = ("digest", "sha256")
"""A path column of such a name holds the SHA-256 of photos instead of their paths."""
_PARQUET, _TABS = (".parquet", ".pq"), (".tsv", ".tab")


@dataclass(frozen=True)
class LabelTable:
    """One file of labels; a photo may have several rows, one for each rater."""

    file: Path
    sha256: str
    cells: "pd.DataFrame"
    """Text without spaces around it; the index is the line of a CSV or the row of a Parquet file."""
    keys: list[str]
    """The path or the digest of the photo of each row."""
    unit: Literal["line", "row"]

    def where(self, i: int, column: str | None = None) -> str:
        """How a message names row `i`."""
        place = f"{self.file}, {self.unit} {self.cells.index[i]}"
        return place if column is None else f"{place}, column {column!r}"


def read_label_table(file: Path, path_column: str) -> LabelTable:
    """Read a file by its suffix: .parquet, .tsv, or anything else as CSV.

    Raises:
        LabelsError: the file cannot be read, has no rows or no such column, or a path is empty or no digest;
            names the file and the line.
    """
    suffix = file.suffix.lower()
    if suffix in (".xlsx", ".xls", ".ods"):
        raise LabelsError(f"label table {file} is a spreadsheet; save it as CSV (UTF-8) and name that file")
    try:
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise LabelsError(f"label table {file} does not exist") from None
    except OSError as error:
        raise LabelsError(f"label table {file} cannot be read: {error.strerror}") from error
    cells = _read_parquet(file) if suffix in _PARQUET else _read_text(file, "\t" if suffix in _TABS else ",")
    if not len(cells):
        raise LabelsError(f"label table {file} has no rows; a line of column names and a line per photo are expected")
    if path_column not in cells:
        raise LabelsError(f"{file} has no column {path_column!r}; {suggest(path_column, map(str, cells.columns))}")
    unit: Literal["line", "row"] = "row" if suffix in _PARQUET else "line"
    table = LabelTable(file, sha256, cells, [], unit)
    keys = _digests(table, path_column) if path_column in DIGEST_COLUMNS else _paths(table, path_column)
    return LabelTable(file, sha256, cells, keys, unit)


def composed(paths: Sequence[str]) -> list[str]:
    """Paths with every letter and its accent as one character (Unicode NFC), unless that makes two paths equal.

    macOS takes accents apart (NFD), and most other systems and spreadsheets do not.
    """
    together = [unicodedata.normalize("NFC", path) for path in paths]
    return together if len(set(together)) == len(set(paths)) else list(paths)


def is_missing(text: str) -> bool:
    return text.lower() in ("", "na", "nan", "n/a", "null", "none")


def is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def known_cells(column: "pd.Series[str]") -> list[str]:
    return [text for text in column if not is_missing(text)]


def mostly_numbers(column: "pd.Series[str]") -> bool:
    """Whether a column is meant to hold numbers, so that a cell that does not is an error."""
    known = known_cells(column)
    return sum(map(is_number, known)) * 2 > len(known)


def numbers(table: LabelTable, name: str) -> NDArray[np.float64]:
    """A column of numbers, NaN where one is missing.

    Raises:
        LabelsError: a cell is neither a finite number nor missing.
    """
    values = np.full(len(table.keys), np.nan)
    for i, text in enumerate(table.cells[name]):
        if is_missing(text):
            continue
        if not is_number(text):
            raise LabelsError(f"{table.where(i, name)}: {text!r} is not a number")
        values[i] = float(text)
    return values


def natural(text: str) -> tuple[tuple[int, float, str], ...]:
    """A key that sorts numbers within names by value: 2 before 10, class 2 before class 10."""
    if is_number(text):
        return ((0, float(text), ""),)
    parts = re.split(r"(\d+)", text.casefold())
    return tuple((1, float(part), "") if i % 2 else (2, 0.0, part) for i, part in enumerate(parts) if part)


def _read_text(file: Path, delimiter: str) -> "pd.DataFrame":
    """The cells, indexed by line number; blank lines and columns without a name are left out."""
    import pandas as pd

    csv.field_size_limit(sys.maxsize)  # a forgotten column of features is longer than the library expects
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
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
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise LabelsError(
            f"label table {file}: the column names {header[0]!r} are not parted by commas; "
            "save it as CSV with commas, or with tabs under a name that ends in .tsv"
        )
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
    if isinstance(value, list):
        return "|".join(map(str, value)) or "|"
    return "" if value is None else str(value).strip()


def _refuse_doubles(names: Iterable[str], file: Path) -> None:
    seen: set[str] = set()
    for name in filter(None, names):
        if name in seen:
            raise LabelsError(f"label table {file} has two columns {name!r}")
        seen.add(name)


def _paths(table: LabelTable, column: str) -> list[str]:
    paths = [str(PurePosixPath(path.replace("\\", "/"))) for path in table.cells[column]]
    for i, path in enumerate(paths):
        if path == ".":
            raise LabelsError(f"{table.where(i)}: the path is empty")
    return composed(paths)


def _digests(table: LabelTable, column: str) -> list[str]:
    digests = [text.lower() for text in table.cells[column]]
    for i, digest in enumerate(digests):
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise LabelsError(
                f"{table.where(i, column)}: {digest!r} is not a SHA-256, which has 64 hexadecimal digits; "
                "if the column holds paths, rename it"
            )
    return digests
