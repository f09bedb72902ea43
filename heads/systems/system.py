"""What a head is: its name, the features it reads, the labels it learns, its options, its model and its training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from featstore.support import suggest
from heads.errors import UnknownSystemError
from heads.labels.target import KINDS, Kind, Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from heads.training.losses import Loss

Shape = tuple[int, ...]
"""Of one row of a tensor: (B, T, F) of a stack, (F,) of a concatenation, (H, W, 3) or (T, H, W, 3) of pixels."""
Reads = Literal["stack", "concat", "any", "pixels", "pixel-grid"]
Options = Mapping[str, Any]
NO_FOLD = -1


@dataclass(frozen=True)
class Option:
    """A default that can be changed, where it comes from, and which values make sense."""

    value: Any
    """The default; a changed value has to be of its type."""
    source: str
    """Where the default comes from: a section of the paper, the authors' code, or `ours` and why."""
    low: float = -inf
    """The smallest number that makes sense."""
    high: float = inf
    """The largest."""
    choices: tuple[str, ...] = ()
    """The words that make sense, of an option that is text."""


@dataclass(frozen=True)
class Stage:
    """A stretch of the training: how many epochs, which parameters move, and what they learn from."""

    epochs: int
    """At most; early stopping may end it before."""
    lr: float
    """The learning rate."""
    parameters: tuple[str, ...] = ("",)
    """What the names of the parameters begin with; the others are frozen."""
    tasks: tuple[int, ...] | None = None
    """The tasks whose labels count, all if None; images without a label in any of them are left out."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """By what names of parameters begin with, learning rates in place of `lr`; the longest beginning counts."""
    undecayed: tuple[str, ...] = ()
    """Names of parameters that weight decay leaves alone, as patterns: `*.bias`."""

    def factor(self, name: str) -> float:
        """How many times `lr` the rate of a parameter is."""
        own = max((beginning for beginning in self.rates if name.startswith(beginning)), key=len, default=None)
        return 1.0 if own is None or not self.lr else self.rates[own] / self.lr

    def leaves(self, name: str) -> bool:
        """Whether weight decay leaves a parameter alone."""
        return any(fnmatchcase(name, pattern) for pattern in self.undecayed)


@dataclass(frozen=True)
class Sample:
    """Images in memory, standardised if the options say so, that an estimator is fitted to."""

    features: "NDArray[np.float32]"
    """(n, F): every tensor of a row flattened and joined."""
    labels: "NDArray[np.float32]"
    """(n, K), as `Target` says."""
    folds: "NDArray[np.int64]"
    """(n,) the inner fold of an image; NO_FOLD of those that are fitted whichever fold is held out."""
    target: Target
    seed: int
    groups: "tuple[tuple[str, int], ...]" = ()
    """What stands side by side in a row, from the left: the name of a segment of a tensor, and how many features."""

    def inner(self, known: "NDArray[np.bool_]") -> "Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]":
        """Of the images that count (n,), those to be fitted and those to choose by, with each inner fold held out."""
        for fold in sorted({*self.folds.tolist()} - {NO_FOLD}):
            held = known & (self.folds == fold)
            fit = known & ~held
            if held.any() and fit.sum() > 1:
                yield fit, held


Build = Callable[[tuple[Shape, ...], Target, Options], "nn.Module"]
"""(the shape of a row of each tensor, what to say, options) -> a model.

The model is called with one (N, *shape) tensor for each shape, float32 or, of pixels, uint8, and returns
(N, target.n_outputs). It may have:

- `training_loss(labels, *features) -> Tensor`: what it learns by, where its outputs and labels are not enough
- `attention(*features) -> dict[str, Tensor]`: what it looked at; names and axes are those of `ATTENTION_AXES` in
  runs/attention.py
- `learned() -> dict[str, Tensor]`: parameters that say something by themselves, (K,) or any other shape; names
  `TITLE: NAME` of the same title stand in one table
