"""Aesthetics helped by personality (Li et al., "Personality-driven multi-task aesthetics"), frozen or from pixels."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from heads.errors import LabelsError
from heads.labels.target import Target
from heads.systems.pixels import FromPixels, Photos
from heads.systems.registry import register
from heads.systems.system import (
    Option,
    Options,
    Shape,
    Stage,
    System,
    by_gradient,
    from_pixels,
    without_early_stopping,
)
from heads.systems.trunks import Trunk, trunk_of, trunk_options
from heads.training.losses import masked_loss

PAPER = "Li et al., Personality-driven multi-task aesthetics"


class Personality(nn.Module):
    """A branch for the aesthetic score, one for the traits, and what the traits add to the score.

        aesthetics = sigmoid(branch(f)) in 0 .. 1;  trait_j = tanh(branch(f)_j) in -1 .. 1
        score = aesthetics + sum_j w_j trait_j

    The weights w are 0 until the last stage learns them; it freezes everything else.
    """

    def __init__(self, n_features: int, n_traits: int, *, hidden1: int, hidden2: int) -> None:
        super().__init__()
        self.aesthetics = _branch(n_features, 1, hidden1, hidden2)
        self.personality = _branch(n_features, n_traits, hidden1, hidden2)
        self.trait_weights = nn.Parameter(torch.zeros(n_traits))

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, K) with the score first: both scales of the paper become -0.5 .. +0.5."""
        traits = torch.tanh(self.personality(features))
        score = torch.sigmoid(self.aesthetics(features)) + (traits @ self.trait_weights).unsqueeze(1)
        return torch.cat([score - 0.5, traits / 2], 1)

    def learned(self) -> dict[str, Tensor]:
        """`trait_weights` (K - 1,)"""
        return {"trait_weights": self.trait_weights}


