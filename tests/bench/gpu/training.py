"""Heads: AMTL one after another and in stacks, and a whole `train`."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpu.bench import Bench, Figures, memory


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
    return found | {"train s": time.perf_counter() - began, "run": str(run)[:200], **memory(bench)}


def stack(bench: Bench) -> Figures:
    """Many AMTL models in one stack, as `heads` trains them: model-epochs a second, by their number and precision."""
    store, labels, _ = _ratings(bench)
    found: Figures = {}
    for folds, repeats in ((2, 1),) if bench.small else ((2, 1), (5, 1), (5, 5)):
        for precision in ("fp32", "bf16"):
            if bench.ends < time.perf_counter() + 15 and not bench.small:
                return found | {"ended": "no time left"}
            took = _train_heads(bench, store, labels, precision, folds=folds, repeats=repeats, epochs=3, stacked=True)
            found[f"{folds * repeats} models, {precision}"] = {"model-epochs/s": 1 / took, **memory(bench)}
    return found


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