"""
Fit = Callable[["nn.Module", Sample, Options], None]
"""Solves for the parameters of the model, in place."""


@dataclass(frozen=True)
class Origin:
    """The code that registered a head."""

    module: str
    """Its name; that of a plugin loaded from a file is the path of the file."""
    file: str
    """Empty if it was typed in a session of Python."""
    source: bytes = field(default=b"", repr=False)
    """What the file holds, of a plugin."""

    @property
    def is_plugin(self) -> bool:
        return not self.module.startswith("heads.systems.")

    @property
    def is_file(self) -> bool:
        """Whether it is a plugin that was loaded from a file, and not a module that can be imported by name."""
        return self.module == self.file

    @property
    def where(self) -> str:
        return self.file or "this session of Python"

    @property
    def plugin(self) -> str:
        """What to say after `--plugin` to load it again; empty if it was typed in a session."""
        return self.file if self.module == "__main__" else self.module

    @property
    def sha256(self) -> str:
        return sha256(self.source).hexdigest()


@dataclass(frozen=True, kw_only=True)
class System:
    """A head by name: what it is, what it reads and says, how it is built and trained."""

    name: str
    """What `heads train NAME` calls it."""
    title: str
    """What it is, in a few words."""
    source: str
    """The paper and, if it has them, the section."""
    reads: tuple[Reads, ...]
    """The layout of each tensor that the model is called with; ("any",) takes one or more of whatever layout."""
    kinds: tuple[Kind, ...]
    """The kinds of labels that it learns."""
    parts: tuple[tuple[Kind, ...], ...] = ()
    """The kinds of each part of the target, of a system that learns several parts in one model, and only so."""
    build: Build
    """Makes the model."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Its own, and those of training whose defaults it changes; `register` adds the others of training."""
    repeats: int = 1
    """How often each model is trained on a split that stays as it is, as in its paper, unless the user says more."""
    fit_bytes: "Callable[[int, tuple[Shape, ...]], int] | None" = None
    """(images, shape of a row of each tensor) -> what an estimator needs beside their features, if it is much."""
    least_labels: int = 1
    """Of each task, without which a model has nothing to learn from."""
    least_distinct: int = 1
    """Different ones among them."""
    fit: Fit | None = None
    """How an estimator is fitted, in memory and at once; None for what is trained by gradient, from minibatches."""
    loss: "Callable[[Target], Loss] | None" = None
    """In place of `losses.masked_loss`."""
    stages: "Callable[[Options], tuple[Stage, ...]] | None" = None
    """In place of one stage in which everything moves."""
    per_task: bool = False
    """One model for each task, which knows nothing of the others."""
    alternate: bool = False
    """Minibatches come in turn from each of several label sets."""
    epoch_of: int | None = None
    """With `alternate`, the task whose labelled images make an epoch; the images of other sets are drawn as often as
    that takes. None: an epoch ends when every image of every set was seen once."""
    init: tuple[str, ...] = ()
    """Parts of the model, by the names that they have in it, that may begin with weights: each by its option
    `init_PART` (see training/initial.py)."""
    origin: Origin | None = None
    """Who registered it, as `register` notes."""

    @property
    def from_pixels(self) -> bool:
        """Whether it reads pixels, and not features."""
        return not {"pixels", "pixel-grid"}.isdisjoint(self.reads)

    @property
    def plugin(self) -> Origin | None:
        """Who registered it, if that is not heads itself."""
        return self.origin if self.origin is not None and self.origin.is_plugin else None

    def settle(self, changes: Sequence[str]) -> dict[str, Any]:
        """The options, with changes written `name=value`.

        Raises:
            UnknownSystemError: no such option (with a suggestion), or a value of another type or out of bounds.
        """
        options = {name: option.value for name, option in self.options.items()}
        for change in changes:
            name, equals, text = change.partition("=")
            if not equals:
                raise UnknownSystemError(f"--set {change!r} is not of the form NAME=VALUE")
            if name not in options:
                raise UnknownSystemError(f"{self.name!r} has no option {name!r}; {suggest(name, options)}")
            options[name] = _convert(name, text, self.options[name])
        return options


OURS = "ours: the paper does not say"


def by_gradient(source: str, **own: Option) -> dict[str, Option]:
    """The options of whatever is trained by gradient, with a system's own in place of them and before them."""
    return _with_own(own, _of_training(source) | _STANDARDISING)


