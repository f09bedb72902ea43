"""Hugging Face networks: miniatures saved as a repository is, held against transformers' own network and processor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from featstore.backbones import BackboneName, Output, WeightsPolicy, find_card
from featstore.backbones.fitting import fit
from featstore.backbones.networks import Network
from featstore.backbones.shapes import shape_of
from featstore.backbones.sources import find_source
from featstore.errors import BackboneError, MissingWeightsError, WeightsError
from featstore.photos.views import GRID

from .held import network, normalised, photo, picture, run

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WIDE = {**SIZES, "intermediate_size": 64}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SQUARE = {"size": {"height": 32, "width": 32}}
CUT = {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}}
KINDS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "vit": ("ViTConfig", WIDE, "ViTImageProcessor", SQUARE),
    "dinov2": ("Dinov2Config", SIZES, "BitImageProcessor", CUT),
    "registers": ("Dinov2WithRegistersConfig", SIZES, "BitImageProcessor", CUT),
    "dinov3": ("DINOv3ViTConfig", {**WIDE, "num_register_tokens": 4}, "ViTImageProcessor", SQUARE),
    "beit": ("BeitConfig", WIDE, "BeitImageProcessor", {**SQUARE, "do_center_crop": False}),
    "swin": (
        "SwinConfig",
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "image_size": 32, "patch_size": 2, "window_size": 4},
        "ViTImageProcessor",
        SQUARE,
    ),
    "convnext": (
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_pct": 0.875},
    ),
    "resnet": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 384}},
    ),
    "clip": (
        "CLIPConfig",
        {"vision_config": WIDE, "text_config": TEXT, "projection_dim": 24},
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    ),
    "siglip": ("SiglipConfig", {"vision_config": WIDE, "text_config": TEXT}, "SiglipImageProcessor", SQUARE),
}
CLASS_TOKENS = {"vit": 1, "dinov2": 1, "registers": 1, "dinov3": 1, "beit": 1, "clip": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with a repository of each kind, as `save_pretrained` writes it."""
    place = tmp_path_factory.mktemp("weights")
    for kind, (config, facts, processor, pictures) in KINDS.items():
        torch.manual_seed(0)
        transformers.utils.logging.disable_progress_bar()
        net = transformers.AutoModel.from_config(getattr(transformers, config)(**facts))
        net.save_pretrained(place / f"hf--tiny--{kind}")
        getattr(transformers, processor)(**pictures).save_pretrained(place / f"hf--tiny--{kind}")
    return place


def _theirs(folder: Path, kind: str) -> Callable[..., Any]:
    net = transformers.AutoModel.from_pretrained(folder / f"hf--tiny--{kind}").eval()
    return getattr(net, "get_image_features", net)  # type: ignore[no-any-return]


def _ours(folder: Path, kind: str) -> tuple[Network, torch.Tensor]:
    name = f"hf:tiny/{kind}"
    return network(name, folder), picture(find_card(name, WeightsPolicy(folder)), photo())


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_layers_are_those_of_the_library(kind: str, folder: Path) -> None:
    ours, blocks = _ours(folder, kind)
    with torch.inference_mode():
        theirs = _theirs(folder, kind)(pixel_values=normalised(ours, blocks), output_hidden_states=True)
    layers = [Output(layer, "avg") for layer in ours.trunk.layers]
    own, *maps = run(ours, blocks, [Output(), *layers])
    torch.testing.assert_close(own, theirs.pooler_output.flatten(1), rtol=1e-4, atol=1e-5)
    assert len(maps) == len(theirs.hidden_states)
    n_prefix = 5 if kind in ("registers", "dinov3") else CLASS_TOKENS.get(kind, 0)
    for found, state in zip(maps, theirs.hidden_states, strict=True):
        expected = state.mean((2, 3)) if state.ndim == 4 else state[:, n_prefix:].mean(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CLASS_TOKENS)
