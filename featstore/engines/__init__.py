"""Running a frozen network fast: 8-bit blocks in, pooled float32 features out."""

from featstore.engines.eager import EagerEngine
from featstore.engines.engine import Engine
from featstore.engines.hardware import ENGINES, Hardware, choose_device, default_precision, describe_device

__all__ = [
    "ENGINES",
    "EagerEngine",
    "Engine",
    "Hardware",
    "choose_device",
    "default_precision",
    "describe_device",
]
