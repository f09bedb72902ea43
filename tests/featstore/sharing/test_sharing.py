"""Two people share features through a repository: real Icechunk, in a folder."""

import asyncio
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
from zarr.storage import MemoryStore, WrapperStore

import featstore
from featstore.config import Config
from featstore.errors import ConfigError, FormatError, LayoutError, StoreError, StoreWriteError
from featstore.extraction.extract import extract
from featstore.extraction.recompute import recompute
from featstore.sharing import push_pull, transfer
from featstore.sharing.push_pull import merge, pull, push
from featstore.sharing.remote import list_remote
from featstore.sharing.selection import Selection
from featstore.store import ImageState, RowState, TensorLayout, Writer, open_store
from featstore.store.places import local
from featstore.store.places.cache import BlockCache
from featstore.store.places.repository import Repository
from featstore.store.rows.fetched import FetchedShards
from featstore.toml import read_config

from .sharing_stores import (
    GRID,
    WHOLE,
    check_sound,
    digest_of,
    expected,
    folder_bytes,
    held,
    make_store,
    photos,
    segment,
)

Share = Callable[[str], str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATSTORE_BLOCKS", str(tmp_path / "blocks"))
    monkeypatch.setenv("FEATSTORE_WHO", "anna")


@pytest.fixture
def anna(tmp_path: Path) -> Path:
    """A store with features of ten photos."""
    make_store(tmp_path / "anna.zarr", photos(0, 10))
    return tmp_path / "anna.zarr"


@pytest.fixture
def team(tmp_path: Path) -> str:
    return str(tmp_path / "team")


class Slow(WrapperStore[MemoryStore]):
    """As far away as a bucket: a request takes its time."""

    under_way = at_once = 0
    """Of all of them, as Zarr makes copies: chunks that are asked for now, and the most there were."""

    async def get(self, key: str, *args: Any, **more: Any) -> Any:
        Slow.under_way += not key.endswith("zarr.json")
        Slow.at_once = max(Slow.at_once, Slow.under_way)
        await asyncio.sleep(0.01)
        Slow.under_way -= not key.endswith("zarr.json")
        return await self._store.get(key, *args, **more)


def test_columns_and_tensors_that_are_far_away_are_asked_for_side_by_side() -> None:
    memory = MemoryStore()
    make_store(memory, photos(0, 3))
    for read in (lambda store: store.images, lambda store: store.tensors):
        store = open_store(Slow(memory))
        Slow.at_once = 0
        read(store)  # each of its arrays is one chunk
        assert Slow.at_once > 1
    assert store["whole"].states.tolist() == [RowState.PRESENT] * 3


# ---- what one pushes another pulls


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_a_pull_of_what_was_pushed_is_the_same_store(tmp_path: Path, team: str, compress: str | None) -> None:
    anna = make_store(tmp_path / "anna.zarr", photos(0, 10), compress=compress)
    pushed = push(anna, team, message="all of it")
    assert (pushed.n_images, pushed.n_rows, pushed.tensors) == (10, 20, ["grid", "whole"])
    pulled = pull(team, tmp_path / "ben.zarr")
    assert (pulled.n_images, pulled.n_rows, pulled.n_bytes) == (10, 20, pushed.n_bytes)
    ben = check_sound(tmp_path / "ben.zarr")
    assert held(tmp_path / "ben.zarr") == held(team) == expected(photos(0, 10))
    assert ben["grid"].compression == compress
    assert ben.images.sizes.tolist() == [[40, 60]] * 10
    mine, theirs = folder_bytes(tmp_path / "anna.zarr"), folder_bytes(tmp_path / "ben.zarr")
    assert {key for key in mine if mine[key] != theirs[key]} <= {
        "zarr.json",
        "tensors/grid/zarr.json",
        "tensors/whole/zarr.json",
    }
    check_sound(team)


def test_nothing_new_means_nothing_moves_and_no_commit(anna: Path, tmp_path: Path, team: str) -> None:
    push(anna, team, message="all of it")
    pull(team, tmp_path / "ben.zarr")
    before = folder_bytes(tmp_path / "ben.zarr")
    again = push(tmp_path / "ben.zarr", team, message="the same")
    assert (again.n_rows, again.n_bytes, again.snapshots) == (0, 0, [])
    again = pull(team, tmp_path / "ben.zarr")
    assert (again.n_rows, again.n_bytes) == (0, 0)
    assert folder_bytes(tmp_path / "ben.zarr") == before
    assert len(list(Repository(team).history())) == 1


def test_only_what_is_missing_travels(anna: Path, tmp_path: Path, team: str) -> None:
    push(anna, team, message="ten")
    make_store(tmp_path / "ben.zarr", photos(6, 15))
    moved = push(tmp_path / "ben.zarr", team, message="five more")
    assert (moved.n_images, moved.n_rows) == (5, 10)
    moved = pull(team, anna)
    assert (moved.n_images, moved.n_rows) == (5, 10)
    assert held(anna) == held(team) == expected(photos(0, 15))
    check_sound(anna)
    check_sound(team)


def test_a_part_is_pulled_by_tensor_and_by_path(tmp_path: Path, team: str) -> None:
    push(make_store(tmp_path / "a.zarr", [*photos(0, 3), *photos(0, 3, "sea/")]), team, message="two folders")
    pull(team, tmp_path / "b.zarr", selection=Selection(["whole"], ["sea/*", "photo 1.jpg"]))
    store = check_sound(tmp_path / "b.zarr")
    assert list(store) == ["whole"]
    assert held(tmp_path / "b.zarr", "whole") == expected([*photos(0, 3, "sea/"), "photo 1.jpg"], WHOLE)
    pull(team, tmp_path / "b.zarr")
    assert held(tmp_path / "b.zarr") == expected([*photos(0, 3), *photos(0, 3, "sea/")])
    check_sound(tmp_path / "b.zarr")
    with pytest.raises(StoreError, match=r"no image of .* is called 'see/\*'; it has 'photo 0.jpg', for one"):
        pull(team, tmp_path / "b.zarr", selection=Selection(rows=["see/*"]))
    with pytest.raises(StoreError, match="no tensor 'hole'; did you mean 'whole'"):
        pull(team, tmp_path / "b.zarr", selection=Selection(tensors=["hole"]))


def test_rows_are_told_by_their_photo_and_not_by_their_path(tmp_path: Path, team: str) -> None:
    push(make_store(tmp_path / "a.zarr", photos(0, 5)), team, message="five")
    with Writer(tmp_path / "b.zarr", block_rows=4) as writer:
        names = [f"img{i}.jpg" for i in (4, 2, 0)]
        digests = np.array([list(digest_of(f"photo {i}.jpg")) for i in (4, 2, 0)], np.uint8)
        writer.add_images(featstore.store.NewImages(names, digests, [1] * 3, [1] * 3))
    moved = pull(team, tmp_path / "b.zarr")
    assert moved.n_images == 2
    found = held(tmp_path / "b.zarr")
    assert found == {
        **{f"img{i}.jpg": expected(photos(i, i + 1))[f"photo {i}.jpg"] for i in (4, 2, 0)},
        **expected(["photo 1.jpg", "photo 3.jpg"]),
    }
    assert push(tmp_path / "b.zarr", team, message="the same photos").n_rows == 0


def test_copies_of_a_photo_keep_their_paths(tmp_path: Path, team: str) -> None:
    shown = {"a.jpg": "sea", "copy of a.jpg": "sea", "b.jpg": "hill"}
    push(make_store(tmp_path / "a.zarr", shown), team, message="with copies")
    pull(team, tmp_path / "b.zarr")
    assert sorted(held(tmp_path / "b.zarr")) == sorted(shown)
    assert pull(team, tmp_path / "b.zarr").n_rows == 0


def test_stores_of_other_block_sizes_share(tmp_path: Path, team: str) -> None:
    push(make_store(tmp_path / "a.zarr", photos(0, 9), block_rows=4), team, message="blocks of 4")
    make_store(tmp_path / "b.zarr", photos(7, 12), block_rows=3)
    pull(team, tmp_path / "b.zarr")
    push(tmp_path / "b.zarr", team, message="blocks of 3")
    assert held(tmp_path / "b.zarr") == held(team) == expected(photos(0, 12))
    check_sound(tmp_path / "b.zarr")


def test_a_photo_that_has_changed_takes_the_place_of_the_old_one(anna: Path, tmp_path: Path, team: str) -> None:
    push(anna, team, message="ten")
    pull(team, tmp_path / "ben.zarr")
    with Writer(anna) as writer:
        writer.set_image_states([3], ImageState.GONE)
    make_store(anna, {**{path: path for path in photos(0, 10)}, "photo 3.jpg": "another"})
    assert push(anna, team, message="photo 3 is another").n_images == 1
    assert pull(team, tmp_path / "ben.zarr").n_images == 1
    assert held(tmp_path / "ben.zarr")["photo 3.jpg"] == expected(["another"])["another"]
    check_sound(tmp_path / "ben.zarr")
    check_sound(team)
    make_store(tmp_path / "old.zarr", photos(0, 11))
    moved = push(tmp_path / "old.zarr", team, message="it has not heard of the other photo 3")
    assert (moved.n_images, moved.n_outdated) == (1, 1)
    assert held(team)["photo 3.jpg"] == expected(["another"])["another"]
    assert pull(team, tmp_path / "old.zarr", selection=Selection(rows=["photo 2.jpg"])).n_rows == 0
    with pytest.raises(StoreError, match=r"1 paths mean .* in .*z.zarr and another in .*old.zarr: 'photo 3.jpg'"):
        merge([tmp_path / "old.zarr", make_store(tmp_path / "z.zarr", {"photo 3.jpg": "z"})], tmp_path / "x.zarr")


# ---- what is refused


def test_other_values_for_the_same_image_are_refused_with_both_sides_named(
    anna: Path, tmp_path: Path, team: str
) -> None:
    push(anna, team, message="ten")
    make_store(tmp_path / "ben.zarr", photos(8, 12), seed=1)
    before = folder_bytes(tmp_path / "team")
    told = "tensor 'grid': .*ben.zarr and .*team hold different values of 2 images .* of 'photo 8.jpg' for one"
    with pytest.raises(StoreError, match=told):
        push(tmp_path / "ben.zarr", team, message="mine")
    assert folder_bytes(tmp_path / "team") == before
    mine = folder_bytes(tmp_path / "ben.zarr")
    with pytest.raises(StoreError, match="hold different values"):
        pull(team, tmp_path / "ben.zarr")
    assert folder_bytes(tmp_path / "ben.zarr") == mine
    moved = push(tmp_path / "ben.zarr", team, message="new ones", selection=Selection(rows=["photo 1[01].jpg"]))
    assert moved.n_images == 2
    check_sound(team)


def test_other_values_can_be_left_where_they_are(anna: Path, tmp_path: Path, team: str) -> None:
    push(anna, team, message="ten")
    ben = make_store(tmp_path / "ben.zarr", photos(8, 12), seed=1)
    mine = held(ben)
    moved = push(ben, team, message="the new ones", leave_different=True)
    assert (moved.n_images, moved.n_rows, moved.n_different) == (2, 4, 2)
    assert held(team) == {**mine, **expected(photos(0, 10))}
    assert push(ben, team, message="no more", leave_different=True).n_different == 2
    assert len(list(Repository(team).history())) == 2
    moved = pull(team, ben, leave_different=True)
    assert (moved.n_images, moved.n_rows, moved.n_different) == (8, 16, 2)
    assert held(ben) == {**expected(photos(0, 10)), **mine}
    moved = merge(
        [anna, make_store(tmp_path / "c.zarr", photos(9, 11), seed=2)], tmp_path / "d.zarr", leave_different=True
    )
    assert (moved.n_images, moved.n_different) == (11, 1)
    assert held(tmp_path / "d.zarr")["photo 9.jpg"] == held(anna)["photo 9.jpg"]
    for place in (team, ben, tmp_path / "d.zarr"):
        check_sound(place)


def test_other_features_under_one_name_are_refused_in_words(anna: Path, tmp_path: Path, team: str) -> None:
    push(anna, team, message="ten")
    other = TensorLayout("grid", "stack", (segment("a", width=3), segment("b", weights={"sha256": "cd"})), width=6)
    make_store(tmp_path / "ben.zarr", photos(0, 2), layouts=(other,))
    with pytest.raises(
        LayoutError, match=r"(?s)'grid' holds other features in .*ben.zarr .*b: weights: cd here, ab there"
    ):
        push(tmp_path / "ben.zarr", team, message="mine")


def test_one_path_of_two_photos_is_refused(anna: Path, tmp_path: Path, team: str) -> None:
    push(anna, team, message="ten")
    make_store(tmp_path / "ben.zarr", {"photo 1.jpg": "something else"})
    with pytest.raises(StoreError, match=r"1 paths mean one photo in .*ben.zarr and another in .*team: 'photo 1.jpg'"):
        push(tmp_path / "ben.zarr", team, message="mine")


def test_a_push_says_what_it_is(anna: Path, team: str) -> None:
    with pytest.raises(ConfigError, match="needs a message"):
        push(anna, team, message=" ")
    assert not Path(team).exists()


def test_what_is_no_repository_is_left_alone(anna: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds something that is no shared repository"):
        push(anna, str(tmp_path / "thesis"), message="oops")
    with pytest.raises(StoreError, match="holds something that is no shared repository"):
        push(anna, str(anna), message="oops")
    with pytest.raises(StoreError, match="is not a shared repository"):
        pull(str(tmp_path / "nowhere"), tmp_path / "x.zarr")
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "x.zarr").exists()


# ---- history


def test_every_version_and_tag_stays_as_it_was(anna: Path, tmp_path: Path, team: str) -> None:
    first = push(anna, team, message="ten", selection=Selection(rows=["photo [0-4].jpg"])).snapshots[-1]
    assert Repository(team).tag("paper-v1") == first
    push(anna, team, message="the others")
    assert sorted(held(f"{team}@paper-v1")) == photos(0, 5)
    assert sorted(held(team)) == photos(0, 10)
    assert featstore.open(team, version="paper-v1").path == f"{team}@paper-v1"
    assert len(featstore.open(team, version=first[:8].lower()).images) == 5
    newest, oldest = Repository(team).history()
    assert list(Repository(team).history(limit=1)) == [newest]
    assert list(Repository(team).history(limit=9)) == [newest, oldest]
    assert (oldest.message, oldest.who, oldest.tags) == ("ten", "anna", ("paper-v1",))
    assert newest.facts["rows"] == 10
    assert newest.facts["tensors"] == ["grid", "whole"]
    pull(team, tmp_path / "b.zarr", version="paper-v1")
    assert sorted(held(tmp_path / "b.zarr")) == photos(0, 5)
    listed = list_remote(f"{team}@paper-v1")
    assert listed.facts["tensors"]["grid"]["rows"]["present"] == 5
    assert (listed.version.snapshot, listed.tags) == (first, {"paper-v1": first})


def test_a_tag_never_moves(anna: Path, team: str) -> None:
    push(anna, team, message="ten", selection=Selection(rows=["photo 1.jpg"]))
    repository = Repository(team)
    repository.tag("v1")
    repository.tag("v1")
    push(anna, team, message="more")
    with pytest.raises(StoreError, match="has a tag 'v1' of another version already; a tag never moves"):
        repository.tag("v1")
    for name in ("", "a/b", "v@1", "-x", "a\nb"):
        with pytest.raises(StoreError, match="should be letters, digits"):
            repository.tag(name)
    with pytest.raises(StoreError, match="no version 'v2'; did you mean 'v1'"):
        open_store(f"{team}@v2")


def test_a_repository_is_no_place_to_write(anna: Path, team: str) -> None:
    push(anna, team, message="ten")
    for place in (team, f"{team}@main"):
        with pytest.raises(StoreError, match="changes only by `featstore push"), Writer(place):
            pass


def test_no_path_of_this_machine_travels(anna: Path, tmp_path: Path, team: str) -> None:
    push(anna, team, message="ten")
    pull(team, tmp_path / "ben.zarr")
    runs = open_store(tmp_path / "ben.zarr")["grid"].provenance
    assert [run["device"] for run in runs] == ["cpu"]
    assert not any(b"/home/anna" in data for data in folder_bytes(tmp_path / "team").values())
    pull(team, anna)
    assert len(open_store(anna)["grid"].provenance) == 1


# ---- in pieces


def test_a_push_commits_piece_by_piece_and_goes_on(anna: Path, team: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_pull, "COMMIT_BYTES", 1)
    seen: list[tuple[str, int, int]] = []
    moved = push(anna, team, message="piece by piece", on_progress=lambda *each: seen.append(each))
    assert len(moved.snapshots) == 3
    assert moved.n_rows == 20
    assert moved.n_images == 10
    assert seen[-1] == ("push", 20, 20)
    assert held(team) == expected(photos(0, 10))
    check_sound(team)


def test_blocks_that_were_read_are_kept_on_this_machine(
    anna: Path, tmp_path: Path, team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(anna, team, message="ten")
    store = open_store(team)
    first = store["grid"].read(store["grid"].rows)
    n_kept = len(list((tmp_path / "blocks").iterdir()))
    assert n_kept == 3
    with monkeypatch.context() as patch:
        patch.setattr(FetchedShards, "fetch", lambda *_: pytest.fail("fetched again"))
        assert np.array_equal(open_store(team)["grid"].read(store["grid"].rows), first)
    for file in (tmp_path / "blocks").iterdir():
        file.write_bytes(file.read_bytes()[:-7])
    assert np.array_equal(open_store(team)["grid"].read(store["grid"].rows), first)  # fetched once more
    monkeypatch.setenv("FEATSTORE_BLOCKS_GB", "0.0000005")
    open_store(team)["whole"].read([0])
    assert len(list((tmp_path / "blocks").iterdir())) == 1


def test_readers_that_fetch_the_same_block_at_once_each_get_it_whole(tmp_path: Path) -> None:
    cache, data = BlockCache(tmp_path / "kept", 10**9), np.arange(200_000, dtype=np.uint32).view(np.uint8)
    starting = Barrier(8)

    def fetch(_: int) -> bytes:
        starting.wait()
        return cache.file(b"a block", lambda: data, lambda kept: None).read_bytes()

    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(fetch, range(8))) == {data.tobytes()}
        assert len(list((tmp_path / "kept").iterdir())) == 1
        next((tmp_path / "kept").iterdir()).unlink()


def test_blocks_of_one_repository_never_stand_for_those_of_another(
    anna: Path, tmp_path: Path, team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose values may be others with the same checksums: those are no signature."""
    push(anna, team, message="ours")
    push(anna, str(tmp_path / "strangers"), message="theirs")
    open_store(str(tmp_path / "strangers"))["grid"].read([0])
    fetched: list[int] = []
    fetch = FetchedShards.fetch
    monkeypatch.setattr(FetchedShards, "fetch", lambda self, block: (fetched.append(block), fetch(self, block))[1])
    open_store(team)["grid"].read([0])
    assert fetched == [0]


def test_a_cache_that_cannot_be_written_any_more_says_how_to_go_on(
    anna: Path, tmp_path: Path, team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(anna, team, message="ten")
    store = open_store(team)
    (tmp_path / "blocks").touch()
    with pytest.raises(StoreError, match="set FEATSTORE_BLOCKS_GB=0 to keep nothing"):
        store["grid"].read([0])
    monkeypatch.setenv("FEATSTORE_BLOCKS_GB", "0")
    assert len(open_store(team)["grid"].read([0])) == 1


# ---- merging


def test_a_merge_is_the_union(anna: Path, tmp_path: Path, team: str) -> None:
    make_store(tmp_path / "ben.zarr", photos(5, 13), layouts=(GRID,))
    moved = merge([anna, tmp_path / "ben.zarr"], tmp_path / "both.zarr")
    assert moved.n_images == 13
    store = check_sound(tmp_path / "both.zarr")
    assert held(tmp_path / "both.zarr") == expected(photos(0, 13))
    assert len(store["whole"].rows) == 10
    make_store(tmp_path / "carl.zarr", photos(2, 3), seed=1)
    with pytest.raises(StoreError, match=r"carl.zarr and .*anna.zarr hold different values"):
        merge([anna, tmp_path / "carl.zarr"], tmp_path / "all.zarr")
    assert not (tmp_path / "all.zarr").exists()


def test_a_merge_of_an_empty_store_of_other_blocks_loses_nothing(tmp_path: Path) -> None:
    make_store(tmp_path / "empty.zarr", [], block_rows=4)
    make_store(tmp_path / "ben.zarr", photos(0, 20), block_rows=8)
    merge([tmp_path / "empty.zarr", tmp_path / "ben.zarr"], tmp_path / "both.zarr")
    assert held(tmp_path / "both.zarr") == expected(photos(0, 20))
    check_sound(tmp_path / "both.zarr")


@pytest.mark.parametrize("layouts", [(GRID,), (GRID, WHOLE)], ids=["a tensor is lacking", "nothing is lacking"])
def test_a_photo_that_was_renamed_while_another_took_its_path(
    tmp_path: Path, layouts: tuple[TensorLayout, ...]
) -> None:
    make_store(tmp_path / "old.zarr", {"p": "X"}, layouts=layouts)
    new = make_store(tmp_path / "new.zarr", {"p": "X"})
    with Writer(new) as writer:
        writer.set_image_states([0], ImageState.GONE)
    make_store(new, {"p": "Y", "q": "X"})
    merge([new], tmp_path / "old.zarr")
    for name, layout in (("grid", GRID), ("whole", WHOLE)):
        known = expected(["X", "Y"], layout)
        assert held(tmp_path / "old.zarr", name) == {"p": known["Y"], "q": known["X"]}
    assert [int(state) for state in check_sound(tmp_path / "old.zarr").images.states].count(ImageState.GONE) == 1
    assert merge([new], tmp_path / "old.zarr").n_rows == 0


class FullDisk:
    """Refuses one write, the n-th from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._write, self._left, self.was_full = local._write_all, 0, False
        monkeypatch.setattr(local, "_write_all", self._refuse)

    def fills_up_at(self, number: int) -> None:
        self._left, self.was_full = number, False

    def has_room(self) -> None:
        self._left = 0

    def _refuse(self, descriptor: int, parts: Sequence[Any]) -> None:
        self._left -= 1
        if self._left == 0:
            self.was_full = True
            raise OSError(errno.ENOSPC, "no space left on device")
        self._write(descriptor, parts)


def test_wherever_a_full_disk_stops_a_merge_no_path_has_two_photos_and_the_next_one_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "old.zarr", photos(0, 6), layouts=(GRID,))
    new = make_store(tmp_path / "new.zarr", photos(0, 6))
    with Writer(new) as writer:
        writer.set_image_states([3], ImageState.GONE)
    make_store(new, {**{path: path for path in photos(0, 9)}, "photo 3.jpg": "another"})
    known = {**expected(photos(0, 9)), "photo 3.jpg": expected(["another"])["another"]}
    disk, full_at, stopped = FullDisk(monkeypatch), 0, True
    while stopped:
        full_at, into = full_at + 1, tmp_path / f"into {full_at + 1}.zarr"
        shutil.copytree(tmp_path / "old.zarr", into)
        disk.fills_up_at(full_at)
        try:
            merge([new], into)
            stopped = disk.was_full
        except StoreWriteError:
            images = open_store(into).images
            current = [
                path for path, state in zip(images.paths, images.states, strict=True) if state != ImageState.GONE
            ]
            assert len(set(current)) == len(current), full_at
        disk.has_room()
        merge([new], into)
        assert held(into) == known, full_at
        check_sound(into)
    assert full_at > 20


class CannotStart(ThreadPoolExecutor):
    """A pool in a container that may have one thread more."""

    def submit(self, *args: Any, **options: Any) -> Any:
        if self._work_queue.qsize() or self._threads:
            raise RuntimeError("can't start new thread")
        return super().submit(*args, **options)


@pytest.mark.parametrize("what", ["a thread", "room"])
def test_a_transfer_that_cannot_begin_ends(
    anna: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """And does not wait for ever for those that wait for it."""
    if what == "a thread":
        monkeypatch.setattr(transfer, "ThreadPoolExecutor", CannotStart)
        error, match = RuntimeError, "can't start new thread"
    else:

        def refuse(*_: object) -> None:
            raise KeyboardInterrupt("while images are listed")

        monkeypatch.setattr(Writer, "add_images", refuse)
        error, match = KeyboardInterrupt, "while images are listed"
    ends = Future[Any]()

    def begin() -> None:
        try:
            ends.set_result(merge([anna], tmp_path / "ben.zarr"))
        except BaseException as raised:
            ends.set_exception(raised)

    Thread(target=begin, daemon=True).start()
    with pytest.raises(error, match=match):
        ends.result(timeout=30)
    monkeypatch.undo()
    assert merge([anna], tmp_path / "ben.zarr").n_rows == 20
    check_sound(tmp_path / "ben.zarr")


def test_what_a_run_left_of_a_tensor_that_it_could_not_make_is_in_nobodys_way(
    anna: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "ben.zarr", photos(0, 4), layouts=(GRID,))
    disk = FullDisk(monkeypatch)
    for full_at in range(1, 5):  # its digests, then its three documents
        disk.fills_up_at(full_at)
        with Writer(tmp_path / "ben.zarr") as writer, pytest.raises(StoreWriteError):
            writer.ensure_tensor(WHOLE, "float16")
        disk.has_room()
        shutil.copytree(tmp_path / "ben.zarr", tmp_path / f"{full_at}.zarr")
        merge([anna], tmp_path / f"{full_at}.zarr")
        assert held(tmp_path / f"{full_at}.zarr", "whole") == expected(photos(0, 10), WHOLE)
        check_sound(tmp_path / f"{full_at}.zarr")


def test_a_tag_never_stands_for_a_snapshot(anna: Path, team: str) -> None:
    (snapshot,) = push(anna, team, message="ten").snapshots
    push(make_store(anna, photos(0, 11)), team, message="one more")
    with pytest.raises(StoreError, match="looks like the name of a snapshot"):
        Repository(team).tag(snapshot)


@pytest.mark.skipif(os.sep != "/", reason="names that another system has")
def test_names_that_only_another_system_refuses_are_fine_here_and_stay_here(tmp_path: Path, team: str) -> None:
    odd = make_store(tmp_path / "odd.zarr", ["a:/x.jpg", "\\x.jpg"])
    assert held(odd) == expected(["a:/x.jpg", "\\x.jpg"])
    with pytest.raises(FormatError, match="points out of the photo folder"):
        push(odd, team, message="odd")


# ---- before computing, look


def test_what_a_colleague_has_computed_is_not_computed_again(tiny_config: Config, tmp_path: Path, team: str) -> None:
    extract(tiny_config)
    push(tiny_config.store, team, message="ten photos")
    again = replace(tiny_config, store=tmp_path / "ben.zarr")
    done = extract(again, reuse=[team])
    assert (done.n_computed, done.n_reused) == (0, 10)
    assert held(tmp_path / "ben.zarr") == held(tiny_config.store)
    (tmp_path / "featstore.toml").write_text(f"reuse = {team!r}\n")
    assert read_config(tmp_path / "featstore.toml").reuse == (Path(team),)
    done = extract(replace(again, store=tmp_path / "carl.zarr", reuse=(team,)))
    assert (done.n_computed, done.n_reused, done.notices) == (0, 10, [])
    done = extract(replace(again, store=tmp_path / "dora.zarr", reuse=(str(tmp_path / "nothing"),)))
    assert (done.n_computed, done.n_reused) == (10, 0)
    assert "nothing was not looked into before computing" in done.notices[0]
    done = extract(replace(again, store=tmp_path / "dora.zarr", reuse=(str(tmp_path / "nothing"),)))
    assert done.notices == []
    found = recompute(tmp_path / "ben.zarr", 2, photos=tiny_config.photos, weights=tiny_config.weights, seed=0)
    assert found.within
