"""Tables with a row for each photo: Parquet, and CSV or TSV. The features are a column of lists, or many of numbers."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ExchangeError, suggest
from featstore.exchange.formats.table import (
    NAMES,
    FeatureFile,
    FeatureTable,
    check_key_bytes,
    check_rows,
    find_keys,
    make_table,
    needed,
    reading,
)
from featstore.files import open_file, parse_json
from featstore.support import LISTED, delimiter_of, few, from_cell, is_number, nearly_number, numbers_rows

ABOUT = b"featstore"
"""Under what an export describes its tensors in the metadata of a Parquet schema."""
_BUFFER_BYTES = 1 << 20
_KEY_ROWS = 4096
MOST_LINE = 1 << 26
"""Characters of a line of a CSV; a million features take a third of it."""
_ABSENT = frozenset({"", "na", "n/a", "nan", "null", "none"})
"""What stands in a column of numbers where there is none."""
_LABELS = frozenset({"label", "labels", "target", "targets", "class", "fold", "split", "rater", "subject"})
"""What columns of numbers are called that are there to be learned, or to learn by."""


def read_parquet(file: FeatureFile) -> FeatureTable:
    """Batch by batch; a list column that featstore exported gets its axes back."""
    parquet, arrow = needed("pyarrow.parquet", file.place), needed("pyarrow", file.place)

    def opened(**options: Any) -> Any:
        # Otherwise whole columns of a row group are read, and most files have one row group.
        bounded = {"pre_buffer": False, "buffer_size": _BUFFER_BYTES}
        return parquet.ParquetFile(file.place, page_checksum_verification=True, **bounded, **options)

    with reading(file.place, arrow.ArrowException), opened() as table:
        types = {field.name: field.type for field in table.schema_arrow}
        check_rows(file.place, table.metadata.num_rows)
        keys = find_keys(file, types, lambda name: _keys_of(file, opened, name), columns=True)
        lists = [name for name, kind in types.items() if _is_list(arrow, kind)]
        # What pandas keeps its row numbers in is no feature.
        numbers = [n for n, kind in types.items() if _is_number(arrow, kind) and not n.startswith("__index_level_")]
        chosen, left_out = _choose_columns(file, list(types), lists, numbers)
        as_list, n_rows = chosen[0] in lists, table.metadata.num_rows
        row_shape: tuple[int, ...] = (len(chosen),)
        if as_list:
            first = next(table.iter_batches(1, columns=chosen), None)
            width = 0 if first is None else len(first.column(0).flatten())
            row_shape = _exported_shape(table.schema_arrow.metadata, chosen[0], width)
    kinds = [types[name].value_type if as_list else types[name] for name in chosen]
    dtype = np.result_type(*(kind.to_pandas_dtype() for kind in kinds))

    def blocks(n_rows: int) -> Iterator[NDArray[Any]]:
        row = 0
        with reading(file.place, arrow.ArrowException), opened() as again:
            for batch in again.iter_batches(n_rows, columns=chosen):
                parts = [
                    _numbers_of(batch.column(name), f"{file.place}, column {name!r}", keys.values[row:], row_shape)
                    for name in chosen
                ]
                yield parts[0] if as_list else np.stack(parts, axis=1).astype(dtype, copy=False)
                row += len(batch)

    shape = (n_rows, *row_shape)
    return make_table(file, "parquet", keys, shape, dtype, blocks, columns=chosen, left_out=left_out)


def read_csv(file: FeatureFile) -> FeatureTable:
    """Line by line, twice; in a column of lists each is written as JSON, as [0.5, 1.25]."""
    csv.field_size_limit(MOST_LINE)  # a list of some thousand features is longer than the library expects
    with reading(file.place, csv.Error):
        names, first = _read_head(file)
        values: dict[str, list[str]] = {name: [] for name in names if name in _key_names(file)}
        n_rows = n_bytes = 0
        for _, row in _rows(file):
            for name in values:
                values[name].append(row[names.index(name)])
                n_bytes += len(values[name][-1])
            n_rows += 1
            check_rows(file.place, n_rows)
            check_key_bytes(file.place, n_bytes)
        keys = find_keys(file, names, lambda name: list(map(from_cell, values[name])), columns=True)
    named = dict(zip(names, first, strict=True))
    lists = [name for name, text in named.items() if text.lstrip().startswith("[")]
    # The first column of a table that pandas wrote with its row numbers has no name.
    numbers = [name for name, text in named.items() if name and _may_be_number(text)]
    for name, text in named.items() if file.columns is None and not lists else ():
        if name and name not in numbers and name not in _key_names(file) and nearly_number(text):
            raise ExchangeError(_no_number(f"{file.place}, first row", name, text))
    chosen, left_out = _choose_columns(file, names, lists, numbers)
    as_list = chosen[0] in lists
    row_shape: tuple[int, ...] = (len(chosen),)
    if as_list:
        row_shape = _parse_list(named[chosen[0]], f"{file.place}, first row, column {chosen[0]!r}").shape
    places = [names.index(name) for name in chosen]

    def blocks(n_rows: int) -> Iterator[NDArray[Any]]:
        part = []
        with reading(file.place, csv.Error):
            for line, row in _rows(file):
                cells = {names[place]: row[place] for place in places}
                where = f"{file.place}, line {line}"
                part.append(_list_of(cells, where, row_shape) if as_list else _parse_numbers(cells, where))
                if len(part) == n_rows:
                    yield np.stack(part)
                    part = []
        if part:
            yield np.stack(part)

    shape = (n_rows, *row_shape)
    return make_table(file, "csv", keys, shape, np.dtype(np.float64), blocks, columns=chosen, left_out=left_out)


def column_names(place: Path) -> list[str]:
    """What the columns of a table are called, whatever they hold: Parquet, TSV, or else CSV.

    Raises:
        ExchangeError: it cannot be read.
    """
    suffix = place.suffix.lower()
    if suffix in (".parquet", ".pq"):
        parquet, arrow = needed("pyarrow.parquet", place), needed("pyarrow", place)
        with reading(place, arrow.ArrowException):
            return list(parquet.read_schema(place).names)
    with reading(place, csv.Error), _opened(place) as text:
        rows = csv.reader(_lines(text), delimiter=_delimiter(text, place))
        return [name.strip() for name in next(filter(any, rows), [])]


def _choose_columns(
    file: FeatureFile, names: Sequence[str], lists: list[str], numbers: list[str]
) -> tuple[list[str], dict[str, str]]:
    """The columns of the features, one of lists or all of numbers, and why the others are none; keys are neither."""
    keys = _key_names(file)
    lists, numbers = [n for n in lists if n not in keys], [n for n in numbers if n not in keys]
    others = [name for name in names if name and name not in keys and not name.startswith("__index_level_")]
    if file.columns is not None:
        chosen = _named_columns(file, names, lists, numbers)
        return chosen, {name: "not named by --columns" for name in others if name not in chosen}
    if len(lists) > 1:
        raise ExchangeError(f"{file.place} has columns of lists {few(lists, LISTED)}; name one with --columns")
    left_out = {name: "no numbers" for name in others if name not in lists and name not in numbers}
    left_out |= {name: "a number beside lists" for name in numbers if lists}
    left_out |= {name: "a label, by its name" for name in numbers if name.lower() in _LABELS}
    left_out |= {name: "ids, by its name" for name in numbers if numbers_rows(name)}
    chosen = lists or [name for name in numbers if name not in left_out]
    if not chosen:
        listed = few(names, 8, quoted=True)
        raise ExchangeError(
            f"{file.place} has no column of numbers or lists of them; its columns are {listed}"
            + (f"; --columns takes {few(numbers, 8, quoted=True)} for features all the same" if numbers else "")
        )
    return chosen, {name: left_out[name] for name in others if name in left_out}


def _named_columns(file: FeatureFile, names: Sequence[str], lists: list[str], numbers: list[str]) -> list[str]:
    wanted = [name.strip() for name in (file.columns or "").split(",") if name.strip()]
    chosen = wanted
    if len(wanted) == 1 and wanted[0] not in names:
        chosen = [name for name in names if name.startswith(wanted[0]) and name not in _key_names(file)]
    for name in [name for name in wanted if name not in names] if not chosen or chosen is wanted else []:
        raise ExchangeError(f"{file.place} has no column {name!r} and none that begins so; {suggest(name, names)}")
    for name in chosen:
        if name not in lists and name not in numbers:
            raise ExchangeError(f"{file.place}: the column {name!r} does not hold numbers; choose others by --columns")
        if name in lists and len(chosen) > 1:
            raise ExchangeError(
                f"{file.place}: the column {name!r} holds lists; it has to be the only one of --columns"
            )
    if not chosen:
        listed = few(names, 8, quoted=True)
        raise ExchangeError(f"--columns {file.columns!r} names no column; {file.place} has {listed}")
    return chosen


def _key_names(file: FeatureFile) -> set[str]:
    return {*NAMES["path"], *NAMES["digest"], *([file.path_column] if file.path_column else [])}


# ---- Parquet


def _is_list(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    a_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(a_list and _is_number(arrow, kind.value_type))


def _is_number(arrow: Any, kind: Any) -> bool:
    return bool(arrow.types.is_floating(kind) or arrow.types.is_integer(kind))


def _exported_shape(metadata: Mapping[bytes, bytes] | None, name: str, width: int) -> tuple[int, ...]:
    try:
        shape = tuple(parse_json((metadata or {})[ABOUT])["tensors"][name]["row_shape"])
        known = all(type(each) is int and each > 0 for each in shape)
        return shape if known and math.prod(shape) == width else (width,)
    except (KeyError, ValueError, TypeError):
        return (width,)


def _keys_of(file: FeatureFile, opened: Callable[..., Any], name: str) -> list[Any]:
    """A column of keys; of equal ones only one is unpacked, until it is known how long they all are."""
    types, compute = needed("pyarrow.types", file.place), needed("pyarrow.compute", file.place)
    keys: list[Any] = []
    n_bytes = 0
    with opened() as plain:
        kind = plain.schema_arrow.field(name).type
    texts = [name] if any(is_it(kind) for is_it in (types.is_string, types.is_large_string, types.is_binary)) else []
    with opened(read_dictionary=texts) as table:
        for batch in table.iter_batches(_KEY_ROWS, columns=[name]):
            column = batch.column(0)
            n_bytes += column.nbytes
            if hasattr(column, "dictionary"):
                lengths = compute.take(compute.binary_length(column.dictionary), column.indices)
                n_bytes += int(compute.sum(lengths).as_py() or 0)
            check_key_bytes(f"{file.place}: {name}", n_bytes)
            keys += column.to_pylist()
    return keys


def _numbers_of(column: Any, where: str, keys: Sequence[str], row_shape: tuple[int, ...]) -> NDArray[Any]:
    """The values of a column of numbers (n,) or of lists (n, ...); each of them is there."""
    for row, valid in enumerate(column.is_valid().to_pylist() if column.null_count else ()):
        if not valid:
            raise ExchangeError(f"{where} holds nothing for {keys[row]}")
    if not hasattr(column, "flatten") or not hasattr(column.type, "value_type"):
        values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return values
    flat, width = column.flatten(), int(np.prod(row_shape))
    lengths = [width] * len(column)
    if not hasattr(column.type, "list_size"):
        lengths = column.value_lengths().to_pylist()
    for row, length in enumerate(lengths):
        if length != width:
            raise ExchangeError(f"{where} holds {length} features for {keys[row]}; the first row has {width}")
    if flat.null_count:
        gap = flat.is_valid().to_pylist().index(False)
        raise ExchangeError(f"{where} holds a list with a gap for {keys[gap // width]}")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, *row_shape)


# ---- CSV


def _rows(file: FeatureFile) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, cells) of every row below the names; empty lines are passed over."""
    with _opened(Path(file.place)) as text:
        rows = csv.reader(_lines(text), delimiter=_delimiter(text, Path(file.place)))
        names = next(rows, [])
        for row in rows:
            if row and len(row) != len(names):
                raise ExchangeError(
                    f"{file.place}, line {rows.line_num} has {len(row)} cells; the first has {len(names)}"
                )
            if row:
                yield rows.line_num, row


