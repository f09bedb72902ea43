"""The photos that predictions are furthest off, and that runs are furthest apart on, and what is said of them."""

import numpy as np

from heads.labels.target import Target
from heads.report.worst import MOST, N_PICTURES, errors_of, furthest_apart, worst
from heads.runs.predictions import Outcomes

NAN = float("nan")


def outcomes(labels: list[list[float]], predicted: list[list[list[float]]]) -> Outcomes:
    paths = [f"{i}.jpg" for i in range(len(labels))]
    folds = np.full((len(predicted), len(labels)), "0", object)
    return Outcomes(paths, np.array(labels), np.array(predicted), folds)


def no_picture(path: str) -> None:
    return None


def test_ratings_that_are_furthest_off_come_first() -> None:
    found = outcomes([[1], [5], [NAN], [4]], [[[2], [1], [9], [4]], [[4], [2], [9], [4.5]]])
    assert [(each.path, each.words) for each in worst(Target("regression", ("a",)), found, no_picture)["a"]] == [
        ("1.jpg", ("given 5", "predicted 1.5")),
        ("0.jpg", ("given 1", "predicted 3")),
        ("3.jpg", ("given 4", "predicted 4.25")),
    ]


def test_only_what_is_wrong_is_shown_of_classes() -> None:
    found = outcomes([[0], [1], [0], [1]], [[[0.9], [0.8], [0.6], [0.45]]])
    yes = worst(Target("binary", ("good",)), found, no_picture)["good"]
    assert [(each.path, each.words) for each in yes] == [
        ("0.jpg", ("given no", "predicted yes (0.90)")),
        ("2.jpg", ("given no", "predicted yes (0.60)")),
        ("3.jpg", ("given yes", "predicted no (0.45)")),
    ]
    target = Target("multiclass", ("emotion",), ("awe", "fear", "joy"))
    found = outcomes([[0], [1], [NAN], [2]], [[[0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [1, 0, 0], [0.9, 0.1, 0]]])
    classes = worst(target, found, no_picture)["emotion"]
    assert [(each.path, each.words) for each in classes] == [
        ("3.jpg", ("given joy", "predicted awe (0.90)")),
        ("0.jpg", ("given awe", "predicted fear (0.70)")),
    ]


def test_a_photo_is_asked_for_once_in_a_task_and_never_more_than_there_is_room_for() -> None:
    rng = np.random.default_rng(0)
    for n_tasks in (1, 5, 100):
        asked: list[str] = []
        target = Target("regression", tuple(f"t{k}" for k in range(n_tasks)))
        found = outcomes(rng.normal(size=(40, n_tasks)).tolist(), [rng.normal(size=(40, n_tasks)).tolist()])
        shown = worst(target, found, lambda path, asked=asked: asked.append(path))
        assert len(asked) == len(set(asked))
        assert sum(map(len, shown.values())) == {1: MOST, 5: 5 * MOST, 100: N_PICTURES}[n_tasks]


def test_each_run_has_the_photos_that_it_is_nearer_to() -> None:
    target = Target("regression", ("a",))
    labels, paths = np.array([[1.0], [5], [3], [4]]), ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    first, second = (
        errors_of(target, labels, np.array(predicted))[0]
        for predicted in ([[1.0], [2], [3], [4]], [[3.0], [5], [3], [4.5]])
    )
    found = furthest_apart(first, second, ("ridge", "svr"), paths, no_picture, 6)
    assert {name: [each.path for each in photos] for name, photos in found.items()} == {
        "ridge": ["0.jpg", "3.jpg"],
        "svr": ["1.jpg"],
    }
    assert found["svr"][0].words == ("given 5", "ridge: 2", "svr: 5")
