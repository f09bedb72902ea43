"""What the recipes share: extract once, train once, compare with the published figures."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import featstore
from featstore import Config, Runtime, TensorSpec, View
from featstore.support import Progress
from heads import HeadsError, Labels, Plan, Run, Validation, find_system, train, write_report

OURS = "ours"
"""How the source of an option begins whose default is not the paper's."""


@dataclass(frozen=True)
class Bench:
    """Where a recipe works, and with what."""

    config: Config
    """Photos, store and weights."""
    out: Path
    """A folder; every run becomes one below it."""
    backbones: tuple[str, ...] = ()
    """In place of the paper's."""
    allow_missing: bool = False
    device: str = "auto"
    n_repeats: int | None = None
    """As many as the paper's if None."""
    seed: int = 0
    changes: tuple[str, ...] = ()
    """Options of the heads that are changed, written `name=value`."""
    on_progress: Progress | None = None


@dataclass(frozen=True)
class Figure:
    """A metric of a run, beside what was published; None where there is none."""

    system: str
    labels: str
    """Which labels the head learnt."""
    task: str
    metric: str
    mean: float | None
    spread: float | None
    low: float | None
    high: float | None
    published: float | None

    @property
    def ours(self) -> str:
        """0.560 ± 0.010 [0.510, 0.600]"""
        if self.mean is None:
            return "–"
        spread = "" if self.spread is None else f" ± {self.spread:.3f}"
        return f"{self.mean:.3f}{spread}" + (
            "" if self.low is None or self.high is None else f" [{self.low:.3f}, {self.high:.3f}]"
        )

    @property
    def paper(self) -> str:
        return "–" if self.published is None else f"{self.published:.3f}"


