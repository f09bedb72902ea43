"""Checkpoints: finished models and training state on the disk, so that a killed run loses little.

```
RUN.part/
  plan.json                      what the run is to be, which command began it and when, and its arguments
  weights/NAME.safetensors       a model that has learnt, with a card in the header that says what it is
  finished/NAME.safetensors      what it said of the rows that it is tested on, and its history
  training/NAME.safetensors      a model between two epochs: weights, the best ones, the optimiser's
```

Every file appears in one step. `complete` puts the run together and gives it its name.

A draft may come from a stranger, as a run may. A file of a model that is not as it is written here is as good as none:
the model is trained again.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from featstore.files import PART, fresh_path, parse_json, replacing
from heads.errors import DivergedError, RunError
from heads.runs.attention import ATTENTION_AXES
from heads.runs.config import LONGEST_S
from heads.runs.reading import read_as, refuse_links
from heads.runs.run import part_folder
from heads.runs.weights import Header, bytes_of, kinds_of, read_header
from heads.training.learner import Epoch, Job, Learner, Trained

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from torch import Tensor

REST = 50.0
"""A checkpoint is written when this many times as long has passed as writing takes: 2 % of the time at most, or twice
that where models take turns."""
FIRST_S = 0.2
"""What the first one is taken to need: a model that learns for ten seconds or less is begun anew after a kill."""
PAUSE_S = 1.0
SMALL_BYTES = 1 << 20
LARGE_BYTES = 1 << 31
"""The most that a model may have said of the rows that it is tested on, 2 GiB."""
SAYABLE = 60
"""Letters of a fact that a message has room for: a digest has more."""


class Draft:
    """The folder of a run that is not complete.

    Args:
        facts: what the run is to be; a draft that was begun with others is not gone on with.
        arguments: those of the command, for `heads resume`.
        begun: the command, its directory and the time; of the first session if there was one before.

    Raises:
        RunError: the run is complete, was begun with other facts, or another process is at it; or the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        *,
        arguments: Mapping[str, Any],
        begun: Mapping[str, str] | None = None,
    ) -> None:
        if folder.exists():
            raise RunError(f"{folder} exists already; choose another --out, or remove it")
        self.folder, self.part = folder, part_folder(folder)
        self.resumed = False
        """Whether an earlier session began it; known once it is entered."""
        self._facts = _plain(facts)
        self._arguments = arguments
        self.begun: dict[str, Any] = dict(begun or {})
        self.before_s = 0.0
        """What earlier sessions had worked when they last wrote."""
        self._entered = time.monotonic()
        self._lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        self._saved: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> "Draft":
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"another process is training {self.folder}") from None
        except OSError as error:
            raise RunError(f"cannot make the run folder {self.part}: {error.strerror}") from error
        try:
            if self.folder.exists():  # another process has completed it since we looked
                raise RunError(f"{self.folder} exists already; choose another --out, or remove it")
            self._begin()
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave what is there to be gone on with, if an error did not end it before there was anything, or for good."""
        kept = any(self._in(name).is_dir() and any(self._in(name).iterdir()) for name in _KEPT)
        in_vain = isinstance(error, DivergedError)  # as it would again
        if self.part.is_dir() and (in_vain or not (kept or isinstance(error, KeyboardInterrupt))):
            shutil.rmtree(self.part, ignore_errors=True)
        self._unlock()
        if isinstance(error, OSError):
            raise RunError(f"cannot write the run {self.folder}: {error.strerror or error}") from error

    def finished(self, job: Job) -> Trained | None:
        """What has come of a model, its weights left out; None if it is not finished."""
        file = self._in("finished") / f"{job.name}.safetensors"
        header = _header(file)
        if header is None or _header(self._in("weights") / f"{job.name}.safetensors") is None:
            return None
        history = _history(header)
        if history is None or not _is_of(job, header):
            return None
        tensors = _read(file)
        parts = {kind: _below(f"{kind}.", tensors) for kind in ("attention", "learned")}
        return Trained(
            job,
            {},
            history,
            tensors["predicted"].numpy(),
            {name: value.numpy() for name, value in parts["attention"].items()},
            {name: value.numpy() for name, value in parts["learned"].items()},
        )

    def finish(self, trained: Trained) -> None:
        """Keep a model that has learnt."""
        import torch

        card = {"card": json.dumps({"name": trained.job.name, **self._facts}, ensure_ascii=False)}
        _write(self._in("weights") / f"{trained.job.name}.safetensors", trained.weights, card)
        tensors = {f"attention.{name}": torch.from_numpy(value) for name, value in trained.attention.items()}
        tensors |= {f"learned.{name}": torch.from_numpy(value) for name, value in trained.learned.items()}
        tensors["predicted"] = torch.from_numpy(trained.predicted)
        facts = json.dumps({"history": [asdict(epoch) for epoch in trained.history]})
        _write(self._in("finished") / f"{trained.job.name}.safetensors", tensors, {"facts": facts, **self._worked()})
        (self._in("training") / f"{trained.job.name}.safetensors").unlink(missing_ok=True)

    def restore(self, learner: Learner) -> bool:
        """Put a model back to where an earlier session left it; False if there is no such place."""
        self._saved[learner.job.name] = time.monotonic(), FIRST_S
        file = self._in("training") / f"{learner.job.name}.safetensors"
        header = _header(file)
        if header is None:
            return False
        own = bytes_of(kinds_of(learner.module.state_dict()))
        if bytes_of(header.kinds) > 4 * own + SMALL_BYTES:  # weights, the best ones and two of Adam's
            return False
        return learner.restore(_read(file), header.metadata.get("facts", ""))

    def checkpoint(self, learner: Learner, *, in_step: int) -> None:
        """Note where a model is, if the last note is old enough; so many models wait for each other's notes."""
        name, now = learner.job.name, time.monotonic()
        written, took = self._saved[name]
        if now - written < max(PAUSE_S, REST * took * in_step) or learner.done:
            return
        tensors, facts = learner.state()
        _write(self._in("training") / f"{name}.safetensors", tensors, {"facts": facts, **self._worked()})
        self._saved[name] = (time.monotonic(), time.monotonic() - now)

    def complete(self) -> None:
        """Everything is in the folder: give it its name, and take away what only training needed."""
        self.part.replace(self.folder)
        for name in _KEPT:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "plan.json").unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave nothing: a model of it diverged."""
        shutil.rmtree(self.part, ignore_errors=True)

    def _begin(self) -> None:
        refuse_links(self.part, ("weights", *_KEPT))
        plan = self.part / "plan.json"
        if plan.is_file():
            known = read_plan(plan)
            begun = known.facts
            if other := _unlike(begun, self._facts):
                said = ", ".join(_changes(begun, self._facts))
                raise RunError(
                    f"{self.part} was begun with other {', '.join(other)}{f': {said}' if said else ''}; "
                    "go on as it was begun, choose another --out, or remove it"
                )
            self.resumed = True
            self.begun.update((name, value) for name, value in known.begun.items())
            for left in (each for place in (self.part, self._in("weights")) for each in place.glob(f".*{PART}")):
                left.unlink()  # by a process that was killed
            self.before_s = max(
                (_worked_s(file) for kind in _KEPT for file in self._in(kind).glob("*.safetensors")), default=0.0
            )
            return
        folders = ("weights", *_KEPT)
        if self.part.exists() and not _is_empty(self.part, folders):
            raise RunError(f"{self.part} is in the way, and no run was begun there; remove it or choose another --out")
        for name in folders:
            self._in(name).mkdir(parents=True, exist_ok=True)
        about = {"facts": self._facts, "arguments": self._arguments, "begun": self.begun}
        with replacing(plan) as out:
            out.write((json.dumps(about, indent=2, default=str) + "\n").encode())

    def _worked(self) -> dict[str, str]:
        return {"worked_s": f"{self.before_s + time.monotonic() - self._entered:.3f}"}

    def _in(self, name: str) -> Path:
        return self.part / name

    def _unlock(self) -> None:
        Path(self._lock.lock_file).unlink(missing_ok=True)  # while it is ours, or another one could hold what we unlink
        self._lock.release()


def differs(folder: Path, facts: Mapping[str, Any]) -> list[str] | None:
    """In which facts a complete run is another; None if there is no complete run."""
    file = next((folder / "weights").glob("*.safetensors"), None)
    if file is None or not (folder / "config.json").is_file():
        return None
    try:
        card = parse_json(read_header(file).metadata.get("card", "{}"))
    except ValueError as error:
        raise RunError(f"the card of weights {file} cannot be read: {error}; choose another --out") from error
    return _unlike(card if isinstance(card, dict) else {}, _plain(facts))


def begun_with(folder: Path) -> Mapping[str, Any]:
    """The arguments of the command that began a run.

    Raises:
        RunError: there is no such run, or it is complete, or it was not begun by a command.
    """
    part = draft_of(folder)
    arguments = read_plan(
        part / "plan.json", missing=f"there is no run {folder} to go on with; `heads train` begins one"
    ).arguments
    if not arguments:
        raise RunError(f"{part} was not begun by `heads train`; call heads.train with the same plan to go on")
    return arguments


def draft_of(folder: Path) -> Path:
    """Where the draft of a run is, or one of the drafts of a sweep; it may not be there.

    Raises:
        RunError: the run is complete.
    """
    if (folder / "config.json").is_file():
        raise RunError(f"{folder} is complete; there is nothing to go on with")
    part = folder if folder.suffix == ".part" else part_folder(folder)
    return part if part.is_dir() else next((plan.parent for plan in folder.glob("*.part/plan.json")), part)  # a sweep


@dataclass(frozen=True)
class Begun:
    """What plan.json says."""

    facts: dict[str, Any] = field(default_factory=dict)
    """What the run is to be."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Those of the command; empty if none began it."""
    begun: dict[Literal["command", "directory", "started"], str] = field(default_factory=dict)


