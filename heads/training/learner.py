"""The training loop of one model: minibatches, epochs, stages; and its state between two epochs.

Early stopping looks at an inner part of the training rows, never at the rows that a model is tested on. All that
is random in an epoch follows from the model's seed and the number of the epoch, so that a model that goes on from
a checkpoint, or trains beside others, learns what it would have learnt alone and undisturbed.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from threading import Event, Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featstore.files import parse_json
from heads.errors import DivergedError
from heads.labels.target import Target
from heads.systems.system import Options, Shape, Stage, System
from heads.training.cost import Cost
from heads.training.features import Group, index_on
from heads.training.initial import Initial, begin_with
from heads.training.losses import Loss, knowing_nothing, masked_loss
from heads.training.optimiser import Optimiser
from heads.training.prediction import BatchOutput, Precision, arithmetic, collect, cut, parts, run
from heads.training.standardising import Standardised, count
from heads.training.stopping import EarlyStopping

EXPLODED = 10
"""A model has diverged that loses so many times what saying the mean of every photo does, and than it did untrained."""
_GLOBAL_RANDOMNESS = Lock()
"""Initial weights are drawn from torch's one generator, by one thread at a time."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What all models of an experiment have in common."""

    system: System
    options: Options
    target: Target
    shapes: tuple[Shape, ...]
    layouts: tuple[str, ...]
    """Of each tensor: stack or concat."""
    labels: NDArray[np.float32]
    """(N, K), as `Target` says."""
    sets: NDArray[np.int64]
    """(N,) which label set an image's labels come from."""
    seed: int
    device: torch.device
    precision: Precision = "fp32"
    swept: bool = False
    """Whether it is one of several that are tried: models that explode are then refused, and otherwise doubted."""
    initial: Mapping[str, Initial] = field(default_factory=dict)
    """What parts of the model begin with; parts that are not named begin with random weights."""
    cost: Cost | None = None
    """Of one photo, of a network that is trained from pixels, where it is known."""

    @property
    def micro(self) -> int:
        """Photos of a minibatch that go through the model at a time; 0: all of them."""
        return int(self.options.get("micro", 0))


@dataclass(frozen=True)
class Job:
    """One model to be trained, and what it is tested on."""

    repeat: int
    part: int | None
    """The number of the part of the split; None for a model that learns from all rows."""
    task: int | None
    """The only task that it learns, of a system of one model per task."""
    fit: NDArray[np.int64]
    inner: NDArray[np.int64]
    test: NDArray[np.int64]
    seed: int
    inner_folds: tuple[NDArray[np.int64], ...] = ()
    """Parts of `fit`, each of which is held out in turn where an estimator has something to choose."""

    @property
    def name(self) -> str:
        task = "" if self.task is None else f"-task{self.task}"
        return f"repeat{self.repeat}-" + ("all" if self.part is None else f"fold{self.part}") + task


@dataclass(frozen=True)
class Epoch:
    """One line of a model's history."""

    stage: int
    epoch: int
    train_loss: float
    val_loss: float | None
    """None without inner rows."""
    best: bool = False
    """The epoch whose weights were kept."""
    baseline_loss: float | None = None
    """What saying the mean of the training rows would lose: on the inner rows, or on the training rows without them."""

    @property
    def loss(self) -> float:
        """What is held against it."""
        return self.train_loss if self.val_loss is None else self.val_loss


@dataclass(frozen=True)
class Place:
    """Where a model is between two epochs; its weights beside it."""

    stage: int
    epoch: int
    """Epochs of the stage that have been."""
    best_epoch: int
    best_loss: float | None
    """None without one."""
    history: list[Epoch]
    untrained: float | None = None


@dataclass(frozen=True)
class Trained:
    """A model that has learnt: its weights and what it says of the rows that it is tested on."""

    job: Job
    weights: Mapping[str, Tensor]
    history: list[Epoch]
    predicted: NDArray[np.float32]
    """(n, n_outputs), scaled ratings or probabilities, in the order of `job.test`."""
    attention: Mapping[str, NDArray[np.float32]]
    """(n, ...) by name; empty for a model without attention."""
    learned: Mapping[str, NDArray[np.float32]]
    """Parameters that say something by themselves."""


