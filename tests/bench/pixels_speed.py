"""How fast a network is trained from stored pixels, beside a folder of JPEGs that is decoded in every epoch.

    python tests/bench/pixels_speed.py --photos FOLDER [--rounds 3] [--folder /tmp]

The baseline is what a script does: torchvision's ImageFolder and transforms (resize to 256 x 256, random crop of 224,
flip), a DataLoader with two workers, the same small network and the same steps. Round by round both run in this
process. First the loaders alone, then training. Ratios are of medians.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import featstore
from heads.labels.target import Target
from heads.systems.pixels import IMAGENET_MEAN, IMAGENET_STD, FromPixels, Photos
from heads.systems.system import KINDS, Options, Shape, System, from_pixels
from heads.training.features import Features
from heads.training.learner import Job, Learner, Problem

CROP, BATCH, WORKERS = 224, 32, 2
TARGET = Target("regression", ("a",))


def small_network() -> nn.Sequential:
    """A network that is cheap beside the decoding of a photo."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 1)
    )


class Small(FromPixels):
    """The same network on stored pixels."""

    def __init__(self, photos: Photos) -> None:
        super().__init__(photos, TARGET)
        self.net = small_network()

    def outputs(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.net(pictures)
        return out


def build(shapes: tuple[Shape, ...], target: Target, options: Options) -> Small:
    return Small(Photos(shapes[0], CROP))


SYSTEM = System(
    name="small",
    title="a small network",
    source="ours",
    reads=("pixels",),
    kinds=KINDS,
    options=from_pixels("ours"),
    build=build,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEGs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=None, help="photos at most [all]")
    parser.add_argument("--folder", type=Path, default=None, help="where to make the store [a temporary folder]")
    options = parser.parse_args()
    torch.set_num_threads(1)  # beside two workers that decode
    folder = Path(tempfile.mkdtemp(prefix="featstore-bench-", dir=options.folder))
    try:
        print(json.dumps(measure(folder, options.photos, options.rounds, options.most)))
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, photos: Path, rounds: int, most: int | None) -> dict[str, float]:
    """Photos a second of both, and their ratios."""
    files = sorted(file for file in photos.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))[:most]
    (folder / "jpegs" / "all").mkdir(parents=True)
    for number, file in enumerate(files):
        (folder / "jpegs" / "all" / f"{number}.jpg").symlink_to(file.resolve())
    featstore.extract(folder / "jpegs", store=folder / "px.zarr", tensors="px=pixels:pixels@square", progress=False)
    theirs, ours = Jpegs(folder / "jpegs"), Stored(folder / "px.zarr")
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, job in {
            "loader: ImageFolder": theirs.load,
            "loader: store": ours.load,
            "training: ImageFolder": theirs.train,
            "training: store": ours.train,
        }.items():
            found.setdefault(name, []).append(len(files) / _seconds(job))
    told = {name: round(float(np.median(rates)), 1) for name, rates in found.items()}
    for what in ("loader", "training"):
        told[f"{what}: ratio"] = round(told[f"{what}: store"] / told[f"{what}: ImageFolder"], 2)
    return {"photos": len(files), **told}


def _seconds(job: Callable[[], None]) -> float:
    clock = time.perf_counter()
    job()
    return time.perf_counter() - clock


class Jpegs:
    """A folder of photos, decoded in every epoch."""

    def __init__(self, folder: Path) -> None:
        steps = [
            transforms.Resize((256, 256)),
            transforms.RandomCrop(CROP),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
        self._loader = DataLoader(
            datasets.ImageFolder(str(folder), transforms.Compose(steps)),
            batch_size=BATCH,
            shuffle=True,
            num_workers=WORKERS,
            persistent_workers=True,
        )
        self._net = small_network()
        self._optimiser = torch.optim.Adam(self._net.parameters(), lr=1e-3)

    def load(self) -> None:
        for _ in self._loader:
            pass

    def train(self) -> None:
        for pictures, labels in self._loader:
            self._optimiser.zero_grad()
            (self._net(pictures) - labels[:, None].float()).square().mean().backward()
            self._optimiser.step()


class Stored:
    """A store of pixels, read from its shards in every epoch."""

    def __init__(self, store: Path) -> None:
        tensor = featstore.open(store)["px"]
        # Too little memory to keep them: every epoch reads the store, as of a set that is larger than memory.
        n_bytes = len(tensor.rows) * int(np.prod(tensor.shape[1:]))
        self._features = Features([tensor], tensor.rows, memory_bytes=max(n_bytes // 4, 200_000_000))
        n = len(self._features)
        rows = np.arange(n)
        problem = Problem(
            SYSTEM,
            {name: option.value for name, option in SYSTEM.options.items()} | {"inner": 0.0, "batch": BATCH},
            TARGET,
            self._features.shapes,
            self._features.layouts,
            np.zeros((n, 1), np.float32),
            np.zeros(n, np.int64),
            0,
            torch.device("cpu"),
        )
        self._learner = Learner(problem, Job(0, 0, None, rows, rows[:0], rows[:0], 0))

    def load(self) -> None:
        photos = self._learner.inside.photos.train()
        for group in self._features.groups(rng=np.random.default_rng(0)):
            for rows in np.array_split(group.rows, max(1, len(group.rows) // BATCH)):
                _, (pixels,) = group.batch(rows)
                photos(pixels)

    def train(self) -> None:
        self._learner.begin_epoch()
        for group in self._features.groups(rng=np.random.default_rng(0)):
            self._learner.learn(group)


if __name__ == "__main__":
    main()
