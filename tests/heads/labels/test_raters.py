"""Raters in label tables: rows, or standard deviations and counts; and what cannot be."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from heads.errors import LabelsError
from heads.labels.labels import read_labels
from heads.labels.look import look_at
from heads.raters.ceilings import Reliability, Spreads, Votes, beside, to_json

Table = Callable[..., Path]
OASIS = """\
path,Theme,Valence_mean,Valence_SD,Valence_N,Arousal_mean,Arousal_SD,Arousal_N
a.jpg,x,2.5,1.1,101,4.1,1.5,103
b.jpg,x,4.5,1.2,102,2.2,1.6,101
c.jpg,y,6.1,0.9,103,3.9,1.7,100
d.jpg,y,5.0,1.0,99,1.5,1.4,102
"""
PLAIN = "path,beauty,beauty_sd,n\na.jpg,2,1,10\nb.jpg,5,1.5,12\nc.jpg,6,0.5,9\nd.jpg,3,1,10\n"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    def write(text: str, name: str = "labels.csv") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def raters_of(frame: pd.DataFrame, tmp_path: Path) -> Path:
    frame.to_csv(tmp_path / "raters.csv", index=False)
    return tmp_path / "raters.csv"


def draw(n: int = 40, k: int = 5, *, seed: int = 0) -> pd.DataFrame:
    """A row for each of n photos and k raters."""
    rng = np.random.default_rng(seed)
    table = np.clip(np.rint(4 + rng.normal(size=(n, 1)) + rng.normal(size=(n, k))), 1, 7)
    rows = [(f"{i}.jpg", f"r{j}", table[i, j]) for i in range(n) for j in range(k)]
    return pd.DataFrame(rows, columns=["path", "rater", "beauty"])


def test_oasis_own_table_in_two_words(table: Table) -> None:
    """Its columns are those of the file that its authors share; what belongs to raters is not learned."""
    labels = read_labels(table(OASIS), scales="1:7", sd="{task}_SD", n_raters="{task}_N")
    assert labels.target.tasks == ("Valence_mean", "Arousal_mean")
    assert isinstance(labels.raters, Spreads)
    assert labels.raters.deviations[:, 1].tolist() == [1.5, 1.6, 1.7, 1.4]
    assert labels.raters.counts[:, 0].tolist() == [101, 102, 103, 99]
    found = labels.reliability()["Valence_mean"]
    means, noise = np.array([2.5, 4.5, 6.1, 5]), np.array([1.1, 1.2, 0.9, 1]) ** 2 / [101, 102, 103, 99]
    assert found.reliability is not None
    assert found.reliability.value == pytest.approx(1 - noise.mean() / means.var(ddof=1))
    assert found.ceiling is not None
    assert found.ceiling.value == pytest.approx(np.sqrt(found.reliability.value))
    assert (found.raters_per_photo, found.n_raters, found.basis) == ((99, 101.5, 103), None, "ICC(1,k)")


@pytest.mark.parametrize(
    ("sd", "n_raters"),
    [
        ("beauty_sd", 10),
        ("{task}_sd", "n"),
        (["beauty=beauty_sd"], ["beauty=10"]),
        ({"beauty": "beauty_sd"}, {"beauty": 10}),
        (["beauty=beauty_sd"], ["99", "beauty=n"]),
    ],
)
def test_ways_to_name_the_columns(table: Table, sd: object, n_raters: object) -> None:
    labels = read_labels(table(PLAIN), tasks=["beauty"], sd=sd, n_raters=n_raters)  # type: ignore[arg-type]
    assert isinstance(labels.raters, Spreads)
    assert labels.raters.deviations[:, 0].tolist() == [1, 1.5, 0.5, 1]
    assert labels.raters.counts[0, 0] == 10


def test_a_pattern_is_for_the_tasks_that_have_such_a_column(table: Table) -> None:
    text = PLAIN.replace("n\n", "n,light\n", 1).replace("0\n", "0,3\n").replace("2\n", "2,4\n").replace("9\n", "9,1\n")
    labels = read_labels(table(text), sd="{task}_sd", n_raters="n")
    assert labels.target.tasks == ("beauty", "light")
    assert list(labels.reliability()) == ["beauty"]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (PLAIN, {"sd": "beauty_sd"}, "--sd needs --n-raters: how many raters a photo had"),
        (PLAIN, {"n_raters": 10}, "--n-raters needs --sd"),
        (PLAIN, {"sd": "beauty_std", "n_raters": 10}, "--sd 'beauty_std': there is no such column; did you mean"),
        (PLAIN, {"sd": "{task}_std", "n_raters": 10}, "--sd {task}_std fits no column of beauty"),
        (PLAIN, {"sd": "joy=beauty_sd", "n_raters": 10}, "--sd of 'joy': there is no such task"),
        (PLAIN, {"sd": ["beauty_sd", "n"], "n_raters": 10}, "--sd: two columns of every task; name one"),
        (PLAIN, {"sd": "beauty_sd", "n_raters": 0}, "--n-raters '0': there is no such column"),
        (PLAIN, {"sd": "beauty_sd", "n_raters": "other=10"}, "--n-raters of 'other': there is no such task"),
        (PLAIN.replace("1.5,12", "-1.5,12"), {}, "line 3, column 'beauty_sd': the standard deviation -1.5 is negative"),
        (PLAIN.replace("1.5,12", "1.5,0"), {}, "line 3, column 'n': 0 is no count of raters"),
        (PLAIN.replace("1.5,12", "1.5,7.5"), {}, "line 3, column 'n': 7.5 is no count of raters"),
        (PLAIN.replace("1.5,12", "1.5,"), {}, "line 3, column 'n': no count of raters beside the 1.5 of 'beauty_sd'"),
        (PLAIN.replace("1.5,12", "1.5,1"), {}, "line 3, column 'beauty_sd': a standard deviation of 1.5, and 'n' has"),
        (PLAIN.replace("1.5,12", "4,12"), {"scales": "1:7"}, "12 ratings on 1:7 cannot have a standard deviation of 4"),
        (PLAIN, {"aggregate": "mean"}, "--aggregate mean is for a row per rater"),
        (PLAIN.replace("1.5,12", "1.5,x"), {}, "line 3, column 'n': 'x' is not a number"),
    ],
)
def test_what_is_said_of_raters_has_to_make_sense(table: Table, text: str, options: dict, said: str) -> None:
    asked = {"sd": "beauty_sd", "n_raters": "n"} if not {"sd", "n_raters"} & set(options) else {}
    with pytest.raises(LabelsError) as error:
        read_labels(table(text), tasks=["beauty"], **asked, **options)
    assert said in str(error.value)


def test_spreads_are_of_ratings(table: Table) -> None:
    text = "path,good,good_sd\na,1,.5\nb,0,.4\nc,1,.1\n"
    with pytest.raises(LabelsError, match="--sd is for ratings, and the labels good are binary"):
        read_labels(table(text), sd="good_sd", n_raters=4)
    several = "path,x,y,s\na,1.5,2,.5\nb,2,3,.4\n"
    with pytest.raises(LabelsError, match=r"--sd s names one column for 2 tasks \(x, y\); write TASK=COLUMN for each"):
        read_labels(table(several), sd="s", n_raters=4)


def test_a_photo_of_which_nothing_is_known_is_left_out_and_a_missing_spread_is_that_of_the_others(table: Table) -> None:
    text = PLAIN + "e.jpg,4,,11\nf.jpg,3,,\n"
    found = read_labels(table(text), tasks=["beauty"], sd="beauty_sd", n_raters="n").reliability()["beauty"]
    assert (found.n_photos, found.n_ratings) == (5, 10 + 12 + 9 + 10 + 11)
    assert found.notes == (
        "nothing is known of the raters of 1 photo; left out here",
        "no standard deviation of 1 photo; that of the others is taken",
    )


def test_rows_and_spreads_say_the_same(tmp_path: Path) -> None:
    frame = draw()
    frame["user"] = np.arange(len(frame))  # nobody rates twice
    rows = read_labels(raters_of(frame.drop(columns="rater"), tmp_path), aggregate="mean").reliability()["beauty"]
    by_photo = frame.groupby("path", sort=False)["beauty"].agg(["mean", "std", "size"]).reset_index()
    spreads = read_labels(by_photo, tasks=["mean"], sd="std", n_raters="size").reliability()["mean"]
    for name in ("reliability", "ceiling", "icc1", "alpha", "noise", "n_ratings", "raters_per_photo"):
        assert getattr(rows, name) == pytest.approx(getattr(spreads, name)), name
    assert rows.split_half is not None
    assert spreads.split_half is None


def test_raters_who_rated_every_photo_are_crossed(tmp_path: Path) -> None:
    frame = draw()
    frame.loc[frame["rater"] == "r1", "beauty"] += 2  # a rater who is kind to all photos costs nothing
    labels = read_labels(raters_of(frame, tmp_path), aggregate="mean")
    assert isinstance(labels.raters, Votes)
    found = labels.reliability()["beauty"]
    assert (found.basis, found.n_raters, found.icc2k is not None) == ("ICC(C,k)", 5, True)
    unnamed = read_labels(raters_of(frame.drop(columns="rater"), tmp_path), aggregate="mean").reliability()["beauty"]
    assert (unnamed.basis, unnamed.n_raters, unnamed.icc2k) == ("ICC(1,k)", None, None)
    assert found.reliability is not None
    assert unnamed.reliability is not None
    assert unnamed.reliability.value < found.reliability.value
    few_complete = frame[(frame["rater"] != "r0") | (frame.index < 50)]  # r0 rated ten photos of forty
    assert read_labels(raters_of(few_complete, tmp_path), aggregate="mean").reliability()["beauty"].basis == "ICC(1,k)"
    most_complete = frame.drop(index=[3, 77])
    assert read_labels(raters_of(most_complete, tmp_path), aggregate="mean").reliability()["beauty"].basis == "ICC(C,k)"


def test_a_median_has_the_reliability_of_its_halves(tmp_path: Path) -> None:
    found = read_labels(raters_of(draw(), tmp_path), aggregate="median").reliability()["beauty"]
    assert (found.basis, found.reliability, found.noise) == ("split-half", found.split_half, None)


def test_the_same_table_says_the_same_twice_and_comes_back_from_json(tmp_path: Path) -> None:
    file = raters_of(draw(), tmp_path)
    first, again = (read_labels(file, aggregate="mean").reliability() for _ in range(2))
    saved = json.dumps(to_json(first))
    assert first == again == TypeAdapter(dict[str, Reliability]).validate_json(saved, strict=True)


def test_reliability_of_some_photos(tmp_path: Path) -> None:
    frame = draw()
    some = np.array([0, 3, 17, 20, 21, 35])
    part = read_labels(raters_of(frame, tmp_path), aggregate="mean").reliability(some)
    alone = frame[frame["path"].isin([f"{i}.jpg" for i in some])]
    assert part == read_labels(alone, aggregate="mean").reliability()


def test_a_rater_who_rates_a_photo_twice(tmp_path: Path) -> None:
    frame = pd.concat([draw(), pd.DataFrame([("7.jpg", "r2", 1.0)], columns=["path", "rater", "beauty"])])
    with pytest.raises(
        LabelsError,
        match=r"line 202: rater 'r2' rates 'beauty' of '7\.jpg' a second time, after .*line 39 \(1 such ratings\)",
    ):
        read_labels(raters_of(frame, tmp_path), aggregate="mean")


def test_of_few_ratings_nothing_is_said_but_why(tmp_path: Path) -> None:
    one_each = pd.DataFrame({"path": list("abcd"), "x": [1, 2, 3, 4]})
    found = read_labels(one_each, aggregate="mean").reliability()["x"]
    assert (found.reliability, found.ceiling, found.n_single) == (None, None, 4)
    assert found.notes[0].startswith("no photo has two raters whose spread is known")
    some = pd.DataFrame({"path": list("abcdabc"), "x": [1, 2, 3, 4, 2, 2, 4]})
    assert read_labels(some, aggregate="mean").reliability()["x"].notes == ("1 photo with one rating only",)
    same = pd.DataFrame({"path": list("abcd") * 2, "x": [1, 2, 3, 4] * 2})
    agreed = read_labels(same, aggregate="mean").reliability()["x"]
    assert agreed.ceiling == (1, 1, 1)
    assert agreed.notes == ("all raters of a photo agree, in every photo; are the rows copies of one rating?",)
    level = pd.DataFrame({"path": list("abcd") * 2, "x": [1, 2, 1, 2, 3, 2, 3, 2]})
    with pytest.raises(LabelsError, match=r"every label of 'x' in .* is 2; there is nothing to learn"):
        read_labels(level, aggregate="mean", scales="1:7")


def test_raters_by_chance_leave_nothing_to_learn() -> None:
    frame = pd.DataFrame({"path": list("abcd") * 2, "x": [1, 2, 1, 2, 3, 2.2, 3, 2]})
    found = read_labels(frame, aggregate="mean", scales="1:7").reliability()["x"]
    assert found.ceiling is not None
    assert found.ceiling.value == 0
    assert found.notes == ("raters agree no more than by chance; these labels hold nothing that a model could learn",)
    assert beside(found, "pearson", 0.2) == "0.000"


def test_classes_have_alpha_and_a_single_rater_but_no_ceiling() -> None:
    frame = pd.DataFrame(
        {"path": list("abcd") * 3, "x": ["joy", "awe", "joy", "awe"] * 2 + ["joy", "awe", "awe", "awe"]}
    )
    found = read_labels(frame, tasks=["x"], aggregate="mean").reliability()["x"]
    assert found.alpha is not None
    assert found.one_rater == pytest.approx((3 + 3 + 1 + 3) / 12)
    assert (found.ceiling, found.ceiling_of("f1"), beside(found, "f1", 0.5)) == (None, None, "–")


def test_a_figure_beside_its_ceiling(table: Table) -> None:
    found = read_labels(table(OASIS), sd="{task}_SD", n_raters="{task}_N").reliability()["Valence_mean"]
    assert found.ceiling is not None
    most = found.ceiling.value
    assert beside(found, "pearson", most / 2) == f"{most:.3f} (50 %)"
    assert beside(found, "r2", most**2) == f"{most**2:.3f} (100 %)"
    assert beside(found, "pearson", -0.1) == beside(found, "pearson", None) == f"{most:.3f}"
    assert beside(found, "rmse", 0.1) == "–"
    assert found.share_of("pearson", most / 4) == pytest.approx(0.25)


def test_a_look_at_labels(table: Table) -> None:
    text = OASIS.replace("b.jpg,x,4.5", "b.jpg,x,") + "A.jpg,y,,,,5,1,99\ne.jpg,y,,,,,,\n"
    found = look_at(read_labels(table(text), scales="1:7", sd="{task}_SD", n_raters="{task}_N"))
    assert found.title.endswith("labels.csv: 5 photos, 2 tasks, regression")
    valence = found.tasks["Valence_mean"]
    assert (valence.n_photos, valence.n_missing, valence.low, valence.high, valence.scale) == (3, 2, 2.5, 6.1, (1, 7))
    assert found.notes[:2] == [
        "1 photo without any label",
        "2 photos have names that differ in case only: a.jpg, A.jpg; are they the same photos?",
    ]
    assert found.of_raters() is not None
    stray = look_at(read_labels(table(PLAIN)))
    assert any("'beauty_sd' is read as a task; if it is the standard deviation of 'beauty'" in n for n in stray.notes)
    assert stray.of_raters() is None
    assert any(note.startswith("nothing is known of the raters, so no ceiling") for note in stray.notes)


def test_a_look_at_classes_and_at_yes_and_no() -> None:
    moods = pd.DataFrame({"path": list("abc"), "mood": ["joy", "awe", "joy"], "good": [1, 0, 1]})
    assert look_at(read_labels(moods, tasks=["mood"])).of_tasks() == (
        ["class", "photos", "share"],
        [["awe", "1", "33.3 %"], ["joy", "2", "66.7 %"]],
    )
    found = look_at(read_labels(moods, tasks=["good"]))
    assert found.of_tasks()[1] == [["good", "3", "0", "2", "0.667"]]
    assert found.plain()["tasks"]["good"]["classes"] == {"yes": 2, "no": 1}
