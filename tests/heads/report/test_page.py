"""The page about a run: what it shows, and that nothing in a run can make it do anything else."""

import json
import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
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
    return len(re.findall(rf'(?:src|href)="data:image/{kind};base64,[A-Za-z0-9+/=]+"', page))


CHART = r'<div class="chart" data-kind="{}"><script type="application/json">([^<]*)</script>'


def _charts(page: str, kind: str) -> list[dict[str, Any]]:
    """The data of each chart of a kind."""
    return [json.loads(found) for found in re.findall(CHART.format(kind), page)]


def _words_of(page: str) -> str:
    """The page without the scripts that draw."""
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def _row(page: str, name: str) -> str:
    found = re.search(rf'<th scope="row"[^>]*>{re.escape(name)}</th>(.*?)</tr>', page, re.DOTALL)
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
    assert len(_charts(page, "curves")) == 2
    assert len(_charts(page, "scatter")) == 2
    assert _images(page, "png") == 6 + 1  # the maps of six photos, and the average
    assert _images(page, "jpeg") == 6 + 2 * 6  # those photos, and the six that are furthest off in each task
    assert "one for\n        each scene" in page
    for told in ("stacked", "4 backbones × 16 blocks × 2,048 features", "lite2:max", "0000000000000003", "labels.csv",
                 "feedc0defeedc0de", "24 images", "3 folds, groups kept together", "2 repeats", "seed 7", "8 groups",
                 "1 min 15 s", "heads train amtl --folds 3", "featstore 0.1.0", "did not see", "scale 1 to 7",
                 "is left out"):  # fmt: skip
        assert told in page, told
    assert "/somewhere" not in page


def _tracks(page: str, what: str) -> list[str]:
    """Percent from the left of what stands on each axis."""
    return re.findall(rf'<[ib] class="{what}" style="left: ([-\d.]+)%', page)


def test_intervals_are_drawn_on_one_axis_by_column(make_run: MakeRun) -> None:
    lower = {"mean": 0.25, "spread": None, "low": 0.1, "high": 0.4, "baseline": -0.1375}
    metrics = _metrics(pearson=lower, r2=UNDEFINED)
    metrics["calm"] = {name: {"baseline": None} | value for name, value in metrics["calm"].items()}
    page = _page(make_run(metrics=metrics))
    froms = re.findall(r'<i class="from" style="left: ([-\d.]+)%; right: calc\(100% - ([-\d.]+)%\)', page)
    assert len(froms) == len(_tracks(page, "dot")) == 4 + 3  # r2 of calm is undefined
    assert (froms[0], _tracks(page, "dot")[0]) == (("85.0", "100.0"), "95.0")  # 0.7125 .. 0.8625 of -0.1375 .. 0.8625
    assert (froms[4], _tracks(page, "dot")[4]) == (("23.8", "53.8"), "38.8")
    assert (froms[1], _tracks(page, "dot")[1]) == (("0.0", "66.7"), "44.4")  # r2: of -0.225 .. 0
    assert _tracks(page, "zero") == ["13.8", "100.0", "0.0", "0.0", "13.8", "0.0", "0.0"]
    assert _tracks(page, "nothing") == ["0.0"]  # of the one baseline that is known


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
    assert _charts(page, "scatter") == []


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_a_run_of_yes_and_no_has_precision_by_recall(make_run: MakeRun, kind: Any) -> None:
    run = make_run(target=Target(kind, ("joy", "fear")))
    page = _page(run)
    assert len(_charts(page, "precision")) == 2
    n_yes = int(run.predictions.query("repeat == 0")["fear"].sum())
    assert f"map 0.234, {n_yes} of 24 images" in page
    assert ('role="rowheader">all</th>' in page) == (kind == "multilabel")
    assert "scaled to" not in page


def test_a_label_that_never_occurs_has_no_chart(make_run: MakeRun) -> None:
    run = make_run(target=Target("binary", ("joy", "fear")))
    run.predictions.assign(fear=0).to_csv(run.folder / "predictions.csv", index=False)
    page = _page(Run(run.folder))
    assert len(_charts(page, "precision")) == 1
    assert "nothing to draw" in page


def test_what_a_head_has_learnt_is_drawn_with_its_spread(make_run: MakeRun) -> None:
    traits = ("O", "C", "E", "A", "N")
    learned = pd.DataFrame(
        {"repeat": 0, "fold": str(fold), "name": "trait_weights", "index": i, "value": (i - 1) / 10 + fold / 100}
        for fold in range(3)
        for i in range(5)
    )
    page = _page(make_run(target=Target("regression", ("score", *traits)), learned=learned, metrics={}))
    bars = page[page.index('<section id="learned">') :]
    assert [_row(bars, trait) for trait in traits] == [
        "-0.0900 ± 0.0100", "+0.0100 ± 0.0100", "+0.1100 ± 0.0100", "+0.2100 ± 0.0100", "+0.3100 ± 0.0100",
    ]  # fmt: skip
    assert 'style="left: 0.0%; right: calc(100% - 4.8%)"' in bars  # -0.1 to -0.08 of -0.1 .. 0.32
    assert 'style="left: 23.8%; width: 73.8%"' in bars  # 0 to 0.31


def test_a_weight_that_is_next_to_nothing_is_drawn_as_that(make_run: MakeRun) -> None:
    learned = pd.DataFrame({"repeat": 0, "fold": "0", "name": "gates", "index": range(2), "value": [-0.0002, 0.0001]})
    bars = _page(make_run(learned=learned)).partition('<section id="learned">')[2]
    assert "<span>-0.05<span>0.05</span></span>" in bars
    assert re.findall(r'<i style="left: ([\d.]+)%; width: ([\d.]+)%', bars) == [("49.8", "0.2"), ("50.0", "0.1")]


