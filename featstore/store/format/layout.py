"""The layout of a tensor: which segments it holds and where each lies in a row.

`stack` puts segments on a backbone axis and pads each with zeros at its end to a common feature width;
`concat` joins them at their natural widths; `pixels` is the 8-bit pixels of one view. Augmented copies are an axis of
their own behind the image: a copy shares the row of its photo, so no split of the images can part them.
See docs/store-format.md.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ConfigError, FormatError
from featstore.identity import differences, short_hash
from featstore.support import LISTED, few

TensorKind = Literal["stack", "concat", "pixels"]
TENSOR_KINDS: tuple[TensorKind, ...] = ("stack", "concat", "pixels")


def blank(dtype: np.dtype[Any]) -> float:
    """What stands in a row that is not there: never a number that looks like a feature, where the dtype allows it."""
    return float("nan") if np.issubdtype(dtype, np.floating) else 0


def is_blank(row: NDArray[Any]) -> bool:
    """Whether a row is what stands where no row is."""
    return bool(np.isnan(row.reshape(-1)[0])) if np.issubdtype(row.dtype, np.floating) else not row.any()


@dataclass(frozen=True)
class StoredSegment:
    """One segment as a store records it: its name, its identity in full, T blocks, F features, C augmented copies."""

    name: str
    identity: Mapping[str, Any]
    n_blocks: int
    width: int
    n_copies: int | None = None
    """None if it is of the photo itself."""

    @cached_property
    def hash(self) -> str:
        return short_hash(self.identity)

    @property
    def columns(self) -> tuple[str, ...]:
        """What each feature is called, where they have names, as concepts do."""
        named = self.identity.get("columns", ())
        fit = isinstance(named, list) and len(named) == self.n_blocks * self.width
        return tuple(map(str, named)) if fit else ()


@dataclass(frozen=True)
class TensorLayout:
    """A named arrangement of segments; `width` is the common feature width of a stack.

    Raises:
        ConfigError: no segments, unequal numbers of blocks in a stack or of copies, a segment wider than the stack,
            or more than one segment of pixels.
    """

    name: str
    kind: TensorKind
    segments: tuple[StoredSegment, ...]
    width: int | None = None
    missing: tuple[str, ...] = ()
    """Segments that were asked for and left out, as their weights could not be had."""

    def __post_init__(self) -> None:
        if not self.segments:
            raise ConfigError(f"tensor {self.name!r} has no segments; name at least one backbone")
        if len({segment.n_copies for segment in self.segments}) > 1:
            raise ConfigError(f"tensor {self.name!r} joins segments with unequal numbers of augmented copies")
        if len({segment.identity.get("dtype") for segment in self.segments}) > 1:
            raise ConfigError(f"tensor {self.name!r} joins segments of unequal dtypes")
        if self.kind == "pixels" and (len(self.segments) > 1 or self.segments[0].identity["dtype"] != "uint8"):
            raise ConfigError(f"tensor {self.name!r}: a tensor of pixels has one segment, pixels@VIEW")
        if self.kind == "stack":
            if len({segment.n_blocks for segment in self.segments}) > 1:
                raise ConfigError(f"tensor {self.name!r} stacks segments with unequal numbers of blocks")
            widest = max(self.segments, key=lambda segment: segment.width)
            if self.width is not None and widest.width > self.width:
                raise ConfigError(
                    f"tensor {self.name!r}: {widest.name} is {widest.width} wide, more than the stack's {self.width}"
                )

    @property
    def axes(self) -> tuple[str, ...]:
        """The name of each axis, that of the images first."""
        copy = () if self.segments[0].n_copies is None else ("copy",)
        if self.kind == "stack":
            return "image", "backbone", *copy, "block", "feature"
        if self.kind == "concat":
            return "image", *copy, "feature"
        return "image", *copy, *(("block",) if self.segments[0].n_blocks > 1 else ()), "y", "x", "channel"

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(B, T, F) of a stack, (F,) of a concatenation, (height, width, 3) or (T, height, width, 3) of pixels.

        The copies of augmented views stand before T of a stack, and first in the others.
        """
        first = self.segments[0]
        copies = () if first.n_copies is None else (first.n_copies,)
        if self.kind == "stack":
            width = self.width or max(segment.width for segment in self.segments)
            return len(self.segments), *copies, first.n_blocks, width
        if self.kind == "concat":
            return *copies, sum(segment.n_blocks * segment.width for segment in self.segments)
        view = first.identity["view"]
        (width, height), (rows, columns) = view["size"], view["grid"]
        width, height = view.get("block", (width // columns, height // rows))
        return *copies, *((first.n_blocks,) if first.n_blocks > 1 else ()), height, width, 3

    def row_bytes(self, dtype: "np.dtype[Any] | str") -> int:
        """What one row takes, uncompressed."""
        return int(math.prod(self.row_shape)) * np.dtype(dtype).itemsize

    def shard_key(self, block: int) -> str:
        """The key of the shard of a row block."""
        return f"tensors/{self.name}/c.{block}{self._other_axes}"

    @cached_property
    def _other_axes(self) -> str:
        return ".0" * len(self.row_shape)  # kept: a key is made for every row that is read

    def part(self, row: NDArray[Any], index: int) -> NDArray[Any]:
        """The (T, F) or (C, T, F) part of one row that belongs to segment `index`, as a view into it."""
        segment = self.segments[index]
        if self.kind == "stack":
            return row[index, ..., : segment.width]
        copies = () if segment.n_copies is None else (segment.n_copies,)
        if self.kind == "pixels":
            return row.reshape(*copies, segment.n_blocks, segment.width)
        start = sum(each.n_blocks * each.width for each in self.segments[:index])
        flat = row[..., start : start + segment.n_blocks * segment.width]
        return flat.reshape(*copies, segment.n_blocks, segment.width)

    def assemble(self, row: NDArray[Any], features: Mapping[str, NDArray[Any]]) -> None:
        """Write the features of one image, by segment hash, into its row, padding included."""
        if self.kind == "stack":
            row[...] = 0
        for index, segment in enumerate(self.segments):
            part = self.part(row, index)
            part[...] = features[segment.hash].reshape(part.shape)

    def differences(self, other: "TensorLayout") -> list[str]:
        """How the layout of a stored tensor differs from this one, in words; empty if it does not."""
        found = []
        if self.kind != other.kind:
            found.append(f"layout: {self.kind} here, {other.kind} there")
        ours, theirs = [s.name for s in self.segments], [s.name for s in other.segments]
        if ours != theirs:
            found.append(f"segments: {few(ours, LISTED)} here, {few(theirs, LISTED)} there")
        else:
            for mine, yours in zip(self.segments, other.segments, strict=True):
                found += [f"{mine.name}: {text}" for text in differences(mine.identity, yours.identity)]
        if not found and self.missing != other.missing:
            found.append(f"left out: {few(self.missing, LISTED)} here, {few(other.missing, LISTED)} there")
        if not found and self.row_shape != other.row_shape:
            found.append(f"row shape: {self.row_shape} here, {other.row_shape} there")
        return found

    def to_attributes(self) -> dict[str, Any]:
        """What the Zarr array's attributes say of this layout."""
        return {
            "layout": self.kind,
            "axes": list(self.axes),
            **({"missing": list(self.missing)} if self.missing else {}),
            "segments": [
                {
                    "name": segment.name,
                    "hash": segment.hash,
                    "blocks": segment.n_blocks,
                    "width": segment.width,
                    **({} if segment.n_copies is None else {"copies": segment.n_copies}),
                    "identity": dict(segment.identity),
                }
                for segment in self.segments
            ],
        }

    @classmethod
    def from_attributes(cls, name: str, attributes: Mapping[str, Any], row_shape: tuple[int, ...]) -> "TensorLayout":
        """Read a layout back, checking that it is of one piece with the array's shape.

        Raises:
            FormatError: fields are missing, a hash is not that of its identity, or the shape is another.
        """
        try:
            kind = attributes["layout"]
            segments = tuple(
                StoredSegment(each["name"], each["identity"], each["blocks"], each["width"], each.get("copies"))
                for each in attributes["segments"]
            )
            hashes = [each["hash"] for each in attributes["segments"]]
            missing = tuple(map(str, attributes.get("missing", ())))
            layout = cls(name, kind, segments, width=row_shape[-1] if kind == "stack" else None, missing=missing)
            counts = [n for s in segments for n in (s.n_blocks, s.width, s.n_copies) if n is not None]
            if kind not in TENSOR_KINDS or min(counts, default=0) < 1:
                raise ValueError(f"layout {kind!r}, blocks and widths {counts}")
            first = segments[0]
            if kind == "pixels" and first.n_blocks * first.width * (first.n_copies or 1) != math.prod(row_shape):
                raise ValueError(f"{first.n_blocks} blocks of {first.width} values are not {row_shape}")
            sound = layout.row_shape == row_shape and hashes == [segment.hash for segment in segments]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise FormatError(f"tensor {name!r} is not described as one of this store: {error!r}") from error
        if not sound:
            raise FormatError(f"tensor {name!r}: its attributes do not agree with its shape or with their own hashes")
        return layout
