"""The cache of weights digests: which weights a file holds, remembered so that planning need not load a network."""

import json
from pathlib import Path
from typing import Any

from featstore.backbones.card import Card
from featstore.files import parse_json, read_file, replacing

LIMIT = 1 << 24
"""The most that is read of the cache; an entry has about 150 bytes."""


class DigestCache:
    """`digests.json` in the weights folder: by architecture and SHA-256 of a file, the digest of the weights in it.

    What it says is a claim: it saves loading a network to plan, and `Networks.load` holds it against the weights that
    were loaded. Where it is lost, or the folder cannot be written, the network is loaded to find the digest: that takes
    seconds and changes nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "digests.json"

    def get(self, card: Card, file_digest: str) -> str | None:
        value = self._read().get(_key(card, file_digest))
        return value if isinstance(value, str) else None

    def put(self, card: Card, file_digest: str, digest: str) -> None:
        self._write({**self._read(), _key(card, file_digest): digest})

    def forget(self, card: Card, file_digest: str) -> None:
        """Take out an entry that turned out to be wrong."""
        self._write({key: value for key, value in self._read().items() if key != _key(card, file_digest)})

    def _read(self) -> dict[str, Any]:
        try:
            known = parse_json(read_file(self.file, LIMIT))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, known: dict[str, Any]) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as file:
                file.write(f"{json.dumps(known, indent=1, sort_keys=True)}\n".encode())
        except OSError:
            return  # the folder is read-only: the next run loads the network again


def _key(card: Card, file_digest: str) -> str:
    return f"{card.architecture}{'+classifier' if card.classifier else ''}:{file_digest}"
