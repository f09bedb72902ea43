"""Initial weights: what parts of a model begin with, as released, of a file or of another run, or at random.

Option `init_PART` of a system says it for the part of its model of that name: `imagenet` (as the network was released),
`random`, a weights file, or the folder of a run whose model has such a part, or a trunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import featstore
from featstore.support import few
from heads.errors import HeadsError, RunError, TrainingError, UnknownSystemError
from heads.systems.system import Options, System

RELEASED, RANDOM = "imagenet", "random"
TRUNK = "trunk"
"""The part of another run that fits into a part of another name, as the stream of one task in a network of several."""


@dataclass(frozen=True, eq=False)
class Initial:
    """What a part of a model begins with."""

    origin: str
    """As the option says it."""
    state: Mapping[str, Tensor]
    """By the names of the part."""
    sha256: str


def find_initial(system: System, options: Options, model: nn.Module) -> dict[str, Initial]:
    """By part, what the options say; nothing of parts that begin at random.

    Args:
        model: as it is built, perhaps without values.

    Raises:
        TrainingError: weights are not there, cannot be read, or are not of such a part.
        featstore.FeatstoreError: released weights are not to be had.
    """
    found = {}
    for part in system.init:
        origin = str(options[f"init_{part}"])
        if origin == RANDOM:
            continue
        module = model.get_submodule(part)
        state = _released(part, module) if origin == RELEASED else _of_file(part, module, Path(origin).expanduser())
        _check(part, origin, module, state)
        found[part] = Initial(origin, state, _digest(state))
    return found


def begin_with(model: nn.Module, initial: Mapping[str, Initial]) -> None:
    """Give parts of a model the weights that they begin with."""
    for part, begun in initial.items():
        model.get_submodule(part).load_state_dict(dict(begun.state))


def _released(part: str, module: nn.Module) -> dict[str, Tensor]:
    """
    Raises:
        TrainingError: nobody has released such a part.
    """
    released: Any = getattr(module, "released", None)
    if released is None:
        raise TrainingError(
            f"--set init_{part}={RELEASED}: no such network was released; say {RANDOM}, a weights file, or a run"
        )
    try:
        state: dict[str, Tensor] = released(featstore.find_config().weights)
    except featstore.FeatstoreError as error:
        raise TrainingError(f"{error}; or begin with other weights, --set init_{part}=FILE, RUN or {RANDOM}") from error
    return state


def _of_file(part: str, module: Any, place: Path) -> dict[str, Tensor]:
    """
    Raises:
        TrainingError: there is no such file or run, or it has no such part.
    """
    from heads.runs.run import Run
    from heads.runs.weights import load

    file = place
    if place.is_dir():
        try:
            files = Run(place).weights_files()
        except RunError as error:
            raise TrainingError(f"--set init_{part}={place}: {error}") from error
        if len(files) > 1:
            raise TrainingError(
                f"--set init_{part}={place}: the run has {len(files)} models ({few((f.name for f in files), 3)}); name "
                "one of them, or train one on all photos, with --hold-out"
            )
        (file,) = files
    if not file.is_file():
        raise TrainingError(
            f"--set init_{part}={place}: it is no weights file and no run; expected {RELEASED}, {RANDOM}, FILE or RUN"
        )
    state: dict[str, Tensor] = {}
    if file.suffix == ".safetensors":
        try:
            state = load(file)
        except HeadsError as error:
            raise TrainingError(f"--set init_{part}={place}: {error}") from error
        for prefix in (f"{part}.", f"{TRUNK}."):
            if below := {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}:
                return below
        if {*state} & {*module.state_dict()}:
            return state
    try:
        released: dict[str, Tensor] = module.released(featstore.WeightsPolicy(named={"*": str(file)}))
    except featstore.FeatstoreError as error:
        raise TrainingError(f"--set init_{part}={place}: {error}") from error
    except (UnknownSystemError, AttributeError) as error:  # nobody released such a part
        if not state:
            raise TrainingError(f"--set init_{part}={place}: expected a file that ends in .safetensors") from error
        return state
    return released


def _check(part: str, origin: str, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """
    Raises:
        TrainingError: the weights are not of such a part.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    problems = {
        "missing": [name for name in own if name not in state],
        "of another shape": [name for name in own if name in state and tuple(state[name].shape) != own[name]],
        "not of this network": [name for name in state if name not in own],
    }
    told = "; ".join(f"{len(names)} {what} ({few(names, 3)})" for what, names in problems.items() if names)
    if told:
        raise TrainingError(f"--set init_{part}={origin}: the weights are not of this part of the model: {told}")


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
