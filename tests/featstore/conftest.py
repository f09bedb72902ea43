"""Small photos and tiny backbones, so that a whole extraction takes a second."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featstore.backbones import WeightsPolicy
from featstore.config import Config, TensorSpec
from featstore.photos.views import View

# Threads only cost on networks this small, and two runs on one machine would wait for each other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = ("test_efficientnet", "test_resnet")  # timm's own miniatures: 256 and 96 wide
VIEWS = {"grid": View((128, 96), rows=2, columns=2), "whole": View((128, 96))}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten photos of noise and gradients, of several sizes, one in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for i in range(10):
        draw_photo(folder / ("sub" if i == 9 else "") / f"photo {i}.jpg", seed=i)
    return folder


@pytest.fixture
def tiny_config(photos: Path, tmp_path: Path) -> Config:
    """A stack and a concatenation of two miniature backbones with seeded random weights."""
    return Config(
        photos=photos,
        store=tmp_path / "features.zarr",
        weights=WeightsPolicy(tmp_path / "weights", {"*": "random:0"}),
        views=VIEWS,
        engine="eager",  # OpenVINO takes longer to compile a miniature than a miniature takes
        tensors=(TensorSpec("grid", "stack", TINY), TensorSpec("whole", "concat", (*TINY, f"{TINY[0]}:max"))),
    )


@pytest.fixture
def draw() -> Callable[..., None]:
    return draw_photo


def draw_photo(file: Path, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = rng.integers(90, 200, 2)
    pixels = rng.integers(0, 255, (height, width, 3)).astype(np.uint8) // 2
    pixels[:, :, seed % 3] += np.linspace(0, 120, width).astype(np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A bucket of a real S3 server on this machine, which the environment says how to reach."""
    import boto3

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        command = [sys.executable, "-m", "moto.server", "-p", str(port)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                wait_for(port)
                boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket="features")
                yield "features"
            finally:
                server.terminate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"no server came up on port {port}")
