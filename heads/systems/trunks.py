"""Trunks: networks by name, without their classifier, that are trained from pixels."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import featstore
from heads.errors import UnknownSystemError
from heads.labels.target import Target
from heads.systems.pixels import FromPixels, Photos
from heads.systems.system import Option, Options, Shape

_OF_SIZES = re.compile(r"size|height|width|shape|dimension|spatial", re.IGNORECASE)
"""In what a network says of pictures that are too small for it, or not of the only size that it takes."""
CHANNELS = (64, 128, 256, 512)
"""Of the four stages of a ResNet, before they are widened."""


class Trunk(nn.Module):
    """A network without its classifier, with random weights until it is given others.

    Args:
        name: as `featstore extract --backbones` takes it.
        layers: of a ResNet of timm, how many blocks each of its four stages has, as `1,1,1,1`; as released if empty.
        width: of a ResNet, how many times as wide as released it is.

    Raises:
        UnknownSystemError: `layers` or `width` is said of another network, or is none.
        featstore.FeatstoreError: no such network.
    """

    def __init__(self, name: str, *, layers: str = "", width: float = 1.0) -> None:
        super().__init__()
        self.name = name
        self._smaller = _smaller(layers, width)
        try:
            opened = featstore.open_trainable(name, options=self._smaller)
        except featstore.FeatstoreError as error:
            if not self._smaller:
                raise
            raise UnknownSystemError(
                f"trunk {name!r} takes no layers and width, which are of ResNets: {error}"
            ) from error
        self.net = opened.net
        self._opened = opened
        self.mean, self.std = opened.mean, opened.std

    def photos(self, shape: Shape, options: Options) -> Photos:
        """The crops of stored photos of that shape that it sees, by the options `crop` and `flip`.

        Raises:
            FeaturesError: a stored photo is smaller than the crop.
        """
        return Photos(shape, options["crop"], flip=options["flip"], mean=self.mean, std=self.std)

    @property
    def n_features(self) -> int:
        """F, the features of `pooled`."""
        known = getattr(self.net, "num_features", None)
        return int(known) if isinstance(known, int) else self._probe()

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Those of its layers that can be named, from the first on, as `featstore extract` takes them."""
        return self._opened.trunk.layers

    @property
    def is_resnet(self) -> bool:
        """Whether it has a stem and four stages, as the ResNets of timm have."""
        return all(hasattr(self.net, name) for name in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer4"))

    @property
    def stages(self) -> list[nn.Module]:
        """The four stages of a ResNet.

        Raises:
            UnknownSystemError: it is none.
        """
        self._check_resnet()
        return [self.net.get_submodule(f"layer{number}") for number in range(1, 5)]

    def stem(self, pictures: Tensor) -> Tensor:
        """What stands before the stages of a ResNet: (N, 3, h, w) -> (N, 64, h / 4, w / 4).

        Raises:
            UnknownSystemError: it is none.
        """
        self._check_resnet()
        for name in ("conv1", "bn1", "act1", "maxpool"):
            pictures = self.net.get_submodule(name)(pictures)
        return pictures

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 3, h, w) -> its last map (N, F, h', w').

        Raises:
            UnknownSystemError: the network takes no pictures of that size.
        """
        with self._taking(pictures):
            return self._opened.map(pictures)

    def pooled(self, pictures: Tensor) -> Tensor:
        """(N, 3, h, w) -> the network's own feature (N, F).

        Raises:
            UnknownSystemError: the network takes no pictures of that size.
        """
        with self._taking(pictures):
            return self._opened.pooled(pictures)

    @contextmanager
    def _taking(self, pictures: Tensor) -> Iterator[None]:
        try:
            yield
        except (AssertionError, ValueError, RuntimeError) as error:
            said = str(error).strip().split("\n")[0]
            if isinstance(error, torch.OutOfMemoryError | NotImplementedError) or not _OF_SIZES.search(said):
                raise
            n, _, height, width = pictures.shape
            raise UnknownSystemError(
                f"trunk {self.name!r} cannot take {n} pictures of {width} x {height}: {said}; try another --set crop=, "
                "or another trunk"
            ) from error

    def released(self, policy: featstore.WeightsPolicy) -> dict[str, Tensor]:
        """The weights that the network was released with, by the names of this module.

        Raises:
            UnknownSystemError: it is smaller than the one that was released.
            featstore.FeatstoreError: they are not to be had, or do not fit.
        """
        if self._smaller:
            raise UnknownSystemError(
                f"trunk {self.name!r} with layers or width of its own was never released; say --set init_trunk=random"
            )
        state, _ = featstore.released_weights(self.name, policy)
        return {f"net.{name}": value for name, value in state.items()}

    def _check_resnet(self) -> None:
        if not self.is_resnet:
            raise UnknownSystemError(f"trunk {self.name!r} has no four stages; name a ResNet of timm, as resnet50")

    def _probe(self) -> int:
        was = self.training
        with torch.no_grad():
            width = int(self.eval().pooled(torch.zeros(1, 3, 224, 224, device=next(self.parameters()).device)).shape[1])
        self.train(was)
        return width


class OnTrunk(FromPixels):
    """Photos -> a trunk's own feature (N, F) -> `head`, a new last layer."""

    def __init__(
        self, photos: Photos, target: Target, trunk: Trunk, head: nn.Module, *, ten_crops: bool = False
    ) -> None:
        super().__init__(photos, target, ten_crops=ten_crops)
        self.trunk, self.head = trunk, head

    def outputs(self, pictures: Tensor) -> Tensor:
        """(N, 3, h, w) -> (N, n_outputs)."""
        out: Tensor = self.head(self.trunk.pooled(pictures))
        return out


def trunk_options(name: str = "resnet50", source: str = "ours", part: str = "trunk") -> dict[str, Option]:
    """The options of a system with a trunk: which one, how large, and what it begins with."""
    return {
        "trunk": Option(name, f"{source}; any network that `featstore extract` knows and that pools a map"),
        "layers": Option("", "of a ResNet, blocks of each stage, as 1,1,1,1; as released if empty"),
        "width": Option(1.0, "of a ResNet, how many times as wide as released", low=0.01, high=8),
        f"init_{part}": initial_option("imagenet", source),
    }


def initial_option(default: str, source: str) -> Option:
    """What a part of the model begins with."""
    return Option(default, f"imagenet (as it was released), random, FILE or RUN; {source}")


def trunk_of(options: Options) -> Trunk:
    """The trunk that `trunk_options` say."""
    return Trunk(options["trunk"], layers=options["layers"], width=options["width"])


def _smaller(layers: str, width: float) -> Mapping[str, Any]:
    """
    Raises:
        UnknownSystemError: layers are not four numbers.
    """
    told: dict[str, Any] = {}
    if layers:
        try:
            told["layers"] = tuple(int(each) for each in layers.split(","))
        except ValueError:
            told["layers"] = ()
        if len(told["layers"]) != len(CHANNELS) or min(told["layers"]) < 1:
            raise UnknownSystemError(f"--set layers={layers}: expected four numbers from 1 on, as 1,1,1,1")
    if width != 1:
        told["channels"] = tuple(max(1, round(width * channels)) for channels in CHANNELS)
    return told
