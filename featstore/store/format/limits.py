"""Limits: size and path checks of stores from strangers, and of memory and disk.

A stranger's store names no path out of the photo folder, none that steers a terminal, and no absurd size. Sizes are
checked before anything is allocated for them: a document of a kilobyte can claim 10^12 rows.
"""

import shutil
import unicodedata
from pathlib import Path

from featstore.errors import FormatError, LayoutError, StoreWriteError
from featstore.store.format.layout import TensorLayout

LONGEST = 4096
STEERING = frozenset(map(chr, [0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]))
"""Marks that turn the direction of text: they let one name look like another."""
TABLE_CHUNK = 16384
"""Rows in a chunk of the small arrays."""
STEERING_KINDS = ("Cc", "Cs", "Zl", "Zp")
"""Of characters: control, halves of others, ends of lines and paragraphs."""
UNLISTED_ROWS = 1 << 22
MAX_ROWS = 1 << 32
MAX_BLOCK_ROWS = 1 << 20
MAX_BLOCK_BYTES = 1 << 32
"""Of a row block in memory, 4 GiB: 64 rows of 64 MiB."""


def check_path(path: str, where: str) -> None:
    """Refuse a path that no photo below a folder should have, from somebody else's store.

    Raises:
        FormatError: it is absolute, goes up, or has control characters.
    """
    if not path or len(path) > LONGEST or steers(path):
        why = "it is empty, far too long, or has control characters"
    elif goes_out(path):
        why = "it points out of the photo folder"
    else:
        return
    raise FormatError(f"{where} names an image {path[:80]!r}: {why}; nothing was taken from it")


def steers(text: str) -> bool:
    """Whether a text has characters that steer a terminal, begin a line, or turn the direction of what follows."""
    return not text.isprintable() and any(unicodedata.category(c) in STEERING_KINDS or c in STEERING for c in text)


def goes_out(path: str, *, foreign: bool = True) -> bool:
    """Whether a path, below a folder, may mean a place that is not.

    Args:
        foreign: on any system, Windows too, as a store may go anywhere; if not, only here, where `a:` may be a folder.
    """
    parts = (path.replace("\\", "/") if foreign else path).split("/")
    return not parts[0] or (foreign and len(parts[0]) == 2 and parts[0].endswith(":")) or ".." in parts


def check_block(block_rows: int, row_bytes: int, where: str) -> None:
    """Refuse row blocks that would not fit into memory.

    Raises:
        FormatError: they are larger than any that featstore writes.
    """
    n_bytes = block_rows * row_bytes
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


def check_room_in_memory(layout: TensorLayout, dtype: str, block_rows: int) -> None:
    """Refuse a tensor that could be written and never be opened.

    Raises:
        LayoutError: a row block is larger than any that is read.
    """
    n_bytes = block_rows * layout.row_bytes(dtype)
    if n_bytes > MAX_BLOCK_BYTES:
        raise LayoutError(
            f"tensor {layout.name!r}: a block of {block_rows} rows of {layout.row_shape} {dtype} takes "
            f"{n_bytes / 1e9:.1f} GB; at most {MAX_BLOCK_BYTES / 1e9:.1f} GB are kept together: take fewer backbones, "
            "blocks or copies, or make several tensors of them; nothing was written"
        )


def check_space(path: Path, n_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        StoreWriteError: fewer bytes are free than the features will take.
    """
    folder = next(each for each in (path, *path.absolute().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise StoreWriteError(
            f"the features will take {n_bytes / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free; "
            "free some space or choose another --store; nothing was written"
        )
