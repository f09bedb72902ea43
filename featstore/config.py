"""featstore.toml: which images, which tensors, which backbones, where things are.

A configuration is read once into a frozen `Config`; command-line options make another one from it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from featstore.backbones import PACKAGED, PAPER_SETS, BackboneName, Card, WeightsPolicy, find_card
from featstore.backbones.card import TOKENS
from featstore.backbones.fitting import fit
from featstore.backbones.sources import find_source
from featstore.errors import ConfigError, UnfitBackboneError, UnknownBackboneError, suggest
from featstore.identity import PIXELS, ImportedSegment, PixelSegment, Segment
from featstore.photos.decoding import MAX_MEGAPIXELS
from featstore.photos.views import MODEL, VIEWS, View
from featstore.support import MaybePath, PathField, repr_of_said

EVERY = "*"
"""The layer that stands for all layers."""
KINDS = ("stack", "concat", PIXELS)
CACHE = Path("cache")
AMTL_WIDTH = 2048


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to make: its layout and its segments, written `BACKBONE[/LAYER][:POOLING][@VIEW]`."""

    name: str
    """Its name in the store."""
    kind: Literal["stack", "concat", "pixels"]
    """stack: (N, B, T, F), blocks apart; concat: (N, F), side by side; pixels: the blocks themselves."""
    segments: tuple[str, ...]
    """One or more of `BACKBONE[/LAYER][:POOLING][@VIEW]`, `pixels[@VIEW]` or `imported/NAME`; a LAYER of `*` is all."""
    width: int | None = None
    """F of a stack; narrower features are filled up with zeros. None: the width of the widest."""
    view: str | None = None
    """Of the segments that name none; None: grid for a stack, whole for the others."""

    def __repr__(self) -> str:
        return repr_of_said(self)

    @property
    def default_view(self) -> str:
        """The view of segments that name none."""
        return self.view or ("grid" if self.kind == "stack" else "whole")


@dataclass(frozen=True)
class LabelsConfig:
    """Where the labels of the photos are, for the heads."""

    file: PathField = PathField()
    path_column: str = "path"
    tasks: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None
    group: str | None = None


@dataclass(frozen=True)
class Config:
    """Everything that a command takes from featstore.toml; the defaults are those without one."""

    file: MaybePath = MaybePath()
    """The featstore.toml that it was read from."""
    photos: MaybePath = MaybePath()
    """The folder of photos."""
    store: Path | str = CACHE / "features.zarr"
    """A folder, a zip file or a URL."""
    reuse: tuple[Path | str, ...] = ()
    """Where to look for features before computing them: stores, shared repositories."""
    runs: PathField = PathField("cache/runs")
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

    def __repr__(self) -> str:
        return repr_of_said(self)

    def segments(
        self, text: str, *, default_view: str, precision: str = "fp32"
    ) -> list[Segment | PixelSegment | ImportedSegment]:
        """What `BACKBONE[/LAYER][:POOLING][@VIEW]`, `pixels[@VIEW]` or `imported/NAME` means here.

        One segment, but for `BACKBONE/*`, which is one for every layer.

        Raises:
            ConfigError: unknown view or pooling.
            BackboneError: unknown backbone, or one without such a layer or pooling.
            UnfitBackboneError: its network cannot be built, or runs on no picture.
        """
        if text.startswith("imported/"):
            return [ImportedSegment(text.removeprefix("imported/"))]
        rest, _, view = text.partition("@")
        view = view or default_view
        name, known_view = BackboneName.parse(rest), view in (*self.views, MODEL)
        # The backbone first, for in other libraries' names a @ is something else: ViT-L/14@336px.
        card = None if rest == PIXELS else self._card(name.backbone, said=rest if known_view else text)
        if not known_view:
            raise ConfigError(f"unknown view {view!r} in {text!r}; {suggest(view, [*self.views, MODEL])}")
        if card is None:
            if view == MODEL:
                raise ConfigError(f"{text!r}: the view {MODEL} is a network's; name one of {', '.join(self.views)}")
            return [PixelSegment(self.views[view])]
        note = ""
        if view == MODEL:
            picture = find_source(card.source).view(card)
        else:
            card, picture, note = fit(card, self.views[view])
        note = "; ".join(filter(None, (note, card.caution if view == MODEL else "")))
        layers: tuple[str, ...] = (name.layer,)
        if name.layer == EVERY:
            from featstore.backbones.shapes import layers_of  # with torch, and seconds to import

            layers = layers_of(card)
            if not layers:
                raise ConfigError(f"{text!r}: no layers of backbone {card.name!r} are known; leave /* out")
        found = [Segment(card, picture, name.pooling or None, precision, layer, note) for layer in layers]
        for segment in found:
            segment.check()
        return list(found)

    def cards(self, spec: TensorSpec) -> list[Card]:
        """The networks that a tensor takes.

        Raises:
            BackboneError: one is unknown.
        """
        names = (text.partition("@")[0] for text in spec.segments if not text.startswith("imported/"))
        return [self._card(BackboneName.parse(name).backbone, said=name) for name in names if name != PIXELS]

    def _card(self, backbone: str, *, said: str) -> Card:
        """The card of a backbone, with the epsilon that the configuration gives it.

        Raises:
            BackboneError: it is unknown; `said`, what the user wrote, may be another library's name for it.
        """
        try:
            card = find_card(backbone, self.weights)
        except UnknownBackboneError:
            if said == backbone:
                raise
            from featstore.backbones.names import unknown_backbone  # with timm, and seconds to import

            raise unknown_backbone(said) from None
        names = (card.name, card.alias or card.name)
        eps = next((self.batch_norm_eps[name] for name in names if name in self.batch_norm_eps), None)
        return card if eps is None else replace(card, batch_norm_eps=eps)


