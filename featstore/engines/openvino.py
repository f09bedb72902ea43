"""OpenVINO: the fastest on a CPU, after a second of compiling.

The network is traced and handed to OpenVINO's own reader of PyTorch graphs. OpenVINO reports to its makers over the
network, as soon as it is imported; without its telemetry package it does not.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from featstore.backbones.card import Card
from featstore.backbones.networks import Network
from featstore.engines.engine import refusing
from featstore.errors import BackboneError

ANY = (-1, -1, -1, 3)  # blocks of any number and size
TYPES = {"fp32": "f32", "tf32": "f32", "bf16": "bf16", "fp16": "f16"}
LARGE_BYTES = (
    50_000_000  # weights; above, they are kept once for the shapes of all views, at a few per cent of the speed
)
CAPABILITY = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


class OpenVinoEngine:
    """CPU only. A half precision that the processor has no instructions for is computed in float32.

    Raises:
        ImportError: OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(self, network: Network, card: Card, *, device: torch.device, precision: str = "fp32") -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        if device.type != "cpu":
            raise BackboneError(f"engine openvino runs on the CPU here, not on {device}; say --engine graph or eager")
        self.card = card
        self._network: Network | None = network
        self._large = sum(each.numel() * each.element_size() for each in network.parameters()) > LARGE_BYTES
        self._core = openvino.Core()
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        wanted = TYPES[precision]
        self._settings = {
            "INFERENCE_PRECISION_HINT": wanted if CAPABILITY[wanted] in able else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # photos are decoded on the same cores
        }
        self._model: Any = None
        self._compiled: dict[tuple[int, ...], Any] = {}

    def run(self, blocks: Tensor) -> Sequence[Tensor]:
        shape = ANY if self._large else tuple(blocks.shape)
        with refusing(self.card, blocks):
            if shape not in self._compiled:
                self._compiled[shape] = self._compile(blocks, shape)
            # The result is a copy: OpenVINO writes the next one to the same place.
            features = self._compiled[shape](blocks.contiguous().numpy(), share_inputs=True)
        return [torch.from_numpy(features[index]) for index in range(len(features))]

    def release(self) -> None:
        self._compiled.clear()

    def _compile(self, blocks: Tensor, shape: tuple[int, ...]) -> Any:
        if self._network is not None:
            self._model, self._network = self._convert(self._network, blocks), None
        model = self._model.clone()
        model.reshape(list(shape))
        return self._core.compile_model(model, "CPU", self._settings)

    def _convert(self, network: Network, blocks: Tensor) -> Any:
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        # OpenVINO reads TorchScript best, which PyTorch would rather not make any more.
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            # Not on the blocks that the result will be checked with: what depends on pixels must show.
            traced = torch.jit.trace(network, torch.zeros_like(blocks), check_trace=False)  # type: ignore[no-untyped-call]
            decoder = TorchScriptPythonDecoder(traced, example_input=blocks)  # a name: OpenVINO does not keep it alive
            frontend = FrontEndManager().load_by_framework("pytorch")
            model = frontend.convert(frontend.load(decoder))
        model.inputs[0].get_node().set_element_type(openvino.Type.u8)
        model.validate_nodes_and_infer_types()
        return model
