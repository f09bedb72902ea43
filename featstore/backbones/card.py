"""The card of a backbone: what is known of one network without loading it, and the features that can be had of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

OWN, AVG, MAX, CLS, TOKENS, LOGITS = POOLINGS = ("own", "avg", "max", "cls", "tokens", "logits")
"""own: as the network itself makes one vector of a picture; avg, max: over the positions of a map; cls: the class
token; tokens: every position is kept, as a block of its own; logits: what its own classifier makes of a picture."""
LAST = ""
"""The layer that the network's own pooling reads."""


@dataclass(frozen=True, order=True)
class Output:
    """One feature of a network: of which layer, and how the positions of its map become a vector."""

    layer: str = LAST
    pooling: str = OWN


@dataclass(frozen=True)
class Card:
    """One frozen network.

    `name` is what a user types and what a weights file is called; `network` is the architecture's name in its source,
    or for a network of ours its name and the version of its arithmetic.
    """

    name: str
    network: str
    width: int | None = None
    """Of the network's own feature; None where it is found by running the network without data."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    source: str = "timm"
    """Who makes the network, one of `featstore.backbones.sources.SOURCES`."""
    released: str = ""
    """The name of the network and its weights in the source, where `name` is another."""
    builder: str | None = None
    """Import name of the module of ours whose `build()` makes the network."""
    options: tuple[tuple[str, Any], ...] = ()
    """What the source is told besides, such as that the network has to take pictures of another size than its own."""
    own: str = OWN
    """What the network's own pooling is, where it is one of the others."""
    any_size: bool = False
    """Whether it is known to take pictures of the papers' sizes."""
    classifier: bool = False
    """Whether the network is meant with its own classifier, whose weights it then has as well."""
    n_classes: int | None = None
    """Of the classifier, where that is not the number of the network as released."""
    least: int = 1
    """Pixels of the shorter side that a picture needs."""
    by_formula: bool = False
    """Whether it can be had without any weights."""
    made_by: str = ""
    """The command by which a user makes its weights, of photos."""
    licence: str = "unknown"
    package: str | None = None
    """Import name of an installable package that carries the weights, in timm's order of tensors."""
    hub: str | None = None
    """Repository of the weights on the Hugging Face hub."""
    files: tuple[str, ...] = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    """What the weights are called in their repository, or in a folder: the first that is there."""
    url: str | None = None
    """Where the weights file is, if it is not on the hub; its name ends in the beginning of its SHA-256."""
    page: str = ""
    """Where a user gets the weights file by hand: it is neither on the hub nor downloaded from here."""
    folder: Path | None = None
    """Where the source has its own files of the network, as its `config.json`."""
    batch_norm_eps: float | None = None
    """Where the weights were trained with another epsilon than the network's code has."""
    alias: str | None = None
    note: str = ""
    caution: str = ""
    """What a user of it should know, where that is not what one expects."""

    @property
    def architecture(self) -> str:
        return f"{'featstore' if self.builder else self.source}/{self.network}"

    @property
    def file_stem(self) -> str:
        """What its weights file is called in the weights folder, without the ending."""
        return self.name.replace("/", "--").replace(":", "--")

    def facts(self) -> dict[str, Any]:
        """What of this card goes into a feature's identity."""
        facts: dict[str, Any] = {
            "architecture": self.architecture,
            "normalisation": {"mean": list(self.mean), "std": list(self.std)},
        }
        if self.own == OWN:
            # Networks used to be built without their pool and the norm that belongs to it.
            facts["built"] = "as released"
        if self.options:
            facts["options"] = dict(self.options)
        if self.batch_norm_eps is not None:
            facts["batch_norm_eps"] = self.batch_norm_eps
        return facts
