"""Augmented copies of a photo: made before a frozen network sees it, the same ones on every machine.

Random crop, blur, brightness and rotation, as in Pournaras et al., MediaEval 2021. Every amount is drawn from the
SHA-256 of the photo's own digest, the seed and the number of the copy, so that a copy depends on nothing else: not
on the file's name, the order of the photos, or a library's generator.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from featstore.errors import ConfigError

REACH = 4.5  # pixels of the result: Lanczos takes 3 each way, and half as many more lie outside of a turned box
RULES = "rotate-crop-blur-brightness-1"


@dataclass(frozen=True)
class Augmentation:
    """How many copies, and how far each may be from its photo; 0 turns a change off.

    Raises:
        ConfigError: an amount is out of its range.
    """

    copies: int = 4
    """Of each photo, 1 to 255."""
    seed: int = 0
    """Another seed draws other copies."""
    crop: float = 0.2
    """At most this share of each side is cut away."""
    blur: float = 1.5
    """Largest standard deviation of the Gaussian, in pixels of the resized photo."""
    brightness: float = 0.25
    """At most this much darker or brighter, as a share."""
    rotation: float = 10.0
    """At most so many degrees either way; corners without pixels are cut away."""

    def __post_init__(self) -> None:
        limits = {"copies": (1, 255), "crop": (0, 0.9), "blur": (0, 50), "brightness": (0, 1), "rotation": (0, 45)}
        for name in ("crop", "blur", "brightness", "rotation"):  # 1 and 1.0 are the same, and have to be written so
            object.__setattr__(self, name, float(getattr(self, name)))
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"augmentation: {name} is {getattr(self, name)}, expected {low} to {high}")

    def facts(self) -> dict[str, Any]:
        """What goes into a feature's identity."""
        return {"rules": RULES, **asdict(self)}

    def smallest_share(self, size: tuple[int, int]) -> float:
        """The smallest part of each side that a copy of a photo of this width and height may keep."""
        return (1 - self.crop) * _upright_share(size, self.rotation)

    def make(
        self, image: Image.Image, copy: int, *, digest: bytes, size: tuple[int, int], filter: Image.Resampling
    ) -> Image.Image:
        """Copy number `copy` of an upright RGB photo, resized to `size`."""

        def draw(what: str) -> float:
            """Uniform in [0, 1)."""
            told = hashlib.sha256(digest + f"/{self.seed}/{copy}/{what}".encode()).digest()
            return int.from_bytes(told[:6], "big") / 2**48

        angle = self.rotation * (2 * draw("rotation") - 1)
        if angle:
            image = _turn(image, angle, size)
        inner = _upright_share(image.size, angle)
        kept = inner * (1 - self.crop * draw("crop"))
        width, height = kept * image.width, kept * image.height
        # Within what the rotation left, the place is free.
        left = (1 - inner) * image.width / 2 + (inner * image.width - width) * draw("x")
        top = (1 - inner) * image.height / 2 + (inner * image.height - height) * draw("y")
        image = image.resize(size, filter, box=(left, top, left + width, top + height))
        image = image.filter(ImageFilter.GaussianBlur(self.blur * draw("blur")))
        return ImageEnhance.Brightness(image).enhance(1 + self.brightness * (2 * draw("brightness") - 1))


def _turn(image: Image.Image, degrees: float, size: tuple[int, int]) -> Image.Image:
    """Turned about its centre; its edges go on outside, as far as the filter of resizing to `size` reaches."""
    width, height = image.size
    margin = math.ceil(REACH * max(width / size[0], height / size[1], 1)) + 3
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    turned = Image.fromarray(padded).rotate(degrees, resample=Image.Resampling.BICUBIC)
    return turned.crop((margin, margin, margin + width, margin + height))


def _upright_share(size: tuple[int, int], degrees: float) -> float:
    """How large a box of the photo's own shape fits into the photo turned about its centre, as a share of each side."""
    sin, cos = math.sin(math.radians(abs(degrees))), math.cos(math.radians(degrees))
    width, height = size
    return min(width / (width * cos + height * sin), height / (width * sin + height * cos))
