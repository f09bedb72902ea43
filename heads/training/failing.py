"""What is said of a device that fails: its memory is full, or it computes no more."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from featstore.support import device_full, device_lost, reason_of
from heads.errors import TrainingError


@contextmanager
def failures_in_words(device: torch.device, *, smaller: str = "", kept: str = "") -> Iterator[None]:
    """Inside, what PyTorch says of a device that fails becomes a line that says what to do.

    Args:
        smaller: what else than another device takes less memory of a GPU.
        kept: what is not lost with the device.

    Raises:
        TrainingError: memory is full, or the device is lost.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if device_full(error):
            raise TrainingError(f"out of memory on {device}: {reason_of(error)}; say --device cpu{smaller}") from error
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # torch's own are RuntimeErrors
            raise TrainingError(f"out of memory: {error}; allow less with --memory") from error
        if device_lost(error):
            raise TrainingError(
                f"{device} computes no more: {reason_of(error)}; {kept}without it, say --device cpu"
            ) from error
        raise
