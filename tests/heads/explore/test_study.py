"""What is known of photos as columns: labels, predictions of runs, and what does not belong to them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import featstore
import heads
from heads.errors import HeadsError, RunError
from heads.explore.study import Study, make_study
from heads.labels.labels import Labels

from .conftest import CLASSES, HOSTILE, MARKUP, STEERS, N, World


def column(study: Study, **where: object) -> list[object]:
    """The values of the one column that is like that."""
    found = [each for each in study.columns if all(getattr(each, name) == value for name, value in where.items())]
    assert len(found) == 1, [each.title for each in study.columns]
    return list(found[0].values)


def test_labels_stand_beside_their_photos(study: Study, read: Callable[..., Labels]) -> None:
    labels = read("appeal")
    given = dict(zip(labels.paths, labels.values[:, 0], strict=True))
    shown = column(study, role="label", task="appeal")
    assert shown == [given.get(study.path(i)) for i in range(N)]
    assert shown[3] is None
    assert column(study, role="group")[:5] == [None, "scene 0", "scene 1", None, "scene 2"]


def test_predictions_are_means_over_the_repeats_and_errors_are_their_distance(study: Study, world: World) -> None:
    table = world.runs["ridge"].predictions
    means = table.groupby("path")["appeal_predicted"].mean()
    shown = column(study, role="prediction", run=0)
    assert sum(value is None for value in shown) == 2
    label, error = column(study, role="label", task="appeal"), column(study, role="error", run=0)
    for i in range(N):
        if shown[i] is not None:
            assert shown[i] == pytest.approx(means[study.path(i)], rel=1e-4)
            assert error[i] == pytest.approx(abs(float(str(label[i])) - means[study.path(i)]), abs=1e-3)


def test_nine_of_ten_predictions_are_off_by_no_more_than_is_said(study: Study) -> None:
    errors = [value for value in column(study, role="error", run=0) if value is not None]
    said = study.runs[0].off["appeal"]
    assert np.mean(np.array(errors) <= said) == pytest.approx(0.9, abs=0.03)


def test_classes_have_chances_and_errors_that_fit(study: Study, world: World) -> None:
    predicted = column(study, role="prediction", run=1)
    chances = np.array([column(study, role="probability", run=1, of=name) for name in CLASSES], float)
    classes = np.array(world.runs["mood"].config.target.classes, object)
    by_class = {name: chances[c] for c, name in enumerate(CLASSES)}
    for i in range(N):
        if predicted[i] is not None:
            assert by_class[str(predicted[i])][i] == chances[:, i].max()
    assert set(classes) == set(CLASSES)
    labels = {row.path: row.mood for row in world.runs["mood"].predictions.itertuples()}
    error = column(study, role="error", run=1)
    for i in range(N):
        if error[i] is not None:
            assert error[i] == pytest.approx(1 - by_class[labels[study.path(i)]][i], abs=1e-4)


def test_labels_that_no_table_has_are_those_of_the_runs(world: World) -> None:
    study = make_study(featstore.open(world.store), runs=[world.runs["mood"]])
    shown = column(study, role="label", task="mood")
    assert shown[3] is None
    assert {*shown} == {*CLASSES, None}


def test_the_document_is_plain_json_and_no_name_steers_what_shows_it(study: Study) -> None:
    text = json.dumps(study.document(), allow_nan=False)
    document = json.loads(text)
    assert document["n"] == N
    assert document["paths"][MARKUP] == HOSTILE[MARKUP]  # markup is text: the page makes text nodes
    assert "\x1b" not in document["paths"][STEERS]
    assert "\u202e" not in document["paths"][STEERS]
    mood = next(each for each in document["columns"] if each["role"] == "prediction" and each["run"] == 1)
    assert {mood["names"][value] for value in mood["values"] if value is not None} <= set(CLASSES)


def test_a_photo_that_has_changed_since_a_run_loses_its_prediction(world: World, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for i, path in enumerate(world.paths[:20]):
        file = photos / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i, 0, 0)).save(file, "jpeg")
    np.savez(tmp_path / "f.npz", paths=np.array(world.paths[:20]), features=world.features[:20])
    featstore.import_features("alpha", tmp_path / "f.npz", store=tmp_path / "s.zarr", photos=photos)
    run = heads.Run(world.runs["ridge"].folder)
    with pytest.raises(RunError, match="was tested on no photo that"):
        make_study(featstore.open(tmp_path / "s.zarr"), runs=[run])


def test_what_belongs_to_no_photo_is_said(world: World, tmp_path: Path, read: Callable[..., Labels]) -> None:
    keep = [path for path in world.paths if path not in HOSTILE.values()][:20]
    for path in keep:
        file = tmp_path / "photos" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((world.photos / path).read_bytes())
    np.savez(tmp_path / "f.npz", paths=np.array(keep), features=world.features[:20])
    featstore.import_features("alpha", tmp_path / "f.npz", store=tmp_path / "s.zarr", photos=tmp_path / "photos")
    study = make_study(featstore.open(tmp_path / "s.zarr"), labels=read("appeal"), runs=[world.runs["ridge"]])
    assert "19 labelled photos are not in the store" in study.notes[0]
    assert "of its photos are not in the store" in study.notes[1]
    assert "since the photo changed" in study.notes[1]  # two were changed after the run


def test_labels_of_other_photos_are_an_error(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("path,appeal\nnowhere.jpg,3\nnothing.jpg,4\n", "utf-8")
    with pytest.raises(HeadsError, match=r"no path in .*other\.csv is in the store"):
        make_study(featstore.open(world.store), labels=heads.read_labels(other))


def test_photos_are_apart_if_any_repeat_had_them_in_two_folds(study: Study, world: World) -> None:
    shown = study.runs[0]
    folds = {
        repeat: dict(zip(part["path"], part["fold"], strict=True))
        for repeat, part in world.runs["ridge"].predictions.groupby("repeat")
    }
    assert len(folds) == 2
    found = set()
    for i in range(4, 20):
        for j in range(i + 1, 20):
            expected = any(by_path[study.path(i)] != by_path[study.path(j)] for by_path in folds.values())
            assert shown.apart(i, j) == expected
            found.add((expected, folds[0][study.path(i)] == folds[0][study.path(j)]))
    assert (True, True) in found  # together in the first repeat only
    assert not shown.apart(3, 4)  # 3 has no label and was not tested


def test_runs_of_one_name_are_told_apart_and_each_brings_its_labels(world: World, tmp_path: Path) -> None:
    half = pd.read_csv(world.labels)
    runs = []
    for part, rows in (("a", half.iloc[:20]), ("b", half.iloc[20:])):
        runs.append(
            heads.train("ridge", world.store, rows, tasks=["appeal"], scale=(1, 7), tensors="alpha", repeats=1, folds=2,
                        out=tmp_path / part / "ridge")
        )  # fmt: skip
    study = make_study(featstore.open(world.store), runs=runs)
    assert [shown.name for shown in study.runs] == ["ridge", "ridge (2)"]
    assert sum(value is not None for value in column(study, role="label", task="appeal")) == N - 2


def test_folds_are_in_the_order_of_their_numbers(study: Study) -> None:
    fold = next(each for each in study.document()["columns"] if each["role"] == "fold")
    assert fold["title"].startswith("fold of the first repeat")
    assert fold["names"] == ["0", "1", "2", "3", "4"]
