"""plan -> row blocks -> run -> commit.

Photos are decoded a little ahead on threads, every backbone runs over them, and whole row blocks are committed
by a thread of their own, so that neither decoding nor the disk holds up the device.
"""

import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.backbones import WeightsPolicy
from featstore.config import Config
from featstore.errors import FeatureRangeError, ImageError, PhotosError, UnavailableError
from featstore.images import read_photo
from featstore.listing import Listing, Progress, list_photos
from featstore.planning import Plan, existing_store, make_plan
from featstore.requests import Networks, from_config, from_stored, named_seeds
from featstore.rowblocks import Block, Copies
from featstore.store import ImageState, RowState, Store, TensorLayout, Writer, open_store
from featstore.store.location import Place, locate
from featstore.store.writing import check_space
from featstore.views import View, cut

if TYPE_CHECKING:
    import torch

    from featstore.forward import Backbones

AHEAD = 4  # photos decoded ahead of the device, per decoding thread


_KEPT = (
    "{name} is kept: it alone has the features of photos that are not in the folder now; extract again when they are, "
    "or `featstore rm {name}`"
)


@dataclass
class Summary:
    """What an extraction did; counts are of images, times in seconds."""

    store: str
    n_images: int = 0
    n_computed: int = 0
    n_reused: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of every image that could not be read, of this run or an earlier one."""
    n_bytes: int = 0
    n_reclaimed: int = 0
    """Bytes of tensors that were replaced."""
    notices: list[str] = field(default_factory=list)
    """What else is good to know, such as what became of an earlier run that died at work."""
    elapsed_s: float = 0.0
    extracting_s: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)

    @property
    def images_per_s(self) -> float:
        return self.n_computed / self.extracting_s if self.extracting_s else 0.0

    @property
    def slowest_stage(self) -> str | None:
        return max(self.stages_s, key=lambda stage: self.stages_s[stage]) if any(self.stages_s.values()) else None


def plan_extraction(
    config: Config,
    *,
    replace: bool = False,
    prune: bool = False,
    reuse: Sequence[Place] = (),
    on_progress: Progress | None = None,
) -> tuple[Plan, Networks]:
    """What `extract` would do; nothing is written. See `extract` for arguments and errors."""
    if config.photos is None:
        raise PhotosError("no photo folder named; give it as the first argument, or `featstore init PHOTOS`")
    listing = list_photos(config.photos, existing_store(config.store), on_progress or _ignore, prune=prune)
    networks = Networks(from_config(config), config.weights)
    return _plan(listing, networks, replace=replace, reuse=[open_store(each) for each in reuse]), networks


def extract(
    config: Config,
    *,
    device: str = "auto",
    replace: bool = False,
    prune: bool = False,
    reuse: Sequence[Place] = (),
    on_plan: Callable[[Plan], object] | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Bring a store up to date with a folder of photos: compute what is absent, and nothing else.

    Args:
        config: `photos`, `store` and `tensors` say what; see `featstore.config`.
        replace: whether a tensor whose segments have another identity in the store is replaced; what is the
            same of it is copied, and it is kept until the new one is complete.
        prune: whether rows of photos that are no longer in the folder are marked gone.
        reuse: other stores, from which features of the same identity and image are copied.
        on_plan: called with what is going to be done, before it is.

    Raises:
        PhotosError: the folder holds no photos.
        BackboneError: a backbone is unknown, or its weights cannot be had.
        LayoutError: the store holds other features under a tensor's name, and may not replace them.
        FeatureRangeError: a feature is not finite, or float16 cannot hold it.
        StoreError: the store is locked, damaged, of another format, or the disk refuses.
        KeyboardInterrupt: as it came, after the photos done so far have been committed.
    """
    started = time.perf_counter()
    plan, networks = plan_extraction(config, replace=replace, prune=prune, reuse=reuse, on_progress=on_progress)
    if on_plan is not None:
        on_plan(plan)
    return _carry_out(plan, networks, config.store, device, on_progress or _ignore, started)


def retry(
    store: Place,
    *,
    photos: Path | None = None,
    weights: WeightsPolicy | None = None,
    device: str = "auto",
    on_progress: Progress | None = None,
) -> Summary:
    """Look again at the photos that could not be read, and at no others, for every tensor that the store has.

    Args:
        photos: their folder; that of the last extraction if not said.
        weights: where to look for weights; they have to be those that the store's features are of.

    Raises:
        PhotosError: the folder is not known, or is not there.
        LayoutError: the weights that are here are others.
        StoreError: as for `extract`.
    """
    started = time.perf_counter()
    report = on_progress or _ignore
    opened = open_store(store)
    tensors = [tensor for tensor in opened.tensors.values() if tensor.replaced_by is None]
    root = photos or last_photos(opened)
    policy = weights or WeightsPolicy()
    policy = replace_fields(policy, named={**named_seeds(tensors), **policy.named})
    images = opened.images
    never_opened = (images.states == ImageState.UNREAD) & ~images.digests.any(axis=1)
    failed = np.flatnonzero((images.states == ImageState.UNREADABLE) | never_opened).tolist()
    listing = list_photos(root, opened, report)
    paths = {images.paths[row] for row in failed} & {photo.path for photo in listing.photos}
    if not paths:
        return Summary(opened.path, elapsed_s=time.perf_counter() - started)
    networks = Networks([from_stored(tensor) for tensor in tensors], policy)
    _plan(listing, networks)  # refuses before anything is changed
    again = [row for row in failed if images.paths[row] in paths - set(listing.changed)]
    if again:  # the images stay unreadable until they are read: a retry that is stopped is not forgotten
        with Writer(store) as writer:
            writer.amend({f"rows/{t.name}": (again, _absent_if_failed(t.states[again])) for t in tensors})
    listing = list_photos(root, open_store(store), report).only(paths)
    return _carry_out(_plan(listing, networks), networks, store, device, report, started)


