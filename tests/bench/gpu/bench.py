"""The bench that the steps share: where they work, with which networks, and how they measure."""

import copy
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featstore.backbones import WeightsPolicy, find_card, resolve_weights
from featstore.backbones.networks import Network, build_network
from featstore.config import Config, TensorSpec
from featstore.engines import Runtime
from featstore.extraction.forward import Backbones
from featstore.photos.views import View

ROOT = Path(__file__).resolve().parents[3]
AMTL = ("inception_v3", "legacy_xception", "resnet50", "densenet201")
MINIATURES = ("test_resnet", "test_efficientnet")
Figures = dict[str, Any]


@dataclass
class Bench:
    """What the steps share."""

    folder: Path
    out: Path
    device: torch.device
    small: bool
    ends: float
    """When all has to be done, by `time.perf_counter`."""
    loaded: dict[str, Backbones] = field(default_factory=dict)
    """The networks of the end-to-end run, by precision: tuned and recorded once."""
    built: dict[str, Network] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return MINIATURES if self.small else AMTL

    @property
    def convolutions(self) -> tuple[str, ...]:
        """Two networks that stand for others: plain convolutions, and many small kernels."""
        return MINIATURES if self.small else ("resnet50", "densenet201")

    @property
    def precision(self) -> str:
        return "fp32" if self.small else "fp16"

    @property
    def engine(self) -> str:
        return "eager" if self.small else "fused"

    @property
    def policy(self) -> WeightsPolicy:
        return WeightsPolicy(folder=self.folder / "weights")

    @property
    def batch(self) -> int:
        return 2 if self.small else 32

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], times: int = 5, warm_ups: int = 2) -> float:
        """Of one call: the median of several, each from an idle device to an idle device."""
        for _ in range(warm_ups):
            work()
        took = []
        for _ in range(times):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            took.append(time.perf_counter() - began)
        return statistics.median(took)

    def blocks(self, view: View, n_photos: int) -> Tensor:
        """(T, height, width, 3) of noise with large structures, on the device."""
        width, height = view.block_size
        n = n_photos * view.n_blocks
        coarse = torch.rand(n, 3, 6, 8, generator=torch.Generator().manual_seed(1)).to(self.device)
        fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
        return (255 * fine).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def network(self, name: str) -> Network:
        """A network with its calibrated weights, on the CPU; drawing first weights takes seconds, a copy does not."""
        if name not in self.built:
            card = find_card(name)
            self.built[name] = build_network(card, resolve_weights(card, self.policy))
        return copy.deepcopy(self.built[name])

    def config(self, photos: Path, store: Path, precision: str) -> Config:
        tensors = (TensorSpec("grid", "stack", self.names), TensorSpec("whole", "concat", self.names))
        return Config(photos=photos, store=store, weights=self.policy, tensors=tensors, precision=precision)

    def runtime(self, batch: int | None = None) -> Runtime:
        return Runtime(str(self.device), self.engine if self.small else "auto", batch or self.batch)


def memory(bench: Bench) -> Figures:
    """What the device's memory held at most since this was last asked."""
    if bench.device.type != "cuda":
        return {}
    most = torch.cuda.max_memory_allocated(bench.device) / 1e9
    torch.cuda.reset_peak_memory_stats(bench.device)
    return {"most memory GB": most, "reserved GB": torch.cuda.memory_reserved(bench.device) / 1e9}


def run_command(bench: Bench, command: Sequence[str], *, limit_s: float, inside: bool = False) -> Figures:
    """Run a command of this repository and keep the end of what it says.

    Args:
        inside: whether it is this program again, for one step.
    """
    environment: Mapping[str, str] = {**os.environ, **({"GPU_BENCH_INSIDE": "1"} if inside else {})}
    log = bench.folder / "said.txt"
    with log.open("w") as said:
        try:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
            status: int | str = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = f"ended after {limit_s:.0f} s"
            _end(process)
    return {"status": status, "said": log.read_text(errors="replace")[-5000:]}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """As Ctrl-C does: pytest still says what has failed."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
