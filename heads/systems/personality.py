"""Aesthetics helped by personality (Li et al., "Personality-driven multi-task aesthetics"), on frozen features."""

import torch
from torch import Tensor, nn

from heads.errors import LabelsError
from heads.labels.target import Target
from heads.systems.registry import register
from heads.systems.system import Option, Options, Shape, Stage, System, by_gradient, without_early_stopping

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


def _personality(shapes: tuple[Shape, ...], target: Target, options: Options) -> Personality:
    """
    Raises:
        LabelsError: there is no trait beside the score.
    """
    if len(target.tasks) < 2:
        raise LabelsError(
            f"'personality-frozen' learns an aesthetic score, its first task, and traits, the others; there is "
            f"only {', '.join(target.tasks)}; add traits, name them with --tasks, or train 'aesthetics-only'"
        )
    ((n_features,),) = shapes
    return Personality(n_features, len(target.tasks) - 1, hidden1=options["hidden1"], hidden2=options["hidden2"])


def _aesthetics(shapes: tuple[Shape, ...], target: Target, options: Options) -> Aesthetics:
    ((n_features,),) = shapes
    return Aesthetics(n_features, len(target.tasks), hidden1=options["hidden1"], hidden2=options["hidden2"])


def _branches_then_weights(options: Options) -> tuple[Stage, ...]:
    return (
        Stage(options["epochs"], options["lr"], parameters=("aesthetics.", "personality.")),
        Stage(options["last_epochs"], options["last_lr"], parameters=("trait_weights",), tasks=(0,)),
    )


def _options(**own: Option) -> dict[str, Option]:
    return by_gradient(
        PAPER,
        hidden1=Option(1024, PAPER, low=1),
        hidden2=Option(512, PAPER, low=1),
        **own,
        optimiser=Option("sgd", PAPER, choices=("adam", "adamw", "sgd")),
        lr=Option(1e-4, PAPER, low=0),
        lr_factor=Option(0.9, PAPER, low=0, high=1),
        lr_every=Option(1, f"{PAPER}: epochs after which the rate is multiplied by lr_factor", low=1),
        momentum=Option(0.9, PAPER, low=0, high=1),
        weight_decay=Option(1e-5, PAPER, low=0),
        batch=Option(32, "ours: the paper does not say", low=1),
        epochs=Option(20, PAPER, low=1),
        **without_early_stopping(),
    )


register(
    System(
        name="personality-frozen",
        title="an aesthetic score that personality traits correct",
        source=f"{PAPER}, on frozen features",
        reads=("concat",),
        kinds=("regression",),
        options=_options(
            last_lr=Option(1e-4, f"{PAPER}: of the stage that learns the traits' weights", low=0),
            last_epochs=Option(20, "ours: of that stage; the paper does not say", low=1),
        ),
        build=_personality,
        stages=_branches_then_weights,
        alternate=True,
    )
)

register(
    System(
        name="aesthetics-only",
        title="the aesthetic score without the traits",
        source=f"{PAPER}, its baseline",
        reads=("concat",),
        kinds=("regression",),
        options=_options(),
        build=_aesthetics,
    )
)