def last_photos(store: Store) -> Path:
    """The folder that the last extraction into a store read its photos from.

    Raises:
        PhotosError: the store does not say.
    """
    runs = [run for tensor in store.tensors.values() for run in tensor.provenance if "photos" in run]
    if not runs:
        raise PhotosError(f"{store.path} does not say where its photos are; name their folder with --photos")
    return Path(max(runs, key=lambda run: str(run.get("started", "")))["photos"])


def _plan(listing: Listing, networks: Networks, *, replace: bool = False, reuse: Sequence[Store] = ()) -> Plan:
    dtypes = [request.dtype for request in networks.requests]
    return make_plan(listing, networks.layouts(), dtypes, replace=replace, reuse=reuse)


def _carry_out(plan: Plan, networks: Networks, store: Place, device: str, report: Progress, started: float) -> Summary:
    listing = plan.listing
    summary = Summary(str(store), n_images=len(listing.photos))
    if plan.work:
        from featstore.engines import choose_device  # torch: seconds that a run with nothing to do does not spend

        location = locate(store, writable=True)
        if location.folder is not None:
            check_space(location.folder, plan.n_bytes)
        where = choose_device(device)
        with Writer(store) as writer:
            summary.notices += [writer.notice] if writer.notice else []
            listing.apply(writer)
            for tensor, request in zip(plan.tensors, networks.requests, strict=True):
                if tensor.differences:
                    writer.set_aside(tensor.layout.name)
                writer.ensure_tensor(tensor.layout, request.dtype, compress=request.compress)
            layouts = [tensor.layout for tensor in plan.tensors]
            rows = _absent(listing, writer.store, layouts)
            if len(rows):
                _Run(writer, plan, networks, report, summary).go(rows, where)
            writer.reopen()
            for name in (layout.name for layout in layouts):
                if not len(_absent(listing, writer.store, [writer.store[name].layout])):
                    freed, kept = writer.remove_replaced(name)
                    summary.n_reclaimed += freed
                    summary.notices += [_KEPT.format(name=each) for each in kept]
    _finish(summary, open_store(store), listing, time.perf_counter() - started)
    return summary


def _absent(listing: Listing, store: Store, layouts: list[TensorLayout]) -> NDArray[np.int64]:
    """Rows of listed photos that some tensor lacks, in ascending order."""
    known = store.images.rows_by_path
    rows = np.array(sorted(known[photo.path] for photo in listing.photos), dtype=np.int64)
    lacking = np.zeros(len(rows), bool)
    for layout in layouts:
        lacking |= store[layout.name].states[rows] == RowState.ABSENT
    return rows[lacking]


