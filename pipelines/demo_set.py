"""The demo set: varied crops of photographs that lie inside installed packages, labelled by measuring their pixels.

Nothing is downloaded and nobody rated anything: the set is for trying the whole road from photographs to a
report in minutes.

FOLDER/
    photos/<source>/<source>-NN.jpg   the crops
    labels.csv                        path, source, and one column per measure on the scale 1 to 7
    README.md                         what the labels mean and whose the photographs are
    demo.json                         the recipe that made this folder
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata, resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from featstore.support import Progress, no_progress

SEED = 20
JPEG_QUALITY = 95
MIN_WIDTH, MIN_HEIGHT = 300, 200
MAX_WIDTH = 800
ASPECTS = (16 / 9, 3 / 2, 4 / 3, 1.0, 4 / 5)
N_CANDIDATES = 30
BLURRED_SHARE = 0.35
SCALE = (1.0, 7.0)
SCALE_PERCENTILES = (1.0, 99.0)

Size = tuple[int, int]
Box = tuple[int, int, int, int]
Measure = Callable[[NDArray[np.uint8]], float]
INSTALL = "run: pip install featstore[demo]"

README = """\
# Demo set

{n_photos} crops of {n_sources} photographs. The labels are **measured from the pixels, not rated by people**.
A head trained here shows that the whole road works, and how well frozen features know simple visual facts.
It says nothing about taste, emotion or any other human judgement.

Made by `python -m pipelines demo`; nothing was downloaded. The photographs lie inside the installed
packages scikit-image and scikit-learn. Crops are JPEG of quality {quality}. Crops of one photograph overlap,
so cross-validation must keep them together: group by the column `source`. Every crop was given an exposure,
a strength of colour and sometimes a blur of its own, seeded, so that the measures vary within a photograph
too. Some photographs are grey; colour measures are the same for all their crops.

## Labels

Each label is a measure of the decoded JPEG, mapped linearly so that percentile {low:g} of the set becomes 1
and percentile {high:g} becomes 7, and clipped. The mapping uses the whole set, held-out folds included: it is
a choice of units, and harmless because the labels are measured. Y is luma between 0 and 1 (Rec. 709
weights); R, G and B lie between 0 and 255. The raw values that became 1 and 7 stand in brackets; the
sources of the formulas stand in `pipelines/measures.py`.

{measures}

## Photographs

Origins and licences as the packages state them (docstrings of `skimage.data`, README of
`sklearn.datasets.images`).

| source | crops | file | origin | licence |
|---|---|---|---|---|
{sources}
"""


class DemoError(Exception):
    """The demo set cannot be made here; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """A photograph inside an installed package, and how many crops to take of it."""

    name: str
    package: str
    file: str
    n_crops: int
    origin: str
    licence: str


@dataclass(frozen=True, slots=True)
class DemoSet:
    """Where the demo set lies and how large it is."""

    photos: Path
    labels: Path
    n_photos: int
    n_sources: int


_skimage = partial(Source, package="skimage.data")
_sklearn = partial(Source, package="sklearn.datasets.images")

# fmt: off
SOURCES = (
    _skimage("astronaut", file="astronaut.png", n_crops=8,
             origin="Eileen Collins, NASA Great Images, https://flic.kr/p/r9qvLn", licence="public domain"),
    _skimage("brick", file="brick.png", n_crops=6,
             origin="CC0Textures, Bricks25", licence="CC0"),
    _skimage("camera", file="camera.png", n_crops=8,
             origin="Lav Varshney", licence="CC0"),
    _skimage("chelsea", file="chelsea.png", n_crops=6,
             origin="Stefan van der Walt", licence="CC0"),
    _sklearn("china", file="china.jpg", n_crops=9,
             origin="danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/",
             licence="CC BY 2.0; cropped here"),
    _skimage("clock", file="clock_motion.png", n_crops=4,
             origin="Stefan van der Walt", licence="public domain"),
    _skimage("coffee", file="coffee.png", n_crops=8,
             origin="Rachel Michetti, courtesy of Pikolo Espresso Bar", licence="CC0"),
    _skimage("coins", file="coins.png", n_crops=5,
             origin="Brooklyn Museum Collection, archives image 51611", licence="no known restrictions"),
    _sklearn("flower", file="flower.jpg", n_crops=9,
             origin="vultilion, https://www.flickr.com/photos/vultilion/6056698931/ "
                    "(the README of scikit-learn links there and names danielbuechele)",
             licence="CC BY 2.0; cropped here"),
    _skimage("grass", file="grass.png", n_crops=5,
             origin="linolafett, DeviantArt, Grass 01", licence="CC0"),
    _skimage("gravel", file="gravel.png", n_crops=5,
             origin="CC0Textures, Gravel04", licence="CC0"),
    _skimage("hubble", file="hubble_deep_field.jpg", n_crops=9,
             origin="NASA, HubbleSite release 2012-37", licence="public domain"),
    _skimage("ihc", file="ihc.png", n_crops=7,
             origin="Center for Microscopy and Molecular Imaging", licence="no known restrictions"),
    _skimage("moon", file="moon.png", n_crops=6,
             origin="not stated by scikit-image", licence="not stated by scikit-image"),
    # The right view of this stereo pair shows the same scene, so it would be the same group; one is enough.
    _skimage("motorcycle", file="motorcycle_left.png", n_crops=9,
             origin="Middlebury stereo benchmark 2014, Scharstein et al., GCPR 2014",
             licence="not stated by scikit-image"),
    _skimage("retina", file="retina.jpg", n_crops=8,
             origin="Mikael Häggström, Wikimedia Commons", licence="CC0"),
    _skimage("rocket", file="rocket.jpg", n_crops=8,
             origin="SpaceX, https://www.flickr.com/photos/spacexphotos/16511594820/",
             licence="public domain"),
)
# fmt: on


