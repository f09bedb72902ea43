"""Running a frozen network fast: 8-bit blocks in, pooled float32 features out."""

from featstore.engines.hardware import (
    ENGINES,
    Hardware,
    Runtime,
    choose_device,
    default_precision,
    describe_device,
    engine_names,
)

__all__ = [
    "ENGINES",
    "Hardware",
    "Runtime",
    "choose_device",
    "default_precision",
    "describe_device",
    "engine_names",
]
