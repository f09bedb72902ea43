"""How fast a repeated cross-validation of ridge regression is, beside a loop with scikit-learn's RidgeCV.

    python tests/bench/ridge_speed.py [--images 900] [--features 5888] [--repeats 10] [--loop 2] [--json]

Both use the same folds, inner folds, penalties and standardised features, and what they predict is compared. The loop
is what a researcher would write: for every training part a StandardScaler, and for every task a RidgeCV over the inner
folds. It takes so long that only the first `--loop` of its models are fitted, and the time of all is worked out.
`train_s` is reading the features, fitting all models and keeping them, and `cpu_s` what the cores worked meanwhile;
`command_s` is all of `heads train ridge`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import featstore
from featstore.store import ImageState, NewImages, RowState, SeenImages, StoredSegment, TensorLayout, Writer
from heads import read_labels
from heads.labels.labels import Labels
from heads.runs.run import part_folder
from heads.splits.validation import Validation, arrange, jobs
from heads.systems.probes import ALPHAS
from heads.systems.registry import find_system
from heads.training.checkpoints import Draft
from heads.training.features import Features
from heads.training.joint import Work, n_threads, train_together
from heads.training.learner import Job, Problem

TASKS = ("valence", "arousal", "beauty")
BLOCK = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--features", type=int, default=5888)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--loop", type=int, default=2, help="models that the loop with scikit-learn fits")
    parser.add_argument("--system", default="ridge", help="time another head that is solved; without the loop")
    parser.add_argument("--folder", type=Path, help="where to make the files [a temporary folder]")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ridge-bench-", dir=options.folder))
    try:
        figures = measure(folder, options)
    finally:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:>20}  {value:.3g}")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    # Features of photos are not independent: some hundred directions, more or less important, and noise.
    shared = rng.normal(size=(options.images, 200)) / np.arange(1, 201) ** 0.5
    values = shared @ rng.normal(size=(200, options.features)) + rng.normal(size=(options.images, options.features))
    ratings = np.clip(4 + 0.8 * shared[:, :3] + 0.7 * rng.normal(size=(options.images, 3)), 1, 7)
    values = np.maximum(values, 0).astype(np.float16)
    store, table = folder / "store.zarr", folder / "labels.csv"
    write(store, values)
    names = [f"{i}.jpg" for i in range(options.images)]
    pd.DataFrame(ratings, columns=list(TASKS)).assign(path=names).to_csv(table, index=False)

    command = [
        str(Path(sys.executable).with_name("heads")),
        "train",
        options.system,
        str(store),
        "--labels",
        str(table),
    ]
    command += ["--scale", "1:7", "--folds", str(options.folds), "--repeats", str(options.repeats), "--quiet"]
    began = time.perf_counter()
    subprocess.run([*command, "--out", str(folder / "command")], check=True, capture_output=True)
    figures = {"cores": os.cpu_count(), "command_s": time.perf_counter() - began}

    labels = read_labels(table, scales="1:7")
    models = models_of(labels, options)
    worked = time.process_time()
    seconds, predicted = train(store, labels, models, folder / "run", options.system)
    figures |= {"models": len(models), "train_s": seconds, "cpu_s": time.process_time() - worked}
    if options.system != "ridge":
        return figures
    began, apart = time.perf_counter(), 0.0
    for job in models[: options.loop]:
        apart = max(apart, float(np.abs(loop(values, labels.scaled(), job) - predicted[job.name]).max()))
    loop_s = (time.perf_counter() - began) / len(models[: options.loop]) * len(models)
    return figures | {"loop_s": loop_s, "ratio": loop_s / seconds, "largest_difference": apart}


def models_of(labels: Labels, options: argparse.Namespace) -> list[Job]:
    system = find_system(options.system)
    splits = arrange(
        Validation(n_folds=options.folds),
        labels,
        np.arange(options.images),
        labels.paths,
        None,
        0,
        system=system,
        n_repeats=options.repeats,
    )
    n_inner = system.settle([]).get("inner_folds", 0)
    return jobs(splits, groups=None, strata=None, n_tasks=None, inner=0, inner_folds=n_inner, on_all=False, seed=0)


def train(
    store: Path, labels: Labels, models: list[Job], out: Path, name: str
) -> tuple[float, dict[str, NDArray[np.float32]]]:
    """Seconds, and by model what it says of the photos that it is tested on."""
    tensor, system = featstore.open(store)["whole"], find_system(name)
    problem = Problem(
        system,
        system.settle([]),
        labels.target,
        (tensor.layout.row_shape,),
        (tensor.layout.kind,),
        labels.scaled(),
        labels.sets,
        seed=0,
        device=torch.device("cpu"),
    )
    with Draft(out, {}, arguments={}) as draft:
        began = time.perf_counter()
        features = Features([tensor], tensor.rows, memory_bytes=4_000_000_000)
        features.load()
        works = [Work(problem, job, draft) for job in models]
        train_together(works, features, on_progress=lambda stage, done, total: None, threads=n_threads())
        seconds = time.perf_counter() - began
        said = {job.name: trained.predicted for job in models if (trained := draft.finished(job)) is not None}
    shutil.rmtree(part_folder(out))
    return seconds, said


def loop(values: NDArray[np.float16], labels: NDArray[np.float32], job: Job) -> NDArray[np.float64]:
    """What the loop with scikit-learn says of the photos that one model is tested on."""
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    rows = np.concatenate([job.fit, job.inner])
    scaler = StandardScaler().fit(values[rows].astype(np.float64))
    fitted, tested = (scaler.transform(values[some].astype(np.float64)) for some in (rows, job.test))
    inner = [
        (np.flatnonzero(~held), np.flatnonzero(held)) for part in job.inner_folds for held in [np.isin(rows, part)]
    ]
    said = [
        RidgeCV(ALPHAS, cv=inner, scoring="neg_mean_squared_error").fit(fitted, labels[rows, task]).predict(tested)
        for task in range(labels.shape[1])
    ]
    return np.stack(said, 1)


def write(store: Path, values: NDArray[np.float16]) -> None:
    n, width = values.shape
    segment = StoredSegment("net", {"weights": {"sha256": "0"}, "dtype": "float16"}, 1, width)
    with Writer(store, block_rows=BLOCK) as writer:
        digests = np.arange(n, dtype=np.uint64).view(np.uint8).reshape(n, 8).repeat(4, axis=1)
        writer.add_images(NewImages([f"{i}.jpg" for i in range(n)], digests, [1] * n, [1] * n))
        writer.ensure_tensor(TensorLayout("whole", "concat", (segment,)), "float16")
        for block, start in enumerate(range(0, n, BLOCK)):
            rows = list(range(start, min(start + BLOCK, n)))
            states = np.full(len(rows), RowState.PRESENT, np.uint8)
            seen = SeenImages(rows, [(400, 600)] * len(rows), [ImageState.READABLE] * len(rows), [""] * len(rows))
            writer.commit(block, {"whole": (values[rows], states)}, seen)


if __name__ == "__main__":
    main()
