"""Which device a run gets, the GPU of each worker, and what is said where there is none that it can use."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from featstore.engines import choose_device, hardware
from featstore.errors import ConfigError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is right where there is a GPU")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A machine with so many GPUs, as far as choosing one of them goes."""

    ones = torch.ones

    def have(n: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))

    return have


@pytest.mark.parametrize("said", ["auto", "cuda"])
def test_workers_of_a_machine_take_a_gpu_each(gpus: Callable[[int], None], said: str) -> None:
    gpus(4)
    names = ["gpu-0", "gpu-1", "3", "7", "host2", "tcp://10.0.0.7:40123"]
    assert [str(choose_device(said, worker=name)) for name in names] == [f"cuda:{i}" for i in (0, 1, 3, 3, 2, 0)]
    assert str(choose_device(said)) == "cuda:0"
    assert str(choose_device("cuda:2", worker="1")) == "cuda:2", "it was named"
    assert str(choose_device("cpu", worker="1")) == "cpu"
    gpus(1)
    assert str(choose_device(said, worker="7")) == "cuda:0"


def test_auto_is_what_a_worker_has(gpus: Callable[[int], None]) -> None:
    gpus(0)
    assert str(choose_device("auto", worker="1")) == "cpu"
    with pytest.raises(ConfigError, match=r"no CUDA GPU: .*; or stop that worker, or say --device auto or cpu$"):
        choose_device("cuda", worker="1")


@pytest.mark.parametrize(("n", "there"), [(1, "cuda:0"), (4, "cuda:0 to cuda:3")])
def test_a_number_that_there_is_not_says_which_there_are(gpus: Callable[[int], None], n: int, there: str) -> None:
    gpus(n)
    with pytest.raises(ConfigError, match=rf"'cuda:7' was asked for, and PyTorch finds {there}; say one of them, or"):
        choose_device("cuda:7")


def test_a_pytorch_that_is_built_for_other_gpus_is_refused_in_a_line(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_kernel(*shape: int, device: Any) -> Any:
        raise torch.AcceleratorError(
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be ..."
        )

    gpus(1)
    monkeypatch.setattr(torch, "ones", no_kernel)
    with pytest.raises(ConfigError, match=r"cannot be used with PyTorch 2\..*: CUDA error: no kernel image") as error:
        choose_device("cuda")
    assert str(error.value).endswith("on the device; say --device cpu")


@pytest.mark.parametrize(
    ("built", "visible", "why"),
    [
        (None, None, r"is built without CUDA; install one that has it, from pytorch\.org"),
        ("13.0", "9", "CUDA_VISIBLE_DEVICES='9' names none; unset it"),
        ("13.0", "", "CUDA_VISIBLE_DEVICES='' names none; unset it"),
        ("13.0", None, r"there is none, or its driver is older than CUDA 13\.0"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, built: str | None, visible: str | None, why: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ConfigError, match=f"^device 'cuda' was asked for, but PyTorch finds no CUDA GPU: .*{why}"):
            choose_device("cuda")
    assert "PyTorch finds no CUDA GPU: " in hardware.why_no_gpu()


@no_gpu
@pytest.mark.skipif(torch.version.cuda is None, reason="a PyTorch without CUDA says that first")
def test_the_command_says_that_cuda_visible_devices_names_nothing(photos: Path, tmp_path: Path) -> None:
    words = ["extract", str(photos), "--weights", "random:0", "--tensor", "t=concat:test_resnet", "--device", "cuda"]
    done = subprocess.run(
        [sys.executable, "-c", "from featstore.cli import main; main()", *words],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: device 'cuda' was asked for, but PyTorch finds no CUDA GPU: CUDA_VISIBLE_DEVICES='9'"
    )
    assert not (tmp_path / "cache").exists(), "nothing was written"