def test_the_class_token_is_apart_from_the_patches(kind: str, folder: Path) -> None:
    ours, blocks = _ours(folder, kind)
    tokens, token = run(ours, blocks, [Output("", "tokens"), Output("", "cls")])
    with torch.inference_mode():
        last = _theirs(folder, kind)(pixel_values=normalised(ours, blocks)).last_hidden_state
    assert tokens.shape == (1, 16, 32)
    torch.testing.assert_close(tokens, last[:, -16:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(token, last[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_those_of_the_image_processor(kind: str, folder: Path) -> None:
    """To the pixel with its Pillow form. The form on tensors resizes with other roundings: of this noise it makes less
    than half a level of 255 on average, and up to 13 where a bicubic filter overshoots.
    """
    ours, blocks = _ours(folder, kind)
    pixels = normalised(ours, blocks)
    for backend, largest, usual in (("pil", 0.01, 0.01), ("torchvision", 16, 0.5)):
        processor = transformers.AutoImageProcessor.from_pretrained(folder / f"hf--tiny--{kind}", backend=backend)
        theirs = processor(images=photo(), return_tensors="pt")["pixel_values"]
        assert theirs.shape == pixels.shape
        apart = ((theirs - pixels) * ours.std).abs()  # in levels
        assert apart.max() < largest, backend
        assert apart.mean() < usual, backend


def test_a_file_without_a_pooler_gives_the_class_token(folder: Path, tmp_path: Path) -> None:
    """As the weights of a classifier do: the library would make up a pooler at random."""
    source = folder / "hf--tiny--vit"
    place = tmp_path / "hf--tiny--vit"
    place.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (place / name).write_bytes((source / name).read_bytes())
    state = {f"vit.{name}": value for name, value in load_file(source / "model.safetensors").items()}
    state = {name: value for name, value in state.items() if "pooler" not in name}
    save_file({**state, "classifier.weight": torch.zeros(5, 32)}, place / "model.safetensors", {"format": "pt"})
    ours = network("hf:tiny/vit", tmp_path)
    blocks = torch.randint(0, 255, (1, 32, 32, 3), dtype=torch.uint8)
    own, token = run(ours, blocks, [Output(), Output("", "cls")])
    assert torch.equal(own, token)
    assert not any("pooler" in name for name in ours.net.state_dict())


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_weights_that_do_not_fit_are_refused(change: str, folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "hf--tiny--dinov2" / "model.safetensors")
    name = next(name for name in state if name.endswith("mlp.fc1.weight"))
    if change == "missing":
        del state[name]
    elif change == "surplus":
        state["encoder.layer.0.extra"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3, 3)
    save_file(state, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="does not fit 'hf:tiny/dinov2'"):
        network("hf:tiny/dinov2", folder, **{"hf:tiny/dinov2": str(tmp_path / "other.safetensors")})


def test_a_folder_that_is_named_holds_all_that_is_needed(folder: Path, tmp_path: Path) -> None:
    place = str(folder / "hf--tiny--clip")
    ours = network("hf:some/name", tmp_path, **{"hf:some/name": place})
    card = find_card("hf:some/name", WeightsPolicy(tmp_path, {"hf:some/name": place}))
    assert card.architecture == find_card("hf:tiny/clip", WeightsPolicy(folder)).architecture
    assert not any("text" in name for name in ours.net.state_dict())


def test_a_config_of_another_network_of_the_same_shapes_is_another_identity(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "hf--tiny--vit"
    place.mkdir()
    for file in (folder / "hf--tiny--vit").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    assert (
        find_card("hf:tiny/vit", WeightsPolicy(tmp_path)).facts()
        != find_card("hf:tiny/vit", WeightsPolicy(folder)).facts()
    )


def test_positions_are_interpolated_for_pictures_of_another_size(folder: Path) -> None:
    card, view, told = fit(find_card("hf:tiny/clip", WeightsPolicy(folder)), GRID)
    assert view == GRID
    assert "interpolated for pictures of 150x100" in told
    assert shape_of(card, Output("layer.1", "tokens"), (150, 100)) == (18 * 12, 32)


def test_what_is_not_here_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"(?s)hf--org--name.*--weights hf:org/name=FOLDER.*--hub"):
        find_card("hf:org/name", WeightsPolicy(tmp_path))
    for name in ("hf:name", "hf:a b/c", "hf:a/b/..", "hf:../x"):
        with pytest.raises(BackboneError, match="not of the form hf:ORG/NAME"):
            find_card(name, WeightsPolicy(tmp_path))
    with pytest.raises(WeightsError, match="nowhere for backbone 'hf:org/name' do not exist"):
        find_card("hf:org/name", WeightsPolicy(tmp_path, {"hf:org/name": "nowhere"}))
    broken = tmp_path / "hf--org--broken"
    broken.mkdir()
    (broken / "config.json").write_text("[1")
    with pytest.raises(BackboneError, match=r"config.json cannot be read"):
        find_card("hf:org/broken", WeightsPolicy(tmp_path))


def test_code_of_a_repository_is_not_run(tmp_path: Path) -> None:
    place = tmp_path / "hf--org--evil"
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}')
    (place / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (place / "preprocessor_config.json").write_text("{}")
    with pytest.raises(BackboneError, match="is not known to transformers"):
        find_card("hf:org/evil", WeightsPolicy(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_networks_of_text_are_refused(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path / "hf--org--bert")
    transformers.ViTImageProcessor().save_pretrained(tmp_path / "hf--org--bert")
    with pytest.raises(BackboneError, match="takes input_ids, not pictures"):
        find_card("hf:org/bert", WeightsPolicy(tmp_path))


def test_a_processor_without_a_fixed_size_asks_for_a_view(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "hf--tiny--vit"
    place.mkdir()
    for file in (folder / "hf--tiny--vit").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(place)
    card = find_card("hf:tiny/vit", WeightsPolicy(tmp_path))
    with pytest.raises(BackboneError, match=r"no fixed size.*name a view, as hf:tiny/vit@whole"):
        find_source("hf").view(card)


def test_names_have_two_parts_before_a_layer() -> None:
    assert BackboneName.parse("hf:org/name/layer.6:cls") == BackboneName("hf:org/name", "layer.6", "cls")
    assert BackboneName.parse("hf:org/name") == BackboneName("hf:org/name")


def test_text_is_encoded_as_the_library_does(folder: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    for kind in ("clip", "siglip"):
        place = tmp_path / f"hf--tiny--{kind}"
        place.mkdir()
        for file in (folder / f"hf--tiny--{kind}").iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        policy = WeightsPolicy(tmp_path)
        card, file = find_card(f"hf:tiny/{kind}", policy), place / "model.safetensors"
        encode = find_source("hf").encode_text  # type: ignore[attr-defined]
        with pytest.raises(BackboneError, match=r"its tokenizer is not in .*allow the hub: --hub"):
            encode(card, load_file(file), file, ["a dog"], hub=False)
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "a": 3, "dog": 4, "<end>": 2}, "<pad>"))
        words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        words.post_processor = tokenizers.processors.TemplateProcessing("$A <end>", special_tokens=[("<end>", 2)])
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
        fast.save_pretrained(place)
        found = encode(card, load_file(file), file, ["a dog", "dog"], hub=False)
        net = transformers.AutoModel.from_pretrained(place).eval()
        tokens = torch.tensor([[3, 4, 2], [4, 2, 0]])
        mask = {"attention_mask": (tokens > 0).long()}
        if kind == "siglip":  # which looks at the filling as well
            tokens, mask = torch.nn.functional.pad(tokens, (0, 61)), {}
        with torch.inference_mode():
            theirs = net.get_text_features(input_ids=tokens, **mask).pooler_output
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(BackboneError, match="vit has no text beside it"):
        encode(find_card("hf:tiny/vit", WeightsPolicy(folder)), {}, folder, ["a"], hub=False)
