"""Extraction: from the command to the passes alone, beside what a researcher writes, and stored rows again."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import featstore
from featstore.backbones.networks import Network
from featstore.engines import Runtime
from featstore.engines.engine import _noise, _pictures, arithmetic, untuned
from featstore.extraction import run as extraction_run
from featstore.extraction.forward import Backbones
from featstore.extraction.recompute import recompute
from featstore.extraction.summary import Summary
from featstore.identity import Segment
from featstore.photos.views import GRID, WHOLE
from gpu.bench import Bench, Figures, memory


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
        **memory(bench),
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
        **memory(bench),
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
