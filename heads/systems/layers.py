"""Layers that several heads are made of: attention, dropout, linear maps."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Dropout that draws from a generator of the model's own: models that learn side by side do not disturb each other.

    Args:
        p: probability of a value to be dropped, 0 <= p < 1.

    `generator` is None, for torch's own one, until training gives the model its own. `generators` are those of all
    models of a stack while it stands for them: each draws what it would draw alone.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None
        self.generators: Sequence[torch.Generator] = ()

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape, unchanged; in training each is 0 with probability p, or else 1 / (1 - p) as large."""
        if not self.training or self.p == 0:
            return values
        # On a CPU this takes a third of the time of bernoulli_, which draws one number at a time.
        if self.generators:
            drawn: Tensor = _DrawEach.apply(values.detach(), self.generators)
        else:
            drawn = torch.rand(values.shape, generator=self.generator, device=values.device)
        return values * (drawn >= self.p) * (1 / (1 - self.p))


class _DrawEach(torch.autograd.Function):
    """Numbers between 0 and 1 for the values of each model that `torch.vmap` runs, from that model's generator."""

    @staticmethod
    def forward(values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        raise RuntimeError("generators of several models are for torch.vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, values: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, int]:
        shape = values.movedim(in_dims[0], 0).shape[1:]
        return torch.stack([torch.rand(shape, generator=each, device=values.device) for each in generators]), 0


class Attentive(nn.Module):
    """A model that says, along with its outputs, what it attended to."""

    def attend(self, *features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Tensors (N, ...) -> outputs (N, n_outputs), and weights (N, ...) by the name of what they are of."""
        raise NotImplementedError

    def forward(self, *features: Tensor) -> Tensor:
        """The outputs of `attend`."""
        return self.attend(*features)[0]

    def attention(self, *features: Tensor) -> dict[str, Tensor]:
        """The weights of `attend`."""
        return self.attend(*features)[1]


class Linears(nn.Module):
    """G linear maps side by side, each with its own input: one product for all of them."""

    def __init__(self, n_maps: int, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.weight = uniform((n_maps, n_inputs, n_outputs), n_inputs)
        self.bias = uniform((n_maps, 1, n_outputs), n_inputs)

    def forward(self, values: Tensor) -> Tensor:
        """(G, N, inputs) -> (G, N, outputs)."""
        return torch.baddbmm(self.bias, values, self.weight)


class Affine(nn.Module):
    """A linear map whose weights lie as they are multiplied, (inputs, outputs).

    On a CPU, with few rows or few outputs, its products and their gradients take a sixth less than those of nn.Linear,
    which transposes.
    """

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.weight = uniform((n_inputs, n_outputs), n_inputs)
        self.bias = uniform((n_outputs,), n_inputs)

    def forward(self, values: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        flat = torch.addmm(self.bias, values.flatten(0, -2), self.weight)
        return flat.view(*values.shape[:-1], -1)


class LinearMap(nn.Module):
    """One linear map of all features of an image; it begins at 0, as there are more features than images to learn from.

    Whatever else it began at would stay in every direction in which those images do not differ.
    """

    def __init__(self, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, n_outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, *features: Tensor) -> Tensor:
        """Tensors (N, ...) -> (N, outputs)."""
        out: Tensor = self.linear(joined(*features))
        return out


def joined(*features: Tensor) -> Tensor:
    """Tensors (N, ...), each flattened, side by side: (N, F)."""
    return torch.cat([each.flatten(1) for each in features], 1) if len(features) > 1 else features[0].flatten(1)


def n_joined(shapes: tuple[tuple[int, ...], ...]) -> int:
    """The number of features F of tensors with such rows, `joined`."""
    return sum(prod(shape) for shape in shapes)


def take_sizes(module: nn.Module, names: Iterable[str], saved: Mapping[str, Tensor], prefix: str) -> None:
    """Before a saved state is loaded, make the named buffers as large as they are in it.

    An estimator that keeps images that it was fitted to does not know how many before.
    """
    for name in names:
        if (value := saved.get(prefix + name)) is not None:
            setattr(module, name, torch.empty_like(value, device=module.get_buffer(name).device))


def uniform(shape: tuple[int, ...], n_inputs: int) -> nn.Parameter:
    """As nn.Linear draws its initial parameters."""
    bound = n_inputs**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
