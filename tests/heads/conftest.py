"""Small real stores of random features with a planted signal: no photos and no networks are needed to train heads."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

import featstore
from featstore.identity import PixelSegment
from featstore.photos.views import View
from featstore.store import ImageState, NewImages, RowState, SeenImages, Writer
from featstore.store.format.layout import StoredSegment, TensorLayout
from heads import experiment
from heads.cli import app
from heads.labels.target import Target
from heads.systems import find_system
from heads.systems.system import System
from heads.training.features import Features
from heads.training.joint import Work, train_together
from heads.training.learner import Job, Learner, Problem, Trained

BACKBONES = {"alpha": 24, "beta": 16, "gamma": 20}  # name and width; the stack pads them to 24
N_IMAGES, N_BLOCKS, BLOCK_ROWS = 60, 16, 8
PLENTY = 10**9
RATINGS = Target("regression", ("appeal", "calm"))


def heads(*arguments: object) -> Result:
    """What the command says, as a user types it."""
    return CliRunner().invoke(app, [str(each) for each in arguments])


def refused(*arguments: object) -> str:
    """The message of a command that fails: it is one of ours, and no traceback."""
    result = heads(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    return result.stderr


@dataclass(frozen=True)
class World:
    """A store, its features in memory, and the label table that belongs to it."""

    store: Path
    labels: Path
    grid: NDArray[np.float16]
    """(60, 3, 16, 24)"""
    whole: NDArray[np.float16]
    """(60, 60)"""
    table: pd.DataFrame
    """path, source (5 photos each), appeal and calm on 1..7, a note"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The last digit of a figure depends on how many share the work; tests of threads say how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "n_threads", lambda: 1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Sixty images: `grid` is a stack of three backbones on 16 blocks, `whole` joins their means over blocks.

    appeal rises with feature 0 of backbone alpha, calm with feature 3 of beta, both averaged over blocks.
    """
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    grid = np.zeros((N_IMAGES, len(BACKBONES), N_BLOCKS, max(BACKBONES.values())), np.float16)
    for i, width in enumerate(BACKBONES.values()):
        image, block = rng.normal(size=(N_IMAGES, 1, width)), rng.normal(size=(N_IMAGES, N_BLOCKS, width))
        grid[:, i, :, :width] = image + block / 2 + i
    means = grid.astype(np.float32).mean(2)
    whole = np.concatenate([means[:, i, :width] for i, width in enumerate(BACKBONES.values())], axis=1)
    names = [f"trip {i // 5}/Été {i // 5} {i % 5}.jpg" for i in range(N_IMAGES)]
    table = pd.DataFrame(
        {
            "path": names,
            "source": [f"trip {i // 5}" for i in range(N_IMAGES)],
            "appeal": rating(means[:, 0, 0]),
            "calm": rating(means[:, 1, 3]),
            "note": "seen",
        }
    )
    table.to_csv(folder / "labels.csv", index=False)
    store = folder / "features.zarr"
    save_store(store, names, {"grid": grid, "whole": whole.astype(np.float16)}, widths=list(BACKBONES.values()))
    return World(store, folder / "labels.csv", grid, whole.astype(np.float16), table)


def rating(signal: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.clip(4 + 1.2 * (signal - signal.mean()) / signal.std(), 1, 7).round(2)


@pytest.fixture(scope="session")
def write_store() -> Callable[..., None]:
    return save_store


def save_store(
    path: Path,
    names: Sequence[str],
    tensors: dict[str, NDArray[np.generic]],
    *,
    widths: Sequence[int] = (),
    block_rows: int = BLOCK_ROWS,
    weights: str = "first",
) -> None:
    """A store of the given tensors, (N, B, T, F) or (N, F), or of pixels (N, H, W, 3) or (N, rows, columns, H, W, 3).

    `weights` goes into the identity of features.
    """
    n_rows = len(names)
    with Writer(path, block_rows=block_rows) as writer:
        digests = np.stack([np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint8) for name in names])
        writer.add_images(NewImages(list(names), digests, [1] * n_rows, [1] * n_rows))
        for name, values in tensors.items():
            if values.dtype == np.uint8 and values.ndim > 3:
                writer.ensure_tensor(layout_of_pixels(name, values.shape[1:]), "uint8")
                blocks = values.shape[1] * values.shape[2] if values.ndim == 6 else 1
                whole = values.shape[-3:] if blocks == 1 else (blocks, *values.shape[-3:])
                tensors = {**tensors, name: values.reshape(n_rows, *whole)}
                continue
            writer.ensure_tensor(layout_of(name, values.shape[1:], widths, weights), values.dtype.name)
        for block, start in enumerate(range(0, n_rows, block_rows)):
            here = list(range(start, min(start + block_rows, n_rows)))
            states = np.full(len(here), RowState.PRESENT, np.uint8)
            rows = {name: (values[here], states) for name, values in tensors.items()}
            n = len(here)
            writer.commit(block, rows, SeenImages(here, [(400, 600)] * n, [ImageState.READABLE] * n, [""] * n))


def layout_of(name: str, row_shape: tuple[int, ...], widths: Sequence[int], weights: str) -> TensorLayout:
    n_blocks = row_shape[1] if len(row_shape) == 3 else 1
    natural = widths or ([row_shape[-1]] * row_shape[0] if len(row_shape) == 3 else [row_shape[0]])
    segments = tuple(
        StoredSegment(f"net{i}", {"architecture": f"net{i}", "weights": {"sha256": weights}}, n_blocks, width)
        for i, width in enumerate(natural)
    )
    if len(row_shape) == 3:
        return TensorLayout(name, "stack", segments, width=row_shape[-1])
    return TensorLayout(name, "concat", segments)


def layout_of_pixels(name: str, row_shape: tuple[int, ...]) -> TensorLayout:
    (rows, columns), (height, width) = row_shape[:-3] or (1, 1), row_shape[-3:-1]
    segment = PixelSegment(View((columns * width, rows * height), rows=rows, columns=columns))
    stored = StoredSegment(segment.name, segment.identity(), segment.n_blocks, segment.width)
    return TensorLayout(name, "pixels", (stored,))


@pytest.fixture
def as_features(tmp_path: Path) -> Callable[..., Features]:
    """The features of an array (N, B, T, F) or (N, F), through a store; streaming if `memory_bytes` is small."""

    def make(values: NDArray[np.generic], *, memory_bytes: int = PLENTY, block_rows: int = 64) -> Features:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        save_store(path, [f"{i}.jpg" for i in range(len(values))], {"only": values}, block_rows=block_rows)
        return open_features(path, "only", memory_bytes=memory_bytes)

    return make


@pytest.fixture(scope="session")
def features_of() -> Callable[..., Features]:
    return open_features


def open_features(
    path: Path, *tensors: str, rows: NDArray[np.int64] | None = None, memory_bytes: int = PLENTY
) -> Features:
    """The features of stored tensors, read at once if they fit."""
    stored = [featstore.open(path)[tensor] for tensor in tensors]
    features = Features(stored, stored[0].rows if rows is None else rows, memory_bytes=memory_bytes)
    features.load()
    return features


# ------------------------------------------------------------------------------------------ training without a run


class MemoryCheckpoints:
    """Keeps what is finished in place of a draft, and counts the checkpoints that it is offered."""

    def __init__(self) -> None:
        self.trained: dict[str, Trained] = {}
        self.n_checkpoints = 0

    def finished(self, job: Job) -> Trained | None:
        return self.trained.get(job.name)

    def finish(self, trained: Trained) -> None:
        assert trained.job.name not in self.trained
        self.trained[trained.job.name] = trained

    def restore(self, learner: Learner) -> bool:
        return False

    def checkpoint(self, learner: Learner, *, in_step: int) -> None:
        self.n_checkpoints += 1


@dataclass(frozen=True)
class Setting:
    """Features, labels and a system, from which models are trained in a line."""

    features: Features
    labels: NDArray[np.float32]
    target: Target
    sets: NDArray[np.int64]

    def problem(self, system: System | str, *changes: str, **others: Any) -> Problem:
        found = find_system(system) if isinstance(system, str) else system
        facts = {
            "options": found.settle(changes),
            "target": self.target,
            "shapes": self.features.shapes,
            "layouts": self.features.layouts,
            "labels": self.labels,
            "sets": self.sets,
            "seed": 0,
            "device": torch.device("cpu"),
        }
        return Problem(found, **{**facts, **others})

    def job(self, **others: Any) -> Job:
        """Forty images to fit, ten to stop by, ten to test on."""
        images = np.arange(len(self.labels))
        facts = {"repeat": 0, "part": 0, "task": None, "fit": images[:40], "inner": images[40:50], "test": images[50:]}
        return Job(**{**facts, "seed": 3, **others})

    def train(
        self,
        problem: Problem,
        *jobs: Job,
        threads: int = 1,
        kept: MemoryCheckpoints | None = None,
        stacked: bool = False,
    ) -> list[Trained]:
        kept = kept or MemoryCheckpoints()
        works = [Work(problem, job, kept) for job in jobs]
        lost = train_together(
            works, self.features, on_progress=lambda stage, done, total: None, threads=threads, stacked=stacked
        )
        for error in lost.values():
            raise error
        return [kept.trained[job.name] for job in jobs]


@pytest.fixture(scope="session")
def scaled(world: World) -> NDArray[np.float32]:
    """appeal and calm on -0.5 .. 0.5"""
    return ((world.table[["appeal", "calm"]].to_numpy() - 1) / 6 - 0.5).astype(np.float32)


@pytest.fixture(scope="session")
def setting_of(world: World, scaled: NDArray[np.float32]) -> Callable[..., Setting]:
    """The world's images, a tensor of theirs, and labels (the ratings if none are given)."""

    def make(
        *tensors: str,
        labels: NDArray[np.float32] = scaled,
        target: Target = RATINGS,
        sets: NDArray[np.int64] | None = None,
        memory_bytes: int = PLENTY,
    ) -> Setting:
        features = open_features(world.store, *tensors, memory_bytes=memory_bytes)
        return Setting(features, labels, target, np.zeros(len(labels), np.int64) if sets is None else sets)

    return make


# ------------------------------------------------------------------------------------------ a browser

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright; tests that need it skip where either is not installed.

    It is a module's and not the session's: as long as Playwright runs, the main thread has an event loop that runs,
    and `asyncio.run` in the tests of others would fail.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab, 1280 x 900. At the end of the test it has logged nothing and has asked no machine but this one."""
    said: list[str] = []
    asked: list[str] = []
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(5000)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    yield tab
    tab.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1"))] == []
