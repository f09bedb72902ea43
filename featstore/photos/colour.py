"""Colour: the profile in a photo applied, so that pixels mean the same colours in every photo, those of sRGB.

Relative colorimetric with black point compensation, by LittleCMS through Pillow: what sRGB can show keeps its colour,
and the blackest ink of a print becomes black. That is what Photoshop and other editors do unless they are told
otherwise. A perceptual rendering would move every colour by a table of the profile's own, another one for each maker.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""By Pillow's mode, the colour space that a profile has to be of."""
WORDS = {"GRAY": "grey", "L": "grey"}
ALIKE = 2
"""Of 255: an sRGB profile is no further from sRGB anywhere; those in use differ by rounding. Pixels then stay."""
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE  # NOCACHE: threads share a transform


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The image (grey, RGB or CMYK, without alpha) in sRGB, and why its profile was not applied, if it was not.

    A profile that is sRGB itself leaves the image as it is, and costs nothing but its first time.
    """
    transform = _transform(profile, image.mode)
    if isinstance(transform, str):
        return image, transform
    if transform is None:
        return image, ""
    found = transform.apply(image)
    return found, ""


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | str | None:
    """The way to sRGB; None if it is sRGB; or what is wrong."""
    try:
        if int.from_bytes(profile[:4], "big") > len(profile):
            return "truncated"
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        if space != SPACES[mode]:
            return f"a {WORDS.get(space, space)} profile in {_article(mode)} photo"
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=FLAGS,
        )
    except Exception:  # LittleCMS and Pillow raise OSError, PyCMSError, ValueError, TypeError, ...
        return "damaged"
    return None if _changes_nothing(transform, mode) else transform


def _article(mode: str) -> str:
    return {"L": "a grey", "RGB": "an RGB", "CMYK": "a CMYK"}[mode]


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether greys, and colours spread evenly over all that there are, stay as they are."""
    if mode == "CMYK":
        return False
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    colours = greys if mode == "L" else np.concatenate([greys, cube])
    before = Image.fromarray(colours[None])
    after = transform.apply(before.convert("L") if mode == "L" else before)
    return bool(np.abs(np.asarray(after).astype(int) - colours[None]).max() <= ALIKE)
