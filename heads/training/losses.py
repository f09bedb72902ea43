"""Loss functions by the kind of target, in which missing labels are masked; and how outputs become predictions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from heads.labels.target import JointTarget, Kind, Target

RARE = 0.5
"""Of an image: as often as a class is taken to occur that no image belongs to."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs (N, n_outputs), labels (N, K) with NaN where there is none) -> a scalar."""


def masked_loss(target: Target) -> Loss:
    """The usual loss of a target: each task's mean over its known labels, summed over the tasks.

    Squared error for ratings (Ghosal and Kolekar), binary cross-entropy, or cross-entropy. Of several parts, their sum.
    """
    return joint_loss(target) if isinstance(target, JointTarget) else _LOSSES[target.kind]


def joint_loss(target: JointTarget, weights: Sequence[float] | None = None) -> Loss:
    """The weighted sum of the losses of the parts of a target.

    Args:
        weights: of each part; 1 if not said.
    """
    parts = [(masked_loss(part), labels, outputs) for part, labels, outputs in target.slices()]

    def loss(said: Tensor, labels: Tensor) -> Tensor:
        total = said.new_zeros(())
        for weight, (of_part, of_labels, of_outputs) in zip(weights or [1.0] * len(parts), parts, strict=True):
            total = total + weight * of_part(said[:, of_outputs], labels[:, of_labels])
        return total

    return loss


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    known = labels.isfinite()
    return _mean_by_task(torch.where(known, outputs - labels.nan_to_num(), 0.0).square(), known)


def binary_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    known = labels.isfinite()
    entropy = functional.binary_cross_entropy_with_logits(outputs, labels.nan_to_num(), reduction="none")
    return _mean_by_task(torch.where(known, entropy, 0.0), known)


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    known = labels[:, :1].isfinite()
    classes = labels[:, 0].nan_to_num().long()
    entropy = functional.cross_entropy(outputs, classes, reduction="none").unsqueeze(1)
    return _mean_by_task(torch.where(known, entropy, 0.0), known)


def predictions(target: Target, outputs: Tensor) -> Tensor:
    """Scaled ratings or probabilities (N, n_outputs)."""
    if isinstance(target, JointTarget):
        return torch.cat([predictions(part, outputs[:, columns]) for part, _, columns in target.slices()], 1)
    if target.kind == "regression":
        return outputs
    return outputs.softmax(1) if target.kind == "multiclass" else outputs.sigmoid()


def knowing_nothing(target: Target, labels: Tensor) -> Tensor:
    """Outputs (1, n_outputs) that say of every image what labels (N, K) are on average: the mean, or how often each
    class occurs."""
    if isinstance(target, JointTarget):
        return torch.cat([knowing_nothing(part, labels[:, columns]) for part, columns, _ in target.slices()], 1)
    if target.kind == "multiclass":
        known = labels[:, 0][labels[:, 0].isfinite()].long()
        counts = torch.bincount(known, minlength=target.n_outputs).float()
        return counts.clamp_min(RARE).log()[None]
    mean = labels.nanmean(0, keepdim=True).nan_to_num()
    if target.kind == "regression":
        return mean
    rare = RARE / max(len(labels), 1)
    return mean.clamp(rare, 1 - rare).logit()


def _mean_by_task(errors: Tensor, known: Tensor) -> Tensor:
    return (errors.sum(0) / known.sum(0).clamp_min(1)).sum()


_LOSSES: dict[Kind, Loss] = {
    "regression": squared_error,
    "binary": binary_cross_entropy,
    "multilabel": binary_cross_entropy,
    "multiclass": cross_entropy,
}
