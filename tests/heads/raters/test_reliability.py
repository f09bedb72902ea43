"""Reliability is what the libraries that own it say (pingouin, krippendorff), and NumPy where they say nothing."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heads.raters.reliability import (
    Photos,
    alpha_of_classes,
    alpha_of_ratings,
    crossed_of,
    icc1,
    icc1k,
    icc2k,
    icc_c1,
    icc_ck,
    one_against_others,
    photos_of,
    split_half,
)


def rated(n: int, k: int, seed: int, *, noise: float = 1.5, bias: float = 0.5) -> NDArray[np.float64]:
    """(n, k) ratings on 1 .. 7 of k raters, each with a level of its own."""
    rng = np.random.default_rng(seed)
    raw = 4 + rng.normal(size=(n, 1)) + bias * rng.normal(size=(1, k)) + noise * rng.normal(size=(n, k))
    return np.clip(np.rint(raw), 1, 7)


def long(table: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The known ratings of (n, k) as rows."""
    photos, raters = np.nonzero(np.isfinite(table))
    return photos, table[photos, raters]


@settings(deadline=None, max_examples=15)
@given(n=st.integers(5, 60), k=st.integers(2, 9), seed=st.integers(0, 1000))
def test_intraclass_correlations_are_those_of_pingouin(n: int, k: int, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pingouin = pytest.importorskip("pingouin")
        table = rated(n, k, seed)
        frame = pd.DataFrame(table).rename_axis("photo").reset_index().melt("photo", var_name="rater", value_name="x")
        theirs = pingouin.intraclass_corr(frame, "photo", "rater", "x").set_index("Type")
    rows, crossed = photos_of(*long(table)), crossed_of(table)
    ours = {
        "ICC(1,1)": icc1(rows),
        "ICC(1,k)": icc1k(rows),
        "ICC(C,1)": icc_c1(crossed),
        "ICC(C,k)": icc_ck(crossed),
        "ICC(A,k)": icc2k(crossed),
    }
    for name, found in ours.items():
        assert found.value == pytest.approx(theirs.loc[name, "ICC"], abs=1e-9), name
        low, high = theirs.loc[name, "CI95"]  # in two digits
        assert found.low == pytest.approx(low, abs=0.0051 + 1e-3 * abs(low)), name
        assert found.high == pytest.approx(high, abs=0.0051), name


@settings(deadline=None, max_examples=25)
@given(n=st.integers(4, 40), k=st.integers(2, 6), seed=st.integers(0, 1000), missing=st.sampled_from([0.0, 0.3, 0.6]))
def test_alpha_is_that_of_krippendorff(n: int, k: int, seed: int, missing: float) -> None:
    krippendorff = pytest.importorskip("krippendorff")
    table = rated(n, k, seed)
    table[np.random.default_rng(seed).random(table.shape) < missing] = np.nan
    several = np.isfinite(table).sum(1) > 1
    if several.sum() < 2 or len(np.unique(table[several][np.isfinite(table[several])])) < 2:
        return
    there = table[np.isfinite(table).any(1)]
    rng = np.random.default_rng(0)
    numbers = alpha_of_ratings(photos_of(*long(there)), rng)
    names = alpha_of_classes(np.stack([(there == value).sum(1) for value in range(1, 8)], 1).astype(float), rng)
    for found, level in ((numbers, "interval"), (names, "nominal")):
        if found is not None:  # of very few photos no interval can be had
            assert found.value == pytest.approx(krippendorff.alpha(table.T, level_of_measurement=level), abs=1e-9)
            assert found.low <= found.high


@settings(deadline=None, max_examples=20)
@given(n=st.integers(5, 40), k=st.integers(2, 6), seed=st.integers(0, 1000))
def test_three_numbers_of_a_photo_are_enough(n: int, k: int, seed: int) -> None:
    """Means, standard deviations and counts say what rows say."""
    table = rated(n, k, seed)
    table[::3, 0] = np.nan
    counts = np.isfinite(table).sum(1)
    variances = [np.nanvar(row, ddof=1) if c > 1 else np.nan for row, c in zip(table, counts, strict=True)]
    said = Photos(np.nanmean(table, 1), np.array(variances), counts.astype(float))
    found = photos_of(*long(table))
    np.testing.assert_allclose(found.variances, said.variances, atol=1e-12)
    for measure in (icc1, icc1k):
        np.testing.assert_allclose(measure(found), measure(said))


def test_reliability_does_not_depend_on_the_scale_and_crossed_raters_may_differ_by_a_constant() -> None:
    table = rated(50, 6, 1)
    moved = table + np.arange(6) * 2
    np.testing.assert_allclose(icc1k(photos_of(*long(table))), icc1k(photos_of(*long(10 - 3 * table))))
    np.testing.assert_allclose(icc_ck(crossed_of(table)), icc_ck(crossed_of(moved)))
    assert icc2k(crossed_of(moved)).value < icc2k(crossed_of(table)).value
    assert icc1k(photos_of(*long(moved))).value < icc1k(photos_of(*long(table))).value


@pytest.mark.parametrize("k", [4, 5, 12])
def test_the_root_of_the_reliability_is_what_knowing_the_truth_reaches(k: int) -> None:
    """A model that knows what very many raters would say has this Pearson, and the reliability as r2."""
    rng = np.random.default_rng(k)
    truth = rng.normal(size=20_000)
    table = truth[:, None] + 1.5 * rng.normal(size=(20_000, k))
    found = icc1k(photos_of(*long(table)))
    labels = table.mean(1)
    assert np.corrcoef(truth, labels)[0, 1] == pytest.approx(np.sqrt(found.value), abs=0.01)
    slope = found.value  # of the labels' reliability, r2 of the best prediction
    assert 1 - ((labels - truth) ** 2).mean() / labels.var() == pytest.approx(slope, abs=0.02)
    one = icc1(photos_of(*long(table)))
    assert np.corrcoef(truth, table[:, 0])[0, 1] == pytest.approx(np.sqrt(one.value), abs=0.02)


@pytest.mark.parametrize("k", [2, 5, 8])
@pytest.mark.parametrize("how", ["mean", "median"])
def test_halves_made_longer_are_as_reliable_as_all(k: int, how: str) -> None:
    table = np.random.default_rng(1).normal(size=(3000, 1)) + np.random.default_rng(2).normal(size=(3000, k))
    photos, values = long(table)
    rows = split_half(photos, values, None, how, np.random.default_rng(3))
    crossed = split_half(photos, values, table, how, np.random.default_rng(3))
    assert rows is not None
    assert crossed is not None
    if how == "mean":
        assert rows.value == pytest.approx(k / (k + 1), abs=0.02)
        assert crossed.value == pytest.approx(k / (k + 1), abs=0.02)
    else:  # knowing the truth reaches the root of it, and an average says more than a median
        reached = np.corrcoef(np.median(table, 1), table.mean(1))[0, 1]
        assert rows.value <= k / (k + 1) + 0.02
        assert reached > rows.value
    assert rows.low < rows.value < rows.high
    assert rows.high - rows.low < 0.08


def test_photos_with_one_rater_have_no_halves() -> None:
    assert split_half(np.arange(5), np.arange(5.0), None, "mean", np.random.default_rng(0)) is None
    photos = np.repeat(np.arange(40), 3)
    values = rated(40, 3, 0).ravel()
    alone = np.arange(40, 50)
    found = split_half(
        np.concatenate([photos, alone]), np.concatenate([values, np.full(10, 4.0)]), None, "mean",
        np.random.default_rng(0),
    )  # fmt: skip
    assert found is not None
    assert found.value < split_half(photos, values, None, "mean", np.random.default_rng(0)).value  # type: ignore[union-attr]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Ratings in seven steps, six raters, 80 photos: the interval of ICC(1,k) and its ceiling."""
    many = rated(100_000, 6, 0, bias=0)
    truth = icc1k(photos_of(*long(many))).value
    held = [
        found.low <= truth <= found.high
        for seed in range(300)
        if (found := icc1k(photos_of(*long(rated(80, 6, seed + 1, bias=0)))))
    ]
    assert 0.91 <= np.mean(held) <= 0.99


def test_perfect_agreement_and_none() -> None:
    same = np.repeat(np.arange(10.0)[:, None], 3, axis=1)
    assert icc1(photos_of(*long(same))) == icc1k(photos_of(*long(same))) == (1, 1, 1)
    assert icc_ck(crossed_of(same)).value == icc2k(crossed_of(same)).value == 1
    noise = np.random.default_rng(0).normal(size=(400, 5))
    assert icc1k(photos_of(*long(noise))).low < 0 < icc1k(photos_of(*long(noise))).high


def test_one_rater_against_the_others_counts_ties_by_their_share() -> None:
    assert one_against_others(np.array([[3.0, 0.0]])) == 1
    assert one_against_others(np.array([[1.0, 1.0]])) == 0
    # Of joy, joy, awe: each joy sees one joy and one awe (a half each), awe sees two joys (none).
    assert one_against_others(np.array([[2.0, 1.0]])) == pytest.approx(1 / 3)
    assert one_against_others(np.array([[1.0, 0.0]])) is None


def test_photos_with_one_rating_are_as_noisy_as_others_say() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20_000)
    table = truth[:, None] + rng.normal(size=(20_000, 4))
    table[::2, 1:] = np.nan
    found = icc1k(photos_of(*long(table)))
    assert np.corrcoef(truth, np.nanmean(table, 1))[0, 1] ** 2 == pytest.approx(found.value, abs=0.01)
