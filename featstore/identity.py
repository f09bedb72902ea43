"""Feature identity: the facts that decide whether two features are interchangeable.

A segment is one frozen backbone on one view of the image, pooled one way. Its identity is the declared facts
that decide its values: architecture, the weights actually loaded, pooling, view, normalisation, decoding
rules, arithmetic class and stored dtype. Equal identity means interchangeable; unequal identity never mixes.
Versions, engine, device and time are provenance: recorded, but no part of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featstore.backbones import Card
from featstore.errors import ConfigError, suggest
from featstore.photos.decoding import DECODE_RULES
from featstore.photos.views import View

POOLINGS = ("avg", "max")
PIXELS = "pixels"
"""What stands for a backbone's name where the pixels are wanted."""


@dataclass(frozen=True)
class Segment:
    """What a user asks for: a backbone, on which view, how its last feature map is pooled, in what arithmetic.

    Raises:
        ConfigError: unknown pooling.
    """

    card: Card
    view: View
    pooling: str = "avg"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ConfigError(
                f"unknown pooling {self.pooling!r} of backbone {self.card.name!r}; {suggest(self.pooling, POOLINGS)}"
            )

    @property
    def name(self) -> str:
        return self.card.name if self.pooling == "avg" else f"{self.card.name}:{self.pooling}"

    @property
    def width(self) -> int:
        return self.card.width

    def identity(self, weights: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """The facts in full; `weights` is what they were found to be, `{"sha256": ...}` at least."""
        return {
            **self.card.facts(),
            "weights": dict(weights),
            "pooling": self.pooling,
            "view": self.view.facts(),
            "decoding": DECODE_RULES,
            "arithmetic": self.precision,
            "dtype": dtype,
        }


@dataclass(frozen=True)
class PixelSegment:
    """The pixels themselves, as 8-bit RGB."""

    view: View
    name = PIXELS

    @property
    def width(self) -> int:
        return 3 * self.view.block_size[0] * self.view.block_size[1]

    def identity(self) -> dict[str, Any]:
        return {"view": self.view.facts(), "decoding": DECODE_RULES, "dtype": "uint8"}


@dataclass(frozen=True)
class ImportedSegment:
    """Features made elsewhere that the store holds already, by the name of their tensor."""

    name: str


PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
# As a part of the largest feature of the row: how far two computations of one feature may be apart on other machines
# and engines. A machine that lacks an arithmetic computes in a better one. Measured: docs/extraction.md.
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-1, "bf16": 6e-1, "fp16": 1e-1}
PIXEL_TOLERANCE = 8 / 255
"""For another version of a JPEG decoder or a resize filter."""


def tolerance(identity: Mapping[str, Any]) -> float:
    """How far a feature computed again may be from the stored one: the arithmetic's tolerance and half a last digit."""
    if identity["dtype"] == "uint8":
        return PIXEL_TOLERANCE
    return TOLERANCE[str(identity["arithmetic"])] + float(np.finfo(identity["dtype"]).eps) / 2


def is_imported(identity: Mapping[str, Any]) -> bool:
    """Whether features came from elsewhere (`featstore import`), so that they can be copied but not computed."""
    return "imported" in identity


def canonical(identity: Mapping[str, Any]) -> str:
    """The one JSON text of an identity: sorted keys, no spaces, no escapes."""
    return json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def short_hash(identity: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """The facts in which two identities differ, a short sentence each; none if they are the same features."""
    told = []
    for field in sorted({*here, *there}):
        mine, yours = here.get(field), there.get(field)
        if mine == yours:
            continue
        if field in _GROUPS and isinstance(mine, Mapping) and isinstance(yours, Mapping):
            told += differences(mine, yours)
        elif field == "decoding" and {mine, yours} == {DECODE_RULES, WITHOUT_PROFILES}:
            told.append(f"colour profiles applied {'here, not there' if mine == DECODE_RULES else 'there, not here'}")
        elif field == "antialias":
            told.append(f"resized with antialias {'here, without there' if mine else 'there, without here'}")
        else:
            told.append(f"{_WORDS.get(field, f'{field}:')} {_say(mine)} here, {_say(yours)} there")
    return told


WITHOUT_PROFILES = "rgb8-exif-white-dct2"
"""The decoding rules before colour profiles were applied."""
_GROUPS = ("view", "normalisation")
"""Facts that are several facts, each told by itself."""
_WORDS = {
    "architecture": "another network:",
    "arithmetic": "computed in",
    "block": "blocks resized to",
    "decoding": "decoded by the rules",
    "dtype": "stored as",
    "grid": "cut into (rows x columns)",
    "interpolation": "interpolated as",
    "mean": "normalised with the mean",
    "pooling": "pooled by",
    "size": "photos resized to",
    "std": "normalised with the deviation",
}
"""How a sentence begins; that of another fact begins with its name."""


def _say(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping) and "sha256" in value:
        origin = f"random:{value['random_seed']} " if "random_seed" in value else ""
        return f"{origin}{str(value['sha256'])[:12]}"
    if isinstance(value, list) and all(isinstance(each, int) for each in value):
        return "x".join(map(str, value))
    return value if isinstance(value, str) else canonical(value)
