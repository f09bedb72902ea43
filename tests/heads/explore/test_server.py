"""What the server gives, and what it gives to nobody. The real command answers on loopback."""

import io
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from .conftest import CHANGED, MARKUP, UNREADABLE, N, World
from .serving import Served


@pytest.fixture(scope="module")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    runs = [part for run in world.runs.values() for part in ("--run", run.folder)]
    server = Served(
        tmp_path_factory.mktemp("served"), world.store, *runs, "--photos", world.photos, "--tensor", "alpha"
    )
    yield server
    server.end()


def test_the_page_its_parts_and_its_documents(served: Served) -> None:
    page = served.get("")
    assert page.status == 200
    for part in (word.split('"')[0] for word in page.body.decode().split('src="')[1:]):
        assert served.get(part).status == 200, part
    study = served.get("data/study.json").json()
    assert study["n"] == served.said["photos"] == N
    assert study["features"]["backbones"]
    assert len(served.get("data/map.json").json()["places"]) == N
    assert served.get("data/components.json").json()["n"] == N
    assert served.get("data/attention-2.json").json()["grid"] == [2, 2]
    near = served.get("data/photo/4.json").json()["neighbours"]
    assert len(near[0]["photos"]) == 12
    assert 4 not in near[0]["photos"]


def test_pictures_are_encoded_anew_and_small(served: Served) -> None:
    for size, most in (("small", 256), ("large", 1280)):
        answer = served.get(f"{size}/4.jpg")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
        assert max(Image.open(io.BytesIO(answer.body)).size) <= most
    for photo in (UNREADABLE, CHANGED):  # no picture, rather than another photo's
        assert served.get(f"small/{photo}.jpg").status == 204


def test_nothing_is_given_without_the_secret_word(served: Served) -> None:
    word = served.path.strip("/")
    assert len(word) >= 20
    for path in ("/", "/data/study.json", "/small/0.jpg", f"/{word[:-1]}/", f"/{word}x/", "/page/app.js"):
        assert served.ask(path).status == 404, path


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", ""])
def test_another_site_cannot_give_its_name_to_this_address(served: Served, host: str) -> None:
    assert served.ask(served.path, headers={"host": host}).status == 400


@pytest.mark.parametrize(
    "path",
    [
        "page/../../../../etc/passwd", "page/..%2f..%2fstudy.py", "page/%2e%2e/study.py", "page/index.jinja",
        "page//etc/passwd", "small/../../photos/album/photo%2004.jpg",
        "small/-1.jpg", f"small/{N}.jpg", "small/1e1.jpg",
        "small/99999999999999999999999.jpg", "data/../study.json", "data/%2e%2e%2fserver.json", "data/attention-9.json",
        "data/attention-x.json", "data/photo/999.json", "large/4.jpg%00.png", "small/%D9%A3.jpg",
    ],
)  # fmt: skip
def test_no_path_of_a_request_reaches_the_disk(served: Served, path: str) -> None:
    answer = served.get(path)
    assert answer.status in (400, 404), answer.body[:100]
    assert b"root:" not in answer.body
    assert b"import " not in answer.body


def test_every_answer_says_what_a_browser_may_do_with_it(served: Served) -> None:
    for path in ("", "data/study.json", "small/4.jpg", "nothing", "page/app.js"):
        headers = served.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe-eval" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"  # the address has the secret word
        assert "server" not in headers


def test_a_rating_is_kept_and_read_again(served: Served, world: World) -> None:
    assert served.rate({"photo": MARKUP, "rater": "ann", "rating": 6}).status == 200
    assert served.rate({"photo": 4, "rater": "ann", "rating": 2}).status == 200
    found = served.get("data/ratings.json").json()
    assert {(each["photo"], each["rating"]) for each in found["ratings"]} == {(MARKUP, 6), (4, 2)}
    assert served.rate({"photo": 4, "rater": "ann", "rating": None}).status == 200
    assert len(served.get("data/ratings.json").json()["ratings"]) == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"photo=1&rater=a&rating=1", "not JSON"),
        (b"[" * 5000, "not JSON"),
        ([1], "is an object"),
        ({"photo": -1, "rater": "a", "rating": 1}, "`photo` is a number from 0"),
        ({"photo": True, "rater": "a", "rating": 1}, "`photo` is a number from 0"),
        ({"photo": "../x", "rater": "a", "rating": 1}, "`photo` is a number from 0"),
        ({"photo": 1, "rater": "=cmd()", "rating": 1}, "the name of a rater"),
        ({"photo": 1, "rater": {"a": 1}, "rating": 1}, "the name of a rater"),
        ({"photo": 1, "rater": "a", "rating": 1e99}, "a rating is a number from 1 to 7"),
        ({"photo": 1, "rater": "a", "rating": "x" * 20_000}, "at most 10000 bytes"),
    ],
)
def test_what_is_no_rating_is_refused_in_words(served: Served, value: object, said: str) -> None:
    answer = served.rate(value)
    assert answer.status == 422
    assert said in answer.json()["error"]


def test_a_form_of_another_page_cannot_rate(served: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert served.rate({"photo": 1, "rater": "a", "rating": 1}, kind).status == 422
    assert served.ask(f"{served.path}ratings", method="GET").status == 405


def test_a_store_that_breaks_is_an_error_in_words_and_ctrl_c_ends_quietly(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.store, tmp_path / "s.zarr")
    server = Served(tmp_path / "a", tmp_path / "s.zarr", "--tensor", "alpha")
    try:
        shard = tmp_path / "s.zarr" / "tensors" / "alpha" / "c.0.0"
        data = bytearray(shard.read_bytes())
        data[10] ^= 255
        shard.write_bytes(data)
        answer = server.get("data/map.json")
        assert answer.status == 422
        assert "damaged" in answer.json()["error"]
        assert server.get("data/study.json").status == 200
        server.process.send_signal(signal.SIGINT)
        out, err = server.process.communicate(timeout=20)
        assert server.process.returncode == 0
        assert "KeyboardInterrupt" not in out + err
    finally:
        server.end()
