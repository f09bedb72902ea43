"""Rating scales: how users name them, and the mapping of ratings to -0.5 .. +0.5 and back."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featstore import FeatstoreError
from featstore.support import parse_scale, suggest
from heads.errors import LabelsError
from heads.labels.limits import LARGEST, SMALLEST

Scale = tuple[float, float]
Scales = str | Scale | Sequence[str] | Mapping[str, Scale]
"""`1:7` or (1, 7) for every task; `["1:7", "beauty=1:10"]` or {"beauty": (1, 10)} by task."""


def settle_scales(scales: Scales | None, tasks: Sequence[str]) -> list[Scale | None]:
    """The scale of each task, None of those that have none.

    Raises:
        LabelsError: it is not of the form LOW:HIGH or TASK=LOW:HIGH, LOW is not below HIGH, or there is no such task.
    """
    for_all, by_task = None, {}
    for name, scale in _pairs(scales or ()):
        if not scale[0] < scale[1]:
            raise LabelsError(f"scale {scale[0]:g}:{scale[1]:g}: the first end has to be below the second")
        if max(map(abs, scale)) > LARGEST or scale[1] - scale[0] < SMALLEST:
            raise LabelsError(
                f"scale {scale[0]:g}:{scale[1]:g}: the ends are up to {LARGEST:g}, and {SMALLEST:g} apart or "
                "more; write the labels in another unit"
            )
        if name and name not in tasks:
            raise LabelsError(f"--scale of {name!r}: there is no such task; {suggest(name, tasks)}")
        if name in by_task or (name is None and for_all):
            raise LabelsError(f"--scale: two scales of {'every task' if name is None else repr(name)}; name one")
        if name is None:
            for_all = scale
        else:
            by_task[name] = scale
    return [by_task.get(task, for_all) for task in tasks]


def to_unit(values: NDArray[np.float64], scales: Sequence[Scale]) -> NDArray[np.float64]:
    """Ratings (..., K) whose scale is mapped linearly to -0.5 .. +0.5 (Ghosal and Kolekar)."""
    low, high = np.array(scales, np.float64).T
    return np.asarray((values - low) / (high - low) - 0.5, np.float64)


def from_unit(scaled: NDArray[np.floating], scales: Sequence[Scale]) -> NDArray[np.float64]:
    """Ratings (..., K) in label units."""
    low, high = np.array(scales, np.float64).T
    return np.asarray((scaled.astype(np.float64) + 0.5) * (high - low) + low, np.float64)


def _pairs(scales: Scales) -> Iterable[tuple[str | None, Scale]]:
    if isinstance(scales, Mapping):
        return scales.items()
    if isinstance(scales, str):
        return [_parse(scales)]
    if len(scales) == 2 and not any(isinstance(each, str) for each in scales):
        return [(None, (float(scales[0]), float(scales[1])))]
    return [_parse(str(text)) for text in scales]


def _parse(text: str) -> tuple[str | None, Scale]:
    name, equals, scale = text.rpartition("=")
    try:
        return (name.strip() if equals else None), parse_scale(scale)
    except FeatstoreError as error:
        raise LabelsError(f"{error}; a scale of one task is written TASK=LOW:HIGH, as beauty=1:10") from error
