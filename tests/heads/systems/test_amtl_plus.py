"""AMTL under a kernel machine: its formulas, what it attends to, and that it travels with its images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load, save
from scipy.spatial.distance import cdist
from torch.nn.functional import pad

from heads.labels.target import Target
from heads.systems import find_system
from heads.systems.amtl_plus import AMTLPlus
from heads.systems.layers import joined
from heads.systems.system import NO_FOLD, Sample

Photos = tuple[torch.Tensor, torch.Tensor]
"""(N, B, T, F) and (N, F2)."""


def photos(n: int, b: int = 2, t: int = 3, f: int = 4, f2: int = 5, seed: int = 0) -> Photos:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, b, t, f, generator=draw), torch.randn(n, f2, generator=draw)


def sample_of(both: Photos, n_tasks: int = 2, seed: int = 0) -> Sample:
    labels = np.random.default_rng(seed).uniform(-0.5, 0.5, (len(both[0]), n_tasks)).astype(np.float32)
    target = Target("regression", tuple(f"task {k}" for k in range(n_tasks)))
    return Sample(joined(*both).numpy(), labels, np.full(len(labels), NO_FOLD), target, 0)


def fitted(both: Photos, sample: Sample, *changes: str) -> AMTLPlus:
    system = find_system("amtl-plus")
    options = system.settle(changes)
    model = system.build((both[0].shape[1:], both[1].shape[1:]), sample.target, options)
    system.fit(model, sample, options)
    return model.eval()


class Oracle:
    """The formulas of the docstrings, in numpy, for the labels of one task."""

    def __init__(
        self,
        both: Photos,
        *,
        sharpness: float,
        whole: float,
        gamma: float,
        temperature: float,
        components: int = 256,
        stretch: float = 0.4,
    ) -> None:
        self.sharpness, self.share, self.gamma, self.temperature = sharpness, whole, gamma, temperature
        self.axes = [self.axes_of(each, components, stretch) for each in self.tokens_of(both)]
        self.places = self.places_of(both)
        self.spreads = [cdist(each, each, "sqeuclidean").mean() for each in self.places]

    def axes_of(self, tokens: NDArray[np.float64], components: int, stretch: float) -> tuple[Any, Any]:
        variances, axes = np.linalg.eigh(np.cov(tokens.T, ddof=1))
        kept = np.argsort(-variances)[: min(components, len(tokens) - 1, tokens.shape[1])]
        return tokens.mean(0), axes[:, kept] * variances[kept].clip(0) ** (stretch / 2)

    def by_feature(self, stack: NDArray[np.float64]) -> NDArray[np.float64]:
        powers = np.exp(self.sharpness * stack)
        return powers / powers.sum(2, keepdims=True)

    def tokens_of(self, both: Photos) -> list[NDArray[np.float64]]:
        stack, whole = (each.double().numpy() for each in both)
        attended = np.einsum("nijf,nijf->inf", self.by_feature(stack), stack)
        return [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (whole, *attended)]

    def places_of(self, both: Photos) -> list[NDArray[np.float64]]:
        along = [(some - mean) @ axes for some, (mean, axes) in zip(self.tokens_of(both), self.axes, strict=True)]
        return [each / np.linalg.norm(each, axis=1, keepdims=True) for each in along]

    def distances(self, both: Photos) -> list[NDArray[np.float64]]:
        return [
            cdist(some, own, "sqeuclidean") / spread
            for some, own, spread in zip(self.places_of(both), self.places, self.spreads, strict=True)
        ]

    def backbones(self, both: Photos, labels: NDArray[np.float64]) -> NDArray[np.float64]:
        away, n = labels - labels.mean(), len(labels)
        centring = np.eye(n) - 1 / n
        score = []
        for apart in self.distances(both)[1:]:
            centred = centring @ np.exp(-self.gamma * apart) @ centring
            score.append(np.trace(centred @ np.outer(away, away)) / np.linalg.norm(centred) / (away @ away))
        powers = np.exp(self.temperature * np.array(score))
        return powers / powers.sum()

    def kernel(self, both: Photos, backbones: NDArray[np.float64]) -> NDArray[np.float64]:
        whole, *blocks = self.distances(both)
        of_blocks = sum(weight * apart for weight, apart in zip(backbones, blocks, strict=True))
        return np.exp(-self.gamma * (self.share * whole + (1 - self.share) * of_blocks))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(4, 20), b=st.integers(1, 4), t=st.integers(1, 5), f=st.integers(2, 7), f2=st.integers(2, 9),
    k=st.integers(1, 3), sharpness=st.floats(0, 3), whole=st.floats(0, 1), gamma=st.floats(0.1, 2),
    temperature=st.floats(0, 30), components=st.integers(1, 9), stretch=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_it_says_what_the_formulas_say(
    n, b, t, f, f2, k, sharpness, whole, gamma, temperature, components, stretch, seed
) -> None:
    both, new = photos(n, b, t, f, f2, seed), photos(6, b, t, f, f2, seed + 1)
    sample = sample_of(both, k, seed=seed)
    given_ = {"sharpness": sharpness, "whole": whole, "gamma": gamma, "temperature": temperature}
    given_ |= {"components": components, "stretch": stretch}
    model = fitted(both, sample, "penalty=0.1", *(f"{name}={value}" for name, value in given_.items()))
    oracle = Oracle(both, **given_)
    expected, backbones = np.zeros((6, k)), np.zeros((k, b))
    for task, labels in enumerate(sample.labels.T.astype(float)):
        backbones[task] = oracle.backbones(both, labels)
        kernel = oracle.kernel(both, backbones[task])
        own = np.linalg.solve(kernel + 0.1 * np.eye(n), labels - labels.mean())
        expected[:, task] = oracle.kernel(new, backbones[task]) @ own + labels.mean()
    seen = model.attention(*new)
    parts = np.stack(oracle.tokens_of(new)[1:], 1)[:, :, None] ** 2
    assert model(*new).numpy() == pytest.approx(expected, abs=1e-4)
    assert seen["backbones"].numpy() == pytest.approx(np.broadcast_to(backbones, (6, k, b)), abs=1e-4)
    assert seen["blocks"].numpy() == pytest.approx(
        (oracle.by_feature(new[0].double().numpy()) * parts).sum(-1), abs=1e-5
    )


def test_attention_sums_to_1_even_where_a_backbone_says_nothing() -> None:
    stack, whole = photos(12)
    stack[0, 1] = 0
    seen = fitted((stack, whole), sample_of((stack, whole))).attention(stack, whole)
    assert seen["blocks"].sum(-1) == pytest.approx(np.ones((12, 2)), abs=1e-5)
    assert seen["backbones"].sum(-1) == pytest.approx(np.ones((12, 2)), abs=1e-5)
    assert seen["blocks"][0, 1] == pytest.approx(np.full(3, 1 / 3), abs=1e-5)


@pytest.mark.parametrize("n_more", [1, 30])
def test_padding_is_ignored(n_more: int) -> None:
    both = photos(20)
    padded = (pad(both[0], (0, n_more)), both[1])
    narrow, wide = (fitted(each, sample_of(each)) for each in (both, padded))
    assert torch.allclose(wide(*padded), narrow(*both), atol=1e-5)
    for name, weights in narrow.attention(*both).items():
        assert torch.allclose(wide.attention(*padded)[name], weights, atol=1e-5)


def test_gradients_are_those_of_finite_differences(gradients_are_right) -> None:
    both, new = photos(10), photos(3, seed=1)
    gradients_are_right(fitted(both, sample_of(both)), *new)


def test_learns_what_a_single_block_anywhere_says() -> None:
    """One block of one backbone has two strong features, one the more the higher the rating; the rest is noise."""
    draw = torch.Generator().manual_seed(0)
    stack, whole = 0.3 * torch.randn(400, 2, 16, 4, generator=draw), torch.randn(400, 5, generator=draw)
    says = torch.rand(400, generator=draw)
    where = torch.randint(16, (400,), generator=draw)
    stack[torch.arange(400), 1, where, 2], stack[torch.arange(400), 1, where, 3] = 5 * says, 5 * (1 - says)
    labels = (says - 0.5)[:, None].numpy()
    both, new = (stack[:300], whole[:300]), (stack[300:], whole[300:])
    sample = replace(sample_of(both, 1), labels=labels[:300])

    def right(*changes: str) -> float:
        out = fitted(both, sample, "whole=0", *changes)(*new)[:, 0].numpy()
        return float(np.corrcoef(out, labels[300:, 0])[0, 1])

    assert right() > 0.9
    assert right() > right("sharpness=0") + 0.05  # the mean of the blocks says less
    seen = fitted(both, sample, "whole=0").attention(*new)
    assert (seen["blocks"][:, 1].argmax(1) == where[300:]).float().mean() > 0.9
    assert (seen["backbones"][:, 0, 1] > 0.9).all()


def test_what_the_whole_photo_says_is_heard_too() -> None:
    both, new = photos(200, f2=3), photos(100, f2=3, seed=1)
    labels = 0.4 * torch.sin(2 * torch.nn.functional.normalize(both[1])[:, :1]).numpy()
    model = fitted(both, replace(sample_of(both, 1), labels=labels), "whole=1")
    expected = torch.sin(2 * torch.nn.functional.normalize(new[1])[:, 0]).numpy()
    assert np.corrcoef(model(*new)[:, 0], expected)[0, 1] > 0.95


def test_missing_labels_are_left_out_task_by_task() -> None:
    both = photos(30)
    sample = sample_of(both)
    labels = sample.labels.copy()
    labels[::3, 0] = np.nan
    model = fitted(both, replace(sample, labels=labels), "penalty=0.1")
    oracle = Oracle(both, sharpness=2, whole=0.67, gamma=1, temperature=30)  # distances are of all images
    known = np.flatnonzero(np.isfinite(labels[:, 0]))
    own = model.backbones[0].double().numpy()
    kernel = oracle.kernel(both, own)[:, known]
    away = labels[known, 0].astype(float) - labels[known, 0].mean()
    expected = kernel @ np.linalg.solve(kernel[known] + 0.1 * np.eye(len(known)), away) + labels[known, 0].mean()
    assert model(*both)[:, 0].numpy() == pytest.approx(expected, abs=1e-4)
    untouched = fitted(both, sample, "penalty=0.1")
    assert torch.allclose(model(*both)[:, 1], untouched(*both)[:, 1], atol=1e-6)


def test_the_smaller_the_penalty_the_nearer_to_the_labels() -> None:
    both = photos(30)
    sample = sample_of(both)
    errors = [
        np.abs(fitted(both, sample, f"penalty={penalty}")(*both).numpy() - sample.labels).mean()
        for penalty in (0.001, 0.1, 10.0)
    ]
    assert errors[0] < 0.01
    assert errors == sorted(errors)


def test_a_new_model_loads_as_many_images_as_were_saved() -> None:
    both = photos(20)
    model = fitted(both, sample_of(both))
    system = find_system("amtl-plus")
    fresh = system.build((both[0].shape[1:], both[1].shape[1:]), sample_of(both).target, system.settle([]))
    inside = torch.nn.ModuleList([fresh])  # within another module, as training wraps it
    inside.load_state_dict(load(save({f"0.{name}": value for name, value in model.state_dict().items()})))
    assert torch.equal(fresh(*both), model(*both))
    assert torch.equal(fresh.attention(*both)["backbones"], model.attention(*both)["backbones"])
