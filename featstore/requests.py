"""What tensors are asked for, and the frozen networks that make them.

A request comes from a configuration, or from a store: what it holds is described in full, so that it can be made
again without one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from featstore.backbones import Card, Weights, WeightsPolicy, find_card, resolve_weights
from featstore.config import Config
from featstore.errors import FormatError, WeightsError
from featstore.identity import Segment
from featstore.store import StoredSegment, StoredTensor, TensorLayout
from featstore.store.layout import Kind
from featstore.store.skeleton import Compression
from featstore.views import View

if TYPE_CHECKING:
    from featstore.backbones.networks import Network

ARITHMETIC = "fp32"


@dataclass(frozen=True)
class TensorRequest:
    """A tensor that is asked for."""

    name: str
    kind: Kind
    segments: tuple[Segment, ...]
    dtype: str
    width: int | None = None
    compress: Compression | None = None


def from_config(config: Config) -> list[TensorRequest]:
    """The tensors that a configuration names.

    Raises:
        ConfigError: an unknown view or pooling.
        BackboneError: an unknown backbone.
    """
    return [
        TensorRequest(plan.name, plan.kind, tuple(config.segments(plan)), config.dtype, plan.width, config.compress)
        for plan in config.tensors
    ]


def from_stored(tensor: StoredTensor) -> TensorRequest:
    """What would make a stored tensor again.

    Raises:
        FormatError: the identity of a segment says something that this version does not know.
        BackboneError: an unknown backbone.
    """
    layout = tensor.layout
    segments = tuple(_segment(each, tensor) for each in layout.segments)
    width = layout.row_shape[-1] if layout.kind == "stack" else None
    return TensorRequest(layout.name, layout.kind, segments, str(tensor.dtype), width, tensor.compression)


def named_seeds(tensors: Sequence[StoredTensor]) -> dict[str, str]:
    """By backbone, the `random:SEED` that stored segments say their weights are of."""
    seeds = {}
    for tensor in tensors:
        for segment in tensor.layout.segments:
            if "random_seed" in segment.identity["weights"]:
                seeds[segment.name.partition(":")[0]] = f"random:{segment.identity['weights']['random_seed']}"
    return seeds


class Networks:
    """The backbones of some requests: their weights, identities and, once needed, the loaded networks.

    Raises:
        WeightsError: on construction, naming every backbone whose weights cannot be had.
    """

    def __init__(self, requests: Sequence[TensorRequest], policy: WeightsPolicy) -> None:
        self._policy = policy
        self.requests = list(requests)
        self._loaded: dict[str, Network] = {}
        self._weights: dict[str, Weights] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        missing = []
        for card in {s.card.name: s.card for request in self.requests for s in request.segments}.values():
            try:
                self._weights[card.name] = resolve_weights(card, policy)
            except WeightsError as error:
                missing.append(str(error))
        if missing:
            raise WeightsError("\n".join(missing))

    def layouts(self) -> list[TensorLayout]:
        """The layout of each requested tensor, with the identities of its segments."""
        return [
            TensorLayout(
                request.name,
                request.kind,
                tuple(self._stored(segment, request.dtype) for segment in request.segments),
                request.width,
            )
            for request in self.requests
        ]

    def load(self, card: Card) -> "Network":
        from featstore.backbones.networks import build_network

        if card.name not in self._loaded:
            self._loaded[card.name] = build_network(card, self._weights[card.name])
        return self._loaded[card.name]

    def by_hash(self) -> dict[str, Segment]:
        """The requested segments by the hash of their identity."""
        return {self._stored(s, request.dtype).hash: s for request in self.requests for s in request.segments}

    def origins(self) -> dict[str, str]:
        """Where the weights of each backbone came from, for the provenance."""
        return {
            name: weights.origin + (f": {weights.file.name}" if weights.file else f", seed {weights.seed}")
            for name, weights in self._weights.items()
        }

    def _stored(self, segment: Segment, dtype: str) -> StoredSegment:
        facts = self._weights_facts(segment.card)
        identity = segment.identity(facts, arithmetic=ARITHMETIC, dtype=dtype)
        return StoredSegment(segment.name, identity, segment.view.n_blocks, segment.card.width)

    def _weights_facts(self, card: Card) -> dict[str, Any]:
        if card.name not in self._facts:
            self._facts[card.name] = self._identify_weights(card)
        return self._facts[card.name]

    def _identify_weights(self, card: Card) -> dict[str, Any]:
        from featstore.backbones.memo import DigestMemo

        weights = self._weights[card.name]
        memo = DigestMemo(self._policy.folder)
        file_digest = weights.file_digest()
        known = memo.get(card, file_digest) if file_digest else None
        if known is None:
            from featstore.backbones.networks import weights_digest

            known = weights_digest(self.load(card))
            if file_digest:
                memo.put(card, file_digest, known)
        return {"sha256": known} if weights.seed is None else {"sha256": known, "random_seed": weights.seed}


def _segment(stored: StoredSegment, tensor: StoredTensor) -> Segment:
    identity = stored.identity
    try:
        card = find_card(stored.name.partition(":")[0])
        normalisation: Mapping[str, Any] = identity["normalisation"]
        card = replace(
            card,
            mean=tuple(normalisation["mean"]),
            std=tuple(normalisation["std"]),
            batch_norm_eps=identity.get("batch_norm_eps"),
        )
        view = identity["view"]
        return Segment(
            card,
            View(
                tuple(view["size"]), rows=view["grid"][0], columns=view["grid"][1], interpolation=view["interpolation"]
            ),
            identity["pooling"],
        )
    except (KeyError, TypeError, IndexError) as error:
        raise FormatError(
            f"segment {stored.name!r} of {tensor} is described in a way not known here: {error!r}"
        ) from error
