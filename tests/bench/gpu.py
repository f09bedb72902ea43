"""What a GPU does for features and heads: facts, speeds, tests and prototypes, one line of JSON for each step.

    python tests/bench/gpu.py --out OUT                      # a GPU: OUT/gpu.jsonl, the most valuable steps first
    python tests/bench/gpu.py --out OUT --only load,forward  # some steps, with what they need before
    python tests/bench/gpu.py --out OUT --rehearse           # every step on the CPU, with miniatures

A step that fails says so in its line, and the next one begins; one that would not end in time is left out.
"""

import argparse
import copy
import faulthandler
import io
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import featstore
from featstore.backbones import WeightsPolicy, find_card, resolve_weights
from featstore.backbones.networks import Network, build_network
from featstore.config import Config, TensorSpec
from featstore.engines import Hardware, Runtime
from featstore.engines.engine import HALVES, _noise, _pictures, arithmetic, untuned
from featstore.extraction import run as extraction_run
from featstore.extraction.forward import Backbones
from featstore.extraction.recompute import recompute
from featstore.extraction.summary import Summary
from featstore.identity import Segment
from featstore.photos.views import GRID, WHOLE, View
from featstore.support import version

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
AMTL = ("inception_v3", "legacy_xception", "resnet50", "densenet201")
MINIATURES = ("test_resnet", "test_efficientnet")
Figures = dict[str, Any]


@dataclass
class Bench:
    """What the steps share."""

    folder: Path
    out: Path
    device: torch.device
    small: bool
    ends: float
    """When all has to be done, by `time.perf_counter`."""
    loaded: dict[str, Backbones] = field(default_factory=dict)
    """The networks of the end-to-end run, by precision: tuned and recorded once."""
    built: dict[str, Network] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return MINIATURES if self.small else AMTL

    @property
    def convolutions(self) -> tuple[str, ...]:
        """Two networks that stand for others: plain convolutions, and many small kernels."""
        return MINIATURES if self.small else ("resnet50", "densenet201")

    @property
    def precision(self) -> str:
        return "fp32" if self.small else "fp16"

    @property
    def engine(self) -> str:
        return "eager" if self.small else "fused"

    @property
    def policy(self) -> WeightsPolicy:
        return WeightsPolicy(folder=self.folder / "weights")

    @property
    def batch(self) -> int:
        return 2 if self.small else 32

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], times: int = 5, warm_ups: int = 2) -> float:
        """Of one call: the median of several, each from an idle device to an idle device."""
        for _ in range(warm_ups):
            work()
        took = []
        for _ in range(times):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            took.append(time.perf_counter() - began)
        return statistics.median(took)

    def blocks(self, view: View, n_photos: int) -> Tensor:
        """(T, height, width, 3) of noise with large structures, on the device."""
        width, height = view.block_size
        n = n_photos * view.n_blocks
        coarse = torch.rand(n, 3, 6, 8, generator=torch.Generator().manual_seed(1)).to(self.device)
        fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
        return (255 * fine).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def network(self, name: str) -> Network:
        """A network with its calibrated weights, on the CPU; drawing first weights takes seconds, a copy does not."""
        if name not in self.built:
            card = find_card(name)
            self.built[name] = build_network(card, resolve_weights(card, self.policy))
        return copy.deepcopy(self.built[name])

    def config(self, photos: Path, store: Path, precision: str) -> Config:
        tensors = (TensorSpec("grid", "stack", self.names), TensorSpec("whole", "concat", self.names))
        return Config(photos=photos, store=store, weights=self.policy, tensors=tensors, precision=precision)

    def runtime(self, batch: int | None = None) -> Runtime:
        return Runtime(str(self.device), self.engine if self.small else "auto", batch or self.batch)


# --- what is there ---


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


# --- extraction ---


