"""Running a frozen network fast: 8-bit blocks in, pooled float32 features out."""

from featstore.engines.choosing import ENGINES, Hardware, choose_device, default_precision, describe_device
from featstore.engines.eager import EagerEngine
from featstore.engines.engine import Engine

__all__ = [
    "ENGINES",
    "EagerEngine",
    "Engine",
    "Hardware",
    "choose_device",
    "default_precision",
    "describe_device",
]
