"""Float32 products on a CPU: by the faster library, as exact as they were, and only while heads need them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from heads import Plan, train
from heads.labels.labels import read_labels
from heads.runs.applying import predict
from heads.training import matmul
from heads.training.matmul import onednn_is_faster, stays_float32, whole_width

setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this processor were one of those on which oneDNN is the faster library."""
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it did not round here either."""
    monkeypatch.setattr(matmul, "stays_float32", lambda: True)


@pytest.mark.parametrize("shape", [(512, 2048, 128), (33, 2048, 256), (2048, 32, 256), (1, 7, 3), (128, 1536, 2048)])
def test_products_and_their_gradients_are_float32(shape: tuple[int, int, int]) -> None:
    n, inner, m = shape
    draw = torch.Generator().manual_seed(0)
    one, two = torch.randn(4, n, inner, generator=draw), torch.randn(4, inner, m, generator=draw)
    one.requires_grad_(), two.requires_grad_()
    with whole_width():
        found = one @ two
        found.sum().backward()  # type: ignore[no-untyped-call]
        flat = torch.addmm(torch.zeros(m), one[0], two[0])
    with torch.no_grad():
        exact = one.double() @ two.double()
        for each, expected in (
            (found, exact),
            (flat, exact[0]),
            (one.grad, two.double().sum(2)[:, None]),
            (two.grad, one.double().sum(1)[..., None]),
        ):
            assert each is not None
            assert float((each - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.usefixtures("exact")
def test_it_holds_until_the_last_one_leaves() -> None:
    both, first_has_left = Barrier(2), Barrier(2)

    def leave_first() -> None:
        with whole_width():
            both.wait(10)
        first_has_left.wait(10)

    def leave_last() -> str:
        with whole_width():
            both.wait(10)
            first_has_left.wait(10)
            return str(setting.fp32_precision)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(leave_first)
        assert pool.submit(leave_last).result(20) == matmul.ALLOWED
    assert setting.fp32_precision == "none"
    with pytest.raises(KeyError), whole_width():
        raise KeyError
    assert setting.fp32_precision == "none"


@pytest.mark.usefixtures("exact")
def test_what_the_user_has_set_stays() -> None:
    setting.fp32_precision = "ieee"
    try:
        with whole_width():
            assert setting.fp32_precision == "ieee"
        assert setting.fp32_precision == "ieee"
    finally:
        setting.fp32_precision = "none"


@pytest.mark.usefixtures("exact")
def test_what_the_user_sets_inside_stays_as_well() -> None:
    try:
        with whole_width():
            setting.fp32_precision = "ieee"
        assert setting.fp32_precision == "ieee"
    finally:
        setting.fp32_precision = "none"


@pytest.mark.parametrize(
    ("maker", "capability", "faster"),
    [
        ("AMD EPYC 9B45", "AVX512", True),
        ("AMD EPYC 7B13", "AVX2", False),
        ("Intel Xeon", "AVX512", False),
        ("Intel Xeon", "AVX2", False),
    ],
)
def test_it_is_faster_where_mkl_takes_half_the_width(
    monkeypatch: pytest.MonkeyPatch, maker: str, capability: str, faster: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": maker})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert onednn_is_faster.__wrapped__() is faster


def test_a_library_that_is_not_faster_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: False)
    with whole_width():
        assert setting.fp32_precision == "none"


def test_a_library_that_rounds_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "FLOAT32_ERROR", 0.0)  # as if it had rounded
    stays_float32.cache_clear()
    try:
        with whole_width():
            assert setting.fp32_precision == "none"
    finally:
        stays_float32.cache_clear()


def test_products_of_what_was_rounded_to_bfloat16_would_be_noticed() -> None:
    some = (torch.rand(256, 512, generator=torch.Generator().manual_seed(0)) - 0.5).bfloat16().float()
    unrounded = torch.rand(256, 512, generator=torch.Generator().manual_seed(0)) - 0.5
    exact = unrounded.double() @ unrounded.double().T
    error = float((some @ some.T - exact).abs().max() / exact.abs().max())
    assert error > 30 * matmul.FLOAT32_ERROR


@pytest.mark.usefixtures("exact")
def test_heads_learn_and_predict_inside(world, tmp_path: Path) -> None:
    found: dict[str, set[str]] = {}

    def note(stage: str, done: int, total: int) -> None:
        found.setdefault(stage, set()).add(setting.fp32_precision)

    plan = Plan(
        system="amtl",
        store=world.store,
        labels=read_labels(world.labels, scales="1:7"),
        out=tmp_path / "amtl",
        changes=("attention=4", "hidden=4", "epochs=2"),
        n_repeats=1,
        device="cpu",
    )
    predict(train(plan, on_progress=note), world.store, device="cpu", on_progress=note)
    assert found["train"] == {matmul.ALLOWED}
    assert found["predict"] == {matmul.ALLOWED}
