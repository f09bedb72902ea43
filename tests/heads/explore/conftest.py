"""A study of 40 small photos with ratings, classes, features, and three runs that were really trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

import featstore
import heads
from heads.explore.study import Study, make_study
from heads.labels.labels import Labels

N = 40
STEERS, QUOTED, MARKUP = range(3)
HOSTILE = {
    STEERS: "album/\x1b[31mred\u202egpj.jpg",
    QUOTED: 'album/"quoted", and comma.jpg',
    MARKUP: "album/<img src=x onerror=document.title='owned'>.jpg",
}
"""Names that a file system allows."""
PHOTO, TWIN = 11, 20
UNREADABLE = 5
CHANGED = 6
"""A photo whose file is another one now."""
CLASSES = ("calm", "<b>joy</b>", "fear")


@dataclass(frozen=True)
class World:
    folder: Path
    store: Path
    photos: Path
    labels: Path
    paths: list[str]
    features: NDArray[np.float16]
    """(40, 24)"""
    runs: dict[str, heads.Run]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("study")
    photos, random = folder / "photos", np.random.default_rng(3)
    paths = [HOSTILE.get(i, f"album/photo {i:02}.jpg") for i in range(N)]
    features = random.standard_normal((N, 24)).astype(np.float16)
    features[TWIN] = features[PHOTO]  # a near-duplicate, as far as networks see
    appeal = 4 + 1.2 * features[:, 0].astype(float)
    for i, path in enumerate(paths):
        file = photos / path
        file.parent.mkdir(parents=True, exist_ok=True)
        size = (60, 90) if i % 3 == 0 else (90, 60)
        Image.fromarray(random.integers(0, 255, (6, 9, 3), np.uint8)).resize(size).save(file, "jpeg")
    for name, columns in (("alpha", slice(0, 16)), ("beta", slice(16, 24))):
        np.savez(folder / f"{name}.npz", paths=np.array(paths), features=features[:, columns])
        featstore.import_features(name, folder / f"{name}.npz", store=folder / "s.zarr", photos=photos)
    stack = features[:, :16].reshape(N, 4, 4)
    np.savez(folder / "grid.npz", paths=np.array(paths), features=stack)
    featstore.import_features("grid", folder / "grid.npz", store=folder / "s.zarr", photos=photos)
    table = pd.DataFrame(
        {
            "path": paths,
            "appeal": np.clip(appeal, 1, 7).round(2),
            "liked": np.where(appeal > 4, "yes", "no"),
            "mood": [CLASSES[int(i)] for i in np.digitize(features[:, 1].astype(float), (-0.4, 0.4))],
            "scene": [f"scene {i // 2}" for i in range(N)],
        }
    )
    table = table.drop(index=[3, STEERS])  # without labels; a table may not name a path that steers a terminal
    labels = folder / "labels.csv"
    table.to_csv(labels, index=False)
    store = folder / "s.zarr"
    runs = {
        "ridge": heads.train(
            "ridge", store, labels, tasks=["appeal"], scale=(1, 7), group="scene", tensors="alpha", repeats=2,
            out=folder / "runs" / "ridge",
        ),
        "mood": heads.train(
            "logistic", store, labels, tasks=["mood"], kind="multiclass", tensors="alpha", repeats=1, folds=2,
            out=folder / "runs" / "mood",
        ),
        "amtl": heads.train(
            "amtl", store, labels, tasks=["appeal"], scale=(1, 7), tensors="grid", repeats=1, folds=2,
            options=["epochs=1"], out=folder / "runs" / "amtl",
        ),
    }  # fmt: skip
    (photos / paths[UNREADABLE]).write_bytes(b"no photo")
    Image.new("RGB", (50, 50), "red").save(photos / paths[CHANGED])
    return World(folder, store, photos, labels, paths, features, runs)


@pytest.fixture(scope="session")
def read(world: World) -> Callable[..., Labels]:
    def labels(*tasks: str, **more: object) -> Labels:
        scale = {"scales": (1, 7)} if tasks == ("appeal",) else {}
        return heads.read_labels(world.labels, tasks=tasks, **scale, **more)  # type: ignore[arg-type]

    return labels


@pytest.fixture
def study(world: World, read: Callable[..., Labels]) -> Study:
    """With ratings, and all runs."""
    return make_study(
        featstore.open(world.store),
        labels=read("appeal", group="scene"),
        runs=[*world.runs.values()],
        photos=world.photos,
    )
