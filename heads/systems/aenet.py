"""Aesthetics and emotion of one photo, from pixels (Yu et al., AENet)."""

from torch import Tensor, nn

from heads.labels.target import Target
from heads.systems.pixels import FromPixels, Photos
from heads.systems.registry import register
from heads.systems.system import KINDS, Option, Options, Shape, System, from_pixels
from heads.systems.trunks import Trunk, trunk_of, trunk_options

PAPER = "Yu et al., AENet"


class Single(FromPixels):
    """One network, and a linear map of its pooled feature."""

    def __init__(self, photos: Photos, trunk: Trunk, target: Target, *, ten_crops: bool = False) -> None:
        super().__init__(photos, target, ten_crops=ten_crops)
        self.trunk = trunk
        self.out = nn.Linear(trunk.n_features, target.n_outputs)

    def outputs(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.out(self.trunk.pooled(pictures))
        return out


def photos_of(shape: Shape, options: Options, trunk: Trunk) -> Photos:
    """What a system with a trunk sees of stored photos of that shape."""
    return Photos(shape, options["crop"], flip=options["flip"], mean=trunk.mean, std=trunk.std)


def _single(shapes: tuple[Shape, ...], target: Target, options: Options) -> Single:
    trunk = trunk_of(options)
    return Single(photos_of(shapes[0], options, trunk), trunk, target, ten_crops=options["ten_crops"])


def _options(trunk: str, **own: Option) -> dict[str, Option]:
    return from_pixels(
        PAPER,
        **trunk_options(trunk, PAPER),
        **own,
        optimiser=Option("sgd", PAPER, choices=("adam", "adamw", "sgd")),
        lr=Option(1e-4, PAPER, low=0),
        lr_factor=Option(0.1, "ours: the paper does not say", low=0, high=1),
        lr_every=Option(20, "ours: epochs after which the rate is multiplied by lr_factor", low=1),
        momentum=Option(0.9, "ours: the paper does not say", low=0, high=1),
        weight_decay=Option(5e-4, "ours: the paper does not say", low=0),
        batch=Option(64, PAPER, low=1),
        epochs=Option(30, "ours: the paper does not say", low=1),
        patience=Option(30, "ours: all epochs; the best of them on the inner rows is kept", low=0),
        inner=Option(0.1, f"{PAPER}: share of the training rows that chooses the epoch", low=0, high=0.9),
    )


for name, trunk in (("resnet50-single", "resnet50"), ("wide-resnet-single", "wide_resnet50_2")):
    register(
        System(
            name=name,
            title="a network trained from pixels, one for each task",
            source=f"{PAPER}, its single-task baseline",
            reads=("pixels",),
            kinds=KINDS,
            options=_options(trunk),
            build=_single,
            init=("trunk",),
            per_task=True,
        )
    )
