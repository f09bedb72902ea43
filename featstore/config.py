"""featstore.toml: which images, which tensors, which backbones, where things are.

A configuration is read once into a frozen `Config`; command-line options make another one from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from featstore.backbones import PACKAGED, PAPER_SETS, WeightsPolicy, find_card
from featstore.errors import ConfigError, suggest
from featstore.identity import PIXELS, ImportedSegment, PixelSegment, Segment
from featstore.photos.decoding import MAX_MEGAPIXELS
from featstore.photos.views import VIEWS, View

KINDS = ("stack", "concat", PIXELS)
CACHE = Path("cache")
AMTL_WIDTH = 2048


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to make: its layout and its segments, written BACKBONE[:POOLING][@VIEW]."""

    name: str
    """Its name in the store."""
    kind: Literal["stack", "concat", "pixels"]
    """stack: (N, B, T, F), blocks apart; concat: (N, F), side by side; pixels: the blocks themselves."""
    segments: tuple[str, ...]
    """One or more of BACKBONE[:POOLING][@VIEW], pixels[@VIEW] or imported/NAME."""
    width: int | None = None
    """F of a stack; narrower features are filled up with zeros. None: the width of the widest."""
    view: str | None = None
    """Of the segments that name none; None: grid for a stack, whole for the others."""

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
    """The featstore.toml that it was read from."""
    photos: Path | None = None
    """The folder of photos."""
    store: Path | str = CACHE / "features.zarr"
    """A folder, a zip file or a URL."""
    reuse: tuple[Path | str, ...] = ()
    """Where to look for features before computing them: stores, shared repositories."""
    runs: Path = CACHE / "runs"
    """Where `heads train` puts its run folders."""
    weights: WeightsPolicy = field(default_factory=WeightsPolicy)
    """Where the weights of backbones come from."""
    batch_norm_eps: Mapping[str, float] = field(default_factory=dict)
    """By backbone, an epsilon of batch normalisation other than its card's."""
    views: Mapping[str, View] = field(default_factory=lambda: dict(VIEWS))
    """By name: how a photo is resized and cut."""
    tensors: tuple[TensorSpec, ...] = ()
    """What `extract` makes."""
    labels: LabelsConfig | None = None
    """The label table, for the heads."""
    dtype: str = "float16"
    """float16 or float32, of the stored features."""
    compress: Literal["zstd", "blosc"] | None = None
    """For new tensors; None stores the bytes as they are."""
    precision: str = "auto"
    """Arithmetic of the networks: auto, fp32, tf32, bf16 or fp16."""
    engine: str = "auto"
    """auto, or the name of one of `featstore.engines.ENGINES`."""
    max_megapixels: float = MAX_MEGAPIXELS
    """A photo with more pixels is not read; 4 bytes of memory or more for each."""

    def segment(
        self, text: str, *, default_view: str, precision: str = "fp32"
    ) -> Segment | PixelSegment | ImportedSegment:
        """The segment that BACKBONE[:POOLING][@VIEW], pixels[@VIEW] or imported/NAME means here.

        Raises:
            ConfigError: unknown view or pooling.
            BackboneError: unknown backbone.
        """
        if text.startswith("imported/"):
            return ImportedSegment(text.removeprefix("imported/"))
        rest, _, view = text.partition("@")
        backbone, _, pooling = rest.partition(":")
        view = view or default_view
        if view not in self.views:
            raise ConfigError(f"unknown view {view!r} in {text!r}; {suggest(view, self.views)}")
        if rest == PIXELS:
            return PixelSegment(self.views[view])
        card = find_card(backbone)
        names = (card.name, card.alias or card.name)
        eps = next((self.batch_norm_eps[name] for name in names if name in self.batch_norm_eps), None)
        card = card if eps is None else replace(card, batch_norm_eps=eps)
        return Segment(card, self.views[view], pooling or "avg", precision)

    def segments(self, spec: TensorSpec, precision: str = "fp32") -> list[Segment | PixelSegment | ImportedSegment]:
        return [self.segment(text, default_view=spec.default_view, precision=precision) for text in spec.segments]


def choose_tensors(config: Config, backbones: str, extra: Mapping[str, TensorSpec]) -> Config:
    """The configuration with the tensors that `--backbones` and `--tensor` ask for.

    `all`: those of the configuration, or the papers' sets if it names none. `packaged`: the demo's `amtl` and
    `mtl`. Names: `grid` (a stack) and `whole` (a concatenation) of them.
    """
    if backbones == "all":
        tensors = config.tensors or _paper_tensors()
    elif backbones == "packaged":
        tensors = packaged_tensors()
    elif names := tuple(name.strip() for name in backbones.split(",") if name.strip()):
        tensors = (TensorSpec("grid", "stack", names), TensorSpec("whole", "concat", names))
    elif extra:
        tensors = ()
    else:
        raise ConfigError("no backbones named; say --backbones all, packaged, or NAME,NAME")
    by_name = {**{plan.name: plan for plan in tensors}, **extra}
    return replace(config, tensors=tuple(by_name.values()))


def parse_tensor(text: str) -> TensorSpec:
    """NAME=LAYOUT[/WIDTH]:SEGMENT,SEGMENT as --tensor takes it, as in amtl=stack/2048:lite0,lite1,lite2:max.

    Raises:
        ConfigError: it does not have that form.
    """
    name, equals, rest = text.partition("=")
    layout, colon, segments = rest.partition(":")
    kind, _, width = layout.partition("/")
    names = tuple(each.strip() for each in segments.split(",") if each.strip())
    if not (equals and colon and names and name.isidentifier() and kind in KINDS) or (width and not width.isdecimal()):
        raise ConfigError(
            f"--tensor {text!r} is not of the form NAME=LAYOUT[/WIDTH]:SEGMENT,SEGMENT, as in "
            "amtl=stack/2048:lite0,lite1,lite2:max (LAYOUT is stack, concat or pixels, "
            "SEGMENT is BACKBONE[:avg|max][@VIEW], pixels[@VIEW] or imported/NAME)"
        )
    return TensorSpec(name, cast(Any, kind), names, int(width) if width else None)


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


def packaged_tensors() -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("amtl", "stack", PACKAGED, AMTL_WIDTH),
        TensorSpec("mtl", "concat", PACKAGED),
    )


def _paper_tensors() -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("amtl", "stack", PAPER_SETS["amtl"], AMTL_WIDTH),
        TensorSpec("mtl", "concat", PAPER_SETS["mtl"]),
        TensorSpec("mediaeval", "concat", PAPER_SETS["mediaeval"]),
    )
