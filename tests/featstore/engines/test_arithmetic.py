"""What an engine sets for its arithmetic and puts back, and how memory that is full is told from other errors."""

from typing import Any

import pytest
import torch

from featstore.backbones import WeightsPolicy, find_card, resolve_weights
from featstore.backbones.networks import build_network
from featstore.engines.eager import EagerEngine
from featstore.engines.engine import arithmetic, compare, refusing, until_lost, untuned
from featstore.errors import BackboneError, DeviceLostError

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
BACKENDS: Any = torch.backends
CARD = find_card("test_resnet")
BLOCKS = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)


def settings() -> list[object]:
    places = BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn
    return [*(place.fp32_precision for place in places), BACKENDS.cudnn.benchmark]


@pytest.mark.parametrize(("precision", "inside"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_float32_is_multiplied_as_asked_and_the_program_gets_its_settings_back(precision: str, inside: str) -> None:
    before = settings()
    with arithmetic(precision, CUDA):
        assert settings() == [inside, inside, inside, True]
        with untuned(), arithmetic(precision, CUDA):
            assert settings()[-1] is False
        assert settings() == [inside, inside, inside, True]
    assert settings() == before


def test_a_precision_that_the_program_has_set_does_not_reach_our_networks() -> None:
    before = BACKENDS.fp32_precision
    BACKENDS.fp32_precision = "tf32"
    try:
        with arithmetic("fp32", CUDA):
            assert settings()[:3] == ["ieee"] * 3
        assert settings()[:3] == ["tf32"] * 3
    finally:
        BACKENDS.fp32_precision = before
    assert settings()[0] == before


def end_badly() -> None:
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def test_a_recording_that_failed_for_want_of_memory_says_so() -> None:
    """As `torch.cuda.graph` does it: at its end it raises another error, in place of the one that ended it."""
    with pytest.raises(torch.OutOfMemoryError), refusing(CARD, BLOCKS):
        end_badly()


@pytest.mark.parametrize("said", ["GET was unable to find an engine to execute this computation", "CUDA out of memory"])
def test_every_way_of_saying_that_memory_is_full_is_understood(said: str) -> None:
    for inside in (refusing(CARD, BLOCKS), until_lost(CPU)):
        with pytest.raises(torch.OutOfMemoryError), inside:
            raise RuntimeError(said)


def test_a_device_that_is_lost_is_no_want_of_memory_and_no_fault_of_the_backbone() -> None:
    said = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"
    for inside in (refusing(CARD, BLOCKS), until_lost(CPU)):
        with (
            pytest.raises(DeviceLostError, match=r"^cpu computes no more: .*encountered; what was computed is kept"),
            inside,
        ):
            raise torch.AcceleratorError(said)


@pytest.mark.parametrize("said", ["CUDA error: operation not permitted when stream is capturing", "mat1 and mat2"])
def test_what_one_call_was_refused_is_no_loss_of_the_device(said: str) -> None:
    with pytest.raises(BackboneError, match="cannot run on blocks of 8x8 pixels"), refusing(CARD, BLOCKS):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match=said), until_lost(CPU):
        raise RuntimeError(said)


def test_eager_features_that_are_no_numbers_are_not_held_against_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(CARD, resolve_weights(CARD, WeightsPolicy(named={"*": "random:0"})))
    plain = EagerEngine(network, CARD, device=CPU)
    compare(plain, plain, (2, 48, 64, 3), device=CPU, precision="fp16")
    monkeypatch.setattr(EagerEngine, "run", lambda self, blocks: [torch.full((len(blocks), 2), float("nan"))])
    with pytest.raises(BackboneError, match="nothing to compare it with: eager features in fp16 are not finite"):
        compare(plain, plain, (2, 48, 64, 3), device=CPU, precision="fp16")


def test_random_weights_leave_the_generators_of_the_program_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeded(seed: int) -> None:
        raise AssertionError("CUDA's generator was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    before = torch.random.get_rng_state()
    build_network(CARD, resolve_weights(CARD, WeightsPolicy(named={"*": "random:0"})))
    assert torch.equal(torch.random.get_rng_state(), before)