def assemble(
    system: System, shapes: tuple[Shape, ...], layouts: tuple[str, ...], target: Target, options: Options
) -> nn.Module:
    """The model of a system, standardising if its options say so."""
    model = system.build(shapes, target, options)
    if not options.get("standardise"):
        return model
    return Standardised(shapes, model, layouts=layouts, gain=options["gain"])


def learned_by(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The parameters of a model that say something by themselves; none of most."""
    learned: Mapping[str, Tensor] = getattr(model, "learned", dict)()
    return {name: value.detach().float().cpu().numpy() for name, value in learned.items()}


def blank_model(
    system: System, shapes: tuple[Shape, ...], layouts: tuple[str, ...], target: Target, options: Options
) -> nn.Module:
    """The model of a system without values: it takes no memory, and shows what weights fit and what a photo costs."""
    one = target.only(0) if system.per_task and len(target.tasks) > 1 else target
    with torch.device("meta"):
        model: nn.Module = parts(assemble(system, shapes, layouts, one, options))[0]
    return model


class StoppedError(Exception):
    """Training was told to stop."""


class Learner:
    """A model in training.

    Args:
        stop: ends training at the next minibatch.

    Raises:
        DivergedError: in `end_epoch`, the loss is no longer a number, or that of one of several that are tried has
            exploded when training ends.
        StoppedError: in `learn`.
    """

    def __init__(self, problem: Problem, job: Job, stop: Event | None = None) -> None:
        self.job, self.problem, self._device = job, problem, problem.device
        self._stop = stop or Event()
        self.target = problem.target if job.task is None else problem.target.only(job.task)
        options = self._options = problem.options
        self._micro = problem.micro
        with _GLOBAL_RANDOMNESS, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(job.seed)  # not CUDA's, which nobody would put back
            self.module = assemble(problem.system, problem.shapes, problem.layouts, self.target, options).to(
                self._device
            )
        self.inside, self._prepare = parts(self.module)
        begin_with(self.inside, problem.initial)
        self._moments = self.module.moments() if isinstance(self.module, Standardised) else []
        self.randomness = torch.Generator(self._device)
        for each in self.module.modules():
            if hasattr(each, "generator"):
                each.generator = self.randomness  # type: ignore[assignment]
        labels = problem.labels if job.task is None else problem.labels[:, [job.task]]
        self._labels = torch.from_numpy(labels).to(self._device)
        self.loss: Loss = (problem.system.loss or masked_loss)(self.target)
        self._stages = problem.system.stages(options) if problem.system.stages else _one_stage(options)
        self.history: list[Epoch] = []
        self._best: dict[str, Tensor] = {}
        self._stopping: EarlyStopping
        self._untrained: Tensor | float | None
        """The loss of the first minibatch of the stage, before the first step."""
        self.optimiser: Optimiser
        self._stage_labels: Tensor
        self._enter(0)

    @property
    def stage(self) -> int:
        """The number of the stage that it is at."""
        return self._stage

    @property
    def done(self) -> bool:
        return self._stage >= len(self._stages)

    @property
    def n_epochs(self) -> int:
        """How many it may take at most."""
        return sum(stage.epochs for stage in self._stages)

    @property
    def fit(self) -> NDArray[np.int64]:
        """The rows that this stage learns from."""
        return self._with_labels(self.job.fit)

    @property
    def inner(self) -> NDArray[np.int64]:
        return self._with_labels(self.job.inner)

    @property
    def needs_moments(self) -> bool:
        return bool(self._moments)

    def learn_moments(self, group: Group) -> None:
        """Count the rows of a group in the statistics of the features."""
        count(self._moments, group, self.job.fit)

    def take_moments(self) -> None:
        for number, moments in enumerate(self._moments):
            self.module.learn(number, moments)  # type: ignore[operator]
        self._moments = []

    def begin_epoch(self) -> None:
        about = [self.job.seed, self._stage, self._epoch]
        self._order = np.random.default_rng(about)
        self.randomness.manual_seed(int(np.random.SeedSequence(about).generate_state(1, np.uint64)[0] >> 1))
        options, stage = self._options, self._stages[self._stage]
        self.rate = stage.lr * options["lr_factor"] ** (self._epoch // options["lr_every"])
        self._total = torch.zeros((), dtype=torch.float64, device=self._device)
        self._seen = 0
        self._inner_outputs: list[BatchOutput] = []

    def learn(self, group: Group) -> None:
        """One step for each minibatch of the rows in a group.

        A minibatch that is too large for the memory of a GPU goes through in parts of half the size from then on.
        """
        self.ready_to_learn()
        for rows in self.minibatches(group):
            views, drawn = self.draw_views(group, rows), self.randomness.get_state()
            while (loss := self.gradients(group, rows, views)) is None:
                self._micro = max(1, (self._micro or len(rows)) // 2)
                self.randomness.set_state(drawn)
            self.optimiser.step(self.rate)
            self.note_loss(loss, len(rows))

    def ready_to_learn(self) -> None:
        """Whatever moves in this stage is in training, and nothing else.

        Where no parameter of a part moves, its batch norms keep their statistics and its dropout drops nothing.
        """
        self.module.train()
        for part in _outermost(self.inside, lambda each: not any(p.requires_grad for p in each.parameters())):
            part.eval()

    def gradients(self, group: Group, rows: NDArray[np.int64], views: NDArray[np.int64] | None) -> Tensor | None:
        """The loss of a minibatch, and its gradients in the parameters; None if a GPU has too little memory for it.

        It goes through the model `micro` rows at a time: each part counts by its rows.
        """
        self.optimiser.clear_gradients()
        total = torch.zeros((), device=self._device)
        parts = cut(np.arange(len(rows)), self._micro) if self._micro else [np.arange(len(rows))]
        try:
            for some in parts:
                _, labels, features = self.batch(group, rows[some], views=None if views is None else views[some])
                loss = self._loss_of(features, labels)
                if len(parts) > 1:
                    loss = loss * (len(some) / len(rows))
                loss.backward()  # type: ignore[no-untyped-call]
                total = total + loss.detach()
        except torch.OutOfMemoryError:
            if len(parts) == len(rows):
                raise
            return None
        return total

    def _loss_of(self, features: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        own = getattr(self.inside, "training_loss", None)
        with arithmetic(self.problem.precision, self._device):
            if own is not None:
                loss: Tensor = own(labels, *features)
                return loss
            outputs = self.inside(*features)
        return self.loss(outputs.float(), labels)

    def minibatches(self, group: Group) -> Iterator[NDArray[np.int64]]:
        """The rows of a group that this stage learns from, in the order of this epoch.

        Raises:
            StoppedError: training was told to stop.
        """
        for rows in self._minibatches(group.holds(self.fit)):
            if self._stop.is_set():
                raise StoppedError
            yield rows

    def draw_views(self, group: Group, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """A photo itself, or any of its augmented copies: each as likely, and drawn anew in every epoch."""
        return self._order.integers(group.n_views, size=len(rows)) if group.n_views > 1 else None

    def batch(
        self,
        group: Group,
        rows: NDArray[np.int64],
        *,
        views: NDArray[np.int64] | None = None,
        out: Sequence[Tensor] | None = None,
    ) -> tuple[NDArray[np.int64], Tensor, tuple[Tensor, ...]]:
        """Rows in the order in which they are gathered, their labels, and their features, ready for the model."""
        found, features = group.batch(rows, self._prepare, self._device, views=views, out=out)
        return found, self._stage_labels[index_on(self._device, found)], features

    def note_loss(self, loss: Tensor, n_rows: int) -> None:
        """Count the loss of a minibatch; nobody waits for the device to know it."""
        loss = loss.detach()
        self._total += loss.double() * n_rows
        self._seen += n_rows
        if self._untrained is None:
            self._untrained = loss

    def validate(self, group: Group) -> None:
        """Note the outputs for the inner rows in a group."""
        self.note_inner(self._run(group, self.inner))

    def note_inner(self, said: Iterable[BatchOutput]) -> None:
        """Note outputs for inner rows."""
        self._inner_outputs += said

    def end_epoch(self) -> None:
        """Keep the weights if they are the best so far; go on to the next stage after the last epoch of one."""
        stage = self._stages[self._stage]
        val_loss = None
        if self._inner_outputs:
            labels = self._stage_labels[torch.from_numpy(np.concatenate([said.rows for said in self._inner_outputs]))]
            val_loss = float(self.loss(torch.cat([said.outputs for said in self._inner_outputs]), labels))
        train_loss = float(self._total) / max(self._seen, 1)
        self._untrained = None if self._untrained is None else float(self._untrained)
        if not np.isfinite(train_loss) or (val_loss is not None and not np.isfinite(val_loss)):
            raise DivergedError(
                f"the loss of {self.job.name} is not a number after epoch {self._epoch + 1}; "
                f"try a lower rate, --set lr={stage.lr / 10:g}"
            )
        self.history.append(Epoch(self._stage, self._epoch, train_loss, val_loss, baseline_loss=self._baseline))
        self._epoch += 1
        verdict = self._stopping.judge(self._epoch, val_loss)
        if verdict.keep:
            self._best = {name: value.clone() for name, value in self.module.state_dict().items()}
        if verdict.stop or self._epoch >= stage.epochs:
            self._leave()

    def predict(self, group: Group) -> list[BatchOutput]:
        """What the model says of the rows in a group that it is tested on."""
        return self._run(group, self.job.test, attend=True)

    def trained(self, said: list[BatchOutput]) -> Trained:
        """What has come of it, with what it said of all rows that it is tested on."""
        predicted, attention = collect(said, self.job.test, self.target)
        return Trained(
            self.job,
            {name: value.detach().cpu() for name, value in self.module.state_dict().items()},
            self.history,
            predicted,
            attention,
            learned_by(self.inside),
        )

    def state(self) -> tuple[dict[str, Tensor], str]:
        """Everything between two epochs, for `restore`: tensors, and the rest as JSON."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        tensors |= {f"optimiser.{name}": value for name, value in self.optimiser.state().items()}
        place = Place(
            stage=self._stage,
            epoch=self._epoch,
            best_epoch=self._stopping.best_epoch,
            best_loss=self._stopping.best_loss if np.isfinite(self._stopping.best_loss) else None,
            history=self.history,
            untrained=None if self._untrained is None else float(self._untrained),
        )
        return tensors, json.dumps(asdict(place))

    def restore(self, tensors: Mapping[str, Tensor], facts: str) -> bool:
        """Put the model back to where it was; False, and nothing has changed, if this is no state of such a model."""
        known = self._where(facts)
        module, best = _below("module.", tensors), _below("best.", tensors)
        own = _kinds(self.module.state_dict())
        if known is None or _kinds(module) != own or (best and _kinds(best) != own):
            return False
        if not all(value.isfinite().all() for value in tensors.values()):
            return False
        before = self.history, self._stage
        self.history = known.history
        self._enter(known.stage)
        if not self.optimiser.restore(_below("optimiser.", tensors)):
            self.history = before[0]
            self._enter(before[1])
            return False
        self._epoch, self._stopping.best_epoch = known.epoch, known.best_epoch
        self._stopping.best_loss = float("inf") if known.best_loss is None else known.best_loss
        self.module.load_state_dict(module)
        self._best = best
        self._untrained = known.untrained
        self._moments = []
        return True

    def _where(self, facts: str) -> "Place | None":
        """Where a model was between two epochs, if that is a place that this one can be at."""
        from pydantic import TypeAdapter, ValidationError

        try:
            known = TypeAdapter(Place).validate_python(parse_json(facts))
        except (ValueError, ValidationError):
            return None
        n_here = sum(epoch.stage == known.stage for epoch in known.history)
        possible = (
            0 <= known.stage < len(self._stages)
            and 0 <= known.epoch < self._stages[known.stage].epochs
            and n_here == known.epoch
            and len(known.history) <= self.n_epochs
            and all(np.isfinite([epoch.loss, epoch.train_loss]).all() for epoch in known.history)
            and min(known.epoch, 1) <= known.best_epoch <= known.epoch
        )
        return known if possible else None

    def _enter(self, stage: int) -> None:
        self._stage, self._epoch, self._best = stage, 0, {}
        self._untrained = None
        self._stopping = EarlyStopping(self._options["patience"])
        if self.done:
            return
        now, moving, names = self._stages[stage], [], []
        for name, parameter in self.inside.named_parameters():
            parameter.requires_grad_(name.startswith(now.parameters))
            if parameter.requires_grad:
                moving.append(parameter)
                names.append(name)
        self.optimiser = Optimiser(
            moving,
            self._options,
            factors={n: now.factor(name) for n, name in enumerate(names)},
            undecayed=[n for n, name in enumerate(names) if now.leaves(name)],
        )
        self._stage_labels = self._labels
        if now.tasks is not None:
            counts = torch.zeros(self._labels.shape[1], dtype=torch.bool, device=self._device)
            counts[list(now.tasks)] = True
            self._stage_labels = torch.where(counts, self._labels, torch.nan)
        self._labelled = self._stage_labels.isfinite().any(1).cpu().numpy()
        self._baseline = self._loss_of_knowing_nothing()

    def _leave(self) -> None:
        # A model that has learnt takes no more memory than its weights while it predicts, and others learn.
        self.optimiser.forget()
        if self._best:
            self.module.load_state_dict(self._best)
        here = len(self.history) - self._epoch
        kept = here + self._stopping.best_epoch - 1
        self.history[kept] = replace(self.history[kept], best=True)
        self._refuse_what_exploded(self.history[kept])
        self._enter(self._stage + 1)

    def _loss_of_knowing_nothing(self) -> float | None:
        """None of a loss of the head's own for which it is not a positive number."""
        fitted, judged = (self._stage_labels[torch.from_numpy(rows)] for rows in (self.fit, self.inner))
        judged = judged if len(judged) else fitted
        loss = float(self.loss(knowing_nothing(self.target, fitted).expand(len(judged), -1), judged))
        return loss if 0 < loss < np.inf else None

    def _refuse_what_exploded(self, kept: Epoch) -> None:
        """
        Raises:
            DivergedError: it says far worse things than the mean, and than it did before it was trained.
        """
        if not self.problem.swept or kept.baseline_loss is None or self._untrained is None:
            return
        if kept.loss > EXPLODED * max(kept.baseline_loss, self._untrained):
            lr = self._stages[self._stage].lr
            raise DivergedError(
                f"{self.job.name} lost {kept.loss:.3g} when it ended, {kept.loss / kept.baseline_loss:.2g} times what "
                f"saying the mean of every photo loses; try a lower rate, --set lr={lr / 10:g}"
            )

    def _with_labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        kept: NDArray[np.int64] = rows[self._labelled[rows]]
        return kept

    def _minibatches(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """The rows in random order, in batches of even size, in turn from each label set if the system says so."""
        size, system = self._options["batch"], self.problem.system
        sets = self.problem.sets[rows] if system.alternate else np.zeros(len(rows), np.int64)
        if system.epoch_of is not None:
            known = self._stage_labels[torch.from_numpy(rows), system.epoch_of].isfinite().cpu().numpy()
            others = [self._endlessly(rows[~known & (sets == each)], size) for each in np.unique(sets[~known])]
            for batch in cut(self._order.permutation(rows[known]), size):
                yield batch
                yield from map(next, others)
            return
        by_set = [cut(self._order.permutation(rows[sets == each]), size) for each in np.unique(sets)]
        for turn in range(max(map(len, by_set), default=0)):
            yield from (batches[turn] for batches in by_set if turn < len(batches))

    def _endlessly(self, rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
        while True:
            yield from cut(self._order.permutation(rows), size)

    def _run(self, group: Group, rows: NDArray[np.int64], *, attend: bool = False) -> list[BatchOutput]:
        return list(run(self.module, group, rows, device=self._device, precision=self.problem.precision, attend=attend))


def _outermost(module: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    """The parts of a model that are wanted, and have parameters, and are in no other such part."""
    for part in module.children():
        if next(part.parameters(), None) is not None and wanted(part):
            yield part
        else:
            yield from _outermost(part, wanted)


def _one_stage(options: Options) -> tuple[Stage, ...]:
    return (Stage(epochs=options["epochs"], lr=options["lr"]),)


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (value.dtype, value.shape) for name, value in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