def _opened(place: Path) -> TextIO:
    return TextIOWrapper(open_file(place), encoding="utf-8-sig", newline="")


def _lines(text: TextIO) -> Iterator[str]:
    """
    Raises:
        ValueError: a line is longer than any of numbers would be.
    """
    while line := text.readline(MOST_LINE):
        if len(line) == MOST_LINE:
            raise ValueError(f"a line has more than {MOST_LINE:,} characters")
        yield line


def _delimiter(text: TextIO, place: Path) -> str:
    if len(text.readline(MOST_LINE)) == MOST_LINE:
        raise ValueError(f"a line has more than {MOST_LINE:,} characters")
    text.seek(0)
    return delimiter_of(text, "\t" if place.suffix.lower() in (".tsv", ".tab") else ",")


def _read_head(file: FeatureFile) -> tuple[list[str], list[str]]:
    """The names of the columns, and the first row."""
    with _opened(Path(file.place)) as text:
        names = next(csv.reader(_lines(text), delimiter=_delimiter(text, Path(file.place))), [])
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExchangeError(f"{file.place} has more than one column {twice[0]!r}; give each a name of its own")
    first = next(_rows(file), None)
    if first is None:
        raise ExchangeError(f"{file.place} holds no rows; expected a line of names and a line for each photo")
    return names, first[1]


