"""OpenCLIP's picture towers: built, loaded and given pictures as open_clip does it."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from featstore.backbones import BackboneName, Output, WeightsPolicy, find_card
from featstore.backbones.fitting import fit
from featstore.errors import BackboneError, WeightsError
from featstore.photos.views import GRID

from .held import network, normalised, photo, picture, run

open_clip = pytest.importorskip("open_clip")
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TINY: dict[str, dict[str, Any]] = {
    "tiny-vit": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "tiny-resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "tiny-timm": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "resnet18", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
        "text_cfg": TEXT,
    },
}
LAYERS = {"tiny-vit": "blocks.1", "tiny-resnet": "layer4", "tiny-timm": "layer4"}
"""The last of each."""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of whole networks, text included, as open_clip saves them."""
    place = tmp_path_factory.mktemp("weights")
    for name, config in TINY.items():
        open_clip.factory._MODEL_CONFIGS[name] = config  # as open_clip.add_model_config does with a file
        state = _theirs(name)[0].state_dict()
        save_file({key: value.clone() for key, value in state.items()}, place / f"open_clip--{name}.safetensors")
    return place


def _theirs(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=None)
    return net.eval(), preprocess


@pytest.mark.parametrize("name", TINY)
def test_the_own_feature_is_that_of_encode_image(name: str, folder: Path) -> None:
    ours, (theirs, preprocess) = network(f"open_clip:{name}", folder), _theirs(name)
    blocks = picture(find_card(f"open_clip:{name}"), photo())
    pixels = normalised(ours, blocks)
    torch.testing.assert_close(preprocess(photo())[None], pixels, rtol=0, atol=1e-5)
    with torch.inference_mode():
        expected = theirs.encode_image(pixels)
        found = theirs.visual.forward_intermediates(pixels)["image_intermediates"]
    own, last, first = run(ours, blocks, [Output(), Output("", "avg"), Output(ours.trunk.layers[0], "max")])
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, found[-1].mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, found[0].amax((2, 3)), rtol=1e-4, atol=1e-5)
    assert ours.trunk.layers[-1] == LAYERS[name]
    assert not any(name.startswith(("text", "transformer.resblocks.0.text")) for name in ours.net.state_dict())


def test_tokens_and_the_class_token_of_a_vit(folder: Path) -> None:
    ours = network("open_clip:tiny-vit", folder)
    blocks = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    tokens, token = run(ours, blocks, [Output("blocks.0", "tokens"), Output("blocks.0", "cls")])
    assert tokens.shape == (2, 16, 32)
    assert token.shape == (2, 32)
    with pytest.raises(BackboneError, match="no class token"):
        run(network("open_clip:tiny-resnet", folder), torch.zeros(1, 64, 64, 3, dtype=torch.uint8), [Output("", "cls")])


def test_weights_that_were_trained_with_quickgelu_run_with_it() -> None:
    """open_clip itself only warns, and gives other features."""
    openai, laion = find_card("open_clip:ViT-B-32/openai"), find_card("open_clip:ViT-B-32/laion2b_s34b_b79k")
    named = find_card("open_clip:ViT-B-32-quickgelu/openai")
    assert openai.architecture == named.architecture == "open_clip/ViT-B-32-quickgelu"
    assert laion.architecture == "open_clip/ViT-B-32"


def test_the_files_of_a_tag_are_those_of_open_clip_on_the_hub() -> None:
    card = find_card("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert card.hub == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert "model.safetensors" not in card.files  # which is that of transformers there


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ViT-B32/openai", "unknown network 'ViT-B32'; near ones are ViT-B-32"),
        ("ViT-B-32/laion2b_s34b_b79", "has no weights 'laion2b_s34b_b79'; near ones are laion2b_s34b_b79k"),
        ("ViT-B-32/zzz", "it has openai, "),
    ],
)
def test_unknown_names_are_answered(name: str, says: str) -> None:
    with pytest.raises(BackboneError, match=says):
        find_card(f"open_clip:{name}")


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    other = str(folder / "open_clip--tiny-resnet.safetensors")
    with pytest.raises(WeightsError, match="does not fit 'open_clip:tiny-vit'"):
        network("open_clip:tiny-vit", folder, **{"open_clip:tiny-vit": other})


def test_blocks_of_a_grid_are_resized_for_a_network_of_one_size(folder: Path) -> None:
    _, view, told = fit(find_card("open_clip:tiny-vit", WeightsPolicy(folder)), GRID)
    assert view.block == (32, 32)
    assert "takes pictures of 32x32 only" in told


def test_a_name_has_a_tag_before_a_layer_or_none() -> None:
    assert BackboneName.parse("open_clip:RN50/layer3:max") == BackboneName("open_clip:RN50", "layer3", "max")
    assert BackboneName.parse("open_clip:ViT-B-32/blocks.3") == BackboneName("open_clip:ViT-B-32", "blocks.3")
    assert BackboneName.parse("open_clip:ViT-B-32/openai/*") == BackboneName("open_clip:ViT-B-32/openai", "*")
    assert BackboneName.parse("open_clip:ViT-B-32/openai/blocks.3:cls") == BackboneName(
        "open_clip:ViT-B-32/openai", "blocks.3", "cls"
    )