def prepare(folder: Path | str, *, on_progress: Progress | None = None) -> DemoSet:
    """Make the demo set in `folder`, or return at once if this recipe has made it there before.

    `labels.csv` appears last and in one step, so a folder that has one is complete.

    Raises:
        DemoError: scikit-image or scikit-learn is missing or lacks a photograph, or `folder` holds photos or
            labels that the demo did not make.
    """
    folder = Path(folder)
    prepared = DemoSet(
        photos=folder / "photos",
        labels=folder / "labels.csv",
        n_photos=sum(source.n_crops for source in SOURCES),
        n_sources=len(SOURCES),
    )
    recipe, version = folder / "demo.json", _version()
    if prepared.labels.exists() and _recorded_version(recipe) == version:
        return prepared
    _clear(prepared, recipe=recipe)
    _write(recipe, json.dumps({"version": version}) + "\n")
    table = _write_crops(prepared, on_progress=on_progress or no_progress)
    _write(folder / "README.md", _readme(table))
    _write(prepared.labels, _labels_csv(table))
    return prepared


def crop_boxes(source: Source, *, size: Size) -> list[Box]:
    """Boxes (left, top, right, bottom) of the crops of a photo of `size` (width, height), seeded by its name.

    Of many random boxes the one that overlaps least with those already taken is taken next, so that the
    crops of one photo differ in place and size. Source: Mitchell, Spectrally optimal sampling for
    distribution ray tracing, SIGGRAPH 1991.
    """
    rng = np.random.default_rng([SEED, zlib.crc32(source.name.encode())])
    boxes: list[Box] = []
    for _ in range(source.n_crops):
        candidates = [_random_box(rng, size=size) for _ in range(N_CANDIDATES)]
        boxes.append(min(candidates, key=lambda box: max((_overlap(box, b) for b in boxes), default=0.0)))
    return boxes


@dataclass(frozen=True, slots=True)
class _Table:
    """Crops (N), what was measured (T), and the raw values of it (N, T)."""

    paths: tuple[str, ...]
    measures: Mapping[str, Measure]
    raw: NDArray[np.float64]

    def ends(self) -> NDArray[np.float64]:
        """Raw values (2, T) that become the two ends of the scale."""
        ends: NDArray[np.float64] = np.percentile(self.raw, SCALE_PERCENTILES, axis=0)
        return ends

    def labels(self) -> NDArray[np.float64]:
        """Labels (N, T): the raw measures mapped linearly to the scale and clipped to it."""
        low, high = self.ends()
        share: NDArray[np.float64] = np.clip((self.raw - low) / (high - low), 0.0, 1.0)
        return SCALE[0] + share * (SCALE[1] - SCALE[0])


def _write_crops(prepared: DemoSet, *, on_progress: Progress) -> _Table:
    from pipelines.measures import MEASURES

    paths: list[str] = []
    raw: list[list[float]] = []
    for source in SOURCES:
        photo = _open(source)
        (prepared.photos / source.name).mkdir(parents=True)
        for number, box in enumerate(crop_boxes(source, size=photo.size), start=1):
            paths.append(f"{source.name}/{source.name}-{number:02}.jpg")
            crop = _written(_developed(photo.crop(box), name=paths[-1]), prepared.photos / paths[-1])
            raw.append([measure(crop) for measure in MEASURES.values()])
            on_progress("demo set", len(paths), prepared.n_photos)
    return _Table(paths=tuple(paths), measures=MEASURES, raw=np.array(raw))


