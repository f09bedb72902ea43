"""Sparse regression: against what it has to be for orthonormal features, and groups whose cause is known."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.color import hsv2rgb

from featstore.backbones import Weights, find_card
from featstore.backbones.networks import build_network
from heads.labels.target import Target
from heads.systems import find_system
from heads.systems.sparse import Sparse
from heads.systems.system import NO_FOLD, Sample

Groups = Sequence[tuple[str, int]]
METHODS = ("lasso", "omp", "multitask")


def fitted(
    features: NDArray[np.float64], labels: NDArray[np.float64], groups: Groups = (), *changes: str, n_folds: int = 5
) -> Sparse:
    system, target = find_system("sparse"), Target("regression", tuple(f"t{i}" for i in range(labels.shape[1])))
    options = system.settle(changes)
    model = system.build((features.shape[1:],), target, options)
    folds = np.arange(len(features)) % n_folds if n_folds else np.full(len(features), NO_FOLD)
    assert system.fit is not None
    sample = Sample(features.astype(np.float32), labels.astype(np.float32), folds, target, 0, tuple(groups))
    system.fit(model, sample, options)
    assert isinstance(model, Sparse)
    return model


def orthonormal(n: int = 64, n_features: int = 8) -> NDArray[np.float64]:
    """Columns of mean 0 and variance 1 that are orthogonal to each other."""
    draw = np.random.default_rng(0).normal(size=(n, n_features))
    columns, _ = np.linalg.qr(draw - draw.mean(0))
    return columns * np.sqrt(n)


def alone(n_features: int) -> Groups:
    """Each feature is a group, so that none is scaled against the others."""
    return [(f"f{i}", 1) for i in range(n_features)]


def test_lasso_of_orthonormal_features_is_the_soft_threshold() -> None:
    features, weights = orthonormal(), np.array([0.3, -0.2, 0.12, -0.08, 0.05, 0.02, 0, 0])
    model = fitted(features, (features @ weights)[:, None] + 0.1, alone(8), "alpha=0.1")
    expected = np.sign(weights) * np.maximum(np.abs(weights) - 0.1, 0)
    np.testing.assert_allclose(model.linear.weight.detach()[0], expected, atol=1e-6)
    np.testing.assert_allclose(model(torch.zeros(1, 8)).item(), 0.1, atol=1e-6)


def test_omp_of_orthonormal_features_has_the_k_largest() -> None:
    features, weights = orthonormal(), np.array([0.02, -0.3, 0.12, 0, -0.2, 0.05, 0.01, 0])
    model = fitted(features, (features @ weights)[:, None], alone(8), "method=omp", "features=3")
    np.testing.assert_allclose(model.linear.weight.detach()[0], [0, -0.3, 0.12, 0, -0.2, 0, 0, 0], atol=1e-6)


def test_multitask_of_orthonormal_features_shrinks_all_tasks_of_a_feature_together() -> None:
    features = orthonormal()
    weights = np.array([[0.3, 0, 0.06, 0.05, 0, 0, 0, 0], [0.4, 0.2, 0.08, 0, 0, 0, 0, 0]])
    model = fitted(features, features @ weights.T, alone(8), "method=multitask", "alpha=0.1")
    lengths = np.sqrt(np.square(weights).sum(0))
    expected = weights * np.maximum(1 - 0.1 / np.maximum(lengths, 1e-9), 0)
    np.testing.assert_allclose(model.linear.weight.detach(), expected, atol=1e-4)


def test_lasso_of_features_of_unit_variance_knows_no_groups_and_no_sizes() -> None:
    features, weights = orthonormal(), np.array([0.3, -0.2, 0.12, -0.08, 0.05, 0.02, 0, 0])
    sizes = np.array([1, 100, 0.01, 5, 1, 3, 7, 1])
    expected = np.sign(weights) * np.maximum(np.abs(weights) - 0.1, 0) / sizes
    for groups in ([("wide", 7), ("narrow", 1)], ()):
        model = fitted(features * sizes, (features @ weights)[:, None], groups, "alpha=0.1", "unit_variance=feature")
        np.testing.assert_allclose(model.linear.weight.detach()[0], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("of", "finds"), [("group", False), ("feature", True)])
def test_one_word_among_many_is_found_where_features_are_scaled_one_by_one(of: str, finds: bool) -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(120, 1003))
    labels = 0.1 * features[:, [500]] + 0.05 * draw.normal(size=(120, 1))
    model = fitted(features, labels, [("words", 1000), ("few", 3)], f"unit_variance={of}")
    assert (model.linear.weight.abs().argmax() == 500).item()
    assert (model.learned()["share of |weight|: words"] > 0.99).item() == finds


@pytest.mark.parametrize("method", METHODS)
def test_a_cause_is_found_in_its_group_however_wide_or_large_the_others_are(method: str) -> None:
    draw = np.random.default_rng(1)
    causes = draw.normal(size=(120, 4))
    widths = (1, 3, 40, 150)
    parts = [
        cause[:, None] * draw.choice([-1, 1], width) * size + 0.05 * size * draw.normal(size=(120, width))
        for cause, width, size in zip(causes.T, widths, (1, 1000, 0.01, 1), strict=True)
    ]
    groups = [(f"hand/{name}-1", width) for name, width in zip("abcd", widths, strict=True)]
    model = fitted(np.concatenate(parts, 1), 0.1 * causes, groups, f"method={method}")
    shares = torch.stack(list(model.learned().values()))
    assert list(model.learned()) == [f"share of |weight|: hand/{name}-1" for name in "abcd"]
    torch.testing.assert_close(shares.sum(0), torch.ones(4))
    assert (shares.argmax(0) == torch.arange(4)).all()
    if method == "lasso":
        assert (shares.diagonal() > 0.8).all(), shares
    predicted = model(torch.from_numpy(np.concatenate(parts, 1)).float()).detach().numpy()
    assert all(np.corrcoef(predicted[:, i], causes[:, i])[0, 1] > 0.85 for i in range(4))


def test_the_size_of_a_group_changes_nothing() -> None:
    draw = np.random.default_rng(2)
    features, labels = draw.normal(size=(60, 9)), 0.1 * draw.normal(size=(60, 1))
    labels += 0.1 * features[:, :1] - 0.1 * features[:, 6:7]
    large = features * np.repeat([100.0, 1.0], [4, 5])
    one, other = (fitted(each, labels, [("a", 4), ("b", 5)]) for each in (features, large))
    for name, share in one.learned().items():
        torch.testing.assert_close(share, other.learned()[name], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        one(torch.from_numpy(features).float()), other(torch.from_numpy(large).float()), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_without_inner_folds_a_tenth_of_the_largest_penalty_is_taken(method: str) -> None:
    features, weights = orthonormal(), np.array([0.3, -0.2, 0.04, 0, 0, 0, 0, 0])
    model = fitted(features, (features @ weights)[:, None], alone(8), f"method={method}", n_folds=0)
    expected = weights if method == "omp" else np.sign(weights) * np.maximum(np.abs(weights) - 0.03, 0)
    np.testing.assert_allclose(model.linear.weight.detach()[0], expected, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_features_that_are_constant_and_labels_that_are_missing(method: str) -> None:
    draw = np.random.default_rng(3)
    features, labels = draw.normal(size=(40, 5)), 0.1 * draw.normal(size=(40, 3))
    features[:, 2] = 1 / 3
    labels[:20, 1] = np.nan
    labels[:, 2] = 0.2
    model = fitted(features, labels, [("a", 2), ("constant", 1), ("b", 2)], f"method={method}")
    assert model.linear.weight.isfinite().all()
    assert not model.linear.weight[:, 2].any()
    assert not model.learned()["share of |weight|: constant"].any()
    np.testing.assert_allclose(model(torch.zeros(1, 5))[0, 2].item(), 0.2, atol=1e-6)
    same = fitted(features, labels[:, [2]], (), f"method={method}")
    assert not same.linear.weight.any()
    assert not same.learned()["share of |weight|: features"].any()
    assert not fitted(np.ones((9, 2)), labels[:9, [0, 2]], (), f"method={method}").linear.weight.any()


@pytest.mark.parametrize(("seed", "of"), [(0, "group"), (3, "feature")])
def test_ratings_of_hue_and_of_direction_are_found_in_the_groups_that_see_them(seed: int, of: str) -> None:
    """Photos of stripes in one hue and some grain, where each of the three is drawn by itself."""
    draw = np.random.default_rng(seed)
    causes = draw.random((120, 3))
    names = ("colour-names", "gist", "jpeg", "arousal")
    photos = torch.from_numpy(np.stack([_stripes(*each, draw) for each in causes]))
    parts = [build_network(find_card(f"hand/{name}"), Weights("formula"))(photos)[0].numpy() for name in names]
    labels = np.stack([causes[:, 0] - 0.5, 0.5 * np.cos(2 * np.pi * causes[:, 1])], 1)
    groups = [(f"hand/{name}-1", part.shape[1]) for name, part in zip(names, parts, strict=True)]
    shares = fitted(np.concatenate(parts, 1), labels, groups, f"unit_variance={of}").learned()
    assert shares["share of |weight|: hand/colour-names-1"][0] > 0.8
    assert shares["share of |weight|: hand/gist-1"][1] > 0.8


def _stripes(hue: float, direction: float, grain: float, draw: np.random.Generator) -> NDArray[np.uint8]:
    y, x = np.mgrid[:64, :64]
    along = x * np.cos(np.pi * direction) + y * np.sin(np.pi * direction)
    value = 0.6 + 0.12 * np.sin(2 * np.pi * 0.08 * along + draw.uniform(0, 2 * np.pi))
    value += 0.02 * 6**grain * draw.normal(size=(64, 64))
    hsv = np.stack([np.full_like(value, 0.6 * hue), np.full_like(value, 0.6), value.clip(0, 1)], -1)
    return np.asarray(np.rint(255 * hsv2rgb(hsv)), np.uint8)
