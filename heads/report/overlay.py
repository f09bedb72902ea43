"""Overlays: drawings of a head's attention in single photos, for a paper or a slide (`heads attention`)."""

import difflib
import io
import itertools
import math
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from featstore.files import replacing
from featstore.support import harmless, suggest
from heads.errors import RunError
from heads.report.attention import SIZE, AttentionMaps, Weights, attention_maps, block_grid, draw_map, photo_of
from heads.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = "png"
"""Of the files, and their suffix; any that matplotlib writes, as pdf or svg."""
DPI = 150
PANEL = 3.3
"""Width in inches of the photo and of each map."""
WIDTH = 600
"""Pixels of a photo's width that are drawn."""
TALLEST = 1.3
"""Heights of panels, in widths, at most; a photo that is taller is drawn narrower."""
TITLE, NOTE, BAR, KEY = 0.35, 0.1, 0.26, 0.75
"""Heights in inches of a panel's title, the note below the panels, a task's bar, and what stands above the bars."""
COLUMNS = 4
NARROW = 0.06
"""Weights below this have no room for their number in the bar."""
LONG = 40
"""Names with more letters lose some in the middle."""
ROOM = 90
"""Letters in a line of the key."""
INK, QUIET = "#1c2530", "#64707d"


def draw(run: Run, photos: Sequence[str], out: Path, *, task: str | None = None) -> list[Path]:
    """Draw each photo beside the map of its blocks' weights, above the backbones' weights; out of fold.

    A map for each task is drawn of a head that weighs blocks for each task (`amtl-single`, `amtl-swapped`), or else
    one, the mean over the tasks.

    Args:
        photos: paths as in the run, or files in the run's photo folder.
        out: a folder; a file for each photo is written there, named after it.
        task: only this one's map and weights.

    Returns:
        The files, in the order of `photos`.

    Raises:
        RunError: the head attends to nothing, the task or a photo is unknown (with a suggestion), or a photo was
            never tested; or a file cannot be written.
    """
    found = _attention_maps(run)
    chosen = _tasks(run, task)
    rows = [_row(run, found, photo) for photo in photos]
    files = _files(out, [found.paths[row] for row in rows])
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, row in dict(zip(files, rows, strict=True)).items():
            drawn = _drawing(run, found, row, chosen, single=task is not None)
            with replacing(file) as opened:
                opened.write(drawn)
    except OSError as error:
        raise RunError(f"cannot write drawings to {out}: {error.strerror}") from error
    return files


# ------------------------------------------------------------------------------------------ what to draw


def _attention_maps(run: Run) -> AttentionMaps:
    found = None if run.attention is None else attention_maps(run.attention)
    if found is None or (found.blocks is None and found.backbones is None and found.glimpses is None):
        raise RunError(
            f"{run.folder} is a run of {run.config.system!r}, which weighs no blocks or backbones; "
            "amtl and its variants do, on several of them, and ram shows where it looks"
        )
    return found


def _tasks(run: Run, task: str | None) -> dict[str, int]:
    numbers = {name: number for number, name in enumerate(run.config.target.tasks)}
    if task is None:
        return numbers
    if task not in numbers:
        raise RunError(f"{run.folder} has no task {task!r}; {suggest(task, numbers)}")
    return {task: numbers[task]}


def _row(run: Run, found: AttentionMaps, photo: str) -> int:
    """Where a photo stands among those that were tested."""
    places = {_key(path): row for row, path in enumerate(found.paths)}
    names = [_key(photo)]
    if run.config.photos is not None:
        file, folder = Path(photo).resolve(), Path(run.config.photos).resolve()
        if file.is_relative_to(folder):
            names.append(_key(file.relative_to(folder).as_posix()))
    for name in names:
        if name in places:
            return places[name]
    if run.attention is not None and {*names} & {_key(path) for path in run.attention.paths}:
        raise RunError(f"{photo!r} was only trained on in {run.folder}; drawings are of photos that were tested")
    near = difflib.get_close_matches(photo, found.paths, n=1, cutoff=0.5)
    known = near or [*found.paths[:3], "..."]
    said = f"did you mean {near[0]!r}?" if near else f"it has {len(found.paths)}: {', '.join(known)}"
    raise RunError(f"{run.folder} has no photo {photo!r}; {said}")


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace("\\", "/").removeprefix("./"))


def _files(out: Path, paths: Sequence[str]) -> list[Path]:
    """A file for each photo; the folders of its path become part of the name."""
    files: dict[str, Path] = {}
    for path in paths:
        path = path.replace("\0", "")
        parts = [part for part in PurePosixPath(path).with_suffix("").parts if part not in ("/", "..")]
        taken = {file.name.casefold() for name, file in files.items() if name != path}
        names = ("-".join(parts) + (f"-{i}" if i else "") + f".{FORMAT}" for i in itertools.count())
        files[path] = out / next(name for name in names if name.casefold() not in taken)
    return [files[path] for path in paths]


# ------------------------------------------------------------------------------------------ how it is drawn


