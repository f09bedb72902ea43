"""Attention maps: the weight of each block and each backbone of a photo, and what a page draws of them."""

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from heads.report import photos
from heads.runs.attention import GLIMPSES, Attention
from heads.runs.run import Run

Weights = NDArray[np.float64]

N_PHOTOS = 6
SIZE = (600, 400)
"""Width and height in pixels of what stands for a missing photo."""
SHOWN_SIZE = (480, 320)
"""Those at which the gallery shows photos, side by side."""
MOST_NUMBERS = 64
"""Blocks of a map whose weights are printed in it."""
COLOURS = colormaps["viridis"]
OPACITY = 0.6
CONTRAST = 0.6
"""Of the grey photo under a map: less lets the colours be compared, more shows the photo."""
GREY = 128
"""The ground of a map whose photo is missing, and of the colour bar."""


@dataclass(frozen=True)
class AttentionMaps:
    """How much each block, and each backbone, of an image counts in the features that a task gets.

    A head that weighs blocks first and then backbones gives task k the features  g_k = sum_ij b_k[i] a[i,j] f[i,j].
    The weight of block j is then sum_i b_k[i] a[i,j], that of backbone i is b_k[i] (Ghosal and Kolekar). The other
    order is alike.
    """

    paths: list[str]
    """Of the images that were tested."""
    blocks: Weights | None
    """(N, K, T), sums to 1 over T; None if there is a single block, or no weight of blocks."""
    backbones: Weights | None
    """(N, K, B), sums to 1 over B; None if there is a single backbone, or no weight of backbones."""
    by_task: bool
    """Whether the head weighs blocks for each task; if not, the maps of the tasks differ by their backbones only."""
    glimpses: Weights | None = None
    """(N, T, 4), the edges of each glimpse, as `ATTENTION_AXES` says; None of a head that does not look about."""


def attention_maps(attention: Attention) -> AttentionMaps:
    """The weights of the images that were tested, whether the head weighs blocks or backbones first."""
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
    return AttentionMaps(
        paths=[path for path, known in zip(attention.paths, tested, strict=True) if known],
        blocks=_several(blocks),
        backbones=_several(backbones),
        by_task="blocks" not in arrays,
        glimpses=arrays.get(GLIMPSES),
    )


@dataclass(frozen=True)
class Picture:
    """A photo, its map, and what the map says in words."""

    name: str
    """The photo's path, or what the map is of."""
    photo: str | None
    """None if it cannot be read, has changed since, or lies outside the photo folder."""
    map: str
    """A pixel for each block, to be laid over the photo or to stand alone."""
    words: str
    numbers: list[tuple[float, float, str]]
    """Percent of weight of each block, and where its middle is, in percent of width and height; none of many blocks."""


@dataclass(frozen=True)
class Gallery:
    """The photos that are shown, the averages over all, and the colours' meaning."""

    pictures: list[Picture]
    averages: list[Picture]
    """Over all photos and tasks, and then, of heads that weigh blocks for each task, of each task."""
    n_images: int
    grid: tuple[int, int]
    """Rows and columns."""
    top: float
    """The weight that the last colour of photos stands for; the first stands for 0."""
    ends: tuple[float, float]
    """The weights that the first and the last colour of averages stand for."""
    colours: list[str]
    """Evenly spaced from 0 to `top`, as CSS."""
    unit: str
    """What the photos are grouped by; one photo of each group is shown before a second one of any."""

    @property
    def even(self) -> float:
        """The weight of each block where none is preferred."""
        return 1 / math.prod(self.grid)

    @property
    def n_missing(self) -> int:
        return sum(picture.photo is None for picture in self.pictures)


def gallery(run: Run, found: AttentionMaps) -> Gallery | None:
    """The photos whose attention is most peaked, each with its map; None if there is only one block."""
    if found.blocks is None:
        return None
    weights: NDArray[np.float64] = found.blocks.mean(axis=1)  # (N, T)
    groups, unit = _groups(run, found.paths)
    chosen = most_peaked(weights, found.paths, groups)
    averages = {"all tasks" if found.by_task else "": weights.mean(axis=0)}
    if found.by_task and len(run.config.target.tasks) > 1:
        averages |= dict(zip(run.config.target.tasks, found.blocks.mean(axis=0), strict=True))
    top = float(weights[chosen].max())
    # Averages are nearly even: on the colours of single photos all of their blocks would look alike.
    low, high = (float(end(list(averages.values()))) for end in (np.min, np.max))
    grid = block_grid(run, weights.shape[1])

    def picture(name: str, row: NDArray[np.float64], ends: tuple[float, float], photo: Image.Image | None) -> Picture:
        shares = (row.reshape(grid) - ends[0]) / ((ends[1] - ends[0]) or 1)
        shown = None if photo is None else photos.jpeg(photo.resize(SHOWN_SIZE, Image.Resampling.BILINEAR))
        return Picture(name, shown, _blocks_as_pixels(shares), _in_words(row, grid), _numbers(row, grid))

    return Gallery(
        pictures=[picture(found.paths[i], weights[i], (0.0, top), photo_of(run, found.paths[i])) for i in chosen],
        averages=[picture(name, row, (low, high), None) for name, row in averages.items()],
        n_images=len(weights),
        grid=grid,
        top=top,
        ends=(low, high),
        colours=[_css(share) for share in np.linspace(0, 1, 11)],
        unit=unit,
    )


