"""The view `model`: the picture that a network's authors give it, to the pixel."""

import io
import itertools

import numpy as np
import pytest
import timm
from PIL import Image
from timm.data import create_transform

from featstore.backbones import CARDS, find_card
from featstore.backbones.sources import find_source
from featstore.errors import ConfigError
from featstore.extraction.pipeline import make_frames
from featstore.photos import views
from featstore.photos.decoding import EncodedPhoto
from featstore.photos.views import SQUARE, WHOLE, Crop, View, resize

MEAN = (0.5, 0.4, 0.3)
FILL = (128, 102, 76)


def draw(width: int, height: int, cell: int = 8) -> Image.Image:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("shape", [(640, 480), (333, 500), (100, 700), (60, 50), (1001, 17), (224, 224)])
def test_every_crop_is_timms_to_the_pixel(mode: str, shape: tuple[int, int]) -> None:
    image = draw(*shape)
    sizes, fractions = [(224, 224), (299, 299), (256, 192)], [1.0, 0.9, 0.875, 1.15]
    for size, fraction, how in itertools.product(sizes, fractions, ["bicubic", "bilinear"]):
        theirs = create_transform(
            input_size=(3, size[1], size[0]),
            interpolation=how,
            crop_pct=fraction,
            crop_mode=mode,
            mean=MEAN,
            normalize=False,
        )(image)
        crop = Crop(mode, fraction, FILL if mode == "border" else None)  # type: ignore[arg-type]
        (ours,) = resize(image, View(size, interpolation=how, crop=crop), b"")
        np.testing.assert_array_equal(ours, theirs.permute(1, 2, 0).numpy())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name",
    [
        "convnext_tiny",
        "legacy_xception",
        "lite2",
        "resnet50",
        "vit_base_patch16_clip_224.openai",
        "vit_base_patch16_siglip_224.webli",
        "vit_small_patch14_dinov2.lvd142m",
    ],
)
def test_the_picture_of_a_network_is_that_of_its_weights(name: str) -> None:
    card = find_card(name)
    facts = timm.get_pretrained_cfg(card.released or card.name)
    assert facts is not None
    data = timm.data.resolve_data_config(pretrained_cfg=facts.to_dict())
    theirs = create_transform(**data, normalize=False)
    image = draw(700, 500)
    (ours,) = resize(image, find_source(card.source).view(card), b"")
    np.testing.assert_array_equal(ours, theirs(image).permute(1, 2, 0).numpy())  # type: ignore[union-attr]
    assert (card.mean, card.std) == (tuple(data["mean"]), tuple(data["std"]))


def test_the_cards_of_the_papers_say_which_released_weights_they_mean() -> None:
    for card in CARDS.values():
        if card.source == "timm":
            assert card.hub == (None if card.page else f"timm/{card.released}")  # a page has its file for a person
            assert timm.is_model(card.network)
            assert card.released.partition(".")[0] == card.network
        else:
            assert find_source(card.source).view(card) == (SQUARE if card.source == "hand" else WHOLE)


def test_a_large_jpeg_is_decoded_in_part_and_cut_in_the_same_place() -> None:
    """A photo of 12 million pixels comes at a quarter of its size; what is cut out is where timm cuts."""
    image = draw(4001, 3003, cell=150)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    view = View((224, 224), interpolation="bicubic", crop=Crop("center", 0.875))
    photo = EncodedPhoto(file.getvalue())
    (ours,) = make_frames(photo, [view], b"")[view]
    assert photo.decode(view.source_size).width < 4001
    whole = Image.open(file).convert("RGB")
    theirs = create_transform(input_size=(3, 224, 224), interpolation="bicubic", crop_pct=0.875, normalize=False)(whole)
    apart = np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy().astype(int))  # type: ignore[union-attr]
    assert apart.mean() < 1
    assert apart.max() <= 16


def test_a_photo_as_narrow_as_a_ruler_is_not_resized_to_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View((224, 224), interpolation="bicubic", crop=Crop("center", 0.875))
    for shape in ((3001, 37), (40, 1777)):
        (whole,) = resize(draw(*shape), view, b"")
        with monkeypatch.context() as patch:
            patch.setattr(views, "LARGEST_RESIZED", 100_000)
            (part,) = resize(draw(*shape), view, b"")
        assert np.abs(whole.astype(int) - part).max() <= 2  # one more rounding
    (narrow,) = resize(Image.new("RGB", (60_000, 8), (9, 8, 7)), view, b"")
    assert (narrow == (9, 8, 7)).all()


@pytest.mark.parametrize("wrong", [("middle", 0.9), ("center", 0.0), ("center", 2.5)])
def test_a_crop_that_makes_no_sense_is_refused(wrong: tuple[str, float]) -> None:
    with pytest.raises(ConfigError, match="the mode is one of"):
        Crop(*wrong)  # type: ignore[arg-type]


def test_a_crop_is_a_fact_of_the_view() -> None:
    for crop in (None, Crop("center", 0.9), Crop("border", 1.0, FILL)):
        view = View((224, 224), interpolation="bicubic", crop=crop)
        assert View.from_facts(view.facts()) == view
        assert ("crop" in view.facts()) == (crop is not None)
