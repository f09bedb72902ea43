"""The command `python -m pipelines`: the demo, and one recipe for each paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featstore.support import parse_names
from featstore.terminal import Terminal, adapt_streams, spread_options
from pipelines.options import Folds, Group, NetworkOptions, Photos, RecipeOptions, show

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def pipelines() -> None:
    """Recipes that run the whole road, from photographs to a report."""


@app.command()
def demo() -> None:
    """Extract and train on 120 small photos; download nothing."""
    from pipelines.demo import run_demo
    from pipelines.demo_set import DemoError

    terminal = Terminal()
    with terminal.errors(DemoError, stopped="the demo was interrupted; the same command goes on from there"):
        run_demo(terminal)


@app.command("visual-interest")
@spread_options
def visual_interest(
    photos: Photos,
    labels: Annotated[Path, typer.Option(help="The ratings, CSV.")],
    scale: Annotated[str, typer.Option(help="The ends of the rating scale.")] = "1:7",
    tasks: Annotated[str | None, typer.Option(help="Columns to learn, comma-separated [all numeric].")] = None,
    systems: Annotated[
        str, typer.Option(help="The heads, comma-separated.")
    ] = "amtl,amtl-single,mtl,amtl-separate,amtl-swapped",
    aggregate: Annotated[
        bool,
        typer.Option("--aggregate", help="The table has a row per rater: learn their mean, amtl their median too."),
    ] = False,
    folds: Folds = 5,
    group: Group = None,
    *,
    options: RecipeOptions,
) -> None:
    """Ghosal and Kolekar: twelve ratings by attention (amtl).

    The attention is over blocks of the photo and over backbones. The variants of amtl are trained beside it.
    """
    from pipelines.visual_interest import visual_interest as recipe

    with options.bench("visual-interest", photos) as (bench, terminal):
        found = recipe(
            bench,
            labels,
            systems=parse_names(systems),
            tasks=parse_names(tasks),
            scale=scale,
            group=group,
            aggregate=aggregate,
            n_folds=folds,
        )
    show(found, terminal)


@app.command()
@spread_options
def mediaeval(
    photos: Photos,
    labels: Annotated[Path, typer.Option(help="The sentiments, CSV.")],
    three: Annotated[str | None, typer.Option(help="Column with one of 3 classes, for moe.")] = None,
    seven: Annotated[str | None, typer.Option(help="Columns of 7 labels, comma-separated, or one as joy|fear.")] = None,
    ten: Annotated[str | None, typer.Option(help="Columns of 10 labels, likewise.")] = None,
    copies: Annotated[
        int, typer.Option(min=0, max=255, help="Augmented copies of each photo that the mlp learns from; 0: none.")
    ] = 4,
    group: Group = None,
    *,
    options: RecipeOptions,
) -> None:
    """Pournaras et al.: the sentiment of a photo (moe, mlp).

    MediaEval 2021, in 3, 7 and 10 classes.
    """
    from pipelines.mediaeval import mediaeval as recipe

    with options.bench("mediaeval", photos) as (bench, terminal):
        found = recipe(
            bench,
            labels,
            three=three,
            seven=parse_names(seven),
            ten=parse_names(ten),
            group=group,
            n_copies=copies,
        )
    show(found, terminal)


@app.command()
@spread_options
def personality(
    photos: Photos,
    aesthetics: Annotated[Path, typer.Option(help="The aesthetic scores, CSV.")],
    traits: Annotated[Path, typer.Option(help="The personality traits, CSV.")],
    score: Annotated[str, typer.Option(help="Column of the aesthetic score.")] = "score",
    names: Annotated[str, typer.Option(help="Columns of the traits, comma-separated.")] = "O,C,E,A,N",
    score_scale: Annotated[str, typer.Option(help="The ends of the score's scale.")] = "0:1",
    trait_scale: Annotated[str, typer.Option(help="The ends of the traits' scale.")] = "-1:1",
    systems: Annotated[
        str, typer.Option(help="The heads, comma-separated; personality trains from pixels.")
    ] = "personality-frozen,aesthetics-only",
    folds: Folds = 5,
    group: Group = None,
    *,
    options: RecipeOptions,
) -> None:
    """Li et al.: an aesthetic score, with personality traits.

    The traits correct the score; beside it is the score alone. --systems personality is the paper's,
    which trains DenseNet-121 from pixels; --set trunk=NAME takes another network.
    """
    from pipelines.personality import personality as recipe

    with options.bench("personality", photos) as (bench, terminal):
        found = recipe(
            bench,
            aesthetics,
            traits,
            score=score,
            names=parse_names(names),
            systems=parse_names(systems),
            score_scale=score_scale,
            trait_scale=trait_scale,
            group=group,
            n_folds=folds,
        )
    show(found, terminal)


@app.command()
@spread_options
def aenet(
    photos: Photos,
    labels: Annotated[Path, typer.Option(help="The labels, CSV; a photo may have one of the two only.")],
    aesthetics: Annotated[str, typer.Option(help="Column that says yes or no: whether a photo is good.")],
    emotion: Annotated[str, typer.Option(help="Column of the emotion, a class.")],
    systems: Annotated[
        str, typer.Option(help="The networks, comma-separated.")
    ] = "resnet50-single,share-split,cross-stitch,aenet-nofusion,aenet",
    group: Group = None,
    *,
    options: RecipeOptions,
) -> None:
    """Yu et al.: aesthetics and emotion, from pixels.

    One network for each, one for both, and networks that take of each other. --set trunk=NAME takes
    another network than ResNet-50 where there is one (resnet50-single, share-split).
    """
    from pipelines.aenet import aenet as recipe

    with options.bench("aenet", photos) as (bench, terminal):
        found = recipe(bench, labels, aesthetics=aesthetics, emotion=emotion, systems=parse_names(systems), group=group)
    show(found, terminal)


@app.command()
@spread_options
def suhail(
    photos: Photos,
    labels: Annotated[Path, typer.Option(help="The labels, CSV.")],
    column: Annotated[str, typer.Option(help="Column of the label: high or low, or an emotion.")],
    systems: Annotated[
        str, typer.Option(help="The networks, comma-separated.")
    ] = "ram,vgg16-finetune,resnet50-finetune,emotion-vgg",
    group: Group = None,
    *,
    options: RecipeOptions,
) -> None:
    """Suhail et al.: quality or emotion, from pixels.

    Glimpses at places that are learned, fine-tuned networks, and one from random weights. --set
    trunk=NAME takes another network than ResNet-50.
    """
    from pipelines.suhail import suhail as recipe

    with options.bench("suhail", photos) as (bench, terminal):
        found = recipe(bench, labels, column=column, systems=parse_names(systems), group=group)
    show(found, terminal)


@app.command()
@spread_options
def audit(
    source: Annotated[str, typer.Argument(metavar="PHOTOS|STORE", help="A folder of photos, or a store with logits.")],
    labels: Annotated[Path, typer.Option(help="The labels, CSV.")],
    column: Annotated[str, typer.Option(help="Column of the emotion, a class.")] = "emotion",
    names: Annotated[
        list[Path] | None, typer.Option(help="Names of classes, one a line, as categories_places365.txt.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="The store for photos [cache/audit/features.zarr].")] = None,
    *,
    options: NetworkOptions,
) -> None:
    """Suhail et al.: what is seen in photos of an emotion.

    Frozen classifiers of objects and scenes say what each photo shows. For each emotion: how many
    classes there are, which are frequent, and which are more frequent than elsewhere.
    """
    from pipelines.audit import WORDS
    from pipelines.audit import audit as recipe

    with options.bench_at(Path("cache/audit"), store) as (bench, terminal):
        found = recipe(bench, source, labels, column=column, names=names or ())
    terminal.result(found.as_json())
    for table in found.tables:
        terminal.table(table.header, table.rows, title=table.title)
    for line in (*WORDS, "not as in the paper:", *(f"  {each}" for each in found.differences)):
        terminal.say(line)


if __name__ == "__main__":
    adapt_streams()
    app(prog_name="python -m pipelines")
