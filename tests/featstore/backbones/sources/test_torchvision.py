"""torchvision's networks: built, loaded and given pictures as torchvision does it."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision.transforms.functional as F  # type: ignore[import-untyped]
from torch import nn
from torchvision import models  # type: ignore[import-untyped]

from featstore.backbones import BackboneName, Output, WeightsPolicy, find_card, resolve_weights
from featstore.backbones.networks import build_network
from featstore.backbones.shapes import layers_of, shape_of, takes
from featstore.errors import BackboneError, MissingWeightsError, WeightsError

from .held import network, normalised, photo, picture, run

SMALL = {"squeezenet1_1": 512, "shufflenet_v2_x0_5": 1024, "resnet18": 512, "mobilenet_v3_small": 1024}
"""One with a convolution for a classifier, and some whose classifier has one layer or two: their widths."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State dicts of the networks as torchvision builds them, with random weights."""
    place = tmp_path_factory.mktemp("weights")
    for name in SMALL:
        torch.manual_seed(0)
        torch.save(models.get_model(name).state_dict(), place / f"torchvision--{name}--{_default(name)}.pth")
    return place


@pytest.mark.parametrize("name", SMALL)
def test_own_feature_is_the_input_of_the_last_layer_of_the_classifier(name: str, folder: Path) -> None:
    ours = network(f"torchvision:{name}", folder)
    blocks = picture(find_card(f"torchvision:{name}"), photo())
    theirs = models.get_model(name).eval()
    theirs.load_state_dict(torch.load(next(folder.glob(f"*--{name}--*")), weights_only=True))
    seen: list[torch.Tensor] = []
    last = [each for each in theirs.modules() if isinstance(each, nn.Linear | nn.Conv2d)][-1]
    last.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.inference_mode():
        theirs(normalised(ours, blocks))
    expected = seen[0] if seen[0].ndim == 2 else seen[0].relu().mean((2, 3))
    (feature,) = run(ours, blocks)
    assert feature.shape == (1, SMALL[name])
    torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet50/IMAGENET1K_V1", "resnet50/IMAGENET1K_V2", "inception_v3", "efficientnet_b3", "vit_b_16"]
)
@pytest.mark.parametrize("size", [(287, 401), (640, 331)])
def test_the_picture_is_that_of_the_preset_to_the_pixel(name: str, size: tuple[int, int]) -> None:
    card = find_card(f"torchvision:{name}")
    preset = models.get_model_weights(card.network)[card.released].transforms()
    image = photo(*size)
    resized = F.resize(image, preset.resize_size, interpolation=preset.interpolation, antialias=True)
    expected = F.pil_to_tensor(F.center_crop(resized, preset.crop_size)).permute(1, 2, 0)
    assert torch.equal(picture(card, image)[0], expected)
    assert (card.mean, card.std) == (tuple(preset.mean), tuple(preset.std))


def test_layers_are_what_the_modules_return_in_one_pass(folder: Path) -> None:
    ours = network("torchvision:resnet18", folder)
    blocks = picture(find_card("torchvision:resnet18"), photo())
    assert ours.trunk.layers == ("layer1", "layer2", "layer3", "layer4")
    own, third, largest = run(ours, blocks, [Output(), Output("layer3", "avg"), Output("", "max")])
    seen = []
    net = models.get_model("resnet18").eval()
    net.load_state_dict(torch.load(next(folder.glob("*--resnet18--*")), weights_only=True))
    for layer in (net.layer3, net.layer4):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        net(normalised(ours, blocks))
    torch.testing.assert_close(third, seen[0].mean((2, 3)))
    torch.testing.assert_close(largest, seen[1].amax((2, 3)))
    torch.testing.assert_close(own, seen[1].mean((2, 3)))


def test_a_layer_is_not_what_the_next_one_makes_of_it_in_place() -> None:
    assert layers_of(find_card("torchvision:vgg11"))[:3] == ("features.0", "features.1", "features.2")
    assert BackboneName.parse("torchvision:vgg11/features.0:max") == BackboneName(
        "torchvision:vgg11", "features.0", "max"
    )
    policy = WeightsPolicy(named={"*": "random:0"})
    card = find_card("torchvision:squeezenet1_1")
    net = build_network(card, resolve_weights(card, policy))
    blocks = torch.randint(0, 255, (1, 64, 64, 3), dtype=torch.uint8)
    before, after = run(net, blocks, [Output("features.0", "tokens"), Output("features.1", "tokens")])
    assert before.min() < 0 <= after.min()


def test_tokens_of_a_vit_and_a_swin_are_its_patches() -> None:
    vit, swin = find_card("torchvision:vit_b_32"), find_card("torchvision:swin_t")
    assert shape_of(vit, Output("encoder.layers.encoder_layer_3", "tokens"), (224, 224)) == (49, 768)
    assert shape_of(vit, Output("", "cls"), (224, 224)) == (1, 768)
    assert shape_of(swin, Output("features.1", "tokens"), (224, 224)) == (56 * 56, 96)
    assert not takes(vit, (150, 100))


def test_the_default_weights_go_by_both_names() -> None:
    plain, full = find_card("torchvision:resnet50"), find_card("torchvision:resnet50/IMAGENET1K_V2")
    assert plain == full
    assert plain.architecture == "torchvision/resnet50"
    assert BackboneName.parse("torchvision:resnet50/layer3:max") == BackboneName(
        "torchvision:resnet50", "layer3", "max"
    )
    assert BackboneName.parse("torchvision:resnet50/IMAGENET1K_V2/layer3").layer == "layer3"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet5", "near ones are resnet"),
        ("resnet50/IMAGENET1K_V3", "has the weights IMAGENET1K_V1, IMAGENET1K_V2"),
        ("deeplabv3_resnet50", "does not classify pictures"),
    ],
)
def test_unknown_names_are_answered(name: str, says: str) -> None:
    with pytest.raises(BackboneError, match=says):
        find_card(f"torchvision:{name}")


def test_weights_are_found_where_torch_keeps_them_and_only_if_they_are_what_their_name_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    card, policy = find_card("torchvision:squeezenet1_1"), WeightsPolicy(tmp_path / "none")
    with pytest.raises(MissingWeightsError, match=r"allow the download from https://download.pytorch.org"):
        resolve_weights(card, policy)
    assert card.url is not None
    cached = tmp_path / "hub" / "checkpoints" / Path(card.url).name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(next(folder.glob("*squeezenet*")).read_bytes())
    with pytest.raises(WeightsError, match="its name says another SHA-256"):
        resolve_weights(card, policy)
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    right = cached.rename(cached.with_name(f"squeezenet1_1-{digest[:8]}.pth"))
    assert resolve_weights(replace(card, url=f"https://example.org/{right.name}"), policy).file == right


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    policy = WeightsPolicy(folder, {"torchvision:resnet50": str(next(folder.glob("*--resnet18--*")))})
    card = find_card("torchvision:resnet50")
    with pytest.raises(WeightsError, match="does not fit 'torchvision:resnet50/IMAGENET1K_V2'"):
        build_network(card, resolve_weights(card, policy))


def _default(name: str) -> str:
    return str(models.get_model_weights(name).DEFAULT.name)
