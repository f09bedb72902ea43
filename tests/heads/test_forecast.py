"""What a run takes is said before it begins: arithmetic against sums by hand, and days are asked about."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heads import forecast as forecasting
from heads.errors import TrainingError
from heads.training.cost import Cost, cost_of, photos_at_a_time

from .conftest import World, heads, refused

SMALL = ("layers=1,1,1,1", "width=0.05", "crop=32", "batch=8", "epochs=3", "init_trunk=random")


class Convolution(nn.Module):
    """One convolution, a ReLU and the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.relu(self.conv(pixels.permute(0, 3, 1, 2).float())).mean((2, 3))


def test_the_arithmetic_of_a_convolution_is_counted() -> None:
    with torch.device("meta"):
        model = Convolution()
    cost = cost_of(model, [(8, 10, 3)])
    assert cost is not None
    assert cost.flop == 2 * 8 * 10 * 5 * 27
    assert cost.n_parameters == 5 * 27
    pixels, outputs = 8 * 10 * 3 * 4, 8 * 10 * 5 * 4
    assert cost.activation_bytes == pixels + outputs, "the pixels as floats, and what ReLU gave; no weights"


@pytest.mark.parametrize(("n_bytes", "expected"), [(10**9, 0), (3200, 0), (3199, 31), (100, 1)])
def test_as_many_photos_at_a_time_as_the_memory_holds(n_bytes: int, expected: int) -> None:
    assert photos_at_a_time(Cost(1, 100, 1), 32, n_bytes, "aenet") == expected


def test_where_not_even_one_fits_it_says_so() -> None:
    with pytest.raises(TrainingError, match=r"gradients of one photo.*--memory"):
        photos_at_a_time(Cost(1, 100, 1), 32, 99, "aenet")


@pytest.fixture
def command(tmp_path: Path, write_store: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"{i}.jpg" for i in range(30)]
    write_store(tmp_path / "px.zarr", names, {"px": rng.integers(256, size=(30, 40, 40, 3), dtype=np.uint8)})
    Path("labels.csv").write_text("path,liked\n" + "\n".join(f"{n},{i % 7 + 1}" for i, n in enumerate(names)))
    options = [word for option in SMALL for word in ("--set", option)]
    return [
        "train", "resnet50-single", "px.zarr", "--labels", "labels.csv", "--scale", "1:7", "--folds", 3,
        "--repeats", 2, *options,
    ]  # fmt: skip


def test_a_dry_run_says_what_it_takes_and_trains_nothing(command: list[object]) -> None:
    done = heads(*command, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["models"], told["epochs"], told["store_bytes"]) == (6, 3, 30 * 40 * 40 * 3)
    assert told["photos"] == 6 * 3 * 18, "20 of 30 in a fold, of which 2 are set aside"
    assert told["seconds"] > 0
    assert not Path("cache").exists()
    said = heads(*command, "--dry-run").output
    assert "6 models, at most 3 epochs each" in said
    assert "GFLOP a photo forward" in said


def test_a_run_of_days_is_asked_about(command: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasting, "QUICK_FLOP", 0)
    monkeypatch.setattr(forecasting, "LONG_S", 1e-6)
    said = refused(*command, "--out", "run")
    assert "say --yes to begin all the same" in said
    assert not Path("run").exists()
    done = heads(*command, "--out", "run", "--yes")
    assert done.exit_code == 0, done.output
    assert Path("run/config.json").is_file()


def test_a_solved_head_has_no_epochs(world: World) -> None:
    done = heads(
        "train", "ridge", world.store, "--labels", world.labels, "--tensor", "whole", "--scale", "1:7",
        "--tasks", "appeal", "--dry-run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "solved at once" in done.output


def test_memory_that_holds_no_photo_is_refused_before_anything_is_trained(command: list[object]) -> None:
    said = refused(*command, "--memory", "300kB", "--out", "run")
    assert "gradients of one photo" in said
    assert not Path("run").exists()


def test_little_memory_takes_a_batch_in_parts(command: list[object]) -> None:
    done = heads(*command, "--memory", "2MB", "--out", "run")
    assert done.exit_code == 0, done.output
    assert 0 < json.loads(Path("run/config.json").read_text())["options"]["micro"] < 8
