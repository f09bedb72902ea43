"""Dealing groups: whole, as even as they allow, and in other folds for another seed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.splits.dealing import deal, take
from heads.splits.folds import hold_out, k_fold, split_inner

seeds = st.integers(0, 2**32 - 1)
sizes_of_groups = st.lists(st.integers(1, 30), min_size=6, max_size=40)


def names_of(sizes: list[int] | np.ndarray) -> list[str]:
    return [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]


def like_oasis() -> np.ndarray:
    """900 photos by the stem of their names: a few subjects with many photos, and many with few."""
    rng = np.random.default_rng(0)
    sizes = [60, 55, 40, 38, 30, 25, 25, 20, 20, 16, *rng.integers(1, 12, 90)]
    total = np.cumsum(sizes)
    kept = np.array(sizes)[total <= 900]
    return np.append(kept, 900 - kept.sum()) if kept.sum() < 900 else kept


@settings(deadline=None, max_examples=60)
@given(sizes=sizes_of_groups, n_folds=st.integers(2, 6), seed=seeds, shuffle=seeds)
def test_groups_stay_whole_and_no_fold_is_empty(sizes: list[int], n_folds: int, seed: int, shuffle: int) -> None:
    groups = np.random.default_rng(shuffle).permutation(names_of(sizes)).tolist()
    folds = deal(groups, None, n_folds=n_folds, seed=seed)
    assert len(set(zip(groups, folds.tolist(), strict=True))) == len(sizes)
    assert set(folds.tolist()) == set(range(n_folds))


@settings(deadline=None, max_examples=60)
@given(sizes=sizes_of_groups, n_folds=st.integers(2, 6), seed=seeds)
def test_folds_are_as_even_as_the_next_group_to_the_smallest_fold_makes_them(
    sizes: list[int], n_folds: int, seed: int
) -> None:
    """No less even than when the largest group that is left always goes to the fold that has least."""
    found = np.bincount(deal(names_of(sizes), None, n_folds=n_folds, seed=seed), minlength=n_folds)
    greedy = np.zeros(n_folds)
    for size in sorted(sizes, reverse=True):
        greedy[greedy.argmin()] += size
    even = sum(sizes) / n_folds
    assert np.abs(found - even).max() <= np.abs(greedy - even).max() + 1e-9


def test_groups_as_those_of_oasis_make_five_folds_of_180_for_every_seed() -> None:
    groups = names_of(like_oasis())
    assert len(groups) == 900
    found = [deal(groups, None, n_folds=5, seed=seed) for seed in range(20)]
    assert all(np.bincount(folds).tolist() == [180] * 5 for folds in found)
    assert len({tuple(folds) for folds in found}) == 20


@pytest.mark.parametrize("sizes", [[6] * 20, [5, 5, 4, 4, 4, 6, 6, 3, 3, 7] * 6, like_oasis().tolist()])
def test_repeats_have_other_folds_and_photos_meet_others_in_them(sizes: list[int]) -> None:
    """Two groups share a fold in about one of five seeds (3 of 19 of twenty like ones), and none do nearly always."""
    groups = names_of(sizes)
    first = {name: groups.index(name) for name in dict.fromkeys(groups)}
    together = np.zeros((len(first), len(first)))
    for seed in range(60):
        folds = deal(groups, None, n_folds=5, seed=seed)[list(first.values())]
        together += folds[:, None] == folds
    share = together[~np.eye(len(first), dtype=bool)] / 60
    assert share.mean() == pytest.approx(1 / 5, abs=0.06)
    assert np.quantile(share, 0.99) < 0.6


def test_strata_are_as_even_as_the_sizes() -> None:
    """Each group is of one stratum, or of two; every fold gets its share of both."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(2, 9, 120)
    groups = names_of(sizes)
    strata = np.array([int(rng.random() < (0.9 if int(group[1:]) % 3 else 0.1)) for group in groups])
    for seed in range(5):
        folds = deal(groups, strata, n_folds=5, seed=seed)
        for of_stratum in (strata == 0, strata == 1, strata >= 0):
            share = of_stratum.sum() / 5
            assert np.abs(np.bincount(folds[of_stratum], minlength=5) - share).max() <= max(2, 0.03 * share)


def test_a_group_larger_than_a_fold_leaves_the_others_even() -> None:
    folds = deal(names_of([400, *[10] * 40]), None, n_folds=5, seed=3)
    assert sorted(np.bincount(folds).tolist()) == [100, 100, 100, 100, 400]


@settings(deadline=None, max_examples=60)
@given(sizes=sizes_of_groups, share=st.floats(0.05, 0.95), seed=seeds)
def test_what_is_taken_is_whole_groups_near_the_share_that_is_asked_for(
    sizes: list[int], share: float, seed: int
) -> None:
    groups = names_of(sizes)
    taken = take(groups, share=share, seed=seed)
    assert len(set(zip(groups, taken.tolist(), strict=True))) == len(sizes)
    assert 0 < taken.sum() < len(groups)
    assert abs(taken.sum() - share * len(groups)) <= max(sizes)
    assert taken.tolist() == take(groups, share=share, seed=seed).tolist()


def test_hold_outs_and_inner_parts_of_groups_have_their_share() -> None:
    """By a share of the groups, a hold-out of OASIS by name would have anything from 8 to 35 %."""
    groups, rows = names_of(like_oasis()), np.arange(900)
    for seed in range(20):
        (part,) = hold_out(900, share=0.2, groups=groups, strata=None, seed=seed).parts
        assert len(part.test) == pytest.approx(180, abs=20)
        fit, inner = split_inner(rows, groups=groups, strata=None, share=0.15, seed=seed)
        assert len(inner) == pytest.approx(135, abs=20)
        assert not {groups[row] for row in fit} & {groups[row] for row in inner}


def test_folds_of_a_validation_are_dealt_so() -> None:
    groups = names_of(like_oasis())
    split = k_fold(900, n_folds=5, groups=groups, strata=None, seed=4)
    assert Counter(split.folds) == dict.fromkeys("01234", 180)
    assert split.partition.tolist() == [int(name) for name in split.folds]
