"""Honest material, all made by the product itself: a desk with photos, stores, runs, labels, weights and features."""

import hashlib
import json
import os
import shutil
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pandas as pd
from PIL import Image

import featstore

from .commands import command, forked
from .values import EVIL

N_PHOTOS = 12
STORE, LARGE = "features.zarr", "large.zip"
CONFIG = """photos = "photos"
store = "features.zarr"
runs = "runs"
weights = "cache/weights"
engine = "eager"
precision = "fp32"

[labels]
file = "labels.csv"
tasks = ["appeal", "calm"]
scale = [1, 7]
group = "source"

[views.tiny]
size = [16, 12]
[views.small]
size = [64, 48]
[views.quarters]
size = [64, 48]
grid = [2, 2]

[backbones.test_resnet]
weights = "random:0"
[backbones.test_efficientnet]
weights = "random:1"

[tensors.pixels]
layout = "pixels"
segments = ["pixels@tiny"]
[tensors.grid]
layout = "stack"
segments = ["test_efficientnet", "test_resnet:max"]
view = "quarters"
width = 256
[tensors.whole]
layout = "concat"
segments = ["test_resnet@small", "test_efficientnet@small"]
"""


def make_material(folder: Path) -> None:
    """Make `folder/desk`, and `folder/honest.json` with the values that it holds; in processes of their own.

    The process that forks all others has started no threads and opened no store.
    """
    desk = folder / "desk"
    desk.mkdir(parents=True)
    for make in (_make_stores, _make_features, _make_large, _make_draft, _make_honest):
        if (status := forked(partial(make, desk))) != 0:
            raise SystemExit(f"{make.__name__} ended with {status}")


def _make_stores(desk: Path) -> None:
    _draw_photos(desk / "photos")
    (desk / "featstore.toml").write_text(CONFIG)
    (desk / "evil.py").write_text(EVIL)
    rng = np.random.default_rng(0)
    names = [file.name for file in sorted((desk / "photos").iterdir())]
    rows = [[name, *rng.uniform(1, 7, 2).round(2), f"s{i // 3}"] for i, name in enumerate(names)]
    table = pd.DataFrame(rows, columns=["path", "appeal", "calm", "source"])
    table.to_csv(desk / "labels.csv", index=False)
    table.to_csv(desk / "labels.tsv", index=False, sep="\t")
    table.to_parquet(desk / "labels.parquet")
    with chdir(desk):
        command("featstore", "extract", "--backbones", "all", "--quiet")
        for codec in ("zstd", "blosc"):
            command("featstore", "extract", "--tensor", f"{codec}=concat:test_resnet:max@small", "--compress", codec)
        _zip(STORE, "features.zip", ZIP_DEFLATED)
        _zip(STORE, "stored.zip", ZIP_STORED)
        command("featstore", "push", STORE, "team", "-m", "all")
        command("featstore", "merge", "team", "--into", "scratch.zarr")  # which fills the cache of blocks
        command("heads", "train", "ridge", "--tensor", "whole", "--folds", 2, "--repeats", 2, "--out", "runs/ridge")
        few = ["--repeats", 1, "--set", "epochs=3", "--set", "attention=2", "--set", "hidden=2"]
        command("heads", "train", "amtl", "--tensor", "grid", "--folds", 2, *few, "--out", "runs/amtl")
        Path("scratch.zarr.lock").unlink(missing_ok=True)
        shutil.rmtree("scratch.zarr")


def _zip(store: str, file: str, method: int) -> None:
    with ZipFile(file, "w", method) as packed:
        for each in sorted(Path(store).rglob("*")):
            packed.write(each, each.relative_to(store))


def _draw_photos(folder: Path) -> None:
    """Small photos in several formats."""
    folder.mkdir()
    for i in range(N_PHOTOS):
        rng = np.random.default_rng(i)
        pixels = (
            np.linspace(0, 99, 64)[None, :, None] + rng.integers(0, 50, (48, 1, 3)) + rng.integers(0, 9, (48, 64, 3))
        )
        suffix = ("png", "jpg", "webp", "tif", "bmp", "gif")[i % 6]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"photo {i}.{suffix}")


