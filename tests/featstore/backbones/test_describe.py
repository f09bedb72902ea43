"""The list of backbones, as a table in a notebook."""

from pathlib import Path

import pytest

import featstore
from featstore.backbones.registry import CARDS


@pytest.fixture
def weights(tmp_path: Path) -> featstore.WeightsPolicy:
    (tmp_path / "resnet50.safetensors").touch()
    return featstore.WeightsPolicy(tmp_path, named={"resnet152": "random:0"}, hub=True)


def test_every_card_is_a_row(weights: featstore.WeightsPolicy) -> None:
    table = featstore.list_backbones(weights=weights)
    assert list(table.columns) == ["backbone", "alias", "width", "weights", "used_by", "licence", "hub"]
    assert list(table["backbone"]) == list(CARDS)
    origins = table.set_index("backbone")["weights"]
    assert (origins["resnet50"], origins["resnet152"], origins["densenet201"]) == (
        "weights folder",
        "random",
        "not here",
    )


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("lite?", ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"]),
        ("*xception", ["legacy_xception"]),
        ("resnet*", ["resnet50", "resnet152"]),
        ("vgg*", []),
    ],
)
def test_a_pattern_is_of_names_and_aliases(weights: featstore.WeightsPolicy, pattern: str, names: list[str]) -> None:
    assert list(featstore.list_backbones(pattern, weights=weights)["backbone"]) == names
