"""The page about a run: what it shows, and that nothing in a run can make it do anything else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from heads.errors import RunError
from heads.labels.target import Target
from heads.report import write_report
from heads.runs.run import Run

MakeRun = Callable[..., Run]
EMOTIONS = Target("multiclass", ("emotion",), ("awe", "fear", "joy"))


def _history(val_loss: float = 0.5, n_stages: int = 1) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "repeat": r,
            "fold": str(f),
            "task": "",
            "stage": stage,
            "epoch": e,
            "train_loss": 1 / (e + 1),
            "val_loss": val_loss + 0.1 * e,
            "best": int(e == 2),
        }
        for stage in range(n_stages)
        for r in range(2)
        for f in range(3)
        for e in range(6)
    )


def _page(run: Run) -> str:
    return write_report(run).read_text(encoding="utf-8")


def _images(page: str, kind: str) -> int:
    return len(re.findall(rf'src="data:image/{kind};base64,[A-Za-z0-9+/=]+"', page))


def _row(page: str, name: str) -> str:
    found = re.search(rf'<th scope="row">{re.escape(name)}</th>(.*?)</tr>', page, re.DOTALL)
    assert found
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", found[1])).strip()


def _metrics(**changes: Any) -> dict[str, Any]:
    values = {"pearson": 0.8125, "pearson2": 0.66, "r2": -0.125, "rmse": 0.2345, "srocc": 0.5}
    metrics: dict[str, Any] = {
        name: {"mean": value, "spread": 0.0125, "low": value - 0.1, "high": value + 0.05}
        for name, value in values.items()
    }
    return {"beauty": metrics, "calm": metrics | changes}


UNDEFINED = dict.fromkeys(("mean", "spread", "low", "high"))


def test_shows_numbers_figures_and_what_it_was(make_run: MakeRun, attend: Any, photos: Path) -> None:
    run = make_run(photos=photos, history=_history(), metrics=_metrics(), attention=attend("amtl"))
    assert write_report(run) == run.folder / "report.html"
    page = _page(run)
    assert _row(page, "beauty") == (
        "0.812 ± 0.013 0.713 to 0.863 -0.125 ± 0.013 -0.225 to -0.075 "
        "0.234 ± 0.013 0.134 to 0.284 0.500 ± 0.013 0.400 to 0.550"
    )
    assert _row(page, "mean over the 2 tasks") == "0.812 -0.125 0.234 0.500"
    assert _images(page, "png") == 2 + 2  # two learning curves, two tasks
    assert _images(page, "jpeg") == 6 * 2 + 1  # six photos with their maps, and the average
    assert "one for\n        each scene" in page
    for told in ("stacked", "4 backbones × 16 blocks × 2,048 features", "lite2:max", "0000000000000003", "labels.csv",
                 "feedc0defeedc0de", "24 images", "3 folds, groups kept together", "2 repeats", "seed 7", "8 groups",
                 "1 min 15 s", "heads train amtl --folds 3", "featstore 0.1.0", "did not see", "scale 1 to 7",
                 "is left out"):  # fmt: skip
        assert told in page, told
    assert "/somewhere" not in page


def test_intervals_are_drawn_on_one_axis_by_column(make_run: MakeRun) -> None:
    lower = {"mean": 0.25, "spread": None, "low": 0.1, "high": 0.4}
    page = _page(make_run(metrics=_metrics(pearson=lower, r2=UNDEFINED)))
    tracks = re.findall(
        r'<i style="left: ([-\d.]+)%; right: calc\(100% - ([-\d.]+)%\)"></i><b style="left: ([-\d.]+)%', page
    )
    assert len(tracks) == 4 + 3  # r2 of calm is undefined
    assert tracks[0] == ("82.6", "100.0", "94.2")  # 0.7125, 0.8625 and 0.8125 of 0 .. 0.8625
    assert tracks[4] == ("11.6", "46.4", "29.0")
    assert tracks[1] == ("0.0", "66.7", "44.4")  # r2: -0.225, -0.075 and -0.125 of -0.225 .. 0


def test_a_run_of_classes_has_a_confusion_matrix(make_run: MakeRun) -> None:
    run = make_run(target=EMOTIONS)
    page = _page(run)
    table = run.predictions
    counts = confusion_matrix(table["emotion"], table["emotion_predicted"], labels=EMOTIONS.classes) / 2
    for name, row in zip(EMOTIONS.classes, counts, strict=True):
        share = 100 * row[EMOTIONS.classes.index(name)] / row.sum()
        assert _row(page, name) == " ".join([*(f"{count:.4g}" for count in row), f"{share:.0f} %"])
    assert "one class of 3: awe, fear, joy" in page
    assert "Predicted against given" not in page
    assert _images(page, "png") == 0


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_a_run_of_yes_and_no_has_precision_by_recall(make_run: MakeRun, kind: Any) -> None:
    run = make_run(target=Target(kind, ("joy", "fear")))
    page = _page(run)
    assert _images(page, "png") == 2
    n_yes = int(run.predictions.query("repeat == 0")["fear"].sum())
    assert f"map 0.234, {n_yes} of 24 images" in page
    assert ('<th scope="row">all</th>' in page) == (kind == "multilabel")
    assert "scaled to" not in page


def test_a_label_that_never_occurs_has_no_chart(make_run: MakeRun) -> None:
    run = make_run(target=Target("binary", ("joy", "fear")))
    run.predictions.assign(fear=0).to_csv(run.folder / "predictions.csv", index=False)
    page = _page(Run(run.folder))
    assert _images(page, "png") == 1
    assert "nothing to draw" in page


def test_what_a_head_has_learnt_is_drawn_with_its_spread(make_run: MakeRun) -> None:
    traits = ("O", "C", "E", "A", "N")
    learned = pd.DataFrame(
        {"repeat": 0, "fold": str(fold), "name": "trait_weights", "index": i, "value": (i - 1) / 10 + fold / 100}
        for fold in range(3)
        for i in range(5)
    )
    page = _page(make_run(target=Target("regression", ("score", *traits)), learned=learned, metrics={}))
    bars = page[page.index("What the head has learnt") :]
    assert [_row(bars, trait) for trait in traits] == [
        "-0.0900 ± 0.0100", "+0.0100 ± 0.0100", "+0.1100 ± 0.0100", "+0.2100 ± 0.0100", "+0.3100 ± 0.0100",
    ]  # fmt: skip
    assert 'style="left: 0.0%; right: calc(100% - 4.8%)"' in bars  # -0.1 to -0.08 of -0.1 .. 0.32
    assert 'style="left: 23.8%; width: 73.8%"' in bars  # 0 to 0.31


def test_learnt_values_that_belong_to_no_task_are_numbered(make_run: MakeRun) -> None:
    learned = pd.DataFrame({"repeat": 0, "fold": "0", "name": "gates", "index": range(3), "value": [0.5, 0.25, 0.0]})
    bars = _page(make_run(learned=learned)).partition("What the head has learnt")[2]
    assert [_row(bars, str(i)) for i in range(3)] == ["+0.5000 ± 0.0000", "+0.2500 ± 0.0000", "+0.0000 ± 0.0000"]


def test_what_has_names_of_its_own_is_a_table_for_each_task(make_run: MakeRun) -> None:
    learned = pd.DataFrame(
        {"repeat": 0, "fold": str(fold), "name": f"share: {name}", "index": i, "value": (i + 1) * value}
        for fold in range(2)
        for name, value in (("b: x", 0.1), ("a", 0.3))
        for i in range(2)
    )
    bars = _page(make_run(learned=learned)).partition("What the head has learnt")[2]
    first, second = bars.partition("share, beauty")[2].split("share, calm")
    assert [_row(first, name) for name in ("b: x", "a")] == ["+0.1000 ± 0.0000", "+0.3000 ± 0.0000"]
    assert [_row(second, name) for name in ("b: x", "a")] == ["+0.2000 ± 0.0000", "+0.6000 ± 0.0000"]


def test_stages_have_curves_of_their_own(make_run: MakeRun) -> None:
    page = _page(make_run(history=_history(n_stages=2)))
    assert _images(page, "png") == 4 + 2
    assert "stage 2: validation loss" in page


def test_stands_alone(make_run: MakeRun, attend: Any, photos: Path) -> None:
    page = _page(make_run(photos=photos, history=_history(), attention=attend("amtl")))
    assert "<script" not in page
    assert "<link" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert all(value.startswith("data:image/") for value in re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page))
    assert all(alt.strip() for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page))
    assert len(re.findall("<img ", page)) == len(re.findall("<img [^>]*alt=", page))
    assert len(page) < 3_000_000


def test_writes_in_one_step_and_again(make_run: MakeRun) -> None:
    run = make_run()
    first = _page(run)
    assert _page(Run(run.folder)) == first
    assert not list(run.folder.glob("*.part"))


def test_says_when_the_page_cannot_be_written(make_run: MakeRun) -> None:
    run = make_run()
    (run.folder / "report.html").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        write_report(run)


HOSTILE = "<script>alert(\"1\")</script>' onerror='x"


@pytest.mark.parametrize("kind", ["regression", "multilabel", "multiclass"])
def test_names_are_only_text(make_run: MakeRun, attend: Any, kind: Any) -> None:
    classes = (HOSTILE, "joy") if kind == "multiclass" else ()
    target = Target(kind, (HOSTILE,) if classes else (HOSTILE, "calm"), classes)
    run = make_run(
        target=target,
        paths=[f"{HOSTILE}{i}.jpg" for i in range(24)],
        attention=attend("amtl-single", n_tasks=len(target.tasks)),
        system=HOSTILE,
        group=HOSTILE,
        split=HOSTILE,
        command=HOSTILE,
        store=HOSTILE,
        labels={"files": [HOSTILE], "sha256": [HOSTILE]},
        options={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        layout=HOSTILE,
        segments=[{"name": HOSTILE, "hash": HOSTILE}] * 4,
    )
    page = _page(run)
    assert "<script" not in page
    assert "' onerror='" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("task", ["美しさ", "красота", "ça $x^2$ \\frac", "🙂", "x" * 300])
def test_any_task_name_is_drawn(make_run: MakeRun, task: str) -> None:
    assert task in _page(make_run(target=Target("regression", (task,))))


def test_half_a_letter_is_refused(make_run: MakeRun) -> None:
    run = make_run(device="cpu")
    config = run.folder / "config.json"
    config.write_text(config.read_text("utf-8").replace('"device": "cpu"', '"device": "\\ud800"'), "utf-8")
    with pytest.raises(RunError, match=r"config\.json is not what this version of heads writes: invalid json"):
        Run(run.folder)


def test_single_repeat_has_no_spread(make_run: MakeRun) -> None:
    page = _page(make_run(n_repeats=1))
    assert _row(page, "calm").startswith("0.812 0.713 to 0.863 0.660 ")
    assert "no spread" in page


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((8, 8, 8), "Folds have as few as 8 photos: correlations within them are rough."),
        ((11, 10, 3), "3 photos: correlations within them are rough, and those of folds of less than 4 are left out."),
        ((3,) * 8, "3 photos: correlations within them are rough, so that pearson is pooled over all folds"),
    ],
)
def test_folds_too_small_for_a_correlation_are_said_to_be(make_run: MakeRun, sizes: tuple[int, ...], said: str) -> None:
    run = make_run()
    folds = [str(fold) for fold, size in enumerate(sizes) for _ in range(size)]
    by_path = dict(zip(run.folds["path"], folds, strict=True))
    tested = run.predictions.assign(fold=run.predictions["path"].map(by_path))
    tested.to_csv(run.folder / "predictions.csv", index=False)
    run.folds.assign(fold=folds).to_csv(run.folder / "folds.csv", index=False)
    again = Run(run.folder)
    assert any(said in each for each in again.caveats)
    assert said in _page(again)


def test_undefined_metrics_are_dashes(make_run: MakeRun) -> None:
    page = _page(make_run(metrics=_metrics(pearson=UNDEFINED)))
    assert _row(page, "calm").startswith("– -0.125")
    assert _row(page, "mean over the 2 tasks").startswith("0.812 of 1 -0.125")


@pytest.mark.parametrize("n_tasks", [1, 12])
def test_one_chart_per_task(make_run: MakeRun, n_tasks: int) -> None:
    page = _page(make_run(target=Target("regression", tuple(f"task{k}" for k in range(n_tasks)))))
    assert _images(page, "png") == n_tasks
    assert f"{n_tasks} task{'s' if n_tasks > 1 else ''}," in page
    assert (f"mean over the {n_tasks} tasks" in page) == (n_tasks > 1)


def test_tasks_on_several_scales(make_run: MakeRun) -> None:
    page = _page(make_run(scales=((1.0, 7.0), (0.0, 100.0))))
    assert "scale 1 to 7 (beauty), 0 to 100 (calm)" in page


def test_several_label_files_and_tensors_are_named(make_run: MakeRun) -> None:
    labels = {"files": ["a/scores.csv", "b/traits.csv"], "sha256": ["0a" * 32, "0b" * 32]}
    tensors = tuple(
        {"name": name, "layout": "concat", "shape": [n], "segments": [{"name": f"net-{name}", "hash": "0"}]}
        for name, n in (("whole", 1280), ("faces", 64))
    )
    page = _page(make_run(labels=labels, tensors=tensors))
    for told in ("scores.csv", "traits.csv", "0b0b0b", "1,280 features", "64 features", "net-faces"):
        assert told in page, told


def test_missing_labels_are_skipped(make_run: MakeRun) -> None:
    run = make_run(metrics=_metrics())
    table = run.predictions
    table.loc[table["path"].isin(run.folds["path"][:5]), "beauty"] = np.nan
    table.to_csv(run.folder / "predictions.csv", index=False)
    page = _page(Run(run.folder))
    assert "pearson 0.812, 19 images" in page
    assert "pearson 0.812, 24 images" in page


def test_a_task_without_any_label_has_no_chart(make_run: MakeRun) -> None:
    run = make_run()
    run.predictions.assign(calm=np.nan).to_csv(run.folder / "predictions.csv", index=False)
    page = _page(Run(run.folder))
    assert _images(page, "png") == 1
    assert "no image has both" in page


@pytest.mark.parametrize("history", [None, pd.DataFrame(), pd.DataFrame(columns=list(_history()))])
def test_head_without_epochs_or_attention(make_run: MakeRun, history: pd.DataFrame | None) -> None:
    page = _page(make_run(history=history, shape=(6528,), layout="concat", group=None))
    assert "Learning curves" not in page
    assert "Attention" not in page
    assert "What the head has learnt" not in page
    assert "6,528 features" in page
    assert "no groups" in page
    assert "95 % intervals of the method, on another sample of photos" in page


def test_photos_of_the_same_bytes_are_groups_that_nobody_asked_for(make_run: MakeRun) -> None:
    page = _page(make_run(group=None, groups=["a", "a", *(f"{i}.jpg" for i in range(22))]))
    assert "photos of the same bytes stay together; no other groups" in page
    assert "95 % intervals of these models, on other photos (bootstrap over photos, or over whole groups)" in _page(
        make_run(parts=("test",), name="held")
    )


@pytest.mark.parametrize("val_loss", [0.5, 500.0, float("nan")])
def test_learning_curves_of_any_height(make_run: MakeRun, val_loss: float) -> None:
    page = _page(make_run(history=_history(val_loss)))
    assert _images(page, "png") == 2 + (1 if np.isnan(val_loss) else 2)


@pytest.mark.parametrize("table", ["predictions.csv", "history.csv", "learned.csv"])
def test_refuses_a_table_that_lacks_columns(make_run: MakeRun, table: str) -> None:
    run = make_run(history=_history())
    (run.folder / table).write_text("fold,repeat\na,1\n")
    with pytest.raises(RunError, match=r"(predictions|history|learned).csv lacks the columns"):
        write_report(run)


def test_random_weights_are_named(make_run: MakeRun) -> None:
    identity = {"weights": {"sha256": "0", "random_seed": 0}}
    segments = [{"name": f"net{i}", "hash": "0", "identity": identity} for i in range(4)]
    assert _page(make_run(segments=segments)).count("random weights") == 4