def load(bench: Bench, precision: str | None = None) -> Figures:
    """`extract` of a few photos with an empty machine: what a user waits for, and which engines were taken."""
    precision = precision or bench.precision
    notes: list[str] = []
    stamps: list[tuple[str, int, float]] = []

    def make(*args: Any, **kwargs: Any) -> Backbones:
        kwargs["note"] = notes.append
        bench.loaded[precision] = Backbones(*args, **kwargs)
        return bench.loaded[precision]

    failed, began = "", time.perf_counter()

    def run(runtime: Runtime) -> Summary:
        return featstore.extract(
            bench.config(bench.folder / "few", bench.folder / f"few {precision}.zarr", precision),
            runtime=runtime,
            on_progress=lambda stage, done, total: stamps.append((stage, done, time.perf_counter() - began)),
        )

    with _backbones(make):
        try:
            summary = run(bench.runtime())
        except Exception:  # the steps that follow can be done without the fastest engine
            failed = traceback.format_exc()[-3000:]
            summary = run(replace(bench.runtime(), engine="eager"))
    ready = bench.loaded[precision]
    loading = [second for stage, _, second in stamps if stage == "load"]
    return {
        "precision": precision,
        "batch": ready.batch,
        "seconds of each network": [later - sooner for sooner, later in pairwise(loading)],
        "engines": summary.engines,
        "notes": notes,
        "failed before eager": failed,
        "first photo s": summary.first_s,
        "all s": summary.elapsed_s,
        "photos that failed": summary.failed[:3],
        "not numbers": _not_numbers(bench, ready) if notes else {},
        **_memory(bench),
    }


def _not_numbers(bench: Bench, ready: Backbones) -> Figures:
    """By pass and kind of picture: the first layer of a network that gives no number, and the largest result before.

    The pictures are those of an engine's check, noise, and the black ones with which a recording is made.
    """
    found: Figures = {}
    for segment in ready.segments.values():
        if not isinstance(segment, Segment):
            continue
        width, height = segment.view.block_size
        shape = (2, height, width, 3)
        for words, blocks in (
            ("pictures", _pictures(shape, bench.device)),
            ("noise", _noise(shape, bench.device)),
            ("black", torch.zeros(shape, dtype=torch.uint8, device=bench.device)),
        ):
            place = f"{segment.card.name} {'grid' if segment.view == GRID else 'whole'}, {words}"
            found[place] = _first_not_finite(bench.network(segment.card.name).to(bench.device), blocks, segment)
    return found


def _first_not_finite(network: Network, blocks: Tensor, segment: Segment) -> Figures:
    largest: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def noted(module: nn.Module, given: object, result: object) -> None:
            if isinstance(result, Tensor) and result.is_floating_point():
                largest[name] = result.abs().max()

        return noted

    for name, module in network.net.named_modules():
        module.register_forward_hook(note(name))
    with untuned(), arithmetic(segment.precision, blocks.device):
        network(blocks)
    sizes = {name: float(value) for name, value in largest.items()}
    bad = next((name for name, size in sizes.items() if not np.isfinite(size)), None)
    return {"first": bad, "largest": max((size for size in sizes.values() if np.isfinite(size)), default=0.0)}


def end_to_end(bench: Bench, precision: str | None = None) -> Figures:
    """`extract` of many photos with networks that are loaded: photos a second, and what they wait for."""
    precision = precision or bench.precision
    ready = bench.loaded[precision]
    stamps: list[tuple[int, float]] = []

    def note(stage: str, done: int, total: int) -> None:
        if stage == "extract":
            stamps.append((done, time.perf_counter()))

    cpu, begun = time.process_time(), time.perf_counter()
    main = time.thread_time()
    with _backbones(lambda *args, **kwargs: ready):
        summary = featstore.extract(
            bench.config(bench.folder / "many", bench.folder / f"many {precision}.zarr", precision),
            runtime=bench.runtime(),
            on_progress=note,
        )
    wall = time.perf_counter() - begun
    from_third = [(done, at) for done, at in stamps if done >= 2 * bench.batch]
    (first, started), (last, ended) = from_third[0], from_third[-1]
    return {
        "precision": precision,
        "photos": last,
        "photos/s from the third batch": (last - first) / (ended - started),
        "photos/s with commits": summary.images_per_s,
        "limited by": summary.limiting_stage,
        "shares": summary.shares,
        "stages_s": summary.stages_s,
        "extracting_s": summary.extracting_s,
        "all s": summary.elapsed_s,
        "main thread s": time.thread_time() - main,
        "cpu s": time.process_time() - cpu,
        "wall s": wall,
        "failed": len(summary.failed),
        **_memory(bench),
    }


