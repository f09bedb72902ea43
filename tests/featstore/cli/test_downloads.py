"""The question before a download: asked once, at a terminal only, and before anything touches the network."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
from safetensors.torch import save

import featstore
from featstore.backbones import WeightsPolicy, find_card
from featstore.backbones.downloads import expected_bytes, resolve_all
from featstore.errors import WeightsError

from .hub import Hub, run_at_terminal, serve_hub

NAMES = ("test_resnet", "test_vit")
FILES = {name: f"timm/{name}.r160_in1k/model.safetensors" for name in NAMES}
QUESTION = "download? [y/N]"


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {FILES[name]: save(timm.create_model(name, pretrained=False).state_dict()) for name in NAMES}
    with serve_hub(files) as hub:
        yield hub


@pytest.fixture
def extract(tmp_path: Path, draw: Callable[..., None]) -> Callable[..., tuple[int, str]]:
    """`featstore extract` of one photo at a terminal, with a cache of weights of its own."""
    (tmp_path / "photos").mkdir()
    draw(tmp_path / "photos" / "a.jpg", seed=0)

    def run(
        hub: Hub, answer: str | None, *words: str, backbones: str = ",".join(NAMES), columns: int = 80, **env: str
    ) -> tuple[int, str]:
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HTTP"))}
        env = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), **env}
        call = ["extract", "photos", "-b", backbones, "--store", "s.zarr", *words]
        return run_at_terminal(call, answer, cwd=tmp_path, env=env, columns=columns)

    return run


@pytest.mark.parametrize("answer", ["n", "^C", "^D"])
def test_without_a_yes_nothing_is_asked_of_the_network(
    answer: str, hub: Hub, extract: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, seen = extract(hub, answer)
    assert code == 1
    assert seen.count(QUESTION) == 1
    assert "about 3.4 MB from 127.0.0.1:" in seen
    assert "test_resnet (1.9 MB), test_vit (1.5 MB)" in seen
    assert "allow the hub (--hub)" in seen
    assert "Traceback" not in seen
    assert hub.asked == []
    assert not (tmp_path / "s.zarr").exists()


def test_a_yes_downloads_and_goes_on_and_the_next_run_need_not_ask(
    hub: Hub, extract: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, seen = extract(hub, "y", columns=40, LC_ALL="POSIX")
    assert code == 0
    assert seen.isascii()
    assert "1 image: 1 done" in seen
    assert [f"GET {file}" in hub.asked for file in FILES.values()] == [True, True]
    assert set(featstore.open(tmp_path / "s.zarr")) == {"model"}
    hub.asked.clear()
    code, seen = extract(hub, None, "--store", "other.zarr")
    assert (code, QUESTION in seen, hub.asked) == (0, False, [])


@pytest.mark.parametrize(
    ("words", "env", "code", "downloads"),
    [
        (["--hub"], {}, 0, True),
        (["--no-hub"], {}, 1, False),
        (["--quiet"], {}, 1, False),
        ([], {"HF_HUB_OFFLINE": "1"}, 1, False),
    ],
)
def test_who_has_said_what_to_do_is_not_asked(
    words: list[str],
    env: dict[str, str],
    code: int,
    downloads: bool,
    hub: Hub,
    extract: Callable[..., tuple[int, str]],
) -> None:
    ended, seen = extract(hub, None, *words, **env)
    assert (ended, QUESTION in seen, bool(hub.asked)) == (code, False, downloads)


def test_a_download_that_breaks_off_says_what_was_had_and_the_next_run_goes_on(
    hub: Hub, extract: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    hub.breaks_at = FILES["test_vit"]
    code, seen = extract(hub, "y")
    assert code == 1
    assert "could not be downloaded" in seen
    assert "downloaded before and kept: test_resnet; still missing: test_vit" in seen
    assert "Traceback" not in seen
    assert not (tmp_path / "s.zarr").exists()
    hub.breaks_at = ""
    hub.asked.clear()
    code, seen = extract(hub, "yes")
    assert code == 0
    assert "test_resnet (" not in seen
    assert f"GET {FILES['test_resnet']}" not in hub.asked


def test_a_yes_leaves_out_what_has_no_public_weights_and_the_question_says_so(
    hub: Hub, extract: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, seen = extract(hub, "y", backbones="test_resnet,youtube8m")
    assert code == 0
    assert "no public weights exist for youtube8m; yes leaves them out" in seen
    assert featstore.open(tmp_path / "s.zarr")["model"].layout.missing == ("youtube8m",)


def test_nothing_is_downloaded_in_vain(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python: where one of several can never be had, the others are not downloaded first."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    cards = [find_card(name) for name in ("test_resnet", "youtube8m")]
    found, missing = resolve_all(cards, WeightsPolicy(tmp_path, hub=True))
    assert (found, [card.name for card in missing], hub.asked) == ({}, ["youtube8m"], [])


def test_a_hub_that_is_away_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(WeightsError, match=r"cannot be reached.*\nnothing was downloaded; still missing: test_resnet"):
        resolve_all([find_card(name) for name in NAMES], WeightsPolicy(tmp_path, hub=True))


def test_sizes_are_those_of_the_files(hub: Hub) -> None:
    for name in NAMES:
        assert expected_bytes(find_card(name)) == pytest.approx(len(hub.files[FILES[name]]), rel=0.02)
    assert expected_bytes(find_card("youtube8m")) is None
