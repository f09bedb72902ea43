"""The arguments of `heads train` as plain values, kept for `heads resume`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heads.errors import HeadsError, LabelsError, RunError
from heads.labels.target import KINDS

if TYPE_CHECKING:
    from heads.labels.labels import Labels
    from heads.labels.target import Target
    from heads.plan import Plan


_KINDS = f"a kind is {', '.join(KINDS[:-1])} or {KINDS[-1]}"


@dataclass(frozen=True)
class LabelRequest:
    """Which labels; what is left out comes from featstore.toml, if it is about the same table."""

    labels: list[str] | None = None
    path_column: str | None = None
    tasks: str | list[str] | None = None
    """NAME,NAME as on the command line, or names, which may have commas."""
    kind: str | None = None
    parts: list[str] | None = None
    """TASKS:KIND of each part, of a head that learns labels of several kinds in one model."""
    scale: list[str] | None = None
    aggregate: str | None = None
    sd: list[str] | None = None
    n_raters: list[str] | None = None
    group: str | None = None
    stratify: str | None = None
    split_column: str | None = None
    missing: list[str] | None = None

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def read(self, *, like: "Target | None" = None) -> "tuple[Labels, str | None]":
        """The labels, and what their groups are.

        Args:
            like: what a run has learnt, if its labels are to be read.

        Raises:
            LabelsError: no table is named, or it cannot be read as asked.
        """
        if self.parts:
            return self._read_parts()
        from heads.planning import read_configured

        named = self.tasks.split(",") if isinstance(self.tasks, str) else self.tasks or []
        return read_configured(
            list(self.labels or ()) or None,
            path_column=self.path_column,
            tasks=[name.strip() for name in named if name.strip()],
            kind=self.kind,  # type: ignore[arg-type]
            scales=self.scale,
            aggregate=self.aggregate,  # type: ignore[arg-type]
            sd=self.sd,
            n_raters=self.n_raters,
            group=self.group,
            stratify=self.stratify,
            split=self.split_column,
            missing=self.missing or (),
            like=like,
        )

    def _read_parts(self) -> "tuple[Labels, str | None]":
        from heads.labels.labels import join_parts

        if self.tasks or self.kind:
            raise LabelsError("--part says what is learned; leave out --tasks and --kind")
        read = []
        for text in self.parts or ():
            tasks, colon, kind = text.rpartition(":")
            if not colon or kind not in KINDS or not tasks.strip():
                raise LabelsError(f"--part {text!r} is not of the form TASKS:KIND, as emotion:multiclass ({_KINDS})")
            rated = kind == "regression"
            one = replace(self, parts=None, tasks=tasks, kind=kind, scale=self.scale if rated else None)
            read.append(one.read())
        if len(read) < 2:
            raise LabelsError("--part is for several labels in one model; name two or more, or use --tasks and --kind")
        return join_parts([labels for labels, _ in read]), read[0][1]


@dataclass(frozen=True)
class TrainRequest:
    """What to train; None is whatever the head, featstore.toml or the other options say."""

    labels: LabelRequest
    system: str
    out: str
    store: str | None = None
    tensors: list[str] | None = None
    augmented: list[str] | None = None
    changes: list[str] | None = None
    sweep: list[str] | None = None
    folds: int = 5
    hold_out: float | None = None
    split: str | None = None
    repeats: int | None = None
    same_folds: bool = False
    seed: int = 0
    memory: str = "4GB"
    device: str = "auto"
    precision: str = "fp32"
    scheduler: str | None = None
    strict: bool = False
    photos: str | None = None
    log: list[str] | None = None

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def plan(self, table: "Labels", grouping: str | None) -> "Plan":
        """
        Raises:
            HeadsError: --memory or --sweep cannot be read.
        """
        from featstore import find_config
        from featstore.support import parse_store
        from heads.plan import Plan
        from heads.splits.validation import Validation

        config = find_config()
        photos = Path(self.photos) if self.photos else (config.photos if self.store is None else None)
        return Plan(
            system=self.system,
            store=parse_store(self.store) if self.store else config.store,
            labels=table,
            out=Path(self.out),
            tensors=self.tensors or (),
            augmented=self.augmented or (),
            changes=self.changes or (),
            sweep=_sweep(self.sweep or []),
            validation=Validation(
                n_folds=self.folds,
                hold_out=self.hold_out,
                split=Path(self.split) if self.split else None,
                stratify=self.labels.stratify,
                same_folds=self.same_folds,
            ),
            n_repeats=self.repeats,
            seed=self.seed,
            group=grouping,
            memory_bytes=parse_bytes(self.memory),
            device=self.device,
            precision=self.precision,  # type: ignore[arg-type]
            scheduler=self.scheduler,
            strict=self.strict,
            photos=photos,
        )


@dataclass(frozen=True)
class Arguments:
    """What a draft remembers of the command that began it."""

    folder: str
    """Where it was called: relative names are from there."""
    request: TrainRequest
    plugin: str | None = None
    """What `--plugin` has to be for its head, empty if that was typed in a session; None of heads' own."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


def read_arguments(saved: Mapping[str, Any], run: Path) -> Arguments:
    """The arguments as a draft has them, which may come from a stranger.

    Raises:
        RunError: a part of them is missing, unknown or of another type; or they are of a version of other folds.
    """
    from pydantic import TypeAdapter, ValidationError

    from heads.runs.config import MOST_REPEATS
    from heads.runs.reading import explain

    request = saved.get("request")
    try:
        found = TypeAdapter(Arguments).validate_json(json.dumps(saved), strict=True)
    except ValidationError as error:
        raise RunError(f"the plan of {run} was not written by this version of heads ({explain(error)})") from error
    if not isinstance(request, dict) or "same_folds" not in request:
        raise RunError(
            f"{run} was begun by an earlier version, whose folds were drawn otherwise; begin it again with "
            "`heads train`, and another --out"
        )
    if not 1 <= (found.request.repeats or 1) <= MOST_REPEATS:
        raise RunError(f"the plan of {run} asks for {found.request.repeats} repeats; expected 1 to {MOST_REPEATS}")
    return found


def parse_bytes(text: str) -> int:
    """A size as --memory takes it.

    Raises:
        HeadsError: it is none.
    """
    units = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "b": 1, "": 1}
    number = text.strip().lower().rstrip("bikmgt")
    try:
        n_bytes = int(float(number) * units[text.strip().lower()[len(number) :].strip()])
        if n_bytes < 0:
            raise ValueError(n_bytes)
    except (ValueError, KeyError, OverflowError):
        raise HeadsError(f"--memory {text!r} is not a size; write 4GB or 500MB") from None
    if number == text.strip() and n_bytes < 1000:
        raise HeadsError(f"--memory {text!r} is {n_bytes} bytes; write {number}GB if that is what is meant")
    return n_bytes


def _sweep(texts: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        listed = [value.strip() for value in values.split(",") if value.strip()]
        if not equals or not listed or name in found:
            raise HeadsError(f"--sweep {text!r} is not of the form NAME=VALUE,VALUE,... with each name once")
        found[name] = listed
    return found
