"""The stages of a run beside each other: what is in memory, which one the others wait for, what an error leaves."""

import itertools
import json
import os
import shutil
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import featstore
from featstore.cli import app
from featstore.config import Config, TensorSpec
from featstore.engines import Hardware, Runtime
from featstore.engines.eager import EagerEngine
from featstore.errors import FeatureRangeError, StoreWriteError
from featstore.extraction import pipeline
from featstore.extraction.extract import extract
from featstore.extraction.forward import Backbones, Batch
from featstore.extraction.networks import Networks, from_config
from featstore.extraction.pipeline import AHEAD, PhotoJob, Pipeline
from featstore.extraction.summary import Summary
from featstore.extraction.timing import Stages
from featstore.extraction.worker import OwnDevice
from featstore.photos.files import digest_photos, find_photos
from featstore.photos.views import View
from featstore.store import Writer

RESNET = "test_resnet"
THREADS = 2


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many decoding threads on every machine; and nothing here pulls the plug."""
    monkeypatch.setattr(os, "cpu_count", lambda: THREADS)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """One small tensor, in row blocks of four photos."""
    with Writer(tiny_config.store, block_rows=4):
        pass
    return replace(
        tiny_config, views={"small": View((32, 32))}, tensors=(TensorSpec("t", "concat", (RESNET,), view="small"),)
    )


def slow(
    monkeypatch: pytest.MonkeyPatch, seconds: float, *, owner: Any = EagerEngine, name: str = "run"
) -> list[float]:
    """Make every call of a function take longer; returns when they began."""
    real, begun = getattr(owner, name), []

    def wait(*args: Any, **options: Any) -> Any:
        begun.append(time.perf_counter())
        time.sleep(seconds)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, wait)
    return begun


# ---- memory


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_only_a_few_photos_are_decoded_ahead(config: Config, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    for i in range(10, 60):
        shutil.copy(f"{config.photos}/photo {i % 9}.jpg", f"{config.photos}/photo {i}.jpg")
    alive, most, lock = 0, [0], threading.Lock()

    def count(change: int) -> None:
        nonlocal alive
        with lock:
            alive += change
            most.append(alive)

    real = pipeline.resize

    def resize(*args: Any) -> Any:
        frame = real(*args)
        count(1)
        weakref.finalize(frame, count, -1)
        return frame

    monkeypatch.setattr(pipeline, "resize", resize)
    slow(monkeypatch, 0.01)
    assert extract(config, runtime=Runtime(engine="eager", batch=batch)).n_computed == 60
    limit = max(AHEAD * THREADS, 2 * batch)
    assert max(most) <= limit + batch, "what waits, and what the device has"
    assert max(most) > THREADS, "a device that is slow finds the next photos ready"


def test_memory_does_not_grow_with_the_number_of_photos(config: Config) -> None:
    assert config.photos is not None
    networks = Networks(from_config(config, None, precision="fp32"), config.weights)
    hardware = Hardware.choose(Runtime("cpu", "eager"))
    backbones = Backbones(networks, hardware, lambda stage, done, total: None)
    paths = [photo.path for photo in find_photos(config.photos)]
    digests = dict(zip(paths, digest_photos(config.photos, paths), strict=True))
    wanted = frozenset(backbones.segments)

    def jobs(n_photos: int) -> Iterator[PhotoJob]:
        for row in range(n_photos):
            path = paths[row % len(paths)]
            yield PhotoJob(row, path, digests[path], wanted)

    def peak(n_photos: int) -> int:
        work = Pipeline(config.photos, backbones, networks.dtypes(), Stages())  # type: ignore[arg-type]
        tracemalloc.start()
        try:
            assert sum(1 for _ in work.run(jobs(n_photos))) == n_photos
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    few, many = peak(40), peak(400)
    assert many < 1.2 * few + 100_000


# ---- two tasks of a worker


def test_the_next_task_computes_while_the_last_one_looks_at_its_results(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.photos is not None
    networks = Networks(from_config(config, None, precision="fp32"), config.weights)
    backbones = Backbones(networks, Hardware.choose(Runtime("cpu", "eager", 2)), lambda stage, done, total: None)
    paths = [photo.path for photo in find_photos(config.photos)][:8]
    every = [
        PhotoJob(row, path, digest, frozenset(backbones.segments))
        for row, (path, digest) in enumerate(zip(paths, digest_photos(config.photos, paths), strict=True))
    ]
    device = threading.Lock()
    begun: list[str] = []
    one_has_it, next_has_it = threading.Event(), threading.Event()
    start, result = Backbones.start, Batch.result

    def watched_start(*args: Any) -> Batch:
        begun.append(threading.current_thread().name.partition("_")[0])
        (one_has_it if begun[-1] == "one" else next_has_it).set()
        return start(*args)

    def late_result(batch: Batch) -> Any:
        if threading.current_thread().name.startswith("one") and len(begun) >= 2:
            assert next_has_it.wait(10), "the device waits for results"
        return result(batch)

    def run(jobs: list[PhotoJob]) -> dict[int, Any]:
        with OwnDevice(backbones, device) as own:
            work = Pipeline(config.photos, own, networks.dtypes(), Stages(), on_last=own.release)  # type: ignore[arg-type]
            return {each.row: each.features for each in work.run(jobs)}

    alone = run(every)
    monkeypatch.setattr(Backbones, "start", watched_start)
    monkeypatch.setattr(Batch, "result", late_result)
    with ThreadPoolExecutor(1, "one") as one, ThreadPoolExecutor(1, "next") as other:
        first = one.submit(run, every[:4])
        assert one_has_it.wait(10)
        together = first, other.submit(run, every[4:])
        found = {row: features for each in together for row, features in each.result().items()}
    assert begun == ["one", "one", "next", "next"], "a task has the device from its first batch to its last"
    assert not device.locked()
    for row, features in alone.items():
        for key, values in features.items():
            np.testing.assert_array_equal(found[row][key], values)


def test_a_task_that_fails_gives_the_device_back() -> None:
    class Broken:
        def start(self, *args: Any) -> Any:
            raise MemoryError

    device = threading.Lock()
    with pytest.raises(MemoryError), OwnDevice(Broken(), device) as own:
        own.start([], ())
    assert not device.locked()


# ---- stages


def big_pictures(folder: Path, n_photos: int) -> None:
    """PNGs that take a tenth of a second to decode."""
    shutil.rmtree(folder)
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3)).astype(np.uint8)
    for i in range(n_photos):
        pixels[0, 0] = i
        Image.fromarray(pixels).save(folder / f"photo {i}.png", compress_level=1)


def test_the_device_is_what_the_others_wait_for(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.05)
    check(extract(config), "forward")


def test_decoding_is_what_the_others_wait_for(config: Config) -> None:
    assert config.photos is not None
    big_pictures(config.photos, 8)
    check(extract(config), "decode")


def test_the_disk_is_what_the_others_wait_for(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.3, owner=Writer, name="commit")
    check(extract(config), "write")


def check(summary: Summary, limiting: str) -> None:
    assert set(summary.shares) == {"decode", "forward", "write"}
    assert all(0 < share <= 1 for share in summary.shares.values())
    assert all(seconds > 0 for seconds in summary.stages_s.values())
    assert summary.limiting_stage == limiting
    assert summary.shares[limiting] > 0.6
    assert 0 < summary.first_s <= summary.elapsed_s


def test_decoding_goes_on_while_the_device_and_the_disk_work(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other it would be 10 x (0.05 + 0.05) and 3 x 0.15 seconds."""
    slow(monkeypatch, 0.05)
    slow(monkeypatch, 0.05, owner=pipeline, name="open_photo")
    slow(monkeypatch, 0.15, owner=Writer, name="commit")
    assert extract(config).extracting_s < 1.0