class PersonalityFromPixels(FromPixels):
    """`Personality` on the feature of a trunk that is trained with it.

    While only the weights of the traits move, it counts what their least squares need: the rate of the paper may move
    them little, and `learned` shows both.

    Args:
        batch_norm: whether the trunk's batch norms learn the statistics of photos, those of both sets in turn; or keep
            the ones that they begin with.
    """

    products: Tensor
    residuals: Tensor

    def __init__(
        self, photos: Photos, trunk: Trunk, branches: Personality, target: Target, *, ten_crops: bool, batch_norm: bool
    ) -> None:
        super().__init__(photos, target, ten_crops=ten_crops)
        self.trunk, self.branches, self.batch_norm = trunk, branches, batch_norm
        n_traits = len(branches.trait_weights)
        self.register_buffer("products", torch.zeros(n_traits, n_traits))
        self.register_buffer("residuals", torch.zeros(n_traits))

    def outputs(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.branches(self.trunk.pooled(pictures))
        return out

    def training_loss(self, labels: Tensor, pixels: Tensor) -> Tensor:
        """Labels (N, K), NaN where missing, and pixels (N, H, W, 3) -> squared errors, as of `personality-frozen`."""
        outputs = self(pixels).float()
        if not any(parameter.requires_grad for parameter in self.branches.aesthetics.parameters()):
            self._count(outputs.detach(), labels)
        return masked_loss(self.target)(outputs, labels)

    def learned(self) -> dict[str, Tensor]:
        """`trait_weights` (K - 1,), their `length` (1,), and `least_squares` (K - 1,), the weights of least error."""
        weights = self.branches.trait_weights.detach()
        best = torch.linalg.pinv(self.products.double(), hermitian=True) @ self.residuals.double()
        return {"trait_weights": weights, "length": weights.norm()[None], "least_squares": best}

    def train(self, mode: bool = True) -> "PersonalityFromPixels":
        super().train(mode)
        for module in () if self.batch_norm else self.trunk.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def _count(self, outputs: Tensor, labels: Tensor) -> None:
        known = labels[:, 0].isfinite()
        with torch.autocast(labels.device.type, enabled=False):
            traits = 2 * outputs[known, 1:]
            left = labels[known, 0] - outputs[known, 0] + traits @ self.branches.trait_weights.detach()
            self.products += traits.T @ traits
            self.residuals += traits.T @ left


class Aesthetics(nn.Module):
    """The branch for the aesthetic score alone, one for each score if there are several."""

    def __init__(self, n_features: int, n_tasks: int, *, hidden1: int, hidden2: int) -> None:
        super().__init__()
        self.aesthetics = nn.ModuleList(_branch(n_features, 1, hidden1, hidden2) for _ in range(n_tasks))

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, K) in -0.5 .. +0.5."""
        return torch.sigmoid(torch.cat([branch(features) for branch in self.aesthetics], 1)) - 0.5


def _branch(n_features: int, n_outputs: int, hidden1: int, hidden2: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_features, hidden1), nn.ReLU(), nn.Linear(hidden1, hidden2), nn.ReLU(), nn.Linear(hidden2, n_outputs)
    )


def _personality(n_features: int, target: Target, options: Options, *, name: str, alone: str) -> Personality:
    """
    Raises:
        LabelsError: there is no trait beside the score.
    """
    if len(target.tasks) < 2:
        raise LabelsError(
            f"{name!r} learns an aesthetic score, its first task, and traits, the others; there is "
            f"only {', '.join(target.tasks)}; add traits, name them with --tasks, or train {alone!r}"
        )
    return Personality(n_features, len(target.tasks) - 1, hidden1=options["hidden1"], hidden2=options["hidden2"])


def _on_features(shapes: tuple[Shape, ...], target: Target, options: Options) -> Personality:
    ((n_features,),) = shapes
    return _personality(n_features, target, options, name="personality-frozen", alone="aesthetics-only")


def _from_pixels(shapes: tuple[Shape, ...], target: Target, options: Options) -> PersonalityFromPixels:
    trunk = trunk_of(options)
    return PersonalityFromPixels(
        trunk.photos(shapes[0], options),
        trunk,
        _personality(trunk.n_features, target, options, name="personality", alone="resnet50-single"),
        target,
        ten_crops=options["ten_crops"],
        batch_norm=options["batch_norm"],
    )


def _aesthetics(shapes: tuple[Shape, ...], target: Target, options: Options) -> Aesthetics:
    ((n_features,),) = shapes
    return Aesthetics(n_features, len(target.tasks), hidden1=options["hidden1"], hidden2=options["hidden2"])


def _branches_then_weights(options: Options) -> tuple[Stage, ...]:
    return (
        Stage(options["epochs"], options["lr"], parameters=("aesthetics.", "personality.")),
        Stage(options["last_epochs"], options["last_lr"], parameters=("trait_weights",), tasks=(0,)),
    )


def _trunk_and_branches_then_weights(options: Options) -> tuple[Stage, ...]:
    first, last = _branches_then_weights(options)
    moving = ("trunk.", *(f"branches.{name}" for name in first.parameters))
    return (
        replace(first, parameters=moving, rates={"trunk.": options["trunk_lr"]}),
        replace(last, parameters=("branches.trait_weights",)),
    )


def _of_training(last: bool) -> dict[str, Option]:
    """Options of all of them; `last`: of the stage that learns the weights of the traits as well."""
    stage = {
        "last_lr": Option(1e-4, f"{PAPER}: of the stage that learns the traits' weights", low=0),
        "last_epochs": Option(20, "ours: of that stage; the paper does not say", low=1),
    }
    return {
        "hidden1": Option(1024, PAPER, low=1),
        "hidden2": Option(512, PAPER, low=1),
        **(stage if last else {}),
        "optimiser": Option("sgd", PAPER, choices=("adam", "adamw", "sgd")),
        "lr": Option(1e-4, PAPER, low=0),
        "lr_factor": Option(0.9, PAPER, low=0, high=1),
        "lr_every": Option(1, f"{PAPER}: epochs after which the rate is multiplied by lr_factor", low=1),
        "momentum": Option(0.9, PAPER, low=0, high=1),
        "weight_decay": Option(1e-5, PAPER, low=0),
        "batch": Option(32, "ours: the paper does not say", low=1),
        "epochs": Option(20, PAPER, low=1),
        **without_early_stopping(),
    }


register(
    System(
        name="personality-frozen",
        title="an aesthetic score that personality traits correct",
        source=f"{PAPER}, on frozen features",
        reads=("concat",),
        kinds=("regression",),
        options=by_gradient(PAPER, **_of_training(last=True)),
        build=_on_features,
        stages=_branches_then_weights,
        alternate=True,
    )
)

register(
    System(
        name="personality",
        title="the same with its network, from pixels",
        source=PAPER,
        reads=("pixels",),
        kinds=("regression",),
        options=from_pixels(
            PAPER,
            **trunk_options("densenet121", PAPER),
            trunk_lr=Option(1e-5, f"{PAPER}: of the trunk", low=0),
            batch_norm=Option(True, "ours: the trunk's learn from both sets in turn; false: they stay"),
            crop=Option(224, f"{PAPER}: side of the crop that the network sees", low=1),
            flip=Option(False, f"{PAPER}: random crops alone"),
            **_of_training(last=True),
        ),
        build=_from_pixels,
        stages=_trunk_and_branches_then_weights,
        alternate=True,
        epoch_of=0,
        init=("trunk",),
    )
)

register(
    System(
        name="aesthetics-only",
        title="the aesthetic score without the traits",
        source=f"{PAPER}, its baseline",
        reads=("concat",),
        kinds=("regression",),
        options=by_gradient(PAPER, **_of_training(last=False)),
        build=_aesthetics,
    )
)
