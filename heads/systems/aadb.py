"""The networks of AADB: an aesthetic score from regression, ranking and attributes (Kong et al., 2016), from pixels."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from heads.errors import LabelsError
from heads.labels.target import KINDS, JointTarget, Target, parts_of
from heads.systems.caffe import PIXELS, UNDECAYED, convolved, he, photos_of, pooled, scaled
from heads.systems.layers import Dropout, Linears
from heads.systems.pixels import FromPixels, Photos
from heads.systems.registry import register
from heads.systems.system import OURS, Option, Options, Shape, Stage, System, from_pixels, without_early_stopping
from heads.systems.trunks import initial_option
from heads.training.losses import Loss, cross_entropy, squared_error

PAPER = "Kong et al., Photo aesthetics ranking network with attributes and content adaptation (2016)"
KONG = "Kong et al."
RELEASED = f"{KONG}, the authors' model"
SMALLEST = 67
"""Pixels of a side of a crop from which on no map is empty."""


class CaffeNet(nn.Module):
    """CaffeNet, which is AlexNet in two groups with its norm after the pool, up to fc7.

    Its layers have Caffe's names, so that converted weights fit.

    Args:
        size: side of the pictures, `SMALLEST` or more.
        width: how many times as wide as released its convolutions are.
        hidden: width of fc6 and fc7.
    """

    def __init__(self, size: int, *, width: float = 1.0, hidden: int = 4096, dropout: float = 0.5) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (scaled(width, channels, even=True) for channels in (96, 256, 384, 384, 256))
        layers = OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(3, c1, 11, stride=4),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            norm1=nn.LocalResponseNorm(5),
            conv2=nn.Conv2d(c1, c2, 5, padding=2, groups=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
            norm2=nn.LocalResponseNorm(5),
            conv3=nn.Conv2d(c2, c3, 3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(c3, c4, 3, padding=1, groups=2),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(c4, c5, 3, padding=1, groups=2),
            relu5=nn.ReLU(),
            pool5=nn.MaxPool2d(3, 2, ceil_mode=True),
            flat=nn.Flatten(),
        )
        side = pooled(pooled(pooled(convolved(size, 11, 4))))
        layers.update(
            fc6=nn.Linear(c5 * side**2, hidden),
            relu6=nn.ReLU(),
            drop6=Dropout(dropout),
            fc7=nn.Linear(hidden, hidden),
            relu7=nn.ReLU(),
            drop7=Dropout(dropout),
        )
        for name, layer in layers.items():
            self.add_module(name, layer)
        he(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 3, size, size) -> fc7 (N, hidden)."""
        for layer in self.children():
            pictures = layer(pictures)
        return pictures


@dataclass(frozen=True)
class Ranking:
    """What the order of two photos counts in training (Kong et al.)."""

    weight: float
    """Of `rank_loss` beside the squared error."""
    margin: float
    """How far apart what is said of two photos has to be."""
    gap: float
    """How far apart their ratings have to be for their order to count; of photos rated alike it never does."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean over the pairs of a minibatch, of each task, summed over the tasks.

            rank_loss = 1 / 2P sum over P pairs of max(0, margin - d (y'_i - y'_j)),  d = 1 if y_i >= y_j, else -1

        Args:
            outputs, labels: (N, K), NaN where there is no label.
        """
        apart = labels.unsqueeze(1) - labels.unsqueeze(
            0
        )  # (N, N, K): of each pair, once, the higher one less the other
        counts = (apart >= self.gap) & (apart > 0)
        said = outputs.unsqueeze(1) - outputs.unsqueeze(0)
        hinges = torch.where(counts, (self.margin - said).clamp_min(0), 0.0)
        return self.weight * (hinges.sum((0, 1)) / (2 * counts.sum((0, 1)).clamp_min(1))).sum()


def half_squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """1 / 2N sum (y' - y)^2 of each task over its known labels, summed over the tasks."""
    return squared_error(outputs, labels) / 2


def aadb_loss(target: Target) -> Loss:
    """`half_squared_error` of ratings; and cross-entropy of the content, of a target with two parts."""
    if not isinstance(target, JointTarget):
        return half_squared_error
    (_, rated, scores), (_, named, classes) = target.slices()

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        content = cross_entropy(outputs[:, classes], labels[:, named])
        return half_squared_error(outputs[:, scores], labels[:, rated]) + content

    return loss


