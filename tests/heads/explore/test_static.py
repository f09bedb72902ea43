"""The page as files: whole, without anything of this machine, and never over what is there."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ..conftest import heads as command
from ..conftest import refused
from .conftest import CHANGED, UNREADABLE, N, World


def document(folder: Path, name: str) -> object:
    text = (folder / "data" / f"{name}.js").read_text("ascii")
    found = re.fullmatch(r"explored\((\"[^\"]+\"),(.*)\);\n", text, re.DOTALL)
    assert found is not None
    assert json.loads(found[1]) == name
    return json.loads(found[2])


def test_the_folder_has_all_that_the_page_asks_for(world: World, tmp_path: Path) -> None:
    out = tmp_path / "page"
    result = command(
        "explore", world.store, "--run", world.runs["ridge"].folder, "--run", world.runs["amtl"].folder,
        "--photos", world.photos, "--cache", tmp_path / "cache", "--to", out, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["pictures"] == N - 2
    assert said["bytes"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    study = document(out, "study")
    assert isinstance(study, dict)
    assert study["n"] == N
    assert len(study["runs"]) == 2
    near = document(out, "photos-0")
    assert isinstance(near, list)
    assert len(near) == N
    for name in ("map", "components", "attention-1"):
        assert document(out, name)
    for photo in range(N):
        there = (out / "small" / f"{photo}.jpg").exists()
        assert there == (out / "large" / f"{photo}.jpg").exists() == (photo not in (UNREADABLE, CHANGED))
    text = "".join(file.read_text("utf-8") for file in out.rglob("*.*") if file.suffix in (".js", ".html", ".css"))
    assert str(world.folder) not in text  # nothing of this machine's folders
    html = (out / "index.html").read_text("utf-8")
    for part in re.findall(r'(?:src|href)="(page/[^"]+)"', html):
        assert (out / part).is_file()


def test_photos_that_may_not_be_shown_are_left_away(world: World, tmp_path: Path) -> None:
    out = tmp_path / "page"
    result = command("explore", world.store, "--to", out, "--without-photos", "--cache", tmp_path / "cache", "-q")
    assert result.exit_code == 0, result.output
    assert list((out / "small").iterdir()) == list((out / "large").iterdir()) == []
    study = document(out, "study")
    assert isinstance(study, dict)
    assert study["pictures"] is False


def test_thumbnails_alone_take_their_own_room_only(world: World, tmp_path: Path) -> None:
    out = tmp_path / "page"
    arguments = ("--photos", world.photos, "--cache", tmp_path / "cache", "--small-photos", "-q")
    assert command("explore", world.store, "--to", out, *arguments).exit_code == 0
    assert len(list((out / "small").iterdir())) == N - 2
    assert list((out / "large").iterdir()) == []
    study = document(out, "study")
    assert isinstance(study, dict)
    assert study["largest"] == "small"  # so that the page asks for nothing that is not there


def test_what_is_there_stays(world: World, tmp_path: Path) -> None:
    out = tmp_path / "page"
    out.mkdir()
    (out / "mine.txt").write_text("mine", "utf-8")
    assert "is there already; name a new folder" in refused("explore", world.store, "--to", out)
    assert (out / "mine.txt").read_text("utf-8") == "mine"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    assert "is there already" in refused("explore", world.store, "--to", link)


def test_a_page_that_cannot_be_finished_leaves_nothing(world: World, tmp_path: Path) -> None:
    (tmp_path / "page.part").mkdir()  # of somebody else
    broken = shutil.copytree(world.store, tmp_path / "s.zarr")
    shard = broken / "tensors" / "alpha" / "c.0.0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 255
    shard.write_bytes(data)
    before = sorted(tmp_path.iterdir())
    said = refused("explore", broken, "--tensor", "alpha", "--to", tmp_path / "page", "--without-photos")
    assert "damaged" in said
    assert [each for each in sorted(tmp_path.iterdir()) if each.suffix != ".lock"] == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--map", "tsen"], "--map is pca, tsne, umap; found 'tsen'"),
        (["--rate", "1:10"], "--rate '1:10' is not LOW:HIGH of whole numbers from 0 to 9"),
        (["--rate", "7:1"], "--rate '7:1' is not LOW:HIGH"),
        (["--tensor", "alhpa"], "did you mean 'alpha'?"),
        (["--run", "nowhere"], "nowhere"),
        (["--labels", "nowhere.csv"], "nowhere.csv"),
        (["--host", "example.org"], "--host is an address as 127.0.0.1"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1:0"),
        (["--port", "70000"], "cannot listen at 127.0.0.1:70000"),
    ],
)
def test_what_cannot_be_is_said(world: World, tmp_path: Path, arguments: list[str], said: str) -> None:
    assert said in refused("explore", world.store, "--no-browser", "--ratings", tmp_path / "r.csv", *arguments)


def test_no_store(tmp_path: Path) -> None:
    assert "is not a feature store" in refused("explore", tmp_path / "none.zarr")


def test_the_folder_that_one_is_in_can_be_meant(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = command("explore", world.store, "--without-photos", "--to", ".")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "here" / "index.html").exists()
