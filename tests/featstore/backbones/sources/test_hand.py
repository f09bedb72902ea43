"""Features made by hand: each formula against values that follow from its definition, and the road to the store."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor
from safetensors.torch import save_file
from skimage.color import rgb2hsv, rgb2lab
from skimage.feature import hog

import featstore
from featstore.backbones import BackboneName, Weights, WeightsPolicy, find_card, resolve_weights
from featstore.backbones.hand.cards import HAND
from featstore.backbones.hand.colour import NAMES
from featstore.backbones.hand.descriptors import Descriptors
from featstore.backbones.hand.words import Words, encode, learn_words
from featstore.backbones.networks import build_network
from featstore.backbones.sources.hand import look
from featstore.config import Config, choose_tensors
from featstore.errors import BackboneError, WeightsError
from featstore.extraction.networks import segment_of
from featstore.identity import Segment
from featstore.photos.views import View

GROUPS = [card.name for card in HAND]
Pixels = NDArray[np.uint8]


def features(group: str, *pictures: Pixels, weights: Weights | None = None) -> NDArray[np.float32]:
    """(T, F) of a group, by the network that an extraction runs."""
    card = find_card(f"hand/{group}")
    network = build_network(card, weights or Weights("formula", seed=None if card.by_formula else 0))
    (found,) = network(torch.from_numpy(np.stack(pictures)))
    return np.asarray(found.numpy())


def plain(*colour: int, side: int = 64) -> Pixels:
    return np.broadcast_to(np.array(colour, np.uint8), (side, side, 3)).copy()


def noise(side: int = 64, *, seed: int = 0, high: int = 256) -> Pixels:
    return np.random.default_rng(seed).integers(0, high, (side, side, 3), dtype=np.uint8)


def waves(degrees: float, cycles: float, side: int = 128) -> Pixels:
    """Grey waves that run in a direction, so many in a pixel."""
    y, x = np.mgrid[:side, :side]
    along = x * np.cos(np.radians(degrees)) + y * np.sin(np.radians(degrees))
    return np.repeat(127 + 100 * np.cos(2 * np.pi * cycles * along)[..., None], 3, 2).astype(np.uint8)


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_is_as_wide_as_its_card_says_and_does_not_depend_on_what_is_beside_it(name: str) -> None:
    card = find_card(name)
    side = max(40, card.least)
    pictures = noise(side), waves(30, 0.1, side), plain(0, 0, 0, side=side)
    together = features(name.removeprefix("hand/"), *pictures)
    assert together.shape == (3, card.width)
    assert np.isfinite(together).all()
    for picture, found in zip(pictures, together, strict=True):
        np.testing.assert_array_equal(features(name.removeprefix("hand/"), picture)[0], found)


def test_arousal_of_pure_red_and_of_white() -> None:
    np.testing.assert_allclose(features("arousal", plain(255, 0, 0), plain(255, 255, 255))[:, 0], [0.29, -0.31])


def test_colour_histogram_counts_boxes_of_hsv() -> None:
    picture = noise()
    expected, _ = np.histogramdd(rgb2hsv(picture).reshape(-1, 3), bins=8, range=[(0, 1)] * 3)
    np.testing.assert_allclose(features("colour-histogram", picture)[0], expected.ravel() / 64**2, rtol=1e-6)


def test_contrast_of_half_black_half_white_and_of_two_odd_pixels() -> None:
    half, odd = plain(0, 0, 0), plain(100, 100, 100)
    half[:32] = 255
    odd[0, 0], odd[1, 1] = 0, 255
    np.testing.assert_allclose(
        features("contrast", half, odd), [[0.5, 1], [np.hypot(155, 100) / 255 / 64, 0]], atol=1e-3
    )


def test_edges_of_a_small_thing_are_close_together_and_those_of_noise_are_not() -> None:
    thing = plain(90, 90, 90, side=200)
    thing[60:80, 120:140] = noise(20)
    small, spread, none = features("edges", thing, noise(200), plain(90, 90, 90, side=200))
    assert small[0] == pytest.approx(1 - 0.11**2, abs=0.003)  # 22 pixels of 200, with the rim
    cells = small[1:].reshape(10, 10)
    assert cells[3, 6] > 0.9
    assert cells.sum() == pytest.approx(1)
    assert spread[0] < 0.05
    np.testing.assert_allclose(spread[1:], 0.01, rtol=0.2)
    assert not none.any()


def test_jpeg_rises_with_noise_and_is_that_of_pillow(tmp_path: Path) -> None:
    pictures = [plain(128, 128, 128) + noise(high=high) for high in (1, 8, 32, 128)]
    found = features("jpeg", *pictures)[:, 0]
    assert (np.diff(found) > 0).all()
    Image.fromarray(pictures[-1]).save(tmp_path / "picture.jpg", quality=75)
    assert found[-1] == pytest.approx((tmp_path / "picture.jpg").stat().st_size / pictures[-1].size)


def test_lbp_of_any_constant_picture_is_all_in_one_bin() -> None:
    for found in features("lbp", *(plain(value, value, value, side=16) for value in range(0, 256, 5))):
        cells = found[: 21 * 59].reshape(21, 59)
        assert (cells[:, 57] > 0).all()  # all eight neighbours are as bright
        np.testing.assert_allclose([cells[:1].sum(), cells[1:5].sum(), cells[5:].sum()], [1, 4, 32], rtol=1e-6)
        assert np.count_nonzero(cells) == 21


def test_lbp_says_in_which_cell_a_texture_is_and_its_largest_over_the_cells() -> None:
    picture = plain(128, 128, 128)
    picture[:32, 32:] = noise(32)
    found = features("lbp", picture)[0]
    quarters = found[59 : 5 * 59].reshape(4, 59)
    assert quarters[1, 57] < 0.3 < 0.9 < quarters[2, 57]
    np.testing.assert_array_equal(found[21 * 59 : 22 * 59], quarters.max(0))
    np.testing.assert_array_equal(found[22 * 59 :], found[5 * 59 : 21 * 59].reshape(16, 59).max(0))


@pytest.mark.parametrize(("degrees", "turn"), [(0, 0), (135, 2), (90, 4), (45, 6)])
def test_gist_finds_the_direction_and_the_scale_of_waves(degrees: float, turn: int) -> None:
    for scale in range(4):
        energy = features("gist", waves(degrees, 0.3 / 1.85**scale))[0].reshape(4, 8, 16).mean(2)
        assert np.unravel_index(energy.argmax(), energy.shape) == (scale, turn)


def test_gist_is_the_same_for_a_brighter_picture_and_for_one_of_more_contrast() -> None:
    dark = noise(high=100)
    found = features("gist", dark, dark + 50, 2 * dark)
    np.testing.assert_allclose(found[1:], found[:1].repeat(2, 0), rtol=1e-5)


def test_gist_says_where_a_texture_is() -> None:
    picture = plain(128, 128, 128)
    picture[48:, :16] = noise(16)
    assert features("gist", picture)[0].reshape(32, 16).mean(0).argmax() == 12


def test_colour_names_are_the_nearest_of_eleven_colours() -> None:
    pure = [plain(*colour) for colour in [(0, 0, 0), (0, 0, 255), (165, 42, 42), (128, 128, 128), (0, 128, 0)]]
    found = features("colour-names", *pure)
    assert [NAMES[each] for each in found.argmax(1)] == ["black", "blue", "brown", "grey", "green"]
    assert (found.max(1) == 1).all()
    named = np.array([[ImageColor.getrgb(name) for name in NAMES]], np.uint8)
    picture = noise(256)
    distances = np.square(rgb2lab(picture)[:, :, None] - rgb2lab(named)).sum(3)
    expected = np.bincount(distances.argmin(2).ravel(), minlength=11) / 256**2
    np.testing.assert_allclose(features("colour-names", picture)[0], expected, atol=0.005)  # colours in steps of 8


def test_colour_names_by_a_table_of_the_users_own_are_another_identity(tmp_path: Path) -> None:
    table = torch.zeros(32768, 11)
    table[:, 3] = 0.25
    table[31, 8] = 0.75  # of 31 + 32 x 0 + 1024 x 0: pure red
    save_file({"table": table}, tmp_path / "w2c.safetensors")
    policy = WeightsPolicy(tmp_path, {"hand/colour-names-1": str(tmp_path / "w2c.safetensors")})
    weights = resolve_weights(find_card("hand/colour-names"), policy)
    found = features("colour-names", plain(255, 0, 0), plain(0, 255, 0), weights=weights)
    np.testing.assert_allclose(found[:, [3, 8]], [[0.25, 0.75], [0.25, 0]])
    save_file({"table": table[:5]}, tmp_path / "w2c.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit 'hand/colour-names-1'.*1 of another shape \(table\)"):
        features("colour-names", plain(0, 0, 0), weights=weights)
    assert features("colour-names", plain(0, 255, 0)).max() == 1  # the other table is untouched


def test_dense_sift_of_a_vertical_bar_has_two_opposite_directions_only() -> None:
    bar = plain(0, 0, 0)
    bar[:, 24:40] = 255
    values = descriptors("sift", bar).values.reshape(-1, 16, 8)
    assert (values[..., [0, 4]] > 0.1).any((0, 1)).all()  # from dark to light, and back
    assert values[..., [1, 2, 3, 5, 6, 7]].max() < 1e-9


def test_dense_sift_of_a_turned_picture_is_turned_and_what_is_flat_has_none() -> None:
    picture = noise(16)
    straight, turned = (descriptors("sift", each).values for each in (picture, np.rot90(picture, -1).copy()))
    assert straight.shape == (1, 128)
    expected = np.rot90(straight.reshape(4, 4, 8), -1).copy()
    np.testing.assert_allclose(turned.reshape(4, 4, 8), np.roll(expected, 2, 2), atol=1e-9)
    assert np.linalg.norm(straight) == pytest.approx(1)
    assert straight.max() < 0.3  # clipped at .2, and scaled to length 1 again
    assert not descriptors("sift", plain(9, 9, 9)).values.any()


def test_hog_is_that_of_the_library_and_says_where_its_blocks_are() -> None:
    picture = noise(32)
    found = descriptors("hog", picture)
    expected = hog(picture, 9, (8, 8), (2, 2), channel_axis=2)
    np.testing.assert_array_equal(found.values.ravel(), expected)
    np.testing.assert_allclose(found.places[[0, 1, -1]], [[0.25, 0.25], [0.25, 0.5], [0.75, 0.75]])


def test_places_of_colour_names_have_the_shares_of_what_is_there() -> None:
    picture = plain(255, 0, 0, side=16)
    picture[:, 8:] = 0, 0, 255
    found = descriptors("colour-names-words", picture)
    assert len(found.values) == 2 * 2 + 1 + 1  # patches of 8, 12 and 16
    np.testing.assert_allclose(found.values.sum(1), 1)
    red = found.values[:, NAMES.index("red")]
    np.testing.assert_allclose(red, [1, 0.25, 1, 0.25, 8 / 12, 0.5])
    np.testing.assert_allclose(found.places[:, 1], [0.25, 0.625, 0.25, 0.625, 6 / 16, 0.5])


def test_gist_of_a_tile_is_gist() -> None:
    picture = noise(96)
    found = descriptors("gist-words", picture)
    assert found.values.shape == (4, 512)
    np.testing.assert_allclose(found.values[1], features("gist", picture[:64, 32:])[0], rtol=1e-5)


def test_a_point_in_the_span_of_three_words_has_its_coordinates() -> None:
    draw = np.random.default_rng(0)
    words, weights = draw.normal(size=(20, 10)), np.array([0.5, 0.3, 0.2])
    words[[4, 9, 13]] *= 0.1
    chosen, found = encode((weights @ words[[4, 9, 13]])[None], words, nearest=3, beta=1e-12)
    assert sorted(chosen[0]) == [4, 9, 13]
    np.testing.assert_allclose(found[0][np.argsort(chosen[0])], weights, rtol=1e-6)


def test_words_are_the_largest_in_each_cell_of_a_pyramid() -> None:
    """Two words, of which one is at the upper left, and the other at the upper right."""
    words, values = np.eye(2), np.eye(2)
    places = np.array([[0.1, 0.1], [0.1, 0.9]])
    group = Words(lambda picture: Descriptors(values, places), 2, words=2, nearest=1, beta=0.03, levels="1 2 4")
    group.words.copy_(torch.from_numpy(words))
    found = group.words_of(noise()).reshape(21, 2)
    assert np.argwhere(found).tolist() == [[0, 0], [0, 1], [1, 0], [2, 1], [5, 0], [8, 1]]
    np.testing.assert_allclose(found[found > 0], 1 / np.sqrt(6))


def test_words_are_different_where_most_descriptors_are_the_same() -> None:
    draw = np.random.default_rng(0)
    values = np.eye(11, dtype=np.float32)[draw.integers(0, 11, 20_000)]
    values[:2000] += draw.random((2000, 11), np.float32)
    words = learn_words(draw.permutation(values), 256, seed=0)
    assert len(np.unique(words, axis=0)) == 256
    apart = np.square(words[:, None] - np.eye(11)).sum(2).min(0)
    assert apart.max() < 0.05  # each of those that are frequent has a word


def descriptors(group: str, picture: Pixels) -> Descriptors:
    return look(find_card(f"hand/{group}"))(picture)


def test_weights_that_are_asked_for_of_a_formula() -> None:
    card = find_card("hand/gist")
    assert resolve_weights(card, WeightsPolicy(named={"*": "random:0"})) == Weights("formula")
    with pytest.raises(WeightsError, match="it has none to draw"):
        resolve_weights(card, WeightsPolicy(named={card.name: "random:0"}))


def test_names_of_groups() -> None:
    assert BackboneName.parse("hand/gist-1") == BackboneName("hand/gist-1")
    assert BackboneName.parse("hand/gist:max") == BackboneName("hand/gist", pooling="max")
    assert find_card("hand/gist") is find_card("hand/gist-1")
    with pytest.raises(BackboneError, match=r"unknown backbone 'hand/gits'; did you mean .*'hand/gist'"):
        find_card("hand/gits")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hand/gist:max@whole", "one vector of a picture; leave the pooling out"),
        ("hand/gist/layer1@whole", "no layers that can be named"),
        ("hand/gist@small", "takes pictures of 32x32 pixels or more, not of 40x20"),
    ],
)
def test_what_a_group_does_not_have(text: str, message: str) -> None:
    config = Config(views={"whole": View((64, 64)), "small": View((40, 20))})
    with pytest.raises(BackboneError, match=message):
        config.segments(text, default_view="whole")


def test_all_amounts_are_in_the_identity_and_others_are_refused() -> None:
    card = find_card("hand/gist")
    identity = Segment(card, View((64, 64))).identity({"sha256": ""}, "float32")
    assert identity["options"] == dict(card.options)
    assert identity["options"]["highest"] == 0.3
    assert identity["architecture"] == "hand/gist-1"
    with pytest.raises(BackboneError, match="were made with the amounts"):
        build_network(replace(card, options=(("cells", 10**9),)), Weights("formula"))


def test_groups_are_extracted_and_made_again(photos: Path, tmp_path: Path) -> None:
    config = Config(photos=photos, store=tmp_path / "s.zarr", dtype="float32")
    config = choose_tensors(config, "hand/arousal,hand/contrast,hand/lbp", {})
    featstore.extract(config)
    tensor = featstore.open(tmp_path / "s.zarr")["model"]
    names = [segment.name for segment in tensor.layout.segments]
    assert names == ["hand/arousal-1", "hand/contrast-1", "hand/lbp-1"]
    again = [segment_of(each, "model") for each in tensor.layout.segments]
    assert again == [Segment(find_card(name), View((256, 256)), "own") for name in names]
    values = np.asarray(tensor.read(np.arange(10)))
    assert values.shape == (10, 1 + 2 + 1357)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("command", [["extract", "-b", "hand/jpeg", "--store", "s"], ["codebook", "hog"]])
def test_what_to_install_is_said(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "skimage.py").write_text("raise ModuleNotFoundError(\"No module named 'skimage'\", name='skimage')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from featstore.cli import main; main()"
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.png")
    command = [sys.executable, "-c", code, *command, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "hand/... need skimage, which is not installed; pip install 'featstore[hand]'" in done.stderr
