"""Weights files of a run (safetensors): their headers are read and held against the model before anything is loaded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from featstore.files import open_file
from featstore.support import size
from heads.errors import RunError
from heads.runs.reading import shortened

if TYPE_CHECKING:
    from torch import Tensor, nn

HEADER_BYTES = 1 << 24
"""The most that the header of a file may have, 16 MiB: names and shapes, and the card."""

Kinds = Mapping[str, tuple[str, tuple[int, ...]]]
"""By name, the type of a tensor as safetensors spells it, and its shape."""


class Header(NamedTuple):
    """What a file says of itself."""

    kinds: Kinds
    metadata: Mapping[str, str]


def read_header(file: Path) -> Header:
    """What a weights file holds; nothing of it is loaded.

    Raises:
        FileNotFoundError: it is not there.
        RunError: it is not a file, or not safetensors, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open_file(file) as stored:
            n_bytes = int.from_bytes(stored.read(8), "little")
        if n_bytes > HEADER_BYTES:
            found = f"a header of {size(n_bytes)}, and at most {size(HEADER_BYTES)} are read"
            raise RunError(f"weights {file} cannot be read: {found}")
        with safe_open(file, framework="pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            kinds = {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}
            return Header(kinds, tensors.metadata() or {})
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"weights {file} cannot be read: {error}") from error


def kinds_of(tensors: "Mapping[str, Tensor]") -> Kinds:
    """What a file of these tensors would say of them."""
    return {name: (_spelt(value), tuple(value.shape)) for name, value in tensors.items()}


def without_memory(build: "Callable[[], nn.Module]") -> "nn.Module":
    """A model whose parameters have shapes and no values: it takes no memory, however large its options make it."""
    import torch

    with torch.device("meta"):
        return build()


def difference(expected: Kinds, found: Kinds) -> str | None:
    """In what a file is not what a model expects, in words.

    A size of 0 in what is expected stands for any: an estimator keeps as many images as it was fitted to.
    """
    for name in [*expected, *found]:
        if name not in found:
            return f"it lacks {shortened(name)}"
        if name not in expected:
            return f"it has {shortened(name)}, which the head has not"
        (kind, shape), (its_kind, its_shape) = expected[name], found[name]
        same = len(shape) == len(its_shape) and all(a in (0, b) for a, b in zip(shape, its_shape, strict=True))
        if kind != its_kind or not same:
            return f"{shortened(name)} is {its_kind} {its_shape} there, and {kind} {shape} by the run's options"
    return None


def bytes_of(kinds: Kinds) -> int:
    """What the tensors of a header take in memory."""
    from math import prod

    return sum(prod(shape) * _BYTES.get(kind, 8) for kind, shape in kinds.values())


def load(file: Path) -> "dict[str, Tensor]":
    """The tensors of a file, all of whose values are numbers.

    Raises:
        RunError: it cannot be read, or has a value that is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise RunError(f"weights {file} cannot be read: {error}") from error
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise RunError(f"weights {file}: {shortened(name)} has values that are no numbers; train again")
    return tensors


_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def _spelt(value: "Tensor") -> str:
    import torch

    names = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
        torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    }  # fmt: skip
    return names.get(value.dtype, str(value.dtype))
