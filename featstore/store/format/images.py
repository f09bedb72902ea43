"""The images table: one row per image, and what the numbers in its columns and in the commit records mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

# `state` comes last: its length is the number of rows in the store.
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "path": ("string", ()),
    "digest": ("uint8", (32,)),
    "size": ("int32", (2,)),
    "error": ("string", ()),
    "bytes": ("int64", ()),
    "modified": ("int64", ()),
    "state": ("uint8", ()),
}
"""The columns of the images table: dtype and shape of one row."""


class ImageState(IntEnum):
    """What is known of an image file."""

    UNREAD = 0
    """Listed, not decoded yet."""
    READABLE = 1
    UNREADABLE = 2
    """Its `error` says why."""
    GONE = 3
    """No longer a photo of this store: a newer row has its path, or it was pruned."""


class RowState(IntEnum):
    """The commit record of one row of one tensor."""

    ABSENT = 0
    PRESENT = 1
    FAILED = 2


@dataclass(frozen=True)
class ImageTable:
    """One row per image, N in all; the same row number everywhere in the store."""

    paths: list[str]
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    """(N, 2) height and width in pixels, upright; 0 while unread."""
    states: NDArray[np.uint8]
    errors: list[str]
    n_bytes: NDArray[np.int64]
    modified_ns: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.states)

    @cached_property
    def rows_by_path(self) -> dict[str, int]:
        """The current row of each path; rows that are gone are left out."""
        return {path: row for row, path in enumerate(self.paths) if self.states[row] != ImageState.GONE}

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[Any]]) -> "ImageTable":
        return cls(
            paths=[str(path) for path in columns["path"]],
            digests=columns["digest"].astype(np.uint8).reshape(-1, 32),
            sizes=columns["size"].astype(np.int32).reshape(-1, 2),
            states=columns["state"].astype(np.uint8),
            errors=[str(error) for error in columns["error"]],
            n_bytes=columns["bytes"].astype(np.int64),
            modified_ns=columns["modified"].astype(np.int64),
        )
