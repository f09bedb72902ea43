"""Which device, which arithmetic and which engine a run gets."""

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from featstore.backbones.card import Card
from featstore.backbones.networks import Network
from featstore.engines.compiled import CompiledEngine
from featstore.engines.eager import EagerEngine
from featstore.engines.engine import Engine, refusing
from featstore.engines.graph import GraphEngine
from featstore.engines.openvino import OpenVinoEngine
from featstore.engines.runtime import Runtime
from featstore.errors import BackboneError, ConfigError
from featstore.identity import POOLINGS, TOLERANCE

GPU_BATCH = 32  # photos in one pass: 512 blocks keep a large GPU busy; a small one halves it


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one.

    Raises:
        ConfigError: no such device, or CUDA was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; say auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for and PyTorch finds no CUDA GPU; say --device cpu")
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {error}") from error
    if device == torch.device("cuda"):
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def describe_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def default_precision(device: torch.device) -> str:
    """What new tensors are computed in unless something else is asked for."""
    return "fp16" if device.type == "cuda" else "fp32"


@dataclass(frozen=True)
class Hardware:
    """What a run has been given: a device, the engine asked for, and how many photos go into one pass."""

    device: torch.device
    engine: str = "auto"
    batch: int = 1

    @classmethod
    def choose(cls, runtime: Runtime) -> "Hardware":
        """What fits the machine where nothing is said.

        Raises:
            ConfigError: the device or the engine cannot be had here.
        """
        device = choose_device(runtime.device)
        if runtime.engine == "openvino" and importlib.util.find_spec("openvino") is None:
            raise ConfigError("engine openvino is not installed; pip install 'featstore[openvino]'")
        if runtime.engine == "openvino" and device.type != "cpu":
            raise ConfigError(f"engine openvino runs on the CPU, the device is {device}; say --device cpu")
        if runtime.engine == "graph" and device.type != "cuda":
            raise ConfigError(f"engine graph needs a CUDA GPU, the device is {device}; say --engine auto")
        return cls(device, runtime.engine, runtime.batch or (GPU_BATCH if device.type == "cuda" else 1))

    def current(self) -> AbstractContextManager[object]:
        """Inside, this device is the one that CUDA's calls mean, in this thread."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def load(
        self,
        network: Network,
        card: Card,
        *,
        precision: str,
        shapes: Sequence[tuple[int, ...]],
        note: Callable[[str], object],
    ) -> Engine:
        """The engine for a network, held against the eager one on each shape of blocks before it is trusted.

        Args:
            network: becomes the engine's own.
            shapes: (T, height, width, 3), of the blocks that it will be given.
            note: is told why another engine than the fastest was taken.

        Raises:
            BackboneError: the network, or the engine that was asked for, cannot run on them.
            torch.OutOfMemoryError: they do not fit into the device's memory.
        """
        plain = EagerEngine(network, card, device=self.device, precision=precision)
        for _, *block in shapes:
            _try(network, card, _noise((1, *block), self.device))
        if self.engine == "auto" and not getattr(network.net, "recordable", True):
            note(
                f"no engine can record backbone {card.name!r}, as what it does depends on the photo; "
                "the eager one runs it"
            )
            return plain
        for name in self._faster():
            try:
                engine = ENGINES[name](network, card, device=self.device, precision=precision)
                for shape in shapes:
                    _compare(engine, plain, _noise(shape, self.device), precision)
                return engine
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of whatever kind the engine's own library raises
                reason = f"engine {name} cannot run backbone {card.name!r}: {str(error).strip().partition(chr(10))[0]}"
                if self.engine != "auto":
                    raise BackboneError(f"{reason}; say --engine eager") from error
                note(f"{reason}; the eager one runs it")
        return plain

    def _faster(self) -> list[str]:
        """The engines to try before the eager one."""
        if self.engine != "auto":
            return [name for name in (self.engine,) if name != EagerEngine.name]
        if self.device.type == "cuda":
            return [GraphEngine.name]
        installed = self.device.type == "cpu" and importlib.util.find_spec("openvino") is not None
        return [OpenVinoEngine.name] if installed else []


ENGINES: dict[str, Callable[..., Engine]] = {
    "eager": EagerEngine,
    "compile": CompiledEngine,
    "graph": GraphEngine,
    "openvino": OpenVinoEngine,
}
"""Adding an engine is a file of its own, an entry here, and its name in `runtime.ENGINES` and `configfile`."""


def _try(network: Network, card: Card, block: Tensor) -> None:
    with refusing(card, block), torch.inference_mode():
        network(block)


def _compare(engine: Engine, plain: Engine, blocks: Tensor, precision: str) -> None:
    ends = [0, -1] if len(blocks) > 1 else [0]
    blocks[-1] //= 8  # two pictures of noise are alike for a network; a dark one is another
    features, expected = engine.run(blocks, POOLINGS), plain.run(blocks[ends], POOLINGS)
    for pooling, theirs in expected.items():
        ours = features[pooling][ends]
        apart = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
        if not apart <= TOLERANCE[precision]:
            raise BackboneError(f"its features are {apart:.1e} from the eager ones, more than {TOLERANCE[precision]}")


def _noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
