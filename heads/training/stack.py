"""A stack: models of one architecture that learn in one pass, each what it would learn alone.

The parameters of M models lie side by side, and `torch.vmap` runs all of them at once: a GPU that one small model
leaves idle has M times the work in the same number of calls. Batches, dropout, rates, early stopping and checkpoints
stay those of each `Learner`; its parameters are views of the stack's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby, zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from featstore.support import device_full, device_lost
from heads.systems.layers import Dropout
from heads.training.features import MINIBATCH, Group
from heads.training.learner import Learner
from heads.training.optimiser import step_together
from heads.training.prediction import BatchOutput, arithmetic, cut

OF_EACH_MODEL = ("lr", "lr_factor", "lr_every", "epochs", "patience", "inner", "batch")
"""Options that models of one stack may have of their own."""
PROBED = 2
"""Images that show whether a stack can be."""


class Stacks:
    """Learners in as few stacks as there are architectures among them; those that `vmap` refuses go one by one."""

    def __init__(self) -> None:
        self._stacks: list[Stack] = []
        self._alone: list[Learner] = []

    def spread(
        self, learners: Sequence[Learner], groups: Iterable[Group], visit: Callable[[Learner, Group], None]
    ) -> None:
        """Every learner visits every group: to learn and to be validated side by side, for all else in turn."""
        together = _TOGETHER.get(visit)
        if together is not None:
            self._arrange(learners)
        for group in groups:
            for stack in self._stacks if together else ():
                together(stack, group)  # type: ignore[misc]
            for learner in self._alone if together else learners:
                visit(learner, group)

    def _arrange(self, learners: Sequence[Learner]) -> None:
        """Stack these learners and no others; what is left of a stack when some of it have ended is a new one."""
        if {*learners} == {*self._alone, *(each for stack in self._stacks for each in stack.learners)} and all(
            stack.is_as_it_was for stack in self._stacks
        ):
            return
        for stack in self._stacks:
            stack.take_apart()
        self._stacks, self._alone = [], []
        for alike in _alike(learners):
            if len(alike) == 1 or not _can_be_stacked(alike[0]):
                self._alone += alike
            elif (made := Stack(alike)).works():
                self._stacks.append(made)
            else:
                made.take_apart()
                self._alone += alike


class Stack:
    """M learners of one architecture, at the same stage.

    Their parameters and buffers become views of tensors (M, ...), until `take_apart`.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = list(learners)
        self._precision, self._device = learners[0].problem.precision, learners[0].problem.device
        self._stages = [learner.stage for learner in learners]
        self._base: nn.Module = learners[0].inside
        self._parameters = _side_by_side([dict(each.inside.named_parameters()) for each in learners])
        self._buffers = _side_by_side([dict(each.inside.named_buffers()) for each in learners])

    @property
    def is_as_it_was(self) -> bool:
        """Whether every learner is at the stage at which it was stacked: the next moves other parameters."""
        return self._stages == [learner.stage for learner in self.learners]

    def take_apart(self) -> None:
        """Give each model memory of its own again."""
        for learner in self.learners:
            for value in (*learner.inside.parameters(), *learner.inside.buffers()):
                value.data = value.data.clone()

    def works(self) -> bool:
        """Whether `vmap` takes the model and its loss."""
        shapes = self.learners[0].problem.shapes
        features = [torch.zeros(len(self.learners), PROBED, *shape, device=self._device) for shape in shapes]
        labels = torch.zeros(len(self.learners), PROBED, len(self.learners[0].target.tasks), device=self._device)
        states = [learner.randomness.get_state() for learner in self.learners]
        kept = {name: value.clone() for name, value in self._buffers.items()}
        try:
            self._base.train()
            leaves = self._leaves(slice(None))
            self._losses(slice(None), leaves, features, labels).sum().backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            if device_full(error) or device_lost(error):
                raise
            return False
        finally:
            for name, value in kept.items():
                self._buffers[name].copy_(value)
            for learner, state in zip(self.learners, states, strict=True):
                learner.randomness.set_state(state)
        return True

    def learn(self, group: Group) -> None:
        """One step of every model for each of its minibatches of the rows in a group."""
        for learner in self.learners:
            learner.ready_to_learn()
        for turn in zip_longest(*(learner.minibatches(group) for learner in self.learners)):
            moving = [learner for learner, rows in zip(self.learners, turn, strict=True) if rows is not None]
            for learner in moving:
                learner.optimiser.clear_gradients()
            for some, batches in _runs(turn):
                self._learn(group, some, batches)
            by_rate = sorted(moving, key=lambda learner: learner.rate)
            for rate, same in groupby(by_rate, key=lambda learner: learner.rate):
                step_together([learner.optimiser for learner in same], rate)

    def validate(self, group: Group) -> None:
        """Note the outputs of every model for its inner rows in a group."""
        for learner in self.learners:
            learner.module.eval()
        for turn in zip_longest(*(cut(group.holds(learner.inner), MINIBATCH) for learner in self.learners)):
            for some, batches in _runs(turn):
                found, features, _ = self._gather(group, some, batches, draw=False)
                with torch.inference_mode():
                    outputs = self._outputs(
                        some, {name: each[some] for name, each in self._parameters.items()}, features
                    )
                for learner, rows, said in zip(self.learners[some], found, outputs, strict=True):
                    learner.note_inner([BatchOutput(rows, said.float(), {})])

    def _learn(self, group: Group, some: slice, batches: Sequence[NDArray[np.int64]]) -> None:
        """The gradients of models that lie side by side and have batches of one size."""
        _, features, labels = self._gather(group, some, batches, draw=True)
        leaves = self._leaves(some)
        losses = self._losses(some, leaves, features, labels)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for place, learner in enumerate(self.learners[some]):
            for name, parameter in learner.inside.named_parameters():
                if (gradient := leaves[name].grad) is not None:
                    parameter.grad = gradient[place]
            learner.note_loss(losses[place], len(batches[place]))

    def _gather(
        self, group: Group, some: slice, batches: Sequence[NDArray[np.int64]], *, draw: bool
    ) -> tuple[list[NDArray[np.int64]], list[Tensor], Tensor]:
        """Of m models with n images each: the rows, the features (m, n, ...) of each tensor, the labels (m, n, K)."""
        learners = self.learners[some]
        shapes = learners[0].problem.shapes
        features = [torch.empty(len(learners), len(batches[0]), *shape, device=self._device) for shape in shapes]
        found, labels = [], []
        for place, (learner, rows) in enumerate(zip(learners, batches, strict=True)):
            views = learner.draw_views(group, rows) if draw else None
            here, labelled, _ = learner.batch(group, rows, views=views, out=[each[place] for each in features])
            found.append(here)
            labels.append(labelled)
        return found, features, torch.stack(labels)

    def _leaves(self, some: slice) -> dict[str, Tensor]:
        moving = {name for name, each in self._base.named_parameters() if each.requires_grad}
        return {name: each[some].detach().requires_grad_(name in moving) for name, each in self._parameters.items()}

    def _losses(
        self, some: slice, parameters: Mapping[str, Tensor], features: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """(m,)"""
        losses: Tensor = torch.vmap(self.learners[0].loss)(self._outputs(some, parameters, features).float(), labels)
        return losses

    def _outputs(self, some: slice, parameters: Mapping[str, Tensor], features: Sequence[Tensor]) -> Tensor:
        """(m, n, n_outputs)"""
        buffers = {name: each[some] for name, each in self._buffers.items()}

        def one(parameters: Any, buffers: Any, *features: Tensor) -> Any:
            return functional_call(self._base, (parameters, buffers), features)

        generators = [learner.randomness for learner in self.learners[some]]
        with _drawing(self._base, generators), arithmetic(self._precision, self._device):
            outputs: Tensor = torch.vmap(one)(dict(parameters), buffers, *features)
        return outputs


_TOGETHER: dict[Any, Callable[[Stack, Group], None]] = {Learner.learn: Stack.learn, Learner.validate: Stack.validate}


def _can_be_stacked(learner: Learner) -> bool:
    """Networks that learn from pixels fill a GPU by themselves; a model with a loss of its own may do anything."""
    return not (learner.problem.system.from_pixels or hasattr(learner.inside, "training_loss"))


def _alike(learners: Sequence[Learner]) -> list[list[Learner]]:
    """Learners whose models and steps differ in nothing but numbers; those with as many rows lie side by side."""
    found: dict[Any, list[Learner]] = {}
    for learner in sorted(learners, key=lambda each: len(each.fit)):
        problem, target = learner.problem, learner.target
        options = {name: value for name, value in problem.options.items() if name not in OF_EACH_MODEL}
        shapes = [(name, each.shape, each.requires_grad) for name, each in learner.inside.named_parameters()]
        loss = None if problem.system.loss is None else target
        key = (problem.system.name, repr(sorted(options.items())), target.kind, repr(shapes), repr(loss), learner.stage)
        found.setdefault(key, []).append(learner)
    return list(found.values())


def _side_by_side(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """By name, the values (M, ...) of all models, of which those of each become views."""
    stacked = {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}
    for name, values in stacked.items():
        for state, value in zip(states, values, strict=True):
            state[name].data = value
    return stacked


def _runs(
    turn: Sequence[NDArray[np.int64] | None],
) -> Iterator[tuple[slice, list[NDArray[np.int64]]]]:
    """Stretches of models that lie side by side and whose batches have one size."""
    start = 0
    for size, same in groupby(turn, key=lambda rows: -1 if rows is None else len(rows)):
        batches = list(same)
        if size >= 0:
            yield slice(start, start + len(batches)), batches  # type: ignore[misc]
        start += len(batches)


@contextmanager
def _drawing(module: nn.Module, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Dropout of a module draws from these generators, one for each model."""
    dropouts = [each for each in module.modules() if isinstance(each, Dropout)]
    for each in dropouts:
        each.generators = generators
    try:
        yield
    finally:
        for each in dropouts:
            each.generators = ()
