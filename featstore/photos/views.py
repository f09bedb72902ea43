"""Views: how a photo is resized and cut into the blocks that a network sees.

`model` is the photo as a network's authors give it to the network, so that each network has its own. `whole` is the
photo resized to 600x400. `grid` is the same photo cut into 4x4 blocks of 150x100, row-major, each at its native size
(Ghosal and Kolekar, "Visual Interest Prediction"). `square` is the photo resized to 256x256, of which networks that
are trained from pixels cut their crops; `centre` is the middle 224x224 of it. `augmented` is seeded copies of the whole
photo. Any size and any grid will do. A view without its grid is a frame: what a photo is resized to, once for all views
that share it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featstore.errors import ConfigError, suggest
from featstore.photos.augmentation import RULES as AUGMENTATION_RULES
from featstore.photos.augmentation import Augmentation

if TYPE_CHECKING:
    import torch

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


CROPS = ("center", "squash", "border")
LARGEST_FRACTION = 2.0
"""Above 1 the photo gets a border; some networks of timm have 1.15."""
LARGEST_RESIZED = 50_000_000
"""Pixels that a whole photo is resized to before the middle is cut out."""


@dataclass(frozen=True)
class Crop:
    """How a photo is brought to the size of a view where its shape is another; modes and arithmetic are timm's.

    The photo is resized to 1/`fraction` of the size, then the middle is cut out. center: the photo keeps its shape, and
    covers that; border: it keeps its shape, and fits into it; squash: it loses its shape.
    """

    mode: Literal["center", "squash", "border"]
    fraction: float
    fill: tuple[int, int, int] | None = None
    """What stands where a photo with a border does not reach; black if None."""
    floor: bool = False
    """Whether the middle is the pixel to the upper left of the true one, where that is none: Hugging Face's rule."""

    def __post_init__(self) -> None:
        if self.mode not in CROPS or not 0 < self.fraction <= LARGEST_FRACTION:
            raise ConfigError(
                f"crop {self}: the mode is one of {', '.join(CROPS)}, the fraction above 0 and at most "
                f"{LARGEST_FRACTION:g}"
            )

    def facts(self) -> dict[str, Any]:
        fill = {} if self.fill is None else {"fill": list(self.fill)}
        floor = {"floor": True} if self.floor else {}
        return {"mode": self.mode, "fraction": self.fraction, **fill, **floor}

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """What a view of a size is cut out of, (width, height)."""
        return math.floor(size[0] / self.fraction), math.floor(size[1] / self.fraction)

    def apply(
        self, image: Image.Image, size: tuple[int, int], filter: Image.Resampling, full: tuple[int, int]
    ) -> Image.Image:
        """Resize and cut.

        Args:
            full: width and height of the photo, which may be decoded at a part of its size.
        """
        resized, (width, height) = self._resized(size, full), size
        if resized[0] * resized[1] > LARGEST_RESIZED and self.mode == "center":
            # A photo as narrow as a ruler would be resized to gigabytes: only what is cut out is made of it.
            left, top = self._middle(resized, size)
            x, y = image.width / resized[0], image.height / resized[1]
            return image.resize(size, filter, box=(left * x, top * y, (left + width) * x, (top + height) * y))
        image = image.resize(resized, filter)
        if image.width < width or image.height < height:
            padded = Image.new("RGB", (max(width, image.width), max(height, image.height)), self.fill or (0, 0, 0))
            padded.paste(image, (max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)))
            image = padded
        left, top = self._middle(image.size, size)
        return image.crop((left, top, left + width, top + height))

    def _middle(self, have: tuple[int, int], want: tuple[int, int]) -> tuple[int, int]:
        left, top = (have[0] - want[0]) / 2, (have[1] - want[1]) / 2
        return (int(left), int(top)) if self.floor else (round(left), round(top))

    def _resized(self, size: tuple[int, int], full: tuple[int, int]) -> tuple[int, int]:
        (width, height), (scaled_width, scaled_height) = full, self.scaled(size)
        if self.mode == "squash":
            return scaled_width, scaled_height
        if self.mode == "center" and scaled_width == scaled_height:
            # The shorter side exactly, the longer one rounded down.
            if width <= height:
                return scaled_width, int(scaled_width * height / width)
            return int(scaled_height * width / height), scaled_height
        ratios = width / scaled_width, height / scaled_height
        ratio = min(ratios) if self.mode == "center" else max(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))