def read_plan(file: Path, *, missing: str | None = None) -> Begun:
    """What a draft is to be.

    Raises:
        RunError: there is none (`missing` says what that means), or it is not as it was written.
    """
    return read_as(_plan_adapter(), file, missing=missing)


@cache
def _plan_adapter() -> "TypeAdapter[Begun]":
    from pydantic import TypeAdapter

    return TypeAdapter(Begun)


@cache
def _epochs_adapter() -> "TypeAdapter[list[Epoch]]":
    from pydantic import TypeAdapter

    return TypeAdapter(list[Epoch])


_KEPT = ("finished", "training")


def _write(file: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        with fresh_path(file) as part:
            save_file(plain, part, metadata=metadata)
    except SafetensorError as error:  # which an OSError has become
        raise RunError(f"cannot write {file}: {error}") from error


def _read(file: Path) -> "dict[str, Tensor]":
    """The tensors of a file whose header has been looked at."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(file)
    return tensors


def _worked_s(file: Path) -> float:
    header = _header(file)
    try:
        seconds = float(header.metadata.get("worked_s", 0)) if header else 0.0
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds <= LONGEST_S else 0.0


def _history(header: Header) -> list[Epoch] | None:
    """None if it is not as it was written."""
    from pydantic import ValidationError

    try:
        facts = parse_json(header.metadata["facts"])
        epochs = _epochs_adapter().validate_python(facts["history"])
        losses = [loss for each in epochs for loss in (each.loss, each.train_loss, each.baseline_loss or 0.0)]
        return epochs if all(map(math.isfinite, losses)) else None
    except (KeyError, TypeError, ValueError, ValidationError):
        return None


def _is_of(job: Job, header: Header) -> bool:
    """Whether a file has what a model said of the rows that it is tested on, and no more than a file of that."""
    shapes = {name: shape for name, (kind, shape) in header.kinds.items() if kind == "F32"}
    looked = {name.removeprefix("attention.") for name in shapes if name.startswith("attention.")}
    of_rows = ["predicted", *(f"attention.{name}" for name in looked)]
    return (
        len(shapes) == len(header.kinds)
        and all(name in of_rows or name.startswith("learned.") for name in shapes)
        and len(shapes.get("predicted", ())) == 2
        and all(shapes[name][0] == len(job.test) for name in of_rows)
        and looked <= {*ATTENTION_AXES}
        and all(len(shapes[f"attention.{name}"]) == len(ATTENTION_AXES[name]) for name in looked)
        and bytes_of(header.kinds) <= LARGE_BYTES
    )


def _is_empty(part: Path, folders: Sequence[str]) -> bool:
    """Whether a draft is one that was killed before it had a plan: empty folders, and a plan half written."""
    return all(
        not any(each.iterdir()) if each.name in folders else each.name.startswith(".") and each.name.endswith(PART)
        for each in part.iterdir()
    )


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(facts, ensure_ascii=False, default=str))
    return plain


def _header(file: Path) -> Header | None:
    """None if the file is not there, was torn by a power failure, or is none."""
    try:
        return read_header(file)
    except (FileNotFoundError, RunError):
        return None


def _below(prefix: str, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _unlike(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    # Only a head that is a plugin has this fact: a plugin and one of heads' own may have the same name.
    return [name for name in dict.fromkeys([*now, "plugin"]) if before.get(name) != now.get(name)]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`epochs was 4, is now 5`, of facts and of what is within them; those that are long, as digests, say nothing."""
    said = []
    for name in _unlike(before, now):
        was, this = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(this, dict):
            said += _changes(was, this)
        elif max(len(was := _json(was)), len(this := _json(this))) <= SAYABLE:
            said.append(f"{name} was {was}, is now {this}")
    return said


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
