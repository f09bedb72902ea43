"""Runs of 24 images in the documented format, written by hand, so that no head has to be trained for a page."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image

from heads.inference.metrics import SHOWN
from heads.labels.target import Target
from heads.runs.config import RunConfig
from heads.runs.run import Run

SEGMENTS = ("lite0", "lite1", "lite2", "lite2:max")
N_BLOCKS, N_FOLDS = 16, 3
TASKS = ("beauty", "calm")
RATINGS = Target("regression", TASKS)
IDENTITY = {"view": {"size": [600, 400], "grid": [4, 4]}, "weights": {"sha256": "00"}}
PATHS = [f"album{i % 8}/photo {i:02}.jpg" for i in range(24)]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(name: str = "run", **changes: Any) -> Run:
        return write_run(tmp_path / name, **changes)

    return make


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The photos of a run."""
    return save_photos(tmp_path / "photos", PATHS)


@pytest.fixture(scope="session")
def draw_photos() -> Callable[..., Path]:
    return save_photos


def write_run(
    folder: Path,
    *,
    target: Target = RATINGS,
    paths: Sequence[str] = PATHS,
    n_repeats: int = 2,
    photos: Path | None = None,
    history: pd.DataFrame | None = None,
    attention: Mapping[str, NDArray[Any]] | None = None,
    learned: pd.DataFrame | None = None,
    metrics: Mapping[str, Any] | None = None,
    segments: Sequence[Mapping[str, Any]] | None = None,
    shape: tuple[int, ...] = (4, N_BLOCKS, 2048),
    layout: str = "stack",
    groups: Sequence[str] | None = None,
    **changes: Any,
) -> Run:
    folder.mkdir()
    folds = [str(i % N_FOLDS) for i in range(len(paths))]
    grouped = changes.get("group", "scene") is not None
    groups = groups or [f"scene{i % 8}" if grouped else path for i, path in enumerate(paths)]
    segments = segments or [
        {"name": name, "hash": f"{i:016x}", "width": 1280, "identity": IDENTITY} for i, name in enumerate(SEGMENTS)
    ]
    config = RunConfig(
        system="amtl",
        options={"lr": 0.001, "batch": 32},
        target=target,
        scales=((1.0, 7.0) if target.kind == "regression" else (0.0, 1.0),) * len(target.tasks),
        n_images=len(paths),
        split="3 folds, groups kept together",
        parts=("0", "1", "2"),
        n_repeats=n_repeats,
        seed=7,
        group="scene",
        labels={"files": ["/somewhere/labels.csv"], "sha256": ["feedc0de" * 8]},
        store="features.zarr",
        tensors=({"name": "stacked", "layout": layout, "shape": list(shape), "segments": list(segments)},),
        augmented=(),
        photos=None if photos is None else str(photos),
        versions={"featstore": "0.1.0"},
        command="heads train amtl --folds 3",
        started="2025-11-23T12:00:00+00:00",
        elapsed_s=75.2,
        device="cpu",
        precision="float32",
    )
    write_json(folder / "config.json", asdict(replace(config, **changes)))
    write_json(folder / "metrics.json", metrics or some_metrics(target, n_repeats))
    digests = [_digest(config.photos, path) for path in paths]
    table = pd.DataFrame({"path": paths, "group": groups, "fold": folds, "digest": digests})
    table.to_csv(folder / "folds.csv", index=False)
    predictions(target, paths, folds, n_repeats).to_csv(folder / "predictions.csv", index=False)
    for name, found in (("history.csv", history), ("learned.csv", learned)):
        if found is not None:
            found.to_csv(folder / name, index=False)
    if attention is not None:
        store = zarr.open_group(str(folder / "attention.zarr"), mode="w")
        store.create_array("path", data=np.array(paths, dtype=np.dtypes.StringDType()))
        for name, values in attention.items():
            store.create_array(name, data=values)
    return Run(folder)


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, default=list), encoding="utf-8")


def some_metrics(target: Target, n_repeats: int) -> dict[str, Any]:
    spread = None if n_repeats == 1 else 0.0125
    values = dict(zip(SHOWN[target.kind], (0.8125, 0.66, 0.5, 0.2345, 0.25, 0.125, 0.75), strict=False))
    ends = ("low", "models_low", "high", "models_high")
    metrics = {
        name: {"mean": v, "spread": spread, **dict(zip(ends, (v - 0.1, v - 0.1, v + 0.05, v + 0.05), strict=True))}
        for name, v in values.items()
    }
    return dict.fromkeys((*target.tasks, *(["all"] if target.kind == "multilabel" else [])), metrics)


def _digest(photos: str | None, path: str) -> str:
    """Of the photo as it is now, if there is one; some other if there is none."""
    file = Path(photos or ".") / path
    return hashlib.sha256(file.read_bytes() if "\0" not in path and file.is_file() else b"").hexdigest()


def predictions(target: Target, paths: Sequence[str], folds: Sequence[str], n_repeats: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frames = []
    given = {task: rng.uniform(1, 7, len(paths)) for task in target.tasks}
    for repeat in range(n_repeats):
        columns: dict[str, Any] = {"repeat": repeat, "fold": folds, "path": paths}
        for task, values in given.items():
            if target.kind == "regression":
                columns |= {task: values, f"{task}_predicted": values * 0.5 + rng.normal(2, 0.5, len(paths))}
            elif target.kind == "multiclass":
                shares = rng.dirichlet(np.ones(len(target.classes)), len(paths))
                classes = np.array(target.classes)
                columns |= {task: classes[values.astype(int) % len(classes)]}
                columns |= {f"{task}_predicted": classes[shares.argmax(1)]}
                columns |= {f"{task}_is_{name}": shares[:, c] for c, name in enumerate(target.classes)}
            else:
                noisy = np.clip((values - 1) / 6 + rng.normal(0, 0.2, len(paths)), 0, 1)
                columns |= {task: (values > 4).astype(int), f"{task}_predicted": noisy}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames)


def attention_of(system: str, *, n_images: int = 24, n_tasks: int = 2, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """What each of the attentive heads leaves."""
    rng, n_backbones = np.random.default_rng(seed), len(SEGMENTS)

    def weights(*shape: int) -> NDArray[np.float32]:
        return rng.dirichlet(np.ones(shape[-1]), (n_images, *shape[:-1])).astype(np.float32)

    if system == "amtl-swapped":
        return {
            "backbones_of_blocks": weights(N_BLOCKS, n_backbones),
            "blocks_of_tasks": weights(n_tasks, N_BLOCKS),
        }
    if system == "amtl-single":
        return {
            "blocks_by_task": weights(n_tasks, n_backbones, N_BLOCKS),
            "backbones": weights(n_tasks, n_backbones),
        }
    return {"blocks": weights(n_backbones, N_BLOCKS), "backbones": weights(n_tasks, n_backbones)}


@pytest.fixture(scope="session")
def attend() -> Callable[..., dict[str, NDArray[np.float32]]]:
    return attention_of


def save_photos(folder: Path, paths: Sequence[str]) -> Path:
    for i, path in enumerate(paths):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 60), (10 * i % 256, 120, 200)).save(file)
    return folder