def from_pixels(source: str, **own: Option) -> dict[str, Option]:
    """As `by_gradient`, of what is trained from crops of the stored photos."""
    return from_whole_photos(source, **_with_own(own, _CROPS))


def from_whole_photos(source: str, **own: Option) -> dict[str, Option]:
    """As `by_gradient`, of what is trained from the pixels of the stored photos as they are."""
    micro = Option(0, "photos that go through the network at a time, gradients are summed; 0: the batch", low=0)
    return _with_own(own, {"micro": micro} | _of_training(source))


def _with_own(own: Mapping[str, Option], common: Mapping[str, Option]) -> dict[str, Option]:
    return {**{name: option for name, option in own.items() if name not in common}, **common, **own}


def _of_training(source: str) -> dict[str, Option]:
    return {
        "optimiser": Option("adam", source, choices=("adam", "adamw", "sgd")),
        "lr": Option(1e-3, source, low=0),
        "lr_factor": Option(1.0, "ours: the rate stays as it is", low=0, high=1),
        "lr_every": Option(1, "epochs after which the rate is multiplied by lr_factor", low=1),
        "momentum": Option(0.9, "of sgd", low=0, high=1),
        "weight_decay": Option(0.0, "ours: none", low=0),
        "batch": Option(32, source, low=1),
        "epochs": Option(60, source, low=1),
        "patience": Option(10, "epochs without a better inner loss before training ends; 0: train them all", low=0),
        "inner": Option(0.15, "ours: share of the training rows that early stopping looks at", low=0, high=0.9),
    }


_CROPS = {
    "crop": Option(224, "side of the crop of the stored photo that the network sees", low=1),
    "flip": Option(True, "ours: training sees a photo or its mirror image"),
    "ten_crops": Option(False, "predict by corners and centre, mirrored too, and not by the centre alone"),
}
_STANDARDISING = {
    "standardise": Option(True, "ours: every feature, on the training rows; papers feed raw features"),
    "gain": Option(1.0, "ours: standard deviation after standardising", low=0),
}


def without_early_stopping() -> dict[str, Option]:
    """The options of a paper that trains all epochs on all training rows."""
    return {
        "patience": Option(
            0, "the paper has no early stopping; with inner=0.15, epochs without a better inner loss", low=0
        ),
        "inner": Option(
            0.0, "share of the training rows that early stopping looks at; the paper has none", low=0, high=0.9
        ),
    }


def by_solving(**own: Option) -> dict[str, Option]:
    """The options of whatever is fitted at once, with an estimator's own before them."""
    common = {
        "standardise": Option(True, "ours: every feature, on the training rows"),
        "gain": Option(1.0, "ours: standard deviation after standardising", low=0),
    }
    return own | {name: option for name, option in common.items() if name not in own}


def inner_folds() -> Option:
    """Of an estimator that has something to choose."""
    return Option(5, "ours: folds of the training rows, each of which chooses in turn; 0: none", low=0)


_IN_WORDS: Mapping[type, str] = {bool: "true or false", int: "an int", float: "a float"}


def _convert(name: str, text: str, option: Option) -> Any:
    kind = type(option.value)
    try:
        value = {"true": True, "false": False, "1": True, "0": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise UnknownSystemError(
            f"option {name!r} is {_IN_WORDS[kind]} (default {option.value!r}); found {text!r}"
        ) from None
    if kind in (int, float) and (not option.low <= value <= option.high or value == inf):
        bounds = f"{option.low:g} or more" if option.high == inf else f"from {option.low:g} to {option.high:g}"
        raise UnknownSystemError(f"option {name!r} is {bounds}; found {text!r}")
    if option.choices and value not in option.choices:
        raise UnknownSystemError(f"option {name!r} is one of {', '.join(option.choices)}; found {text!r}")
    return value


__all__ = [
    "KINDS",
    "NO_FOLD",
    "Build",
    "Fit",
    "Kind",
    "Option",
    "Options",
    "Origin",
    "Reads",
    "Sample",
    "Shape",
    "Stage",
    "System",
    "by_gradient",
    "by_solving",
    "from_pixels",
    "from_whole_photos",
    "inner_folds",
    "without_early_stopping",
]
