"""What every system keeps to, whoever wrote it: its defaults, its shapes, its randomness, and that it can be saved.

Those that read pixels have `test_every_pixel_system.py` besides.
"""

from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from heads.labels.target import Kind, Target
from heads.runs.attention import ATTENTION_AXES
from heads.systems import find_system, load_systems
from heads.systems.layers import Attentive, joined
from heads.systems.system import Sample, System

SHAPES = {"stack": (2, 3, 4), "concat": (5,), "any": (5,)}
MAP = (1, 4, 8)
"""A row of `vgg16-finetune-cached`, a map of 2 x 2 places."""
NARROW = ["attention=3", "hidden=4", "width=16", "hidden1=4", "hidden2=3", "plan=8,M,8,8,M", "fc=4"]
FROM_FEATURES = {name: system for name, system in load_systems().items() if not system.from_pixels}
TRAINABLE = [(name, kind) for name, system in FROM_FEATURES.items() for kind in system.kinds]
BY_GRADIENT = [(name, kind) for name, kind in TRAINABLE if find_system(name).fit is None]


def options_of(system: System) -> dict:
    return system.settle([each for each in NARROW if each.partition("=")[0] in system.options])


def target_of(kind: Kind) -> Target:
    return Target("multiclass", ("class",), ("a", "b", "c")) if kind == "multiclass" else Target(kind, ("a", "b", "c"))


def model_of(system: System, target: Target, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return system.build(shapes_of(system), target, options_of(system))


def shapes_of(system: System) -> tuple[tuple[int, ...], ...]:
    return (MAP,) if system.name == "vgg16-finetune-cached" else tuple(SHAPES[layout] for layout in system.reads)


def features_of(system: System, n: int = 6) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(n, *shape, generator=draw) for shape in shapes_of(system)]


def fit_if_an_estimator(system: System, model: nn.Module, target: Target) -> None:
    if system.fit is not None:
        features = joined(*features_of(system, 30))
        labels = features[:, :3] / 10 if target.kind == "regression" else (features[:, :3] > 0).float()
        if target.kind == "multiclass":
            labels = features[:, :3].argmax(1, keepdim=True).float()
        system.fit(model, Sample(features.numpy(), labels.numpy(), np.arange(30) % 5, target, 0), options_of(system))


def test_those_of_the_papers_and_the_baselines_are_there() -> None:
    assert set(load_systems()) >= {
        "amtl", "amtl-single", "amtl-separate", "amtl-swapped", "mtl", "moe", "mlp", "personality-frozen",
        "aesthetics-only", "ridge", "svr", "logistic", "linear",
    }  # fmt: skip
    assert {kind for _, kind in TRAINABLE} == set(get_args(Kind))


@pytest.mark.parametrize("name", load_systems())
def test_defaults_keep_within_their_own_bounds_and_say_where_they_come_from(name: str) -> None:
    system = find_system(name)
    defaults = system.settle([])
    assert system.settle([f"{name}={value}" for name, value in defaults.items()]) == defaults
    assert all(option.source for option in system.options.values())
    assert ({"standardise", "gain"} <= set(defaults)) == (not system.from_pixels)
    assert system.title
    assert system.source


@pytest.mark.parametrize(("name", "kind"), TRAINABLE)
def test_an_output_for_each_task_or_class(name: str, kind: Kind) -> None:
    system, target = find_system(name), target_of(kind)
    model = model_of(system, target).eval()
    fit_if_an_estimator(system, model, target)
    with torch.inference_mode():
        out = model(*features_of(system))
        one = [model(*[each[i : i + 1] for each in features_of(system)]) for i in range(6)]
    assert out.shape == (6, 3)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert torch.allclose(torch.cat(one), out, atol=1e-5)  # no image knows of another


@pytest.mark.parametrize(("name", "kind"), TRAINABLE)
def test_weights_come_back_from_a_file_and_say_the_same(name: str, kind: Kind) -> None:
    system, target = find_system(name), target_of(kind)
    model = model_of(system, target).eval()
    fit_if_an_estimator(system, model, target)
    if name == "linear":
        nn.init.normal_(next(model.parameters()))
    back = model_of(system, target, seed=1).eval()
    with torch.inference_mode():
        if system.fit is None and name != "linear":  # which begins at 0 whatever the seed
            assert not torch.equal(back(*features_of(system)), model(*features_of(system)))
        back.load_state_dict(load(save(model.state_dict())))
        assert torch.equal(back(*features_of(system)), model(*features_of(system)))


@pytest.mark.parametrize(("name", "kind"), BY_GRADIENT)
def test_all_that_is_random_in_training_comes_from_the_models_own_generator(name: str, kind: Kind) -> None:
    system = find_system(name)
    model = model_of(system, target_of(kind)).train()
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())

    def out(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "generator"):
                module.generator = generator
        return model(*features_of(system))

    before = torch.get_rng_state()
    first = out(0)
    torch.rand(1, generator=torch.default_generator)
    assert torch.equal(out(0), first)
    torch.set_rng_state(before)
    out(0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "kind"), BY_GRADIENT)
def test_stages_move_every_parameter_at_one_time_or_another(name: str, kind: Kind) -> None:
    system = find_system(name)
    names = [name for name, _ in model_of(system, target_of(kind)).named_parameters()]
    prefixes = [stage.parameters for stage in system.stages(options_of(system))] if system.stages else [("",)]
    assert {name for name in names if any(name.startswith(some) for some in prefixes)} == set(names)


@pytest.mark.parametrize(
    ("name", "kind"),
    [each for each in TRAINABLE if isinstance(model_of(find_system(each[0]), target_of(each[1])), Attentive)],
)
def test_attention_has_the_axes_that_a_run_keeps_and_sums_to_1(name: str, kind: Kind) -> None:
    system, target = find_system(name), target_of(kind)
    model = model_of(system, target).eval()
    fit_if_an_estimator(system, model, target)
    n_backbones, n_blocks, _ = SHAPES["stack"]
    sizes = {"image": 6, "task": len(target.tasks), "backbone": n_backbones, "block": n_blocks}
    seen = model.attention(*features_of(system))
    assert seen
    for which, weights in seen.items():
        assert tuple(weights.shape) == tuple(sizes[axis] for axis in ATTENTION_AXES[which])
        assert (weights >= 0).all()
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