def test_a_run_that_only_copies_has_shares_too(config: Config) -> None:
    extract(config)
    mine = replace(config, store=Path(config.store).with_name("mine.zarr"))
    summary = extract(mine, reuse=[config.store])
    assert summary.n_computed == 0
    assert all(0 <= share <= 1 for share in summary.shares.values())
    idle = extract(config)
    assert (idle.shares, idle.limiting_stage) == ({}, None)


def test_the_command_names_the_stage(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.1)
    words = ["extract", photos, "--store", tmp_path / "a.zarr", "--weights", "random:0", "--engine", "eager"]
    words += ["--tensor", f"t=concat:{RESNET}"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0
    assert ", limited by forward (busy: decode " in done.stdout


# ---- the trace


def test_the_trace_shows_the_stages_beside_each_other(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow(monkeypatch, 0.03)
    slow(monkeypatch, 0.05, owner=Writer, name="commit")
    extract(config, trace=tmp_path / "trace.json")
    events = [event for event in json.loads((tmp_path / "trace.json").read_text()) if event]
    stages = {name: [event for event in events if event["name"] == name] for name in ("decode", "forward", "write")}
    assert [len(each) for each in stages.values()] == [10, 10, 3]
    paths = featstore.open(config.store).images.paths
    for name in ("decode", "forward"):
        assert sorted(event["args"]["what"] for event in stages[name]) == paths
    for event in events:
        assert (event["ph"], event["ts"] >= 0, event["dur"] >= 0) == ("X", True, True)
    for one, other in (("decode", "forward"), ("forward", "write")):
        assert any(overlap(a, b) for a in stages[one] for b in stages[other]), f"{one} beside {other}"
    for name in ("forward", "write"):
        in_order = sorted(stages[name], key=lambda event: event["ts"])
        assert not any(overlap(a, b) for a, b in itertools.pairwise(in_order)), "one at a time"
    assert len({event["tid"] for event in stages["decode"]}) <= THREADS
    assert not {e["tid"] for e in stages["decode"]} & {e["tid"] for e in stages["write"]}


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """By more than the microsecond that times are rounded to."""
    end = min(one["ts"] + one["dur"], other["ts"] + other["dur"])
    return bool(end - max(one["ts"], other["ts"]) > 1)


def test_the_trace_of_names_that_json_has_to_escape(config: Config, tmp_path: Path) -> None:
    assert config.photos is not None
    (config.photos / "photo 0.jpg").rename(config.photos / 'a "quoted"\\ été\n.jpg')
    extract(config, trace=tmp_path / "trace.json")
    told = {event["args"]["what"] for event in json.loads((tmp_path / "trace.json").read_text()) if event}
    assert 'a "quoted"\\ été\n.jpg' in told


@pytest.mark.parametrize("place", ["nowhere/trace.json", "photos"])
def test_a_trace_that_cannot_be_written_is_said_before_anything_is_done(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    passes = slow(monkeypatch, 0)
    words = ["extract", "photos", "--weights", "random:0", "--engine", "eager", "--tensor", f"t=concat:{RESNET}"]
    done = CliRunner().invoke(app, [*words, "--trace", place])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: the trace {place} cannot be written: ")
    assert passes == []
    assert not Path("cache").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_trace_that_fills_the_disk_is_said_and_the_features_are_kept(config: Config) -> None:
    summary = extract(config, trace=Path("/dev/full"))
    assert "the trace /dev/full ends early: No space left on device" in summary.notices
    assert len(featstore.open(config.store)["t"].rows) == 10


def test_a_trace_is_whole_after_an_error_too(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spoil(monkeypatch, 5)
    with pytest.raises(FeatureRangeError):
        extract(config, trace=tmp_path / "trace.json")
    assert len(json.loads((tmp_path / "trace.json").read_text())) > 5


# ---- errors


def spoil(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The photo of this number in the run gets a feature that is infinite."""
    real, done = EagerEngine.run, [0]

    @torch.inference_mode()
    def run(engine: EagerEngine, blocks: torch.Tensor) -> list[torch.Tensor]:
        found = [values.clone() for values in real(engine, blocks)]
        here = range(done[0], done[0] + len(blocks))
        done[0] += len(blocks)
        if number in here:
            for values in found:
                values[here.index(number)] = float("inf")
        return found

    monkeypatch.setattr(EagerEngine, "run", run)


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("number", [0, 5, 9])
def test_a_feature_that_is_no_number_keeps_what_was_done(
    config: Config, monkeypatch: pytest.MonkeyPatch, number: int, batch: int
) -> None:
    runtime = Runtime(engine="eager", batch=batch)
    spoil(monkeypatch, number)
    with pytest.raises(FeatureRangeError, match="not a number for ") as refused:
        extract(config, runtime=runtime)
    store = featstore.open(config.store)
    assert store.images.paths[number] in str(refused.value)
    assert store["t"].rows.tolist() == list(range(number))
    monkeypatch.undo()
    assert extract(config, runtime=runtime).n_computed == 10 - number
    alone = replace(config, store=Path(config.store).with_name("alone.zarr"))
    extract(alone, runtime=runtime)
    np.testing.assert_array_equal(store["t"].read(range(number)), featstore.open(alone.store)["t"].read(range(number)))


def test_a_disk_that_fails_half_way_stops_the_run_and_keeps_what_was_committed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Writer.commit

    def commit(writer: Writer, block: int, *args: Any) -> int:
        if block == 1:
            raise StoreWriteError("no space left on the device")
        return real(writer, block, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "commit", commit)
        with pytest.raises(StoreWriteError, match="no space left"):
            extract(config)
    assert set(range(4)) <= set(featstore.open(config.store)["t"].rows.tolist())
    extract(config)
    assert featstore.open(config.store)["t"].rows.tolist() == list(range(10))


def test_an_error_does_not_wait_for_the_photos_that_are_queued(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = slow(monkeypatch, 0.05, owner=pipeline, name="open_photo")
    spoil(monkeypatch, 0)
    assert config.photos is not None
    for i in range(10, 60):
        shutil.copy(config.photos / "photo 1.jpg", config.photos / f"photo {i}.jpg")
    with pytest.raises(FeatureRangeError):
        extract(config)
    assert len(opened) <= 2 * AHEAD * THREADS
    for thread in threading.enumerate():
        if thread.name.startswith(("decode", "commit")):
            thread.join(5)
            assert not thread.is_alive(), "it ends with the photo that it had in hand"


# ---- photos that need not be opened


def test_photos_that_are_wholly_copied_are_not_opened(
    config: Config, monkeypatch: pytest.MonkeyPatch, draw: Callable[..., None]
) -> None:
    extract(config)
    assert config.photos is not None
    opened = slow(monkeypatch, 0, owner=pipeline, name="open_photo")
    mine = replace(config, store=Path(config.store).with_name("mine.zarr"))
    assert extract(mine, reuse=[config.store]).n_computed == 0
    again = TensorSpec("again", "stack", (RESNET,), view="small")
    assert extract(replace(config, tensors=(*config.tensors, again))).n_computed == 0
    assert opened == []
    ours, theirs = featstore.open(mine.store), featstore.open(config.store)
    np.testing.assert_array_equal(ours.images.sizes, theirs.images.sizes)
    np.testing.assert_array_equal(ours["t"].read(range(10)), theirs["t"].read(range(10)))
    np.testing.assert_array_equal(theirs["again"].read(range(10))[:, 0, 0], theirs["t"].read(range(10)))
    draw(config.photos / "new.jpg", seed=99)
    assert extract(mine, reuse=[config.store]).n_computed == 1
    assert len(opened) == 1
