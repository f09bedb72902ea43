"""Logits: what a whole network with its own classifier says of a photo, held against timm and torchvision."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import nn
from torchvision import models  # type: ignore[import-untyped]

import featstore
from featstore import Config, TensorSpec, WeightsPolicy
from featstore.backbones import Output, Weights, find_card
from featstore.backbones.networks import Network, build_network, weights_digest
from featstore.backbones.registry import CARDS
from featstore.backbones.sources import with_classifier
from featstore.errors import BackboneError, ConfigError, FeatstoreError, WeightsError

from .old_checkpoint import save_as_python_2
from .released import CLOSE, apart, noise, normalise, released

LOGITS = (Output(pooling="logits"),)


def whole(name: str, file: Path) -> Network:
    return build_network(with_classifier(find_card(name)), Weights("named file", file), LOGITS)


@pytest.mark.parametrize("tag", ["test_resnet.r160_in1k", "test_vit.r160_in1k", "test_efficientnet.r160_in1k"])
def test_logits_are_what_timms_network_says(tag: str, tmp_path: Path) -> None:
    theirs = released(tag)
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, tmp_path / "net.safetensors")
    ours, blocks = whole(tag, tmp_path / "net.safetensors"), noise(tag, 2)
    with torch.inference_mode():
        (found,) = ours(blocks)
        assert found.shape == (2, 1000)
        assert apart(found, theirs(normalise(tag, blocks))) < CLOSE


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])  # a linear classifier, and a convolution
def test_logits_are_what_torchvisions_network_says(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = models.get_model(name).eval()
    save_file(theirs.state_dict(), tmp_path / "net.safetensors")
    ours = whole(f"torchvision:{name}", tmp_path / "net.safetensors")
    blocks = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        (found,) = ours(blocks)
        assert apart(found, theirs((blocks.permute(0, 3, 1, 2).float() - ours.mean) / ours.std)) < CLOSE


def test_logits_and_the_own_feature_have_the_weights_that_they_are_made_of(tmp_path: Path) -> None:
    """A classifier trained anew makes other logits and the same feature: only the identity of the logits changes."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / f"photos/{name}.png")
    net = released("test_resnet.r160_in1k")
    file = tmp_path / "weights" / "test_resnet.safetensors"
    file.parent.mkdir()
    state = dict(net.state_dict())
    save_file(state, file)
    spec = TensorSpec("model", "concat", ("test_resnet@model", "test_resnet:logits@model"))
    config = Config(
        photos=tmp_path / "photos",
        weights=WeightsPolicy(file.parent),
        tensors=(spec,),
        dtype="float32",
        engine="eager",
    )
    identities = []
    for at in range(2):
        store = tmp_path / f"{at}.zarr"
        featstore.extract(replace(config, store=store))
        tensor = featstore.open(store)["model"]
        assert [(each.name, each.width) for each in tensor.layout.segments] == [
            ("test_resnet", 96),
            ("test_resnet:logits", 1000),
        ]
        identities.append([each.identity for each in tensor.layout.segments])
        save_file({**state, "fc.weight": -state["fc.weight"]}, file)
    (own, logits), (own_then, logits_then) = identities
    assert own == own_then
    assert own["weights"] != logits["weights"] != logits_then["weights"]
    assert logits["pooling"] == "logits"
    assert all(each.within for each in featstore.recompute(store, 2, weights=config.weights).comparisons)

    facts = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    transform = create_transform(**resolve_data_config(pretrained_cfg=facts.to_dict()))  # type: ignore[union-attr]
    pixels = torch.stack([transform(Image.open(tmp_path / f"photos/{name}.png")) for name in "ab"])
    with torch.inference_mode():
        expected = net(pixels)
    assert apart(torch.from_numpy(featstore.open(tmp_path / "0.zarr")["model"][:][:, 96:]), expected) < CLOSE


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("vit_base_patch16_clip_224.openai:logits", BackboneError, "was released without a classifier"),  # projects
        ("dinov2_small:logits", BackboneError, "was released without a classifier"),
        ("youtube8m:logits", BackboneError, "'youtube8m' has no classifier.*timm and torchvision have them"),
        ("hand/arousal:logits", BackboneError, "has no classifier that is known"),
        ("test_resnet/layer3:logits", ConfigError, "classifies only its last layer"),
    ],
)
def test_networks_and_layers_without_a_classifier_have_no_logits(
    text: str, error: type[FeatstoreError], told: str
) -> None:
    with pytest.raises(error, match=told):
        Config().segments(text, default_view="model")


def test_weights_without_the_classifier_make_features_and_no_logits(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", pretrained=False, num_classes=0).state_dict()
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit 'test_resnet'.*missing \('fc|missing \(fc"):
        whole("test_resnet", tmp_path / "net.safetensors")


# ---- Places365


def test_places365_is_read_as_it_is_downloaded_from_python_2(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = models.resnet18(num_classes=365).eval()
    file = tmp_path / "resnet18_places365.pth.tar"
    save_as_python_2(theirs.state_dict(), file, epoch=90, arch="resnet18", best_prec1=54.7, by="Andr\xe9")
    card = with_classifier(find_card("resnet18_places365"))
    weights = featstore.backbones.resolve_weights(card, WeightsPolicy(tmp_path))
    assert weights.file == file
    ours = build_network(card, weights, LOGITS)
    blocks = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        pixels = (blocks.permute(0, 3, 1, 2).float() - ours.mean) / ours.std
        assert apart(ours(blocks)[0], theirs(pixels)) < CLOSE
        (feature,) = build_network(find_card("resnet18_places365"), weights)(blocks)
        theirs.fc = nn.Identity()  # type: ignore[assignment]
        assert apart(feature, theirs(pixels)) < CLOSE


def test_its_weights_are_those_of_the_same_network_in_another_file(tmp_path: Path) -> None:
    state = models.resnet18(num_classes=365).state_dict()
    save_as_python_2(state, tmp_path / "old.pth.tar")
    save_file(state, tmp_path / "new.safetensors")
    digests = {weights_digest(whole("resnet18_places365", tmp_path / f)) for f in ("old.pth.tar", "new.safetensors")}
    assert len(digests) == 1


def test_no_call_of_an_old_file_is_made(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    file = tmp_path / "resnet18_places365.pth.tar"
    save_as_python_2({"conv1.weight": torch.zeros(1)}, file, best_prec1=Bomb())
    with pytest.raises(WeightsError, match=r"cannot be read without running what it names \(GLOBAL \w+.mkdir\)"):
        whole("resnet18_places365", file)
    assert not (tmp_path / "exploded").exists()


def test_missing_weights_say_where_they_are(tmp_path: Path) -> None:
    for name in ("resnet18_places365", "resnet50_places365"):
        with pytest.raises(WeightsError) as told:
            featstore.backbones.resolve_weights(CARDS[name], WeightsPolicy(tmp_path))
        assert f"http://places2.csail.mit.edu/models_places365/{name}.pth.tar and put it into {tmp_path}" in str(
            told.value
        )
