"""ILGNet: high or low quality from inception modules, local features beside global ones (Jin et al., 2016)."""

from functools import partial

import torch
from torch import Tensor, nn

from heads.labels.target import KINDS, Target
from heads.systems.caffe import PIXELS, UNDECAYED, convolved, photos_of, pooled, scaled, xavier
from heads.systems.layers import Dropout
from heads.systems.pixels import FromPixels, Photos
from heads.systems.registry import register
from heads.systems.system import Option, Options, Shape, Stage, System, from_pixels, without_early_stopping
from heads.systems.trunks import initial_option

PAPER = "Jin et al., ILGNet (2016)"
CODE = "Jin et al., the authors' code"
BIAS = 0.2
"""What biases begin at, in the authors' code."""
BIASES = 2
"""How many times the rate of a new layer that of its bias is, in the authors' code."""
SMALLEST = 47
"""Pixels of a side of a crop from which on no map is empty."""


class Inception(nn.Module):
    """Convolutions of 1x1, 3x3, 5x5 and a pool side by side (Szegedy et al., 2015); here the pool is a mean."""

    def __init__(self, n_inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.one = _conv(n_inputs, one, 1)
        self.three = nn.Sequential(_conv(n_inputs, three[0], 1), _conv(three[0], three[1], 3))
        self.five = nn.Sequential(_conv(n_inputs, five[0], 1), _conv(five[0], five[1], 5))
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, padding=1), _conv(n_inputs, pooled, 1))
        self.n_outputs = one + three[1] + five[1] + pooled

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h, w)."""
        return torch.cat([self.one(maps), self.three(maps), self.five(maps), self.pooled(maps)], 1)


class Inceptions(nn.Module):
    """GoogLeNet without batch norm, up to its third inception module.

    Args:
        width: how many times as wide as in the paper it is.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        w = partial(scaled, width)

        self.stem = nn.Sequential(
            *(_conv(3, w(64), 7, stride=2), _pool(), nn.LocalResponseNorm(5)),
            *(_conv(w(64), w(64), 1), _conv(w(64), w(192), 3), nn.LocalResponseNorm(5), _pool()),
        )
        self.a3 = Inception(w(192), w(64), (w(96), w(128)), (w(16), w(32)), w(32))
        self.b3 = Inception(self.a3.n_outputs, w(128), (w(128), w(192)), (w(32), w(96)), w(64))
        self.pool = _pool()
        self.a4 = Inception(self.b3.n_outputs, w(192), (w(96), w(208)), (w(16), w(48)), w(64))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, h, w) -> the maps of modules 3a and 3b, an eighth of h and w, and of 4a, a sixteenth."""
        a3 = self.a3(self.stem(pictures))
        b3 = self.b3(a3)
        return a3, b3, self.a4(self.pool(b3))


class ILGNet(FromPixels):
    """Local features of two early modules and global ones of a later one, joined (train.prototxt of the authors).

        local  = fc(3a), fc(3b), each a quarter of `hidden`;  global = fc(conv 1x1 (mean pool 5 / 3 (4a))), a half
        outputs = fc(fc(local and global))

    ReLU and dropout after each but the last. Two classes are one output, as a softmax of two is a sigmoid of their
    difference.

    Args:
        hidden: of the last but one layer.
        flat: whether the local features see every place of 3a and 3b, and not their mean.
    """

    def __init__(
        self,
        photos: Photos,
        target: Target,
        *,
        width: float = 1.0,
        hidden: int = 1024,
        dropout: float = 0.7,
        flat: bool = True,
        ten_crops: bool = False,
    ) -> None:
        super().__init__(photos, target, ten_crops=ten_crops)
        self.trunk = Inceptions(width)
        xavier(self.trunk, bias=BIAS)
        eighth = pooled(pooled(convolved(photos.tall, 7, 2, padding=3)))
        squeezed_side = pooled(pooled(eighth), 5, 3)
        squeezed = scaled(width, 128)

        def tap(pool: nn.Module, n_inputs: int, n_outputs: int) -> nn.Sequential:
            return nn.Sequential(pool, nn.Flatten(), nn.Linear(n_inputs, n_outputs), nn.ReLU(), Dropout(dropout))

        def local(n_channels: int) -> nn.Sequential:
            pool = nn.Identity() if flat else nn.AdaptiveAvgPool2d(1)
            return tap(pool, n_channels * (eighth**2 if flat else 1), hidden // 4)

        squeeze = nn.Sequential(nn.AvgPool2d(5, 3, ceil_mode=True), _conv(self.trunk.a4.n_outputs, squeezed, 1))
        self.local_a, self.local_b = local(self.trunk.a3.n_outputs), local(self.trunk.b3.n_outputs)
        self.overall = tap(squeeze, squeezed * squeezed_side**2, hidden - 2 * (hidden // 4))
        self.joined = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), Dropout(dropout))
        self.classifier = nn.Linear(hidden, target.n_outputs)
        for part in (self.local_a, self.local_b, self.overall, self.joined, self.classifier):
            xavier(part, bias=BIAS)

    def outputs(self, pictures: Tensor) -> Tensor:
        """(N, 3, size, size) float32 -> (N, n_outputs)."""
        a3, b3, a4 = self.trunk(pictures)
        features = torch.cat([self.local_a(a3), self.local_b(b3), self.overall(a4)], 1)
        out: Tensor = self.classifier(self.joined(features))
        return out


def _conv(n_inputs: int, n_outputs: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_inputs, n_outputs, kernel, stride, padding=kernel // 2), nn.ReLU())


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)  # Caffe's


def _ilgnet(shapes: tuple[Shape, ...], target: Target, options: Options) -> ILGNet:
    own = {name: options[name] for name in ("width", "hidden", "dropout", "ten_crops")}
    return ILGNet(photos_of(shapes[0], options), target, flat=options["taps"] == "flat", **own)


def _stages(options: Options) -> tuple[Stage, ...]:
    """New layers at `lr`, their biases at twice that, the trunk at `trunk_lr`."""
    new = ("local_a.2", "local_b.2", "overall.0.1.0", "overall.2", "joined.0", "classifier")
    rates = {f"{name}.bias": BIASES * options["lr"] for name in new}
    return (
        Stage(options["epochs"], options["lr"], rates={"trunk.": options["trunk_lr"], **rates}, undecayed=UNDECAYED),
    )


register(
    System(
        name="ilgnet",
        title="high or low quality, inception modules with local and global features",
        source=PAPER,
        reads=("pixels",),
        kinds=KINDS,
        options=from_pixels(
            CODE,
            init_trunk=initial_option("imagenet", f"{CODE}: GoogLeNet without batch norm"),
            taps=Option(
                "flat", f"{CODE}; pool is ours, for few photos: 3 M weights, not 151", choices=("flat", "pool")
            ),
            pixels=PIXELS,
            width=Option(1.0, "of the convolutions, how many times as wide as in the paper", low=0.01, high=8),
            hidden=Option(1024, "Jin et al.: of the joined features", low=4),
            dropout=Option(0.7, CODE, low=0, high=0.99),
            trunk_lr=Option(1e-4, f"{CODE}, for AVA1; 1e-5 for AVA2. Of the trunk", low=0),
            crop=Option(227, CODE, low=SMALLEST),
            flip=Option(True, CODE),
            optimiser=Option("sgd", CODE, choices=("adam", "adamw", "sgd")),
            lr=Option(1e-3, f"{CODE}: ten times that of the trunk. Of new layers", low=0),
            lr_factor=Option(0.96, CODE, low=0, high=1),
            lr_every=Option(23, f"{CODE}: 115,000 steps of 48 of AVA's photos", low=1),
            weight_decay=Option(2e-4, CODE, low=0),
            batch=Option(48, CODE, low=1),
            epochs=Option(97, f"{CODE}: 475,000 steps of 48 of AVA's photos", low=1),
            **without_early_stopping(),
        ),
        build=_ilgnet,
        stages=_stages,
        init=("trunk",),
    )
)
