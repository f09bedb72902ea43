"""The measurements of tests/bench run, on little data: what they time is what `heads` does today."""

import json
import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).with_name("train.py")


def test_how_fast_heads_are_trained_can_be_measured(tmp_path: Path) -> None:
    little = ["--images", "130", "--tasks", "2", "--folds", "2", "--epochs", "1", "--json"]
    done = subprocess.run([sys.executable, TRAIN, *little], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) >= {"floor_s", "in_memory_s", "of_floor", "streamed_to_memory", "loader_to_iterator"}
    assert min(figures.values()) > 0
