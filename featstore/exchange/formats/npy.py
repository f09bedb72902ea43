"""NumPy's own files: one array with its keys in a text file (.npy), or several in a zip (.npz). No pickle is read."""

import lzma
import zlib
from collections.abc import Iterator
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ExchangeError
from featstore.exchange.formats.table import FeatureFile, FeatureTable, choose_dataset, find_keys, make_table, reading
from featstore.support import size

ALWAYS_READ = 1 << 28
"""An array of an .npz that unpacks to so many bytes, 256 MiB, is read however small it is packed."""
MOST_TIMES = 32
"""How much smaller features may be packed: those that are zero half of the time are by 2 to 4."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(file: FeatureFile) -> FeatureTable:
    """An array that stays on the disk; its keys are in a text file."""
    with reading(file.place, TokenError):
        try:
            array = np.lib.format.open_memmap(file.place, mode="r")
        except ValueError as error:
            if "Python objects" in str(error):
                raise _refuse_pickle(f"{file.place}") from error
            raise
    keys = find_keys(file, [], lambda name: None)
    return make_table(file, "npy", keys, array.shape, array.dtype, lambda n: _cut(array, n), array)


def read_npz(file: FeatureFile) -> FeatureTable:
    """An array and its keys in a zip; the array is loaded whole, for what is compressed cannot be read in parts."""
    with reading(file.place, BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, TokenError):
        headers = _read_headers(file)
        numeric = {name: shape for name, (shape, dtype) in headers.items() if dtype.kind in "fiu"}
        name = choose_dataset(file, numeric)
        with np.load(file.place, allow_pickle=False) as arrays:
            keys = find_keys(file, [each for each in headers if each != name], lambda key: _load(file, arrays, key))
            array = _load(file, arrays, name)
    return make_table(file, "npz", keys, array.shape, array.dtype, lambda n: _cut(array, n), array)


def _cut(array: NDArray[Any], n_rows: int) -> Iterator[NDArray[Any]]:
    for first in range(0, len(array), n_rows):
        yield np.asarray(array[first : first + n_rows])


def _read_headers(file: FeatureFile) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """By name, shape and dtype of each array; nothing of the arrays is read."""
    headers = {}
    with ZipFile(file.place) as members:
        for member in members.namelist():
            if member.endswith(".npy"):
                _check_unpacked(file, members.getinfo(member))
                with members.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    if version not in _HEADERS:
                        raise ValueError(f"{member} is of version {version} of the .npy format")
                    shape, _, dtype = _HEADERS[version](stream)
                headers[member.removesuffix(".npy")] = (shape, dtype)
    return headers


def _check_unpacked(file: FeatureFile, member: ZipInfo) -> None:
    if member.file_size > max(ALWAYS_READ, MOST_TIMES * member.compress_size):
        raise ExchangeError(
            f"{file.place}: {member.filename!r} has {size(member.compress_size)} and unpacks to "
            f"{size(member.file_size)}; at most {MOST_TIMES} times as much is read: save it with np.savez, or as .npy"
        )


def _load(file: FeatureFile, arrays: Any, name: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = arrays[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise _refuse_pickle(f"{file.place}: the array {name!r}") from error
        raise
    return array


def _refuse_pickle(what: str) -> ExchangeError:
    return ExchangeError(
        f"{what} holds Python objects (pickle), which are never loaded, for they can run programs; "
        "save text as np.array(paths, dtype=str) and features as numbers"
    )
