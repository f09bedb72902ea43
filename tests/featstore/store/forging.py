"""Forged stores: whoever makes a store can make its seals and sums, so that these prove nothing about its maker.

`Forger` changes documents and chunks of a store in a folder and seals it again, as an attacker would:

    forger = Forger(path)
    forger.document("images/path/zarr.json", lambda document: document.update(shape=[10**12]))
    forger.chunk("images/error/c.0", b"...")
    forger.drop("rows/grid/c.0")
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from featstore.store.format.images import COLUMNS
from featstore.store.format.integrity import digest_of, write_document
from featstore.store.format.metadata import TABLE_CHUNK

ROOT = "zarr.json"
Change = Callable[[dict[str, Any]], object]


class Forger:
    """Changes a store in a folder; after each change its seals and sums are right again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def document(self, key: str, change: Change) -> None:
        """Change a `zarr.json`; that of the root too."""
        document = json.loads((self.path / key).read_bytes())
        change(document)
        self.write(key, write_document(key, document))

    def attributes(self, key: str, **changes: Any) -> None:
        """Change attributes of a `zarr.json`."""
        self.document(key, lambda document: document["attributes"].update(changes))

    def chunk(self, key: str, content: bytes) -> None:
        """Put a chunk of a small array there, with its CRC-32C behind it."""
        self.write(key, content + google_crc32c.value(content).to_bytes(4, "little"))

    def column(self, name: str, values: NDArray[Any] | list[str]) -> None:
        """Put values into the first chunk of a column of the images table."""
        dtype, row_shape = COLUMNS[name]
        if dtype == "string":
            texts = [str(value).encode(errors="surrogatepass") for value in values]
            self.chunk(f"images/{name}/c.0", strings([*texts, *[b""] * (TABLE_CHUNK - len(texts))]))
            return
        column = np.zeros((TABLE_CHUNK, *row_shape), dtype)
        column[: len(values)] = values
        self.chunk(f"images/{name}/c.0" + ".0" * len(row_shape), column.tobytes())

    def write(self, key: str, data: bytes) -> None:
        """Put a file there, and on the list of digests."""
        (self.path / key).parent.mkdir(parents=True, exist_ok=True)
        (self.path / key).write_bytes(data)
        if key != ROOT:
            self._sums(lambda sums: sums.update({key: [digest_of(data)]}))

    def drop(self, key: str) -> None:
        """Take a file off the list of digests; it stays where it is."""
        self._sums(lambda sums: sums.pop(key))

    def _sums(self, change: Change) -> None:
        root = json.loads((self.path / ROOT).read_bytes())
        change(root["attributes"]["sums"])
        (self.path / ROOT).write_bytes(write_document(ROOT, root))


def strings(texts: list[bytes], *, n_items: int | None = None, lengths: Mapping[int, int] | None = None) -> bytes:
    """A chunk of strings as Zarr has it.

    Args:
        n_items: how many it says that there are, if not the truth.
        lengths: by place, how long it says that a text is.
    """
    said = {i: len(text) for i, text in enumerate(texts)} | dict(lengths or {})
    body = b"".join(said[i].to_bytes(4, "little") + text for i, text in enumerate(texts))
    return (len(texts) if n_items is None else n_items).to_bytes(4, "little") + body
