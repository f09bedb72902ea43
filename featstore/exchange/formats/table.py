"""The table that every reader gives, and what readers share: finding its keys, and errors that name the file."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ExchangeError, FeatstoreError
from featstore.files import read_file
from featstore.support import LISTED, MaybePath, few, size

KeyKind = Literal["path", "digest"]
DIGEST_DIGITS = 64
MOST_ROWS = 20_000_000
"""Of a table; the keys of all rows are in memory."""
MOST_KEY_BYTES = 1 << 30
"""Of the keys of all rows together."""
MOST_BLOCK_BYTES = 1 << 31
"""Of the rows that can only be unpacked together, 2 GiB."""
_KEY_ROWS = 4096
"""Keys that are unpacked at a time."""
NAMES: Mapping[KeyKind, tuple[str, ...]] = {"path": ("path", "paths"), "digest": ("digest", "digests")}
"""What arrays and columns of keys are called, if they are not named."""


@dataclass(frozen=True)
class FeatureFile:
    """A file of features, and which part of it is meant.

    Args:
        place: the file; for Zarr a folder or a URL.
        paths: a text file that names the photo of each row, one a line.
        digests: a text file with the SHA-256 of the photo of each row in hexadecimal digits, one a line.
        dataset: the array of the features in an .npz, HDF5 or Zarr.
        path_column: the column of a table that names the photos.
        columns: the columns of a table that are the features: names with commas between, or what they begin with.
        by: which keys to take from a file that has both; paths if None.
    """

    place: str | Path
    paths: MaybePath = MaybePath()
    digests: MaybePath = MaybePath()
    dataset: str | None = None
    path_column: str | None = None
    columns: str | None = None
    by: KeyKind | None = None


@dataclass(frozen=True)
class Keys:
    """The photo of each row: its path, or the SHA-256 of its bytes in hexadecimal digits."""

    kind: KeyKind
    values: list[str]


@dataclass(frozen=True)
class FeatureTable:
    """N rows of features and their keys."""

    name: str
    """What messages call it."""
    format: str
    keys: Keys
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[int], Iterator[NDArray[Any]]]
    """All rows in the file's order, about so many at a time: (n, ...) each."""
    mapped: NDArray[Any] | None = None
    """All rows, if any of them can be read without those before it."""
    columns: tuple[str, ...] = ()
    """Those of a table that are the features."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why other columns are no features; those of the keys are not among them."""

    def __len__(self) -> int:
        return len(self.keys.values)


def make_table(
    file: FeatureFile,
    kind: str,
    keys: Keys,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    blocks: Callable[[int], Iterator[NDArray[Any]]],
    mapped: NDArray[Any] | None = None,
    columns: Sequence[str] = (),
    left_out: Mapping[str, str] | None = None,
) -> FeatureTable:
    """A table whose shape and number of keys have been checked.

    Raises:
        ExchangeError: no numbers, no rows, too few axes, or another number of keys than of rows.
    """
    name = str(file.place)
    if dtype.kind not in "fiu":
        raise ExchangeError(f"{name}: the features are {_say(dtype)}; expected real numbers")
    if len(shape) < 2 or 0 in shape:
        raise ExchangeError(f"{name}: the features are of shape {shape}; expected (rows, features), none of them 0")
    if math.prod(shape[1:]) * 8 > MOST_BLOCK_BYTES:
        raise ExchangeError(
            f"{name}: a row of features is of shape {shape[1:]}; rows of up to {size(MOST_BLOCK_BYTES)} are read"
        )
    if len(keys.values) != shape[0]:
        raise ExchangeError(
            f"{name} has {shape[0]} rows of features and {len(keys.values)} {keys.kind}s; "
            "expected one for each row, in the same order"
        )
    return FeatureTable(name, kind, keys, shape[1:], dtype, blocks, mapped, tuple(columns), left_out or {})


