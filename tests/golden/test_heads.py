"""Every head learns what it learnt, and leaves a run with the same things in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import making

THEN = making.recorded("heads.json")


@pytest.fixture(scope="module")
def found(runs: dict[str, Path]) -> dict[str, Any]:
    return making.look_at_heads(runs)


def test_there_is_a_run_of_every_head(found: dict[str, Any]) -> None:
    assert set(found["runs"]) == set(THEN["runs"])
    for system in making.facts("heads", "list"):
        assert any(name.startswith(f"{system['name']}-") for name in THEN["runs"])


@pytest.mark.parametrize("name", THEN["runs"])
def test_a_run_is_as_it_was(found: dict[str, Any], name: str) -> None:
    now, then = found["runs"][name], THEN["runs"][name]
    for what in ("files", "options", "columns", "rows", "texts"):
        assert now[what] == then[what]
    np.testing.assert_allclose(np.array(now["numbers"], float), np.array(then["numbers"], float), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["config", "metrics"])
def test_the_keys_of_the_documents_of_a_run(found: dict[str, Any], what: str) -> None:
    assert found[what] == THEN[what]