def _absent_if_failed(states: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(states == RowState.FAILED, RowState.ABSENT, states).astype(np.uint8)


def _ignore(stage: str, done: int, total: int) -> None:
    return


def _finish(summary: Summary, store: Store, listing: Listing, elapsed_s: float) -> None:
    images = store.images
    rows = [images.rows_by_path[photo.path] for photo in listing.photos]
    summary.failed += [
        (images.paths[row], images.errors[row]) for row in rows if images.states[row] == ImageState.UNREADABLE
    ]
    summary.n_reused = summary.n_images - summary.n_computed - len(summary.failed)
    summary.elapsed_s = elapsed_s


@dataclass(frozen=True)
class _Decoded:
    """A photo cut into its views, or the reason why not."""

    blocks: dict[View, NDArray[np.uint8]] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    error: str = ""
    unavailable: bool = False
    """The file could not be opened: a matter of the disk or the network, not of the photo."""
    elapsed_s: float = 0.0


class _Run:
    """The loop itself: decode a little ahead, forward, hand whole blocks to the committing thread."""

    def __init__(
        self,
        writer: Writer,
        plan: Plan,
        networks: Networks,
        report: Progress,
        summary: Summary,
    ) -> None:
        self._writer, self._store = writer, writer.store
        self._layouts = [tensor.layout for tensor in plan.tensors]
        self._networks, self._root = networks, plan.listing.root
        self._report, self._summary = report, summary
        self._copies = Copies(
            [writer.store, *plan.reuse], {s.hash for layout in self._layouts for s in layout.segments}
        )
        self._backbones: Backbones
        self._stages = {"decode": 0.0, "forward": 0.0, "write": 0.0}

    def go(self, rows: NDArray[np.int64], device: "torch.device") -> None:
        """Compute the named rows, in ascending order."""
        todo = [int(row) for row in rows]
        threads = min(4, os.cpu_count() or 1)
        begun = time.perf_counter()
        with ThreadPoolExecutor(threads) as decoding, ThreadPoolExecutor(1) as committing:
            commits: deque[Future[None]] = deque()
            block: Block | None = None
            try:
                self._start(device)
                self._report("extract", 0, len(todo))
                for done, (row, photo) in enumerate(self._decode_ahead(todo, decoding, threads)):
                    if block is None or row // self._store.block_rows != block.number:
                        self._hand_over(block, committing, commits)
                        block = Block(row // self._store.block_rows, self._store, self._layouts)
                    self._do(row, photo, block)
                    self._report("extract", done + 1, len(todo))
            finally:
                # Also after Ctrl-C or an error: what has been computed is worth keeping.
                decoding.shutdown(wait=False, cancel_futures=True)
                self._hand_over(block, committing, commits)
                while commits:
                    commits.popleft().result()
                self._stages["decode"] /= threads
                self._summary.stages_s = self._stages
                self._summary.extracting_s = time.perf_counter() - begun

    def _start(self, device: "torch.device") -> None:
        """Load the engines and note what this run runs on."""
        import torch

        from featstore.engines import EagerEngine, describe_device
        from featstore.forward import Backbones

        self._backbones = Backbones(self._networks, device, self._report)
        self._dtypes = {s.hash: str(s.identity["dtype"]) for layout in self._layouts for s in layout.segments}
        self._writer.record_run(
            [layout.name for layout in self._layouts],
            {
                "versions": {name: version(name) for name in ("featstore", "torch", "timm", "pillow", "zarr")}
                | {"python": platform.python_version()},
                "engine": EagerEngine.name,
                "device": describe_device(device),
                "threads": torch.get_num_threads(),
                "weights": self._networks.origins(),
                "photos": str(self._root.absolute()),
            },
        )

    def _decode_ahead(self, rows: list[int], pool: ThreadPoolExecutor, threads: int) -> Iterator[tuple[int, _Decoded]]:
        """Decoded photos in order; memory is bounded by how many are decoded ahead."""
        views = self._backbones.views
        ahead: deque[tuple[int, Future[_Decoded]]] = deque()
        waiting = iter(rows)
        while True:
            while len(ahead) < AHEAD * threads and (row := next(waiting, None)) is not None:
                ahead.append((row, pool.submit(self._decode, row, views)))
            if not ahead:
                return
            row, future = ahead.popleft()
            yield row, future.result()

    def _decode(self, row: int, views: list[View]) -> _Decoded:
        started = time.perf_counter()
        images = self._store.images
        try:
            image = read_photo(self._root / images.paths[row], digest=images.digests[row].tobytes())
        except ImageError as error:
            unavailable = isinstance(error, UnavailableError)
            return _Decoded(error=str(error), unavailable=unavailable, elapsed_s=time.perf_counter() - started)
        blocks = cut(image, views)
        return _Decoded(blocks, (image.height, image.width), elapsed_s=time.perf_counter() - started)

    def _do(self, row: int, photo: _Decoded, block: Block) -> None:
        self._stages["decode"] += photo.elapsed_s
        if photo.unavailable:
            self._summary.failed.append((self._store.images.paths[row], photo.error))
            return
        if photo.error:
            block.fail(row, photo.error)
            return
        started = time.perf_counter()
        wanted = {segment.hash for layout in block.lacking(row) for segment in layout.segments}
        features = self._copies.read(self._store.images.digests[row].tobytes(), wanted)
        if lacking := wanted - set(features):
            for key, values in self._backbones.features(photo.blocks, lacking).items():
                features[key] = self._checked(values, row, key)
            self._summary.n_computed += 1
        block.fill(row, features, photo.size)
        self._stages["forward"] += time.perf_counter() - started

    def _checked(self, values: NDArray[np.float32], row: int, key: str) -> NDArray[Any]:
        backbone, dtype = self._backbones.segments[key].card.name, self._dtypes[key]
        path = self._store.images.paths[row]
        largest = float(np.abs(values).max())
        if not np.isfinite(largest):
            raise FeatureRangeError(f"backbone {backbone!r} gave a feature that is not a number for {path}")
        if largest > float(np.finfo(dtype).max):
            raise FeatureRangeError(
                f"backbone {backbone!r} gave a feature of {largest:.4g} for {path}, more than {dtype} holds; "
                "run again with --dtype float32 (and another --store or tensor name)"
            )
        return values.astype(dtype)

    def _hand_over(self, block: Block | None, pool: ThreadPoolExecutor, commits: "deque[Future[None]]") -> None:
        if block is None or not block.seen.rows:
            return
        while commits:  # at most one block is being written while the next one fills
            commits.popleft().result()
        commits.append(pool.submit(self._commit, block))

    def _commit(self, block: Block) -> None:
        started = time.perf_counter()
        rows = {name: (block.features[name], block.states[name]) for name in block.features}
        self._summary.n_bytes += self._writer.commit(block.number, rows, block.seen)
        self._stages["write"] += time.perf_counter() - started
