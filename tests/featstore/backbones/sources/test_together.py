"""Networks of all sources in one run: on every engine of a CPU, computed again, and without a library."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import featstore
from featstore.backbones import WeightsPolicy, find_card, resolve_weights
from featstore.backbones.networks import build_network, weights_digest
from featstore.config import Config, choose_tensors
from featstore.engines import Runtime
from featstore.errors import BackboneError
from featstore.extraction.recompute import recompute

transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

NAMES = (
    "torchvision:squeezenet1_1,torchvision:squeezenet1_1/features.3,hf:tiny/dinov2/layer.1:cls,hf:tiny/dinov2,"
    "open_clip:tiny-together/blocks.0,open_clip:tiny-together,python:net_of_mine:make"
)
WIDTHS = [512, 128, 32, 32, 32, 24, 6]
FACTORY = """
from torch import nn
def make():
    net = nn.Sequential(nn.Conv2d(3, 6, 7, 7), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.input_size = 64
    return net
"""


@pytest.fixture
def config(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    Path("net_of_mine.py").write_text(FACTORY)
    facts = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    place = tmp_path / "weights" / "hf--tiny--dinov2"
    transformers.Dinov2Config(**facts).save_pretrained(place)
    transformers.BitImageProcessor(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}).save_pretrained(
        place
    )
    open_clip.factory._MODEL_CONFIGS["tiny-together"] = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {},
    }
    policy = WeightsPolicy(tmp_path / "weights", {"*": "random:0"})
    empty = Config(photos=photos, store=tmp_path / "a.zarr", weights=policy, engine="eager", dtype="float32")
    return choose_tensors(empty, NAMES, {})


def test_all_sources_in_one_run_and_again_on_another_engine(config: Config) -> None:
    summary = featstore.extract(config, runtime=Runtime(engine="eager"))
    assert any("does not state mean, std, interpolation" in each for each in summary.notices)
    tensor = featstore.open(config.store)["model"]
    assert [segment.width for segment in tensor.layout.segments] == WIDTHS
    assert np.isfinite(tensor.read([0, 1])).all()
    pytest.importorskip("openvino")
    policy = WeightsPolicy(config.weights.folder, {"*": "random:0", "python:net_of_mine:make": "own"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as of OpenVINO's own imports
        found = recompute(config.store, 3, weights=policy, runtime=Runtime(engine="openvino"))
    assert found.within, found.comparisons


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for library, source, name, extra in (
        ("open_clip", "open_clip", "open_clip:ViT-B-32/openai", "openclip"),
        ("transformers", "hf", "hf:facebook/dinov2-small", "hf"),
    ):
        monkeypatch.delitem(sys.modules, f"featstore.backbones.sources.{source}", raising=False)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(BackboneError, match=rf"pip install 'featstore\[{extra}\]'"):
            find_card(name)


def test_names_of_other_sources_import_nothing_else() -> None:
    code = (
        "import sys, featstore.config; print([n for n in ('transformers', 'open_clip', 'torch') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_random_networks_are_the_same_each_time(config: Config) -> None:
    for name in ("torchvision:squeezenet1_1", "hf:tiny/dinov2", "open_clip:tiny-together", "python:net_of_mine:make"):
        card = find_card(name, config.weights)
        first, second = (weights_digest(build_network(card, resolve_weights(card, config.weights))) for _ in range(2))
        assert first == second
    assert torch.is_grad_enabled()
