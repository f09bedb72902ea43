"""Every head learns what it learnt, and leaves a run with the same things in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import making

THEN = making.recorded("heads.json")
OTHERS = {"mtl-hold"}
"""What is left of the names of runs that are more than a head and a kind of labels."""


@pytest.fixture(scope="module")
def found(runs: dict[str, Path]) -> dict[str, Any]:
    return making.look_at_heads(runs)


def test_every_head_of_then_is_there() -> None:
    known = {system["name"] for system in making.facts("heads", "list")}
    assert {name for name in (run.rpartition("-")[0] for run in THEN["runs"]) if name not in OTHERS} <= known


@pytest.mark.parametrize("name", THEN["runs"])
def test_a_run_is_as_it_was(found: dict[str, Any], name: str) -> None:
    now, then = found["runs"][name], THEN["runs"][name]
    for what in ("files", "options", "columns", "rows", "texts"):
        assert now[what] == then[what]
    np.testing.assert_allclose(np.array(now["numbers"], float), np.array(then["numbers"], float), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["config", "metrics"])
def test_the_keys_of_the_documents_of_a_run(found: dict[str, Any], what: str) -> None:
    if what == "config":
        assert THEN[what].items() <= found[what].items()
    else:
        assert all(then.items() <= found[what][kind].items() for kind, then in THEN[what].items())
