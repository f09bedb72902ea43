"""When two features are the same feature.

A segment is one frozen backbone on one view of the image, pooled one way. Its identity is the declared facts
that decide its values: architecture, the weights actually loaded, pooling, view, normalisation, decoding
rules, arithmetic class and stored dtype. Equal identity means interchangeable; unequal identity never mixes.
Versions, engine, device and time are provenance: recorded, but no part of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featstore.backbones import Card
from featstore.errors import ConfigError, suggest
from featstore.images import DECODE_RULES
from featstore.views import View

POOLINGS = ("avg", "max")


@dataclass(frozen=True)
class Segment:
    """What a user asks for: a backbone, how its last feature map is pooled, and on which view.

    Raises:
        ConfigError: unknown pooling.
    """

    card: Card
    view: View
    pooling: str = "avg"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ConfigError(
                f"unknown pooling {self.pooling!r} of backbone {self.card.name!r}; {suggest(self.pooling, POOLINGS)}"
            )

    @property
    def name(self) -> str:
        return self.card.name if self.pooling == "avg" else f"{self.card.name}:{self.pooling}"

    def identity(self, weights: Mapping[str, Any], *, arithmetic: str, dtype: str) -> dict[str, Any]:
        """The facts in full; `weights` is what `extraction` found them to be, `{"sha256": ...}` at least."""
        return {
            **self.card.facts(),
            "weights": dict(weights),
            "pooling": self.pooling,
            "view": self.view.facts(),
            "decoding": DECODE_RULES,
            "arithmetic": arithmetic,
            "dtype": dtype,
        }


TOLERANCE = {"fp32": 1e-4}
"""By arithmetic class, how far two computations of one feature may be apart on other machines and engines, as a part
of the largest feature of the row."""


def tolerance(identity: Mapping[str, Any]) -> float:
    """How far a feature computed again may be from the stored one: the arithmetic's tolerance and half a last digit."""
    return TOLERANCE[str(identity["arithmetic"])] + float(np.finfo(identity["dtype"]).eps) / 2


def is_imported(identity: Mapping[str, Any]) -> bool:
    """Whether features came from elsewhere (`featstore import`), so that they can be copied but not computed."""
    return "imported" in identity


def canonical(identity: Mapping[str, Any]) -> str:
    """The one JSON text of an identity: sorted keys, no spaces, no escapes."""
    return json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def short_hash(identity: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """The fields in which two identities differ, in words."""
    return [
        f"{field}: {_say(here.get(field))} here, {_say(there.get(field))} there"
        for field in sorted({*here, *there})
        if here.get(field) != there.get(field)
    ]


def _say(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping) and "sha256" in value:
        origin = f"random:{value['random_seed']} " if "random_seed" in value else ""
        return f"{origin}{str(value['sha256'])[:12]}"
    return value if isinstance(value, str) else canonical(value)
