"""Concepts: the cosines of a network with text beside it, held against the library's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import featstore
from featstore.backbones import WeightsPolicy
from featstore.config import Config, choose_tensors
from featstore.errors import BackboneError, ConfigError, ExchangeError, LayoutError

open_clip = pytest.importorskip("open_clip")
PROMPTS = ["a sad face", "a red car"]
NAME = "open_clip:tiny-concepts"


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> Config:
    """A store of own features of a tiny network whose weights are in a folder, text included."""
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    open_clip.factory._MODEL_CONFIGS["tiny-concepts"] = config
    state = {key: value.clone() for key, value in _theirs().state_dict().items()}
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(state, folder / "open_clip--tiny-concepts.safetensors")
    made = Config(
        photos=photos, store=tmp_path / "a.zarr", weights=WeightsPolicy(folder), engine="eager", dtype="float32"
    )
    made = choose_tensors(made, NAME, {})
    featstore.extract(made)
    return made


def _theirs() -> Any:
    torch.manual_seed(0)
    return open_clip.create_model("tiny-concepts", pretrained=None).eval()


def test_a_column_for_each_prompt(config: Config) -> None:
    summary = featstore.concepts(config.store, NAME, PROMPTS, weights=config.weights)
    assert (summary.n_imported, summary.row_shape) == (10, (2,))
    store = featstore.open(config.store)
    with torch.inference_mode():
        text = _theirs().encode_text(open_clip.get_tokenizer("tiny-concepts")(PROMPTS), normalize=True).numpy()
    own = store["model"].read(range(10))
    expected = own / np.linalg.norm(own, axis=1, keepdims=True) @ text.T
    np.testing.assert_allclose(store["concepts"].read(range(10)), expected, atol=1e-5)
    identity = store["concepts"].layout.segments[0].identity
    assert identity["columns"] == PROMPTS
    assert identity["concepts"]["pictures"] == store["model"].layout.segments[0].identity
    assert list(store["concepts"].pandas().columns) == PROMPTS


def test_the_same_again_adds_new_photos_and_other_prompts_are_another_tensor(config: Config, draw: Any) -> None:
    featstore.concepts(config.store, NAME, PROMPTS, weights=config.weights)
    assert config.photos is not None
    draw(config.photos / "new.jpg", seed=77)
    featstore.extract(config)
    again = featstore.concepts(config.store, NAME, PROMPTS, weights=config.weights)
    assert (again.n_imported, again.n_kept) == (1, 10)
    with pytest.raises(LayoutError, match="holds the prompts 'a sad face', 'a red car'; give these another --name"):
        featstore.concepts(config.store, NAME, ["a dog"], weights=config.weights)
    assert featstore.concepts(config.store, NAME, ["a dog"], weights=config.weights, name="dogs").n_imported == 11
    featstore.concepts(config.store, NAME, ["a dog"], weights=config.weights, replace=True)
    assert featstore.open(config.store)["concepts"].layout.segments[0].columns == ("a dog",)
    assert featstore.verify(config.store).sound


@pytest.mark.parametrize(
    ("backbone", "prompts", "error", "says"),
    [
        (NAME, [], ConfigError, "no prompts"),
        (NAME, ["a", "a"], ConfigError, "named twice: 'a'"),
        (f"{NAME}:max", ["a"], ConfigError, "leave layer and pooling out"),
        ("test_resnet", ["a"], ExchangeError, "no own features of 'test_resnet'"),
    ],
)
def test_what_cannot_be_says_why(
    backbone: str, prompts: list[str], error: type[Exception], says: str, config: Config
) -> None:
    with pytest.raises(error, match=says):
        featstore.concepts(config.store, backbone, prompts, weights=config.weights)


def test_other_weights_and_random_ones_are_refused(config: Config, tmp_path: Path) -> None:
    state = {key: value + 0.1 for key, value in _theirs().state_dict().items()}
    save_file(state, tmp_path / "other.safetensors")
    other = WeightsPolicy(named={NAME: str(tmp_path / "other.safetensors")})
    with pytest.raises(BackboneError, match="is not that of the stored features"):
        featstore.concepts(config.store, NAME, PROMPTS, weights=other)
    with pytest.raises(BackboneError, match="random weights know no words"):
        featstore.concepts(config.store, NAME, PROMPTS, weights=WeightsPolicy(named={"*": "random:0"}))
