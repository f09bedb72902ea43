"""Training from stored pixels is faster than decoding JPEGs in every epoch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).with_name("pixels_speed.py")


def test_stored_pixels_are_faster_than_a_folder_of_jpegs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(64):
        noise = rng.integers(256, size=(40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((800, 600)).save(tmp_path / f"{number}.jpg", quality=90)
    # In a process of its own, as the workers of a loader are forked, and end with signals.
    words = [sys.executable, SCRIPT, "--photos", tmp_path, "--rounds", "3"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["photos"] == 64
    assert told["loader: ratio"] > 2, told
    assert told["training: ratio"] > 1.2, told
