"""What tests of systems share: training in a few lines, and the claim that padding does not count."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from heads.labels.target import Kind, Target
from heads.systems.system import NO_FOLD, Sample
from heads.training.losses import masked_loss


@pytest.fixture(scope="session")
def target() -> Callable[..., Target]:
    """A target of so many tasks, or of one task with so many classes."""

    def make(kind: Kind, n: int) -> Target:
        names = tuple(f"t{i}" for i in range(n))
        return Target(kind, ("class",), names) if kind == "multiclass" else Target(kind, names)

    return make


@pytest.fixture(scope="session")
def learn() -> Callable[..., None]:
    """Adam on random minibatches of 32."""

    def train(
        model: nn.Module, target: Target, features: Tensor, labels: Tensor, *, steps: int, lr: float = 0.01
    ) -> None:
        loss, optimiser = masked_loss(target), torch.optim.Adam(model.parameters(), lr=lr)
        draw = torch.Generator().manual_seed(0)
        model.train()
        for _ in range(steps):
            rows = torch.randint(len(features), (32,), generator=draw)
            optimiser.zero_grad()
            loss(model(features[rows]), labels[rows]).backward()
            optimiser.step()
        model.eval()

    return train


@pytest.fixture(scope="session")
def padding_is_ignored() -> Callable[..., None]:
    """Zeros after the last feature change neither outputs nor the gradients of weights that see other features."""

    def check(make: Callable[[int], nn.Module], features: Tensor, n_more: int) -> None:
        wide, narrow = make(features.shape[-1] + n_more).double().eval(), make(features.shape[-1]).double().eval()
        corner = {name: tuple(slice(n) for n in value.shape) for name, value in narrow.named_parameters()}
        assert any(narrow.get_parameter(name).shape != wide.get_parameter(name).shape for name in corner)
        narrow.load_state_dict({name: value[corner[name]] for name, value in wide.state_dict().items()})
        outputs = [wide(pad(features, (0, n_more))), narrow(features)]
        assert torch.allclose(outputs[0], outputs[1], atol=1e-12)
        for out in outputs:
            out.square().sum().backward()
        for name, where in corner.items():
            ours, theirs = wide.get_parameter(name).grad, narrow.get_parameter(name).grad
            assert torch.allclose(ours[where], theirs, atol=1e-12), name

    return check


@pytest.fixture(scope="session")
def gradients_are_right() -> Callable[..., None]:
    """By finite differences, for features and parameters."""

    def check(model: nn.Module, *features: Tensor, names: Sequence[str] = ()) -> None:
        model = model.double().eval()
        chosen = list(names) or [name for name, _ in model.named_parameters()]

        def run(*values: Tensor) -> Tensor:
            inputs, parameters = values[: len(features)], values[len(features) :]
            return torch.func.functional_call(model, dict(zip(chosen, parameters, strict=True)), inputs)

        inputs = [each.double().requires_grad_() for each in features]
        assert torch.autograd.gradcheck(run, (*inputs, *(model.get_parameter(name) for name in chosen)))

    return check


@pytest.fixture(scope="session")
def as_sample(target: Callable[..., Target]) -> Callable[..., Sample]:
    """Random standardised features, and labels of every kind that follow from them."""

    def make(kind: Kind, *, n: int = 60, n_features: int = 8, n_folds: int = 3, outputs: int = 3, seed: int = 0):
        draw = torch.Generator().manual_seed(seed)
        features = torch.randn(n, n_features, generator=draw)
        features = (features - features.mean(0)) / features.std(0, correction=0)
        says = features @ torch.randn(n_features, outputs, generator=draw) / n_features**0.5
        says = says + 0.5 * torch.randn(n, outputs, generator=draw)
        if kind == "regression":
            labels = (0.15 * says).clamp(-0.5, 0.5)
        elif kind == "multiclass":
            labels = says.argmax(1, keepdim=True).float()
        else:
            labels = (says > 0).float()
        folds = np.arange(n) % n_folds if n_folds else np.full(n, NO_FOLD)
        return Sample(features.numpy(), labels.numpy(), folds, target(kind, outputs), seed)

    return make
