"""The card of a backbone: what is known of it without loading the network."""

from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Card:
    """One frozen network whose pooled last feature map is the feature.

    `name` is what a user types and what a weights file is called; `network` is timm's architecture name, or for a
    network of ours its name and the version of its arithmetic.
    """

    name: str
    network: str
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    builder: str | None = None
    """Import name of the module of ours whose `build()` makes the network; None where timm makes it."""
    licence: str = "unknown"
    package: str | None = None
    """Import name of an installable package that carries the weights, in timm's order of tensors."""
    hub: str | None = None
    """Repository of the weights on the Hugging Face hub."""
    batch_norm_eps: float | None = None
    """Where the weights were trained with another epsilon than the network's code has."""
    alias: str | None = None
    note: str = ""

    @property
    def architecture(self) -> str:
        return f"{'timm' if self.builder is None else 'featstore'}/{self.network}"

    def facts(self) -> dict[str, Any]:
        """What of this card goes into a feature's identity."""
        facts: dict[str, Any] = {
            "architecture": self.architecture,
            "normalisation": {"mean": list(self.mean), "std": list(self.std)},
        }
        if self.batch_norm_eps is not None:
            facts["batch_norm_eps"] = self.batch_norm_eps
        return facts
