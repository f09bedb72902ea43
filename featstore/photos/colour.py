"""Colour: the profile in a photo applied, so that pixels mean the same colours in every photo, those of sRGB.

Relative colorimetric with black point compensation, by LittleCMS through Pillow: what sRGB can show keeps its colour,
and the blackest ink of a print becomes black. That is what Photoshop and other editors do unless they are told
otherwise. A perceptual rendering would move every colour by a table of the profile's own, another one for each maker.
"""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""By Pillow's mode, the colour space that a profile has to be of."""
ALIKE = 2
"""Of 255: an sRGB profile is no further from sRGB anywhere; those in use differ by rounding. Pixels then stay."""
Flags = ImageCms.Flags
FLAGS = Flags.BLACKPOINTCOMPENSATION | Flags.HIGHRESPRECALC | Flags.NOCACHE  # NOCACHE: threads share a transform

Conversion = Callable[[Image.Image], Image.Image]


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The image (grey, RGB or CMYK, without alpha) in sRGB, and why its profile was not applied, if it was not.

    A profile that is sRGB itself leaves the image as it is, and costs nothing but its first time.
    """
    conversion = _conversion(profile, image.mode)
    if isinstance(conversion, str):
        return image, conversion
    return (image if conversion is None else conversion(image)), ""


@lru_cache(maxsize=32)
def _conversion(profile: bytes, mode: str) -> Conversion | str | None:
    """The way to sRGB; None if the profile is that; or what is wrong with it."""
    if int.from_bytes(profile[:4], "big") > len(profile):
        return "truncated"
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        if space != SPACES[mode]:
            return f"{_named(space)} profile in {_named(SPACES[mode])} photo"
        return _grey_to_srgb(opened) if mode == "L" else _colours_to_srgb(opened, mode)
    except Exception:  # LittleCMS and Pillow raise OSError, PyCMSError, ValueError, TypeError, ...
        return "damaged"


def _grey_to_srgb(profile: ImageCms.ImageCmsProfile) -> Conversion | None:
    """By a table: LittleCMS would interpolate between a few greys, and miss the dark ones."""
    greys = np.arange(256, dtype=np.uint8)
    table = np.asarray(_transform(profile, "L", FLAGS | Flags.NOOPTIMIZE).apply(Image.fromarray(greys[None])))[0, :, 1]
    if _apart(table, greys) <= ALIKE:
        return None
    return lambda image: image.point(table.tolist())


def _colours_to_srgb(profile: ImageCms.ImageCmsProfile, mode: str) -> Conversion | None:
    transform = _transform(profile, mode, FLAGS)
    if mode == "RGB":  # greys, and colours spread evenly over all that there are
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
        colours = np.concatenate([np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1), cube])[None]
        if _apart(np.asarray(transform.apply(Image.fromarray(colours))), colours) <= ALIKE:
            return None
    return transform.apply


def _transform(profile: ImageCms.ImageCmsProfile, mode: str, flags: ImageCms.Flags) -> ImageCms.ImageCmsTransform:
    srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.buildTransform(profile, srgb, mode, "RGB", renderingIntent=intent, flags=flags)


def _apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other).max())


def _named(space: str) -> str:
    return {"GRAY": "a grey", "RGB": "an RGB"}.get(space, f"a {space}")
