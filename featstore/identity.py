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
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np

from featstore.backbones import POOLINGS, Card, Output, segment_name
from featstore.backbones.card import AVG, LAST, LOGITS, MAX, OWN
from featstore.backbones.sources import with_classifier
from featstore.errors import ConfigError, LayoutError, UnfitBackboneError, suggest
from featstore.photos.decoding import DECODE_RULES
from featstore.photos.views import View

PIXELS = "pixels"
"""What stands for a backbone's name where the pixels are wanted."""


@dataclass(frozen=True)
class Segment:
    """What a user asks for: an output of a backbone, on which view, in what arithmetic.

    Raises:
        ConfigError: unknown pooling, or the own one or the logits of a layer.
        BackboneError: logits are asked for, and no classifier is known.
    """

    card: Card
    """Of logits the network with its classifier, whose weights are then part of the identity."""
    view: View
    pooling: str | None = None
    """One of `POOLINGS`; None: the network's own, or of a layer the mean of its map."""
    precision: str = "fp32"
    layer: str = LAST
    note: str = dataclass_field(default="", compare=False)
    """What is done otherwise than the user asked, in words."""

    def __post_init__(self) -> None:
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ConfigError(
                f"unknown pooling {self.pooling!r} of backbone {self.card.name!r}; {suggest(self.pooling, POOLINGS)}"
            )
        if self.layer != LAST and self.pooling in (OWN, LOGITS):
            what = "pools" if self.pooling == OWN else "classifies"
            raise ConfigError(
                f"{self.card.name}/{self.layer}:{self.pooling}: a network {what} only its last layer by itself; "
                "say avg, max, cls or tokens"
            )
        if self.pooling == LOGITS:
            object.__setattr__(self, "card", with_classifier(self.card))

    @property
    def output(self) -> Output:
        """What is taken from the network."""
        if self.layer != LAST:
            return Output(self.layer, self.pooling or AVG)
        return Output(LAST, self.card.own if self.pooling in (None, OWN) else self.pooling)

    @property
    def name(self) -> str:
        return segment_name(self.card, self.output)

    @property
    def width(self) -> int:
        return self._shape[1]

    @property
    def n_blocks(self) -> int:
        """The view's blocks; where tokens are kept, each of these is a block."""
        return self.view.n_blocks * self._shape[0]

    def check(self) -> None:
        """Find out whether the network has this output, and takes the pictures of the view.

        Raises:
            BackboneError: it does not.
        """
        width, height = self.view.block_size
        if min(width, height) < self.card.least:
            raise UnfitBackboneError(
                self.card.name,
                f"it takes pictures of {self.card.least}x{self.card.least} pixels or more, not of {width}x{height}",
            )
        assert self._shape

    @property
    def _shape(self) -> tuple[int, int]:
        """Tokens and features."""
        of_map = () if self.card.own == OWN else (AVG, MAX)  # as wide as the network's own
        if self.card.width is not None and self.output in (Output(LAST, each) for each in (self.card.own, *of_map)):
            return 1, self.card.width
        from featstore.backbones.shapes import shape_of  # with torch, and seconds to import

        return shape_of(self.card, self.output, self.view.block_size)

    def identity(self, weights: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """The facts in full; `weights` is what they were found to be, `{"sha256": ...}` at least."""
        return {
            **self.card.facts(),
            "weights": dict(weights),
            **({} if self.output.layer == LAST else {"layer": self.output.layer}),
            "pooling": self.output.pooling,
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

    @property
    def n_blocks(self) -> int:
        return self.view.n_blocks

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
    """How far a feature computed again may be from the stored one: the arithmetic's tolerance and half a last digit.

    Raises:
        LayoutError: it was computed in a way that this version does not know.
    """
    if identity.get("dtype") == "uint8":
        return PIXEL_TOLERANCE
    arithmetic, dtype = str(identity.get("arithmetic")), str(identity.get("dtype"))
    if arithmetic not in TOLERANCE or dtype not in ("float16", "float32"):
        raise LayoutError(
            f"a segment says that it was computed in {arithmetic!r} and stored as {dtype!r}; how exact that is, only "
            f"of {', '.join(TOLERANCE)} is known"
        )
    return TOLERANCE[arithmetic] + float(np.finfo(dtype).eps) / 2


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
    "built": "network built",
    "crop": "cropped",
    "decoding": "decoded by the rules",
    "dtype": "stored as",
    "grid": "cut into (rows x columns)",
    "interpolation": "interpolated as",
    "layer": "of the layer",
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
