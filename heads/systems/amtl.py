"""AMTL, attentive multi-task transfer learning, and its variants (Ghosal and Kolekar, "Visual Interest Prediction")."""

from functools import partial

import torch
from torch import Tensor, nn

from heads.labels.target import Target
from heads.systems.layers import Affine, Attentive, Dropout, Linears, uniform
from heads.systems.registry import register
from heads.systems.system import KINDS, OURS, Option, Options, Shape, System, by_gradient

PAPER = 'Ghosal and Kolekar, "Visual Interest Prediction"'


class AMTL(Attentive):
    """Attention over blocks, shared by all backbones; attention over backbones and a head, one per task.

    N images, B backbones, T blocks, F features, K tasks; A is the attention width, H the hidden width.

        u[i,j] = tanh(Wp f[i,j] + bp);  a[i,j] = softmax over j of u[i,j] . Vp;  f[i] = sum_j a[i,j] f[i,j]
        u[i] = tanh(Ws_k f[i] + bs_k);  a_k[i] = softmax over i of u[i] . Vs_k;  g_k = sum_i a_k[i] f[i]
        y_k = tanh(out_k(dropout(relu(hidden_k(g_k)))))

    Args:
        n_outputs: of each task; C of a task that has classes.
        squash: the tanh of y_k; without it outputs are logits.
        n_separate: backbones, if each has its own Wp, bp and Vp.
    """

    def __init__(
        self,
        n_features: int,
        n_tasks: int,
        *,
        attention: int,
        hidden: int,
        dropout: float,
        n_outputs: int = 1,
        squash: bool = True,
        n_separate: int | None = None,
    ) -> None:
        super().__init__()
        self.squash, self.separate = squash, n_separate is not None
        if n_separate is None:
            self.primary: nn.Module = Affine(n_features, attention)
            self.primary_vector = uniform((attention,), attention)
        else:
            self.primary = Linears(n_separate, n_features, attention)
            self.primary_vector = uniform((n_separate, attention, 1), attention)
        # The tasks' own parameters stand side by side, so that each step is one product for all of them.
        self.secondary = Affine(n_features, n_tasks * attention)
        self.secondary_vector = uniform((n_tasks, attention), attention)
        self.hidden_weight = uniform((n_tasks, n_features, hidden), n_features)
        self.hidden_bias = uniform((n_tasks, 1, hidden), n_features)
        self.out_weight = uniform((n_tasks, hidden, n_outputs), hidden)
        self.out_bias = uniform((n_tasks, 1, n_outputs), hidden)
        self.dropout = Dropout(dropout)

    def attend(self, *features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, B, T, F) -> (N, K), in -1 .. 1 if squashed, or (N, C) of a task with classes; and weights of the
        `blocks` (N, B, T) and of the `backbones` by task (N, K, B).
        """
        (stack,) = features
        n_tasks, width = self.secondary_vector.shape
        blocks = self._score_blocks(stack).softmax(-1)  # (N, B, T)
        by_backbone = (blocks.unsqueeze(-2) @ stack).squeeze(-2)  # (N, B, F)
        keys = torch.tanh(self.secondary(by_backbone)).view(*by_backbone.shape[:2], n_tasks, width)  # (N, B, K, A)
        backbones = (keys * self.secondary_vector).sum(-1).transpose(1, 2).softmax(-1)  # (N, K, B)
        attended = (backbones @ by_backbone).transpose(0, 1)  # (K, N, F)
        hidden = torch.relu(torch.baddbmm(self.hidden_bias, attended, self.hidden_weight))
        out = torch.baddbmm(self.out_bias, self.dropout(hidden), self.out_weight)
        out = out.transpose(0, 1).flatten(1)
        return torch.tanh(out) if self.squash else out, {"blocks": blocks, "backbones": backbones}

    def _score_blocks(self, features: Tensor) -> Tensor:
        """(N, B, T, F) -> (N, B, T)"""
        if not self.separate:
            return torch.tanh(self.primary(features)) @ self.primary_vector
        by_backbone = features.transpose(0, 1).flatten(1, 2)  # (B, N * T, F)
        scores = torch.tanh(self.primary(by_backbone)) @ self.primary_vector
        return scores.view(features.shape[1], features.shape[0], features.shape[2]).transpose(0, 1)


class Swapped(Attentive):
    """AMTL with blocks and backbones in each other's place: attention over backbones first, then over blocks."""

    def __init__(self, amtl: AMTL) -> None:
        super().__init__()
        self.amtl = amtl

    def attend(self, *features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, B, T, F) -> (N, K), or (N, C) of a task with classes; and weights `backbones_of_blocks` (N, T, B) and
        `blocks_of_tasks` (N, K, T).
        """
        (stack,) = features
        out, seen = self.amtl.attend(stack.transpose(1, 2))
        return out, {"backbones_of_blocks": seen["blocks"], "blocks_of_tasks": seen["backbones"]}


class MTL(nn.Module):
    """Two hidden layers that all tasks share, then two hidden layers and an output of each task's own.

    Each layer has half the width of the one before, the first `width`; ReLU between layers, dropout before outputs.

    Args:
        n_outputs, squash: as of `AMTL`.
    """

    def __init__(
        self, n_features: int, n_tasks: int, *, width: int, dropout: float, n_outputs: int = 1, squash: bool = True
    ) -> None:
        super().__init__()
        self.squash = squash
        self.shared1 = nn.Linear(n_features, width)
        self.shared2 = nn.Linear(width, width // 2)
        self.own1 = Linears(n_tasks, width // 2, width // 4)
        self.own2 = Linears(n_tasks, width // 4, width // 8)
        self.out = Linears(n_tasks, width // 8, n_outputs)
        self.dropout = Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, K), in -1 .. 1 if squashed; (N, C) of a task with classes."""
        shared = torch.relu(self.shared2(torch.relu(self.shared1(features))))
        own = torch.relu(self.own1(shared.expand(len(self.out.weight), -1, -1)))
        out = self.out(self.dropout(torch.relu(self.own2(own)))).transpose(0, 1).flatten(1)
        return torch.tanh(out) if self.squash else out