class Aadb(FromPixels):
    """Photos -> fc7 of a CaffeNet -> `feature` -> `score`.

    Args:
        hidden: width of fc7.
        feature: width of `feature` (fc8new of the authors' model).
        score: (fc7 (N, hidden), feature (N, feature)) -> (N, n_outputs).
        ranking: what the order of photos counts in training; None: nothing.
        n_scores: so many of the first tasks are scores, whose order counts.
    """

    def __init__(
        self,
        photos: Photos,
        target: Target,
        trunk: CaffeNet,
        score: nn.Module,
        *,
        hidden: int,
        feature: int,
        ranking: Ranking | None = None,
        n_scores: int = 1,
        ten_crops: bool = False,
    ) -> None:
        super().__init__(photos, target, ten_crops=ten_crops)
        self.trunk, self.score, self.ranking, self.n_scores = trunk, score, ranking, n_scores
        self.feature = nn.Sequential(nn.Linear(hidden, feature), nn.ReLU())
        he(self.feature)

    def outputs(self, pictures: Tensor) -> Tensor:
        """(N, 3, size, size) float32 -> (N, n_outputs)."""
        fc7 = self.trunk(pictures)
        out: Tensor = self.score(fc7, self.feature(fc7))
        return out

    def training_loss(self, labels: Tensor, *pixels: Tensor) -> Tensor:
        """Labels (N, K), NaN where missing -> the loss that inner rows are judged by, with the gradients of both."""
        judged, ranks = self.losses(labels, *pixels)
        return judged + ranks - ranks.detach()

    def losses(self, labels: Tensor, *pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`aadb_loss`, and that of the order of photos."""
        said, scores = self(*pixels).float(), slice(self.n_scores)
        judged = aadb_loss(self.target)(said, labels)
        ranks = None if self.ranking is None else self.ranking.loss(said[:, scores], labels[:, scores])
        return judged, judged.new_zeros(()) if ranks is None else ranks


class Scores(nn.Module):
    """A score for each task, a linear map of the feature."""

    def __init__(self, feature: int, n_tasks: int) -> None:
        super().__init__()
        self.fc9 = nn.Linear(feature, n_tasks)

    def forward(self, fc7: Tensor, feature: Tensor) -> Tensor:
        """(N, hidden), (N, feature) -> (N, K)."""
        out: Tensor = self.fc9(feature)
        return out


class Adapted(nn.Module):
    """A score that attributes help, or what a photo shows, or both.

        inside_k = ReLU(fc8_k(fc7));  attribute_k = fc9_k(inside_k)
        p = softmax(classes(fc7));  content = sum_c p_c ReLU(content_c(fc7))
        score = fc11(ReLU(fc10([feature, inside_1, ..., content])))

    The widths are those of the authors' model, and nothing follows the outputs.

    Args:
        n_classes: of content, C; 0: what a photo shows does not count.
    """

    def __init__(
        self, hidden: int, feature: int, n_attributes: int, n_classes: int = 0, *, branch: int, joined: int
    ) -> None:
        super().__init__()
        self.branch, self.n_attributes, self.n_classes = branch, n_attributes, n_classes
        if n_attributes:
            self.fc8 = nn.Linear(hidden, n_attributes * branch)
            self.fc9 = Linears(n_attributes, branch, 1)
        if n_classes:
            self.content = nn.Linear(hidden, n_classes * feature)
            self.classes = nn.Linear(hidden, n_classes)
        self.fc10 = nn.Linear(feature * (2 if n_classes else 1) + n_attributes * branch, joined)
        self.fc11 = nn.Linear(joined, 1)
        for layer in self.children():
            he(layer)

    def forward(self, fc7: Tensor, feature: Tensor) -> Tensor:
        """(N, hidden), (N, feature) -> (N, 1 + attributes + C): the score, attributes, logits of content."""
        known, said = [feature], []
        if self.n_attributes:
            inside = torch.relu(self.fc8(fc7))
            known.append(inside)
            said.append(self.fc9(inside.view(-1, self.n_attributes, self.branch).transpose(0, 1)).squeeze(2).T)
        if self.n_classes:
            logits = self.classes(fc7)
            known.append(mixed(torch.relu(self.content(fc7)).view(len(fc7), self.n_classes, -1), logits))
            said.append(logits)
        return torch.cat([self.fc11(torch.relu(self.fc10(torch.cat(known, 1)))), *said], 1)


def mixed(of_class: Tensor, logits: Tensor) -> Tensor:
    """Features of each class of content (N, C, F), weighted by how likely it is, of logits (N, C) -> (N, F)."""
    return (logits.softmax(1).unsqueeze(2) * of_class).sum(1)


def _aadb(shapes: tuple[Shape, ...], target: Target, options: Options, *, ranked: bool = False) -> Aadb:
    widths = {name: options[name] for name in ("hidden", "feature")}
    score = Scores(options["feature"], len(target.tasks))
    ranking = Ranking(options["rank_weight"], options["margin"], options["gap"]) if ranked else None
    own = {**widths, "ranking": ranking, "n_scores": len(target.tasks), "ten_crops": options["ten_crops"]}
    return Aadb(photos_of(shapes[0], options), target, _trunk(options), score, **own)


def _adapted(shapes: tuple[Shape, ...], target: Target, options: Options) -> Aadb:
    """
    Raises:
        LabelsError: there is neither an attribute nor content beside the score.
    """
    n_attributes, n_classes = len(parts_of(target)[0].tasks) - 1, 0
    if isinstance(target, JointTarget):
        n_classes = target.parts[1].n_outputs
    elif not n_attributes:
        raise LabelsError(
            f"'aadb-att' learns an aesthetic score, its first task, and attributes, the others; there is only "
            f"{', '.join(target.tasks)}; add attributes, name them with --tasks, or train 'aadb-rank'"
        )
    widths = {name: options[name] for name in ("hidden", "feature")}
    score = Adapted(
        **widths, n_attributes=n_attributes, n_classes=n_classes, branch=options["branch"], joined=options["joined"]
    )
    ranking = Ranking(options["rank_weight"], options["margin"], options["gap"])
    own = {**widths, "ranking": ranking, "ten_crops": options["ten_crops"]}
    return Aadb(photos_of(shapes[0], options), target, _trunk(options), score, **own)


def _trunk(options: Options) -> CaffeNet:
    return CaffeNet(options["crop"], **{name: options[name] for name in ("width", "hidden", "dropout")})


def _everything(options: Options) -> tuple[Stage, ...]:
    return (Stage(options["epochs"], options["lr"], rates={"trunk.": options["trunk_lr"]}, undecayed=UNDECAYED),)


def _branches_then_everything(options: Options) -> tuple[Stage, ...]:
    return (
        Stage(options["branch_epochs"], options["lr"], parameters=("score.",), undecayed=UNDECAYED),
        *_everything(options),
    )


def _options(start: str, **own: Option) -> dict[str, Option]:
    return from_pixels(
        KONG,
        init_trunk=initial_option("imagenet", start),
        **own,
        pixels=PIXELS,
        width=Option(1.0, "of CaffeNet's convolutions, how many times as wide as released", low=0.01, high=8),
        hidden=Option(4096, f"{RELEASED}: of fc6 and fc7", low=1),
        feature=Option(512, f"{RELEASED}: of fc8new", low=1),
        dropout=Option(0.5, f"{RELEASED}: after fc6 and fc7", low=0, high=0.99),
        trunk_lr=Option(1e-3, f"{OURS}; of CaffeNet", low=0),
        crop=Option(227, RELEASED, low=SMALLEST),
        flip=Option(True, RELEASED),
        optimiser=Option("sgd", OURS, choices=("adam", "adamw", "sgd")),
        lr=Option(1e-2, f"{OURS}; of new layers", low=0),
        weight_decay=Option(5e-4, OURS, low=0),
        batch=Option(64, OURS, low=1),
        epochs=Option(30, OURS, low=1),
        **without_early_stopping(),
    )


_FEATURE = Option("random", f"{RELEASED} goes on from a RUN of the stage before: random, FILE.safetensors, or a RUN")
_RANKING = {
    "rank_weight": Option(1.0, f"{OURS}; of the loss of ranks beside the squared error", low=0),
    "margin": Option(0.02, f"{OURS}; by which a better photo is to be said better, as a share of the scale", low=0),
    "gap": Option(
        0.25, f"{OURS} of means; ratings so far apart, as a share of the scale, count as ranked", low=0, high=1
    ),
}


def _adapted_options(start: str) -> dict[str, Option]:
    return _options(
        start,
        init_feature=_FEATURE,
        **_RANKING,
        branch=Option(256, f"{RELEASED}: of fc8 of each attribute", low=1),
        joined=Option(128, f"{RELEASED}: of fc10", low=1),
        branch_epochs=Option(10, "ours: in which only the branches and the score are trained; then all is", low=1),
    )


register(
    System(
        name="aadb-reg",
        title="an aesthetic score by regression, CaffeNet from pixels",
        source=PAPER,
        reads=("pixels",),
        kinds=("regression",),
        options=_options(f"{KONG}: CaffeNet"),
        build=_aadb,
        loss=aadb_loss,
        stages=_everything,
        init=("trunk",),
    )
)

register(
    System(
        name="aadb-rank",
        title="aadb-reg that also learns which of two photos is better",
        source=PAPER,
        reads=("pixels",),
        kinds=("regression",),
        options=_options(f"{KONG}: a RUN of aadb-reg", init_feature=_FEATURE, **_RANKING),
        build=partial(_aadb, ranked=True),
        loss=aadb_loss,
        stages=_everything,
        init=("trunk", "feature"),
    )
)

register(
    System(
        name="aadb-att",
        title="aadb-rank that also learns attributes, which help the score",
        source=PAPER,
        reads=("pixels",),
        kinds=("regression",),
        options=_adapted_options(f"{KONG}: a RUN of aadb-rank"),
        build=_adapted,
        loss=aadb_loss,
        stages=_branches_then_everything,
        init=("trunk", "feature"),
    )
)

register(
    System(
        name="aadb-cont",
        title="aadb-rank whose score depends on what a photo shows; with attributes, all of the paper",
        source=PAPER,
        reads=("pixels",),
        kinds=KINDS,
        parts=(("regression",), ("multiclass",)),
        options=_adapted_options(f"{KONG}: a RUN of aadb-att, or of aadb-rank"),
        build=_adapted,
        loss=aadb_loss,
        stages=_branches_then_everything,
        init=("trunk", "feature"),
    )
)
