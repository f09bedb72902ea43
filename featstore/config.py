"""featstore.toml: which images, which tensors, which backbones, where things are.

A configuration is read once into a frozen `Config`; command-line options make another one from it.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from featstore.backbones import PACKAGED, PAPER_SETS, WeightsPolicy, find_card
from featstore.errors import ConfigError, suggest
from featstore.identity import Segment
from featstore.views import VIEWS, View

FILE_NAME = "featstore.toml"
CACHE = Path("cache")
AMTL_WIDTH = 2048


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to make: its layout and its segments, written BACKBONE[:POOLING][@VIEW]."""

    name: str
    kind: Literal["stack", "concat"]
    segments: tuple[str, ...]
    width: int | None = None
    view: str | None = None

    @property
    def default_view(self) -> str:
        return self.view or ("grid" if self.kind == "stack" else "whole")


@dataclass(frozen=True)
class LabelsConfig:
    """Where the labels of the photos are, for the heads."""

    file: Path
    path_column: str = "path"
    tasks: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None
    group: str | None = None


@dataclass(frozen=True)
class Config:
    """Everything that a command takes from featstore.toml; the defaults are those without one."""

    file: Path | None = None
    photos: Path | None = None
    store: Path | str = CACHE / "features.zarr"
    """A folder, a zip file or a URL."""
    runs: Path = CACHE / "runs"
    weights: WeightsPolicy = field(default_factory=WeightsPolicy)
    batch_norm_eps: Mapping[str, float] = field(default_factory=dict)
    views: Mapping[str, View] = field(default_factory=lambda: dict(VIEWS))
    tensors: tuple[TensorPlan, ...] = ()
    labels: LabelsConfig | None = None
    dtype: str = "float16"
    compress: Literal["zstd", "blosc"] | None = None

    def segment(self, text: str, *, default_view: str) -> Segment:
        """The segment that BACKBONE[:POOLING][@VIEW] means here.

        Raises:
            ConfigError: unknown view or pooling.
            BackboneError: unknown backbone.
        """
        rest, _, view = text.partition("@")
        backbone, _, pooling = rest.partition(":")
        view = view or default_view
        if view not in self.views:
            raise ConfigError(f"unknown view {view!r} in {text!r}; {suggest(view, self.views)}")
        card = find_card(backbone)
        names = (card.name, card.alias or card.name)
        eps = next((self.batch_norm_eps[name] for name in names if name in self.batch_norm_eps), None)
        card = card if eps is None else replace(card, batch_norm_eps=eps)
        return Segment(card, self.views[view], pooling or "avg")

    def segments(self, plan: TensorPlan) -> list[Segment]:
        return [self.segment(text, default_view=plan.default_view) for text in plan.segments]


def find_config(folder: Path = Path()) -> Config:
    """The configuration of a folder: its featstore.toml, or the defaults if it has none."""
    file = folder / FILE_NAME
    return read_config(file) if file.is_file() else Config()


def read_config(file: Path) -> Config:
    """Read a featstore.toml; paths in it are relative to its folder.

    Raises:
        ConfigError: it is not TOML, or a key or value in it does not make sense; names the key.
    """
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
        parsed = _File.model_validate(raw)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        raise ConfigError(_explain(file, error)) from error
    return _to_config(parsed, file)


def choose_tensors(config: Config, backbones: str, extra: Mapping[str, TensorPlan]) -> Config:
    """The configuration with the tensors that `--backbones` and `--tensor` ask for.

    `all`: those of the configuration, or the papers' sets if it names none. `packaged`: the demo's `amtl` and
    `mtl`. Names: `grid` (a stack) and `whole` (a concatenation) of them.
    """
    if backbones == "all":
        tensors = config.tensors or _paper_tensors()
    elif backbones == "packaged":
        tensors = packaged_tensors()
    elif names := tuple(name.strip() for name in backbones.split(",") if name.strip()):
        tensors = (TensorPlan("grid", "stack", names), TensorPlan("whole", "concat", names))
    elif extra:
        tensors = ()
    else:
        raise ConfigError("no backbones named; say --backbones all, packaged, or NAME,NAME")
    by_name = {**{plan.name: plan for plan in tensors}, **extra}
    return replace(config, tensors=tuple(by_name.values()))


