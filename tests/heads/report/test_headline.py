"""The first sentences of a page, of each kind of labels: they claim what the table claims, and no more."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from heads.inference.comparing import Comparison, Row
from heads.inference.metrics import SHOWN, tasks_of
from heads.labels.target import Target
from heads.raters.ceilings import Reliability
from heads.raters.reliability import Estimate
from heads.report.headline import comparison_headline, headline
from heads.runs.run import Run

from .conftest import write_json

MakeRun = Callable[..., Run]
SURE, UNSURE = 0.001, 0.4


def _run(
    make_run: MakeRun, target: Target, p: dict[str, float | None], *, baseline: float | None = 0.4, **changes: Any
) -> Run:
    """A run whose first metric is .5, .6, .7, ... by task, above its baseline with these p."""
    metrics = {
        task: {
            name: {
                "mean": 0.5 + k / 10, "spread": None, "low": 0.4, "high": 0.8 + k / 100,
                "models_low": 0.4, "models_high": 0.8, "baseline": baseline, "p": p.get(task, SURE),
            }
            for name in SHOWN[target.kind]
        }
        for k, task in enumerate(tasks_of(target))
    }  # fmt: skip
    return make_run(target=target, metrics=metrics, **changes)


@pytest.mark.parametrize(
    ("tasks", "unsure", "said"),
    [
        (("beauty",), (), "amtl predicts beauty better than saying the mean"),
        (("beauty",), ("beauty",), "amtl is not found to predict beauty better than saying the mean"),
        (("a", "b", "c"), (), "amtl predicts a, b and c better than saying the mean"),
        (("a", "b", "c", "d"), (), "amtl predicts all 4 labels better than saying the mean"),
        (("a", "b", "c"), ("a",), "amtl predicts c and b better than saying the mean: 2 of 3 labels"),
        (tuple("abcdef"), ("f",), "amtl predicts e, d and 3 more better than saying the mean: 5 of 6 labels"),
        (("a", "b"), ("a", "b"), "amtl is not found to predict any of 2 labels better than saying the mean"),
    ],
)
def test_ratings(make_run: MakeRun, tasks: tuple[str, ...], unsure: tuple[str, ...], said: str) -> None:
    run = _run(make_run, Target("regression", tasks), dict.fromkeys(unsure, UNSURE), baseline=None)
    assert headline(run).finding == said
    best = len(tasks) - 1
    figure = f"earson {0.5 + best / 10:.3f} [0.400, {0.8 + best / 100:.3f}], against 0 for saying the mean."
    assert figure in headline(run).figures
    assert (f"Best is {tasks[-1]}: p" in headline(run).figures) == (len(tasks) > 1)
    assert headline(run).figures.endswith("In brackets, the 95 % interval of the method, on another sample of photos.")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Target("binary", ("good",)), "amtl predicts good (yes or no) better than saying what is most frequent"),
        (Target("multilabel", ("joy", "fear")), "amtl predicts joy and fear better than saying what is most frequent"),
        (
            Target("multiclass", ("emotion",), ("awe", "fear", "joy")),
            "amtl predicts emotion (3 classes) better than saying what is most frequent",
        ),
    ],
)
def test_classes(make_run: MakeRun, target: Target, said: str) -> None:
    found = headline(_run(make_run, target, {}))
    assert found.finding == said
    assert "against 0.400 for saying what is most frequent." in found.figures
    together = (
        "All labels together: f1 0.700 [0.400, 0.820], against 0.400 for saying what is most frequent. Best is fear"
    )
    assert found.figures.startswith(together if target.kind == "multilabel" else "F1 0.5")


def test_of_single_models_and_below_a_ceiling(make_run: MakeRun) -> None:
    target = Target("regression", ("beauty", "calm"))
    run = _run(make_run, target, {}, baseline=None, parts=("test",))
    facts = dict.fromkeys(("one_rater", "icc1", "icc2k", "split_half", "alpha", "noise"))
    known = Reliability(
        n_photos=24, n_ratings=240, n_raters=None, raters_per_photo=(10, 10.0, 10), n_single=0, basis="ICC(1,k)",
        reliability=Estimate(0.64, 0.6, 0.7), ceiling=Estimate(0.8, 0.77, 0.84), **facts,
    )  # fmt: skip
    write_json(
        run.folder / "raters.json", {"calm": asdict(known) | {"reliability": None, "ceiling": known.ceiling._asdict()}}
    )
    assert headline(Run(run.folder)).figures == (
        "Best is calm: pearson 0.600 [0.400, 0.810], against 0 for saying the mean and a ceiling of 0.800 that its "
        "raters leave (75 % reached). In brackets, the 95 % interval of these models, on other photos."
    )


def test_what_is_not_known_is_not_claimed(make_run: MakeRun) -> None:
    run = _run(make_run, Target("regression", ("a", "b")), {"a": None, "b": None}, baseline=None)
    assert headline(run).finding == "Whether amtl predicts any of 2 labels better than saying the mean is not known"


def _comparison(*rows: Row) -> Comparison:
    first = tuple(Row(task, "ridge", 0.5, 0.4, 0.6, better=True) for task in dict.fromkeys(row.task for row in rows))
    nothing = Row(first[0].task, "mean", None)
    return Comparison(
        metric="pearson", n_images=900, n_groups=248, of="method", paired=True, n_folds=50, n_tests=9,
        rows=(nothing, *first, *rows), notes=(),
    )  # fmt: skip


def _other(task: str, run: str, difference: float, *, real: bool) -> Row:
    ends = {"difference_low": difference - 0.01, "difference_high": difference + 0.01}
    return Row(task, run, 0.5 + difference, 0.4, 0.6, True, difference, **ends, p=0.01, p_adjusted=0.01, real=real)


BETTER_IN_A, ALIKE_IN_A, ALIKE_IN_B = ("a", "svr", 0.1, True), ("a", "svr", 0.1, False), ("b", "svr", 0.1, False)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([BETTER_IN_A, ("b", "svr", 0.2, True)], "svr is better than ridge in a and b"),
        ([BETTER_IN_A, ("b", "svr", -0.2, True)], "svr is better than ridge in a and worse than ridge in b"),
        ([BETTER_IN_A, ALIKE_IN_B], "svr is better than ridge in a"),
        ([ALIKE_IN_A], "svr is not found to differ from ridge in a"),
        ([ALIKE_IN_A, ALIKE_IN_B], "svr is not found to differ from ridge in any of 2 tasks"),
        ([ALIKE_IN_A, ("a", "mtl", 0.1, False)], "None of 2 runs is found to differ from ridge in a"),
        ([BETTER_IN_A, ("a", "mtl", 0.1, False)], "svr is better than ridge in a; 1 other run is not found to differ"),
    ],
)
def test_a_comparison(rows: list[tuple[str, str, float, bool]], said: str) -> None:
    found = _comparison(*(_other(task, run, difference, real=real) for task, run, difference, real in rows))
    assert comparison_headline(found, higher=True).finding == said


def test_of_an_error_the_lower_is_the_better() -> None:
    found = _comparison(_other("a", "svr", 0.1, real=True))
    assert comparison_headline(found, higher=False).finding == "svr is worse than ridge in a"


def test_the_largest_difference_of_a_comparison() -> None:
    found = _comparison(_other("a", "svr", 0.1, real=True), _other("b", "svr", -0.25, real=False))
    assert comparison_headline(found, higher=True).figures == (
        "The largest difference is in b: pearson -0.250 [-0.260, -0.240], in brackets the 95 % interval. "
        "On 900 images in 248 groups, out of fold."
    )