def test_backbones_are_coloured_by_how_far_they_are_from_even(make_run: MakeRun) -> None:
    weights = np.array([[0.21, 0.25, 0.26, 0.28], [0.25, 0.25, 0.25, 0.25]])
    attention = {"backbones": np.broadcast_to(weights, (24, 2, 4)).astype(np.float32)}
    page = _page(make_run(attention=attention))
    cells = re.findall(r'<td class="heat( less|)" style="--share: ([\d.]+)">([\d.]+)', page)
    assert cells[:4] == [
        (" less", "1.000", "0.210"),
        ("", "0.000", "0.250"),
        ("", "0.250", "0.260"),
        ("", "0.750", "0.280"),
    ]


def test_learnt_values_that_belong_to_no_task_are_numbered(make_run: MakeRun) -> None:
    learned = pd.DataFrame({"repeat": 0, "fold": "0", "name": "gates", "index": range(3), "value": [0.5, 0.25, 0.0]})
    bars = _page(make_run(learned=learned)).partition('<section id="learned">')[2]
    assert [_row(bars, str(i)) for i in range(3)] == ["+0.5000 ± 0.0000", "+0.2500 ± 0.0000", "+0.0000 ± 0.0000"]


def test_what_has_names_of_its_own_is_a_table_for_each_task(make_run: MakeRun) -> None:
    learned = pd.DataFrame(
        {"repeat": 0, "fold": str(fold), "name": f"share: {name}", "index": i, "value": (i + 1) * value}
        for fold in range(2)
        for name, value in (("b: x", 0.1), ("a", 0.3))
        for i in range(2)
    )
    bars = _page(make_run(learned=learned)).partition('<section id="learned">')[2]
    first, second = bars.partition('col">share, beauty')[2].split('col">share, calm')
    assert [_row(first, name) for name in ("b: x", "a")] == ["+0.1000 ± 0.0000", "+0.3000 ± 0.0000"]
    assert [_row(second, name) for name in ("b: x", "a")] == ["+0.2000 ± 0.0000", "+0.6000 ± 0.0000"]


def test_stages_have_curves_of_their_own(make_run: MakeRun) -> None:
    page = _page(make_run(history=_history(n_stages=2)))
    assert len(_charts(page, "curves")) == 4
    assert "stage 2: validation loss" in page


def test_stands_alone(make_run: MakeRun, attend: Any, photos: Path) -> None:
    page = _page(make_run(photos=photos, history=_history(), attention=attend("amtl")))
    words = _words_of(page)
    assert "<link" not in words
    assert "@import" not in words
    assert re.findall(r"url\([^#]", words) == []
    links = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', words)
    assert all(value.startswith(("data:image/", "#")) for value in links)
    assert all(alt.strip() for alt in re.findall(r'<img [^>]*alt="([^"]*)"', words))
    assert len(re.findall("<img ", words)) == len(re.findall("<img [^>]*alt=", words))


def test_only_its_own_scripts_may_run(make_run: MakeRun) -> None:
    page = _page(make_run())
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts]
    assert len(hashes) == 4  # d3, Plot, the charts, and what draws them
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src {' '.join(hashes)} ; " in policy


def test_a_page_of_a_thousand_photos_is_small(make_run: MakeRun, attend: Any, tmp_path: Path) -> None:
    """Photos of noise, which no JPEG makes small, and twelve tasks."""
    paths = [f"an album with a long name {i % 8}/IMG_{i:08}.jpg" for i in range(1000)]
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg")
    for path in paths:
        (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / path).hardlink_to(tmp_path / "noise.jpg")
    target = Target("regression", tuple(f"a rating {k}" for k in range(12)))
    run = make_run(
        target=target,
        paths=paths,
        photos=tmp_path / "photos",
        history=_history(),
        attention=attend("amtl", n_images=1000, n_tasks=12),
    )
    page = _page(run)
    assert _images(page, "jpeg") == 6 + 12 * 3
    assert len(page.encode()) < 3_000_000


def test_of_very_many_photos_a_sample_is_drawn(make_run: MakeRun) -> None:
    paths = [f"{i}.jpg" for i in range(3000)]
    run = make_run(paths=paths, groups=paths, group=None)
    page = _page(run)
    shown = json.loads(re.findall(r'id="shared">([^<]*)</script>', page)[0])["paths"]
    assert len(shown) == len(set(shown)) == 2000
    given = run.predictions.query("repeat == 0").set_index("path")["beauty"]
    assert _charts(page, "scatter")[0]["given"] == pytest.approx(given[shown].tolist(), rel=1e-3)
    assert "2,000 images, a random sample, in label units" in page
    assert "pearson 0.812, 3,000 images" in page


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


HOSTILE = "<script>alert(\"1\")</script>' onerror='x<!--"


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
    words = _words_of(page)
    data = re.sub(r'<script type="application/json"[^>]*>[^<]*</script>', "", words)
    assert "<script" not in data
    assert "<!--" not in words
    assert "' onerror='" not in data
    assert "&lt;script&gt;" in data
    shared = re.findall(r'<script type="application/json" id="shared">([^<]*)</script>', page)[0]
    assert json.loads(shared)["paths"][0] == f"{HOSTILE}0.jpg"


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
    assert len(_charts(page, "scatter")) == n_tasks
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
    assert len(_charts(page, "scatter")) == 1
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
    charts = _charts(page, "curves")
    assert len(charts) == (1 if np.isnan(val_loss) else 2)
    assert charts[0]["models"][0]["loss"] == [1.0, 0.5, 0.3333, 0.25, 0.2, 0.1667]
    assert charts[0]["models"][0]["kept"] == [2]
    assert not any(each["steep"] for each in charts)  # each has an axis of its own


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
