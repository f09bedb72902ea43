"""Where weights come from, which ones they really are, and what happens when they cannot be had."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from featstore.backbones import CARDS, PACKAGED, Weights, WeightsPolicy, find_card, resolve_weights, say_missing
from featstore.backbones.digests import DigestCache
from featstore.backbones.networks import build_network, weights_digest
from featstore.backbones.sources import find_source
from featstore.errors import BackboneError, WeightsError
from featstore.identity import Segment

LITE0 = CARDS["tf_efficientnet_lite0"]
TINY = find_card("test_resnet")


@pytest.fixture
def policy(tmp_path: Path) -> WeightsPolicy:
    return WeightsPolicy(tmp_path / "weights")


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    return file


def test_resolution_order_is_named_file_then_folder_then_package(policy: WeightsPolicy, tiny_file: Path) -> None:
    assert resolve_weights(LITE0, policy).origin == "package"
    policy.folder.mkdir()
    in_folder = policy.folder / "tf_efficientnet_lite0.safetensors"
    in_folder.write_bytes(tiny_file.read_bytes())
    assert resolve_weights(LITE0, policy) == Weights("weights folder", in_folder)
    for key in ("tf_efficientnet_lite0", "lite0"):
        named = replace(policy, named={key: str(tiny_file)})
        assert resolve_weights(LITE0, named) == Weights("named file", tiny_file)
    assert resolve_weights(LITE0, replace(policy, named={"*": "random:3"})) == Weights("random", seed=3)


@pytest.mark.parametrize("name", sorted({text.partition(":")[0] for text in PACKAGED}))
def test_packaged_weights_fit_their_network_by_position(name: str, policy: WeightsPolicy) -> None:
    """The packages' tensors stand in timm's order: the network then knows a palace and a daisy."""
    from sklearn.datasets import load_sample_image

    card = find_card(name)
    weights = resolve_weights(card, policy)
    state = torch.load(weights.file, weights_only=True)
    full = timm.create_model(card.network, pretrained=False)
    full.load_state_dict(dict(zip(full.state_dict(), state.values(), strict=True)))
    ours = build_network(card, weights)
    for photo, imagenet_class in (("china.jpg", 698), ("flower.jpg", 985)):
        pixels = torch.from_numpy(load_sample_image(photo).copy()[None])
        with torch.inference_mode():
            (features,) = ours(pixels)
            logits = full.eval().classifier(features)
        assert features.shape == (1, 1280)
        assert imagenet_class in logits[0].topk(5).indices


def test_digest_is_of_the_weights_and_not_of_the_file(tmp_path: Path, tiny_file: Path) -> None:
    state = timm.create_model("test_resnet", pretrained=False)
    from safetensors.torch import load_file

    state.load_state_dict(load_file(tiny_file))
    torch.save({"state_dict": state.state_dict()}, tmp_path / "tiny.pth")
    digests = {
        weights_digest(build_network(TINY, Weights("named file", file))) for file in (tiny_file, tmp_path / "tiny.pth")
    }
    assert len(digests) == 1
    changed = dict(state.state_dict())
    changed["conv1.0.weight" if "conv1.0.weight" in changed else next(iter(changed))][0] += 1e-3
    save_file(changed, tmp_path / "changed.safetensors")
    assert weights_digest(build_network(TINY, Weights("named file", tmp_path / "changed.safetensors"))) not in digests


def test_half_precision_files_load_as_float32(tmp_path: Path, tiny_file: Path) -> None:
    from safetensors.torch import load_file

    half = {name: value.half() if value.is_floating_point() else value for name, value in load_file(tiny_file).items()}
    save_file(half, tmp_path / "half.safetensors")
    network = build_network(TINY, Weights("named file", tmp_path / "half.safetensors"))
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in network.parameters())


def test_random_weights_are_repeatable_and_leave_the_global_seed_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    digests = [weights_digest(build_network(TINY, Weights("random", seed=seed))) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.rand(3), expected)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_files_that_would_run_code_do_not_fit_or_are_damaged_are_refused(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": _Bomb()}, tmp_path / "bomb.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "half.safetensors").write_bytes(tiny_file.read_bytes()[:1000])
    other = timm.create_model("test_efficientnet", pretrained=False)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    for name, told in (
        ("bomb.pth", "cannot be read"),
        ("list.pth", "no dictionary of tensors"),
        ("half.safetensors", "cannot be read"),
        ("other.safetensors", "does not fit 'test_resnet'.*missing"),
    ):
        with pytest.raises(WeightsError, match=told):
            build_network(TINY, Weights("named file", tmp_path / name))
    assert not (tmp_path / "exploded").exists()


def test_missing_weights_say_which_file_and_where_to_put_it(policy: WeightsPolicy) -> None:
    with pytest.raises(WeightsError) as raised:
        resolve_weights(CARDS["resnet50"], policy)
    told = str(raised.value)
    for part in (str(policy.folder / "resnet50.safetensors"), "--weights resnet50=FILE", "--hub", "packaged"):
        assert part in told
    with pytest.raises(WeightsError, match="does not exist"):
        resolve_weights(LITE0, replace(policy, named={"lite0": "/nowhere/w.pth"}))
    with pytest.raises(WeightsError, match="expected one of"):
        resolve_weights(LITE0, replace(policy, named={"lite0": __file__}))
    with pytest.raises(WeightsError, match="random:0"):
        resolve_weights(LITE0, replace(policy, named={"lite0": "random:x"}))


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://localhost"}])
def test_offline_is_noticed_at_once(
    environment: dict[str, str], policy: WeightsPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    started = time.perf_counter()
    with pytest.raises(WeightsError, match="cannot be reached"):
        resolve_weights(CARDS["resnet50"], replace(policy, hub=True))
    assert time.perf_counter() - started < 3


def test_unknown_backbones_get_a_suggestion() -> None:
    with pytest.raises(BackboneError, match="did you mean 'resnet50'"):
        find_card("resnett50")
    with pytest.raises(BackboneError, match="'resnet50' has no weights 'no_such_tag'"):
        find_card("resnet50.no_such_tag")


@pytest.mark.parametrize("name", ["test_resnet", "test_mambaout", "test_vit", "convnext_atto.d2_in1k"])
def test_any_timm_model_has_a_card_of_its_true_width(name: str) -> None:
    card = find_card(name)
    segment = Segment(card, find_source(card.source).view(card))
    width, height = segment.view.size
    with torch.inference_mode():
        network = build_network(card, Weights("random", seed=0))
        (features,) = network(torch.zeros(1, height, width, 3, dtype=torch.uint8))
    assert features.shape == (1, segment.width)


def test_registry_widths_are_those_of_the_networks() -> None:
    for card in CARDS.values():
        if card.source == "timm":
            with torch.device("meta"):
                assert timm.create_model(card.network, pretrained=False).num_features == card.width


def test_the_cache_of_digests_survives_damage(tmp_path: Path) -> None:
    cache = DigestCache(tmp_path)
    assert cache.get(TINY, "abc") is None
    cache.put(TINY, "abc", "123")
    assert cache.get(TINY, "abc") == "123"
    cache.file.write_text("{half")
    assert cache.get(TINY, "abc") is None


@pytest.mark.skipif("FEATSTORE_TEST_DATA" not in os.environ, reason="needs FEATSTORE_TEST_DATA")
def test_real_xception_weights_load_with_their_own_epsilon(policy: WeightsPolicy) -> None:
    file = Path(os.environ["FEATSTORE_TEST_DATA"], "weights", "legacy_xception.safetensors")
    card = find_card("xception")
    network = build_network(card, Weights("named file", file))
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {module.eps for module in norms} == {1e-3}
    from sklearn.datasets import load_sample_image

    with torch.inference_mode():
        features = network(torch.from_numpy(load_sample_image("flower.jpg").copy()[None, 60:359, 170:469]))[0]
    assert features.shape == (1, 2048)
    assert np.isfinite(features.numpy()).all()
    assert 0.01 < float(features.mean()) < 1


def test_many_missing_weights_are_told_on_one_screen() -> None:
    cards = [find_card(name) for name in timm.list_models("vit_*", pretrained=True)[:100]]
    told = say_missing(cards, WeightsPolicy())
    assert "no weights for 100 backbones" in told
    assert "and 89 more: likewise" in told
    assert told.endswith("`--backbones packaged` needs no download")
    assert len(told.splitlines()) < 24
    assert len(told) <= 2000
