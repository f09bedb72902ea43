"""The networks that timm lacks: what they compute, and how their weights are saved, loaded and refused."""

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from featstore.backbones import CARDS, PAPER_SETS, Output, Weights, WeightsPolicy, find_card, resolve_weights, shapes
from featstore.backbones.digests import DigestCache
from featstore.backbones.dual_encoding import VideoEncoder
from featstore.backbones.networks import Network, build_network, weights_digest
from featstore.backbones.object_graph import Graph
from featstore.engines.eager import EagerEngine
from featstore.errors import BackboneError, WeightsError

OURS = {"youtube8m": 3862, "dual_encoding": 2048, "object_graph": 2048}


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    """Each with the random weights of seed 0."""
    return {name: _build(name, Weights("random", seed=0)) for name in OURS}


@pytest.fixture(scope="module")
def blocks() -> NDArray[np.uint8]:
    """Three blocks as the grid of AMTL cuts them."""
    return _noise(3, height=100, width=150)


@pytest.fixture(scope="module")
def features(networks: dict[str, Network], blocks: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """(3, F) of each, block by block."""
    return {
        name: np.concatenate([_run(network, block[None]) for block in blocks]) for name, network in networks.items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied at once: a file of weights is half a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_the_11414_set_is_11414_wide() -> None:
    assert [CARDS[name].width for name in PAPER_SETS["mediaeval"]] == [1408, 2048, 3862, 2048, 2048]


@pytest.mark.parametrize("name", OURS)
def test_identity_says_that_the_network_is_ours_and_which_version(name: str) -> None:
    assert CARDS[name].facts()["architecture"] == f"featstore/{name}-1"
    assert CARDS["resnet152"].facts()["architecture"] == "timm/resnet152"


@pytest.mark.parametrize("name", OURS)
def test_each_block_becomes_one_finite_vector(name: str, features: dict[str, NDArray[np.float32]]) -> None:
    assert features[name].shape == (3, OURS[name])
    assert np.isfinite(features[name]).all()
    assert not np.array_equal(features[name][0], features[name][1])


@pytest.mark.parametrize("name", ["youtube8m", "dual_encoding"])
def test_whole_photos_of_600x400(name: str, networks: dict[str, Network]) -> None:
    assert np.isfinite(_run(networks[name], _noise(1, height=400, width=600))).all()


@pytest.mark.slow
def test_a_whole_photo_with_fifty_objects() -> None:
    network = build_network(CARDS["object_graph"], Weights("random", seed=0))
    found = _run(network, _noise(1, height=400, width=600))
    assert found.shape == (1, 2048)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", OURS)
def test_a_block_does_not_depend_on_those_beside_it(
    name: str, networks: dict[str, Network], features: dict[str, NDArray[np.float32]], blocks: NDArray[np.uint8]
) -> None:
    together = _run(networks[name], blocks)
    assert np.abs(together - features[name]).max() <= 1e-5 * np.abs(features[name]).max()


@pytest.mark.parametrize("name", OURS)
def test_a_seed_gives_the_same_features_again_and_another_seed_others(
    name: str, networks: dict[str, Network], features: dict[str, NDArray[np.float32]], blocks: NDArray[np.uint8]
) -> None:
    again, other = (_build(name, Weights("random", seed=seed)) for seed in (0, 1))
    for network in (networks[name], again):
        assert np.array_equal(_run(network, blocks[:1]), features[name][:1])
    assert not np.allclose(_run(other, blocks[:1]), features[name][:1], rtol=1e-3)
    assert weights_digest(again) == weights_digest(networks[name]) != weights_digest(other)


@pytest.mark.parametrize("name", OURS)
def test_frozen_networks_keep_no_gradients(name: str, networks: dict[str, Network], blocks: NDArray[np.uint8]) -> None:
    assert not any(parameter.requires_grad for parameter in networks[name].parameters())
    assert not any(module.training for module in networks[name].modules())
    (output,) = networks[name](torch.from_numpy(blocks[:1]))
    assert not output.requires_grad
    assert output.grad_fn is None


def test_a_block_too_small_for_the_network_is_reported(networks: dict[str, Network]) -> None:
    engine = EagerEngine(networks["youtube8m"], CARDS["youtube8m"], device=torch.device("cpu"))
    with pytest.raises(BackboneError, match="'youtube8m' cannot run on blocks of 40x30"):
        engine.run(torch.from_numpy(_noise(1, height=30, width=40)))


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_saved_weights_give_the_same_features(
    name: str,
    suffix: str,
    networks: dict[str, Network],
    features: dict[str, NDArray[np.float32]],
    blocks: NDArray[np.uint8],
    folder: Path,
) -> None:
    file = _save(_state(networks[name]), folder / f"{name}{suffix}")
    weights = resolve_weights(CARDS[name], WeightsPolicy(folder))
    assert weights == Weights("weights folder", file)
    loaded = _build(name, weights)
    assert np.array_equal(_run(loaded, blocks[:1]), features[name][:1])
    digest = weights_digest(loaded)
    assert digest == weights_digest(networks[name])
    cache = DigestCache(folder)
    cache.put(CARDS[name], "of the file", digest)
    assert cache.get(CARDS[name], "of the file") == digest


@pytest.mark.parametrize(
    ("name", "lost", "misshapen"),
    [
        ("youtube8m", "top.conv.bias", "top.reduce.bias"),
        ("dual_encoding", "trunk.conv1.weight", "top.rnn.bias_hh_l0"),
        ("object_graph", "graph.gcn.1.weight", "detector.roi_heads.box_head.fc6.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    name: str, lost: str, misshapen: str, networks: dict[str, Network], folder: Path
) -> None:
    state = _state(networks[name])
    del state[lost]
    state[misshapen] = torch.zeros(3)
    state["classifier.weight"] = torch.zeros(2)  # timm's networks may come with one, ours may not
    file = _save(state, folder / f"{name}.safetensors")
    with pytest.raises(WeightsError) as raised:
        _build(name, Weights("named file", file))
    for told in (
        f"does not fit {name!r}",
        f"1 missing ({lost})",
        f"1 of another shape ({misshapen})",
        "1 not of this network (classifier.weight)",
    ):
        assert told in str(raised.value)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("hub", [False, True])
def test_without_weights_the_ways_out_are_named(name: str, hub: bool, tmp_path: Path) -> None:
    policy = WeightsPolicy(tmp_path / "weights", hub=hub)
    with pytest.raises(WeightsError) as raised:
        resolve_weights(CARDS[name], policy)
    for told in (
        "no public weights exist",
        str(policy.folder / f"{name}.safetensors"),
        f"--weights {name}=FILE",
        f"featstore import {name} --from FILE",
        "--allow-missing",
        f"--weights {name}=random:0",
    ):
        assert told in str(raised.value)
    assert "--hub" not in str(raised.value)
    assert resolve_weights(CARDS[name], replace(policy, named={name: "random:0"})) == Weights("random", seed=0)


def test_a_network_is_built_once_to_find_out_its_shapes() -> None:
    shapes._trunk.cache_clear()
    assert [shapes.shape_of(find_card("test_vit"), Output(), (160, 160)) for _ in range(2)] == [(1, 64)] * 2
    assert shapes.layers_of(find_card("test_vit"))[-1] == "blocks.5"
    assert shapes._trunk.cache_info().misses == 1


def test_youtube8m_convolves_along_the_features(networks: dict[str, Network]) -> None:
    top = networks["youtube8m"].net.top
    w = _arrays(top)
    trunk = np.random.default_rng(1).random((2, 2048))
    published = trunk @ w["reduce.weight"].T + w["reduce.bias"]
    padded = np.pad(published / np.linalg.norm(published, axis=1, keepdims=True), ((0, 0), (1, 1)))
    filtered = sum(padded[:, k : k + 1024, None] * w["conv.weight"][:, 0, k] for k in range(3)) + w["conv.bias"]
    halved = np.maximum(filtered, 0).reshape(2, 512, 2, 64).max(2)
    logits = halved.reshape(2, -1).astype(np.float32) @ w["classify.weight"].T + w["classify.bias"]
    _assert_close(top(torch.from_numpy(trunk).float()), 1 / (1 + np.exp(-logits)))


@pytest.mark.parametrize("n_frames", [1, 5])
def test_dual_encoding_joins_three_levels(n_frames: int) -> None:
    torch.manual_seed(3)
    encoder = VideoEncoder().eval().requires_grad_(False)
    norm = encoder.visual_mapping["bn_1"]
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(values, 0.5, 2)
    w = _arrays(encoder)
    given = np.random.default_rng(2).random((2, n_frames, 2048))
    frames = given / np.linalg.norm(given, axis=2, keepdims=True)
    outputs = np.concatenate(
        [_gru(frames, w, direction=""), _gru(frames[:, ::-1], w, direction="_reverse")[:, ::-1]], axis=2
    )

    scores = np.tanh(outputs @ w["atten.fc1.weight"].T + w["atten.fc1.bias"]) @ w["atten.fc2.weight"].T
    weighed = outputs * np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    local = []
    for i, kernel in enumerate((2, 3, 4, 5)):
        padded = np.pad(weighed, ((0, 0), (kernel - 1, kernel - 1), (0, 0)))
        answers = [
            np.einsum("nkf,okf->no", padded[:, start : start + kernel], w[f"convs1.{i}.weight"][:, 0])
            for start in range(n_frames + kernel - 1)
        ]
        local.append(np.maximum(np.stack(answers, 1) + w[f"convs1.{i}.bias"], 0).max(1))

    levels = np.concatenate([weighed.sum(1), *local, frames.mean(1)], axis=1)
    mapped = levels @ w["visual_mapping.fc1.weight"].T + w["visual_mapping.fc1.bias"]
    bn = {name.rpartition(".")[2]: value for name, value in w.items() if "bn_1" in name}
    mapped = (mapped - bn["running_mean"]) / np.sqrt(bn["running_var"] + 1e-5) * bn["weight"] + bn["bias"]
    expected = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
    _assert_close(encoder(torch.from_numpy(given).float()), expected)


def test_a_photo_is_a_video_of_one_frame(networks: dict[str, Network]) -> None:
    net = networks["dual_encoding"].net
    pixels = torch.rand(1, 3, 64, 64)
    assert torch.equal(net(pixels), net.top(net.trunk(pixels)[:, None]))
    assert float(net(pixels).norm()) == pytest.approx(1)


@pytest.mark.parametrize("n_objects", [1, 6])
def test_object_graph_convolves_over_alike_objects(n_objects: int) -> None:
    torch.manual_seed(4)
    graph = Graph().eval().requires_grad_(False)
    for name, values in graph.named_parameters():
        if "norm" in name:
            nn.init.uniform_(values, -1, 1)
    w = _arrays(graph)
    given = np.random.default_rng(5).random((n_objects, 2048))
    alike = ((given @ w["wq.weight"].T + w["wq.bias"]) @ (given @ w["wk.weight"].T + w["wk.bias"]).T) ** 2
    edges = alike / alike.sum(1, keepdims=True)
    x = given
    for i in range(2):
        x = edges @ x @ w[f"gcn.{i}.weight"]
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        x = np.maximum(x * w[f"gcn.{i}.norm.weight"] + w[f"gcn.{i}.norm.bias"], 0)
    _assert_close(graph(torch.from_numpy(given).float()), x.mean(0))
    with torch.autocast("cpu", dtype=torch.float16):
        _assert_close(graph(torch.from_numpy(given).float()), x.mean(0))


def test_objects_are_the_best_boxes_and_the_photo_where_they_are_too_few(networks: dict[str, Network]) -> None:
    net = networks["object_graph"].net
    image = torch.from_numpy(_noise(1, height=100, width=150)[0]).permute(2, 0, 1) / 255
    boxes = net.find(image)
    assert boxes.shape == (net.n_objects, 4)
    corners = boxes.view(-1, 2, 2)
    assert bool((corners[:, 0] < corners[:, 1]).all())
    assert bool((corners <= torch.tensor([150, 100])).all())

    heads = net.detector.roi_heads
    scores = net.detector([image])[0]["scores"]
    usual, heads.score_thresh = heads.score_thresh, float(scores[:2].mean())  # leaves the best one
    some = net.find(image)
    heads.score_thresh = 2.0
    none = net.find(image)
    heads.score_thresh = usual
    assert torch.equal(some, torch.stack([boxes[0], torch.tensor([0.0, 0, 150, 100])]))
    assert none.tolist() == [[0, 0, 150, 100]]


def test_an_object_graph_lets_nobody_record_it(networks: dict[str, Network]) -> None:
    """Replayed on a photo with fewer objects a recording would be wrong without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch would rather not trace any more; OpenVINO still asks it to
        with pytest.raises(RuntimeError, match="cannot be recorded"):
            torch.jit.trace(networks["object_graph"].net, torch.rand(1, 3, 100, 150), check_trace=False)


def test_a_photo_without_objects_is_described_by_itself(networks: dict[str, Network]) -> None:
    net = networks["object_graph"].net
    image = torch.rand(3, 224, 224)
    usual, net.detector.roi_heads.score_thresh = net.detector.roi_heads.score_thresh, 2.0
    found = net(image[None])[0]
    net.detector.roi_heads.score_thresh = usual
    whole = net.trunk((image[None] - net.mean) / net.std)
    assert bool(found.isfinite().all())
    _assert_close(found, net.graph(whole).numpy())


def _build(name: str, weights: Weights) -> Network:
    """The network; the object graph's with two objects and a coarse look, which takes a second instead of twelve."""
    network = build_network(CARDS[name], weights).to(memory_format=torch.channels_last)  # as engines run it
    if name == "object_graph":
        network.net.n_objects = network.net.detector.roi_heads.detections_per_img = 2
        network.net.detector.transform.min_size = (96,)
    return network


def _run(network: Network, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return network(torch.from_numpy(blocks))[0].numpy()


def _noise(n: int, *, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def _state(network: Network) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in network.net.state_dict().items()}


def _save(state: dict[str, Tensor], file: Path) -> Path:
    if file.suffix == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    return file


def _arrays(module: nn.Module) -> dict[str, NDArray[np.float32]]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def _gru(frames: NDArray[np.float64], w: dict[str, NDArray[np.float32]], *, direction: str) -> NDArray[np.float64]:
    """(N, frames, F) -> (N, frames, F / 2): one direction of a gated recurrent unit."""
    from_input, from_state = w[f"rnn.weight_ih_l0{direction}"].T, w[f"rnn.weight_hh_l0{direction}"].T
    state = np.zeros((len(frames), from_state.shape[0]))
    outputs = []
    for t in range(frames.shape[1]):
        r_in, z_in, n_in = np.split(frames[:, t] @ from_input + w[f"rnn.bias_ih_l0{direction}"], 3, axis=1)
        r_state, z_state, n_state = np.split(state @ from_state + w[f"rnn.bias_hh_l0{direction}"], 3, axis=1)
        reset, keep = 1 / (1 + np.exp(-r_in - r_state)), 1 / (1 + np.exp(-z_in - z_state))
        state = (1 - keep) * np.tanh(n_in + reset * n_state) + keep * state
        outputs.append(state)
    return np.stack(outputs, 1)


def _assert_close(ours: Tensor, expected: NDArray[np.floating]) -> None:
    assert ours.shape == expected.shape
    assert np.abs(ours.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
