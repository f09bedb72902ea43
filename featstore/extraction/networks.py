"""From the tensors that are asked for to backbones, weights and identities; loading the networks.

A request comes from a configuration, or from a store: what it holds is described in full, so that it can be made
again without one.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from featstore.backbones import (
    BackboneName,
    Card,
    Output,
    WeightsPolicy,
    find_card,
    say_missing,
)
from featstore.backbones.downloads import resolve_all
from featstore.backbones.sources import PYTHON
from featstore.config import Config, TensorSpec
from featstore.errors import (
    BackboneError,
    ConfigError,
    FormatError,
    MissingWeightsError,
    UnfitBackboneError,
    WeightsError,
    suggest,
)
from featstore.identity import PIXELS, ImportedSegment, PixelSegment, Segment, is_imported
from featstore.photos.views import View
from featstore.store import Store, StoredSegment, StoredTensor, TensorLayout
from featstore.store.format.layout import TensorKind
from featstore.store.format.metadata import Compression
from featstore.support import NAMED

if TYPE_CHECKING:
    from featstore.backbones.networks import Network

Computable = Segment | PixelSegment
"""A segment that a photo is all one needs for."""


@dataclass(frozen=True)
class TensorRequest:
    """A tensor that is asked for."""

    name: str
    kind: TensorKind
    segments: tuple[Computable | StoredSegment, ...]
    """Those that were imported as the store has them, for they cannot be made."""
    dtype: str
    width: int | None = None
    compress: Compression | None = None
    missing: tuple[str, ...] = ()
    """Segments left out because their weights could not be had, or their networks cannot run."""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """By name, why the networks of some of these cannot run."""

    @property
    def cards(self) -> list[Card]:
        return [segment.card for segment in self.segments if isinstance(segment, Segment)]


def from_config(config: Config, store: Store | None, *, precision: str) -> list[TensorRequest]:
    """The tensors that a configuration names.

    Args:
        store: where features that were imported are.
        precision: of tensors that the store does not have yet and the configuration leaves open.

    Raises:
        ConfigError: an unknown view or pooling, or imported features that the store does not have.
        BackboneError: an unknown backbone.
    """
    return [_request(config, spec, store, precision) for spec in config.tensors]


def stored_precision(config: Config, name: str, store: Store | None) -> str | None:
    """The arithmetic of a tensor that may go on as it began: what was asked for, or else what the store has."""
    if config.precision != "auto":
        return config.precision
    if store is None or name not in store.tensors:
        return None
    return next((s.identity["arithmetic"] for s in store[name].layout.segments if "arithmetic" in s.identity), None)


def from_stored(tensor: StoredTensor, policy: WeightsPolicy | None = None) -> TensorRequest:
    """What would make a stored tensor again.

    Args:
        policy: where a network may be looked for that is known by its files only.

    Raises:
        FormatError: the identity of a segment says something that this version does not know.
        BackboneError: an unknown backbone.
    """
    layout = tensor.layout
    segments = tuple(segment_of(each, str(tensor), policy) for each in layout.segments)
    width = layout.row_shape[-1] if layout.kind == "stack" else None
    dtype = str(tensor.dtype)
    return TensorRequest(layout.name, layout.kind, segments, dtype, width, tensor.compression, layout.missing)


def named_seeds(tensors: Sequence[StoredTensor]) -> dict[str, str]:
    """By backbone, the `random:SEED` that stored segments say their weights are of."""
    seeds = {}
    for tensor in tensors:
        for segment in tensor.layout.segments:
            # A seed that stands in a store is no consent to run code of a user's own.
            own_code = segment.name.startswith(f"{PYTHON}:")
            if "random_seed" in segment.identity.get("weights", ()) and not own_code:
                seeds[BackboneName.parse(segment.name).backbone] = (
                    f"random:{segment.identity['weights']['random_seed']}"
                )
    return seeds


class Networks:
    """The backbones of some requests: their weights, identities and, once needed, the loaded networks.

    Args:
        allow_missing: whether segments whose weights cannot be had are left out of their tensors, which say so; None
            where that is no choice, as the features are stored already.
        strict: whether a network that cannot run is an error, and not left out.

    Raises:
        BackboneError: on construction; none of the networks can run, or one cannot and `strict`.
        MissingWeightsError: on construction, naming every backbone whose weights cannot be had.
        WeightsError: on construction; a file that was named is not there, or the hub cannot be reached.
    """

    def __init__(
        self,
        requests: Sequence[TensorRequest],
        policy: WeightsPolicy,
        *,
        allow_missing: bool | None = None,
        strict: bool = False,
    ) -> None:
        self.policy = policy
        self._loaded: dict[Card, Network] = {}
        self._digests: dict[tuple[str, bool], str] = {}
        """By backbone, without and with its classifier, the digest of its weights: what the cache says, until the
        network is loaded."""
        cards = (card for request in requests for card in request.cards)
        self._weights, lacking = resolve_all(cards, policy, partly=bool(allow_missing))
        missing = {card.name: card for card in lacking}
        self.left_out = sorted(missing)
        """Backbones whose weights could not be had."""
        self.unfit = {name: why for request in requests for name, why in request.unfit.items()}
        """By backbone as it was asked for, why its network cannot run."""
        if self.unfit and (strict or not any(request.segments for request in requests)):
            raise BackboneError(_reasons(list(dict.fromkeys(self.unfit.values()))))
        self.dropped = [each.name for each in requests if not _without(each, missing).segments]
        """Tensors of which nothing is left."""
        self.resized = sorted({s.note for r in requests for s in r.segments if isinstance(s, Segment) and s.note})
        """What is done otherwise than was asked, so that networks of one size can run."""
        self.requests = [each for each in (_without(request, missing) for request in requests) if each.segments]
        if missing and not (allow_missing and self.requests):
            raise MissingWeightsError(say_missing(list(missing.values()), policy, needed=allow_missing is None))

    def layouts(self) -> list[TensorLayout]:
        """The layout of each requested tensor, with the identities of its segments."""
        return [
            TensorLayout(
                request.name,
                request.kind,
                tuple(self._stored(segment, request.dtype) for segment in request.segments),
                request.width,
                request.missing,
            )
            for request in self.requests
        ]

    def load(self, card: Card, outputs: Sequence[Output] = ()) -> "Network":
        """The network of a card, kept until `forget`.

        Args:
            outputs: that a pass gives; the network's own if none are named.

        Raises:
            WeightsError: they cannot be read, do not fit, or are others than those that were planned with.
        """
        from featstore.backbones.networks import build_network, weights_digest

        if card not in self._loaded:
            network = build_network(card, self._weights[card.name])
            self._check_digest(card, weights_digest(network))
            self._loaded[card] = network
        network = self._loaded[card]
        network.outputs = tuple(outputs) or network.outputs
        return network

    def forget(self, card: Card) -> None:
        """Let go of a network that an engine has made its own."""
        self._loaded.pop(card, None)

    def by_hash(self) -> dict[str, Computable]:
        """The requested segments that can be computed, by the hash of their identity."""
        return {stored.hash: segment for segment, stored in self._computable()}

    def stored(self) -> dict[str, StoredSegment]:
        """The same as a store records them."""
        return {stored.hash: stored for _, stored in self._computable()}

    def dtypes(self) -> dict[str, str]:
        """By hash, their stored dtypes."""
        return {key: str(stored.identity["dtype"]) for key, stored in self.stored().items()}

    def origins(self) -> dict[str, str]:
        """Where the weights of each backbone came from, for the provenance."""
        return {
            name: weights.origin
            + (f": {weights.file.name}" if weights.file else "" if weights.seed is None else f", seed {weights.seed}")
            for name, weights in self._weights.items()
        }

    def _computable(self) -> Iterator[tuple[Computable, StoredSegment]]:
        for request in self.requests:
            for segment in request.segments:
                if not isinstance(segment, StoredSegment):
                    yield segment, self._stored(segment, request.dtype)

    def _stored(self, segment: Computable | StoredSegment, dtype: str) -> StoredSegment:
        if isinstance(segment, StoredSegment):
            return segment
        if isinstance(segment, PixelSegment):
            identity = segment.identity()
        else:
            identity = segment.identity(self._weights_facts(segment.card), dtype)
        return StoredSegment(segment.name, identity, segment.n_blocks, segment.width, segment.view.n_copies)

    def _weights_facts(self, card: Card) -> dict[str, Any]:
        if _whose(card) not in self._digests:
            self._find_digest(card)
        seed = self._weights[card.name].seed
        return {"sha256": self._digests[_whose(card)], **({} if seed is None else {"random_seed": seed})}

    def _find_digest(self, card: Card) -> None:
        from featstore.backbones.digests import DigestCache

        cache, file_digest = DigestCache(self.policy.folder), self._weights[card.name].file_digest()
        if file_digest and (known := cache.get(card, file_digest)):
            self._digests[_whose(card)] = known
            return
        self.load(card)
        if file_digest:
            cache.put(card, file_digest, self._digests[_whose(card)])

    def _check_digest(self, card: Card, loaded: str) -> None:
        """Hold the weights that a network has against those that its features would be stored under."""
        planned = self._digests.setdefault(_whose(card), loaded)
        if planned == loaded:
            return
        from featstore.backbones.digests import DigestCache

        weights, cache = self._weights[card.name], DigestCache(self.policy.folder)
        if file_digest := weights.file_digest():
            cache.forget(card, file_digest)
        raise WeightsError(
            f"weights file {weights.file} for {card.name!r} holds weights of the digest {loaded}, and the digest "
            f"cache {cache.file} says {planned}: its entry is wrong, or the file was changed meanwhile. The entry is "
            "removed; run the command again"
        )


def _whose(card: Card) -> tuple[str, bool]:
    """Which weights of a file a network takes."""
    return card.name, card.classifier


def _request(config: Config, spec: TensorSpec, store: Store | None, precision: str) -> TensorRequest:
    dtype = "uint8" if spec.kind == PIXELS else config.dtype
    precision = stored_precision(config, spec.name, store) or precision
    segments: list[Computable | StoredSegment] = []
    asked: list[Segment | PixelSegment | ImportedSegment] = []
    unfit = {}
    for text in spec.segments:
        try:
            asked += config.segments(text, default_view=spec.default_view, precision=precision)
        except UnfitBackboneError as error:
            unfit[text.partition("@")[0]] = str(error)
    for segment in asked:
        if isinstance(segment, PixelSegment) != (spec.kind == PIXELS):
            raise ConfigError(
                f"tensor {spec.name!r}: a tensor of pixels has one segment, pixels@VIEW, and pixels stand in no other"
            )
        if not isinstance(segment, ImportedSegment):
            segments.append(segment)
            continue
        held = {} if store is None else {name: tensor for name, tensor in store.tensors.items() if _is_import(tensor)}
        if segment.name not in held:
            raise ConfigError(
                f"tensor {spec.name!r} names imported/{segment.name}, which {config.store} does not have; "
                f"{suggest(segment.name, held)} (`featstore import {segment.name} --from FILE` brings it in)"
            )
        if str(held[segment.name].dtype) != dtype:
            raise ConfigError(
                f"imported/{segment.name} is {held[segment.name].dtype}, tensor {spec.name!r} {dtype}; "
                f"import it again with --dtype {dtype}"
            )
        stored = _first(held[segment.name])
        segments.append(replace(stored, name=f"imported/{segment.name}"))
    return TensorRequest(
        spec.name, spec.kind, tuple(segments), dtype, spec.width, config.compress, missing=tuple(unfit), unfit=unfit
    )


def _reasons(reasons: Sequence[str]) -> str:
    more = f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
    return "; ".join(reasons[:NAMED]) + more


def _without(request: TensorRequest, missing: Collection[str]) -> TensorRequest:
    lacking = [s for s in request.segments if isinstance(s, Segment) and s.card.name in missing]
    return replace(
        request,
        segments=tuple(segment for segment in request.segments if segment not in lacking),
        missing=(*request.missing, *(segment.name for segment in lacking)),
    )


def _is_import(tensor: StoredTensor) -> bool:
    """Whether a tensor is what `featstore import` makes, and not one that imported features are only a part of."""
    alone = len(tensor.layout.segments) == 1 and tensor.replaced_by is None
    return alone and is_imported(_first(tensor).identity)


def _first(tensor: StoredTensor) -> StoredSegment:
    return tensor.layout.segments[0]


def segment_of(stored: StoredSegment, whose: str, policy: WeightsPolicy | None = None) -> Computable | StoredSegment:
    """What would make a stored segment again; itself, if it was imported.

    Args:
        whose: what a message calls its tensor.
        policy: where a network may be looked for that is known by its files only.
    """
    identity = stored.identity
    if is_imported(identity):
        return stored
    try:
        view = View.from_facts(identity["view"])
        if stored.name == PIXELS:
            return PixelSegment(view)
        normalisation: Mapping[str, Any] = identity["normalisation"]
        card = replace(
            find_card(BackboneName.parse(stored.name).backbone, policy, stored=True),
            options=tuple(sorted(identity.get("options", {}).items())),
            mean=tuple(normalisation["mean"]),
            std=tuple(normalisation["std"]),
            batch_norm_eps=identity.get("batch_norm_eps"),
        )
        return Segment(card, view, identity["pooling"], identity["arithmetic"], identity.get("layer", ""))
    except BackboneError:
        raise
    except (KeyError, TypeError, IndexError, ValueError, ConfigError) as error:
        raise FormatError(
            f"segment {stored.name!r} of {whose} is described in a way not known here: {error!r}"
        ) from error
