"""Pillow's own limit of pixels, set aside while photos are decoded: ours is an option, and says what it would take."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

_lock = threading.Lock()
_inside = 0
_before: int | None = None


@contextmanager
def no_pillow_limit() -> Iterator[None]:
    """Within it `Image.MAX_IMAGE_PIXELS` is None, in all threads; after the last of them it is what it was."""
    global _inside, _before
    with _lock:
        if not _inside:
            _before = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = None
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                Image.MAX_IMAGE_PIXELS = _before