def most_peaked(weights: NDArray[np.float64], paths: Sequence[str], groups: Sequence[str]) -> list[int]:
    """The rows of `weights` (N, T) of least entropy: the first of every group, then the second, and so on."""
    entropy = -(weights * np.log(np.clip(weights, 1e-12, None))).sum(axis=1)
    seen: Counter[str] = Counter()
    ranked = []
    for row in sorted(range(len(paths)), key=lambda row: (entropy[row], paths[row])):
        ranked.append((seen[groups[row]], row))
        seen[groups[row]] += 1
    return [row for _, row in sorted(ranked, key=lambda each: each[0])[:N_PHOTOS]]


LARGEST_SIDE = 4096  # pixels


def photo_of(run: Run, path: str) -> Image.Image | None:
    """The part of a photo that the networks of a run saw; None if it is not where it was or not what it was."""
    photo = photos.photo_of(run, path)
    if photo is None:
        return None
    photo.thumbnail((LARGEST_SIDE, LARGEST_SIDE))  # it is shown small, and Pillow refuses to cut very large ones
    return _as_seen(photo, _view_of(run))


def block_grid(run: Run, n_blocks: int) -> tuple[int, int]:
    """Rows and columns of the blocks: as the view says, or else as near to a square as they go."""
    try:
        rows, columns = _view_of(run)["grid"]
        if rows * columns == n_blocks:
            return int(rows), int(columns)
    except (KeyError, TypeError, ValueError):
        pass
    rows = next(n for n in range(math.isqrt(n_blocks), 0, -1) if n_blocks % n == 0)
    return rows, n_blocks // rows


def _view_of(run: Run) -> Mapping[str, Any]:
    """The facts of the view that the first segment of a run's features says; none if it says none."""
    try:
        return dict(run.config.tensors[0]["segments"][0]["identity"]["view"])
    except (IndexError, KeyError, TypeError, ValueError):
        return {}


def _as_seen(photo: Image.Image, view: Mapping[str, Any]) -> Image.Image:
    """What is left of a photo when a view has cut out its middle; black where it reaches further than the photo."""
    try:
        crop = view["crop"]
        fraction, (width, height) = float(crop["fraction"]), view["size"]
        across, down = photo.width * fraction / width, photo.height * fraction / height
        if crop["mode"] != "squash":  # the photo keeps its shape
            across = down = min(across, down) if crop["mode"] == "center" else max(across, down)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return photo
    if not (0 < across * width <= LARGEST_SIDE and 0 < down * height <= LARGEST_SIDE):
        return photo
    left, top = (photo.width - across * width) / 2, (photo.height - down * height) / 2
    return photo.crop((round(left), round(top), round(left + across * width), round(top + down * height)))


def draw_map(shares: NDArray[np.float64], photo: Image.Image | None) -> Image.Image:
    """Colours for shares (rows, columns) of the top weight, over the photo in grey."""
    ground = Image.new("L", SIZE if photo is None else photo.size, GREY)
    if photo is not None:
        ground = Image.blend(ground, photo.convert("L"), CONTRAST)
    colours = Image.fromarray(_colours(shares))
    return Image.blend(ground.convert("RGB"), colours.resize(ground.size, Image.Resampling.NEAREST), OPACITY)


def _blocks(arrays: dict[str, Weights], backbones: Weights | None) -> Weights | None:
    """(N, K, T): the mean over the backbones of their weights of blocks, weighted as the task weighs the backbones."""
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
    """None of a single block or backbone: its weight is always 1."""
    return None if weights is None or weights.shape[-1] < 2 or not len(weights) else weights


def _blocks_as_pixels(shares: NDArray[np.float64]) -> str:
    """A data URI of a pixel in its colour for each of the shares (rows, columns) of the top weight."""
    stream = io.BytesIO()
    Image.fromarray(_colours(shares)).save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _colours(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.asarray((COLOURS(shares)[..., :3] * 255).round(), np.uint8)


def _numbers(weights: NDArray[np.float64], grid: tuple[int, int]) -> list[tuple[float, float, str]]:
    rows, columns = grid
    if rows * columns > MOST_NUMBERS:
        return []
    return [
        (100 * (column + 0.5) / columns, 100 * (row + 0.5) / rows, f"{100 * weight:.1f}")
        for (row, column), weight in np.ndenumerate(weights.reshape(grid))
    ]


def _groups(run: Run, paths: Sequence[str]) -> tuple[list[str], str]:
    """What each photo belongs to, and what that is called: its group, or else its folder."""
    if run.config.group is None:
        return [str(PurePosixPath(path).parent) for path in paths], "folder"
    by_path: Mapping[str, object] = dict(zip(run.folds["path"], run.folds["group"], strict=True))
    return [str(by_path.get(path, path)) for path in paths], run.config.group


def _css(share: float) -> str:
    red, green, blue = (round(OPACITY * 255 * each + (1 - OPACITY) * GREY) for each in COLOURS(float(share))[:3])
    return f"rgb({red} {green} {blue})"


def _in_words(weights: NDArray[np.float64], grid: tuple[int, int]) -> str:
    row, column = divmod(int(weights.argmax()), grid[1])
    return f"largest weight {weights.max():.3f}, in row {row + 1}, column {column + 1}"
