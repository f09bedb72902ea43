"""What needs a CUDA GPU: every engine there against the eager one, several devices, and memory that runs out.

Memory comes last: it takes longest.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from featstore.backbones import WeightsPolicy, find_card
from featstore.engines import Hardware, Runtime
from featstore.extraction.forward import Backbones
from featstore.extraction.networks import Networks, TensorRequest
from featstore.identity import PRECISIONS, TOLERANCE, Segment
from featstore.photos.views import GRID, WHOLE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SEEDED = WeightsPolicy(named={"*": "random:0"})
CONVOLUTIONS, WITH_LINEAR = "lite0", "dual_encoding"  # a Linear has cuBLAS take memory while it is recorded


def load(
    name: str, runtime: Runtime, *, precision: str = "fp32", policy: WeightsPolicy | None = None
) -> tuple[Backbones, list[str]]:
    notes: list[str] = []
    segments = tuple(Segment(find_card(name), view, "avg", precision) for view in (GRID, WHOLE))
    networks = Networks([TensorRequest("t", "concat", segments, "float32")], policy or WeightsPolicy())
    hardware = Hardware.choose(runtime)
    return Backbones(networks, hardware, lambda stage, done, total: None, note=notes.append), notes


def photos(n: int) -> list[dict[object, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{WHOLE: rng.integers(0, 256, (1, 400, 600, 3)).astype(np.uint8)} for _ in range(n)]


def run(backbones: Backbones, n: int) -> list[dict[str, np.ndarray]]:
    return backbones.start(photos(n), set(backbones.segments)).result()  # type: ignore[arg-type]


def apart(ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]) -> float:
    return max(
        float(np.abs(mine[key] - other[key]).max() / np.abs(other[key]).max())
        for mine, other in zip(ours, theirs, strict=True)
        for key in other
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_recorded_network_gives_what_the_eager_one_gives(precision: str) -> None:
    recorded, _ = load(CONVOLUTIONS, Runtime("cuda", "graph", 4), precision=precision)
    eager, _ = load(CONVOLUTIONS, Runtime("cuda", "eager", 4), precision=precision)
    plain, _ = load(CONVOLUTIONS, Runtime("cpu", "eager"))
    results = [list(run(each, 3)) for each in (recorded, eager)]
    assert apart(results[0], results[1]) <= TOLERANCE[precision]
    by_place = [[photo[key] for key in recorded.segments] for photo in results[0]]
    on_cpu = [[*run_one(plain, i)] for i in range(3)]
    for ours, theirs in zip(by_place, on_cpu, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert np.abs(mine - other).max() / np.abs(other).max() <= TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_fused_convolutions_give_what_the_eager_ones_give(precision: str) -> None:
    fused, _ = load("resnet50", Runtime("cuda", "fused", 4), precision=precision, policy=SEEDED)
    eager, _ = load("resnet50", Runtime("cuda", "eager", 4), precision=precision, policy=SEEDED)
    assert fused.engines == {"resnet50": "fused"}
    assert apart(run(fused, 3), run(eager, 3)) <= TOLERANCE[precision]


def test_a_network_without_anything_to_fuse_is_recorded_as_it_is() -> None:
    backbones, notes = load(CONVOLUTIONS, Runtime("cuda", batch=2))
    assert (set(backbones.engines.values()), notes) == ({"graph"}, [])


def run_one(backbones: Backbones, i: int) -> Iterator[np.ndarray]:
    (found,) = backbones.start([photos(i + 1)[i]], set(backbones.segments)).result()  # type: ignore[list-item]
    yield from (found[key] for key in backbones.segments)


def test_photos_that_fly_together_do_not_meet() -> None:
    """The next batch is sent while the one before is computed, and writes to the same recorded places."""
    backbones, _ = load(CONVOLUTIONS, Runtime("cuda", "graph", 2))
    first, second = photos(4)[:2], photos(4)[2:]
    flying = [backbones.start(each, set(backbones.segments)) for each in (first, second)]  # type: ignore[arg-type]
    together = [photo for batch in flying for photo in batch.result()]
    alone = [photo for each in (first, second) for photo in backbones.start(each, set(backbones.segments)).result()]  # type: ignore[arg-type]
    assert apart(together, alone) == 0
    assert all(0 < batch.busy_s < 10 for batch in flying)


def test_the_size_of_a_batch_changes_nothing_but_last_digits() -> None:
    many, _ = load(CONVOLUTIONS, Runtime("cuda", batch=32))
    one, _ = load(CONVOLUTIONS, Runtime("cuda", batch=1))
    assert apart(run(many, 5), [alone(one, i) for i in range(5)]) <= TOLERANCE["fp32"]


def alone(backbones: Backbones, i: int) -> dict[str, np.ndarray]:
    return backbones.start([photos(i + 1)[i]], set(backbones.segments)).result()[0]  # type: ignore[list-item]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_first_gives_the_same() -> None:
    results = [run(load(CONVOLUTIONS, Runtime(f"cuda:{i}", "graph", 2))[0], 3) for i in (1, 0, 1)]
    assert apart(results[0], results[1]) <= TOLERANCE["fp32"]
    assert apart(results[0], results[2]) == 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_that_cannot_be_recorded_runs_eagerly(precision: str) -> None:
    backbones, notes = load("object_graph", Runtime("cuda", batch=1), precision=precision, policy=SEEDED)
    assert set(backbones.engines.values()) == {"eager"}
    assert any("no engine can record" in note for note in notes)


@pytest.mark.parametrize("name", [CONVOLUTIONS, WITH_LINEAR])
def test_memory_that_runs_out_halves_the_batch_and_the_run_goes_on(name: str) -> None:
    policy = SEEDED if name == WITH_LINEAR else None
    few, _ = load(name, Runtime("cuda", "graph", 1), policy=policy)
    expected = [alone(few, i) for i in range(3)]
    del few
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2e9 / total))
    try:
        backbones, notes = load(name, Runtime("cuda", "graph", 64), policy=policy)
        found = run(backbones, 3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert backbones.batch < 64
    assert any("was too small" in note for note in notes)
    assert set(backbones.engines.values()) == {"graph"}
    assert apart(found, expected) <= TOLERANCE["fp32"]
