"""The photos of a page: found where a run says they are, if they are what they were, and shrunk to a data URI."""

import base64
import io
from pathlib import Path

from PIL import Image

from featstore import FeatstoreError, read_photo
from heads.runs.run import Run

THUMBNAIL = (300, 200)
"""Most width and height in pixels of a photo among others."""


def find_photo(folder: Path | None, path: str, digest: str | None = None) -> Image.Image | None:
    """The photo at `path` inside `folder`; None if it lies outside, cannot be read, or has changed."""
    if folder is None:
        return None
    try:
        root = folder.resolve()
        file = (root / path).resolve()
        if not file.is_relative_to(root) or not file.is_file():
            return None
        return read_photo(file, digest=bytes.fromhex(digest) if digest else None)
    except (FeatstoreError, OSError, ValueError, RuntimeError):  # of resolve: a NUL in the path, a loop of links
        return None


def photo_of(run: Run, path: str) -> Image.Image | None:
    """A photo of a run, whole; None if it is not where it was or not what it was."""
    digests = run.folds.loc[run.folds["path"] == path, "digest"] if "digest" in run.folds else ()
    folder = None if run.config.photos is None else Path(run.config.photos)
    digest = next(iter(digests), "")
    return find_photo(folder, path, digest) if digest else None


def thumbnail(photo: Image.Image | None) -> str | None:
    """A data URI of the whole photo, no larger than `THUMBNAIL`."""
    if photo is None:
        return None
    photo.thumbnail(THUMBNAIL, Image.Resampling.BILINEAR)
    return jpeg(photo)


def jpeg(image: Image.Image) -> str:
    """A data URI, as a page can hold it."""
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
