"""How much of what a head makes of an image comes from each block and each backbone, whichever it attends to first."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.runs.run import Attention

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Looks:
    """The weight of each (backbone, block) of an image in what a task is told, summed over one or the other.

    A head that weighs blocks first and then backbones tells task k  g_k = sum_ij b_k[i] a[i,j] f[i,j];  the weight of
    block j is sum_i b_k[i] a[i,j], that of backbone i is b_k[i] (Ghosal and Kolekar). The other order is alike.
    """

    paths: list[str]
    """Of the images that were tested."""
    blocks: Weights | None
    """(N, K, T), sums to 1 over T; None if there is a single block, or no weight of blocks."""
    backbones: Weights | None
    """(N, K, B), sums to 1 over B; None if there is a single backbone, or no weight of backbones."""
    by_task: bool
    """Whether the head weighs blocks for each task; if not, the maps of the tasks differ by their backbones only."""


def looks(attention: Attention) -> Looks:
    arrays = {name: np.asarray(array, np.float64) for name, array in attention.arrays.items()}
    tested = np.ones(len(attention.paths), np.bool_)
    for array in arrays.values():
        tested &= np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    arrays = {name: array[tested] for name, array in arrays.items()}
    if "blocks_of_tasks" in arrays:
        of_tasks = arrays["blocks_of_tasks"]
        blocks: Weights | None = of_tasks
        backbones: Weights | None = np.einsum("nkt,ntb->nkb", of_tasks, arrays["backbones_of_blocks"])
    else:
        backbones = arrays.get("backbones")
        blocks = _blocks(arrays, backbones)
    return Looks(
        paths=[path for path, known in zip(attention.paths, tested, strict=True) if known],
        blocks=_several(blocks),
        backbones=_several(backbones),
        by_task="blocks" not in arrays,
    )


def _blocks(arrays: dict[str, Weights], backbones: Weights | None) -> Weights | None:
    """(N, K, T): the weights of the blocks, each backbone's counted as much as the task counts the backbone."""
    if "blocks_by_task" in arrays:
        by_task = arrays["blocks_by_task"]
    elif "blocks" in arrays:
        by_task = arrays["blocks"][:, None]
    else:
        return None
    if backbones is None:
        means: Weights = by_task.mean(axis=2)
        return means
    weighted: Weights = np.einsum(
        "nkb,nkbt->nkt", backbones, np.broadcast_to(by_task, (*backbones.shape, by_task.shape[-1]))
    )
    return weighted


def _several(weights: Weights | None) -> Weights | None:
    """Nothing is said by the weight of the only one there is."""
    return None if weights is None or weights.shape[-1] < 2 or not len(weights) else weights
