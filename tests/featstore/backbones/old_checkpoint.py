"""Checkpoints as PyTorch 0.2 on Python 2 saved them, such as those of Places365: written here, for none may be kept."""

import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class _Storage:
    """What stands for the numbers of a tensor, which follow behind the pickle."""

    def __init__(self, key: str, n: int) -> None:
        self.key, self.n = key, n


class _Saved:
    """A tensor as it was pickled then: a call of `_rebuild_tensor`, without gradients and hooks."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.parts = storage, 0, shape, stride

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor, self.parts


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Protocol 2 with the strings of Python 2: bytes without an encoding."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, text: str) -> None:
        encoded = text.encode("latin1")
        assert len(encoded) < 256
        self.write(pickle.SHORT_BINSTRING + struct.pack("<B", len(encoded)) + encoded)
        self.memoize(text)

    dispatch[str] = save_text

    def persistent_id(self, value: object) -> object:
        if isinstance(value, _Storage):  # saved on a GPU
            return "storage", torch.cuda.FloatStorage, value.key, "cuda:0", value.n, None
        return None


def save_as_python_2(state: Mapping[str, Tensor], file: Path, **beside: object) -> None:
    """A checkpoint of the ImageNet example of that time, of a network inside of `DataParallel`."""
    floats = {name: value.contiguous() for name, value in state.items() if value.is_floating_point()}
    saved = OrderedDict(
        (f"module.{name}", _Saved(_Storage(str(at), value.numel()), tuple(value.shape), value.stride()))
        for at, (name, value) in enumerate(floats.items())
    )
    keys = [str(at) for at in range(len(floats))]
    with file.open("wb") as out:
        for part in (MAGIC_NUMBER, PROTOCOL_VERSION, SYSTEM, {"state_dict": saved, **beside}, keys):
            _Python2Pickler(out, 2).dump(part)
        for value in floats.values():
            out.write(struct.pack("<q", value.numel()) + value.numpy().astype("<f4").tobytes())
