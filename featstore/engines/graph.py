"""CUDA graphs: the kernels of a network are recorded once for each shape of blocks and started all at once.

A network of hundreds of small kernels over small blocks leaves a fast GPU waiting for Python; a graph does not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featstore.backbones.card import Card
from featstore.backbones.networks import Network
from featstore.engines.engine import arithmetic, placed, refusing

Recordable = Callable[[Tensor], tuple[Tensor, ...]]
WARM_UPS = 3  # what cuDNN and the allocator choose has to be chosen before a recording


class GraphEngine:
    """CUDA only. What is captured keeps its memory; the graphs of one engine share a pool."""

    name = "graph"

    def __init__(self, network: Network, card: Card, *, device: torch.device, precision: str = "fp32") -> None:
        self.card, self._device, self._precision = card, device, precision
        self._network = placed(network, device, precision)
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._recorded: dict[tuple[int, ...], _Recorded] = {}

    def run(self, blocks: Tensor) -> Sequence[Tensor]:
        shape = tuple(blocks.shape)
        with refusing(self.card, blocks):
            if shape not in self._recorded:
                self._recorded[shape] = self._record(blocks)
            recorded = self._recorded[shape]
            with torch.inference_mode():
                recorded.blocks.copy_(blocks)
                recorded.graph.replay()
                # The next replay writes to the same place.
                return [each.clone() for each in recorded.features]

    def release(self) -> None:
        torch.cuda.synchronize(self._device)  # replays may be on their way
        self._recorded.clear()
        self._memory = torch.cuda.graph_pool_handle()  # nothing can be recorded into a pool whose graphs are gone

    def _record(self, blocks: Tensor) -> "_Recorded":
        with torch.cuda.device(self._device), arithmetic(self._precision, self._device):
            # Not the blocks that the result will be checked with.
            static = torch.zeros_like(blocks)
            computing = torch.cuda.current_stream()
            self._stream.wait_stream(computing)
            with torch.cuda.stream(self._stream):
                network = self._prepare(static)
                for _ in range(WARM_UPS):
                    network(static)
            computing.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads, as of a Dask worker, may use the device meanwhile.
            try:
                with torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"):
                    features = network(static)
            finally:
                torch.cuda.set_stream(computing)  # a recording that fails leaves its own stream behind
        return _Recorded(graph, static, features, network)

    def _prepare(self, blocks: Tensor) -> Recordable:
        """What is to be recorded for blocks of this shape."""
        return self._network


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    blocks: Tensor
    features: tuple[Tensor, ...]
    network: Recordable
    """The recording reads its weights."""
