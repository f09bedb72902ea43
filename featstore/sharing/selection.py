"""Which tensors and which images of a store are meant."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ConfigError, StoreError
from featstore.files import read_file
from featstore.store import ImageState, Store


@dataclass(frozen=True)
class Selection:
    """Tensors by name, images by patterns of their paths; everything, if not said."""

    tensors: Sequence[str] | None = None
    """Names; None: all."""
    rows: Sequence[str] | None = None
    """Shell patterns of paths, such as `beach/*`; None: all images."""

    @classmethod
    def parse(cls, tensors: str | None, rows: str | None) -> "Selection":
        """NAME,NAME as --tensors takes it; PATTERN,PATTERN or @FILE, of one path a line, as --rows does.

        Raises:
            ConfigError: nothing is named, or the file cannot be read.
        """
        return cls(_parts("--tensors", tensors), _paths(rows) if rows is not None else None)

    def tensors_of(self, store: Store) -> list[str]:
        """Their names; tensors that are being replaced are left out.

        Raises:
            StoreError: the store has no such tensor.
        """
        if self.tensors is None:
            return [name for name, tensor in store.tensors.items() if tensor.replaced_by is None]
        return [store[name].name for name in dict.fromkeys(self.tensors)]

    def rows_of(self, store: Store) -> NDArray[np.bool_]:
        """(N,) which images are meant; never one that is gone.

        Raises:
            StoreError: a pattern matches none.
        """
        images = store.images
        current: NDArray[np.bool_] = images.states != ImageState.GONE
        if self.rows is None:
            return current
        rows = images.rows_by_path
        wanted = np.zeros(len(images), bool)
        for pattern in self.rows:
            exact = rows.get(pattern)
            found = [exact] if exact is not None else [row for path, row in rows.items() if fnmatchcase(path, pattern)]
            if not found:
                example = f"; it has {next(iter(rows))!r}, for one" if rows else ""
                raise StoreError(f"no image of {store.path} is called {pattern!r}{example}")
            wanted[found] = True
        wanted &= current
        return wanted


def _parts(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise ConfigError(f"{option} {text!r} names nothing; say NAME,NAME or leave it out for all")
    return parts


def _paths(text: str) -> tuple[str, ...] | None:
    if not text.startswith("@"):
        return _parts("--rows", text)
    try:
        lines = read_file(text[1:]).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--rows {text}: the file cannot be read ({error})") from error
    return tuple(line.strip() for line in lines if line.strip()) or _parts("--rows", "")