@contextmanager
def _backbones(make: Callable[..., Backbones]) -> Iterator[None]:
    """An extraction within gets its networks from here."""
    before = extraction_run.Backbones
    extraction_run.Backbones = make  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        extraction_run.Backbones = before  # type: ignore[misc]


def forward(bench: Bench) -> Figures:
    """The passes alone, over blocks that are on the device: each network and view, and all of them."""
    from extraction_speed import count_flop

    ready = bench.loaded[bench.precision]
    found: Figures = {}
    networks = {name: bench.network(name).to(bench.device) for name in bench.names}
    passes = []
    flop: dict[str, float] = {}
    for segment in ready.segments.values():
        if not isinstance(segment, Segment):
            continue
        engine, blocks = ready.engine(segment), bench.blocks(segment.view, ready.batch)
        passes.append((engine, blocks))
        name = f"{segment.card.name} {'grid' if segment.view == GRID else 'whole'}"
        with torch.inference_mode():
            found[f"ms of {name}"] = 1000 * bench.seconds(lambda: engine.run(blocks))  # noqa: B023
        flop[name] = count_flop(networks[segment.card.name], segment.view) * ready.batch
        found[f"TFLOP/s of {name}"] = flop[name] / found[f"ms of {name}"] / 1e9

    def all_passes() -> None:
        for engine, blocks in passes:
            engine.run(blocks)

    took = bench.seconds(all_passes)
    found |= {"batch": ready.batch, "ms of all": 1000 * took, "photos/s": ready.batch / took}
    found["TFLOP/s of all"] = sum(flop.values()) / took / 1e12
    if bench.device.type == "cuda":
        found["kernels"] = _profile(all_passes)
    return found


