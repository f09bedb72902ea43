"""One copy of the golden store for all tests that only look, and one world that every head has learnt from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import making


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the golden store that no test changes."""
    with making.desk(tmp_path_factory.mktemp("shared")) as copy:
        return copy


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Path]:
    """A copy of the golden store that a test may change, and is in."""
    with making.desk(tmp_path) as copy:
        yield copy


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of every head."""
    return making.train_all(tmp_path_factory.mktemp("world"))
