"""Thumbnails: small pictures of photos, made once and kept in a cache, from the photo folder or from stored pixels."""

import io
import threading
from pathlib import Path

import numpy as np
from PIL import Image

import featstore
from featstore.files import read_file, refuse_what_is_no_file, replacing
from featstore.support import n_cores
from heads.explore.study import Study

SMALL, LARGE = 256, 1280
"""Longest side in pixels of a thumbnail, and of a photo that is looked at."""
QUALITY = 82
MOST_BYTES = 1 << 20
"""Of a thumbnail that was kept; ours have some ten thousand."""
JPEG = b"\xff\xd8\xff"
"""How one begins."""


class Thumbnails:
    """Pictures of the photos of a study, as JPEG.

    A picture is always encoded anew: whatever a file holds besides its pixels stays where it is.

    Args:
        cache: the folder in which thumbnails are kept, named after the SHA-256 of the photo.
    """

    def __init__(self, study: Study, cache: Path) -> None:
        self.study, self.cache = study, cache
        self._pixels = next(
            (each for each in study.store.tensors.values() if each.layout.kind == "pixels" and each.ndim == 4), None
        )
        self._at_once = threading.BoundedSemaphore(n_cores())

    def kept(self, photo: int) -> bytes | None:
        """The thumbnail of a photo, if it was made before."""
        file = self._file(photo)
        if file is None:
            return None
        try:
            refuse_what_is_no_file(file)  # a link could bring any file of this user into a page that is sent around
            data = read_file(file, MOST_BYTES)
        except OSError:
            return None
        return data if data.startswith(JPEG) else None

    def small(self, photo: int) -> bytes | None:
        """The thumbnail of a photo; None where there is neither the photo nor its pixels, or the file has changed."""
        if (known := self.kept(photo)) is not None:
            return known
        picture = self._picture(photo, SMALL)
        if picture is None:
            return None
        data = _jpeg(picture)
        if (file := self._file(photo)) is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file) as out:
                    out.write(data)
            except OSError:
                pass  # a full disk costs time, and no picture
        return data

    def large(self, photo: int) -> bytes | None:
        """The photo to look at, at most `LARGE` pixels wide and high."""
        picture = self._picture(photo, LARGE)
        return None if picture is None else _jpeg(picture)

    def _file(self, photo: int) -> Path | None:
        """Where its thumbnail is kept; None of a photo whose bytes nobody has seen."""
        digest = self.study.digest(photo)
        return self.cache / digest[:2] / f"{digest}-{SMALL}.jpg" if int(digest, 16) else None

    def _picture(self, photo: int, side: int) -> Image.Image | None:
        from heads.report.photos import find_photo

        with self._at_once:
            digest = self.study.digest(photo)
            known = digest if int(digest, 16) else None
            picture = find_photo(self.study.photos, self.study.path(photo), known)
            if picture is None:
                picture = self._stored(photo)
            if picture is not None:
                picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            return picture

    def _stored(self, photo: int) -> Image.Image | None:
        row = int(self.study.rows[photo])
        if self._pixels is None or self._pixels.states[row] != featstore.RowState.PRESENT:
            return None
        height, width = (int(side) for side in self.study.store.images.sizes[row])
        picture = Image.fromarray(np.ascontiguousarray(self._pixels[row], np.uint8))
        if height > 0 and width > 0:  # a view may have squeezed it
            scale = max(picture.size) / max(height, width)
            picture = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))))
        return picture


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "jpeg", quality=QUALITY)
    return stream.getvalue()
