"""The measurements of tests/bench run, on little data: what they time is what `heads` does today."""

import json
import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).with_name("train.py")
RIDGE = Path(__file__).with_name("ridge_speed.py")


def test_how_fast_heads_are_trained_can_be_measured(tmp_path: Path) -> None:
    little = ["--images", "130", "--tasks", "2", "--folds", "2", "--epochs", "1", "--json"]
    done = subprocess.run([sys.executable, TRAIN, *little], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) >= {"floor_s", "in_memory_s", "of_floor", "streamed_to_memory", "loader_to_iterator"}
    assert min(figures.values()) > 0


def test_how_fast_ridge_is_repeated_can_be_measured_and_it_says_what_scikit_learn_says(tmp_path: Path) -> None:
    little = ["--images", "90", "--features", "200", "--folds", "3", "--repeats", "2", "--loop", "2", "--json"]
    done = subprocess.run([sys.executable, RIDGE, *little], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["models"] == 6
    assert figures["ratio"] > 1
    assert figures["largest_difference"] < 1e-6