def _profile(work: Callable[[], object], most: int = 20) -> list[tuple[str, int, float]]:
    """The kernels that take longest: name, calls, milliseconds."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda each: -each.self_device_time_total)
    return [(each.key[:120], each.count, each.self_device_time_total / 1000) for each in events[:most]]


def baseline(bench: Bench) -> Figures:
    """The same networks as a researcher runs them: PyTorch with its defaults, and with autocast and channels last."""
    found: Figures = {}
    sums: dict[str, float] = {}
    for name in bench.names:
        network = bench.network(name).to(bench.device)
        for words, layout, half in (
            ("as it is", torch.contiguous_format, False),
            ("autocast", torch.channels_last, True),
        ):
            network = network.to(memory_format=layout)  # type: ignore[call-overload]
            for view, called in ((GRID, "grid"), (WHOLE, "whole")):
                blocks = bench.blocks(view, bench.batch)
                dtype = torch.bfloat16 if bench.small else torch.float16
                with torch.inference_mode(), torch.autocast(bench.device.type, dtype, enabled=half):
                    took = bench.seconds(lambda: network(blocks), times=3)  # noqa: B023
                found[f"ms of {name} {called}, {words}"] = 1000 * took
                sums[words] = sums.get(words, 0.0) + took
    return found | {f"photos/s, {words}": bench.batch / took for words, took in sums.items()}


def gpu_tests(bench: Bench) -> Figures:
    """The tests that need a GPU; those that fill its memory by themselves, as they take long."""
    command = [sys.executable, "-u", "-m", "pytest", "-m", "gpu", "-W", "default", "-v", "--tb=short", "--durations=12"]
    files = ["tests/heads/training/test_stack.py", "tests/featstore/engines/test_gpu.py"]
    command += ["-o", "faulthandler_timeout=40", "-p", "no:cacheprovider", *files, "-k"]
    found = {words: _run(bench, [*command, words], limit_s=50) for words in ("not memory", "memory")}
    return {f"{key}, tests of {words!r}": value for words, said in found.items() for key, value in said.items()}


def heads_as_they_are(bench: Bench) -> Figures:
    """AMTL by `heads`, on the CPU and on the GPU: seconds of a model and an epoch; then a whole `train`."""
    import heads

    store, labels, table = _ratings(bench)
    here, found = str(bench.device), {}
    for device, precision, folds, epochs in ((here, "fp32", 2, 2), (here, "bf16", 2, 2), ("cpu", "fp32", 8, 1)):
        took = _train_heads(bench, store, labels, precision, folds=folds, repeats=1, epochs=epochs, device=device)
        found[f"{device} {precision}, s of a model and epoch"] = took
    began = time.perf_counter()
    run = heads.train(
        "amtl",
        store,
        table,
        scale="1:7",  # type: ignore[arg-type]
        folds=2,
        repeats=1,
        options={"epochs": 2},
        device=here,
        out=bench.folder / "a run",
        progress=False,
    )
    return found | {"train s": time.perf_counter() - began, "run": str(run)[:200], **_memory(bench)}


def _ratings(bench: Bench) -> tuple[Path, Any, Any]:
    """A store of random features as AMTL reads them, their labels, and the labels as a table."""
    import pandas as pd
    import train as bench_train

    if bench.small:
        bench_train.T, bench_train.F = 4, 64
    n_images, n_tasks = (120, 3) if bench.small else (1005, 12)
    rng = np.random.default_rng(0)
    ratings = rng.uniform(1, 7, (n_images, n_tasks))
    table = pd.DataFrame(ratings, columns=[f"t{k}" for k in range(n_tasks)])
    table.insert(0, "path", [f"{i}.jpg" for i in range(n_images)])
    store = bench.folder / "heads.zarr"
    if not store.exists():
        shape = (n_images, bench_train.B, bench_train.T, bench_train.F)
        bench_train._write(store, np.maximum(rng.standard_normal(shape, np.float32) * 0.4 + 0.1, 0).astype(np.float16))
    return store, bench_train._labels(ratings), table


def _train_heads(
    bench: Bench,
    store: Path,
    labels: Any,
    precision: str,
    *,
    folds: int,
    repeats: int,
    epochs: int,
    device: str | None = None,
    stacked: bool = False,
) -> float:
    """Seconds of a model and an epoch."""
    import train as bench_train

    options = argparse.Namespace(
        images=len(labels.values),
        folds=folds,
        repeats=repeats,
        epochs=epochs,
        device=device or str(bench.device),
        precision=precision,
    )
    return bench_train._train(
        store, labels, bench.folder / "run", options, memory_bytes=8 * 10**9, load=True, stacked=stacked
    )


def batches(bench: Bench) -> Figures:
    """Photos a second by the size of a batch; the smaller ones stay in the cache of the device."""
    found: Figures = {}
    for name in bench.convolutions:
        for size in (1, 2) if bench.small else (4, 8, 16, 32, 64):
            if bench.ends < time.perf_counter() + 20 and not bench.small:
                return found | {"ended": "no time left"}
            blocks = bench.blocks(GRID, size)
            notes: list[str] = []
            began = time.perf_counter()
            engine = Hardware(bench.device, bench.engine, size).load(
                bench.network(name),
                find_card(name),
                precision=bench.precision,
                shapes=[tuple(blocks.shape)],
                note=notes.append,
            )
            found[f"load s of {name}, {size}"] = time.perf_counter() - began
            found[f"grid photos/s of {name}, {size}"] = size / bench.seconds(lambda: engine.run(blocks), times=10)  # noqa: B023
            if notes:
                found[f"notes of {name}, {size}"] = notes
    return found


def engines(bench: Bench) -> Figures:
    """Each network by each engine: seconds to load, milliseconds of a pass, how far from exact features."""
    found: Figures = {}
    for name in bench.names:
        for view, called in ((GRID, "grid"), (WHOLE, "whole")):
            blocks = bench.blocks(view, bench.batch)
            with untuned(), arithmetic("fp32", bench.device):
                exact = bench.network(name).to(bench.device)(blocks[:16])[0]
            for kind in ("eager",) if bench.small else ("fused", "graph"):
                if bench.ends < time.perf_counter() + 15 and not bench.small:
                    return found | {"ended": "no time left"}
                key = f"{name} {called}, {kind}"
                began = time.perf_counter()
                try:
                    engine = Hardware(bench.device, kind, bench.batch).load(
                        bench.network(name),
                        find_card(name),
                        precision=bench.precision,
                        shapes=[tuple(blocks.shape)],
                        note=lambda text: None,
                    )
                except Exception as error:  # the others say something all the same
                    found[key] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
                    continue
                ready = time.perf_counter() - began
                features = engine.run(blocks)[0][:16]
                found[key] = {
                    "engine": engine.name,
                    "load s": ready,
                    "ms": 1000 * bench.seconds(lambda: engine.run(blocks)),  # noqa: B023
                    "apart from fp32": float((features - exact).abs().max() / exact.abs().max()),
                }
    return found


def formats(bench: Bench) -> Figures:
    """Eager milliseconds by precision and memory format, and how far features are from exact ones."""
    found: Figures = {}
    for name in ("test_resnet",) if bench.small else ("resnet50", "legacy_xception"):
        network = bench.network(name).to(bench.device)
        blocks = bench.blocks(GRID, bench.batch)
        with arithmetic("fp32", bench.device):
            exact = network(blocks)[0]
        for precision in ("fp16", "bf16", "tf32", "fp32"):
            for words, layout in (("channels last", torch.channels_last), ("contiguous", torch.contiguous_format)):
                network = network.to(memory_format=layout)  # type: ignore[call-overload]
                if bench.small and precision == "fp16":
                    continue
                if not bench.small and bench.ends < time.perf_counter() + 15:
                    return found | {"ended": "no time left"}
                with arithmetic(precision, bench.device):
                    began = time.perf_counter()
                    features = network(blocks)[0]
                    bench.wait()
                    key = f"{name} {precision} {words}"
                    found[f"first s of {key}"] = time.perf_counter() - began
                    found[f"ms of {key}"] = 1000 * bench.seconds(lambda: network(blocks), times=4, warm_ups=1)  # noqa: B023
                    found[f"apart of {key}"] = float((features - exact).abs().max() / exact.abs().max())
    return found


def again(bench: Bench) -> Figures:
    """Stored rows computed again, a photo at a time: how far apart the same photo is in another batch."""
    checked = recompute(
        bench.folder / f"few {bench.precision}.zarr",
        4,
        photos=bench.folder / "few",
        weights=bench.policy,
        runtime=bench.runtime(batch=4),
        seed=0,
    )
    errors = {f"{each.tensor} {each.segment}": each.largest_error for each in checked.comparisons}
    return {"rows": checked.n_checked, "largest error": errors, "within": checked.within}


def stack(bench: Bench) -> Figures:
    """Many AMTL models in one stack, as `heads` trains them: model-epochs a second, by their number and precision."""
    store, labels, _ = _ratings(bench)
    found: Figures = {}
    for folds, repeats in ((2, 1),) if bench.small else ((2, 1), (5, 1), (5, 5)):
        for precision in ("fp32", "bf16"):
            if bench.ends < time.perf_counter() + 15 and not bench.small:
                return found | {"ended": "no time left"}
            took = _train_heads(bench, store, labels, precision, folds=folds, repeats=repeats, epochs=3, stacked=True)
            found[f"{folds * repeats} models, {precision}"] = {"model-epochs/s": 1 / took, **_memory(bench)}
    return found


# --- prototypes ---


def compiled(bench: Bench) -> Figures:
    """The `compile` engine: seconds until it is ready, and milliseconds of a pass."""
    name = bench.convolutions[0]
    blocks = bench.blocks(GRID, bench.batch)
    notes: list[str] = []
    began = time.perf_counter()
    engine = Hardware(bench.device, "compile", bench.batch).load(
        bench.network(name),
        find_card(name),
        precision=bench.precision,
        shapes=[tuple(blocks.shape)],
        note=notes.append,
    )
    ready = time.perf_counter() - began
    took = bench.seconds(lambda: engine.run(blocks))
    return {"network": name, "ready s": ready, "ms": 1000 * took, "grid photos/s": bench.batch / took, "notes": notes}


def folded(bench: Bench) -> Figures:
    """A ResNet whose batch normalisation is in its convolutions, which add and cut off as well."""
    name = bench.convolutions[0]
    blocks = bench.blocks(GRID, bench.batch)
    network = bench.network(name).to(device=bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with arithmetic("fp32", bench.device):
        exact = network(blocks)[0]
    found: Figures = {}
    half = bench.device.type == "cuda"
    for words in ("as it is", "folded", "fused"):
        if words == "folded":
            _fold(network.net)
            if half:
                network.net.half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if words == "fused" and half:
            _fuse(network.net)
        with arithmetic("fp32" if words != "as it is" else bench.precision, bench.device):
            pixels = blocks.permute(0, 3, 1, 2).float().sub(network.mean).div(network.std)
            pixels = pixels.half() if half and words != "as it is" else pixels
            net: Any = network.net
            took = bench.seconds(lambda: net.forward_head(net.forward_features(pixels)))  # noqa: B023
            features = net.forward_head(net.forward_features(pixels)).float()
        found[f"ms, {words}"] = 1000 * took
        found[f"apart, {words}"] = float((features - exact).abs().max() / exact.abs().max())
    return {"network": name, **found}


def _fold(net: nn.Module) -> None:
    """Put each `bnN` into the `convN` beside it, and what follows a convolution in a `Sequential`."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in net.modules():
        names = dict(module.named_children())
        pairs = [(key, f"bn{key[4:]}") for key in names if key.startswith("conv")]
        if isinstance(module, nn.Sequential):
            pairs = list(zip(names, list(names)[1:], strict=False))
        for conv, norm in pairs:
            if type(names.get(conv)) is nn.Conv2d and type(names.get(norm)) is nn.BatchNorm2d:
                setattr(
                    module, conv, fuse_conv_bn_eval(cast(nn.Conv2d, names[conv]), cast(nn.BatchNorm2d, names[norm]))
                )
                setattr(module, norm, nn.Identity())


