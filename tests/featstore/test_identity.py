"""When two features are the same, and how two that are not differ in words."""

from typing import Any

import pytest

from featstore.backbones import find_card
from featstore.errors import ConfigError
from featstore.identity import Segment, canonical, differences, short_hash
from featstore.photos.views import GRID, WHOLE, View


def identity(*, view: View = GRID, pooling: str = "avg", weights: str = "ab", **facts: str) -> dict[str, object]:
    choice = {"arithmetic": "fp32", "dtype": "float16", **facts}
    segment = Segment(find_card("lite0"), view, pooling, choice["arithmetic"])
    return segment.identity({"sha256": weights}, choice["dtype"])


def test_what_decides_the_values_is_in_the_identity() -> None:
    assert identity() == {
        "architecture": "timm/tf_efficientnet_lite0",
        "normalisation": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "weights": {"sha256": "ab"},
        "pooling": "avg",
        "view": {"size": [600, 400], "grid": [4, 4], "interpolation": "bilinear", "antialias": True},
        "decoding": "rgb8-exif-white-dct2-icc",
        "arithmetic": "fp32",
        "dtype": "float16",
    }
    assert short_hash(identity()) == short_hash(identity())


def test_any_other_fact_is_another_feature_and_is_said_in_words() -> None:
    others = {
        "cut into (rows x columns) 4x4 here, 1x1 there": identity(view=WHOLE),
        "pooled by avg here, max there": identity(pooling="max"),
        "weights: ab here, cd there": identity(weights="cd"),
        "computed in fp32 here, tf32 there": identity(arithmetic="tf32"),
        "stored as float16 here, float32 there": identity(dtype="float32"),
    }
    assert len({short_hash(each) for each in [identity(), *others.values()]}) == 6
    for words, other in others.items():
        assert differences(identity(), other) == [words]


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        ({"weights": {"sha256": "ab"}}, {"weights": {"sha256": "cd"}}, "weights: ab here, cd there"),
        ({"view": {"antialias": False}}, {"view": {"antialias": True}}, "resized with antialias there, without here"),
        ({"view": {"size": [6, 4]}}, {"view": {"size": [3, 2]}}, "photos resized to 6x4 here, 3x2 there"),
        ({"pooling": "avg"}, {"pooling": "max"}, "pooled by avg here, max there"),
        ({"decoding": 1}, {}, "decoded by the rules 1 here, none there"),
        (
            {"decoding": "rgb8-exif-white-dct2-icc"},
            {"decoding": "rgb8-exif-white-dct2"},
            "colour profiles applied here, not there",
        ),
        (
            {"decoding": "rgb8-exif-white-dct2"},
            {"decoding": "rgb8-exif-white-dct2-icc"},
            "colour profiles applied there, not here",
        ),
        ({"weights": {"random_seed": 3, "sha256": "0" * 64}}, {}, "weights: random:3 000000000000 here, none there"),
        ({"normalisation": {"mean": [0.5, 0.5]}}, {"normalisation": {"mean": [0, 1.0]}},
         "normalised with the mean [0.5,0.5] here, [0,1.0] there"),
        ({"something": 1}, {"something": 2}, "something: 1 here, 2 there"),
    ],
)  # fmt: skip
def test_a_difference_is_a_sentence(here: dict[str, Any], there: dict[str, Any], words: str) -> None:
    assert differences(here, there) == [words]
    assert differences(here, here) == []


def test_the_canonical_text_does_not_depend_on_the_order_of_writing() -> None:
    assert canonical({"b": 1, "a": {"d": "é", "c": [1, 2]}}) == '{"a":{"c":[1,2],"d":"é"},"b":1}'
    # Changing this hash makes every store in the world be computed again.
    assert short_hash({"a": {"c": [1, 2], "d": "é"}, "b": 1}) == "4100d57479b53c1e"


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown pooling 'mean' of backbone"):
        Segment(find_card("lite0"), GRID, "mean")


def test_networks_as_released_are_told_from_those_of_before() -> None:
    card = find_card("test_vit")
    now = Segment(card, WHOLE).identity({"sha256": "1"}, "float16")
    before = {**{key: value for key, value in now.items() if key != "built"}, "pooling": "avg"}
    assert differences(now, before) == ["network built as released here, none there", "pooled by own here, avg there"]
    assert "built" not in find_card("resnet50").facts(), "the papers' networks are what they were"
