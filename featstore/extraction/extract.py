"""Bringing a store up to date with a folder of photos: plan, then carry out."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace as replace_fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.backbones import WeightsPolicy
from featstore.config import Config, TensorSpec
from featstore.engines import Hardware, Runtime, choose_device, default_precision
from featstore.errors import ConfigError, PhotosError, StoreError
from featstore.extraction.changes import Listing, last_photos, list_photos
from featstore.extraction.networks import Networks, from_config, from_stored, named_seeds, stored_precision
from featstore.extraction.plan import ExtractionPlan, foretell, make_plan
from featstore.extraction.request import Backbones, Names, SaidWeights, choose, configure
from featstore.extraction.summary import Summary
from featstore.extraction.timing import Stages
from featstore.identity import PIXELS
from featstore.photos.decoding import MAX_MEGAPIXELS
from featstore.store import ImageState, RowState, Store, Writer, existing_store, open_store
from featstore.store.format.limits import check_space
from featstore.store.places.locate import locate
from featstore.store.places.place import Place, plain
from featstore.store.replacing import remove_replaced, set_aside
from featstore.support import Progress, as_path, no_progress
from featstore.terminal.showing import show_progress

if TYPE_CHECKING:
    from featstore.extraction.run import Made

_KEPT = (
    "{name} is kept: it alone has the features of photos that are not in the folder now; extract again when they are, "
    "or `featstore rm {name}`"
)


def plan_extraction(
    config: Config,
    *,
    replace: bool = False,
    prune: bool = False,
    reuse: Sequence[Place] = (),
    allow_missing: bool = False,
    strict: bool = False,
    runtime: Runtime | None = None,
    on_progress: Progress | None = None,
) -> tuple[ExtractionPlan, Networks]:
    """What `extract` would do; nothing is written. See `extract` for arguments and errors."""
    if config.photos is None:
        raise PhotosError("no photo folder named; give it as the first argument, or `featstore init PHOTOS`")
    listing = list_photos(
        config.photos,
        existing_store(config.store),
        on_progress or no_progress,
        prune=prune,
        ours=_ours(config),
        strict=strict,
    )
    requests = from_config(config, listing.store, precision=_precision(config, listing.store, runtime or Runtime()))
    networks = Networks(requests, config.weights, allow_missing=allow_missing, strict=strict)
    stores = [open_store(each) for each in reuse]
    plan = _plan(listing, networks, replace=replace, reuse=stores)
    if config.reuse and plan.passes:  # a run with nothing to compute need not look far away
        usual, unreached = _open_usual(config.reuse)
        plan = _plan(listing, networks, replace=replace, reuse=[*stores, *usual])
        plan.unreached = unreached
    return plan, networks


def extract(
    photos: Config | Path | str | None = None,
    backbones: Backbones | None = None,
    store: PathLike[str] | str | None = None,
    *,
    views: Names | None = None,
    tensors: str | TensorSpec | Iterable[str | TensorSpec] | None = None,
    weights: SaidWeights | None = None,
    hub: bool | None = None,
    dtype: str | None = None,
    compress: str | None = None,
    precision: str | None = None,
    device: str | None = None,
    engine: str | None = None,
    max_megapixels: float | None = None,
    runtime: Runtime | None = None,
    replace: bool = False,
    prune: bool = False,
    reuse: Place | Sequence[Place] = (),
    allow_missing: bool = False,
    strict: bool = False,
    trace: Path | str | None = None,
    on_plan: Callable[[ExtractionPlan], object] | None = None,
    progress: bool | Progress = True,
    on_progress: Progress | None = None,
) -> Summary:
    """Bring a store up to date with a folder of photos: compute what is absent, and nothing else.

    `extract("photos", ["lite0", "resnet50"], "features.zarr")` does what the command does: what is not said is as
    featstore.toml of this folder says it, or as it is by default. Called again, it goes on where it stopped.

    Args:
        photos: their folder; or a configuration that says everything, which the other arguments change.
        backbones: `all`, `packaged`, names, or networks (`torch.nn.Module`); `all` if not said, or the tensors of the
            configuration.
        store: where the features go: a folder or a URL.
        views: what part of a photo backbones named one by one see; see `Config.views`.
        tensors: more tensors, or the only ones: `TensorSpec`, or text as `--tensor` takes it.
        weights: `random:SEED`, `NAME=FILE`, several of these, or a `WeightsPolicy`.
        hub: whether weights may be downloaded from the Hugging Face hub.
        dtype: of the stored features, float16 or float32.
        compress: new tensors with zstd or blosc.
        precision: arithmetic of the networks: auto, fp32, tf32, bf16 or fp16.
        device: auto, cpu, cuda, cuda:1, ...
        engine: auto, or one of `featstore.engines.ENGINES`.
        max_megapixels: a larger photo is not read.
        runtime: what else to run on; the fastest that is here if not said. Its engine, if it names one, goes before
            that of the configuration.
        replace: whether a tensor whose segments have another identity in the store is replaced; what is the
            same of it is copied, and it is kept until the new one is complete.
        prune: whether rows of photos that are no longer in the folder are marked gone.
        reuse: stores and shared repositories, besides those of the configuration, from which features of the same
            identity and image are copied.
        allow_missing: whether segments whose weights cannot be had are left out of their tensors, which say so.
        strict: whether what would be left out is an error, before anything is computed: a network that cannot run on
            its view, a file in the folder that is no photo.
        trace: a file that gets the timeline of the stages, for Chrome's or Perfetto's viewer.
        on_plan: called with what is going to be done, before it is.
        progress: a bar in a notebook and on a terminal; False for none; or whom to tell (see `show_progress`).
        on_progress: whom to tell, by the name that other functions have for it.

    Raises:
        PhotosError: the folder holds no photos, or files that are none if `strict`.
        ConfigError: a view, a layout, the device or the engine does not make sense here.
        ClusterError: the workers that were asked for cannot be had, or died.
        BackboneError: a backbone is unknown, cannot run on the blocks of its view, or its weights cannot be had.
        LayoutError: the store holds other features under a tensor's name, and may not replace them, or would lose
            some whose weights are not here.
        FeatureRangeError: a feature is not finite, or float16 cannot hold it.
        StoreError: the store is locked, damaged, of another format, or the disk refuses.
        KeyboardInterrupt: as it came, after the photos done so far have been committed.
    """
    started = time.perf_counter()
    config = configure(
        photos if isinstance(photos, Config) else None,
        photos=None if isinstance(photos, Config) else photos,
        store=store,
        weights=weights,
        hub=hub,
        dtype=dtype,
        compress=compress,
        precision=precision,
        engine=engine,
        max_megapixels=max_megapixels,
    )
    if not isinstance(photos, Config) or any(each is not None for each in (backbones, tensors, views)):
        config = choose(config, backbones, views, tensors)
    where = runtime or Runtime()
    where = replace_fields(where, device=device or where.device, engine=engine or where.engine or config.engine)
    with show_progress(on_progress or progress) as report:
        plan, networks = plan_extraction(
            config,
            replace=replace,
            prune=prune,
            reuse=reuse if isinstance(reuse, Sequence) and not isinstance(reuse, str) else [reuse],
            allow_missing=allow_missing,
            strict=strict,
            runtime=where,
            on_progress=report,
        )
        if on_plan is not None:
            on_plan(plan)
        return _carry_out(
            plan,
            networks,
            config.store,
            where,
            report,
            started,
            as_path(trace),
            max_megapixels=config.max_megapixels,
        )


def retry(
    store: Place,
    *,
    photos: Path | str | None = None,
    default_photos: Path | str | None = None,
    weights: WeightsPolicy | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    runtime: Runtime | None = None,
    progress: bool | Progress = True,
    on_progress: Progress | None = None,
) -> Summary:
    """Look again at the photos that could not be read, and at no others, for every tensor that the store has.

    Args:
        photos: their folder; that of the last extraction if not said.
        default_photos: their folder where the store does not say, as one that was pulled, or says one that is gone.
        weights: where to look for weights; they have to be those that the store's features are of.
        progress, on_progress: as for `extract`.
        max_megapixels: how large a photo may be.

    Raises:
        PhotosError: the folder is not known, or is not there.
        LayoutError: the weights that are here are others.
        StoreError: as for `extract`.
    """
    policy, where = weights or WeightsPolicy(), runtime or Runtime()
    with show_progress(on_progress or progress) as report:
        return _retry(
            plain(store), as_path(photos), as_path(default_photos), policy, where, report, max_megapixels=max_megapixels
        )


def _retry(
    store: Place,
    photos: Path | None,
    default_photos: Path | None,
    policy: WeightsPolicy,
    where: Runtime,
    report: Progress,
    *,
    max_megapixels: float,
) -> Summary:
    started = time.perf_counter()
    opened = open_store(store)
    tensors = [tensor for tensor in opened.tensors.values() if tensor.replaced_by is None]
    root = photos or last_photos(opened, default_photos)
    policy = replace_fields(policy, named={**named_seeds(tensors), **policy.named})
    images = opened.images
    never_opened = (images.states == ImageState.UNREAD) & ~images.digests.any(axis=1)
    failed = np.flatnonzero((images.states == ImageState.UNREADABLE) | never_opened).tolist()
    listing = list_photos(root, opened, report)
    paths = {images.paths[row] for row in failed} & {photo.path for photo in listing.photos}
    if not paths:
        return Summary(opened.path, elapsed_s=time.perf_counter() - started)
    networks = Networks([from_stored(tensor, policy) for tensor in tensors], policy)
    _plan(listing, networks)  # refuses before anything is changed, as the next line does
    _check_device(where)
    again = [row for row in failed if images.paths[row] in paths - set(listing.changed)]
    if again:  # the images stay unreadable until they are read: a retry that is stopped is not forgotten
        with Writer(store) as writer:
            listing.check(writer)
            held = writer.store
            writer.amend({f"rows/{t.name}": (again, _absent_if_failed(held[t.name].states[again])) for t in tensors})
            listing = replace_fields(listing, store=writer.store)
    plan = _plan(listing.only(paths), networks)
    return _carry_out(plan, networks, store, where, report, started, max_megapixels=max_megapixels)


def _plan(
    listing: Listing, networks: Networks, *, replace: bool = False, reuse: Sequence[Store] = ()
) -> ExtractionPlan:
    dtypes = [request.dtype for request in networks.requests]
    return make_plan(
        listing, networks.layouts(), dtypes, computable=set(networks.by_hash()), replace=replace, reuse=reuse
    )


def _ours(config: Config) -> list[Path]:
    """What may lie among the photos and is of featstore itself."""
    store = [Path(config.store), Path(f"{config.store}.lock")] if "://" not in str(config.store) else []
    labels = [] if config.labels is None else [config.labels.file]
    return [*store, *labels, config.runs, config.weights.folder, *([config.file] if config.file else [])]


def _open_usual(places: Sequence[Place]) -> tuple[list[Store], dict[str, str]]:
    """The stores that the configuration names for reuse; those that cannot be opened just now, and why, do no harm."""
    stores, unreached = [], {}
    for place in places:
        try:
            stores.append(open_store(place))
        except StoreError as error:
            unreached[str(place)] = str(error)
    return stores, unreached


def _check_device(runtime: Runtime) -> None:
    if not runtime.distributed:
        Hardware.choose(runtime)


def _precision(config: Config, store: Store | None, runtime: Runtime) -> str:
    """The arithmetic of tensors that are not begun yet, where the configuration leaves it open."""
    if all(spec.kind == PIXELS or stored_precision(config, spec.name, store) for spec in config.tensors):
        return "fp32"
    if runtime.scheduler is not None:
        if runtime.device == "auto":
            raise ConfigError("say --precision, or --device: what the workers of a scheduler have is not known here")
        return "fp16" if runtime.device.startswith("cuda") else "fp32"
    return default_precision(choose_device(runtime.device))  # torch: seconds that an idle run does not spend


def _carry_out(
    plan: ExtractionPlan,
    networks: Networks,
    store: Place,
    runtime: Runtime,
    report: Progress,
    started: float,
    trace: Path | None = None,
    *,
    max_megapixels: float,
) -> Summary:
    summary = Summary(
        str(store), n_images=len(plan.listing.photos), notices=[*plan.listing.notes, *foretell(plan, networks)]
    )
    summary.not_photos = plan.listing.others
    summary.n_waiting = len({path for tensor in plan.tensors for path in tensor.waiting})
    if plan.work:
        from featstore.extraction.run import Extraction  # torch: seconds that a run with nothing to do does not spend

        location = locate(store, writable=True)
        if location.folder is not None:
            check_space(location.folder, plan.n_bytes)
        with ExitStack() as stack:
            stages = stack.enter_context(Stages(trace))
            run = Extraction(plan, networks, runtime, stages=stages, report=report, max_megapixels=max_megapixels)
            writer = stack.enter_context(Writer(store))
            summary.notices += [writer.notice] if writer.notice else []
            # Before anything is changed: what cannot compute says so here.
            computer = stack.enter_context(run.computer(writer.store.block_rows, summary.notices.append))
            plan.listing.apply(writer)
            summary.new_tensors = [name for name in plan.names if name not in writer.store.tensors]
            _make_tensors(writer, plan, networks)
            if len(rows := run.rows_to_fill(writer.store)):
                _add(summary, run.go(writer, computer, rows), stages, started)
                summary.engines = computer.engines()
            writer.reopen()
            for name in plan.names:
                if not len(run.rows_to_fill(writer.store, name)):
                    freed, kept = remove_replaced(writer, name)
                    summary.n_reclaimed += freed
                    summary.notices += [_KEPT.format(name=each) for each in kept]
        summary.notices += stages.notices
    _finish(summary, open_store(store), plan.listing)
    summary.elapsed_s = time.perf_counter() - started
    return summary


def _make_tensors(writer: Writer, plan: ExtractionPlan, networks: Networks) -> None:
    for tensor, request in zip(plan.tensors, networks.requests, strict=True):
        if tensor.differences:
            set_aside(writer, tensor.layout.name)
        writer.ensure_tensor(tensor.layout, request.dtype, compress=request.compress)


def _absent_if_failed(states: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(states == RowState.FAILED, RowState.ABSENT, states).astype(np.uint8)


def _add(summary: Summary, made: "Made", stages: Stages, started: float) -> None:
    """What a run made, as a part of the whole."""
    summary.n_computed, summary.n_both, summary.n_bytes = made.n_computed, made.n_both, made.n_bytes
    summary.failed, summary.extracting_s = made.unavailable, made.elapsed_s
    summary.notices += made.notes()
    summary.first_s = made.first_at - started if made.n_computed else 0.0
    summary.stages_s, summary.shares = dict(stages.busy_s), stages.shares(made.elapsed_s)


def _finish(summary: Summary, store: Store, listing: Listing) -> None:
    """What the store has become."""
    images = store.images
    rows = [images.rows_by_path[photo.path] for photo in listing.photos]
    summary.failed += [
        (images.paths[row], images.errors[row]) for row in rows if images.states[row] == ImageState.UNREADABLE
    ]
    summary.n_reused = (
        summary.n_images - len(summary.failed) - (summary.n_computed + summary.n_waiting - summary.n_both)
    )