def parse_tensor(text: str) -> TensorPlan:
    """NAME=LAYOUT[/WIDTH]:SEGMENT,SEGMENT as --tensor takes it, as in amtl=stack/2048:lite0,lite1,lite2:max.

    Raises:
        ConfigError: it does not have that form.
    """
    name, equals, rest = text.partition("=")
    layout, colon, segments = rest.partition(":")
    kind, _, width = layout.partition("/")
    names = tuple(each.strip() for each in segments.split(",") if each.strip())
    if not (equals and colon and names and name.isidentifier() and kind in ("stack", "concat")) or (
        width and not width.isdecimal()
    ):
        raise ConfigError(
            f"--tensor {text!r} is not of the form NAME=LAYOUT[/WIDTH]:SEGMENT,SEGMENT, as in "
            "amtl=stack/2048:lite0,lite1,lite2:max (LAYOUT is stack or concat, "
            "SEGMENT is BACKBONE[:avg|max][@VIEW])"
        )
    return TensorPlan(name, "stack" if kind == "stack" else "concat", names, int(width) if width else None)


def parse_scale(text: str) -> tuple[float, float]:
    """LOW:HIGH as --scale takes it, as in 1:7.

    Raises:
        ConfigError: it does not have that form, or LOW is not below HIGH.
    """
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"--scale {text!r} is not of the form LOW:HIGH, as 1:7") from None
    if not _is_scale(low, high):
        raise ConfigError(f"--scale {text!r}: the first end has to be below the second")
    return low, high


def parse_store(text: str, base: Path = Path()) -> Path | str:
    """A URL as it is; a path relative to `base`."""
    return text if "://" in text else base / Path(text).expanduser()


