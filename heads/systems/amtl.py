"""AMTL: attentive multi-task transfer learning (Ghosal and Kolekar, "Visual Interest Prediction")."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heads.systems.system import Option, System, register
from heads.training import Standardise, fit_by_gradient

PAPER = 'Ghosal and Kolekar, "Visual Interest Prediction"'


class AMTL(nn.Module):
    """Attention over blocks, shared by all backbones; attention over backbones and a head, one per task.

    N images, B backbones, T blocks, F features, K tasks; A is the attention width, H the hidden width.

        u[i,j] = tanh(Wp f[i,j] + bp);  a[i,j] = softmax over j of u[i,j] . Vp;  f[i] = sum_j a[i,j] f[i,j]
        u[i] = tanh(Ws_k f[i] + bs_k);  a_k[i] = softmax over i of u[i] . Vs_k;  g_k = sum_i a_k[i] f[i]
        y_k = tanh(out_k(dropout(relu(hidden_k(g_k)))))
    """

    def __init__(self, n_features: int, n_tasks: int, *, attention: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.primary = nn.Linear(n_features, attention)
        self.primary_vector = _uniform((attention,), attention)
        # The tasks' own parameters stand side by side, so that each step is one product for all of them.
        self.secondary = nn.Linear(n_features, n_tasks * attention)
        self.secondary_vector = _uniform((n_tasks, attention), attention)
        self.hidden_weight = _uniform((n_tasks, n_features, hidden), n_features)
        self.hidden_bias = _uniform((n_tasks, 1, hidden), n_features)
        self.out_weight = _uniform((n_tasks, hidden, 1), hidden)
        self.out_bias = _uniform((n_tasks, 1, 1), hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(N, B, T, F) -> (N, K) in -1 .. 1."""
        _, _, attended = self._attend(features)
        hidden = torch.relu(torch.baddbmm(self.hidden_bias, attended, self.hidden_weight))
        out = torch.baddbmm(self.out_bias, self.dropout(hidden), self.out_weight)
        return torch.tanh(out).squeeze(-1).T

    def attention(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, B, T, F) -> weights of the blocks (N, B, T) and of the backbones by task (N, K, B)."""
        blocks, backbones, _ = self._attend(features)
        return blocks, backbones

    def _attend(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n_tasks, width = self.secondary_vector.shape
        blocks = (torch.tanh(self.primary(features)) @ self.primary_vector).softmax(-1)  # (N, B, T)
        by_backbone = (blocks.unsqueeze(-2) @ features).squeeze(-2)  # (N, B, F)
        keys = torch.tanh(self.secondary(by_backbone)).view(*by_backbone.shape[:2], n_tasks, width)  # (N, B, K, A)
        backbones = (keys * self.secondary_vector).sum(-1).transpose(1, 2).softmax(-1)  # (N, K, B)
        attended = (backbones @ by_backbone).transpose(0, 1)  # (K, N, F)
        return blocks, backbones, attended


def _uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """As nn.Linear initialises its parameters."""
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def build(shape: tuple[int, ...], n_tasks: int, options: Mapping[str, Any]) -> nn.Module:
    model = AMTL(
        shape[-1],
        n_tasks,
        attention=options["attention"],
        hidden=options["hidden"],
        dropout=options["dropout"],
    )
    return Standardise(shape, model, gain=options["gain"]) if options["standardise"] else model


register(
    System(
        name="amtl",
        title="attention over blocks and backbones, all tasks at once",
        source=PAPER,
        layout="stack",
        repeats=5,  # the paper: each model trained five times, averages reported
        options={
            "attention": Option(128, "ours: the paper gives no attention width", low=1),
            "hidden": Option(256, PAPER, low=1),
            "dropout": Option(0.5, PAPER, low=0, high=1),
            "lr": Option(1e-3, PAPER, low=0),
            "batch": Option(32, PAPER, low=1),
            "epochs": Option(60, PAPER, low=1),
            "patience": Option(10, PAPER, low=0),
            "weight_decay": Option(0.0, "ours: none in the paper", low=0),
            "inner": Option(0.15, "ours: share of the training folds that early stopping looks at", low=0, high=1),
            "gain": Option(
                0.3,
                "ours: standard deviation after standardising; 0.3 had less inner loss than 1 and 0.1 on OASIS",
                low=0,
            ),
            "standardise": Option(True, "ours: per backbone, on the training rows; the paper feeds raw features"),
        },
        build=build,
        fit=fit_by_gradient,
    )
)
