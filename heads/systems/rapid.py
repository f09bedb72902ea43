"""RAPID: is a photo of high or low quality, from crops at its own scale and from the whole of it (Lu et al., 2014)."""

from collections.abc import Iterator
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from heads.errors import LabelsError
from heads.labels.target import KINDS, Target
from heads.systems.caffe import UNDECAYED, convolved, he
from heads.systems.pixels import Photos, outputs_of
from heads.systems.registry import register
from heads.systems.system import Option, Options, Shape, Stage, System, from_pixels, without_early_stopping
from heads.systems.trunks import initial_option
from heads.training.losses import Loss, binary_cross_entropy, masked_loss, predictions

PAPER = "Lu et al., RAPID: rating pictorial aesthetics using deep learning (2014)"
OURS = "ours: the paper was not at hand"
LU = "Lu et al., from memory"
MARGIN = 256 / 224
"""How many times as wide as its crop a resized photo is (Lu et al.)."""
SMALLEST = 23
"""Pixels of a side of a crop from which on no map is empty."""
CHANCE = 0.5
"""From this probability of high quality on, a photo is above the middle of the scale."""
ViewName = Literal["random", "warp", "center", "pad"]


class Column(nn.Module):
    """What RAPID makes of one picture: four convolutions, two fully connected layers.

        conv 11x11 / 2, norm, pool 3 / 2;  conv 5x5, norm, pool 3 / 2;  conv 3x3;  conv 3x3;  fc `hidden`;  fc `units`

    ReLU after each. The norm is across 5 channels (Krizhevsky's), in Caffe's numbers. Pictures have `SMALLEST` pixels a
    side, or more.
    """

    def __init__(self, size: int, *, filters: int = 64, hidden: int = 1000, units: int = 256) -> None:
        super().__init__()
        side = convolved(
            convolved(convolved(size, 11, 2), 3, 2), 3, 2
        )  # its pools leave out what does not fill a window
        layers: list[nn.Module] = []
        for n_inputs, kernel, stride in ((3, 11, 2), (filters, 5, 1)):
            layers += [nn.Conv2d(n_inputs, filters, kernel, stride, padding=0 if stride > 1 else kernel // 2)]
            layers += [nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)]
        for _ in range(2):
            layers += [nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(filters * side**2, hidden), nn.ReLU(), nn.Linear(hidden, units), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        he(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 3, size, size) -> (N, units)."""
        out: Tensor = self.layers(pictures)
        return out


class View(nn.Module):
    """What a column sees of stored photos.

    - random: a crop at the scale of the stored photo. Training draws one, with its mirror image; a prediction needs
      `n_crops`, at places that are the same for every photo.
    - warp: the whole photo, squashed into a square.
    - center: the middle square of the photo.
    - pad: the whole photo in its shape, black around it.

    A warped photo and a middle square are 256 / 224 as wide as the crop. Training draws a crop of it, a prediction
    needs the centre, or ten crops.

    Raises:
        FeaturesError: a stored photo is smaller than a random crop.
    """

    def __init__(
        self,
        name: ViewName,
        shape: Shape,
        size: int,
        *,
        flip: bool = True,
        n_crops: int = 50,
        ten_crops: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.size, self.ten_crops = name, size, ten_crops
        self.side = size if name == "pad" else round(MARGIN * size)
        self.photos = Photos(shape if name == "random" else (self.side, self.side, 3), size, flip=flip)
        self.crop = Photos((size, size, 3), size, random=False, flip=False)
        down, right = self.photos.height - size, self.photos.width - size
        drawn = np.random.default_rng(0).integers((down + 1, right + 1), size=(n_crops, 2)).tolist()
        self.places = list(dict.fromkeys((top, left) for top, left in drawn))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, size, size) float32."""
        out: Tensor = self.photos(self.framed(pixels))
        return out

    def pictures(self, pixels: Tensor) -> Iterator[Tensor]:
        """All that a prediction looks at, (N, 3, size, size) each."""
        if not self.training and self.name == "random":
            for top, left in self.places:
                yield self.crop(pixels[:, top : top + self.size, left : left + self.size])
        elif not self.training and self.ten_crops:
            yield from self.photos.ten(self.framed(pixels)).unbind(1)
        else:
            yield self(pixels)

    def framed(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, side, side, 3) uint8, from which crops are cut; random: the pixels themselves."""
        if self.name == "random":
            return pixels
        height, width = pixels.shape[1:3]
        if self.name == "warp":
            return resized(pixels, self.side, self.side)
        scale = self.side / (min(height, width) if self.name == "center" else max(height, width))
        pixels = resized(pixels, max(1, round(scale * height)), max(1, round(scale * width)))
        down, right = pixels.shape[1] - self.side, pixels.shape[2] - self.side
        if self.name == "center":
            return pixels[:, down // 2 : down // 2 + self.side, right // 2 : right // 2 + self.side]
        left, top = -right // 2, -down // 2
        return functional.pad(pixels, (0, 0, left, -right - left, top, -down - top))


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, height, width, 3) uint8, bilinear and antialiased as a stored view is."""
    if pixels.shape[1:3] == (height, width):
        return pixels
    floats = pixels.permute(0, 3, 1, 2).float()
    floats = functional.interpolate(floats, (height, width), mode="bilinear", antialias=True)
    return floats.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


class Rapid(nn.Module):
    """Base of the networks: what all share is what they say, and what they learn by.

    Of ratings, a network learns whether one is above the middle of its scale, and says the probability of that less
    one half. Ratings nearer than `delta` to the middle are not learned from.
    """

    def __init__(self, target: Target, *, delta: float = 0.0) -> None:
        super().__init__()
        self.target, self.delta = target, delta

    def logits(self, *pixels: Tensor) -> Iterator[Tensor]:
        """(N, n_outputs) of each crop that counts."""
        raise NotImplementedError

    def forward(self, *pixels: Tensor) -> Tensor:
        """Tensors (N, H, W, 3) uint8 -> (N, n_outputs), by the mean probability over the crops."""
        said = [self._probabilities(logits) for logits in self.logits(*pixels)]
        return outputs_of(self.target, torch.stack(said).mean(0))

    def training_loss(self, labels: Tensor, *pixels: Tensor) -> Tensor:
        """The negative log-likelihood of the classes, of one crop a photo."""
        (logits,) = self.logits(*pixels)
        if self.target.kind != "regression":
            return masked_loss(self.target)(logits.float(), labels)
        labels = labels.where(labels.abs() >= self.delta, torch.nan)
        return binary_cross_entropy(logits.float(), _high(labels))

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        return logits.sigmoid() - CHANCE if self.target.kind == "regression" else predictions(self.target, logits)


class OneColumn(Rapid):
    """SCNN: one column on one view."""

    def __init__(self, view: View, column: Column, units: int, target: Target, *, delta: float = 0.0) -> None:
        super().__init__(target, delta=delta)
        self.view, self.trunk, self.classifier = view, column, nn.Linear(units, target.n_outputs)

    def logits(self, *pixels: Tensor) -> Iterator[Tensor]:
        """One tensor."""
        for pictures in self.view.pictures(*pixels):
            yield self.classifier(self.trunk(pictures))


class Columns(Rapid):
    """DCNN: a column on the warped photo and one on a crop, joined before the classes.

    RDCNN has a third, `style`, on the crop, which learned the styles of photos before and stays as it is.
    """

    def __init__(
        self,
        views: tuple[View, View],
        columns: tuple[Column, Column],
        units: int,
        target: Target,
        *,
        style: Column | None = None,
        delta: float = 0.0,
    ) -> None:
        super().__init__(target, delta=delta)
        self.global_view, self.local_view = views
        self.global_column, self.local_column = columns
        self.style = style
        self.classifier = nn.Linear(units * (2 if style is None else 3), target.n_outputs)

    def logits(self, *pixels: Tensor) -> Iterator[Tensor]:
        """The tensor of the whole photo, then the one that crops are cut from."""
        wholes = [self.global_column(pictures) for pictures in self.global_view.pictures(pixels[0])]
        for crop in self.local_view.pictures(pixels[1]):
            local = [self.local_column(crop)] + ([] if self.style is None else [self.style(crop)])
            for whole in wholes:
                yield self.classifier(torch.cat([whole, *local], 1))


def rapid_loss(target: Target) -> Loss:
    """The negative log-likelihood of the classes; of ratings, of being above the middle of the scale."""
    return _high_or_low if target.kind == "regression" else masked_loss(target)


def _high_or_low(outputs: Tensor, labels: Tensor) -> Tensor:
    return binary_cross_entropy((outputs + CHANCE).logit(1e-6), _high(labels))


def _high(labels: Tensor) -> Tensor:
    """Ratings (N, K) as 1 above the middle of the scale, 0 from there down, NaN where there is none."""
    return (labels > 0).to(labels.dtype).where(labels.isfinite(), torch.nan)


def delta_of(target: Target, options: Options) -> float:
    """How near the middle of their scale ratings are that are not learned, in the units of the labels.

    Raises:
        LabelsError: classes are nowhere near the middle of a scale.
    """
    if options["delta"] and target.kind != "regression":
        raise LabelsError(
            f"--set delta={options['delta']:g} leaves out ratings near the middle of their scale, and the labels are "
            f"{target.kind}; give ratings (--kind regression), or leave out delta"
        )
    delta: float = options["delta"]
    return delta


def column_of(options: Options) -> Column:
    """The column that the options say."""
    names = ("filters", "hidden", "units")
    return Column(options["crop"], **{name: options[name] for name in names})


def view_of(name: ViewName, shape: Shape, options: Options) -> View:
    """What a column sees of stored photos of that shape, as the options say."""
    own = {name: options[name] for name in ("flip", "n_crops", "ten_crops")}
    return View(name, shape, options["crop"], **own)


def _one(shapes: tuple[Shape, ...], target: Target, options: Options) -> OneColumn:
    delta = delta_of(target, options)
    view = view_of(options["view"], shapes[0], options)
    return OneColumn(view, column_of(options), options["units"], target, delta=delta)


def _several(shapes: tuple[Shape, ...], target: Target, options: Options, *, styled: bool = False) -> Columns:
    delta = delta_of(target, options)
    views = view_of("warp", shapes[0], options), view_of("random", shapes[1], options)
    columns = column_of(options), column_of(options)
    style = column_of(options) if styled else None
    return Columns(views, columns, options["units"], target, style=style, delta=delta)


def one_stage(options: Options, *, moving: tuple[str, ...] = ("",)) -> tuple[Stage, ...]:
    """All epochs at one rate; parameters whose names begin with one of `moving` are trained."""
    return (Stage(options["epochs"], options["lr"], parameters=moving, undecayed=UNDECAYED),)


_ALL_BUT_STYLE = ("global_column.", "local_column.", "classifier.")


def rapid_options(**own: Option) -> dict[str, Option]:
    """The options of networks of columns, with a system's own before them."""
    return from_pixels(
        OURS,
        **own,
        crop=Option(224, f"{LU}: side of what a column sees", low=SMALLEST),
        filters=Option(64, f"{LU}: of each convolution", low=1),
        hidden=Option(1000, f"{LU}: of the first fully connected layer", low=1),
        units=Option(256, f"{LU}: of the second, which are joined", low=1),
        n_crops=Option(50, "ours: crops at the photo's own scale that a prediction is the mean of", low=1),
        delta=Option(
            0.0, f"{LU}: ratings so near the middle are not learned, as a share of the scale", low=0, high=0.5
        ),
        optimiser=Option("sgd", OURS, choices=("adam", "adamw", "sgd")),
        lr=Option(1e-2, OURS, low=0),
        lr_factor=Option(0.1, OURS, low=0, high=1),
        lr_every=Option(10, "ours: epochs after which the rate is multiplied by lr_factor", low=1),
        weight_decay=Option(5e-4, OURS, low=0),
        batch=Option(128, OURS, low=1),
        epochs=Option(20, OURS, low=1),
        **without_early_stopping(),
    )


register(
    System(
        name="rapid-scnn",
        title="high or low quality, one column on one view of a photo",
        source=PAPER,
        reads=("pixels",),
        kinds=KINDS,
        options=rapid_options(
            view=Option("random", f"{LU}: of its four the best", choices=get_args(ViewName)),
            init_trunk=initial_option("random", LU),
        ),
        build=_one,
        loss=rapid_loss,
        stages=one_stage,
        init=("trunk",),
    )
)

for name, title, styled in (
    ("rapid-dcnn", "high or low quality, a column on the whole photo and one on crops", False),
    ("rapid-rdcnn", "rapid-dcnn with a third column that knows the styles of photos", True),
):
    register(
        System(
            name=name,
            title=title,
            source=PAPER,
            reads=("pixels", "pixels"),
            kinds=KINDS,
            options=rapid_options(
                **({"init_style": initial_option("imagenet", f"{LU}: a RUN of rapid-scnn on styles")} if styled else {})
            ),
            build=partial(_several, styled=styled),
            loss=rapid_loss,
            stages=partial(one_stage, moving=_ALL_BUT_STYLE) if styled else one_stage,
            init=("style",) if styled else (),
        )
    )
