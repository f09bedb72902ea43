"""Geometry: what part of a photo a frozen network sees.

`whole` is the photo resized to 600x400. `grid` is the same photo cut into 4x4 blocks of 150x100, row-major,
each at its native size (Ghosal and Kolekar, "Visual Interest Prediction"). Any size and any grid will do.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featstore.errors import ConfigError, suggest

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class View:
    """Resize to `size`, then cut into `rows` x `columns` blocks.

    Raises:
        ConfigError: the size is not divisible by the grid, or the interpolation is unknown.
    """

    size: tuple[int, int] = (600, 400)
    """Width and height in pixels."""
    rows: int = 1
    columns: int = 1
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        width, height = self.size
        if min(width, height, self.rows, self.columns) < 1:
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
        return self.rows * self.columns

    @property
    def block_size(self) -> tuple[int, int]:
        """Width and height of one block in pixels."""
        return self.size[0] // self.columns, self.size[1] // self.rows

    def facts(self) -> dict[str, Any]:
        """What of this view goes into a feature's identity."""
        return {
            "size": list(self.size),
            "grid": [self.rows, self.columns],
            "interpolation": self.interpolation,
            # Pillow widens the filter when it shrinks; a resize that does not gives other features.
            "antialias": True,
        }


GRID = View(rows=4, columns=4)
WHOLE = View()
VIEWS = {"grid": GRID, "whole": WHOLE}


def cut(image: Image.Image, views: list[View]) -> dict[View, NDArray[np.uint8]]:
    """The blocks of an RGB photo under each view, as (T, height, width, 3); each size is resized once."""
    resized: dict[tuple[tuple[int, int], str], NDArray[np.uint8]] = {}
    blocks = {}
    for view in views:
        key = (view.size, view.interpolation)
        if key not in resized:
            small = image.resize(view.size, INTERPOLATIONS[view.interpolation])
            resized[key] = np.array(small, dtype=np.uint8)
        blocks[view] = _blocks(resized[key], view)
    return blocks


def _blocks(pixels: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    width, height = view.block_size
    rows = pixels.reshape(view.rows, height, view.columns, width, 3)
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3, 4)).reshape(view.n_blocks, height, width, 3)
