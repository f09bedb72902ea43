"""Mixture of experts and multilayer perceptron for visual sentiment (Pournaras et al., MediaEval 2021)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from heads.labels.target import Target
from heads.systems.layers import Dropout
from heads.systems.registry import register
from heads.systems.system import KINDS, Option, Options, Shape, System, by_gradient, without_early_stopping

PAPER = "Pournaras et al., Multiple deep features for visual sentiment, MediaEval 2021"


class MoE(nn.Module):
    """A hidden layer, then a few experts for each class and a gate that says how much each of them counts.

    N images, F features, C classes, E experts of a class; the gate has one more, a dummy, that only takes part in it:

        h = relu(dropout(W f + b));  e_ci = sigmoid(We_ci h + be_ci);  g_c = softmax(Wg_c h + bg_c), of E + 1
        score_c = sum over i <= E of e_ci g_ci

    The logit of a class is the logarithm of its score, so that softmax gives score_c / sum of all scores: the paper
    trains with cross-entropy of scores in 0 .. 1 and does not say more; this is what Keras does with such scores.
    """

    def __init__(self, n_features: int, n_classes: int, *, hidden: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(n_features, hidden)
        self.dropout = Dropout(dropout)
        self.experts = nn.Linear(hidden, n_classes * experts)
        self.gates = nn.Linear(hidden, n_classes * (experts + 1))
        self.n_classes = n_classes

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> logarithms of the scores (N, C)."""
        hidden = torch.relu(self.dropout(self.hidden(features)))
        experts = functional.logsigmoid(self.experts(hidden)).view(len(hidden), self.n_classes, -1)  # (N, C, E)
        gates = self.gates(hidden).view(len(hidden), self.n_classes, -1).log_softmax(-1)  # (N, C, E + 1)
        # Logarithms throughout: a score that is too small for a float still has a finite logit and a gradient.
        scores: Tensor = (experts + gates[..., :-1]).logsumexp(-1)
        return scores


class MLP(nn.Module):
    """Two hidden layers, with ReLU and dropout after each."""

    def __init__(self, n_features: int, n_outputs: int, *, hidden1: int, hidden2: int, dropout: float) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(n_features, hidden1)
        self.hidden2 = nn.Linear(hidden1, hidden2)
        self.out = nn.Linear(hidden2, n_outputs)
        self.dropout = Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, outputs)."""
        hidden = self.dropout(torch.relu(self.hidden1(features)))
        hidden = self.dropout(torch.relu(self.hidden2(hidden)))
        out: Tensor = self.out(hidden)
        return out


def _moe(shapes: tuple[Shape, ...], target: Target, options: Options) -> MoE:
    ((n_features,),) = shapes
    return MoE(
        n_features,
        len(target.classes),
        hidden=options["hidden"],
        experts=options["experts"],
        dropout=options["dropout"],
    )


def _mlp(shapes: tuple[Shape, ...], target: Target, options: Options) -> MLP:
    ((n_features,),) = shapes
    return MLP(
        n_features,
        target.n_outputs,
        hidden1=options["hidden1"],
        hidden2=options["hidden2"],
        dropout=options["dropout"],
    )


def _options(**own: Option) -> dict[str, Option]:
    """What both have in common: every training row is fitted, and the last weights are kept."""
    return by_gradient(
        PAPER,
        batch=Option(64, PAPER, low=1),
        lr_factor=Option(0.5, PAPER, low=0, high=1),
        lr_every=Option(70, f"{PAPER}: epochs after which the rate is halved", low=1),
        **without_early_stopping(),
        **own,
    )


register(
    System(
        name="moe",
        title="two experts and a gate for each class",
        source=f"{PAPER}, single-label",
        reads=("concat",),
        kinds=("multiclass",),
        options=_options(
            hidden=Option(200, PAPER, low=1),
            experts=Option(2, f"{PAPER}: of each class", low=1),
            dropout=Option(0.4, "ours: the paper does not say; as its mlp", low=0, high=0.99),
            lr=Option(1e-5, PAPER, low=0),
            epochs=Option(300, PAPER, low=1),
        ),
        build=_moe,
    )
)

register(
    System(
        name="mlp",
        title="two hidden layers",
        source=f"{PAPER}, multi-label",
        reads=("concat",),
        kinds=KINDS,
        options=_options(
            hidden1=Option(1000, PAPER, low=1),
            hidden2=Option(200, PAPER, low=1),
            dropout=Option(0.4, PAPER, low=0, high=0.99),
            lr=Option(3e-6, f"{PAPER}: of 7 classes; 5e-6 of 10", low=0),
            epochs=Option(300, f"{PAPER}: of 7 classes; 200 of 10", low=1),
        ),
        build=_mlp,
    )
)
