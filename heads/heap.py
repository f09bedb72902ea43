"""How memory that was freed is used again."""

import ctypes
import os
from contextlib import suppress

_TRIM, _MMAP, _ARENAS = -1, -3, -8  # of mallopt, in malloc.h
TRIM_BYTES = 128 << 20
MMAP_BYTES = 1 << 30


def share_heap() -> None:
    """Let threads share one heap in which large arrays that were freed are used again.

    Training frees and makes the same few arrays at every step. glibc would give each thread a heap of its own, which
    grows to the most that the thread ever needed (streaming AMTL, 2.1 GB became 1.8), or would ask the system for new
    pages every time. What the user has set in the environment stays; other C libraries do as they do.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for setting, value in ((_ARENAS, 1), (_MMAP, MMAP_BYTES), (_TRIM, TRIM_BYTES)):
            mallopt(setting, value)
