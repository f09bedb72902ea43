"""Networks fine-tuned from pixels, and an emotion network that begins at random (Suhail et al.)."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

import featstore
from heads.errors import FeaturesError, UnknownSystemError
from heads.labels.target import Target
from heads.systems.layers import Dropout, LinearMap
from heads.systems.pixels import FromPixels, Photos
from heads.systems.registry import register
from heads.systems.system import (
    KINDS,
    OURS,
    Option,
    Options,
    Shape,
    Stage,
    System,
    by_gradient,
    from_pixels,
    without_early_stopping,
)
from heads.systems.trunks import OnTrunk, Trunk, initial_option, trunk_of, trunk_options

PAPER = "Suhail, Kumar and Balagopalan, Aesthetic rating and emotion analysis"
VGG16 = "64,64,M,128,128,M,256,256,256,M,512,512,512,M,512,512,512,M"
VGG16_FC = 4096
VGG16_RELEASED = "torchvision:vgg16/IMAGENET1K_V1"
POOLING = "M"
CELLS = 7
"""VGG-16 pools its last map to 7 x 7 places, which changes nothing of a crop of 224 x 224 pixels."""
BLOCKS = 4
UNDECAYED = ("*.bias",)
"""Weight decay does not pull biases to 0 (ours; Caffe's networks have it so)."""


class Vgg(nn.Module):
    """VGG-16 without its last layer, or what of it stands from one layer on; torchvision's weights fit, by its names.

    Simonyan and Zisserman, "Very deep convolutional networks", configuration D.

    Args:
        plan: widths of the convolutions and M for max pooling, in their order.
        fc: width of the two fully connected layers.
        start: the number of the first layer of `features` that is there.
    """

    def __init__(self, plan: str, fc: int, *, start: int = 0) -> None:
        super().__init__()
        self._is_released = (plan, fc) == (VGG16, VGG16_FC)
        self.features = _layers_of(plan)[start:]  # they keep their numbers, and so the names of their weights
        self.classifier = nn.Sequential(
            nn.Linear(_widths(plan)[-1] * CELLS**2, fc),
            nn.ReLU(),
            Dropout(0.5),
            nn.Linear(fc, fc),
            nn.ReLU(),
            Dropout(0.5),
        )
        for layer in self.modules():  # as torchvision draws them
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Pictures (N, 3, height, width), or maps of the layer before `start` -> (N, fc)."""
        cells = nn.functional.adaptive_avg_pool2d(self.features(maps), CELLS)
        out: Tensor = self.classifier(cells.flatten(1))
        return out

    def released(self, policy: featstore.WeightsPolicy) -> dict[str, Tensor]:
        """The weights of torchvision's VGG-16 that it has a place for.

        Raises:
            UnknownSystemError: it has other widths.
            featstore.FeatstoreError: they are not to be had, or do not fit.
        """
        if not self._is_released:
            raise UnknownSystemError(
                "a VGG with a plan or an fc of its own was never released; say --set init_trunk=random"
            )
        state, own = featstore.released_weights(VGG16_RELEASED, policy)[0], self.state_dict()
        return {name: value for name, value in state.items() if name in own}


class TunedVgg(FromPixels):
    """VGG-16 with a new last layer: `Vgg`, then linear."""

    def __init__(self, photos: Photos, target: Target, *, plan: str, fc: int, ten_crops: bool = False) -> None:
        super().__init__(photos, target, ten_crops=ten_crops)
        self.trunk = Vgg(plan, fc)
        self.head = nn.Linear(fc, target.n_outputs)

    def outputs(self, pictures: Tensor) -> Tensor:
        """(N, 3, height, width) -> (N, n_outputs)."""
        out: Tensor = self.head(self.trunk(pictures))
        return out


class TunedVggTail(nn.Module):
    """What of `TunedVgg` is trained: it reads what the frozen layers say of a photo, conv5_2 after its ReLU.

    Args:
        shape: of a stored map, (1, h w, F), row by row.

    Raises:
        FeaturesError: it is not square, or not as wide as what the last convolution reads.
    """

    def __init__(self, shape: Shape, target: Target, *, plan: str, fc: int) -> None:
        super().__init__()
        start = last_convolution(plan)
        self.trunk = Vgg(plan, fc, start=start)
        self.head = nn.Linear(fc, target.n_outputs)
        width = (3, *_widths(plan))[-2]
        n_backbones, n_places, n_features = shape
        self._side = isqrt(n_places)
        if n_backbones != 1 or self._side**2 != n_places or n_features != width:
            raise FeaturesError(
                f"'vgg16-finetune-cached' reads a square map of {width} features of one network, what stands before "
                f"its last convolution; a row of this tensor is of {n_backbones} backbones, {n_places} places and "
                f"{n_features} features; say featstore extract --tensor "
                f"conv5_2=stack:{VGG16_RELEASED}/features.{start - 1}:tokens@centre"
            )

    def forward(self, features: Tensor) -> Tensor:
        """(N, 1, h w, F) -> (N, n_outputs)."""
        maps = features[:, 0].transpose(1, 2).reshape(len(features), -1, self._side, self._side)
        out: Tensor = self.head(self.trunk(maps))
        return out


class MultiResidual(FromPixels):
    """A ResNet whose blocks add k functions of what they get, x + f_1(x) + ... + f_k(x), each with its own batch norms.

    f_1 is the trunk's. The last batch norm of each other f begins at 0, so that the network begins as its trunk. The
    way around a block, with its projection where the width changes, is one for all.

    Abdi and Nahavandi, "Multi-residual networks"; but activations come after the sum, as in the trunk, and not before
    the convolutions.

    Args:
        trunk: of bottlenecks, as ResNet-50.
        others: k - 1 random ones of the same kind, whose f are taken.

    Raises:
        UnknownSystemError: the trunk has other blocks.
    """

    def __init__(
        self, photos: Photos, target: Target, trunk: Trunk, others: Sequence[Trunk], *, ten_crops: bool = False
    ) -> None:
        super().__init__(photos, target, ten_crops=ten_crops)
        self.trunk = trunk
        _check_bottlenecks(trunk)
        self.branches = nn.ModuleList(nn.ModuleList(Residual(block) for block in _blocks(each)) for each in others)
        self.head = LinearMap(trunk.n_features, target.n_outputs)

    def outputs(self, pictures: Tensor) -> Tensor:
        """(N, 3, height, width) -> (N, n_outputs)."""
        maps = self.trunk.stem(pictures)
        for block, *others in zip(_blocks(self.trunk), *self.branches, strict=True):
            around = maps if block.downsample is None else block.downsample(maps)
            maps = block.act3(sum((other(maps) for other in others), residual(block, maps) + around))
        out: Tensor = self.head(maps.mean((2, 3)))
        return out


class Residual(nn.Module):
    """What a bottleneck adds to what it gets, as a module of its own that begins as 0."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name in ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3"):
            self.add_module(name, block.get_submodule(name))
        nn.init.zeros_(self.get_parameter("bn3.weight"))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, F, height, width) -> the same, or smaller by the stride of the block."""
        return residual(self, maps)


def residual(block: Any, maps: Tensor) -> Tensor:
    """What a bottleneck of timm adds to what goes around it."""
    inner = block.act1(block.bn1(block.conv1(maps)))
    inner = block.act2(block.bn2(block.conv2(inner)))
    out: Tensor = block.bn3(block.conv3(inner))
    return out


class EmotionVgg(FromPixels):
    """Four blocks of convolution, ReLU, local response normalisation and batch normalisation; four linear layers.

    Each block ends in max pooling by 2, and the last in one more: 224 pixels become 7. Dropout is .5 after the first
    layer, .6 after the next two.

    Args:
        width: of the first convolution; each next one is twice as wide.
        fc: of the three layers.

    Raises:
        UnknownSystemError: the crop has fewer than 32 pixels.
    """

    def __init__(self, photos: Photos, target: Target, *, width: int, fc: int, ten_crops: bool = False) -> None:
        super().__init__(photos, target, ten_crops=ten_crops)
        side = photos.tall >> BLOCKS + 1
        if not side:
            raise UnknownSystemError(
                f"'emotion-vgg' halves a photo {BLOCKS + 1} times, so that it needs crops of {2 << BLOCKS} pixels or "
                f"more; found --set crop={photos.tall}"
            )
        widths = [3, *(width << n for n in range(BLOCKS))]
        self.blocks = nn.Sequential(*(_emotion_block(*pair) for pair in pairwise(widths)), nn.MaxPool2d(2))
        self.layers = nn.Sequential(
            *(nn.Linear(widths[-1] * side**2, fc), nn.ReLU(), Dropout(0.5)),
            *(nn.Linear(fc, fc), nn.ReLU(), Dropout(0.6)),
            *(nn.Linear(fc, fc), nn.ReLU(), Dropout(0.6)),
            nn.Linear(fc, target.n_outputs),
        )

    def outputs(self, pictures: Tensor) -> Tensor:
        """(N, 3, size, size) -> (N, n_outputs)."""
        out: Tensor = self.layers(self.blocks(pictures).flatten(1))
        return out


def last_convolution(plan: str) -> int:
    """The number of the last convolution among the layers of a VGG; of VGG-16 it is 28, conv5_3."""
    return max(n for n, layer in enumerate(_layers_of(plan)) if isinstance(layer, nn.Conv2d))


@cache
def last_block(name: str, layers: str = "", width: float = 1.0) -> tuple[str, ...]:
    """The names of the parameters of a trunk from its last block on.

    Those of layer4 of a ResNet; of blocks.6 of EfficientNet-lite 0, and of the convolution behind it; of the last block
    and the norm of a ViT. What its blocks are says timm, or else the names of layers that featstore takes.

    Raises:
        UnknownSystemError: nothing says what its blocks are.
    """
    with torch.device("meta"):  # names are all that counts
        trunk = Trunk(name, layers=layers, width=width)
    names = [each for each, _ in trunk.net.named_parameters()]
    numbers = [_number_of_block(trunk, each) for each in names]
    if max(numbers) < 0:
        raise UnknownSystemError(
            f"nothing says which block of trunk {name!r} is the last; say --set tune=all or tune=head"
        )
    return tuple(f"net.{each}" for each in names[numbers.index(max(numbers)) :])


def _number_of_block(trunk: Trunk, name: str) -> int:
    """Of the block that a parameter is in; -1 if it is in none."""
    net: Any = trunk.net
    if hasattr(net, "group_matcher"):
        matcher = net.group_matcher(coarse=True)["blocks"]
        found = re.match(matcher if isinstance(matcher, str) else matcher[0][0], name)
        return int(found[1]) if found else -1
    return max((n for n, layer in enumerate(trunk.layer_names) if name.startswith(f"{layer}.")), default=-1)


def _emotion_block(n_inputs: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_inputs, n_outputs, 3, padding=1),
        nn.ReLU(),
        nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),  # Torch7's own numbers: alpha / 5 times each square
        nn.BatchNorm2d(n_outputs),
        nn.MaxPool2d(2),
    )


def _layers_of(plan: str) -> nn.Sequential:
    """The convolutions of a VGG, each with its ReLU, and the poolings between them.

    Raises:
        UnknownSystemError: the plan is none.
    """
    layers: list[nn.Module] = []
    before = 3
    for word in _words(plan):
        if word == POOLING:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(before, int(word), 3, padding=1), nn.ReLU()]
            before = int(word)
    return nn.Sequential(*layers)


def _widths(plan: str) -> list[int]:
    """Those of the convolutions of a VGG."""
    return [int(word) for word in _words(plan) if word != POOLING]


def _words(plan: str) -> list[str]:
    """
    Raises:
        UnknownSystemError: the plan is none.
    """
    words = plan.upper().replace(" ", "").split(",")
    if words[0] == POOLING or not all(word == POOLING or (word.isdecimal() and int(word)) for word in words):
        raise UnknownSystemError(
            f"--set plan={plan}: expected widths of convolutions and M for max pooling, a convolution first, as {VGG16}"
        )
    return words


def _blocks(trunk: Trunk) -> list[Any]:
    """Those of all stages of a ResNet."""
    return [block for stage in trunk.stages for block in stage.children()]


def _check_bottlenecks(trunk: Trunk) -> None:
    """
    Raises:
        UnknownSystemError: it is no ResNet, or its blocks have more in them, or less, than three convolutions.
    """
    from timm.models.resnet import Bottleneck

    for block in _blocks(trunk):
        if not isinstance(block, Bottleneck) or block.se is not None or not isinstance(block.aa, nn.Identity):
            raise UnknownSystemError(
                f"'multi-residual' takes ResNets of plain bottlenecks, as resnet50, resnet101 or wide_resnet50_2; "
                f"trunk {trunk.name!r} is of other blocks"
            )


def _photos(shape: Shape, options: Options) -> Photos:
    return Photos(shape, options["crop"], random=options["random"], flip=options["flip"])


def _tuned_vgg(shapes: tuple[Shape, ...], target: Target, options: Options) -> TunedVgg:
    (shape,) = shapes
    photos = _photos(shape, options)
    return TunedVgg(photos, target, plan=options["plan"], fc=options["fc"], ten_crops=options["ten_crops"])


def _tuned_vgg_tail(shapes: tuple[Shape, ...], target: Target, options: Options) -> TunedVggTail:
    (shape,) = shapes
    return TunedVggTail(shape, target, plan=options["plan"], fc=options["fc"])


def _tuned(shapes: tuple[Shape, ...], target: Target, options: Options) -> OnTrunk:
    """The last layer begins at 0, which leaves the trunk alone until it says something."""
    (shape,) = shapes
    trunk = trunk_of(options)
    head = LinearMap(trunk.n_features, target.n_outputs)
    return OnTrunk(trunk.photos(shape, options), target, trunk, head, ten_crops=options["ten_crops"])


def _multi_residual(shapes: tuple[Shape, ...], target: Target, options: Options) -> MultiResidual:
    (shape,) = shapes
    trunk, *others = (trunk_of(options) for _ in range(options["k"]))
    return MultiResidual(trunk.photos(shape, options), target, trunk, others, ten_crops=options["ten_crops"])


def _emotion_vgg(shapes: tuple[Shape, ...], target: Target, options: Options) -> EmotionVgg:
    (shape,) = shapes
    photos = _photos(shape, options)
    return EmotionVgg(photos, target, width=options["width"], fc=options["fc"], ten_crops=options["ten_crops"])


def _from_last_convolution_on(options: Options) -> tuple[Stage, ...]:
    last = f"trunk.features.{last_convolution(options['plan'])}."
    return (Stage(options["epochs"], options["lr"], (last, "trunk.classifier.", "head."), undecayed=UNDECAYED),)


def _as_told(options: Options) -> tuple[Stage, ...]:
    moving: tuple[str, ...] = ("",)
    if options["tune"] != "all":
        moving = ("head.",)
    if options["tune"] == "last":
        block = last_block(options["trunk"], options["layers"], options["width"])
        moving += tuple(f"trunk.{name}" for name in block)
    rates = {"head.": options["lr"] * options["head_factor"]}
    return (Stage(options["epochs"], options["lr"], moving, rates=rates, undecayed=UNDECAYED),)


def _all(options: Options) -> tuple[Stage, ...]:
    return (Stage(options["epochs"], options["lr"], undecayed=UNDECAYED),)


def _fine_tuning(**own: Option) -> dict[str, Option]:
    """The options of all networks that are fine-tuned; the paper says none of these."""
    return {
        **own,
        "optimiser": Option("sgd", OURS, choices=("adam", "adamw", "sgd")),
        "lr": Option(1e-3, OURS, low=0),
        "momentum": Option(0.9, OURS, low=0, high=1),
        "weight_decay": Option(5e-4, f"{OURS}; none of biases", low=0),
        "batch": Option(32, OURS, low=1),
        "epochs": Option(20, OURS, low=1),
        **without_early_stopping(),
    }


def _vgg_options() -> dict[str, Option]:
    return _fine_tuning(
        plan=Option(VGG16, "Simonyan and Zisserman, D: widths of convolutions, and M for max pooling"),
        fc=Option(VGG16_FC, "Simonyan and Zisserman: width of the two fully connected layers", low=1),
        init_trunk=initial_option("imagenet", PAPER),
    )


register(
    System(
        name="vgg16-finetune",
        title="VGG-16 from pixels: its last convolution and what follows are trained",
        source=f"{PAPER}: 56.8 % on AADB, high or low",
        reads=("pixels",),
        kinds=KINDS,
        options=from_pixels(
            OURS,
            **_vgg_options(),
            random=Option(True, "ours: training sees a crop of each photo that it draws; false: the centre"),
        ),
        build=_tuned_vgg,
        stages=_from_last_convolution_on,
        init=("trunk",),
    )
)

register(
    System(
        name="vgg16-finetune-cached",
        title="VGG-16 from stored maps of conv5_2, which its last convolution reads",
        source=f"{PAPER}, from what its frozen layers say of the photo",
        reads=("stack",),
        kinds=KINDS,
        options=by_gradient(
            OURS,
            **_vgg_options(),
            standardise=Option(False, "the map is what the next convolution was trained on"),
        ),
        build=_tuned_vgg_tail,
        stages=_from_last_convolution_on,
        init=("trunk",),
    )
)

register(
    System(
        name="resnet50-finetune",
        title="any network from pixels, fine-tuned: all of it, its last block, or its new last layer",
        source=f"{PAPER}: 54.3 % on Photonet",
        reads=("pixels",),
        kinds=KINDS,
        options=from_pixels(
            OURS,
            **_fine_tuning(
                **trunk_options("resnet50", PAPER),
                tune=Option("all", f"{OURS}: all, last (block) or head", choices=("all", "last", "head")),
                head_factor=Option(1.0, "ours: times lr, the rate of the new last layer", low=0),
            ),
        ),
        build=_tuned,
        stages=_as_told,
        init=("trunk",),
    )
)

register(
    System(
        name="multi-residual",
        title="a ResNet whose blocks have k residual functions side by side",
        source=f"Abdi and Nahavandi, Multi-residual networks; proposed by {PAPER}, without a figure",
        reads=("pixels",),
        kinds=KINDS,
        options=from_pixels(
            OURS,
            **_fine_tuning(
                **trunk_options("resnet50", "ours: so that weights of ImageNet can be had"),
                k=Option(2, "ours: residual functions of a block; with 1 it is the trunk", low=1),
            ),
        ),
        build=_multi_residual,
        stages=_all,
        init=("trunk",),
    )
)

register(
    System(
        name="emotion-vgg",
        title="four blocks with local response normalisation, from random weights",
        source=f"{PAPER}: 55 % of 6 emotions",
        reads=("pixels",),
        kinds=KINDS,
        options=from_pixels(
            OURS,
            width=Option(64, f"{OURS}: of the first convolution; each next one is twice as wide", low=1),
            fc=Option(1024, f"{OURS}: of the three fully connected layers", low=1),
            random=Option(False, f"{PAPER}: the centre, in training too"),
            flip=Option(False, f"{PAPER} says nothing of it"),
            crop=Option(224, f"{PAPER}, of 256", low=1),
            optimiser=Option("sgd", PAPER, choices=("adam", "adamw", "sgd")),
            lr=Option(0.1, PAPER, low=0),
            lr_factor=Option(0.5, PAPER, low=0, high=1),
            lr_every=Option(5, f"{PAPER}: epochs after which the rate is multiplied by lr_factor", low=1),
            momentum=Option(0.9, PAPER, low=0, high=1),
            weight_decay=Option(0.0, f"{OURS}: none", low=0),
            batch=Option(32, OURS, low=1),
            epochs=Option(20, OURS, low=1),
            **without_early_stopping(),
        ),
        build=_emotion_vgg,
        init=(),
    )
)
