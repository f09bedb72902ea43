"""Hugging Face transformers: vision networks by their repository, `hf:facebook/dinov2-small`.

What a network is stands in its `config.json` and `preprocessor_config.json`: in a folder that the user names, in the
weights folder, in the hub's cache, or on the hub. Code of a repository is never run.

The own feature of a network with text beside it, as CLIP, is what `get_image_features` gives: the place of the picture
in the space that both share, not of length one. Of another it is `pooler_output`; where a network has no pooler or the
file has no weights for it, the class token of the last layer. `layer.0` is what the embedding gives, `layer.N` what
block or stage N gives, as the library's `hidden_states`.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from featstore.backbones.card import Card
from featstore.backbones.sources.common import check_keys, fraction_of, misfit, offline, quiet, unfit
from featstore.backbones.trunk import Map, Trunk, to_map
from featstore.backbones.weights import WeightsPolicy, check_online
from featstore.errors import BackboneError, MissingWeightsError, WeightsError
from featstore.files import parse_json, read_file
from featstore.photos.views import INTERPOLATIONS, Crop, View
from featstore.support import reason_of

if transformers.logging.get_verbosity() == transformers.logging.WARNING:  # the default, not what a user has set
    # What it warns of later, as while it is traced, is nothing that a user of featstore can act on.
    transformers.logging.set_verbosity_error()

PREFIX = "hf:"
REPOSITORY = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]*(?<![.-])")
CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
WORDS = ("tokenizer.json", "vocab.json", "spiece.model", "vocab.txt")
"""Files that hold the words of a tokenizer. Without any the library makes one that knows no words."""
INTERPOLATED = ("interpolate_pos_encoding", True)
"""The option by which transformers of one size take pictures of another."""
IGNORED = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "id2label", "label2id")
"""What of a config.json is no part of the network."""
TEXT = ("text_", "logit_")
"""How the parts begin that a network has for text only."""
CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")
KEPT = 64
MOST_SAID = 1 << 24
"""Bytes of a file that says what a network is."""


def find(name: str, policy: WeightsPolicy | None = None) -> Card:
    """The card of `ORG/NAME`.

    Raises:
        MissingWeightsError: its config.json is not on this machine; says where to put it.
        BackboneError: it is no network that takes pictures, or one that this version of transformers does not know.
    """
    full = PREFIX + name
    if not REPOSITORY.fullmatch(name):
        raise BackboneError(f"backbone {full!r} is not of the form hf:ORG/NAME, as hf:facebook/dinov2-small")
    folder = _folder(full, name, policy or WeightsPolicy())
    config, processor = _config(folder, full), _processor(folder, full)
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1.0)
    normalised = bool(processor.do_normalize)
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0  # pixels begin at -1
    mean = [(each + offset) / scale for each in processor.image_mean] if normalised else [offset / scale] * 3
    std = [each / scale for each in processor.image_std] if normalised else [1 / scale] * 3
    if len(mean) != 3:
        raise BackboneError(f"backbone {full!r} takes pictures of {len(mean)} channels; photos have 3")
    return Card(
        name=full,
        network=f"{config.model_type}-{_digest(folder)}"
        + ("-bgr" if getattr(processor, "do_flip_channel_order", False) else ""),
        source="hf",
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        hub=name,
        folder=folder,
        note="Hugging Face transformers",
    )


def view(card: Card) -> View:
    """The picture as the image processor of the repository makes it: size, interpolation and crop.

    Raises:
        BackboneError: the processor gives pictures of no fixed size, or resizes in a way that is not known here.
    """
    processor = _processor(_of(card), card.name)
    filter = _interpolation(processor, card)
    size = dict(processor.size or {})
    crop_size = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", False) else {}
    shorter, size = size.get("shortest_edge"), {key: value for key, value in size.items() if value}
    cut = crop_size.get("width"), crop_size.get("height")
    percent = getattr(processor, "crop_pct", None)
    if percent and shorter:  # ConvNeXt's rule
        if shorter >= 384:
            return View((shorter, shorter), interpolation=filter)
        return View((shorter, shorter), interpolation=filter, crop=_crop("center", shorter, int(shorter / percent)))
    if shorter and "longest_edge" not in size and cut[0] and cut[0] == cut[1]:
        return View((cut[0], cut[0]), interpolation=filter, crop=_crop("center", cut[0], shorter))
    width, height = size.get("width"), size.get("height")
    if width and height and not crop_size:
        return View((width, height), interpolation=filter)
    if width and width == height and cut[0] and cut[0] == cut[1] and width >= cut[0]:
        return View((cut[0], cut[0]), interpolation=filter, crop=_crop("squash", cut[0], width))
    raise BackboneError(
        f"backbone {card.name!r}: its image processor gives pictures of no fixed size ({size}); name a view, as "
        f"{card.name}@whole"
    )


def with_any_size(card: Card) -> Card | None:
    """The same network with its positions interpolated; None if it does not offer that."""
    net = _class(_config(_of(card), card.name), card.name)
    call = getattr(net, "get_image_features", net.forward)
    return replace(card, options=(*card.options, INTERPOLATED)) if INTERPOLATED[0] in _arguments(call) else None


def build(card: Card) -> "HfTrunk":
    """The network with random weights.

    Raises:
        UnfitBackboneError: transformers cannot build it.
    """
    config = _config(_of(card), card.name)
    with _silent():
        try:
            net = transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:
            raise unfit(card, "transformers", error) from error
    return _trunk(net, card)


def load(card: Card, state: Mapping[str, Tensor], file: Path) -> "HfTrunk":
    """The network with the weights of a state dict, through the library's own renaming of old names.

    Raises:
        WeightsError: they do not fit.
    """
    net, missing, surplus = _load(card, state, file)
    if missing and all(name.startswith("pooler.") for name in missing):
        # The library would make it up, with random weights.
        net, missing, surplus = _load(card, state, file, add_pooling_layer=False)
    missing = [name for name in missing if not name.startswith(TEXT)]
    # What is left over of a head, as that of a classifier, is no part of the network; another part is amiss.
    parts = {name.partition(".")[0] for name in net.state_dict()}
    inner = f"{net.base_model_prefix}."
    surplus = [name for name in surplus if name.startswith(inner) or name.partition(".")[0] in parts]
    surplus = [name for name in surplus if not name.removeprefix(inner).startswith(("pooler.", *TEXT))]
    surplus = [name for name in surplus if not name.endswith(("position_ids", "mask_token"))]
    check_keys(card, file, missing=missing, surplus=surplus)
    return _trunk(net, card)


def encode_text(card: Card, state: Mapping[str, Tensor], file: Path, prompts: list[str], *, hub: bool) -> Tensor:
    """The places of prompts in the space of `get_image_features`, (prompts, F).

    Args:
        hub: whether the tokenizer may be downloaded.

    Raises:
        WeightsError: the weights do not fit.
        BackboneError: the network has no text, or its tokenizer is not on this machine.
    """
    folder = _of(card)
    config = _config(folder, card.name)
    if not hasattr(_class(config, card.name), "get_text_features"):
        raise BackboneError(f"backbone {card.name!r}: {config.model_type} has no text beside it")
    net, missing, surplus = _load(card, state, file)
    check_keys(card, file, missing=missing, surplus=[name for name in surplus if not name.endswith("position_ids")])
    here = any((folder / name).is_file() for name in WORDS)
    if not here and not hub:
        raise BackboneError(
            f"backbone {card.name!r}: its tokenizer is not in {folder}: put {WORDS[0]} and tokenizer_config.json "
            "of the repository there, or allow the hub: --hub"
        )
    with _silent(), offline(hub), torch.inference_mode():
        try:
            place = folder if here else card.hub
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                place, local_files_only=here or not hub, trust_remote_code=False
            )
        except Exception as error:
            raise BackboneError(f"backbone {card.name!r}: its tokenizer cannot be read: {reason_of(error)}") from error
        length = config.text_config.max_position_embeddings
        # SigLIP was trained on prompts that were filled up, and looks at the filling; the others do not.
        filled = config.model_type.startswith("siglip")
        padding = "max_length" if filled else True
        tokens = tokenizer(prompts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        names = ("input_ids",) if filled else ("input_ids", "attention_mask")
        found = net.eval().get_text_features(**{name: tokens[name] for name in names})
        pooled: Tensor = found if isinstance(found, Tensor) else found.pooler_output
        return pooled.float()


class HfTrunk(Trunk):
    """What `get_image_features`, or the base network, gives."""

    def __init__(self, net: nn.Module, config: Any, options: Mapping[str, Any], *, flip: bool) -> None:
        super().__init__(net)
        vision = getattr(config, "vision_config", config)
        n_layers = getattr(vision, "num_hidden_layers", None) or len(getattr(vision, "depths", ()))
        self.layers = tuple(f"layer.{number}" for number in range(n_layers + 1)) if n_layers else ()
        self._call = getattr(net, "get_image_features", net)
        self._patch = getattr(vision, "patch_size", None)
        self._has_class = any(name.endswith(CLASS_TOKENS) for name, _ in net.named_parameters())
        self._options, self._flip = dict(options), flip

    def run(self, pixels: Tensor, layers: Sequence[str]) -> tuple[Any, dict[str, Map]]:
        size = (int(pixels.shape[2]), int(pixels.shape[3]))
        found = self._call(
            pixel_values=pixels.flip(1) if self._flip else pixels,
            output_hidden_states=bool(layers),
            return_dict=True,
            **self._options,
        )
        states = found.hidden_states if layers else ()
        if layers and (states is None or len(states) != len(self.layers)):
            raise BackboneError(f"it gives {len(states or ())} hidden states, not {len(self.layers)}")
        maps = {name: self._to_map(states[self.layers.index(name)], size) for name in layers}
        return (found.get("pooler_output"), found.get("last_hidden_state"), size), maps

    def own(self, last: Any) -> Tensor:
        pooled, final, size = last
        if pooled is not None:
            return super().own(pooled.flatten(1))
        found = self._to_map(final, size)
        return super().own(None if found.prefix is None else found.prefix[:, 0])

    def last_map(self, last: Any) -> Map:
        _, final, size = last
        return self._to_map(final, size)

    def _to_map(self, found: Any, size: tuple[int, int]) -> Map:
        n_prefix = 0
        if self._has_class and isinstance(self._patch, int) and isinstance(found, Tensor) and found.ndim == 3:
            n_prefix = max(0, int(found.shape[1]) - (size[0] // self._patch) * (size[1] // self._patch))
        return to_map(found, n_prefix=n_prefix)


@contextmanager
def _silent() -> Iterator[None]:
    """The library says nothing, and shows no progress of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load(card: Card, state: Mapping[str, Tensor], file: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    config = _config(_of(card), card.name)
    with _silent():
        try:
            net, told = _class(config, card.name).from_pretrained(
                None,
                config=config,
                state_dict=dict(state),
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
        except Exception as error:
            raise WeightsError(misfit(card, file, reason_of(error))) from error
    if told["mismatched_keys"]:
        raise WeightsError(misfit(card, file, f"{len(told['mismatched_keys'])} of another shape"))
    return net, sorted(told["missing_keys"]), sorted(told["unexpected_keys"])


def _trunk(net: Any, card: Card) -> HfTrunk:
    """The network without its parts for text."""
    for name in [*dict(net.named_children()), *dict(net.named_parameters(recurse=False))]:
        if name.startswith(TEXT):
            delattr(net, name)
    flip = bool(getattr(_processor(_of(card), card.name), "do_flip_channel_order", False))
    return HfTrunk(net, net.config, dict(card.options), flip=flip)


def _folder(full: str, name: str, policy: WeightsPolicy) -> Path:
    """Where config.json is.

    Raises:
        MissingWeightsError: nowhere on this machine.
        WeightsError: the hub does not have it, or cannot be reached.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    said = policy.named.get(full, "")
    beside = policy.folder / full.replace("/", "--").replace(":", "--")
    named = [] if not said or said.startswith("random:") else [Path(said).expanduser()]
    if named and not named[0].exists():
        raise WeightsError(f"weights {named[0]} for backbone {full!r} do not exist")
    for place in [*named, *(each.parent for each in named), beside]:
        if (place / CONFIG).is_file():
            return place.absolute()
    cached = try_to_load_from_cache(name, CONFIG)
    if not isinstance(cached, str) and policy.hub:
        check_online(full)
        try:
            cached = hf_hub_download(name, CONFIG)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise WeightsError(f"the hub has no {CONFIG} of {name!r}: {reason_of(error)}") from error
    if isinstance(cached, str):
        here = any((Path(cached).parent / name).is_file() for name in PROCESSORS)
        for processor in PROCESSORS if policy.hub and not here else ():
            try:
                hf_hub_download(name, processor)
                break
            except EntryNotFoundError:
                continue
            except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
                raise WeightsError(f"the hub has no {processor} of {name!r}: {reason_of(error)}") from error
        return Path(cached).parent
    raise MissingWeightsError(
        f"what backbone {full!r} is, is not known on this machine: it needs {CONFIG}, {PROCESSORS[0]} and "
        "model.safetensors of that repository; either\n"
        f"  - put them into the folder {beside}\n"
        f"  - name their folder: --weights {full}=FOLDER" + ("" if policy.hub else "\n  - allow the hub: --hub")
    )


def _config(folder: Path, full: str) -> Any:
    """
    Raises:
        BackboneError: it cannot be read, or is of no network that takes pictures.
    """
    return _read_config(folder, full, _digest(folder))


@lru_cache(KEPT)
def _read_config(folder: Path, full: str, digest: str) -> Any:
    with _silent():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            known = f"transformers {transformers.__version__}"
            raise BackboneError(
                f"backbone {full!r}: {folder / CONFIG} is not known to {known}: {reason_of(error)}"
            ) from (error)
        net = _class(config, full)
    if net.main_input_name != "pixel_values" and not hasattr(net, "get_image_features"):
        raise BackboneError(f"backbone {full!r}: {config.model_type} takes {net.main_input_name}, not pictures")
    return config


def _class(config: Any, full: str) -> Any:
    try:
        return transformers.AutoModel._model_mapping[type(config)]
    except KeyError:
        raise BackboneError(f"backbone {full!r}: transformers has no network {config.model_type!r}") from None


def _processor(folder: Path, full: str) -> Any:
    """What the files say of pictures, with the library's defaults; it is read, and not used on pictures."""
    try:
        said = tuple(read_file(folder / name, MOST_SAID) for name in PROCESSORS if (folder / name).is_file())
        for each in said:
            parse_json(each)
    except (OSError, ValueError) as error:
        raise BackboneError(f"backbone {full!r}: {folder / PROCESSORS[0]} cannot be read: {error}") from error
    return _read_processor(folder, full, said)


@lru_cache(KEPT)
def _read_processor(folder: Path, full: str, said: tuple[bytes, ...]) -> Any:
    """What is kept is kept under what the files say."""
    if not any((folder / name).is_file() for name in PROCESSORS):
        raise BackboneError(
            f"backbone {full!r}: there is no {PROCESSORS[0]} in {folder}, which says what pictures it takes"
        )
    with _silent():
        try:
            return transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise BackboneError(
                f"backbone {full!r}: {folder / PROCESSORS[0]} cannot be read: {reason_of(error)}"
            ) from (error)


def _digest(folder: Path) -> str:
    """What tells networks of one kind apart whose weights have the same shapes: heads, activations, epsilons.

    Raises:
        BackboneError: config.json cannot be read.
    """
    try:
        facts = dict(parse_json(read_file(folder / CONFIG, MOST_SAID)))
    except (OSError, ValueError, TypeError) as error:
        raise BackboneError(f"{folder / CONFIG} cannot be read: {error}") from error
    facts = {key: value for key, value in facts.items() if key not in IGNORED and not key.startswith("text_config")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _interpolation(processor: Any, card: Card) -> str:
    resample = Image.Resampling(int(getattr(processor, "resample", None) or 0))
    names = [name for name, each in INTERPOLATIONS.items() if each == resample]
    if not names:
        raise BackboneError(
            f"backbone {card.name!r}: its image processor resizes by {resample.name.lower()}, which is not among "
            f"{', '.join(INTERPOLATIONS)}; name a view, as {card.name}@whole"
        )
    return names[0]


def _crop(mode: Any, cut: int, resized: int) -> Crop:
    return Crop(mode, fraction_of(cut, resized), floor=True)


def _of(card: Card) -> Path:
    assert card.folder is not None
    return card.folder


def _arguments(call: Any) -> set[str]:
    return set(inspect.signature(inspect.unwrap(call)).parameters)
