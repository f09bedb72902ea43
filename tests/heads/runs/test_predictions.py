"""The predictions table of a run and its inverse."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.errors import RunError
from heads.labels.target import KINDS, Target
from heads.runs.predictions import from_table, to_table

MOOD = Target("multiclass", ("mood",), ("awe", "joy"))
FOLDS, PATHS = ["0", "1"], ["a.jpg", "b.jpg"]


def test_ratings_stand_beside_their_predictions() -> None:
    table = to_table(
        Target("regression", ("appeal", "calm")),
        np.array([[1, 2.5], [7, np.nan]]),
        np.array([[[2, 3], [6, 4]], [[1.5, 2], [np.nan, np.nan]]]),
        folds=FOLDS,
        paths=PATHS,
    )
    assert table.to_csv(index=False).splitlines() == [
        "repeat,fold,path,appeal,appeal_predicted,calm,calm_predicted",
        "0,0,a.jpg,1.0,2.0,2.5,3.0",
        "0,1,b.jpg,7.0,6.0,,4.0",
        "1,0,a.jpg,1.0,1.5,2.5,2.0",  # b.jpg was not tested in repeat 1
    ]


def test_classes_are_names_and_have_a_probability_each() -> None:
    table = to_table(MOOD, np.array([[1], [np.nan]]), np.array([[[0.25, 0.75], [0.5, 0.5]]]), folds=FOLDS, paths=PATHS)
    assert table.to_csv(index=False).splitlines() == [
        "repeat,fold,path,mood,mood_predicted,mood_is_awe,mood_is_joy",
        "0,0,a.jpg,joy,joy,0.25,0.75",
        "0,1,b.jpg,,awe,0.5,0.5",
    ]


def target_of(kind: str) -> Target:
    return MOOD if kind == "multiclass" else Target(kind, ("x", "y z"))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), n=st.integers(1, 8), n_repeats=st.integers(1, 3))
def test_reading_a_table_is_the_inverse_of_making_it(seed: int, kind: str, n: int, n_repeats: int) -> None:
    """Also through the text of a CSV, as `Run.predictions` reads it."""
    rng = np.random.default_rng(seed)
    target = target_of(kind)
    labels = rng.integers(0, 2, (n, len(target.tasks))).astype(float)
    labels[rng.random(labels.shape) < 0.2] = np.nan
    predicted = rng.random((n_repeats, n, target.n_outputs))
    predicted[:, rng.random(n) < 0.2] = np.nan  # never tested
    predicted[:-1][rng.random((n_repeats - 1, n)) < 0.2] = np.nan  # not tested in some repeat
    paths = [f"{i}.jpg" for i in range(n)]
    folds = [[str((i + repeat) % 3) for i in range(n)] for repeat in range(n_repeats)]  # redrawn for each repeat
    found_folds = np.array(folds, object)
    made = to_table(target, labels, predicted, folds=folds, paths=paths)
    assert list(made) == target.columns
    text = pd.read_csv(io.StringIO(made.to_csv(index=False)), dtype=str, keep_default_na=False)
    named = {"path", "fold", *(("mood", "mood_predicted") if kind == "multiclass" else ())}
    again = text.assign(**{name: pd.to_numeric(text[name]) for name in text if name not in named})
    for table in (made, again):
        found = from_table(table, target)
        rows = [paths.index(path) for path in found.paths]
        assert sorted(rows) == np.flatnonzero(np.isfinite(predicted).any((0, 2))).tolist()
        np.testing.assert_array_equal(found.labels, labels[rows])
        assert found.predicted == pytest.approx(predicted[: len(found.predicted), rows], nan_ok=True)
        assert np.isnan(predicted[len(found.predicted) :]).all()
        tested = np.isfinite(found.predicted).any(2)
        here = found_folds[: len(found.predicted), rows]
        np.testing.assert_array_equal(found.folds, np.where(tested, here, ""))
        numbers = found.partitions()
        np.testing.assert_array_equal(numbers == -1, ~tested)
        same = found.folds[:, :, None, None] == found.folds
        np.testing.assert_array_equal(numbers[:, :, None, None] == numbers, same)


def test_tables_that_are_not_of_this_run() -> None:
    target = Target("regression", ("x",))
    table = to_table(target, np.zeros((2, 1)), np.zeros((1, 2, 1)), folds=FOLDS, paths=PATHS)
    with pytest.raises(RunError, match="no column 'y', 'y_predicted'; train again"):
        from_table(table, Target("regression", ("y",)))
    with pytest.raises(RunError, match=r"'a\.jpg' twice in repeat 0"):
        from_table(pd.concat([table, table.head(1)]), target)
    table = to_table(MOOD, np.zeros((2, 1)), np.full((1, 2, 2), 0.5), folds=FOLDS, paths=PATHS)
    with pytest.raises(RunError, match="the class 'fear' in column 'mood'; the run's classes are awe, joy"):
        from_table(table.replace({"mood": {"awe": "fear"}}), MOOD)