def _fuse(net: nn.Module) -> None:
    """Convolution and ReLU, and convolution, sum and ReLU, as one kernel each in the bottlenecks of timm's ResNet."""

    def made(block: Any) -> Callable[[Tensor], Tensor]:
        def run(values: Tensor) -> Tensor:
            shortcut = values if block.downsample is None else block.downsample(values)
            for conv in (block.conv1, block.conv2):
                values = torch.cudnn_convolution_relu(
                    values, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
                )
            last = block.conv3
            return torch.cudnn_convolution_add_relu(
                values, last.weight, shortcut, 1.0, last.bias, last.stride, last.padding, last.dilation, last.groups
            )

        return run

    for module in net.modules():
        if type(module).__name__ == "Bottleneck":
            module.forward = made(module)  # type: ignore[method-assign]


# --- the run ---


@dataclass(frozen=True)
class Step:
    name: str
    budget_s: float
    run: Callable[[Bench], Figures]
    needs: tuple[str, ...] = ()
    apart: bool = False
    """In a process of its own: it may leave the device unusable, or never end."""


STEPS = (
    Step("facts", 5, facts),
    Step("inputs", 25, inputs),
    Step("peaks", 8, peaks),
    Step("load", 90, load, ("inputs",)),
    Step("end to end", 25, end_to_end, ("load",)),
    Step("forward", 12, forward, ("load",)),
    Step("heads", 30, heads_as_they_are),
    Step("gpu tests", 90, gpu_tests),
    Step("stack", 25, stack),
    Step("baseline", 25, baseline, ("inputs",)),
    Step("engines", 60, engines, ("inputs",)),
    Step("batches", 40, batches, ("inputs",)),
    Step("formats", 40, formats, ("inputs",)),
    Step("again", 40, again, ("load",)),
    Step("folded", 25, folded, ("inputs",), apart=True),
    Step("compiled", 60, compiled, ("inputs",), apart=True),
    Step("load bf16", 60, lambda bench: load(bench, "bf16"), ("inputs",)),
    Step("end to end bf16", 20, lambda bench: end_to_end(bench, "bf16"), ("load bf16",)),
    Step("load tf32", 60, lambda bench: load(bench, "tf32"), ("inputs",)),
    Step("end to end tf32", 25, lambda bench: end_to_end(bench, "tf32"), ("load tf32",)),
)
"""The most valuable ones first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; gpu.jsonl is written there")
    parser.add_argument("--seconds", type=float, default=340, help="what all steps may take together [340]")
    parser.add_argument("--only", default="", help="steps, with commas between; what they need comes before them")
    parser.add_argument("--without", default="", help="steps to leave out, with commas between")
    parser.add_argument("--rehearse", action="store_true", help="every step on the CPU, with miniatures")
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    began = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA GPU here; --rehearse runs every step on the CPU")
    wanted = _wanted(args.only, args.without)
    device = torch.device("cpu" if args.rehearse else "cuda:0")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(args.inputs or Path(name), args.out, device, args.rehearse, began + args.seconds)
        done: set[str] = {"inputs"} if args.inputs else set()
        for step in wanted:
            if step.name not in done and _do(step, bench, done):
                done.add(step.name)


def _wanted(only: str, without: str) -> list[Step]:
    """The steps to run, in order."""
    known = {step.name: step for step in STEPS}
    asked = [name.strip() for name in f"{only},{without}".split(",") if name.strip()]
    if unknown := [name for name in asked if name not in known]:
        sys.exit(f"no step {', '.join(unknown)}; there are: {', '.join(known)}")
    left_out = {name.strip() for name in without.split(",")}
    chosen = {name.strip() for name in only.split(",") if name.strip()} or set(known) - left_out
    for step in reversed(STEPS):  # what is needed stands before
        if step.name in chosen:
            chosen |= set(step.needs)
    return [step for step in STEPS if step.name in chosen]


def _do(step: Step, bench: Bench, done: set[str]) -> bool:
    left = bench.ends - time.perf_counter()
    if lacking := [name for name in step.needs if name not in done]:
        _say(bench, {"step": step.name, "skipped": f"it needs {', '.join(lacking)}"})
        return False
    if left < step.budget_s * 0.6:
        _say(bench, {"step": step.name, "skipped": f"{left:.0f} s are left, it may take {step.budget_s:.0f}"})
        return False
    _say(bench, {"step": step.name, "begin": round(time.time(), 1), "left_s": round(left, 1)})
    began = time.perf_counter()
    faulthandler.dump_traceback_later(2 * step.budget_s + 30)
    said: Figures = {"step": step.name}
    try:
        said["figures"] = _elsewhere(step, bench) if step.apart else step.run(bench)
    except Exception:
        said["error"] = traceback.format_exc()[-3000:]
    finally:
        faulthandler.cancel_dump_traceback_later()
    _say(bench, {**said, "seconds": round(time.perf_counter() - began, 2)})
    return "error" not in said


def _elsewhere(step: Step, bench: Bench) -> Figures:
    """In a process of its own, which writes its lines there too."""
    if os.environ.get("GPU_BENCH_INSIDE"):
        return step.run(bench)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    limit_s = min(1.5 * step.budget_s, bench.ends - time.perf_counter()) if not bench.small else 120
    command = [sys.executable, str(HERE), "--out", str(bench.out), "--only", step.name, "--inputs", str(bench.folder)]
    command += ["--seconds", "1000", *(["--rehearse"] if bench.small else [])]
    return _run(bench, command, limit_s=limit_s, inside=True)


def _run(bench: Bench, command: Sequence[str], *, limit_s: float, inside: bool = False) -> Figures:
    environment: Mapping[str, str] = {**os.environ, **({"GPU_BENCH_INSIDE": "1"} if inside else {})}
    log = bench.folder / "said.txt"
    with log.open("w") as said:
        try:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
            status: int | str = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = f"ended after {limit_s:.0f} s"
            _end(process)
    return {"status": status, "said": log.read_text(errors="replace")[-5000:]}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """As Ctrl-C does: pytest still says what has failed."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _memory(bench: Bench) -> Figures:
    if bench.device.type != "cuda":
        return {}
    most = torch.cuda.max_memory_allocated(bench.device) / 1e9
    torch.cuda.reset_peak_memory_stats(bench.device)
    return {"most memory GB": most, "reserved GB": torch.cuda.memory_reserved(bench.device) / 1e9}


def _say(bench: Bench, line: Figures) -> None:
    """To the file and, shortened, to whoever looks on."""
    text = json.dumps(line, default=str)
    with (bench.out / "gpu.jsonl").open("a") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(text if len(text) < 1500 else text[:1500] + " ...", flush=True)


if __name__ == "__main__":
    main()