def refuse_options(file: FeatureFile, allowed: frozenset[str], kind: str) -> None:
    """Refuse options that do not apply to a file of this kind.

    Raises:
        ExchangeError: one of them is set, or both files of keys are.
    """
    for option in ("dataset", "path_column", "columns", "by"):
        if getattr(file, option) is not None and option not in allowed:
            raise ExchangeError(f"--{option.replace('_', '-')} says nothing about a {kind} file ({file.place})")
    if file.paths is not None and file.digests is not None:
        raise ExchangeError("--paths and --digests both say which photo a row is of; name one of them")


def find_keys(file: FeatureFile, beside: Iterable[str], read: Callable[[str], Any], *, columns: bool = False) -> Keys:
    """The keys that a text file names, or those that stand beside the features.

    Args:
        beside: the names of arrays or columns.
        read: gives the values of one of them.
        columns: whether they are the columns of a table.

    Raises:
        ExchangeError: there are none, or they are no text.
    """
    if file.paths is not None:
        return Keys("path", _read_lines(file.paths))
    if file.digests is not None:
        return as_keys("digest", _read_lines(file.digests), str(file.digests), first=1, what="line")
    there = list(beside)
    names = {**NAMES, "path": (file.path_column,)} if file.path_column else dict(NAMES)
    kinds: list[KeyKind] = [file.by] if file.by else ["path"] if file.path_column else ["path", "digest"]
    for kind in kinds:
        for name in names[kind]:
            if name in there:
                return as_keys(kind, read(name), f"{file.place}: {name}")
    wanted = " or ".join(repr(names[kind][0]) for kind in kinds)
    raise ExchangeError(
        f"{file.place} does not say which photo a row is of: there is no {wanted}"
        + (f" among {few(there, 8, quoted=True)}" if there else " beside the features")
        + "; name a text file of paths (--paths) or of SHA-256 digests (--digests), one a line"
        + (", or the column of the paths (--path-column)" if columns else "")
    )


def as_keys(kind: KeyKind, values: Any, where: str, *, first: int = 0, what: str = "row") -> Keys:
    """Keys from text, bytes, or, for digests, (N, 32) numbers.

    Raises:
        ExchangeError: one is missing or is no such text; names its row.
    """
    array = values if isinstance(values, list) else np.asarray(values)
    if isinstance(array, np.ndarray) and kind == "digest" and array.dtype == np.uint8 and array.shape[1:] == (32,):
        return Keys(kind, [row.tobytes().hex() for row in array])
    if isinstance(array, np.ndarray) and (array.ndim != 1 or array.dtype.kind not in "SUOT"):
        raise ExchangeError(f"{where} is {_say(array.dtype)} of shape {array.shape}; expected one text for each row")
    keys = []
    for number, value in enumerate(array, first):
        text = _as_text(kind, value)
        if not text:
            raise ExchangeError(f"{where}, {what} {number}: expected a {kind} in UTF-8, found {value!r}")
        if kind == "digest":
            text = text.lower()
            if len(text) != DIGEST_DIGITS or set(text) - set("0123456789abcdef"):
                raise ExchangeError(f"{where}, {what} {number}: {text!r} is not a SHA-256 of 64 hexadecimal digits")
        keys.append(text)
    return Keys(kind, keys)


def choose_dataset(file: FeatureFile, numeric: Mapping[str, tuple[int, ...]]) -> str:
    """Which array holds the features: the one that was named, `features`, or the only one that can be.

    Args:
        numeric: by name, the shapes of the arrays of numbers.

    Raises:
        ExchangeError: there is none, or it is not clear which is meant.
    """
    shown = few((f"{name} {shape}" for name, shape in numeric.items()), LISTED)
    if file.dataset is not None:
        wanted = file.dataset.strip("/")
        if wanted not in numeric:
            raise ExchangeError(f"{file.place} has no array of numbers {wanted!r}; there are: {shown}")
        return wanted
    likely = [name for name, shape in numeric.items() if len(shape) >= 2 and name.split("/")[-1] not in NAMES["digest"]]
    if "features" in likely:
        return "features"
    if len(likely) != 1:
        found = "more than one array" if likely else "no array"
        raise ExchangeError(
            f"{file.place} holds {found} that may be the features: {shown}; name one with --dataset"
            if likely
            else f"{file.place} holds {found} of numbers with two axes or more; found: {shown}"
        )
    return likely[0]


