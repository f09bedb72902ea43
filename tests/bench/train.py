"""How fast heads are trained, beside the script that a researcher would write.

    python tests/bench/train.py --baseline naive_train.py [--json] [--images 1005] [--tasks 12] [--folds 5] [--epochs 6]
    python tests/bench/train.py --large 16000        # peak memory with a store four times larger than --memory 1GB

AMTL on random float16 features, 4 x 16 x 2048, batches of 32, every training row fitted in every epoch, as the
baseline does. Figures per model and epoch are of the training alone, from building the models to the last prediction.
The baseline runs beside it on the same features (HDF5). Floors are what the multiplications of the model would take
at the rate of large float32 matrix products on all cores, measured here: of torch as it is, which is what the baseline
multiplies with, and of the library that `heads` takes where that is faster.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import featstore
from featstore.store import ImageState, NewImages, RowState, SeenImages, StoredSegment, TensorLayout, Writer
from heads.cli import share_heap
from heads.labels.labels import Labels
from heads.labels.target import Target
from heads.runs.run import part_folder
from heads.splits.validation import Validation, arrange, jobs
from heads.systems.registry import find_system
from heads.training.checkpoints import Draft
from heads.training.features import Features
from heads.training.joint import Work, n_threads, train_together
from heads.training.learner import Problem
from heads.training.matmul import whole_width

B, T, F, BLOCK = 4, 16, 2048, 64
ATTENTION, HIDDEN = 128, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="the script to be measured against")
    parser.add_argument("--images", type=int, default=1005)
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=1, help="rounds; medians count")
    parser.add_argument("--large", type=int, help="only: peak memory of training on so many images with --memory 1GB")
    parser.add_argument("--folder", type=Path, help="where to make the files [a temporary folder]")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")
    options = parser.parse_args()
    share_heap()  # as the command does
    folder = Path(tempfile.mkdtemp(prefix="heads-bench-", dir=options.folder))
    try:
        figures = _peak(folder, options.large) if options.large else _rates(folder, options)
    finally:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:>28}  {value:.3f}" if isinstance(value, float) else f"{name:>28}  {value}")


def _rates(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    values = np.maximum(rng.normal(0.1, 0.4, (options.images, B, T, F)).astype(np.float32), 0).astype(np.float16)
    labels = _labels(rng.uniform(1, 7, (options.images, options.tasks)))
    store = folder / "store.zarr"
    _write(store, values)
    if options.baseline:
        _write_hdf5(folder / "features.h5", values, labels.scaled())
    measured: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, seconds in {
            "floor_s": _floor(options),
            "faster_floor_s": whole_width()(_floor)(options),
            **({"naive_s": _naive(folder, options)} if options.baseline else {}),
            "in_memory_s": _train(store, labels, folder / "run", options, memory_bytes=8_000_000_000, load=True),
            "stacked_s": _train(
                store, labels, folder / "run", options, memory_bytes=8_000_000_000, load=True, stacked=True
            ),
            "streamed_s": _train(store, labels, folder / "run", options, memory_bytes=1_200_000_000, load=False),
            "loader_mb_s": _loader(store),
            "block_iterator_mb_s": _block_iterator(store),
        }.items():
            measured.setdefault(name, []).append(seconds)
    medians = {name: float(np.median(found)) for name, found in measured.items()}
    figures: dict[str, Any] = {"cores": os.cpu_count(), **medians}
    if options.baseline:
        figures["ratio"] = medians["naive_s"] / medians["in_memory_s"]
    for floor in ("floor", "faster_floor"):
        figures[f"of_{floor}"] = medians[f"{floor}_s"] / medians["in_memory_s"]
    figures["stacked_to_threads"] = medians["in_memory_s"] / medians["stacked_s"]
    figures["streamed_to_memory"] = medians["in_memory_s"] / medians["streamed_s"]
    figures["loader_to_iterator"] = medians["loader_mb_s"] / medians["block_iterator_mb_s"]
    return figures


def _train(
    store: Path,
    labels: Labels,
    out: Path,
    options: argparse.Namespace,
    *,
    memory_bytes: int,
    load: bool,
    stacked: bool = False,
) -> float:
    """Seconds per model and epoch, features read beforehand or streamed; models stacked, or a thread each."""
    tensor, system = featstore.open(store)["amtl"], find_system("amtl")
    chosen = np.arange(options.images)
    settled = system.settle([f"epochs={options.epochs}", "patience=0", "inner=0"])
    problem = Problem(
        system,
        settled,
        labels.target,
        (tensor.layout.row_shape,),
        (tensor.layout.kind,),
        labels.scaled(),
        labels.sets,
        seed=0,
        device=torch.device(options.device),
        precision=options.precision,
    )
    validation = Validation(n_folds=options.folds)
    wanted = jobs(
        arrange(validation, labels, chosen, labels.paths, None, 0, system=system, n_repeats=options.repeats),
        groups=None,
        strata=None,
        n_tasks=None,
        inner=0,
        inner_folds=0,
        on_all=False,
        seed=0,
    )
    features = Features([tensor], tensor.rows, memory_bytes=memory_bytes)
    if load:
        features.load()
    with Draft(out, {}, arguments={}) as draft:
        began = time.perf_counter()
        works = [Work(problem, job, draft) for job in wanted]
        train_together(
            works,
            features,
            on_progress=lambda stage, done, total: None,
            threads=n_threads() if options.device == "cpu" else 1,
            stacked=stacked or options.device != "cpu",
        )
        seconds = time.perf_counter() - began
    shutil.rmtree(part_folder(out))
    return seconds / options.folds / options.repeats / options.epochs


def _naive(folder: Path, options: argparse.Namespace) -> float:
    command = [sys.executable, str(options.baseline), str(folder / "features.h5"), "--folds", str(options.folds)]
    command += ["--repeats", str(options.repeats), "--epochs", str(options.epochs)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"seconds_per_model_epoch ([0-9.]+)", printed)
    assert found, printed
    return float(found[1])


def _floor(options: argparse.Namespace) -> float:
    """Seconds of the multiplications of one model and epoch at the rate of large products."""
    n_rows = options.images * (options.folds - 1) / options.folds
    primary = 2 * 2 * B * T * F * ATTENTION  # no gradient of the features
    secondary = 3 * 2 * B * F * ATTENTION * options.tasks
    heads = 3 * 2 * F * HIDDEN * options.tasks
    return n_rows * (primary + secondary + heads) / _product_rate()


def _product_rate(n: int = 3000, times: int = 8) -> float:
    """Floating-point operations a second of large float32 matrix products, the best of several."""
    one, two = torch.rand(n, n), torch.rand(n, n)
    best = 0.0
    for _ in range(times):
        began = time.perf_counter()
        _ = one @ two
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def _loader(store: Path) -> float:
    """MB a second of groups of rows as training streams them, in random order."""
    tensor = featstore.open(store)["amtl"]
    features = Features([tensor], tensor.rows, memory_bytes=_n_bytes(store) // 2)
    return _best(lambda rng: sum(len(group.rows) for group in features.groups(rng=rng)), features.row_bytes)


def _block_iterator(store: Path) -> float:
    tensor = featstore.open(store)["amtl"]
    row_bytes = _n_bytes(store) // len(tensor.rows)
    return _best(lambda rng: sum(len(rows) for rows, _ in tensor.iter_blocks(shuffle=rng)), row_bytes)


def _best(read: Callable[[np.random.Generator], int], row_bytes: int) -> float:
    """MB a second of the best of several epochs; the first checks every row."""
    rates = []
    for epoch in range(4):
        began = time.perf_counter()
        n_rows = read(np.random.default_rng(epoch))
        rates.append(n_rows * row_bytes / (time.perf_counter() - began) / 1e6)
    return max(rates)


def _n_bytes(store: Path) -> int:
    tensor = featstore.open(store)["amtl"]
    return len(tensor.rows) * B * T * F * tensor.dtype.itemsize


def _peak(folder: Path, n_images: int) -> dict[str, Any]:
    """Peak resident memory of `heads train amtl --memory 1GB` as a process of its own."""
    rng = np.random.default_rng(0)
    some = np.maximum(rng.normal(0.1, 0.4, (BLOCK, B, T, F)).astype(np.float32), 0).astype(np.float16)
    _write(folder / "store.zarr", some, n_images)
    table = folder / "labels.csv"
    names = ",".join(f"t{k}" for k in range(12))
    lines = [",".join([f"{i}.jpg", *map(str, rng.uniform(1, 7, 12).round(3))]) for i in range(n_images)]
    table.write_text("\n".join([f"path,{names}", *lines]) + "\n")
    command = [str(Path(sys.executable).with_name("heads")), "train", "amtl", str(folder / "store.zarr")]
    command += ["--labels", str(table), "--scale", "1:7", "--folds", "2", "--repeats", "1", "--set", "epochs=1"]
    began = time.perf_counter()
    subprocess.run([*command, "--memory", "1GB", "--out", str(folder / "run"), "--device", "cpu"], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        "store_gb": n_images * B * T * F * 2 / 1e9,
        "peak_gb": peak / 1e9,
        "seconds": time.perf_counter() - began,
    }


def _labels(values: "np.ndarray[Any, np.dtype[np.float64]]") -> Labels:
    n, tasks = values.shape
    return Labels(
        files=(Path("random"),),
        sha256=("",),
        columns=tuple(f"t{k}" for k in range(tasks)),
        paths=[f"{i}.jpg" for i in range(n)],
        target=Target("regression", tuple(f"t{k}" for k in range(tasks))),
        values=values,
        scales=((1.0, 7.0),) * tasks,
        scale_given=True,
        groups=None,
        strata=None,
        split=None,
        sets=np.zeros(n, np.int64),
        n_unlabelled=0,
    )


def _write(store: Path, values: "np.ndarray[Any, np.dtype[np.float16]]", n_images: int | None = None) -> None:
    """A store of these rows, over and over if there are to be more images."""
    n = n_images or len(values)
    segments = tuple(
        StoredSegment(f"net{i}", {"weights": {"sha256": str(i)}, "dtype": "float16"}, T, F) for i in range(B)
    )
    with Writer(store, block_rows=BLOCK) as writer:
        names = [f"{i}.jpg" for i in range(n)]
        digests = np.arange(n, dtype=np.uint64).view(np.uint8).reshape(n, 8).repeat(4, axis=1)
        writer.add_images(NewImages(names, digests, [1] * n, [1] * n))
        writer.ensure_tensor(TensorLayout("amtl", "stack", segments, width=F), "float16")
        for block, start in enumerate(range(0, n, BLOCK)):
            rows = list(range(start, min(start + BLOCK, n)))
            here = values[[row % len(values) for row in rows]]
            states = np.full(len(rows), RowState.PRESENT, np.uint8)
            seen = SeenImages(rows, [(400, 600)] * len(rows), [ImageState.READABLE] * len(rows), [""] * len(rows))
            writer.commit(block, {"amtl": (here, states)}, seen)


def _write_hdf5(file: Path, values: "np.ndarray[Any, Any]", labels: "np.ndarray[Any, Any]") -> None:
    import h5py

    with h5py.File(file, "w") as written:
        written.create_dataset("x", data=values, chunks=(1, *values.shape[1:]))
        written.create_dataset("y", data=labels)


if __name__ == "__main__":
    main()