def _may_be_number(text: str) -> bool:
    """Whether the column may be one of numbers: one that begins with a gap is refused later, and not left out now."""
    return _reads(text) or text.strip().lower() in _ABSENT


def _parse_numbers(cells: Mapping[str, str], where: str) -> NDArray[np.float64]:
    together = "".join(cells.values())
    if together.isascii() and "_" not in together:  # of the rest, NumPy reads what is a number to nobody else
        with suppress(ValueError):
            return np.array(list(cells.values()), dtype=np.float64)
    name, text = next((name, text) for name, text in cells.items() if not _reads(text))
    raise ExchangeError(_no_number(where, name, text))


def _reads(text: str) -> bool:
    """Whether it is a number, or infinite or NaN, which are refused later with the name of the photo."""
    return is_number(text.strip()) or text.strip().lstrip("+-").lower() in ("inf", "infinity", "nan")


def _no_number(where: str, name: str, text: str) -> str:
    return f"{where}, column {name!r}: {text!r} is not a number; mend it, or choose columns with --columns"


def _list_of(cells: Mapping[str, str], where: str, row_shape: tuple[int, ...]) -> NDArray[np.float64]:
    ((name, text),) = cells.items()
    values = _parse_list(text, f"{where}, column {name!r}")
    if values.shape != row_shape:
        raise ExchangeError(f"{where}, column {name!r}: {values.shape} features; the first row has {row_shape}")
    return values


def _parse_list(text: str, where: str) -> NDArray[np.float64]:
    try:
        return np.array(parse_json(text), dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ExchangeError(f"{where}: {text[:40]!r} is not a list of numbers in JSON, as [0.5, 1.25]") from error