@dataclass(frozen=True)
class View:
    """Resize to `size`, then cut into `rows` x `columns` blocks, each at its native size or resized to `block`.

    Raises:
        ConfigError: the size is not divisible by the grid, or the interpolation is unknown.
    """

    size: tuple[int, int] = (600, 400)
    """Width and height in pixels."""
    rows: int = 1
    """Of blocks, from top to bottom."""
    columns: int = 1
    """Of blocks, from left to right."""
    interpolation: str = "bilinear"
    """bilinear, bicubic or lanczos."""
    augmentation: Augmentation | None = None
    """Seeded copies in place of the photo itself."""
    block: tuple[int, int] | None = None
    """Width and height that each block is resized to, for networks that take one size only."""
    crop: Crop | None = None
    """How a photo of another shape is brought to the size; None squashes it."""

    def __post_init__(self) -> None:
        width, height = self.size
        if min(width, height, self.rows, self.columns, *(self.block or ())) < 1:
            raise ConfigError(f"view {self} has a size or a grid below 1")
        if width % self.columns or height % self.rows:
            raise ConfigError(
                f"a view of {width}x{height} pixels cannot be cut into {self.columns} columns and {self.rows} "
                "rows of equal blocks; choose a size that the grid divides"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"unknown interpolation {self.interpolation!r}; {suggest(self.interpolation, INTERPOLATIONS)}"
            )

    @property
    def n_blocks(self) -> int:
        """Blocks of one frame."""
        return self.rows * self.columns

    @property
    def n_copies(self) -> int | None:
        """How many augmented copies; None if it is the photo itself."""
        return None if self.augmentation is None else self.augmentation.copies

    @cached_property
    def frame(self) -> "View":
        """The same without its grid; itself, if blocks are resized each by itself."""
        return replace(self, rows=1, columns=1) if self.block is None else self

    @property
    def block_size(self) -> tuple[int, int]:
        """Width and height of one block in pixels, as a network gets it."""
        return self.block or self.native_size

    @property
    def native_size(self) -> tuple[int, int]:
        """Width and height of one block where it is cut out."""
        return self.size[0] // self.columns, self.size[1] // self.rows

    @property
    def source_size(self) -> tuple[int, int]:
        """Width and height that the whole photo has to have, for no part of it to be enlarged."""
        if self.crop is not None:
            return self.crop.scaled(self.size)
        share = 1.0 if self.augmentation is None else self.augmentation.smallest_share(self.size)
        return math.ceil(self.size[0] / share), math.ceil(self.size[1] / share)

    def facts(self) -> dict[str, Any]:
        """What of this view goes into a feature's identity."""
        augmentation = {} if self.augmentation is None else {"augmentation": self.augmentation.facts()}
        return {
            "size": list(self.size),
            "grid": [self.rows, self.columns],
            "interpolation": self.interpolation,
            # Pillow widens the filter when it shrinks; a resize that does not gives other features.
            "antialias": True,
            **augmentation,
            **({} if self.block is None else {"block": list(self.block)}),
            **({} if self.crop is None else {"crop": self.crop.facts()}),
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "View":
        """The view that an identity describes.

        Raises:
            KeyError, TypeError, ValueError, ConfigError: it describes none.
        """
        augmentation = dict(facts["augmentation"]) if "augmentation" in facts else None
        if augmentation is not None and augmentation.pop("rules") != AUGMENTATION_RULES:
            raise ValueError("augmented by other rules")
        (width, height), (rows, columns) = facts["size"], facts["grid"]
        return cls(
            (width, height),
            rows=rows,
            columns=columns,
            interpolation=facts["interpolation"],
            augmentation=None if augmentation is None else Augmentation(**augmentation),
            block=None if "block" not in facts else tuple(facts["block"]),
            crop=None if "crop" not in facts else Crop(**{**facts["crop"], **_fill(facts["crop"])}),
        )


def _fill(facts: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    return {"fill": tuple(facts["fill"])} if "fill" in facts else {}


GRID = View(rows=4, columns=4)
WHOLE = View()
SQUARE = View((256, 256))
CENTRE = View((224, 224), crop=Crop("squash", 224 / 256))
AUGMENTED = View(augmentation=Augmentation())
VIEWS = {"grid": GRID, "whole": WHOLE, "square": SQUARE, "centre": CENTRE, "augmented": AUGMENTED}
MODEL = "model"
"""The name of the view that each network has of its own."""


def resize(image: Image.Image, frame: View, digest: bytes, full: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """An upright RGB photo as a frame wants it, (copies, height, width, 3); one copy if it is not augmented.

    Where blocks are resized each by itself they are what is returned, (copies x T, block height, block width, 3).

    Args:
        digest: of the photo's file; the augmented copies are drawn from it.
        full: width and height of the photo, where the image is a part of its size.
    """
    filter = INTERPOLATIONS[frame.interpolation]
    augment = frame.augmentation
    if frame.crop is not None:
        pictures = [frame.crop.apply(image, frame.size, filter, full or image.size)]
    elif augment is None:
        pictures = [image.resize(frame.size, filter)]
    else:
        pictures = [
            augment.make(image, copy, digest=digest, size=frame.size, filter=filter) for copy in range(augment.copies)
        ]
    if frame.block is not None:
        width, height = frame.native_size
        boxes = [(x * width, y * height) for y in range(frame.rows) for x in range(frame.columns)]
        pictures = [
            picture.crop((x, y, x + width, y + height)).resize(frame.block, filter)
            for picture in pictures
            for x, y in boxes
        ]
    return np.stack([np.asarray(each, dtype=np.uint8) for each in pictures])


def frames_of(views: Iterable[View]) -> list[View]:
    """The frames that some views are cut from, each once."""
    return sorted({view.frame for view in views}, key=repr)


def cut(pixels: "torch.Tensor", view: View) -> "torch.Tensor":
    """Frames (C, height, width, 3) -> their blocks (C x T, block height, block width, 3), row-major."""
    if view.block is not None:
        return pixels  # they were cut before they were resized
    width, height = view.block_size
    blocks = pixels.reshape(-1, view.rows, height, view.columns, width, 3)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, 3)
