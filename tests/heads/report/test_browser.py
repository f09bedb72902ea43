"""The pages in a real browser: their charts are drawn, answer the pointer, and fit a phone; nothing is asked of anyone.

The fixture `page` holds, at the end of each test, that the browser has logged nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from heads.inference.comparing import compare
from heads.labels.target import Target
from heads.report import write_comparison, write_report
from heads.runs.run import Run

expect = pytest.importorskip("playwright.sync_api", reason="no Playwright").expect
MakeRun = Callable[..., Run]
HOSTILE = "<img src=x onerror=\"document.title='run'\">\u202eeman</script><!--"
PHONE = {"width": 400, "height": 800}


def opened(page: Any, file: Path, n_charts: int) -> None:
    """The page, from the disk, with all of its charts, and without a request for anything else."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    expect(page.locator(".chart > svg")).to_have_count(n_charts)
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]


def hover(page: Any, kind: str, dot: int | None = 0) -> str:
    """What the first chart of a kind says of a dot that the pointer is on, or of its middle."""
    chart = page.locator(f".chart[data-kind={kind}] > svg").first
    chart.scroll_into_view_if_needed()
    box = (chart if dot is None else chart.locator("circle").nth(dot)).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = chart.locator("[aria-label=tip] text")
    tip.wait_for()
    return "\n".join(line.strip("\u200b") for line in tip.locator("tspan").all_text_contents())  # Plot begins lines so


@pytest.fixture
def report(make_run: MakeRun, attend: Any, photos: Path) -> Run:
    history = pd.DataFrame(
        {"repeat": 0, "fold": str(f), "task": "", "stage": 0, "epoch": e, "train_loss": 1 / (e + 1), "val_loss": 0.5,
         "best": int(e == 2), "baseline_loss": 0.6}
        for f in range(3) for e in range(6)
    )  # fmt: skip
    return make_run(history=history, attention=attend("amtl"), photos=photos)


def test_a_report(page: Any, report: Run) -> None:
    opened(page, write_report(report), 2 + 2)
    first = report.predictions.groupby("path", sort=False)[["beauty", "beauty_predicted"]].mean().iloc[3]
    assert hover(page, "scatter", 3).splitlines()[1:] == [
        f"given {first['beauty']:.4g}",
        f"predicted {first['beauty_predicted']:.4g}",
    ]
    assert hover(page, "curves").endswith("\nepoch 2: 0.3333\nkept")
    assert all(page.locator(".chart > svg").nth(i).get_attribute("aria-label") for i in range(4))
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    lifted = page.locator(".pair").first
    expect(lifted.locator(".over")).to_have_css("opacity", "0.6")
    lifted.focus()
    expect(lifted.locator(".over")).to_have_css("opacity", "0")


def test_a_report_on_a_phone(page: Any, report: Run) -> None:
    page.set_viewport_size(PHONE)
    opened(page, write_report(report), 4)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    chart = page.locator(".chart > svg").first
    expect(chart).to_have_attribute("width", "320")
    page.set_viewport_size({"width": 320, "height": 800})
    expect(chart).to_have_attribute("width", "288")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.set_viewport_size({"width": 760, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 760
    page.set_viewport_size({"width": 320, "height": 800})
    hidden = page.evaluate("""[...document.querySelectorAll('#metrics td')].filter(cell => {
        const {left, right} = cell.getBoundingClientRect(); return left < 0 || right > 320; }).length""")
    assert hidden == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_on_their_ground(page: Any, report: Run, scheme: str) -> None:
    """Contrast of at least 4.5, as WCAG 2 AA asks of small text."""
    page.emulate_media(color_scheme=scheme)
    opened(page, write_report(report), 4)
    script = """name => { const x = document.createElement('i'); x.style.color = `var(--${name})`;
        document.body.append(x);
        return getComputedStyle(x).color.match(/[\\d.]+/g).slice(0, 3).map(Number); }"""
    light = {
        name: luminance(page.evaluate(script, name)) for name in ("paper", "soft", "ink", "quiet", "accent", "warn")
    }
    for ground in ("paper", "soft"):
        for text in ("ink", "quiet", "accent", "warn"):
            low, high = sorted((light[ground], light[text]))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ground, text)


def luminance(colour: list[float]) -> float:
    """Relative luminance (WCAG 2.2) of red, green and blue, 0 to 255."""
    shares = np.array(colour) / 255
    return float(
        np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    )


def test_a_page_says_something_without_scripts(browser: Any, report: Run) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(write_report(report).as_uri())
    assert page.locator("h1").inner_text().startswith("Whether amtl predicts any of 2 labels")
    assert "need scripts" in page.locator("noscript").inner_text()
    assert page.locator("#metrics tbody tr").count() == 2
    page.close()


def test_names_are_text_in_every_chart(page: Any, make_run: MakeRun, attend: Any) -> None:
    run = make_run(
        target=Target("regression", (HOSTILE, "calm")),
        paths=[f"{HOSTILE}{i}.jpg" for i in range(24)],
        attention=attend("amtl"),
        system=HOSTILE,
    )
    opened(page, write_report(run), 2)
    assert hover(page, "scatter").splitlines()[0].endswith("</script><!--0.jpg")
    assert page.locator("img").count() == 0
    assert "document.title" in page.title()  # as text, in the headline
    assert "\u202e" not in page.content()


def test_a_comparison(page: Any, make_run: MakeRun, photos: Path) -> None:
    first, other = (make_run(name, photos=photos) for name in ("ridge", "svr"))
    table = other.predictions.assign(beauty_predicted=first.predictions["beauty"] + 0.25)
    table.to_csv(other.folder / "predictions.csv", index=False)
    runs = [first, Run(other.folder)]
    file = write_comparison(compare(runs), runs, first.folder / "compare.html")
    page.set_viewport_size(PHONE)
    opened(page, file, 1 + 2)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert hover(page, "differences").splitlines()[0] == "beauty"
    said = hover(page, "errors", 3).splitlines()
    given = first.predictions["beauty"].iloc[3]
    assert said[1] == f"given {given:.3g}"
    assert said[3] == f"svr: {given + 0.25:.3g}"
    assert page.locator("#apart img").count() == page.locator("#apart figure").count() > 6
    assert "is nearer on 24 of 24" not in page.locator("#errors").inner_text()


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_classes(page: Any, make_run: MakeRun, kind: Any) -> None:
    target = Target(kind, ("joy",), ("awe", "fear", "joy")) if kind == "multiclass" else Target(kind, ("joy", "fear"))
    run = make_run(target=target)
    if kind == "multiclass":
        page.goto(write_report(run).as_uri())
        assert page.locator("#worst figure").count() == 6
        return
    opened(page, write_report(run), 2)
    assert "precision" in hover(page, "precision", None)
