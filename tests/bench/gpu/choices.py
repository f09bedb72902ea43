"""Choices: the size of a batch, the engine, precision and memory format, each against the others."""

import time

import torch

from featstore.backbones import find_card
from featstore.engines import Hardware
from featstore.engines.engine import arithmetic, untuned
from featstore.photos.views import GRID, WHOLE
from gpu.bench import Bench, Figures


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
