"""Hardware: the list of engines, and which device, arithmetic and engine a run gets.

Torch is imported where something is computed, and not before: the command line and featstore.toml take the names of
engines from here.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from featstore.errors import BackboneError, ConfigError, DeviceLostError, suggest
from featstore.support import reason_of

if TYPE_CHECKING:
    import torch

    from featstore.backbones.card import Card
    from featstore.backbones.networks import Network
    from featstore.engines.engine import Engine

AUTO, EAGER = "auto", "eager"
GPU_BATCH = 32  # photos in one pass: 512 blocks keep a large GPU busy; a small one halves it


@dataclass(frozen=True)
class EngineCard:
    """The facts of an engine that are needed before it is imported."""

    source: str
    """`module:Class`; called with (network, card, device=, precision=) it gives an `Engine`."""
    device: str | None = None
    """The one type of device that it runs on, cpu or cuda; any if None."""
    package: str | None = None
    """What it needs besides PyTorch: an extra of featstore of the same name installs it."""
    fast: bool = False
    """Whether `auto` tries it before the eager one."""

    @property
    def installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def load(self) -> "Callable[..., Engine]":
        """Its class."""
        module, _, name = self.source.partition(":")
        engine: Callable[..., Engine] = getattr(import_module(module), name)
        return engine


ENGINES = {
    EAGER: EngineCard("featstore.engines.eager:EagerEngine"),
    "compile": EngineCard("featstore.engines.compiled:CompiledEngine"),
    "openvino": EngineCard("featstore.engines.openvino:OpenVinoEngine", device="cpu", package="openvino", fast=True),
    "fused": EngineCard("featstore.engines.fused:FusedEngine", device="cuda", fast=True),
    "graph": EngineCard("featstore.engines.graph:GraphEngine", device="cuda", fast=True),
}
"""By name. Adding an engine is a file of its own and an entry here; commands, help and featstore.toml follow."""


def engine_names() -> list[str]:
    """What may be asked for: `auto`, and every engine."""
    return [AUTO, *ENGINES]


@dataclass(frozen=True)
class Runtime:
    """What an extraction is asked to run on; what is not said is chosen to fit the machine.

    Raises:
        ConfigError: an unknown engine, or a number below 1.
    """

    device: str = AUTO
    """auto, cpu, cuda, cuda:1, ..."""
    engine: str | None = None
    """That of the configuration, or else the fastest that is here, if None."""
    batch: int | None = None
    """Photos in one pass: 1 on a CPU, where more is no faster."""
    workers: int = 0
    """Processes of their own, one for each GPU; 0 computes in this one."""
    scheduler: str | None = None
    """The address of a Dask scheduler whose workers compute."""

    def __post_init__(self) -> None:
        if self.engine is not None and self.engine not in engine_names():
            raise ConfigError(f"unknown --engine {self.engine!r}; {suggest(self.engine, engine_names())}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch {self.batch}: at least one photo has to be in a pass")
        if self.workers < 0:
            raise ConfigError(f"--workers {self.workers}: a number of processes, or 0 to compute in this one")
        if self.workers and self.scheduler is not None:
            raise ConfigError("--workers starts processes here, --scheduler uses those of others; name one of them")

    @property
    def distributed(self) -> bool:
        """Whether other processes compute."""
        return bool(self.workers) or self.scheduler is not None


@dataclass(frozen=True)
class Hardware:
    """What a run has been given: a device, the engine asked for, and how many photos go into one pass."""

    device: "torch.device"
    engine: str = AUTO
    batch: int = 1

    @classmethod
    def choose(cls, runtime: Runtime, *, worker: str | None = None) -> "Hardware":
        """What fits the machine where nothing is said.

        Args:
            worker: the name of the Dask worker that this process is.

        Raises:
            ConfigError: the device or the engine cannot be had here.
        """
        device, engine = choose_device(runtime.device, worker=worker), runtime.engine or AUTO
        if engine != AUTO:
            _check_engine(engine, device)
        return cls(device, engine, runtime.batch or (GPU_BATCH if device.type == "cuda" else 1))

    def current(self) -> AbstractContextManager[object]:
        """Inside, this device is the one that CUDA's calls mean, in this thread."""
        import torch

        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def load(
        self,
        network: "Network",
        card: "Card",
        *,
        precision: str,
        shapes: Sequence[tuple[int, ...]],
        note: Callable[[str], object],
    ) -> "Engine":
        """The engine for a network, held against the eager one on each shape of blocks before it is trusted.

        Args:
            network: becomes the engine's own.
            shapes: (T, height, width, 3), of the blocks that it will be given.
            note: is told why another engine than the fastest was taken.

        Raises:
            BackboneError: the network, or the engine that was asked for, cannot run on them.
            DeviceLostError: the device computes no more.
            torch.OutOfMemoryError: they do not fit into the device's memory.
        """
        import torch

        from featstore.engines.engine import compare, try_network, until_lost

        how: dict[str, Any] = {"device": self.device, "precision": precision}
        plain = ENGINES[EAGER].load()(network, card, **how)
        for _, *block in shapes:
            try_network(network, card, (1, *block), **how)
        if getattr(network.net, "by_formula", False):
            return plain  # nothing in it that an engine could make faster
        if self.engine == AUTO and not getattr(network.net, "recordable", True):
            note(
                f"no engine can record backbone {card.name!r}, as what it does depends on the photo; "
                "the eager one runs it"
            )
            return plain
        for name, after in pairwise([*self._faster(), EAGER]):
            engine: Engine | None = None  # the one before lets go of its memory
            try:
                with until_lost(self.device):
                    engine = ENGINES[name].load()(network, card, **how)
                    for shape in shapes:
                        compare(engine, plain, shape, **how)
                return engine
            except DeviceLostError:
                raise
            except Exception as error:  # of whatever kind the engine's own library raises
                if after == EAGER and isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = f"engine {name} cannot run backbone {card.name!r}: {str(error).strip().partition(chr(10))[0]}"
                if self.engine != AUTO:
                    raise BackboneError(f"{reason}; say --engine eager") from error
                note(f"{reason}; {'the eager one runs it' if after == EAGER else f'engine {after} is tried next'}")
        return plain

    def _faster(self) -> list[str]:
        """The engines to try before the eager one."""
        if self.engine != AUTO:
            return [name for name in (self.engine,) if name != EAGER]
        here = (None, self.device.type)
        return [name for name, card in ENGINES.items() if card.fast and card.device in here and card.installed]


