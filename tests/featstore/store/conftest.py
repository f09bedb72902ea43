"""Fixtures of the tests of the store: a small store in a folder of its own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .small_store import fill


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "features.zarr"
    fill(path)
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    """A store of ten images in three row blocks, every row of both tensors present."""
    return shutil.copytree(template, tmp_path / "features.zarr")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: for tests that write so often that syncing a disk takes a minute."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="featstore-") as folder:
        yield Path(folder)
