"""attention.zarr: what an attentive head looked at; writing it, and reading it within the bounds of its run.

It is read here and not by Zarr, which would take any shape, codec and type, and unpack whatever comes: each array has
one document that `write_attention` gives it, up to its chunks, and each chunk unpacks to what that says.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.files import read_file
from heads.errors import RunError
from heads.runs.reading import not_ours, read_json, shortened

if TYPE_CHECKING:
    from heads.runs.config import RunConfig

ATTENTION_AXES: Mapping[str, tuple[str, ...]] = {
    "blocks": ("image", "backbone", "block"),
    "blocks_by_task": ("image", "task", "backbone", "block"),
    "backbones": ("image", "task", "backbone"),
    "backbones_of_blocks": ("image", "block", "backbone"),
    "blocks_of_tasks": ("image", "task", "block"),
    "glimpses": ("image", "glimpse", "edge"),
}
"""What a head may have looked at; the weights sum to 1 over the last axis.

`glimpses` are no weights: left, top, right and bottom edge of what was looked at, one after another, from 0 to 1 across
the stored photo; they may lie beyond it.
"""
GLIMPSES = "glimpses"
MOST_WEIGHTS = 1 << 28
"""Of all arrays together, 1 GiB."""
MOST_CHUNKS = 100_000
_OVERHEAD = 1 << 16
"""Bytes by which a packed chunk may be larger than what it unpacks to."""


@dataclass(frozen=True)
class Attention:
    """What an attentive head looked at, out of fold, averaged over the repeats; NaN for images never tested.

    Glimpses are those of the first repeat, as there is no mean of where several models look.
    """

    paths: list[str]
    arrays: Mapping[str, NDArray[np.float32]]
    """Names and axes are those of `ATTENTION_AXES`."""


def write_attention(arrays: Mapping[str, NDArray[np.float32]], paths: Sequence[str], place: Path) -> None:
    """Write the arrays, and the paths of their images; what an earlier session left there goes, a link unfollowed.

    Raises:
        OSError: the disk refuses.
    """
    import zarr

    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
    group = zarr.create_group(str(place), zarr_format=3)
    column = group.create_array("path", shape=(len(paths),), dtype="string", dimension_names=("image",))
    column[:] = np.array(list(paths), dtype=object)
    for name, values in arrays.items():
        group.create_array(name, data=values, dimension_names=ATTENTION_AXES[name])


def read_attention(place: Path, config: "RunConfig", paths: Sequence[str]) -> Attention:
    """The arrays of a run.

    Args:
        paths: of its images, as its folds name them: the rows of every array.

    Raises:
        RunError: an array is not of the shape that the run's configuration says, not as heads writes it, or damaged.
    """
    documents = {
        name: read_json(place / name / "zarr.json") for name in ATTENTION_AXES if (place / name / "zarr.json").exists()
    }
    shapes = {name: _shape(document, place / name / "zarr.json") for name, document in documents.items()}
    _check_shapes(shapes, place, config, len(paths))
    return Attention(
        list(paths),
        {name: _read(place / name, documents[name], shape) for name, shape in shapes.items()},
    )


def _shape(document: Any, file: Path) -> tuple[int, ...]:
    shape = document.get("shape") if isinstance(document, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise RunError(not_ours(file, f"shape is {shortened(shape)}"))
    return tuple(shape)


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], place: Path, config: "RunConfig", n_images: int) -> None:
    """
    Raises:
        RunError: a shape is not what the configuration says, or two of them contradict each other, or they are too
            large.
    """
    sizes = {"image": n_images, "task": len(config.target.tasks), "edge": 4}
    if config.layouts[0] == "stack" and len(config.shapes[0]) == 3:
        sizes |= {"backbone": config.shapes[0][0], "block": config.shapes[0][1]}
    for name, shape in shapes.items():
        axes = ATTENTION_AXES[name]
        expected = [sizes.setdefault(axis, size) for axis, size in zip(axes, shape, strict=False)]
        if len(shape) != len(axes) or list(shape) != expected:
            said = ", ".join(f"{size} {axis}s" for axis, size in zip(axes, expected, strict=False))
            raise RunError(not_ours(place / name, f"its shape is {shortened(shape)}, and the run has {said}"))
    if (total := sum(map(prod, shapes.values()))) > MOST_WEIGHTS:
        raise RunError(f"{place} has {total:,} weights, and at most {MOST_WEIGHTS:,} are read")


def _read(folder: Path, document: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    chunk = _chunk_shape(document, folder / "zarr.json", shape)
    values = np.zeros(shape, np.float32)  # chunks of zeros only are not written
    counts = [-(-size // each) for size, each in zip(shape, chunk, strict=True)]
    if prod(counts) > MOST_CHUNKS:
        raise RunError(f"{folder} has {prod(counts):,} chunks, and at most {MOST_CHUNKS:,} are read")
    for index in product(*map(range, counts)):
        file = folder.joinpath("c", *map(str, index))
        if (found := _read_chunk(file, chunk)) is not None:
            place = tuple(slice(i * each, (i + 1) * each) for i, each in zip(index, chunk, strict=True))
            here = values[place]
            here[...] = found[tuple(map(slice, here.shape))]
    return values


def _chunk_shape(document: Mapping[str, Any], file: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of an array that is all that heads writes: float32, in regular chunks, little-endian and packed by Zstandard."""
    try:
        chunk = document["chunk_grid"]["configuration"]["chunk_shape"]
        expected = {
            "zarr_format": 3,
            "node_type": "array",
            "data_type": "float32",
            "fill_value": 0.0,
            "chunk_grid.name": "regular",
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        }
        found = {**document, "chunk_grid.name": document["chunk_grid"]["name"]}
        for name, value in expected.items():
            if found.get(name) != value:
                raise RunError(not_ours(file, f"{name} is {shortened(found.get(name))}, not {value}"))
        codecs = [each["name"] for each in document["codecs"]]
        endian = document["codecs"][0]["configuration"]["endian"]
    except (KeyError, TypeError, IndexError) as error:
        raise RunError(not_ours(file, f"{error} is missing or of another type")) from error
    if codecs != ["bytes", "zstd"] or endian != "little" or document.get("storage_transformers"):
        raise RunError(not_ours(file, f"codecs are {shortened(document['codecs'])}, not bytes (little) and zstd"))
    if (
        not isinstance(chunk, list)
        or len(chunk) != len(shape)
        or not all(type(each) is int and 0 < each <= size for each, size in zip(chunk, shape, strict=True))
    ):
        raise RunError(not_ours(file, f"the shape of its chunks is {shortened(chunk)}, of an array of {shape}"))
    return tuple(chunk)


def _read_chunk(file: Path, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    from numcodecs.zstd import decompress

    values = np.empty(shape, "<f4")
    try:
        decompress(read_file(file, values.nbytes + _OVERHEAD), values)  # into so many bytes, or not at all
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return values
