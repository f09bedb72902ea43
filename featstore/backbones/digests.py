"""The cache of weights digests: which weights a file holds, remembered so that planning need not load a network."""

import json
from pathlib import Path
from typing import Any

from featstore.backbones.card import Card


class DigestCache:
    """`digests.json` in the weights folder: by architecture and SHA-256 of a file, the digest of the weights in it.

    Where it is lost, or the folder cannot be written, the network is loaded again to find the digest: that takes
    seconds and changes nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "digests.json"

    def get(self, card: Card, file_digest: str) -> str | None:
        value = self._read().get(f"{card.architecture}:{file_digest}")
        return value if isinstance(value, str) else None

    def put(self, card: Card, file_digest: str, digest: str) -> None:
        known = {**self._read(), f"{card.architecture}:{file_digest}": digest}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
            part.replace(self.file)
        except OSError:
            return  # the folder is read-only: the next run loads the network again

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