@dataclass(frozen=True)
class Table:
    """Figures as the paper lays them out."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Outcome:
    """What a recipe leaves."""

    tables: list[Table]
    figures: list[Figure]
    differences: list[str]
    """What is not as in the paper, in words."""
    runs: list[Path]
    learned: dict[str, str] = field(default_factory=dict)
    """Parameters that say something by themselves, in words."""


def extract(bench: Bench, tensors: Sequence[TensorSpec], **views: View) -> featstore.Summary:
    """Compute what the store lacks of the tensors, with views besides the usual ones, or in place of them.

    Raises:
        featstore.FeatstoreError: weights cannot be had (says which, and how to go on), or what else extraction raises.
    """
    return featstore.extract(
        replace(bench.config, tensors=tuple(tensors), views={**bench.config.views, **views}),
        runtime=Runtime(bench.device),
        allow_missing=bench.allow_missing,
        on_progress=bench.on_progress,
    )


def check_options(bench: Bench, systems: Iterable[str]) -> None:
    """Before anything is computed.

    Raises:
        UnknownSystemError: a head, or an option that is changed, does not exist.
    """
    for name in systems:
        find_system(name).settle(bench.changes)


def check_networks(bench: Bench, systems: Sequence[str]) -> None:
    """Before anything is computed, of systems with unlike options: each takes those that it has.

    Raises:
        HeadsError: there is no system, or it does not exist, or none has an option that is changed, or a value is none.
    """
    if not systems:
        raise HeadsError("--systems names no head; leave it out for the usual ones, or name some, comma-separated")
    options = {system: find_system(system).options for system in systems}
    for change in bench.changes:
        if not any(change.partition("=")[0] in known for known in options.values()):
            raise HeadsError(f"--set {change}: none of {', '.join(systems)} has such an option")
    for system in systems:
        find_system(system).settle(_own(bench, system))


def train_network(
    bench: Bench,
    system: str,
    labels: Labels,
    out: Path,
    *,
    tensors: Sequence[str],
    validation: Validation,
    group: str | None,
) -> list[Run]:
    """Train one of several systems, with the options that it has; a run for each part of the labels.

    Raises:
        HeadsError: as `heads.train`.
    """
    plan = Plan(
        system=system,
        store=bench.config.store,
        labels=labels,
        out=out,
        tensors=tensors,
        changes=_own(bench, system),
        validation=validation,
        n_repeats=bench.n_repeats,
        seed=bench.seed,
        group=group,
        device=bench.device,
        photos=bench.config.photos,
    )
    return train_once(bench, plan).parts


def _own(bench: Bench, system: str) -> list[str]:
    """The changes that a system has options for."""
    return [change for change in bench.changes if change.partition("=")[0] in find_system(system).options]


def train_once(bench: Bench, plan: Plan) -> Run:
    """Train, or take the run of the same plan that an earlier call has finished; with a report.

    Raises:
        RunError: at `plan.out` is a run of something else.
        HeadsError: as `heads.train`.
    """
    command = shlex.join(["python", "-m", "pipelines", *sys.argv[1:]])
    run = train(replace(plan, keep=True, command=command), on_progress=_named(plan.out.name, bench.on_progress))
    write_report(run)
    return run


def figures_of(
    run: Run, labels: str, task: str, metrics: Iterable[str], published: Mapping[str, float | None]
) -> list[Figure]:
    """Of each metric of a task, our figure and the published one."""
    found = []
    for metric in metrics:
        ours = run.metrics[task][metric]
        found.append(
            Figure(
                system=run.config.system,
                labels=labels,
                task=task,
                metric=metric,
                mean=ours["mean"],
                spread=ours["spread"],
                low=ours["low"],
                high=ours["high"],
                published=published.get(metric),
            )
        )
    return found


def differences(
    bench: Bench, runs: Sequence[Run], *, backbones: Sequence[str] = (), n_images: int | None = None
) -> list[str]:
    """What is not as in the paper, as far as a run says it.

    Args:
        backbones: the paper's whose features are read, by the names of their cards.
        n_images: how many it had, where that is known.
    """
    found = []
    segments = [each for run in runs for tensor in run.config.tensors for each in tensor["segments"]]
    used, random = _networks(segments), _networks(each for each in segments if _is_random(each))
    if set(used) != set(backbones):
        found.append(f"backbones: {', '.join(used)}; the paper has {', '.join(backbones)}")
    if random:
        found.append(f"weights: random, untrained, of {', '.join(random)}")
    counts = sorted({run.config.n_images for run in runs})
    if n_images is not None and counts != [n_images]:
        found.append(f"photos: {', '.join(f'{count:,}' for count in counts)}; the paper has {n_images:,}")
    if bench.changes:
        found.append(f"options changed: {', '.join(bench.changes)}")
    by_words: dict[str, list[str]] = {}
    for run in runs:
        for words in _of_training(run):
            by_words.setdefault(words, []).append(run.config.system)
    return [*found, *(f"{', '.join(dict.fromkeys(systems))}: {words}" for words, systems in by_words.items())]


def _of_training(run: Run) -> Iterator[str]:
    config, system = run.config, find_system(run.config.system)
    if config.n_repeats != system.repeats:
        yield f"trained {config.n_repeats} times, not {system.repeats} as by default"
    ours = [f"{n}={config.options[n]}" for n, option in system.options.items() if option.source.startswith(OURS)]
    if ours:
        yield f"ours, not the paper's: {', '.join(ours)}"


def _networks(segments: Iterable[Mapping[str, Any]]) -> list[str]:
    """Those whose features are read, without how they are pooled."""
    names = (str(each["name"]).partition(":")[0] for each in segments)
    return [name for name in dict.fromkeys(names) if name != "pixels"]


def _named(name: str, on_progress: Progress | None) -> Progress | None:
    """Says of which run a stage is."""
    return on_progress and (lambda stage, done, total: on_progress(f"{stage} {name}", done, total))


def _is_random(segment: Mapping[str, Any]) -> bool:
    return "random_seed" in segment["identity"].get("weights", {})
