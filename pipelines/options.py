"""The options that recipes share, and what they print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featstore.support import parse_names
from featstore.terminal import Terminal

if TYPE_CHECKING:
    from pipelines.bench import Bench, Outcome

Photos = Annotated[Path, typer.Option(help="The folder of photos.")]
Folds = Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")]
Group = Annotated[str | None, typer.Option(help="Keep rows together: a column, or name, or folder.")]


@dataclass(frozen=True)
class NetworkOptions:
    """With which frozen networks a recipe works, and how it prints."""

    backbones: Annotated[
        str | None, typer.Option(help="NAME,NAME in place of the paper's backbones, as lite0,lite1.")
    ] = None
    weights: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE or NAME=random:SEED; random:SEED for all backbones.")
    ] = None
    hub: Annotated[bool, typer.Option("--hub", help="Allow downloads from the Hugging Face hub.")] = False
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Leave out backbones without weights.")] = False
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto"
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False

    @contextmanager
    def bench_at(self, out: Path, store: Path | None, photos: Path | None = None) -> Iterator[tuple[Bench, Terminal]]:
        """The bench that these options describe, and a terminal: an expected error is one message, and exit code 1.

        Args:
            out: the folder of the recipe.
            store: one in that folder if None.
        """
        from featstore import Config, FeatstoreError, WeightsPolicy
        from featstore.support import parse_store
        from heads import HeadsError
        from pipelines.bench import Bench

        terminal = Terminal(quiet=self.quiet, as_json=self.as_json)
        kept = "what is finished is kept, and the same command goes on from there"
        with terminal.errors(HeadsError, FeatstoreError, stopped=kept), terminal.progress() as progress:
            config = Config(
                photos=photos,
                store=parse_store(str(store or out / "features.zarr")),
                weights=WeightsPolicy(named=WeightsPolicy.parse(self.weights or ()), hub=self.hub),
            )
            bench = Bench(
                config=config,
                out=out,
                backbones=parse_names(self.backbones),
                allow_missing=self.allow_missing,
                device=self.device,
                on_progress=progress,
            )
            yield bench, terminal


@dataclass(frozen=True)
class TrainingOptions:
    """Where a recipe works, and how it trains."""

    out: Annotated[Path | None, typer.Option(help="A folder for the runs [cache/RECIPE].")] = None
    store: Annotated[Path | None, typer.Option(help="The store of features [features.zarr in the --out folder].")] = (
        None
    )
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Train every model this many times [as often as the paper].")
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides folds, initial weights and shuffling.")] = 0
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change an option of the heads, as --set epochs=10.")
    ] = None


@dataclass(frozen=True)
class RecipeOptions(NetworkOptions, TrainingOptions):
    """What all recipes that train heads share."""

    @contextmanager
    def bench(self, recipe: str, photos: Path) -> Iterator[tuple[Bench, Terminal]]:
        """As `bench_at`, with how to train."""
        with self.bench_at(self.out or Path("cache", recipe), self.store, photos) as (bench, terminal):
            changes = tuple(self.change or ())
            yield replace(bench, n_repeats=self.repeats, seed=self.seed, changes=changes), terminal


def show(found: Outcome, terminal: Terminal) -> None:
    """The paper's table with our figures, what differs from the paper, and where the reports are."""
    terminal.result(
        {
            "figures": [asdict(figure) for figure in found.figures],
            "learned": found.learned,
            "differences": found.differences,
            "runs": [str(run) for run in found.runs],
        }
    )
    for table in found.tables:
        terminal.table(table.header, table.rows, title=table.title)
    for name, weight in found.learned.items():
        terminal.say(f"weight of {name}: {weight}")
    terminal.say("ours: mean ± spread over the repeats [95 % bootstrap interval], on photos that no model saw")
    terminal.say("not as in the paper:")
    for difference in found.differences:
        terminal.say(f"  {difference}")
    for run in found.runs:
        terminal.say(f"report: {run / 'report.html'}")