def _make_features(desk: Path) -> None:
    """Features from elsewhere in each format, and weights in files."""
    import h5py
    import timm
    import torch
    import zarr
    from safetensors.torch import save_file

    names = [file.name for file in sorted((desk / "photos").iterdir())]
    digests = [hashlib.sha256((desk / "photos" / name).read_bytes()).hexdigest() for name in names]
    values = np.random.default_rng(1).normal(size=(N_PHOTOS, 4)).astype(np.float32)
    table = pd.DataFrame(values, columns=[f"f{i}" for i in range(4)])
    table.insert(0, "path", names)
    with chdir(desk):
        Path("paths.txt").write_text("".join(f"{name}\n" for name in names))
        Path("digests.txt").write_text("".join(f"{digest}\n" for digest in digests))
        np.save("elsewhere.npy", values)
        np.savez_compressed("elsewhere.npz", features=values, paths=np.array(names))
        table.to_csv("elsewhere.csv", index=False)
        table.to_csv("elsewhere.tsv", index=False, sep="\t")
        table.to_parquet("elsewhere.parquet")
        with h5py.File("elsewhere.h5", "w") as file:
            file["features"], file["path"] = values, names
        group = zarr.open_group("elsewhere.zarr", mode="w")
        group.create_array("features", data=values)
        Path("weights").mkdir()
        torch.manual_seed(5)
        state = timm.create_model("test_resnet").state_dict()
        torch.save(state, "weights/test_resnet.pth")
        save_file(state, "weights/test_resnet.safetensors")
        for suffix in ("pth", "safetensors"):  # remembers their digests
            _extract_with(f"weights/test_resnet.{suffix}", f"{suffix}.zarr")
        shutil.rmtree("safetensors.zarr")


def _make_large(desk: Path) -> None:
    """A zip file of a store whose shard has a real size, beside the desk: only those who mutate it copy it."""
    with chdir(desk):
        np.save("large.npy", np.random.default_rng(2).normal(size=(N_PHOTOS, 18_000)).astype(np.float32))
        given = ("--from", "large.npy", "--paths", "paths.txt", "--dtype", "float32", "--photos", "photos")
        command("featstore", "import", "large", *given, "--store", "large.zarr")
        _zip("large.zarr", LARGE, ZIP_STORED)
        shutil.move(LARGE, desk.parent / LARGE)
        shutil.move("large.zarr", desk.parent)
        for file in ("large.npy", "large.zarr.lock"):
            Path(file).unlink(missing_ok=True)


def _extract_with(weights: str, store: str) -> None:
    command("featstore", "extract", "--tensor", "whole=concat:test_resnet@small", "--weights",
            f"test_resnet={weights}", "--store", store, "--quiet")  # fmt: skip


def _make_draft(desk: Path) -> None:
    """A run that was killed when one model had learnt and another was learning."""
    from heads.training import checkpoints

    finish = checkpoints.Draft.finish
    finished: list[str] = []

    def die_at_the_second(draft: checkpoints.Draft, trained: Any) -> None:
        if finished:
            os._exit(0)
        finish(draft, trained)
        finished.append(trained.job.name)

    checkpoints.PAUSE_S = checkpoints.REST = 0.0
    checkpoints.Draft.finish = die_at_the_second  # type: ignore[method-assign, assignment]
    with chdir(desk):
        few = ["--repeats", 1, "--set", "epochs=4", "--set", "attention=2", "--set", "hidden=2"]
        command("heads", "train", "amtl", "--tensor", "grid", "--folds", 3, *few, "--out", "runs/draft")
    raise RuntimeError("the draft was completed")


def _make_honest(desk: Path) -> None:
    """What the stores hold."""
    (desk / "runs" / "draft.lock").unlink(missing_ok=True)
    stores = {STORE: desk / STORE, "pth.zarr": desk / "pth.zarr", LARGE: desk.parent / "large.zarr"}
    honest = {name: {"images": read_images(place), "rows": read_rows(place)} for name, place in stores.items()}
    (desk.parent / "honest.json").write_text(json.dumps(honest))


def read_images(place: Path | str) -> list[str]:
    """What is said of each image of a store."""
    images = featstore.open(place).images
    return [
        f"{path} {bytes(digest).hex()} {int(state)}"
        for path, digest, state in zip(images.paths, images.digests, images.states, strict=True)
    ]


def read_rows(place: Path | str) -> dict[str, str]:
    """By tensor and row of a store, the digest of its values, or why it cannot be read."""
    store, found = featstore.open(place), {}
    for name in store.tensors:
        try:
            tensor = store[name]
            rows = [int(row) for row in tensor.rows]
        except featstore.FeatstoreError as error:
            found[name] = f"refused: {error}"
            continue
        for row in rows:
            try:
                values = tensor.read([row])
                facts = f"{values.dtype} {values.shape} {[s.hash for s in tensor.layout.segments]}"
                found[f"{name} {row}"] = hashlib.sha256(facts.encode() + values.tobytes()).hexdigest()
            except featstore.FeatstoreError as error:
                found[f"{name} {row}"] = f"refused: {error}"
    return found
