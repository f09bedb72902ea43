"""What a store from a stranger may say: no path out of the photo folder, none that steers a terminal, no absurd size.

Sizes are checked before anything is allocated for them: a document of a kilobyte can claim 10^12 rows.
"""

import os
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from featstore.errors import FormatError

LONGEST = 4096
STEERING = frozenset(map(chr, [0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]))
"""Marks that turn the direction of text: they let one name look like another."""
UNLISTED_ROWS = 1 << 22
MAX_BLOCK_ROWS = 1 << 20
MAX_BLOCK_BYTES = 1 << 32
"""Of a row block in memory, 4 GiB: 64 rows of 64 MiB."""


def check_path(path: str, where: str) -> None:
    """Refuse a path that no photo below a folder should have, from somebody else's store.

    Raises:
        FormatError: it is absolute, goes up, or has control characters.
    """
    if not path or len(path) > LONGEST or any(unicodedata.category(c) in ("Cc", "Cs") or c in STEERING for c in path):
        why = "it is empty, far too long, or has control characters"
    elif goes_out(path):
        why = "it points out of the photo folder"
    else:
        return
    raise FormatError(f"{where} names an image {path[:80]!r}: {why}; nothing was taken from it")


def goes_out(path: str, *, foreign: bool = True) -> bool:
    """Whether a path, below a folder, may mean a place that is not.

    Args:
        foreign: on any system, as of a store that may go anywhere; or else on this one, where `a:` may be a folder.
    """
    windows = foreign or os.sep == "\\"
    parts = (path.replace("\\", "/") if windows else path).split("/")
    return not parts[0] or (windows and len(parts[0]) == 2 and parts[0].endswith(":")) or ".." in parts


def check_block(block_rows: int, row_shape: Iterable[int], dtype: "np.dtype[Any]", where: str) -> None:
    """Refuse row blocks that would not fit into memory.

    Raises:
        FormatError: they are larger than any that featstore writes.
    """
    n_bytes = block_rows * dtype.itemsize
    for length in row_shape:  # Python's own integers do not overflow
        n_bytes *= int(length)
    if block_rows > MAX_BLOCK_ROWS or n_bytes > MAX_BLOCK_BYTES:
        raise FormatError(
            f"{where} says that a block of {block_rows} rows takes {n_bytes / 1e9:.3g} GB; at most "
            f"{MAX_BLOCK_BYTES / 1e9:.1f} GB are read: it is damaged, or was made to exhaust the memory"
        )


def check_length(n_rows: int, n_chunks: int, chunk_rows: int, where: str) -> None:
    """Refuse far more rows than there are chunks for: some may have none yet, where a writer was cut short.

    Raises:
        FormatError: what is said to be there is not.
    """
    if n_rows > n_chunks * chunk_rows + UNLISTED_ROWS:
        raise FormatError(
            f"{where} says that there are {n_rows} rows and holds {n_chunks} chunks of {chunk_rows}: it is damaged, or "
            "was made to exhaust the memory"
        )
