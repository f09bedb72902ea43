"""CUDA graphs of a network whose convolutions normalise, add and cut off negative values by themselves.

Much of a convolutional network's time on a GPU goes into what follows a convolution: batch normalisation, a sum and a
ReLU each read and write all of its result once more. cuDNN does them while it convolves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from featstore.engines.engine import HALVES, untuned
from featstore.engines.graph import GraphEngine, Recordable

ATEN: Any = torch.ops.aten
CONVOLUTION, NORM = ATEN.conv2d.default, ATEN.batch_norm.default
ADDS = (ATEN.add.Tensor, ATEN.add_.Tensor)
RELUS = (ATEN.relu.default, ATEN.relu_.default)
ALIGNED = 8  # channels that cuDNN reads at once; it may have nothing for others


class FusedEngine(GraphEngine):
    """CUDA only, and half precision only: cuDNN has few such convolutions for float32."""

    name = "fused"

    def _prepare(self, blocks: Tensor) -> Recordable:
        if self._precision in HALVES:
            with untuned():
                fused, n_fused = fuse(self._network, blocks)
            if n_fused:
                return fused
        self.name = super().name  # there is nothing to fuse
        return self._network


def fuse(network: nn.Module, blocks: Tensor) -> tuple[fx.GraphModule, int]:
    """What a network does with blocks of this shape, in this arithmetic, and how many of its convolutions are fused.

    Call it in inference mode, in which PyTorch shows operations before it parts them.
    """
    recorder = _Recorder(blocks)
    with recorder:
        features: Sequence[Tensor] = network(blocks)
    recorder.graph.output(tuple(recorder.node_of(each) for each in features))
    n_fused = sum(_fuse(recorder, node) for node in list(recorder.graph.nodes) if _is(node, CONVOLUTION))
    for node in list(recorder.graph.nodes):
        if node.op == "get_attr" and not node.users:
            recorder.graph.erase_node(node)
    return fx.GraphModule(recorder.root, recorder.graph), n_fused


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation that is computed within.

    `torch.fx` traces the code of a network, which many of timm's do not allow; this needs only that the same code does
    the same with other pixels. The engine's check against the eager one finds out where it does not.
    """

    def __init__(self, blocks: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.root = fx.Graph(), nn.Module()
        self._nodes = WeakTensorKeyDictionary()
        self._nodes[blocks] = self.graph.placeholder("blocks")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tree_map(self._named, (args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        node = self.graph.call_function(func, *given)
        if isinstance(result, Tensor):
            self._note(result, node)
        elif isinstance(result, tuple | list):
            for i, each in enumerate(result):
                if isinstance(each, Tensor):
                    self._nodes[each] = (node, i)
        return result

    def node_of(self, value: Tensor) -> fx.Node:
        found = self._nodes.get(value)  # type: ignore[no-untyped-call]
        if found is None:  # a weight
            return self.constant(value)
        if isinstance(found, tuple):  # one of several results, noted when it is used
            found = self._note(value, self.graph.call_function(_item, found))
        return found  # type: ignore[no-any-return]

    def constant(self, value: Tensor) -> fx.Node:
        name = f"value{len(self.root._buffers)}"
        self.root.register_buffer(name, value)
        return self._note(value, self.graph.get_attr(name))

    def value_of(self, node: Any) -> Tensor | None:
        """What a node is whatever the blocks: a weight, maybe rounded."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            value: Tensor = getattr(self.root, str(node.target))
            return value
        if _is(node, ATEN.to.dtype) and (before := self.value_of(node.args[0])) is not None:
            return before.to(*node.args[1:])
        return None

    def _named(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, Tensor) else value

    def _note(self, value: Tensor, node: fx.Node) -> fx.Node:
        node.meta["like"] = (value.shape, value.dtype)
        self._nodes[value] = node
        return node


def _fuse(recorder: _Recorder, conv: fx.Node) -> bool:
    """Put what follows a convolution into it, if that ends with a ReLU and nobody else looks at what lies between."""
    defaults = (None, [1, 1], [0, 0], [1, 1], 1)
    given: tuple[Any, ...] = (*conv.args, *defaults[len(conv.args) - 2 :])
    values, weight_node, bias_node, stride, padding, dilation, groups = given
    weight, bias = recorder.value_of(weight_node), recorder.value_of(bias_node)
    if weight is None or (bias is None and bias_node is not None) or groups != 1 or weight.shape[1] % ALIGNED:
        return False
    between, last, norm = [conv], conv, _only_user(conv, (NORM,))
    if norm is not None:
        if norm.args[5]:  # it normalises by the pixels at hand
            return False
        between.append(norm)
        last = norm
    others: tuple[Any, ...] = ()
    if (add := _only_user(last, ADDS)) is not None:
        others = tuple(each for each in add.args if each is not last)
        alike = len(others) == 1 and isinstance(others[0], fx.Node) and others[0].meta["like"] == last.meta["like"]
        if not alike or add.kwargs:
            return False
        between.append(add)
        last = add
    relu = _only_user(last, RELUS)
    if relu is None:
        return False
    if norm is None:
        bias = weight.new_zeros(len(weight)) if bias is None else bias
    else:
        weight, bias = _fold(weight, bias, [recorder.value_of(each) for each in norm.args[1:5]], norm.args[7])
    with recorder.graph.inserting_before(relu):
        given = (values, recorder.constant(weight), recorder.constant(bias), stride, padding, dilation, *others)
        fused = recorder.graph.call_function(_convolve, given)
    relu.replace_all_uses_with(fused)
    fused.meta = relu.meta
    for node in (relu, *reversed(between)):
        recorder.graph.erase_node(node)
    return True


def _fold(weight: Tensor, bias: Tensor | None, norm: Sequence[Tensor | None], eps: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that normalises as well, rounded as its weight was."""
    gain, shift, mean, variance = norm
    assert mean is not None
    assert variance is not None
    scale = (variance.double() + eps).rsqrt()
    if gain is not None:
        scale = scale * gain
    moved = ((0 if bias is None else bias) - mean.double()) * scale
    if shift is not None:
        moved = moved + shift
    scaled = (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype)
    return scaled.contiguous(memory_format=torch.channels_last), moved.to(weight.dtype)


def _convolve(
    values: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any, dilation: Any, other: Tensor | None = None
) -> Tensor:
    """The positive part of a convolution, or of its sum with something else."""
    if not values.is_cuda:  # for tests
        result = F.conv2d(values, weight, bias, stride, padding, dilation)
        return (result if other is None else result + other).relu()
    if other is None:
        return torch.cudnn_convolution_relu(values, weight, bias, stride, padding, dilation, 1)
    return torch.cudnn_convolution_add_relu(values, weight, other, 1.0, bias, stride, padding, dilation, 1)


def _item(results: Sequence[Tensor], i: int) -> Tensor:
    return results[i]


def _is(node: Any, function: Callable[..., Any]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is function


def _only_user(node: fx.Node, functions: Sequence[Callable[..., Any]]) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and any(_is(users[0], each) for each in functions) else None
