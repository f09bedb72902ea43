"""Features are known by the same identities."""

from pathlib import Path

import pytest

from . import making

THEN = making.recorded("identities.json")


def test_the_backbones_are_as_they_were() -> None:
    cards = {card["backbone"]: card for card in making.facts("featstore", "backbones")}
    for then in THEN["backbones"]:
        assert then.items() <= cards[then["backbone"]].items()


@pytest.mark.parametrize("name", ["packaged", pytest.param("papers", marks=pytest.mark.slow)])
def test_identities_are_as_they_were(tmp_path: Path, name: str) -> None:
    assert making.look_at_set(name, tmp_path) == THEN[name]


def test_the_identities_of_the_golden_store(golden: Path) -> None:
    tensors = making.facts("featstore", "info", golden / "features.zarr")["tensors"]
    then = making.recorded("store.json")["info"]["tensors"]
    assert tensors.keys() == then.keys()
    for name, tensor in tensors.items():
        for now, before in zip(tensor["segments"], then[name]["segments"], strict=True):
            assert now["hash"] == making.short_hash(now["identity"]) == before["hash"]