def _drawing(run: Run, found: AttentionMaps, row: int, tasks: Mapping[str, int], *, single: bool) -> bytes:
    path = found.paths[row]
    photo = photo_of(run, path)
    if photo is not None:
        photo = photo.resize((WIDTH, max(1, round(WIDTH * photo.height / photo.width))), Image.Resampling.BILINEAR)
    width, height = SIZE if photo is None else photo.size
    maps = _maps(found, row, tasks, single=single)
    n_bars = 0 if found.backbones is None else len(tasks)
    columns = min(COLUMNS, 1 + len(maps))
    lines = math.ceil((1 + len(maps)) / columns)
    panel = PANEL * min(height / width, TALLEST)
    noted = found.blocks is not None or found.glimpses is not None
    heights = [lines * (panel + TITLE) + NOTE * noted, *([n_bars * BAR + KEY] if n_bars else [])]
    figure = Figure(figsize=(max(columns, 2) * PANEL, sum(heights)), dpi=DPI, layout="constrained")
    top, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat
    panels = top.subplots(lines, columns, squeeze=False).flat
    first = next(panels)
    _draw_photo(first, photo, path)
    if found.glimpses is not None:
        _draw_glimpses(first, found.glimpses[row] * [width, height, width, height])
        top.supxlabel("where it looked, one after another", fontsize=8, color=INK)
    top_weight = max((float(weights.max()) for weights in maps.values()), default=1.0)
    if found.blocks is not None:
        said = f"% of weight by block; {100 / found.blocks.shape[-1]:.3g} if even; colours from 0 to the largest "
        top.supxlabel(f"{said}of this photo, {100 * top_weight:.1f}", fontsize=8, color=INK)
    for title, weights in maps.items():
        _draw_weights(next(panels), photo, weights.reshape(block_grid(run, len(weights))), top_weight, title)
    for unused in panels:
        unused.set_axis_off()
    if found.backbones is not None:
        names = [str(segment["name"]) for segment in run.config.tensors[0]["segments"]]
        _draw_bars(below[0].subplots(), found.backbones[row, list(tasks.values())], list(tasks), names)
    return _saved(figure)


def _maps(found: AttentionMaps, row: int, tasks: Mapping[str, int], *, single: bool) -> dict[str, Weights]:
    """The maps (T,) by what they are of."""
    if found.blocks is None:
        return {}
    if found.by_task or single or len(tasks) == 1:
        return {name: found.blocks[row, number] for name, number in tasks.items()}
    return {"mean over the tasks": found.blocks[row].mean(axis=0)}


def _draw_photo(axes: "Axes", photo: Image.Image | None, path: str) -> None:
    axes.set_axis_off()
    axes.imshow(Image.new("RGB", SIZE, "#f6f8fa") if photo is None else photo)
    axes.set_title(_short(path), fontsize=8, color=INK, parse_math=False)
    if photo is None:
        axes.text(SIZE[0] / 2, SIZE[1] / 2, "photo not found", ha="center", va="center", fontsize=8, color=QUIET)


def _draw_glimpses(axes: "Axes", edges: Weights) -> None:
    """A numbered frame around what each glimpse (T, 4) shows, from dark for the first to bright for the last."""
    limits = axes.axis()
    colours = colormaps["plasma"](np.linspace(0.35, 0.95, len(edges)))
    outline = [withStroke(linewidth=2.2, foreground=INK)]
    for number, ((left, top, right, bottom), colour) in enumerate(zip(edges, colours, strict=True), 1):
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.4)
        axes.add_patch(frame)
        axes.text(
            left, top, str(number), ha="left", va="top", fontsize=8, color=colour, path_effects=outline, clip_on=True
        )
    axes.axis(limits)


def _draw_weights(axes: "Axes", photo: Image.Image | None, weights: Weights, top: float, title: str) -> None:
    axes.set_axis_off()
    drawn = draw_map(weights / top, photo)
    axes.imshow(drawn)
    axes.set_title(_short(title), fontsize=8, color=INK, parse_math=False)
    height, width = drawn.height / weights.shape[0], drawn.width / weights.shape[1]
    outline = [withStroke(linewidth=1.8, foreground=INK)]
    for (line, column), weight in np.ndenumerate(weights):
        axes.text(
            (column + 0.5) * width, (line + 0.5) * height, f"{100 * weight:.1f}",
            ha="center", va="center", fontsize=8, color="white", path_effects=outline,
        )  # fmt: skip


def _draw_bars(axes: "Axes", weights: Weights, tasks: Sequence[str], backbones: Sequence[str]) -> None:
    """One bar for each task (K, B), parted by the weights of its backbones."""
    starts = np.zeros(len(tasks))
    names = [_short(name) for name in backbones]
    colours = colormaps["Set2"]
    for i, name in enumerate(names):
        bars = axes.barh(
            range(len(tasks)), weights[:, i], left=starts, height=0.8, color=colours(i % colours.N), label=name
        )
        numbers = [f"{100 * weight:.1f}" if weight >= NARROW else "" for weight in weights[:, i]]
        axes.bar_label(bars, numbers, label_type="center", fontsize=7.5, color=INK)
        starts += weights[:, i]
    axes.set_yticks(range(len(tasks)), [_short(task) for task in tasks], fontsize=8, color=INK, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    columns = max(1, ROOM // (max(map(len, names)) + 6))
    key = axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize=8, frameon=False,
        title="% of weight by backbone", title_fontsize=8,
    )  # fmt: skip
    for text in key.get_texts():
        text.set_parse_math(False)


def _saved(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that no font here has are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format=FORMAT)
    return stream.getvalue()


def _short(name: str) -> str:
    name = harmless(name)
    return name if len(name) <= LONG else f"{name[: LONG // 2 - 1]}…{name[-LONG // 2 :]}"
