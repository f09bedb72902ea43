"""The page in a real browser: every view by mouse and keyboard, ratings that survive a kill, a page from the disk."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ..conftest import heads as command
from .conftest import MARKUP, PHOTO, QUOTED, N, World
from .serving import Served

VIEWS = ("gallery", "emotion", "map", "photo/4", "run", "mine")


@pytest.fixture(scope="module")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    runs = [part for name in ("ridge", "mood", "amtl") for part in ("--run", world.runs[name].folder)]
    server = Served(
        tmp_path_factory.mktemp("served"), world.store, *runs, "--photos", world.photos, "--tensor", "alpha"
    )
    yield server
    server.end()


@pytest.fixture(scope="module")
def written(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "page"
    result = command(
        "explore", world.store, "--run", world.runs["ridge"].folder, "--photos", world.photos, "--tensor", "alpha",
        "--cache", out.parent / "cache", "--rate", "0:1", "--to", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return out / "index.html"


def go(page: Any, address: object, view: str) -> None:
    """Open a view of the page and wait until it is drawn."""
    page.goto(f"{address}#{view}")
    shown(page, view.partition("?")[0])


def shown(page: Any, view: str) -> None:
    page.wait_for_function("view => document.documentElement.dataset.shown === view", arg=view)


def names(page: Any, where: str = "#view") -> list[str]:
    return [str(text) for text in page.locator(f"{where} .tile .name").all_inner_texts()]


@pytest.mark.parametrize("width", [1280, 400])
def test_every_view_fits_its_window_and_says_nothing_to_the_console(served: Served, page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for view in VIEWS:
        go(page, served.address, view)
        page.wait_for_timeout(150)
        assert page.locator("#view h2").count() >= 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
    assert "owned" not in page.title()


def test_who_works_by_keyboard_stays_where_he_was(served: Served, page: Any) -> None:
    go(page, served.address, "gallery")
    select = page.get_by_label("Sort by")
    select.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("() => location.hash.includes('sort=0')")
    shown(page, "gallery")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("() => location.hash.includes('sort=1')")
    page.locator(".tile").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.documentElement.dataset.shown.startsWith('photo/')")
    assert page.evaluate("document.activeElement.id") == "view"


def test_names_are_text(served: Served, page: Any) -> None:
    go(page, served.address, "gallery")
    assert "<img src=x onerror=document.title='owned'>.jpg" in names(page)
    assert page.locator("img[src='x']").count() == 0
    go(page, served.address, f"photo/{MARKUP}")
    assert "<img src=x" in page.locator("h2").inner_text()
    go(page, served.address, "emotion?of=" + "<b>joy</b>")
    assert "<b>joy</b>" in page.locator("h3").first.inner_text()
    assert page.locator("b").count() == 0


def test_the_gallery_sorts_and_filters(served: Served, page: Any, world: World) -> None:
    go(page, served.address, "gallery")
    assert len(names(page)) == N
    page.get_by_label("Sort by").select_option(label="appeal")
    page.wait_for_function("() => location.hash.includes('sort')")
    values = [float(text) for text in page.locator(".tile .value").all_inner_texts() if text != "–"]
    assert values == sorted(values, reverse=True)
    assert len(values) == N - 2
    page.get_by_label("Only photos whose").select_option(label="appeal")
    page.get_by_label("is at least").fill("4.5")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.tile').length < 38")
    table = pd.read_csv(world.labels)
    assert len(names(page)) == (table["appeal"] >= 4.5).sum()
    page.get_by_label("Name has").fill("no such name")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=No photo is like that")
    page.go_back()  # what was chosen is in the address
    page.wait_for_function("() => document.querySelectorAll('.tile').length > 0")


@pytest.mark.parametrize("least", [False, True])
def test_the_photos_with_most_and_least_of_a_rating(served: Served, page: Any, world: World, least: bool) -> None:
    go(page, served.address, "emotion?of=appeal" + ("&least=1" if least else ""))
    said = pd.read_csv(world.labels).set_index("path")["appeal"].sort_values(ascending=least, kind="stable")
    by_labels = page.locator("section").nth(1).locator(".tile .value").all_inner_texts()
    assert [float(text) for text in by_labels] == pytest.approx(said.tolist(), abs=0.01)
    table = world.runs["ridge"].predictions.groupby("path")["appeal_predicted"].mean()
    by_run = page.locator("section").nth(0).locator(".tile .value").all_inner_texts()
    assert [float(text) for text in by_run] == pytest.approx(table.sort_values(ascending=least).tolist(), abs=0.01)


def test_likeness_sorts_the_gallery(served: Served, page: Any) -> None:
    go(page, served.address, "photo/4")
    page.get_by_role("button", name="All photos by likeness").click()
    shown(page, "gallery")
    found = names(page)
    assert found[0] == "photo 04.jpg"
    likeness = [float(text.split()[-1]) for text in page.locator(".tile .value").all_inner_texts()]
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[0] == 1


def test_keys_go_through_the_tiles_and_open_one(served: Served, page: Any) -> None:
    go(page, served.address, "gallery")
    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    place = int(page.evaluate("document.activeElement.dataset.photo"))
    assert place > 3
    page.keyboard.press("Enter")
    shown(page, f"photo/{place}")
    page.keyboard.press("ArrowRight")
    shown(page, f"photo/{place + 1}")


def test_the_skip_link_stays_in_the_view(served: Served, page: Any) -> None:
    go(page, served.address, "run")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "view"
    assert page.evaluate("location.hash") == "#run"


def test_classes_of_the_same_name_are_told_apart_by_their_task(served: Served, page: Any) -> None:
    go(page, served.address, "gallery")
    page.evaluate(
        """() => {
          for (const [task, value] of [["first", 0], ["second", null]]) {
            const values = Explore.study.paths.map((_, i) => (i < 3 ? value : null));
            Explore.study.columns.push({title: task, task, role: "label", kind: "text", names: ["same"], values});
          }
        }"""
    )
    page.evaluate("location.hash = '#emotion?of=same (first)'")
    shown(page, "emotion")
    assert "same (second)" in (page.locator("#view .bar").text_content() or "")
    assert page.locator("section").nth(1).locator(".tile").count() == 3


def test_a_photo_has_its_figures_its_neighbours_and_attention(served: Served, page: Any, world: World) -> None:
    go(page, served.address, "photo/4")
    row = page.locator("tr", has=page.locator("th", has_text="appeal"))
    given = pd.read_csv(world.labels).set_index("path")["appeal"][world.paths[4]]
    assert f"{given:.3g}" in row.inner_text()
    assert "±" in row.inner_text()
    assert len(names(page)) == 12
    assert page.locator(".stage canvas").is_hidden()
    page.get_by_label("Over the photo").select_option(label="attention of amtl")
    page.wait_for_function("() => !document.querySelector('.stage canvas').hidden")
    dark = page.evaluate(
        "(() => { const c = document.querySelector('.stage canvas');"
        " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3); })()"
    )
    assert min(dark) == 0  # what counts most is seen as it is
    assert max(dark) > 0
    go(page, served.address, f"photo/{PHOTO}")
    first = page.locator(".tile").first
    assert first.locator(".badge").inner_text() == "near-duplicate"
    assert "in another fold of" in first.inner_text()
    go(page, served.address, "photo/5")  # unreadable since: grey, with its name
    assert "photo 05.jpg" in page.locator(".stage").inner_text()
    go(page, served.address, "photo/999")
    assert "There is no photo 999" in page.locator("#view").inner_text()


def test_the_map_says_what_a_point_is_opens_it_and_takes_a_box(served: Served, page: Any) -> None:
    go(page, served.address, "map")
    page.wait_for_function("() => Explore.scattered !== undefined")
    x, y = page.evaluate("Explore.scattered.where(11)")
    page.mouse.move(x, y)
    page.wait_for_selector(".tip:not([hidden])")
    assert "photo" in page.locator(".tip").inner_text()
    page.mouse.click(x, y)
    page.wait_for_function("() => location.hash.startsWith('#photo/')")
    go(page, served.address, "map")
    page.get_by_role("button", name="Box").click()
    area = page.locator(".scatter").bounding_box()
    page.mouse.move(area["x"] + 12, area["y"] + 12)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] - 12, area["y"] + area["height"] - 12, steps=3)
    page.mouse.up()
    page.wait_for_selector(f"text={N} photos in the box")
    page.get_by_role("link", name="Show them in the gallery").click()
    shown(page, "gallery")
    assert len(names(page)) == N
    go(page, served.address, "map")
    page.locator(".scatter canvas").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.hash.startsWith('#photo/')")


def test_a_run_shows_its_worst_errors_and_stands_beside_another(served: Served, page: Any, world: World) -> None:
    go(page, served.address, "run")
    table = world.runs["ridge"].predictions
    means = table.groupby("path")[["appeal", "appeal_predicted"]].mean()
    errors = (means["appeal"] - means["appeal_predicted"]).abs().sort_values(ascending=False)
    assert names(page)[:3] == [str(path).split("/")[-1] for path in errors.index[:3]]
    assert world.runs["ridge"].caveats[0] in page.locator("#view").inner_text()
    page.get_by_label("Beside").select_option(label="amtl")
    page.wait_for_selector("text=is nearer on")
    go(page, served.address, "run?run=1")
    assert page.locator("table caption").inner_text().startswith("Photos by what people said")


def test_ratings_by_keyboard_change_the_order_and_survive_a_kill(world: World, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    server = Served(tmp_path / "a", world.store, "--photos", world.photos, "--tensor", "alpha")
    try:
        go(page, server.address, "mine")
        page.get_by_label("Your name").fill("ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=0 ratings by ann")
        given: dict[str, float] = {}
        orders = []
        for turn in range(25):
            name = str(page.locator(".stage img, .stage .missing").first.evaluate("e => e.alt || e.textContent"))
            i = next(i for i, path in enumerate(world.paths) if path.endswith(name) or (i == 0 and "red" in name))
            rating = int(np.clip(round(4 + 1.5 * float(world.features[i, 0])), 1, 7))
            page.keyboard.press(str(rating))
            page.locator("p[role=status]", has_text=re.compile(rf"^{turn + 1} ratings? by ann")).wait_for()
            given[world.paths[i]] = rating
            orders.append(names(page, "section"))
        assert orders[2] != orders[20]  # it learns
        assert orders[0] == []
    finally:
        server.process.kill()  # -9, with no warning
        server.end()
    with (tmp_path / "a" / "explore-ratings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: float(row["rating"]) for row in rows} == given
    page.keyboard.press("3")
    page.wait_for_selector("text=the server does not answer")
    assert page.locator("p[role=status]").inner_text().startswith("25 ratings")
    page.close()


def test_the_head_of_the_page_is_ridge_regression(served: Served, page: Any) -> None:
    from sklearn.linear_model import Ridge

    go(page, served.address, "gallery")
    random = np.random.default_rng(0)
    x = random.standard_normal((30, 5))
    ratings = np.round(4 + x[:12, 0] + 0.3 * random.standard_normal(12), 2)
    found = page.evaluate(
        """([x, ratings]) => { const fitted = Explore.ridge.fit({n: 30, d: 5, values: new Float32Array(x.flat())},
             [...ratings.keys()], ratings);
           return {...fitted, predicted: [...fitted.predicted], unsure: [...Array(30).keys()].map(fitted.unsure)}; }""",
        [x.tolist(), ratings.tolist()],
    )
    rows = x[:12] - x[:12].mean(axis=0)
    penalty = found["penalty"] * np.trace(rows.T @ rows) / 5
    oracle = Ridge(alpha=penalty).fit(x[:12], ratings)
    np.testing.assert_allclose(found["predicted"], oracle.predict(x), atol=1e-4)
    left = [
        Ridge(alpha=penalty).fit(np.delete(x[:12], i, 0), np.delete(ratings, i)).predict(x[i : i + 1])[0]
        for i in range(12)
    ]
    np.testing.assert_allclose(found["left"], left, atol=1e-4)
    inverse = np.linalg.inv(rows.T @ rows + penalty * np.eye(5))
    away = x - x[:12].mean(axis=0)
    np.testing.assert_allclose(found["unsure"], np.sqrt(np.einsum("nd,de,ne->n", away, inverse, away)), atol=1e-4)
    assert page.evaluate("Explore.ridge.fit({n: 3, d: 1, values: new Float32Array(3)}, [0, 1, 2], [4, 4, 4])") is None


def test_the_page_opens_from_the_disk_and_keeps_likes(written: Path, page: Any) -> None:
    address = written.as_uri()
    for view in ("gallery", "emotion", "map", "photo/4", "run"):
        go(page, address, view)
    go(page, address, "photo/4")
    assert len(names(page)) == 12
    go(page, address, "mine?rater=ann")
    for key in "ldl":
        name = page.locator(".stage img, .stage .missing").first.evaluate("e => e.alt || e.textContent")
        page.keyboard.press(key)
        page.wait_for_function("n => (document.querySelector('.stage img, .stage .missing').alt ?? '') !== n", arg=name)
    page.keyboard.press("u")
    page.wait_for_selector("text=2 ratings by ann")
    page.reload()
    page.wait_for_selector("text=2 ratings by ann")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save all ratings").click()
    table = pd.read_csv(download.value.path())
    assert list(table.columns) == ["path", "rater", "rating", "time"]
    assert len(table) == 2
    assert set(table["rating"]) <= {0, 1}


CONTRAST = """() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!colour.includes("rgba(0, 0, 0, 0)")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const said = (e) => [...e.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  const elements = [...document.querySelectorAll("#view *, header *")].filter((e) => said(e) && !e.disabled);
  return elements.map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 30)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(served: Served, browser: Any, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    go(page, served.address, f"photo/{QUOTED}")
    ratios = page.evaluate(CONTRAST)
    page.close()
    assert ratios
    assert [each for each in ratios if each[0] < 4.5] == []  # AA
