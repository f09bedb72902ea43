"""Fine-tuned networks, multi-residual blocks, the emotion network: their formulas, what moves, and an honest cache."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VGG
from torchvision.models.vgg import make_layers

import featstore
from featstore import Config, TensorSpec, View
from featstore.backbones.sources.python import register
from featstore.photos.views import Crop
from heads.errors import FeaturesError, UnknownSystemError
from heads.labels.target import Target
from heads.systems import find_system
from heads.systems.layers import Dropout
from heads.systems.pixels import Photos
from heads.systems.suhail import (
    VGG16,
    VGG16_FC,
    EmotionVgg,
    MultiResidual,
    TunedVgg,
    TunedVggTail,
    Vgg,
    last_block,
    last_convolution,
)
from heads.systems.trunks import Trunk
from heads.training.features import Features
from heads.training.learner import Learner

from ..conftest import Setting

PLAN, FC = "8,M,8,M,16,M,16,16,M,16,16,16,M", 16
SMALL_VGG = (f"plan={PLAN}", f"fc={FC}", "init_trunk=random")
RESNET = {"layers": "1,2,1,1", "width": 0.0625}
TWO = Target("regression", ("a", "b"))


def photos_of(side: int = 64, size: int = 56) -> Photos:
    return Photos((side, side, 3), size)


def pictures(n: int = 3, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


# ---- VGG-16


def test_it_is_torchvisions_vgg_without_the_last_layer() -> None:
    torch.manual_seed(0)
    ours = Vgg(PLAN, FC).eval()
    with torch.device("meta"):
        theirs = VGG(nn.Identity())
    theirs.features = make_layers([int(word) if word != "M" else word for word in PLAN.split(",")])
    theirs.classifier = nn.Sequential(nn.Linear(16 * 49, FC), nn.ReLU(), nn.Dropout(), nn.Linear(FC, FC), nn.ReLU())
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(pictures()), theirs.eval()(pictures()))


def test_torchvisions_weights_fit_and_so_many_of_them_are_trained() -> None:
    with torch.device("meta"):
        theirs = {name: value.shape for name, value in VGG(make_layers([*_vgg16()])).state_dict().items()}
        model = TunedVgg(photos_of(256, 224), Target("binary", ("liked",)), plan=VGG16, fc=VGG16_FC)
        tail = TunedVggTail((1, 196, 512), TWO, plan=VGG16, fc=VGG16_FC)
    ours = {name: value.shape for name, value in model.trunk.state_dict().items()}
    assert ours == {name: shape for name, shape in theirs.items() if not name.startswith("classifier.6.")}
    assert last_convolution(VGG16) == 28
    system = find_system("vgg16-finetune")
    (stage,) = system.stages(system.settle([]))
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    moving = sum(size for name, size in sizes.items() if name.startswith(stage.parameters))
    assert (round(sum(sizes.values()) / 1e6, 1), round(moving / 1e6, 1)) == (134.3, 121.9)
    kept = {name: value.shape for name, value in tail.trunk.state_dict().items()}
    assert kept == {name: shape for name, shape in ours.items() if name.startswith(("features.28.", "classifier."))}


def _vgg16() -> list[int | str]:
    return [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


@pytest.mark.parametrize("start", [0, 28])
def test_released_weights_are_those_that_it_has_a_place_for(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        part, whole = Vgg(VGG16, VGG16_FC, start=start), Vgg(VGG16, VGG16_FC)
    asked = []
    monkeypatch.setattr(  # there are no weights of VGG-16 here
        featstore, "released_weights", lambda *words: (asked.append(words), (whole.state_dict(), "digest"))[1]
    )
    policy = featstore.WeightsPolicy()
    assert part.released(policy).keys() == part.state_dict().keys()
    assert asked == [("torchvision:vgg16/IMAGENET1K_V1", policy)]
    with pytest.raises(UnknownSystemError, match="never released; say --set init_trunk=random"):
        Vgg(PLAN, FC).released(policy)


@pytest.mark.parametrize("plan", ["", "M,8", "8,x", "8,,8", "0,8", "8,-1"])
def test_a_plan_that_is_none_is_refused(plan: str) -> None:
    with pytest.raises(UnknownSystemError, match="expected widths of convolutions and M for max pooling"):
        Vgg(plan, FC)


# ---- the cache


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Vgg]:
    """A store of twelve photos: 64 x 64 pixels, and what of their centre a network gives its last convolution."""
    folder = tmp_path_factory.mktemp("cached")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(12):
        pixels = np.repeat(np.repeat(rng.integers(255, size=(9, 12, 3), dtype=np.uint8), 10, 0), 10, 1)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    torch.manual_seed(0)
    net = Vgg(PLAN, FC)
    layer = f"features.{last_convolution(PLAN) - 1}"
    featstore.extract(
        Config(
            photos=folder / "photos",
            store=folder / "features.zarr",
            views={"square": View((64, 64)), "centre": View((56, 56), crop=Crop("squash", 56 / 64))},
            tensors=(
                TensorSpec("px", "pixels", ("pixels@square",)),
                TensorSpec("conv5_2", "stack", (f"{register(net)}/{layer}:tokens@centre",)),
            ),
            dtype="float32",
            engine="eager",
        )
    )
    return folder / "features.zarr", net


def test_training_from_the_cache_is_training_from_the_same_crop_of_the_pixels(
    cached: tuple[Path, Vgg], features_of: Callable[..., Features]
) -> None:
    store, net = cached
    labels = (np.random.default_rng(1).random((12, 2)) - 0.5).astype(np.float32)
    said = {}
    for tensor, name, changes in (
        ("px", "vgg16-finetune", ("crop=56", "random=false", "flip=false")),
        ("conv5_2", "vgg16-finetune-cached", ()),
    ):
        setting = Setting(features_of(store, tensor), labels, TWO, np.zeros(12, np.int64))
        problem = setting.problem(name, *SMALL_VGG, *changes, "epochs=3", "lr=0.1", "batch=4")
        learner = Learner(problem, setting.job(fit=np.arange(8), inner=np.arange(0), test=np.arange(8, 12)))
        trunk, head = learner.inside.get_submodule("trunk"), learner.inside.get_submodule("head")
        trunk.load_state_dict({key: net.state_dict()[key] for key in trunk.state_dict()})
        head.load_state_dict({"weight": torch.full((2, FC), 0.1), "bias": torch.zeros(2)})
        (group,) = setting.features.groups()
        (first,) = learner.predict(group)
        for _ in range(3):
            learner.begin_epoch()
            learner.learn(group)
            learner.end_epoch()
        (last,) = learner.predict(group)
        assert (last.outputs - first.outputs).abs().max() > 1e-2, "it has learnt something"
        said[tensor] = first.outputs, last.outputs
    for pixels, maps in zip(*said.values(), strict=True):
        assert torch.allclose(pixels, maps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(2, 9, 16), (1, 8, 16), (1, 9, 15)])
def test_what_is_no_map_of_that_layer_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FeaturesError, match=r"a square map of 16 features.*/features\.17:tokens@centre"):
        TunedVggTail(shape, TWO, plan=PLAN, fc=FC)


# ---- fine-tuning


@pytest.mark.parametrize(
    ("name", "n_trained", "first", "last"),
    [
        ("resnet50", 30, "net.layer4.0.conv1.weight", "net.layer4.2.bn3.bias"),
        ("lite0", 12, "net.blocks.6.0.conv_pw.weight", "net.bn2.bias"),
        ("legacy_xception", 19, "net.block12.skip.weight", "net.bn4.bias"),
        ("vit_tiny_patch16_224", 14, "net.blocks.11.norm1.weight", "net.norm.bias"),
        ("torchvision:vgg11", 6, "net.features.18.weight", "net.classifier.3.bias"),
    ],
)
def test_the_last_block_and_what_stands_behind_it(name: str, n_trained: int, first: str, last: str) -> None:
    found = last_block(name)
    assert (len(found), found[0], found[-1]) == (n_trained, first, last)


def test_a_network_whose_blocks_nobody_knows_is_refused() -> None:
    with pytest.raises(UnknownSystemError, match="say --set tune=all or tune=head"):
        last_block("youtube8m")


@pytest.mark.parametrize(("tune", "moving"), [("all", ""), ("last", "trunk.net.layer4."), ("head", "head.")])
def test_nothing_else_moves_than_what_is_tuned(
    tune: str, moving: str, tmp_path: Path, write_store: Callable[..., None], features_of: Callable[..., Features]
) -> None:
    """Parameters, and the running statistics of batch norms too."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(12, 40, 40, 3), dtype=np.uint8)
    write_store(tmp_path / "px.zarr", [f"{n}.jpg" for n in range(12)], {"px": pixels})
    labels = rng.random((12, 2)).astype(np.float32) - 0.5
    setting = Setting(features_of(tmp_path / "px.zarr", "px"), labels, TWO, np.zeros(12, np.int64))
    small = ("init_trunk=random", *(f"{key}={value}" for key, value in RESNET.items()))
    problem = setting.problem("resnet50-finetune", *small, f"tune={tune}", "crop=32", "batch=4", "head_factor=10")
    learner = Learner(problem, setting.job(fit=np.arange(12), inner=np.arange(0), test=np.arange(0)))
    before = {name: value.clone() for name, value in learner.inside.state_dict().items()}
    assert not before["head.linear.weight"].any(), "what it says at first does not depend on the photo"
    (group,) = setting.features.groups()
    for _ in range(2):
        learner.begin_epoch()
        learner.learn(group)
        learner.end_epoch()
    after = learner.inside.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith((moving, "head."))}
    (stage,) = problem.system.stages(problem.options)
    assert (stage.factor("head.weight"), stage.factor("trunk.net.x")) == (pytest.approx(10), 1)
    assert (stage.leaves("head.weight"), stage.leaves("head.bias")) == (False, True), "biases do not decay"


