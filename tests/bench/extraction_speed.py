"""How fast `featstore extract` is: beside the script a researcher would write, and beside the forward passes alone.

    python tests/bench/extraction_speed.py --photos PHOTOS --baseline PATH_OF_naive_extract.py
    python tests/bench/extraction_speed.py --photos PHOTOS --set amtl
    python tests/bench/extraction_speed.py --photos PHOTOS --memory

On a CPU; for a GPU, whose start-up varies by more than these runs take, there is gpu.py.
Rates leave start-up out: a long run less a short one. Backbones without weights here run with random ones, which take
as long. Prints ratios of figures that were measured in this run; `--json` prints all of them.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETS = {
    "lite": ("lite0", "lite1", "lite2"),
    "amtl": ("inception_v3", "legacy_xception", "resnet50", "densenet201"),
    "er": ("efficientnet_b2", "resnet152"),
}
FEATSTORE = [sys.executable, "-c", "from featstore.cli import main; main()"]
"""The command, whether the project is installed or only on the path."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, help="naive_extract.py")
    parser.add_argument("--set", choices=SETS, default="lite")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--short", type=int, default=32)
    parser.add_argument("--long", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="peak memory for 100 and for 10,000 photos instead")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure = measure_memory if args.memory else measure_speed
        figures = measure(args, Path(folder))
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:>34}  {value:.4g}" if isinstance(value, float) else f"{name:>34}  {value}")


def measure_speed(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rates in photos a second and their ratios; each round has all of them, side by side, and the best counts."""
    short, long = (link_photos(args.photos, folder / f"photos {n}", n) for n in (args.short, args.long))
    rates: dict[str, list[float]] = {}
    facts: dict[str, Any] = {}
    for turn in range(args.rounds):
        stores = [folder / f"{turn} {photos.name}.zarr" for photos in (short, long)]
        runs = [extract(args, photos, store) for photos, store in zip((short, long), stores, strict=True)]
        rates.setdefault("featstore", []).append((args.long - args.short) / (runs[1]["wall_s"] - runs[0]["wall_s"]))
        facts |= {f"seconds to the first photo ({turn})": start_up() + runs[0]["first_s"]}
        facts |= {"device busy": runs[1]["busy"]["forward"], "limited by": runs[1]["limiting_stage"]}
        facts |= {"engines": ", ".join(sorted(set(runs[1]["engines"].values())))}
        if args.baseline:
            took = [run_naive(args, photos, folder / f"{photos.name}.h5") for photos in (short, long)]
            rates.setdefault("baseline", []).append((args.long - args.short) / (took[1] - took[0]))
            facts["largest error, of the largest feature"] = compare(stores[1], folder / f"{long.name}.h5")
        forward = measure_forward(args, short)
        rates.setdefault("forward alone", []).append(forward.pop("rate"))
        facts |= forward
        for store in stores:
            shutil.rmtree(store)
    figures: dict[str, Any] = {f"{name}, photos/s": max(each) for name, each in rates.items()}
    best = {name: max(each) for name, each in rates.items()}
    figures["ratio to forward alone"] = best["featstore"] / best["forward alone"]
    if args.baseline:
        figures["ratio to the baseline"] = best["featstore"] / best["baseline"]
    return figures | facts


def measure_memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peak resident memory of the whole command; many photos with a miniature, for they would take hours otherwise."""
    figures: dict[str, Any] = {}
    few, many = (link_photos(args.photos, folder / f"photos {n}", n) for n in (100, 10_000))
    for name, backbones, photos in (
        (f"{args.set}, 100 photos", ",".join(SETS[args.set]), few),
        ("one miniature, 100 photos", "test_resnet", few),
        ("one miniature, 10,000 photos", "test_resnet", many),
    ):
        args.set, SETS["these"] = "these", tuple(backbones.split(","))
        figures[f"{name}, peak MB"] = extract(args, photos, folder / f"{name}.zarr")["peak_bytes"] / 1e6
    return figures


def link_photos(source: Path, folder: Path, n_photos: int) -> Path:
    """A folder of so many photos, the same ones over again if there are not as many; nothing is copied."""
    found = sorted(file for file in source.rglob("*") if file.suffix.lower() in {".jpg", ".jpeg", ".png"})
    folder.mkdir()
    for i, file in enumerate(itertools.islice(itertools.cycle(found), n_photos)):
        (folder / f"{i:05}{file.suffix}").symlink_to(file.resolve())
    return folder


def extract(args: argparse.Namespace, photos: Path, store: Path) -> dict[str, Any]:
    """The command as a user gives it, in a process of its own; what it printed, its wall time and its peak memory."""
    options = ["--device", args.device, "--engine", args.engine, "--precision", args.precision, "--json"]
    # Random weights may make features that float16 cannot hold.
    weights = [] if args.set == "lite" else ["--weights", "random:0", "--dtype", "float32"]
    names = ["--backbones", ",".join(SETS[args.set]), "--view", "grid,whole"]
    command = [*FEATSTORE, "extract", str(photos), "--store", str(store), *names, *weights, *options]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=store.parent)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return {**json.loads(printed), "wall_s": wall_s, "peak_bytes": usage.ru_maxrss * 1024}


