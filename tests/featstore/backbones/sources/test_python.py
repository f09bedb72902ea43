"""A user's own networks: a factory that is named, and an object of the session."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featstore.backbones import BackboneName, Output, WeightsPolicy, find_card, resolve_weights
from featstore.backbones.networks import build_network, weights_digest
from featstore.backbones.sources import find_source, python
from featstore.errors import BackboneError, WeightsError
from featstore.photos.views import Crop, View

from .held import network, normalised, run

MODULE = """
from torch import nn
class Net(nn.Module):
    mean, std, input_size, interpolation, crop_pct, crop_mode = {stated}
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 8, 8), nn.ReLU()
    def forward(self, x):
        return self.act(self.conv(x)).mean((2, 3))
def make():
    return Net()
def wrong():
    return 3
def fails():
    raise ValueError("no disk")
"""
STATED = "(.5, .5, .5), (.2, .2, .2), (3, 64, 96), 'bilinear', 1.0, 'squash'"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(python, "_KNOWN", {})
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(MODULE.format(stated=STATED))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


class Pool(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.ReLU(inplace=True))

    def forward(self, pixels: Tensor) -> Tensor:
        mean: Tensor = self.body(pixels).mean((2, 3))
        return mean


def test_a_factory_makes_the_network_and_says_what_pictures_it_takes(module: str, tmp_path: Path) -> None:
    name = f"python:{module}:make"
    card = find_card(name)
    assert find_source("python").view(card) == View((96, 64), interpolation="bilinear", crop=Crop("squash", 1.0))
    assert (card.mean, card.std, card.caution) == ((0.5,) * 3, (0.2,) * 3, "")
    ours = network(name, tmp_path)
    blocks = torch.randint(0, 255, (2, 64, 96, 3), dtype=torch.uint8)
    own, conv = run(ours, blocks, [Output(), Output("conv", "max")])
    with torch.inference_mode():
        torch.testing.assert_close(own, ours.net(normalised(ours, blocks)))
        torch.testing.assert_close(conv, ours.net.conv(normalised(ours, blocks)).amax((2, 3)))  # type: ignore[operator]
    assert str(tmp_path) not in sys.path


def test_what_is_not_stated_is_said(module: str) -> None:
    card = find_card(python.register(Pool()))
    assert "does not state mean, std, input_size" in card.caution
    assert "input_size 224, interpolation bicubic, crop_pct 0.875, crop_mode center" in card.caution
    assert find_source("python").view(card) == View((224, 224), interpolation="bicubic", crop=Crop("center", 0.875))


def test_code_that_changes_is_another_network(module: str) -> None:
    before = find_card(f"python:{module}:make").architecture
    python._KNOWN.clear()
    del sys.modules[module]
    Path(f"{module}.py").write_text(MODULE.format(stated=STATED).replace("ReLU", "Hardswish"))
    assert find_card(f"python:{module}:make").architecture != before


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("wrong", r"wrong\(\) returns int, no torch.nn.Module"),
        ("fails", r"fails\(\) fails: .*line 15: ValueError: no disk"),
        ("nothing", "has no function 'nothing'"),
    ],
)
def test_code_that_makes_no_network_says_why(factory: str, says: str, module: str) -> None:
    with pytest.raises(BackboneError, match=says):
        find_card(f"python:{module}:{factory}")


def test_a_module_that_is_not_there(module: str) -> None:
    with pytest.raises(BackboneError, match=r"module 'no.such' cannot be imported: ModuleNotFoundError"):
        find_card("python:no.such:make")


def test_an_object_is_known_by_its_class_and_others_of_it_by_a_number(module: str) -> None:
    torch.manual_seed(0)
    first, second = Pool(), Pool()
    name = python.register(first)
    assert name.startswith("python:")
    assert name.endswith(".Pool")
    assert python.register(first) == name
    assert python.register(second) == f"{name}-2"
    assert BackboneName.parse(f"{name}:max") == BackboneName(name, "", "max")
    with pytest.raises(BackboneError, match="not int"):
        python.register(3)  # type: ignore[arg-type]


def test_the_object_itself_is_left_as_it_is(module: str, tmp_path: Path) -> None:
    net = Pool().train()
    ours = network(python.register(net), tmp_path)
    assert net.training
    assert all(each.requires_grad for each in net.parameters())
    assert net.body[1].inplace
    ours.net.requires_grad_(False)
    with torch.no_grad():
        net.body[0].weight.zero_()
    assert ours.net.get_parameter("body.0.weight").abs().max() > 0


def test_weights_of_a_file_take_the_place_of_those_of_the_code(module: str, tmp_path: Path) -> None:
    name = f"python:{module}:make"
    card = find_card(name)
    own = weights_digest(build_network(card, resolve_weights(card, WeightsPolicy(tmp_path))))
    state = {key: value + 1 for key, value in network(name, tmp_path).net.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    assert weights_digest(network(name, tmp_path, **{name: str(tmp_path / "w.pth")})) != own
    everywhere = WeightsPolicy(tmp_path, {"*": "random:0"})
    assert weights_digest(build_network(card, resolve_weights(card, everywhere))) == own
    with pytest.raises(WeightsError, match="its code makes them"):
        resolve_weights(card, WeightsPolicy(tmp_path, {name: "random:0"}))


def test_a_store_that_names_code_does_not_run_it(module: str, tmp_path: Path) -> None:
    name = f"python:{module}:make"
    with pytest.raises(BackboneError, match=f"not run for that; if you trust that code.*--weights {name}=own"):
        find_card(name, WeightsPolicy(tmp_path), stored=True)
    assert module not in sys.modules
    assert find_card(name, WeightsPolicy(tmp_path, {name: "own"}), stored=True).name == name
    with pytest.raises(BackboneError, match="made in a session of Python"):
        find_card("python:__main__.Net", WeightsPolicy(tmp_path), stored=True)


def test_what_is_stated_of_pictures_tells_networks_apart_and_any_type_of_weights_will_do() -> None:
    first = nn.Conv2d(3, 4, 3)
    second = copy.deepcopy(first)
    second.mean = (0.0, 0.0, 0.0)  # type: ignore[assignment]
    names = [python.register(each) for each in (first, second, first, second)]
    assert names[0] == names[2] != names[1] == names[3]
    assert find_card(names[0]).mean != find_card(names[1]).mean
    halves = [python.register(copy.deepcopy(first).bfloat16()) for _ in range(2)]
    assert halves[0] == halves[1] not in names
