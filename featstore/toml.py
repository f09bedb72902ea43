"""featstore.toml on the disk: reading it into a `Config`, and writing a commented one to begin with."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticKnownError

from featstore.backbones import PACKAGED, WeightsPolicy, find_card
from featstore.backbones.sources import PYTHON
from featstore.backbones.weights import OWN_CODE
from featstore.config import AMTL_WIDTH, CACHE, Config, LabelsConfig, TensorSpec
from featstore.engines import ENGINES, engine_names
from featstore.errors import ConfigError, suggest
from featstore.files import read_file
from featstore.photos.augmentation import Augmentation
from featstore.photos.decoding import BYTES_A_PIXEL, MAX_MEGAPIXELS
from featstore.photos.views import MODEL, VIEWS, View
from featstore.support import as_path, is_scale, parse_store, size

FILE_NAME = "featstore.toml"
LIMIT = 1 << 20
"""The most that is read of it, 1 MiB."""
GROUPS_BY_PATH = ("name", "folder")
"""What rows can be kept together by that no column of the label table says."""


def find_config(folder: Path | str = ".") -> Config:
    """The configuration of a folder: its featstore.toml, or the defaults if it has none."""
    file = as_path(folder) / FILE_NAME
    return read_config(file) if file.exists() else Config()


def read_config(file: Path | str) -> Config:
    """Read a featstore.toml; paths in it are relative to its folder.

    Raises:
        ConfigError: it is not TOML, or a key or value in it does not make sense; names the key.
    """
    file = as_path(file)
    try:
        raw = tomllib.loads(read_file(file, LIMIT).decode())
        parsed = _File.model_validate(raw)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    except RecursionError:
        raise ConfigError(f"{file} cannot be read: its lists or tables are nested too deep") from None
    except ValidationError as error:
        raise ConfigError(_explain(file, error)) from error
    return _to_config(parsed, file)


def write_config(
    file: Path | str = FILE_NAME,
    *,
    photos: Path | str,
    labels: Path | str | None = None,
    tasks: Sequence[str] = (),
    scale: tuple[float, float] | None = None,
    group: str | None = None,
    exist_ok: bool = False,
) -> None:
    """Write a commented featstore.toml; never over an existing one.

    Args:
        exist_ok: whether one of the same photos may be there already; it is left as it is.

    Raises:
        ConfigError: the file exists already, or cannot be written.
    """
    file, photos, labels = as_path(file), Path(photos), None if labels is None else Path(labels)
    if exist_ok and file.is_file():
        there = read_config(file).photos
        if there is not None and there.resolve() == (file.parent / as_path(photos)).resolve():
            return
        raise ConfigError(f"{file} exists already and is about the photos in {there}; edit it, or use another folder")
    text = _TEMPLATE.format(
        photos=_quote(photos.as_posix()),
        labels="" if labels is None else _LABELS_TEMPLATE.format(
            file=_quote(labels.as_posix()),
            tasks=f"tasks = [{', '.join(map(_quote, tasks))}]" if tasks else '# tasks = ["valence", "arousal"]',
            scale=f"scale = [{_number(scale[0])}, {_number(scale[1])}]" if scale else "# scale = [1, 7]",
            group=f"group = {_quote(group)}" if group else '# group = "name"',
        ),
        packaged=", ".join(map(_quote, PACKAGED)),
        width=AMTL_WIDTH,
        engines=", ".join(name for name in ENGINES if name != "openvino"),
        max_megapixels=MAX_MEGAPIXELS,
        most_memory=size(MAX_MEGAPIXELS * 1e6 * BYTES_A_PIXEL),
    )  # fmt: skip
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} exists already; edit it, or remove it and run this again") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Augment(_Section):
    copies: int | None = None
    seed: int | None = None
    crop: float | None = None
    blur: float | None = None
    brightness: float | None = None
    rotation: float | None = None


class _View(_Section):
    size: tuple[int, int] = (600, 400)
    grid: tuple[int, int] = (1, 1)
    interpolation: str = "bilinear"
    augment: _Augment | None = None
    block: tuple[int, int] | None = None


class _Tensor(_Section):
    layout: Literal["stack", "concat", "pixels"]
    segments: tuple[str, ...]
    view: str | None = None
    width: int | None = None


class _Backbone(_Section):
    weights: str | None = None
    batch_norm_eps: float | None = None


class _Labels(_Section):
    file: Path
    path_column: str = "path"
    tasks: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None
    group: str | None = None

    @field_validator("scale")
    @classmethod
    def _check_scale(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not is_scale(*scale):
            raise ValueError("the first end has to be below the second")
        return scale


class _File(_Section):
    photos: Path | None = None
    store: str = "cache/features.zarr"
    reuse: str | tuple[str, ...] = ()
    runs: Path = CACHE / "runs"
    weights: Path = CACHE / "weights"
    hub: bool = False
    dtype: Literal["float16", "float32"] = "float16"
    compress: Literal["zstd", "blosc"] | None = None
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    engine: str = "auto"
    max_megapixels: float = Field(MAX_MEGAPIXELS, gt=0)
    views: dict[str, _View] = {}
    tensors: dict[str, _Tensor] = {}
    backbones: dict[str, _Backbone] = {}
    labels: _Labels | None = None

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, engine: str) -> str:
        if engine not in engine_names():
            *names, last = map(repr, engine_names())
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(names)} or {last}"})
        return engine


def _to_config(parsed: _File, file: Path) -> Config:
    base = file.parent
    _refuse_code(parsed, file)
    # A misspelt section would be passed over, and other weights used than the user meant. A network of another source
    # may be known by its files only, which are looked for later.
    backbones = {}
    for said, section in parsed.backbones.items():
        name = said if ":" in said else find_card(said).name
        if name in backbones:
            raise ConfigError(f"{file}: two sections of backbone {name!r}; keep one")
        backbones[name] = section
    named = {
        name: each.weights
        if each.weights == OWN_CODE or each.weights.startswith("random:")
        else str(base / Path(each.weights).expanduser())
        for name, each in backbones.items()
        if each.weights is not None
    }
    if MODEL in parsed.views:
        raise ConfigError(f"{file}, views.{MODEL}: each network has its own view of this name; choose another name")
    views = {name: _to_view(name, each, file) for name, each in parsed.views.items()}
    for name in parsed.tensors:
        if not name.isidentifier():
            raise ConfigError(f"{file}: tensor name {name!r} should be letters, digits and underscores")
    return Config(
        file=file,
        photos=None if parsed.photos is None else base / parsed.photos.expanduser(),
        store=parse_store(parsed.store, base),
        reuse=tuple(parse_store(each, base) for each in _as_tuple(parsed.reuse)),
        runs=base / parsed.runs.expanduser(),
        weights=WeightsPolicy(base / parsed.weights.expanduser(), named, parsed.hub),
        batch_norm_eps={
            name: each.batch_norm_eps for name, each in backbones.items() if each.batch_norm_eps is not None
        },
        views={**VIEWS, **views},
        tensors=tuple(
            TensorSpec(name, each.layout, each.segments, each.width, each.view) for name, each in parsed.tensors.items()
        ),
        labels=None
        if parsed.labels is None
        else LabelsConfig(
            base / parsed.labels.file.expanduser(),
            parsed.labels.path_column,
            parsed.labels.tasks,
            parsed.labels.scale,
            parsed.labels.group,
        ),
        dtype=parsed.dtype,
        compress=parsed.compress,
        precision=parsed.precision,
        engine=parsed.engine,
        max_megapixels=parsed.max_megapixels,
    )


def _refuse_code(parsed: _File, file: Path) -> None:
    """A file may come with the folder of somebody else: what runs code is said on the command line alone."""
    said = [text for tensor in parsed.tensors.values() for text in tensor.segments]
    said += [name for name, section in parsed.backbones.items() if section.weights is not None]
    if code := next((text for text in said if text.startswith(f"{PYTHON}:")), None):
        raise ConfigError(
            f"{file} names {code!r}, which is code; code is run only if the command names it: take it out of the file, "
            "and say --backbones, --tensor or --weights with it if you trust it"
        )


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _to_view(name: str, view: _View, file: Path) -> View:
    try:
        augmentation = None if view.augment is None else Augmentation(**view.augment.model_dump(exclude_none=True))
        rows, columns = view.grid
        return View(view.size, rows, columns, view.interpolation, augmentation, view.block)
    except ConfigError as error:
        raise ConfigError(f"{file}, views.{name}: {error}") from error


def _explain(file: Path, error: ValidationError) -> str:
    lines = []
    for each in error.errors():
        where = ".".join(str(part) for part in each["loc"])
        if each["type"] == "extra_forbidden":
            lines.append(f"  - {where}: unknown key; {suggest(str(each['loc'][-1]), _keys_beside(each['loc']))}")
        else:
            lines.append(f"  - {where}: {each['msg']} (found {each.get('input')!r})")
    return f"{file} does not make sense:\n" + "\n".join(lines)


def _keys_beside(place: tuple[int | str, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "views": _View, "tensors": _Tensor, "backbones": _Backbone, "labels": _Labels,
    }  # fmt: skip
    model = _File if len(place) == 1 else sections.get(str(place[0]), _File)
    if len(place) > 3 and place[2] == "augment":
        model = _Augment
    return list(model.model_fields)


def _quote(text: str) -> str:
    """A TOML string; JSON's are the same but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _number(value: float) -> str:
    """Every digit of it, and no point where none is needed."""
    return str(int(value)) if value == int(value) else repr(value)


