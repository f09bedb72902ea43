"""Matrix multiplication in float32 on a CPU: MKL or oneDNN, whichever is faster."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import torch

ALLOWED = "bf16"
FLOAT32_ERROR = 1e-5
"""Of a product, as a part of its largest value: float32 stays well below, and rounding to bfloat16 comes to 1e-3."""
_lock = Lock()
_n_inside = 0
_setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@contextmanager
def whole_width() -> Iterator[None]:
    """Inside, in every thread, oneDNN multiplies float32 on AMD's processors with AVX-512, and no longer MKL.

    MKL takes half the width of their vectors: 107 GFLOP/s of a core that does 240 with oneDNN (docs/benchmarks.md).
    torch asks oneDNN only where that may also round to bfloat16. It does not on these processors: one product is tried,
    and if it comes out rounded, or the user has set a precision, nothing changes.
    The setting is that of the whole process: `torch.get_float32_matmul_precision()` refuses to answer inside.
    """
    global _n_inside
    with _lock:
        ours = (_n_inside or _setting.fp32_precision == "none") and onednn_is_faster() and stays_float32()
        if ours:
            _n_inside += 1
            _setting.fp32_precision = ALLOWED
    try:
        yield
    finally:
        if ours:
            with _lock:
                _n_inside -= 1
                if not _n_inside and _setting.fp32_precision == ALLOWED:
                    _setting.fp32_precision = "none"


@cache
def onednn_is_faster() -> bool:
    """Whether it is than MKL, which is the faster of the two by up to a quarter on Intel's own processors."""
    maker = torch.cpu.get_capabilities().get("cpu_name", "")
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not maker.startswith("Intel")


@cache
def stays_float32() -> bool:
    """Whether oneDNN multiplies float32 as float32 although it may round, as with AMX, Intel's matrix units."""
    some = torch.rand(256, 512, generator=torch.Generator().manual_seed(0)) - 0.5
    exact = some.double() @ some.double().T
    before = _setting.fp32_precision
    _setting.fp32_precision = ALLOWED
    try:
        return bool((some @ some.T - exact).abs().max() < FLOAT32_ERROR * exact.abs().max())
    finally:
        _setting.fp32_precision = before
