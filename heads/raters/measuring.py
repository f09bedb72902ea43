"""Measuring raters: from rows of raters, or from standard deviations and counts, to the reliability of each task."""

import numpy as np

from featstore.support import counted
from heads.raters.ceilings import Basis, Reliability, Spreads, Votes
from heads.raters.reliability import (
    Crossed,
    Estimate,
    Floats,
    Indices,
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

MOSTLY = 0.9
"""The share of the photos that every rater has to have rated for raters to count as crossed with photos."""
FEWEST = 3
"""Photos with two raters, below which nothing is said."""
SEED = 20180501
"""Of random halves and bootstraps, so that a table says the same each time."""


def measure_votes(votes: Votes, task: int, n_classes: int | None) -> Reliability:
    """The reliability of a task of which each rater has a row.

    Args:
        n_classes: of labels that are names or yes and no; None of ratings.
    """
    known = np.isfinite(votes.values[:, task])
    raters, values = votes.raters[known], votes.values[known, task]
    _, photos = np.unique(votes.photos[known], return_inverse=True)
    found = photos_of(photos, values)
    named = len(raters) > 0 and bool((raters >= 0).all())
    n_raters = len(np.unique(raters)) if named else None
    if n_classes is not None:
        chosen = np.zeros((len(found.counts), n_classes))
        np.add.at(chosen, (photos, values.astype(int)), 1)
        alpha = alpha_of_classes(chosen, _rng())
        return _reliability(found, n_raters, None, None, alpha=alpha, one_rater=one_against_others(chosen))
    if why := _nothing_to_say(found):
        return _reliability(found, n_raters, None, None, notes=[why])
    table = _crossed(photos, raters, values) if named else None
    halves = split_half(photos, values, table, votes.how, _rng())
    return _of_ratings(found, n_raters, None if table is None else crossed_of(table), halves, votes.how == "median")


def measure_spreads(spreads: Spreads, task: int, labels: Floats) -> Reliability:
    """The reliability of a task of which standard deviations and counts are known.

    Args:
        labels: (N,) the means.
    """
    counts = spreads.counts[:, task]
    known = np.isfinite(labels) & np.isfinite(counts)
    counts = counts[known]
    variances = np.where(counts > 1, spreads.deviations[known, task] ** 2, np.nan)
    found = Photos(labels[known], variances, counts)
    notes = []
    if n_without := int((np.isfinite(labels) & ~known).sum()):
        notes.append(f"nothing is known of the raters of {counted(n_without, 'photo')}; left out here")
    if n_without := int((np.isnan(variances) & (counts > 1)).sum()):
        notes.append(f"no standard deviation of {counted(n_without, 'photo')}; that of the others is taken")
    if why := _nothing_to_say(found):
        return _reliability(found, None, None, None, notes=[*notes, why])
    return _of_ratings(found, None, None, None, False, notes)


def _of_ratings(
    found: Photos,
    n_raters: int | None,
    crossed: Crossed | None,
    halves: Estimate | None,
    medians: bool,
    notes: list[str] | None = None,
) -> Reliability:
    said = list(notes or ())
    basis: Basis = "split-half" if medians else "ICC(C,k)" if crossed else "ICC(1,k)"
    label: Estimate | None = halves if medians else icc_ck(crossed) if crossed else icc1k(found)
    one = icc_c1(crossed) if crossed else icc1(found)
    if label is not None and label.value <= 0:
        said.append("raters agree no more than by chance; these labels hold nothing that a model could learn")
    if not found.within:
        said.append("all raters of a photo agree, in every photo; are the rows copies of one rating?")
    noise = crossed.noise if crossed else found.noise
    return _reliability(
        found,
        n_raters,
        basis if label is not None else None,
        label,
        icc1=icc1(found),
        icc2k=icc2k(crossed) if crossed else None,
        split_half=halves,
        alpha=alpha_of_ratings(found, _rng()),
        one_rater=float(np.sqrt(max(one.value, 0))),
        noise=None if medians else float(np.sqrt(noise)),
        notes=said,
    )


def _reliability(
    found: Photos,
    n_raters: int | None,
    basis: Basis | None,
    label: Estimate | None,
    *,
    icc1: Estimate | None = None,
    icc2k: Estimate | None = None,
    split_half: Estimate | None = None,
    alpha: Estimate | None = None,
    one_rater: float | None = None,
    noise: float | None = None,
    notes: list[str] | None = None,
) -> Reliability:
    counts = found.counts if len(found.counts) else np.zeros(1)
    n_single = int((found.counts == 1).sum())
    single = [f"{counted(n_single, 'photo')} with one rating only"] if 0 < n_single < len(found.counts) else []
    return Reliability(
        n_photos=len(found.counts),
        n_ratings=int(found.counts.sum()),
        n_raters=n_raters,
        raters_per_photo=(int(counts.min()), float(np.median(counts)), int(counts.max())),
        n_single=n_single,
        basis=basis,
        reliability=label,
        ceiling=None if label is None else Estimate(*(float(np.sqrt(max(each, 0.0))) for each in label)),
        one_rater=one_rater,
        icc1=icc1,
        icc2k=icc2k,
        split_half=split_half,
        alpha=alpha,
        noise=noise,
        notes=(*single, *(notes or ())),
    )


def _rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def _nothing_to_say(found: Photos) -> str | None:
    """Why no reliability can be had."""
    twice = int((np.isfinite(found.variances)).sum())
    if twice < FEWEST:
        photos = "no photo has" if not twice else f"only {twice} photo{'s have' if twice > 1 else ' has'}"
        return f"{photos} two raters whose spread is known; reliability needs {FEWEST} such photos, and is not said"
    if not found.means.var():
        return "the labels of all photos are the same; reliability is not defined"
    return None


def _crossed(photos: Indices, raters: Indices, values: Floats) -> Floats | None:
    """(N, K) the ratings of the photos that every rater rated; None if those are too few of all."""
    who, rater = np.unique(raters, return_inverse=True)
    counts = np.bincount(photos)
    complete = counts == len(who)
    if len(who) < 2 or complete.mean() < MOSTLY or complete.sum() < FEWEST:
        return None
    place = np.cumsum(complete) - 1
    here = complete[photos]
    table = np.full((int(complete.sum()), len(who)), np.nan)
    table[place[photos[here]], rater[here]] = values[here]
    return table if table.mean(1).var() else None
