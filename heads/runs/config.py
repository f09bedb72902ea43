"""config.json: everything that says what a run was; and its check, as a run may come from a stranger."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.support import LISTED, few
from heads.errors import RunError
from heads.labels.target import JointTarget, Target
from heads.runs.reading import explain, not_ours, read_as, shortened

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MOST_REPEATS = 10_000
MOST_FEATURES = 1 << 32
"""Of an image in a tensor."""
LONGEST_S = 1e10


@dataclass(frozen=True)
class RunConfig:
    """Everything that says what a run was."""

    system: str
    options: Mapping[str, Any]
    target: Target
    scales: tuple[tuple[float, float], ...]
    """The ends of each task's scale, which training maps to -0.5 .. +0.5."""
    n_images: int
    split: str
    """In words."""
    parts: tuple[str, ...]
    """The names of the folds, or `test`."""
    n_repeats: int
    seed: int
    group: str | None
    labels: Mapping[str, Any]
    """`files` and `sha256` of the label tables, the `columns` that were read, and the words that were `missing`."""
    store: str
    tensors: tuple[Mapping[str, Any], ...]
    """`name`, `layout`, `shape` of a row, and `segments`: `name`, `hash`, `width` and `identity` of each."""
    augmented: tuple[Mapping[str, Any], ...]
    """The same of the augmented copies that it learnt from, for each tensor; none if empty."""
    photos: str | None
    """The photo folder, for drawing; None if it is not known."""
    versions: Mapping[str, str]
    command: str
    """That began it; empty if none did."""
    started: str
    elapsed_s: float
    """Of all sessions, each up to its last checkpoint; a run that is killed may have worked longer."""
    device: str
    precision: str
    models: tuple[str, ...] = ()
    """The names of their weights files; empty in a run of before they were listed."""
    directory: str = ""
    """Where the command was called, for relative paths."""
    redrawn: bool = False
    """Whether each repeat has folds of its own."""
    joint: tuple[Target, ...] = ()
    """All parts of what its models learn, where `target` is one of them; empty if it is all they learn."""
    initial: Mapping[str, str] = field(default_factory=dict)
    """Of each part of the model that began with given weights, their SHA-256; the options say where they came from."""
    plugin: Mapping[str, str] | None = None
    """The `name` (a .py file or a module) and `sha256` of the plugin that the head is from; None of heads' own."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    @property
    def learnt(self) -> Target:
        """All that its models learn: `target`, or the parts that it is one of."""
        return JointTarget.of(self.joint) if self.joint else self.target

    @property
    def said(self) -> slice:
        """The columns of `target` among the outputs of its models."""
        if not self.joint:
            return slice(None)
        return next(columns for part, _, columns in JointTarget.of(self.joint).slices() if part == self.target)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(tensor["shape"]) for tensor in self.tensors)

    @property
    def layouts(self) -> tuple[str, ...]:
        return tuple(tensor["layout"] for tensor in self.tensors)


def read_config(file: Path, *, photos: Path | None, missing: str) -> RunConfig:
    """The configuration of a run.

    Args:
        photos: where the photos are now, if not where they were.
        missing: what it means that the file is not there.

    Raises:
        RunError: the file is not there, or a part of it is missing, of another type, or cannot be.
    """
    config = read_as(_adapter(), file, missing=missing)
    if wrong := _wrong(config):
        raise RunError(not_ours(file, wrong))
    return config if photos is None else replace(config, photos=str(photos.absolute()))


@cache
def _adapter() -> "TypeAdapter[RunConfig]":
    from pydantic import TypeAdapter

    return TypeAdapter(RunConfig)


@cache
def _parts() -> "TypeAdapter[Any]":
    """Of the tensors and the labels, which a run keeps as they come from JSON."""
    from pydantic import BaseModel, Field, TypeAdapter

    class Segment(BaseModel):
        name: str
        hash: str
        width: int = 0
        identity: dict[str, Any] = Field(default_factory=dict)

    class Tensor(BaseModel):
        name: str
        layout: str
        shape: list[int] = Field(min_length=1, max_length=8)
        segments: list[Segment] = Field(min_length=1)

    class Labels(BaseModel):
        files: list[str]
        sha256: list[str]
        columns: list[str] = Field(default_factory=list)
        missing: list[str] = Field(default_factory=list)

    class Parts(BaseModel):
        tensors: list[Tensor] = Field(min_length=1)
        augmented: list[Tensor]
        labels: Labels
        options: dict[str, bool | int | float | str]
        plugin: dict[str, str] | None

    return TypeAdapter(Parts)


def _wrong(config: RunConfig) -> str | None:
    """What cannot be, in words; None of what `heads train` may have written."""
    from pydantic import ValidationError

    try:
        _parts().validate_python(
            {
                "tensors": [*config.tensors],
                "augmented": [*config.augmented],
                "labels": config.labels,
                "options": config.options,
                "plugin": config.plugin,
            },
            strict=True,
        )
    except ValidationError as error:
        return explain(error)
    target, labels = config.target, config.labels
    if config.joint and target not in config.joint:
        return "target is none of the parts of joint"
    for tensor in (*config.tensors, *config.augmented):
        shape = tensor["shape"]
        if min(shape) < 1 or max(shape) > MOST_FEATURES or prod(shape) > MOST_FEATURES:
            return f"the shape of tensor {shortened(tensor['name'])} is {shortened(shape)}"
    if not target.tasks:
        return "target.tasks is empty"
    if target.kind == "multiclass" and (len(target.tasks) != 1 or len(target.classes) < 2):
        found = f"{len(target.tasks)} tasks and {len(target.classes)} classes"
        return f"target is multiclass with {found}, not 1 and 2 or more"
    if target.kind != "multiclass" and target.classes:
        return f"target.classes is {few(target.classes, LISTED, quoted=True)}, and {target.kind} labels have none"
    for name, values in {
        "target.tasks": target.tasks,
        "target.classes": target.classes,
        "columns of the predictions": target.columns,
        "parts": config.parts,
        "models": config.models,
    }.items():
        if len(set(values)) < len(values):
            twice = next(value for i, value in enumerate(values) if value in values[:i])
            return f"{name}: {shortened(twice)} stands twice"
    if len(config.scales) != len(target.tasks):
        return f"scales: {len(config.scales)} of {len(target.tasks)} tasks"
    for task, (low, high) in zip(target.tasks, config.scales, strict=True):
        if not low < high or high - low > 1e300:
            return f"the scale of {shortened(task)} is {low:g} to {high:g}; the first end has to be below the second"
    if len(labels["files"]) != len(labels["sha256"]):
        return f"labels: {len(labels['files'])} files and {len(labels['sha256'])} sha256"
    for name, value, most in (
        ("n_images", config.n_images, 2**31),
        ("n_repeats", config.n_repeats, MOST_REPEATS),
        ("elapsed_s", config.elapsed_s, LONGEST_S),
    ):
        if not (name != "n_repeats" or value >= 1) or not 0 <= value <= most:
            return f"{name} is {value:g}"
    if not config.parts:
        return "parts is empty"
    if bad := next((name for name in config.models if not name or "/" in name or "\0" in name), None):
        return f"models: {shortened(bad)} is no name of a weights file"
    if config.plugin is not None and set(config.plugin) != {"name", "sha256"}:
        return f"plugin has {few(sorted(config.plugin), LISTED)}, not name and sha256"
    return None