def start_up() -> float:
    """Seconds until the command has read its arguments."""
    started = time.perf_counter()
    subprocess.run([*FEATSTORE, "extract", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def run_naive(args: argparse.Namespace, photos: Path, file: Path) -> float:
    """Seconds of the baseline script, start-up and all."""
    file.unlink(missing_ok=True)
    started = time.perf_counter()
    command = [sys.executable, str(args.baseline), str(photos), str(file), "--limit", "100000"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure_forward(args: argparse.Namespace, photos: Path, seconds: float = 15.0) -> dict[str, Any]:
    """The same engines over blocks that are on the device already, in this process, and nothing else."""
    import numpy as np
    import torch

    from featstore.backbones import WeightsPolicy, find_card
    from featstore.engines import Hardware, Runtime, default_precision
    from featstore.extraction.forward import Backbones
    from featstore.extraction.networks import Networks, TensorRequest
    from featstore.identity import Segment
    from featstore.photos.decoding import open_photo
    from featstore.photos.views import GRID, WHOLE, cut, resize
    from featstore.support import wait_briefly

    wait_briefly()
    hardware = Hardware.choose(Runtime(args.device, args.engine))
    precision = default_precision(hardware.device) if args.precision == "auto" else args.precision
    cards = [find_card(name) for name in SETS[args.set]]
    segments = {view: tuple(Segment(card, view, "avg", precision) for card in cards) for view in (GRID, WHOLE)}
    requests = [
        TensorRequest("grid", "stack", segments[GRID], "float16"),
        TensorRequest("whole", "concat", segments[WHOLE], "float16"),
    ]
    named = {} if args.set == "lite" else {"*": "random:0"}
    networks = Networks(requests, WeightsPolicy(named=named))
    n_flop = sum(count_flop(networks.load(card), view) for card in cards for view in segments)
    backbones = Backbones(networks, hardware, lambda stage, done, total: None)
    files = sorted(photos.iterdir())[: backbones.batch]
    opened = [open_photo(file) for file in files]
    frames = backbones.frames()
    batch = [{frame: resize(each.decode(frame.source_size), frame, b"") for frame in frames} for each in opened]
    frames_there = {
        frame: torch.from_numpy(np.concatenate([photo[frame] for photo in batch])).to(hardware.device)
        for frame in frames
    }
    passes = [
        (backbones.engine(segment), cut(frames_there[segment.view.frame], segment.view))
        for segment in backbones.segments.values()
        if isinstance(segment, Segment)
    ]

    def forward() -> None:
        with hardware.current():
            for engine, blocks in passes:
                engine.run(blocks)
            if hardware.device.type == "cuda":
                torch.cuda.synchronize(hardware.device)

    forward()
    n_photos, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        forward()
        n_photos += len(batch)
    rate = n_photos / (time.perf_counter() - started)
    product = measure_product(hardware.device, precision)
    del backbones
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {
        "rate": rate,
        "GFLOP a photo": n_flop / 1e9,
        "matrix products, GFLOP/s": product / 1e9,
        "share of that in forward alone": rate * n_flop / product,
    }


def count_flop(network: Any, view: Any) -> float:
    """Multiplications and additions of one photo's blocks."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    width, height = view.block_size
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, height, width, 3, dtype=torch.uint8, device=next(network.parameters()).device))
    return float(counter.get_total_flops() * view.n_blocks)


def measure_product(device: Any, precision: str, seconds: float = 3.0) -> float:
    """FLOP a second of large matrix products, in the arithmetic of the run."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    begun = time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    while time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def compare(store: Path, file: Path) -> float:
    """The largest difference between our features and the baseline's, as a part of the largest feature of the row."""
    import h5py
    import numpy as np

    import featstore

    ours = featstore.open(store)
    grid, whole = (ours[name].read(ours[name].rows).astype(np.float32) for name in ("grid", "whole"))
    worst = 0.0
    with h5py.File(file) as theirs:
        for b, name in enumerate(theirs):
            features = theirs[name][:].astype(np.float32)
            width = features.shape[-1]
            block, joined = grid[:, b], whole[:, None, b * width : (b + 1) * width]
            for mine, other in ((block, features[:, :16]), (joined, features[:, 16:])):
                largest = np.abs(other).max(axis=(1, 2))
                worst = max(worst, float((np.abs(mine - other).max(axis=(1, 2)) / largest).max()))
    return worst


if __name__ == "__main__":
    main()
