"""The machine: what is there, how fast it is, what the steps are given, and whether the tests for a GPU pass."""

import io
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from featstore.backbones import WeightsPolicy, find_card, resolve_weights
from featstore.backbones.networks import build_network
from featstore.engines.engine import HALVES, arithmetic
from featstore.photos.views import GRID
from featstore.support import version
from gpu.bench import Bench, Figures, run_command


def facts(bench: Bench) -> Figures:
    """The machine, and whether what featstore sets is put back, without a warning."""
    before = {**_flags(), "benchmark": torch.backends.cudnn.benchmark}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for precision in ("fp32", "tf32", "fp16"):
            with arithmetic(precision, torch.device("cuda")):
                inside = _flags()
    after = {**_flags(), "benchmark": torch.backends.cudnn.benchmark}
    packages = ("torch", "torchvision", "timm", "zarr", "numpy", "triton", "numcodecs", "dask", "pytest")
    found: Figures = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "cores": len(os.sched_getaffinity(0)),
        "flags": before,
        "flags inside": inside,
        "flags are put back": before == after,
        "warnings": [str(each.message) for each in caught],
    }
    if bench.device.type == "cuda":
        card = torch.cuda.get_device_properties(bench.device)
        query = [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu",
            "--format=csv,noheader",
        ]
        found |= {
            "gpu": card.name,
            "memory_gb": card.total_memory / 1e9,
            "processors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia-smi": subprocess.run(query, capture_output=True, text=True, check=False, timeout=10).stdout.strip(),
        }
    return found


def _flags() -> dict[str, str]:
    backends: Any = torch.backends
    return {
        "matmul": backends.cuda.matmul.fp32_precision,
        "conv": backends.cudnn.conv.fp32_precision,
        "rnn": backends.cudnn.rnn.fp32_precision,
    }


def inputs(bench: Bench) -> Figures:
    """Photos that decode like real ones, and weights whose features are of a natural size."""
    began = time.perf_counter()
    distinct, n_few, n_many = (4, 4, 12) if bench.small else (192, 128, 2048)
    with ThreadPoolExecutor(16) as pool:
        pictures = list(pool.map(_photo, range(distinct)))
    for name, n in (("few", n_few), ("many", n_many)):
        (bench.folder / name).mkdir()
        for i in range(n):  # the same pixels in another file: another photo for featstore
            data = pictures[i % distinct] + f"{name}{i:06}".encode()
            (bench.folder / name / f"{i:05}.jpg").write_bytes(data)
    photos_s = time.perf_counter() - began
    (bench.folder / "weights").mkdir()
    largest = {name: _calibrate(bench, name) for name in dict.fromkeys((*bench.names, *bench.convolutions))}
    return {
        "photos": n_few + n_many,
        "bytes of a photo": statistics.mean(map(len, pictures)),
        "photos_s": photos_s,
        "weights_s": time.perf_counter() - began - photos_s,
        "largest feature": largest,
    }


def _photo(seed: int) -> bytes:
    rng = np.random.default_rng(seed)

    def grid(height: int, width: int, how: Image.Resampling) -> np.ndarray[Any, Any]:
        small = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        return np.asarray(small.resize((640, 480), how), np.float32)

    pixels = 0.65 * grid(12, 16, Image.Resampling.BICUBIC) + 0.35 * grid(120, 160, Image.Resampling.BILINEAR)
    pixels += rng.integers(-6, 7, (480, 640, 1))
    written = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(written, "JPEG", quality=88)
    return written.getvalue()


def _calibrate(bench: Bench, name: str) -> float:
    """Random weights with batch normalisation as if trained, kept as a file; the largest feature that they give."""
    from safetensors.torch import save_file

    card = find_card(name)
    network = build_network(card, resolve_weights(card, WeightsPolicy(named={"*": "random:0"}))).to(bench.device)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        module.train()
        module.reset_running_stats()
        module.momentum = None  # the mean of what is seen
    blocks = bench.blocks(GRID, 1 if bench.small else 4)
    with torch.inference_mode():
        network(blocks)
        network.eval()
        largest = float(network(blocks)[0].abs().max())
    state = {key: value.contiguous().cpu() for key, value in network.net.state_dict().items()}
    save_file(state, bench.folder / "weights" / f"{card.file_stem}.safetensors")
    return largest


def peaks(bench: Bench) -> Figures:
    """The rates of this machine: products, copies, starts of kernels."""
    size = 512 if bench.small else 8192
    found: Figures = {}
    for precision in ("fp16", "bf16", "tf32", "fp32"):
        left, right = (
            torch.randn(size, size, device=bench.device, dtype=HALVES.get(precision, torch.float32)) for _ in range(2)
        )
        with arithmetic("tf32" if precision == "tf32" else "fp32", bench.device):
            found[f"{precision} TFLOP/s"] = 2 * size**3 / bench.seconds(lambda: torch.mm(left, right)) / 1e12  # noqa: B023
    some = torch.empty(2**20 if bench.small else 2**31, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(some)
    found["copy on the device GB/s, read and written"] = 2 * len(some) / bench.seconds(lambda: other.copy_(some)) / 1e9
    for pinned in (True, False):
        if pinned and bench.device.type != "cuda":
            continue
        here = torch.empty(2**16 if bench.small else 2**26, dtype=torch.uint8, pin_memory=pinned)
        there = torch.empty_like(here, device=bench.device)
        words = "pinned" if pinned else "pageable"
        found[f"to the device GB/s, {words}"] = len(here) / bench.seconds(lambda: there.copy_(here)) / 1e9  # noqa: B023
        found[f"from the device GB/s, {words}"] = len(here) / bench.seconds(lambda: here.copy_(there)) / 1e9  # noqa: B023
    tiny = torch.zeros(1, device=bench.device)
    found["starts a second"] = 1000 / bench.seconds(lambda: [tiny.add_(1) for _ in range(1000)])
    return found


def gpu_tests(bench: Bench) -> Figures:
    """The tests that need a GPU; those that fill its memory by themselves, as they take long."""
    command = [sys.executable, "-u", "-m", "pytest", "-m", "gpu", "-W", "default", "-v", "--tb=short", "--durations=12"]
    files = ["tests/heads/training/test_stack.py", "tests/featstore/engines/test_gpu.py"]
    command += ["-o", "faulthandler_timeout=40", "-p", "no:cacheprovider", *files, "-k"]
    found = {words: run_command(bench, [*command, words], limit_s=50) for words in ("not memory", "memory")}
    return {f"{key}, tests of {words!r}": value for words, said in found.items() for key, value in said.items()}
