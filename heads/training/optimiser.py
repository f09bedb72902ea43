"""Adam, AdamW and SGD, fused, by torch's own functions.

`torch.optim.Adam` itself imports torch's compiler (`torch._dynamo`) when the first one is made, for models that nobody
compiles. Measured with torch 2.14: 1.5 s of a core, 161 MB and 880 modules until the first step is done, against 0.02 s
and 2 MB here. The steps are the same to the last digit; what is left of `torch.optim.Optimizer` is here.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from heads.systems.system import Options

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch's defaults


class Optimiser:
    """Moves parameters against their gradients.

    Args:
        options: `optimiser`, `weight_decay` and `momentum`, as of `system.by_gradient`; and `clip`, if a system has it:
            the largest norm of all gradients together, to which larger ones are scaled; 0: none.
        factors: by the number of a parameter, how many times the rate its own one is; 1 if not said.
        undecayed: the numbers of the parameters that weight decay leaves alone.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        options: Options,
        *,
        factors: Mapping[int, float] | None = None,
        undecayed: Collection[int] = (),
    ) -> None:
        self.parameters = list(parameters)
        self._factors, self._undecayed = dict(factors or {}), frozenset(undecayed)
        self.options, self.kind = options, str(options["optimiser"])
        self._slots: list[dict[str, Tensor]] = [{} for _ in self.parameters]

    def step(self, lr: float) -> None:
        """One step at a rate; a parameter without a gradient stays."""
        step_together([self], lr)

    def clip(self) -> None:
        """Scale the gradients down if the options say so."""
        if largest := self.options.get("clip"):
            nn.utils.clip_grad_norm_(self.parameters, largest)

    def clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def forget(self) -> None:
        """Let go of gradients and moments, as at the end of training."""
        self.clear_gradients()
        self._slots = [{} for _ in self.parameters]

    def state(self) -> dict[str, Tensor]:
        """What it has counted, by the number of the parameter and the name of the slot."""
        return {f"{n}.{name}": value for n, slots in enumerate(self._slots) for name, value in slots.items()}

    def restore(self, state: Mapping[str, Tensor]) -> bool:
        """Take what was counted; False, and nothing is taken, if it is not of such parameters."""
        slots: list[dict[str, Tensor]] = [{} for _ in self.parameters]
        parameters = {str(n): (n, parameter) for n, parameter in enumerate(self.parameters)}
        for key, value in state.items():
            number, _, name = key.partition(".")
            n, parameter = parameters.get(number, (0, None))
            if parameter is None or value.shape != (() if name == "step" else parameter.shape):
                return False
            slots[n][name] = value.to(parameter.device, parameter.dtype, copy=True)
        self._slots = slots
        return True

    def moving(self) -> list[int]:
        """The numbers of the parameters that have a gradient."""
        return [n for n, parameter in enumerate(self.parameters) if parameter.grad is not None]

    def how(self, n: int, lr: float) -> tuple[float, float]:
        """The rate and the weight decay of a parameter, by its number."""
        decay = 0.0 if n in self._undecayed else float(self.options["weight_decay"])
        return lr * self._factors.get(n, 1.0), decay

    def slot(self, name: str, moving: Sequence[int]) -> list[Tensor]:
        """What is counted under a name of each of those parameters; it begins at 0."""
        for n in moving:
            if name not in self._slots[n]:
                of = self.parameters[n]
                self._slots[n][name] = torch.zeros((), device=of.device) if name == "step" else torch.zeros_like(of)
        return [self._slots[n][name] for n in moving]


@torch.no_grad()
def step_together(optimisers: Sequence[Optimiser], lr: float) -> None:
    """One step of several models with the same options: the same digits as one after another.

    All parameters that have a rate and a weight decay in common move in one call.
    """
    alike: dict[tuple[float, float], dict[Optimiser, list[int]]] = {}
    for optimiser in optimisers:
        optimiser.clip()
        for n in optimiser.moving():
            alike.setdefault(optimiser.how(n, lr), {}).setdefault(optimiser, []).append(n)
    for (rate, decay), moving in alike.items():
        _step(list(moving.items()), rate, decay)


def _step(moving: Sequence[tuple[Optimiser, Sequence[int]]], lr: float, weight_decay: float) -> None:
    """One step of the parameters of those numbers of each optimiser."""
    options, kind = moving[0][0].options, moving[0][0].kind
    parameters = [optimiser.parameters[n] for optimiser, some in moving for n in some]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]

    def slots(name: str) -> list[Tensor]:
        return [value for optimiser, some in moving for value in optimiser.slot(name, some)]

    if kind == "sgd":
        sgd(
            parameters,
            gradients,
            [*slots("momentum_buffer")] if options["momentum"] else [],
            fused=True,
            weight_decay=weight_decay,
            momentum=options["momentum"],
            lr=lr,
            dampening=0,
            nesterov=False,
            maximize=False,
        )
        return
    (adamw if kind == "adamw" else adam)(
        parameters,
        gradients,
        slots("exp_avg"),
        slots("exp_avg_sq"),
        [],
        slots("step"),
        fused=True,
        amsgrad=False,
        beta1=BETA1,
        beta2=BETA2,
        lr=lr,
        weight_decay=weight_decay,
        eps=EPS,
        maximize=False,
    )