# ---- multi-residual


def multi_residual(k: int, seed: int = 0) -> MultiResidual:
    torch.manual_seed(seed)
    trunks = [Trunk("resnet50", **RESNET) for _ in range(k)]
    for trunk in trunks:
        draw_norms(trunk)
    model = MultiResidual(photos_of(), TWO, trunks[0], trunks[1:])
    nn.init.normal_(model.head.linear.weight)
    return model


def draw_norms(model: nn.Module) -> None:
    """Weights of batch norms that are not 0, as timm begins the last one of each block."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_begins_as_its_trunk(k: int, training: bool) -> None:
    model = multi_residual(k).train(training)
    expected = model.head(model.trunk.pooled(pictures()))
    assert torch.allclose(model.outputs(pictures()), expected, atol=1e-6)


def test_a_block_adds_each_of_its_functions_to_what_it_gets() -> None:
    model = multi_residual(3).double().eval()
    draw_norms(model.branches)
    maps = model.trunk.stem(pictures().double())
    for number, block in enumerate(block for stage in model.trunk.stages for block in stage):
        around = maps
        if block.downsample is not None:
            convolution, norm = block.downsample
            around = normal(norm, nn.functional.conv2d(maps, convolution.weight, stride=convolution.stride))
        functions = [block, *(branch[number] for branch in model.branches)]
        maps = (around + sum(bottleneck(each, maps) for each in functions)).clamp_min(0)
    expected = model.head(maps.mean((2, 3)))
    assert torch.allclose(model.outputs(pictures().double()), expected, atol=1e-10)


def bottleneck(block: nn.Module, maps: Tensor) -> Tensor:
    """1x1, 3x3 and 1x1 convolutions, each with batch norm; ReLU between them."""
    stride = block.conv2.stride
    maps = normal(block.bn1, nn.functional.conv2d(maps, block.conv1.weight)).clamp_min(0)
    maps = normal(block.bn2, nn.functional.conv2d(maps, block.conv2.weight, stride=stride, padding=1)).clamp_min(0)
    return normal(block.bn3, nn.functional.conv2d(maps, block.conv3.weight))


def normal(norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    spread = (norm.running_var + norm.eps).sqrt().view(shape)
    return (maps - norm.running_mean.view(shape)) / spread * norm.weight.view(shape) + norm.bias.view(shape)


def test_a_block_of_k_functions_has_k_times_the_weights() -> None:
    model = multi_residual(3)
    blocks = [block for stage in model.trunk.stages for block in stage]
    first = sum(p.numel() for each in blocks for name, p in each.named_parameters() if "downsample" not in name)
    assert sum(p.numel() for p in model.branches.parameters()) == 2 * first
    assert len({p.data_ptr() for p in model.parameters()}) == len([*model.parameters()]), "each has its own"


@pytest.mark.parametrize("name", ["resnet18", "seresnet50", "lite0"])
def test_a_trunk_of_other_blocks_is_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(UnknownSystemError, match="resnet50"):
        MultiResidual(photos_of(), TWO, Trunk(name), [])


# ---- the emotion network


def emotion(size: int = 48, width: int = 4, fc: int = 6) -> EmotionVgg:
    torch.manual_seed(0)
    return EmotionVgg(Photos((56, 56, 3), size, random=False, flip=False), TWO, width=width, fc=fc)


def test_a_block_is_convolution_relu_local_response_norm_batch_norm() -> None:
    block = emotion().double().eval().blocks[1]
    norm = block[3]
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var)
    maps = 30 * torch.randn(2, 4, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = nn.functional.conv2d(maps, block[0].weight, block[0].bias, padding=1).clamp_min(0).detach().numpy()
    scaled = np.zeros_like(x)
    for channel in range(x.shape[1]):  # a window of five channels, cut off at the ends
        near = x[:, max(0, channel - 2) : channel + 3]
        scaled[:, channel] = x[:, channel] / (1 + 1e-4 / 5 * (near**2).sum(1)) ** 0.75
    assert (scaled[x > 0] / x[x > 0]).min() < 0.95, "the norm does something"
    expected = normal(norm, torch.from_numpy(scaled))
    pooled = expected[:, :, :8, :8].reshape(2, 8, 4, 2, 4, 2).amax((3, 5))
    assert torch.allclose(block(maps), pooled, atol=1e-12)


def test_its_widths_rates_and_dropout_are_those_of_the_paper_or_said_to_be_ours() -> None:
    system = find_system("emotion-vgg")
    options = system.settle([])
    with torch.device("meta"):
        model = system.build(((256, 256, 3),), Target("multiclass", ("emotion",), tuple("abcdef")), options)
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1]
    assert shapes == [
        (64, 3, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (512, 256, 3, 3),
        (1024, 512 * 7 * 7), (1024, 1024), (1024, 1024), (6, 1024),
    ]  # fmt: skip
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 29
    assert [each.p for each in model.modules() if isinstance(each, Dropout)] == [0.5, 0.6, 0.6]
    paper = {
        "optimiser": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "lr_factor": 0.5,
        "lr_every": 5,
        "crop": 224,
        "random": False,
    }
    assert {name: options[name] for name in paper} == paper
    assert (model.photos.random, model.photos.flip) == (False, False)


def test_a_crop_that_it_halves_away_is_refused() -> None:
    assert emotion(size=32)(torch.zeros(2, 56, 56, 3, dtype=torch.uint8)).shape == (2, 2)
    with pytest.raises(UnknownSystemError, match=r"halves a photo 5 times.*32 pixels or more; found --set crop=31"):
        emotion(size=31)


def test_it_learns_which_way_stripes_run(
    tmp_path: Path, write_store: Callable[..., None], features_of: Callable[..., Features]
) -> None:
    rng = np.random.default_rng(0)
    n, side = 96, 32
    across = rng.integers(2, size=n)
    wave = 127 + 100 * np.sin(0.7 * np.arange(side) + rng.uniform(0, 6, size=(n, 1)))
    stripes = np.repeat(wave[:, None, :], side, 1)
    photos = np.where(across[:, None, None] == 1, stripes, stripes.transpose(0, 2, 1))[..., None]
    pixels = (photos + rng.normal(0, 20, (n, side, side, 3))).clip(0, 255).astype(np.uint8)
    write_store(tmp_path / "px.zarr", [f"{i}.jpg" for i in range(n)], {"px": pixels})
    target, labels = Target("multiclass", ("way",), ("down", "across")), across[:, None].astype(np.float32)
    setting = Setting(features_of(tmp_path / "px.zarr", "px"), labels, target, np.zeros(n, np.int64))
    problem = setting.problem("emotion-vgg", "width=4", "fc=16", "crop=32", "epochs=12", "batch=16", "lr=0.05")
    (trained,) = setting.train(problem, setting.job(fit=np.arange(64), inner=np.arange(0), test=np.arange(64, n)))
    assert (trained.predicted.argmax(1) == across[64:]).mean() > 0.9
