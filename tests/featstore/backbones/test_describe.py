"""The list of backbones, as a table in a notebook."""

import time
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
    assert list(table.columns) == ["backbone", "alias", "width", "input", "weights", "used_by", "licence", "hub"]
    assert list(table["backbone"]) == list(CARDS)
    origins = table.set_index("backbone")["weights"]
    assert (origins["resnet50"], origins["resnet152"], origins["densenet201"]) == (
        "weights folder",
        "random",
        "not here",
    )


@pytest.mark.parametrize(
    ("pattern", "some", "others"),
    [
        ("lite?", ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"], ["resnet50"]),
        ("*xception", ["legacy_xception"], ["xception41.tf_in1k"]),
        ("RESNET", ["resnet50", "resnet152", "resnet50.a1_in1k", "seresnet50.a1_in1k"], ["vgg16.tv_in1k"]),
        ("resnet*", ["resnet50", "resnet152", "resnet50.a1_in1k"], ["seresnet50.a1_in1k"]),
        ("Clip*", ["vit_base_patch16_clip_224.openai", "convnext_base.clip_laion2b"], ["vit_base_patch16_siglip_224"]),
        ("*.openai", ["vit_base_patch16_clip_224.openai"], ["vit_base_patch16_clip_224.laion2b"]),
        ("test_vit", ["test_vit.r160_in1k"], ["resnet50"]),
    ],
)
def test_a_pattern_finds_timms_networks_too(
    weights: featstore.WeightsPolicy, pattern: str, some: list[str], others: list[str]
) -> None:
    found = set(featstore.list_backbones(pattern, weights=weights)["backbone"])
    assert set(some) <= found
    assert not found & set(others)


def test_all_of_timm_is_listed_at_once_with_what_its_tables_say(weights: featstore.WeightsPolicy) -> None:
    import timm  # which takes seconds by itself

    assert timm.__version__
    began = time.perf_counter()
    table = featstore.list_backbones("*", weights=weights)
    assert time.perf_counter() - began < 20, "networks are built"
    assert len(table) > 1_500
    assert table["backbone"].is_unique
    dino = table.set_index("backbone").loc["vit_small_patch14_dinov2.lvd142m"]
    assert (dino["input"], dino["licence"], dino["weights"]) == ("518 x 518", "apache-2.0", "not here")
    assert dino["hub"] == "timm/vit_small_patch14_dinov2.lvd142m"


def test_weights_of_timms_networks_are_found_where_commands_find_them(tmp_path: Path) -> None:
    (tmp_path / "test_vit.r160_in1k.safetensors").touch()
    table = featstore.list_backbones("test_vit.", weights=featstore.WeightsPolicy(str(tmp_path)))
    assert table.set_index("backbone")["weights"].to_dict() == {"test_vit.r160_in1k": "weights folder"}


def test_nothing_is_called_so(weights: featstore.WeightsPolicy) -> None:
    table = featstore.list_backbones("nonet", weights=weights)
    assert len(table) == 0
    assert "backbone" in table
