"""How fast `heads explore` answers for a large store, in a real browser.

    python tests/bench/explore_speed.py [--photos 100000] [--width 2048] [--folder /tmp] [--rounds 5]

Makes a folder of small photos and a store with random features of them, starts the real command, and measures from
a browser: the first page (address to the last thumbnail that is seen), a page of 200 thumbnails that are cached, the
neighbours of a photo (the first request reads all features), a step of the map, a rating until the next photo shows.
"""

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import featstore

HEADS = Path(sys.executable).with_name("heads")


def make_store(folder: Path, n: int, width: int) -> Path:
    """A store with (N, F) random features of N different photos."""
    photos, table, store = folder / "photos", folder / "features.npz", folder / "features.zarr"
    random = np.random.default_rng(0)
    paths = []
    for i in range(n):
        path = f"{i // 1000:03d}/{i:06d}.jpg"
        (photos / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (4, 6, 3), np.uint8)).resize((96, 64)).save(photos / path)
        paths.append(path)
    middle = random.standard_normal((50, width)).astype(np.float32)
    features = np.empty((n, width), np.float16)
    for start in range(0, n, 5000):
        rows = slice(start, min(start + 5000, n))
        some = random.integers(0, 50, rows.stop - start)
        features[rows] = middle[some] + random.standard_normal((rows.stop - start, width))
    np.savez(table, paths=np.array(paths), features=features)
    featstore.import_features("whole", table, store=store, photos=photos)
    table.unlink()
    return store


def shown(page: Page, view: str) -> None:
    """Wait until a view is there, and every thumbnail that is seen has been drawn."""
    page.wait_for_function("view => document.documentElement.dataset.shown === view", arg=view, timeout=120_000)
    page.wait_for_function(
        """() => [...document.querySelectorAll("#view img")].every((image) => image.complete ||
             image.getBoundingClientRect().top > innerHeight)""",
        timeout=120_000,
    )


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ask_for_thumbnails(address: str) -> None:
    """200 thumbnails by six connections at once, as a browser opens them, without a browser."""
    place = urlsplit(address)

    def ask(photos: range) -> None:
        connection = http.client.HTTPConnection(str(place.netloc))
        for photo in photos:
            connection.request("GET", f"{place.path}small/{photo}.jpg")
            connection.getresponse().read()
        connection.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, [range(first, 200, 6) for first in range(6)]))


def measure(address: str, rounds: int) -> dict[str, float]:
    found: dict[str, float] = {}
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})

        def first() -> None:
            page.goto("about:blank")
            page.goto(address)
            shown(page, "gallery")

        found["first page, thumbnails made"] = timed(first)
        found["first page"] = statistics.median(timed(first) for _ in range(rounds))
        ask = """(photos) => { const started = performance.now(); return Promise.all(photos.map((photo) => new Promise(
            (done) => { const image = new Image(); image.onload = done; image.onerror = done;
            image.src = `small/${photo}.jpg?${started}`; }))).then(() => performance.now() - started); }"""
        page.evaluate(ask, list(range(200)))
        found["200 thumbnails of the cache, six connections"] = statistics.median(
            timed(lambda: ask_for_thumbnails(address)) for _ in range(rounds)
        )
        found["200 thumbnails of the cache, in the browser"] = statistics.median(
            page.evaluate(ask, [*range(200)]) / 1000 for _ in range(rounds)
        )
        near = """(photo) => { const started = performance.now();
            return fetch(`data/photo/${photo}.json`).then((answer) =>
            answer.json()).then(() => performance.now() - started); }"""
        found["neighbours, the first time (reads all features)"] = page.evaluate(near, 0) / 1000
        found["neighbours"] = statistics.median(page.evaluate(near, photo) / 1000 for photo in range(1, rounds + 1))

        def map_of_all() -> None:
            page.goto(f"{address}#map")
            shown(page, "map")

        found["map, the first time (components)"] = timed(map_of_all)
        draw = """() => { const started = performance.now(); for (let i = 0; i < 10; i++) Explore.scattered.draw();
            return (performance.now() - started) / 10; }"""
        found["map, one step of a zoom"] = page.evaluate(draw) / 1000
        page.goto(f"{address}#mine?rater=a")
        shown(page, "mine")
        steps = []
        for i in range(4 + rounds):
            name = page.locator(".stage img").get_attribute("alt")
            started = time.perf_counter()
            page.keyboard.press("1" if i % 2 else "7")
            page.wait_for_function("name => document.querySelector('.stage img').alt !== name", arg=name)
            steps.append(time.perf_counter() - started)
        found["a rating: kept, learned from, next photo"] = statistics.median(steps[4:])
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=said.folder) as place:
        folder = Path(place)
        store = make_store(folder, said.photos, said.width)
        command = [HEADS, "explore", store, "--photos", folder / "photos", "--no-browser", "--json"]
        started = time.perf_counter()
        with subprocess.Popen(
            [*map(str, command)],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as server:
            assert server.stdout is not None
            text = ""
            while not text.rstrip().endswith("}"):
                text += server.stdout.readline()
            answers = time.perf_counter() - started
            found = {"command to address": answers, **measure(json.loads(text)["address"], said.rounds)}
            server.terminate()
    print(f"{said.photos:,} photos, {said.width} features:")
    for what, seconds in found.items():
        print(f"  {what:<50}{seconds:8.3f} s")


if __name__ == "__main__":
    main()
