"""Room for large photos: how many megapixels are decoded at a time, by all threads together.

A photo of 200 megapixels takes a gigabyte or several while it is decoded; as many of them as there are threads would
take all that a machine has.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Megapixels that may be in work at a time; a photo with more than that has them for itself."""

    def __init__(self, megapixels: float) -> None:
        self._most, self._taken = megapixels, 0.0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, megapixels: float) -> Iterator[None]:
        """Wait until there is room, and keep it within the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + megapixels <= self._most)
            self._taken += megapixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= megapixels
                if self._taken < 1e-6:  # what rounding has left
                    self._taken = 0.0
                self._changed.notify_all()
