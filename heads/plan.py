"""The plan of an experiment: what to train, on what, and how to validate it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featstore.support import MaybePath, PathField, repr_of_said
from heads.labels.labels import Labels
from heads.splits.validation import Validation
from heads.training.prediction import Precision

DEFAULT_MEMORY_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Plan:
    """What to train, on what, and how to validate it."""

    system: str
    """The name of the head."""
    store: Path | str
    """A folder, a zip file, a URL, or a version of a shared repository."""
    labels: Labels
    """What to learn."""
    out: PathField = PathField()
    """The run folder to write."""
    tensors: Sequence[str] = ()
    """Those to read; if none is named, one of the head's own name, or the only one of its layout."""
    augmented: Sequence[str] = ()
    """Tensors of augmented copies, one for each that is read: training sees a photo or any of its copies."""
    changes: Sequence[str] = ()
    """Changed options, written `name=value`."""
    sweep: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Options and the values of each that are tried, all of them together in one pass over the features."""
    validation: Validation = field(default_factory=Validation)
    """How the photos are split."""
    n_repeats: int | None = None
    """Whole cross-validations; as many as make sense for the head if None."""
    seed: int = 0
    """Decides folds, initial weights and shuffling."""
    group: str | None = None
    """What the groups of `labels` are, for the record."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    """For features and models at most; what does not fit is streamed."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    precision: Precision = "fp32"
    """Of the arithmetic in training."""
    scheduler: str | None = None
    """The address of a Dask scheduler whose workers train the models; this process if None."""
    strict: bool = False
    """Whether photos without labels, and labels without photos, are refused."""
    keep: bool = False
    """A complete run of the same plan that is at `out` already is taken as it is; a sweep always does so."""
    photos: MaybePath = MaybePath()
    """For the report's pictures."""
    command: str = ""
    """The command that asks for it, for the record."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Those of the command, for `heads resume`."""

    def __repr__(self) -> str:
        return repr_of_said(self)