def _amtl(shapes: tuple[Shape, ...], target: Target, options: Options, *, separate: bool = False) -> AMTL:
    ((n_backbones, _, n_features),) = shapes
    return AMTL(
        n_features,
        len(target.tasks),
        attention=options["attention"],
        hidden=options["hidden"],
        dropout=options["dropout"],
        n_outputs=_outputs_of_a_task(target),
        squash=target.kind == "regression",
        n_separate=n_backbones if separate else None,
    )


def _swapped(shapes: tuple[Shape, ...], target: Target, options: Options) -> Swapped:
    return Swapped(_amtl(shapes, target, options))


def _mtl(shapes: tuple[Shape, ...], target: Target, options: Options) -> MTL:
    ((n_features,),) = shapes
    return MTL(
        n_features,
        len(target.tasks),
        width=options["width"],
        dropout=options["dropout"],
        n_outputs=_outputs_of_a_task(target),
        squash=target.kind == "regression",
    )


def _outputs_of_a_task(target: Target) -> int:
    return len(target.classes) if target.kind == "multiclass" else 1


REPEATS = 5  # the paper: each model trained five times, averages reported
_ATTENTIVE = by_gradient(
    PAPER,
    attention=Option(128, OURS, low=1),
    hidden=Option(256, PAPER, low=1),
    dropout=Option(0.5, PAPER, low=0, high=0.99),
    gain=Option(
        0.3, "ours: standard deviation after standardising; 0.3 had less inner loss than 1 and 0.1 on OASIS", low=0
    ),
)

for name, title, build in (
    ("amtl", "attention over blocks and backbones, all tasks at once", _amtl),
    ("amtl-single", "amtl, one model for each task", _amtl),
    ("amtl-separate", "amtl, each backbone with its own attention over blocks", partial(_amtl, separate=True)),
    ("amtl-swapped", "amtl, attention over backbones first, then over blocks", _swapped),
):
    register(
        System(
            name=name,
            title=title,
            source=PAPER,
            reads=("stack",),
            kinds=KINDS,
            options=_ATTENTIVE,
            build=build,
            repeats=REPEATS,
            per_task=name == "amtl-single",
        )
    )

register(
    System(
        name="mtl",
        title="no attention: layers shared by all tasks, then layers of their own",
        source=PAPER,
        reads=("concat",),
        kinds=KINDS,
        options=by_gradient(
            PAPER,
            width=Option(512, f"{OURS}; of the first layer: 512, 256 shared, then 128, 64 per task", low=8),
            dropout=Option(0.5, "ours: before the outputs, as amtl", low=0, high=0.99),
        ),
        build=_mtl,
        repeats=REPEATS,
    )
)