def choose_tensors(
    config: Config, backbones: str, extra: Mapping[str, TensorSpec], views: Sequence[str] = ()
) -> Config:
    """The configuration with the tensors that `--backbones`, `--view` and `--tensor` ask for.

    `all`: those of the configuration, or the papers' sets if it names none. `packaged`: the demo's `amtl` and
    `mtl`. Names: a tensor for each view, called like it: a stack of the blocks where the view has more than one, a
    concatenation where it has not. Tokens are blocks, whose number depends on the network: those of P tokens are
    stacked as `tokens_P`.

    Args:
        views: of names that do not say theirs; each network's own if there are none.
    """
    names = tuple(name.strip() for name in backbones.split(",") if name.strip())
    if views and backbones in ("all", "packaged"):
        raise ConfigError(f"--view is for backbones named one by one; the tensors of {backbones!r} have theirs")
    if backbones == "all":
        tensors = config.tensors or _paper_tensors()
    elif backbones == "packaged":
        tensors = packaged_tensors()
    elif names:
        tensors = _tensors_of(config, names, views or (MODEL,))
    elif extra:
        tensors = ()
    else:
        raise ConfigError("no backbones named; say --backbones all, packaged, or NAME,NAME")
    by_name = {**{plan.name: plan for plan in tensors}, **extra}
    return replace(config, tensors=tuple(by_name.values()))


def _tensors_of(config: Config, names: Sequence[str], views: Sequence[str]) -> tuple[TensorSpec, ...]:
    """A tensor for each view that backbones are named with, and for each number of tokens."""
    by_tensor: dict[str, list[str]] = {}
    stacks = set()
    for name in names:
        backbone, _, own = name.partition("@")
        for view in (own,) if own else views:
            text = f"{backbone}@{view}"
            tensor = re.sub(r"\W", "_", view)
            if BackboneName.parse(backbone).pooling == TOKENS:
                for tensor, each in _by_tokens(config, text, view):
                    stacks.add(tensor)
                    by_tensor.setdefault(tensor, []).append(each)
                continue
            if view in config.views and config.views[view].n_blocks > 1:
                stacks.add(tensor)
            by_tensor.setdefault(tensor, []).append(text)
    return tuple(
        TensorSpec(tensor, "stack" if tensor in stacks else "concat", tuple(texts))
        for tensor, texts in by_tensor.items()
    )


def _by_tokens(config: Config, text: str, view: str) -> list[tuple[str, str]]:
    """The tensor of each layer that is asked for, for their numbers of tokens differ."""
    try:
        found = config.segments(text, default_view=view)
    except UnfitBackboneError:
        return [(f"tokens_{view}", text)]  # it is left out, with its reason, where weights are looked for
    return [(f"tokens_{each.n_blocks}", f"{each.name}@{view}") for each in found if isinstance(each, Segment)]


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
            "SEGMENT is BACKBONE[/LAYER][:POOLING][@VIEW], pixels[@VIEW] or imported/NAME)"
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