_TEMPLATE = """\
# Settings of `featstore` and `heads` for this folder. Paths are relative to this file.

photos = {photos}
store = "cache/features.zarr"   # the features; zarr, xarray and TensorStore can read them
# reuse = "s3://bucket/team"    # copy features from here before computing: a shared repository, a store, or a list
weights = "cache/weights"       # folder for weights files, named BACKBONE.safetensors or BACKBONE.pth
runs = "cache/runs"             # folder for the results of `heads train`
hub = false                     # true: download missing weights from the Hugging Face hub
dtype = "float16"               # of the stored features; float32 takes twice the space
# compress = "zstd"             # or "blosc", for new tensors: a quarter smaller or more, but much slower to read
# precision = "fp32"            # or tf32, bf16, fp16 [as the tensor began; for a new one fp32 on a CPU, fp16 on a GPU]
# engine = "openvino"           # or {engines} [the fastest that is installed]
# max_megapixels = {max_megapixels:g}          # larger photos are not read; one of these takes {most_memory} or more
{labels}
# A view says which part of a photo a backbone sees. Six are built in:
#   model: the picture as the authors of each network give it to the network
#   whole: the photo, resized to 600x400
#   grid: the same, cut into 4 x 4 blocks of 150x100
#   square: the photo, resized to 256x256
#   centre: the middle 224x224 of square
#   augmented: four augmented copies of the whole photo, each rotated, cropped, blurred, and brighter or darker
# [views.fine]
# size = [800, 800]             # width, height
# grid = [8, 8]                 # rows, columns
# block = [224, 224]            # resize each block to this width and height [no resizing]
# [views.copies]
# size = [600, 400]
# augment = {{ copies = 8, seed = 1, crop = 0.2, blur = 1.5, brightness = 0.25, rotation = 10 }}

# A tensor joins segments. A segment is BACKBONE[/LAYER][:POOLING][@VIEW], as in resnet50/layer3:max@model; a pooling is
# own, avg, max, cls, tokens or logits [own]. `featstore backbones` lists the backbones.
#   layout = "stack": (image, backbone, block, feature); pads each segment with zeros to `width`; default view: grid
#   layout = "concat": (image, feature); joins the segments at their own widths; default view: whole
#   layout = "pixels": (image, y, x, channel), 8 bits; has one segment, pixels@VIEW; default view: whole
# The segment imported/NAME means the features that `featstore import NAME` brought in.
[tensors.amtl]
layout = "stack"
segments = [{packaged}]
width = {width}

[tensors.mtl]
layout = "concat"
segments = [{packaged}]

# [backbones.legacy_xception]
# weights = "weights/legacy_xception.safetensors"   # or "random:0": random weights, and the store records that
# batch_norm_eps = 1e-3
"""

_LABELS_TEMPLATE = """
[labels]
file = {file}
path_column = "path"            # the column with the photo's path, relative to `photos`
{tasks}
{scale}
{group}
# tasks: the columns to learn [every numeric column]
# scale: the lowest and highest possible rating
# group: keeps related photos in the same fold: a column, "folder", or "name" (the file name without its number)
"""