def choose_device(name: str, *, worker: str | None = None) -> "torch.device":
    """`auto` is the GPU if there is one.

    Args:
        worker: the name of the Dask worker that this process is. Those of a machine with several GPUs take one each,
            by the number that their names end in, where none is named.

    Raises:
        ConfigError: no such device, or CUDA was asked for and there is none.
    """
    import torch

    cuda = torch.cuda.is_available()
    if name == AUTO:
        name = "cuda" if cuda else "cpu"
    if name == "cuda" and cuda and worker is not None:
        name = f"cuda:{_number(worker) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; say auto, cpu, cuda or cuda:0") from error
    instead = "say --device cpu" if worker is None else "stop that worker, or say --device auto or cpu"
    if device.type == "cuda":
        if not cuda:
            raise ConfigError(f"device {name!r} was asked for, but {why_no_gpu()}; or {instead}")
        if (device.index or 0) >= (n := torch.cuda.device_count()):
            there = "cuda:0" if n == 1 else f"cuda:0 to cuda:{n - 1}"
            raise ConfigError(
                f"device {name!r} was asked for, and PyTorch finds {there}; say one of them, or {instead}"
            )
    try:
        (torch.ones(1, device=device) + 1).cpu()  # a PyTorch built for other GPUs has no kernel for the sum
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = reason_of(error).partition(". ")[0]
        raise ConfigError(
            f"device {name!r} cannot be used with PyTorch {torch.__version__}: {why}; {instead}"
        ) from error
    if device == torch.device("cuda"):
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def why_no_gpu() -> str:
    """Where PyTorch finds no CUDA GPU: that, why it may be, and what to do."""
    import torch

    if torch.version.cuda is None:
        why = f"{torch.__version__} is built without CUDA; install one that has it, from pytorch.org"
    elif (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        why = f"CUDA_VISIBLE_DEVICES={visible!r} names none; unset it, or say a number that `nvidia-smi -L` lists"
    else:
        why = f"there is none, or its driver is older than CUDA {torch.version.cuda}, as `nvidia-smi` shows"
    return f"PyTorch finds no CUDA GPU: {why}"


def describe_device(device: "torch.device") -> str:
    """The GPU's name, or `cpu`."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def default_precision(device: "torch.device") -> str:
    """What new tensors are computed in unless something else is asked for."""
    return "fp16" if device.type == "cuda" else "fp32"


def _number(worker: str) -> int:
    """The number of a worker among those of its machine: the digits that its name ends in."""
    digits = None if "://" in worker else re.search(r"\d+$", worker)
    return int(digits.group()) if digits else 0


def _check_engine(name: str, device: "torch.device") -> None:
    """Refuse an engine that is not installed, or that does not run on a device."""
    card = ENGINES[name]
    if not card.installed:
        raise ConfigError(f"engine {name} is not installed; pip install 'featstore[{card.package}]'")
    if card.device not in (None, device.type):
        runs = {
            "cpu": f"runs on the CPU, the device is {device}; say --device cpu",
            "cuda": f"needs a CUDA GPU, the device is {device}; say --engine auto",
        }
        raise ConfigError(f"engine {name} {runs[card.device]}")
