"""Training from stored pixels is faster than decoding JPEGs in every epoch."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .pixels_speed import measure


def test_stored_pixels_are_faster_than_a_folder_of_jpegs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(64):
        noise = rng.integers(256, size=(40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((800, 600)).save(tmp_path / f"{number}.jpg", quality=90)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        told = measure(tmp_path / "bench", tmp_path, rounds=3, most=None)
    finally:
        torch.set_num_threads(before)
    assert told["photos"] == 64
    assert told["loader: ratio"] > 2, told
    assert told["training: ratio"] > 1.2, told