def _open(source: Source) -> Image.Image:
    file = resources.files(source.package) / source.file
    try:
        with file.open("rb") as stream, Image.open(stream) as photo:
            return photo.convert("RGB")
    except FileNotFoundError as error:
        raise DemoError(f"{source.package} as installed here has no {source.file}; {INSTALL}") from error


def _developed(crop: Image.Image, *, name: str) -> Image.Image:
    """The crop with exposure, colour and focus of its own, seeded by its name.

    Without it nearly all that the labels tell is which photograph a crop is of, and with 17 photographs kept
    apart there would be nothing left to learn.
    """
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    exposed = ImageEnhance.Brightness(crop).enhance(float(np.exp(rng.uniform(-0.6, 0.5))))
    coloured = ImageEnhance.Color(exposed).enhance(float(rng.uniform(0.0, 2.0)))
    blurred = rng.random() < BLURRED_SHARE
    return coloured.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.7, 2.5)))) if blurred else coloured


def _written(crop: Image.Image, file: Path) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of the crop as anyone will read them back, after JPEG."""
    crop.save(file, "jpeg", quality=JPEG_QUALITY)
    with Image.open(file) as written:
        return np.asarray(written)


def _random_box(rng: np.random.Generator, *, size: Size) -> Box:
    aspects = [aspect for aspect in ASPECTS if _widths(aspect, size=size)]
    aspect = float(rng.choice(aspects))
    width = int(rng.choice(_widths(aspect, size=size)))
    height = round(width / aspect)
    left = int(rng.integers(size[0] - width, endpoint=True))
    top = int(rng.integers(size[1] - height, endpoint=True))
    return left, top, left + width, top + height


def _widths(aspect: float, *, size: Size) -> range:
    """Widths that a crop of this aspect may have in a photo of this size, none where it does not fit."""
    narrowest = max(MIN_WIDTH, math.ceil(MIN_HEIGHT * aspect))
    widest = min(MAX_WIDTH, size[0], math.floor(size[1] * aspect))
    return range(narrowest, widest + 1)


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (_area(a) + _area(b) - shared)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _version() -> str:
    """Digest of all that decides the bytes of the set: two modules, and the packages that they use."""
    digest = hashlib.sha256()
    for module in ("demo_set.py", "measures.py"):
        digest.update(Path(__file__).with_name(module).read_bytes())
    for package in ("numpy", "pillow", "scikit-image", "scikit-learn"):
        try:
            digest.update(f"{package}=={metadata.version(package)}\n".encode())
        except metadata.PackageNotFoundError as error:
            raise DemoError(f"the demo set needs {package}, which is not installed; {INSTALL}") from error
    return digest.hexdigest()


def _recorded_version(recipe: Path) -> str | None:
    try:
        return str(json.loads(recipe.read_text("utf-8"))["version"])
    except (OSError, ValueError, LookupError):
        return None


def _clear(prepared: DemoSet, *, recipe: Path) -> None:
    """Take away what an older or interrupted recipe made, and nothing that the demo did not make."""
    found = [path for path in (prepared.labels, prepared.photos) if path.exists()]
    if found and not recipe.exists():
        raise DemoError(f"{found[0]} was not made by the demo; move it away or name another folder")
    prepared.labels.unlink(missing_ok=True)
    if prepared.photos.exists():
        shutil.rmtree(prepared.photos)
    prepared.photos.mkdir(parents=True)


def _write(file: Path, text: str) -> None:
    """Write a file in one step: it is whole or not there."""
    partial_file = file.with_name(f".{file.name}.partial")
    partial_file.write_text(text, encoding="utf-8", newline="\n")
    partial_file.replace(file)


def _labels_csv(table: _Table) -> str:
    lines = [",".join(("path", "source", *table.measures))]
    for path, labels in zip(table.paths, table.labels(), strict=True):
        lines.append(",".join((path, path.partition("/")[0], *(f"{label:.3f}" for label in labels))))
    return "\n".join(lines) + "\n"


def _readme(table: _Table) -> str:
    measures = [
        f"- `{name}` ({low:.4g} to {high:.4g}): {_paragraph(measure)}"
        for (name, measure), low, high in zip(table.measures.items(), *table.ends(), strict=True)
    ]
    sources = [f"| {s.name} | {s.n_crops} | `{s.package}`, `{s.file}` | {s.origin} | {s.licence} |" for s in SOURCES]
    return README.format(
        n_photos=len(table.paths),
        n_sources=len(SOURCES),
        low=SCALE_PERCENTILES[0],
        high=SCALE_PERCENTILES[1],
        quality=JPEG_QUALITY,
        measures="\n".join(measures),
        sources="\n".join(sources),
    )


def _paragraph(measure: Measure) -> str:
    """First paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(measure) or "").partition("\n\n")[0].split())