def check_rows(name: object, n_rows: int) -> None:
    """
    Raises:
        ExchangeError: a table of so many rows is not read.
    """
    if n_rows > MOST_ROWS:
        raise ExchangeError(f"{name} has {n_rows:,} rows; at most {MOST_ROWS:,} are read: import it in parts")


def check_block(name: object, n_rows: int, row_shape: Sequence[int], itemsize: int) -> None:
    """
    Raises:
        ExchangeError: rows that can only be unpacked together take too much memory.
    """
    if (n_bytes := n_rows * math.prod(row_shape) * itemsize) > MOST_BLOCK_BYTES:
        raise ExchangeError(
            f"{name}: {n_rows:,} rows stand in one chunk, and unpack to {size(n_bytes)} at a time; at most "
            f"{size(MOST_BLOCK_BYTES)} are read: write it again in smaller chunks"
        )


def read_keys(name: str, array: Any, chunk_rows: int = 1) -> Any:
    """The values of an array (N, ...) of keys, in parts, so that their size is known before all of them are there.

    Args:
        array: gives rows when it is sliced.
        chunk_rows: rows that are unpacked together.

    Raises:
        ExchangeError: they are too many, or too long.
    """
    if not array.shape:
        return array[...]
    check_rows(name, array.shape[0])
    step = -(-_KEY_ROWS // chunk_rows) * chunk_rows
    check_block(name, min(step, array.shape[0]), array.shape[1:], np.dtype(array.dtype).itemsize)
    parts, n_bytes = [], 0
    for first in range(0, array.shape[0], step):
        part = np.asarray(array[first : first + step])
        # Text of any length is objects: its length counts.
        n_bytes += part.nbytes if part.dtype.kind not in "OT" else sum(map(_length, part.ravel().tolist()))
        check_key_bytes(name, n_bytes)
        parts.append(part)
    return np.concatenate(parts) if parts else array[...]


def check_key_bytes(name: object, n_bytes: int) -> None:
    """
    Raises:
        ExchangeError: keys of so many bytes are not read.
    """
    if n_bytes > MOST_KEY_BYTES:
        raise ExchangeError(f"{name}: the paths have more than {size(MOST_KEY_BYTES)}, which is not read")


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | bytes) else 8


@contextmanager
def reading(name: object, *kinds: type[Exception]) -> Iterator[None]:
    """Turn what a library says of a damaged file into our own error.

    Raises:
        ExchangeError: instead.
    """
    expected: tuple[type[Exception], ...] = (
        OSError, ValueError, KeyError, TypeError, EOFError, OverflowError, MemoryError, RecursionError, *kinds,
    )  # fmt: skip
    try:
        yield
    except FeatstoreError:
        raise
    except expected as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        first = reason.strip().partition("\n")[0] or type(error).__name__
        raise ExchangeError(f"{name} cannot be read, it may be damaged or cut short: {first}") from error


def needed(module: str, place: object) -> Any:
    """A library of the extra `exchange`.

    Raises:
        ExchangeError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ExchangeError(
            f"{place}: this format needs one more package, {library}: pip install 'featstore[exchange]'"
        ) from error


def _read_lines(file: Path) -> list[str]:
    try:
        text = read_file(file, MOST_KEY_BYTES).decode("utf-8-sig")
        lines = text.split("\n")  # a name may hold any other sign that ends lines
    except OSError as error:
        raise ExchangeError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExchangeError(f"{file} is not a text file in UTF-8: {error}") from error
    lines = [line.removesuffix("\r") for line in lines]
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ExchangeError(f"{file}, line {number} is empty; expected one line for each row of features")
    return lines


def _as_text(kind: KeyKind, value: Any) -> str | None:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        if kind == "digest" and len(value) == DIGEST_DIGITS // 2:
            return value.hex()
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return None


def _say(dtype: np.dtype[Any]) -> str:
    return "Python objects" if dtype.kind == "O" else f"of dtype {dtype}"
