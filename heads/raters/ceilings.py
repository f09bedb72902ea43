"""The ceiling: the most that a model can reach against labels of so many raters, and how it stands beside figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal, get_args

import numpy as np

from heads.raters.reliability import Estimate, Floats, Indices

Basis = Literal["ICC(1,k)", "ICC(C,k)", "split-half"]
BASES: tuple[Basis, ...] = get_args(Basis)
NONE = "–"
CORRELATIONS = ("pearson", "plcc")
SHARES = ("r2", "pearson2")
"""Metrics that are shares of variance."""


@dataclass(frozen=True)
class Votes:
    """Rows of raters: what each said of a photo."""

    photos: Indices
    """(M,) the place of the photo of each row."""
    raters: Indices
    """(M,) who rated; -1 where nobody says."""
    values: Floats
    """(M, K) ratings, 0 or 1, or the index of a class; NaN where one is missing."""
    how: Literal["mean", "median"]
    """What makes a label of the ratings of a photo."""

    def of(self, rows: Indices) -> "Votes":
        """The rows of some of the photos, which are counted anew."""
        place = np.full(max(self.photos.max(initial=-1), rows.max(initial=-1)) + 1, -1)
        place[rows] = np.arange(len(rows))
        photos = place[self.photos]
        here = photos >= 0
        return Votes(photos[here], self.raters[here], self.values[here], self.how)


@dataclass(frozen=True)
class Spreads:
    """How far the raters of each photo were apart, and how many there were."""

    deviations: Floats
    """(N, K) standard deviations of ratings, with n - 1 below; NaN where unknown."""
    counts: Floats
    """(N, K) raters; NaN where unknown."""

    @property
    def digest(self) -> str:
        """Of both; rows of raters are told by the digest of their file."""
        return sha256(self.deviations.tobytes() + self.counts.tobytes()).hexdigest()

    def of(self, rows: Indices) -> "Spreads":
        """Of some of the photos."""
        return Spreads(self.deviations[rows], self.counts[rows])


@dataclass(frozen=True)
class Reliability:
    """How far the labels of one task can be trusted. What cannot be known of them is None."""

    n_photos: int
    """Photos of which something is known of the raters."""
    n_ratings: int
    n_raters: int | None
    """None if nobody says who rated."""
    raters_per_photo: tuple[int, float, int]
    """The least, the median, the most."""
    n_single: int
    """Photos with one rater only."""
    basis: Basis | None
    """What `reliability` is: ICC(1,k), ICC(C,k) where the same raters rated every photo, or split-half of medians."""
    reliability: Estimate | None
    """Of the labels: the share of their variance that other raters would find again."""
    ceiling: Estimate | None
    """The largest Pearson that a model can reach against the labels: the root of their reliability."""
    one_rater: float | None
    """Of ratings, Pearson of one rater with what all others would say; of classes, how often one agrees with them."""
    icc1: Estimate | None
    """Of one rating."""
    icc2k: Estimate | None
    """Of the labels, if the raters were drawn anew; where the same raters rated every photo."""
    split_half: Estimate | None
    """Of the labels, by halves of the raters (Spearman-Brown)."""
    alpha: Estimate | None
    """Krippendorff's alpha: interval level of ratings, nominal level of classes."""
    noise: float | None
    """How far labels are from what very many raters would say, as a standard deviation in label units."""
    notes: tuple[str, ...] = ()
    """What has to be said of the raters."""

    def ceiling_of(self, metric: str) -> Estimate | None:
        """The most that a metric can reach; None of metrics of which it is not known."""
        if metric in CORRELATIONS:
            return self.ceiling
        if metric in SHARES and self.ceiling is not None:
            return Estimate(*(each**2 for each in self.ceiling))
        return None

    def share_of(self, metric: str, value: float | None) -> float | None:
        """What part of its ceiling a metric has reached; None where there is none, or nothing was reached."""
        most = self.ceiling_of(metric)
        return None if most is None or value is None or value <= 0 or not most.value else value / most.value


def beside(reliability: Reliability | None, metric: str, value: float | None, *, nothing: str = NONE) -> str:
    """The ceiling of a figure, and the share of it that is reached: `0.987 (72 %)`; `nothing` where none is known."""
    most = None if reliability is None else reliability.ceiling_of(metric)
    if reliability is None or most is None:
        return nothing
    share = reliability.share_of(metric, value)
    return f"{most.value:.3f}" if share is None else f"{most.value:.3f} ({share:.0%})".replace("%", " %")


def note_of(raters: Mapping[str, Reliability], metric: str) -> list[str]:
    """What the ceilings beside a metric are, and what has to be said of the raters; lines."""
    lines = []
    if any(each.ceiling_of(metric) for each in raters.values()):
        lines.append(f"ceiling: the largest {metric} against labels of so many raters, and the share of it reached")
    for task, each in raters.items():
        if each.ceiling is None and each.one_rater is not None:  # classes: nobody knows the most that can be reached
            agreed = f"{each.one_rater:.0%}".replace("%", " %")
            said = "" if each.alpha is None else f"; alpha {each.alpha.value:.2f}"
            lines.append(f"{task}: one rater says what the others say most in {agreed} of ratings{said}")
    return lines + notes_of(raters)


def notes_of(raters: Mapping[str, Reliability]) -> list[str]:
    """What has to be said of the raters; of several tasks alike, once."""
    tasks: dict[str, list[str]] = {}
    for task, each in raters.items():
        for note in each.notes:
            tasks.setdefault(note, []).append(task)
    return [f"{', '.join(named)}: {note}" for note, named in tasks.items()]


HEADER = (
    "task",
    "raters a photo",
    "ICC(1)",
    "of the labels",
    "ICC(2,k)",
    "split-half",
    "alpha",
    "one rater",
    "ceiling",
)


def table_of(raters: Mapping[str, Reliability]) -> list[tuple[str, ...]]:
    """Rows under `HEADER`; what no task has is left in."""
    return [
        (
            task,
            _range(each.raters_per_photo),
            *map(_with_ends, (each.icc1, each.reliability, each.icc2k, each.split_half, each.alpha)),
            NONE if each.one_rater is None else f"{each.one_rater:.2f}",
            _with_ends(each.ceiling),
        )
        for task, each in raters.items()
    ]


def without_empty(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns in which nothing stands."""
    kept = [i for i in range(len(header)) if any(row[i] != NONE for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def to_json(raters: Mapping[str, Reliability]) -> dict[str, Any]:
    """Plain values, as raters.json has them."""
    return {
        task: {
            name: dict(zip(Estimate._fields, value, strict=True)) if isinstance(value, Estimate) else value
            for name, value in ((name, getattr(each, name)) for name in asdict(each))
        }
        for task, each in raters.items()
    }


def _range(raters: tuple[int, float, int]) -> str:
    least, middle, most = raters
    return f"{least}" if least == most else f"{least} to {most}, median {middle:g}"


def _with_ends(value: Estimate | None) -> str:
    return NONE if value is None else f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"