def parse_limit(text: str) -> tuple[float, bool]:
    """COUNT or PERCENT% as --max-bad takes it, as in 10 or 1%; (number, whether it is a percentage).

    Raises:
        ConfigError: it is neither.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        limit = float(number) if percent else int(number)
    except ValueError:
        raise ConfigError(f"--max-bad {text!r} is neither a count nor a percentage, as 10 or 1%") from None
    if not (0 <= limit <= 100 if percent else limit >= 0):
        raise ConfigError(f"--max-bad {text!r}: a count is at least 0, a percentage between 0 and 100")
    return limit, percent


def _is_scale(low: float, high: float) -> bool:
    return math.isfinite(low) and math.isfinite(high) and low < high


def packaged_tensors() -> tuple[TensorPlan, ...]:
    return (
        TensorPlan("amtl", "stack", PACKAGED, AMTL_WIDTH),
        TensorPlan("mtl", "concat", PACKAGED),
    )


def write_config(
    file: Path,
    *,
    photos: Path,
    labels: Path | None,
    tasks: tuple[str, ...] = (),
    scale: tuple[float, float] | None = None,
    group: str | None = None,
) -> None:
    """Write a commented featstore.toml; never over an existing one.

    Raises:
        ConfigError: the file exists already, or cannot be written.
    """
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
    )  # fmt: skip
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} exists already; edit it, or remove it and run this again") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error


def _paper_tensors() -> tuple[TensorPlan, ...]:
    # Without the 11414 set: three of its five networks are not built in this version.
    return (
        TensorPlan("amtl", "stack", PAPER_SETS["amtl"], AMTL_WIDTH),
        TensorPlan("mtl", "concat", PAPER_SETS["mtl"]),
    )


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _View(_Section):
    size: tuple[int, int] = (600, 400)
    grid: tuple[int, int] = (1, 1)
    interpolation: str = "bilinear"


class _Tensor(_Section):
    layout: Literal["stack", "concat"]
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
        if scale is not None and not _is_scale(*scale):
            raise ValueError("the first end has to be below the second")
        return scale


class _File(_Section):
    photos: Path | None = None
    store: str = "cache/features.zarr"
    runs: Path = CACHE / "runs"
    weights: Path = CACHE / "weights"
    hub: bool = False
    dtype: Literal["float16", "float32"] = "float16"
    compress: Literal["zstd", "blosc"] | None = None
    views: dict[str, _View] = {}
    tensors: dict[str, _Tensor] = {}
    backbones: dict[str, _Backbone] = {}
    labels: _Labels | None = None


def _to_config(parsed: _File, file: Path) -> Config:
    base = file.parent
    for name in parsed.backbones:
        find_card(name)  # a misspelt section would be passed over, and other weights used than the user meant
    named = {
        name: each.weights if each.weights.startswith("random:") else str(base / Path(each.weights).expanduser())
        for name, each in parsed.backbones.items()
        if each.weights is not None
    }
    views = {name: _to_view(name, each, file) for name, each in parsed.views.items()}
    for name in parsed.tensors:
        if not name.isidentifier():
            raise ConfigError(f"{file}: tensor name {name!r} should be letters, digits and underscores")
    return Config(
        file=file,
        photos=None if parsed.photos is None else base / parsed.photos.expanduser(),
        store=parse_store(parsed.store, base),
        runs=base / parsed.runs.expanduser(),
        weights=WeightsPolicy(base / parsed.weights.expanduser(), named, parsed.hub),
        batch_norm_eps={
            name: each.batch_norm_eps for name, each in parsed.backbones.items() if each.batch_norm_eps is not None
        },
        views={**VIEWS, **views},
        tensors=tuple(
            TensorPlan(name, each.layout, each.segments, each.width, each.view) for name, each in parsed.tensors.items()
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
    )


def _to_view(name: str, view: _View, file: Path) -> View:
    try:
        return View(view.size, rows=view.grid[0], columns=view.grid[1], interpolation=view.interpolation)
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
    return list(model.model_fields)


def _quote(text: str) -> str:
    """A TOML string; JSON's are the same but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _number(value: float) -> str:
    """Every digit of it, and no point where none is needed."""
    return str(int(value)) if value == int(value) else repr(value)


_TEMPLATE = """\
# What `featstore extract` and `heads train` do in this folder. Paths are relative to this file.

photos = {photos}
store = "cache/features.zarr"   # the features; readable by zarr, xarray and TensorStore
weights = "cache/weights"       # put weights files here, named BACKBONE.safetensors or BACKBONE.pth
runs = "cache/runs"             # what training leaves
hub = false                     # true allows downloading weights from the Hugging Face hub
dtype = "float16"               # of the stored features; float32 takes twice the space
# compress = "zstd"             # or "blosc", for new tensors: smaller by a quarter or more, and much slower to read
{labels}
# A view says what part of a photo a backbone sees. Two are built in:
#   whole: the photo resized to 600x400;  grid: that, cut into 4 rows and 4 columns of 150x100, at native size.
# [views.fine]
# size = [800, 800]
# grid = [8, 8]                 # rows, columns

# A tensor is a named arrangement of segments BACKBONE[:avg|max][@VIEW] (`featstore backbones` lists them).
# stack: (image, backbone, block, feature), each padded with zeros to `width`; the view is grid unless said.
# concat: (image, feature), joined at their natural widths; the view is whole unless said.
[tensors.amtl]
layout = "stack"
segments = [{packaged}]
width = {width}

[tensors.mtl]
layout = "concat"
segments = [{packaged}]

# [backbones.legacy_xception]
# weights = "weights/legacy_xception.safetensors"   # or "random:0", recorded as such
# batch_norm_eps = 1e-3
"""

_LABELS_TEMPLATE = """
[labels]
file = {file}
path_column = "path"            # joins on the photo's path relative to `photos`
{tasks}
{scale}
{group}
# tasks: the columns to learn; without it every numeric column
# scale: the ends of the rating scale
# group: a column (or "name": the file name without its number, or "folder") whose rows stay on one side of a split
"""
