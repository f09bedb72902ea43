"""Words for hand-made features: `codebook`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from featstore.cli.options import Output
from featstore.terminal import counted, one_line


def codebook(
    group: Annotated[str, typer.Argument(help="The group of features: hog, sift, ... (`featstore backbones hand`).")],
    photos: Annotated[Path | None, typer.Argument(help="The folder of photos [that of featstore.toml].")] = None,
    out: Annotated[Path | None, typer.Option(help="The file [in the weights folder, where extract looks].")] = None,
    view: Annotated[str, typer.Option(help="The view of the photos that the features will be of.")] = "square",
    most: Annotated[int, typer.Option(help="Photos to learn from, at most.", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="Decides which photos, and where the words begin.", min=0)] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a codebook that is there.")] = False,
    *,
    output: Output,
) -> None:
    """Learn the words of a group of hand-made features from photos.

    Learn them from photos that no head is tested on: what features are told in may not know of these.
    """
    with output.terminal() as terminal:
        from featstore import find_config
        from featstore.extraction.codebook import learn_codebook

        config = find_config()
        config = config if photos is None else dataclasses.replace(config, photos=photos)
        with terminal.progress() as progress:
            learnt = learn_codebook(
                config, group, out=out, view=view, most=most, seed=seed, replace=replace, on_progress=progress
            )
        terminal.result(
            {
                "file": str(learnt.file),
                "backbone": learnt.backbone,
                "sha256": learnt.sha256,
                "words": learnt.n_words,
                "photos": learnt.n_photos,
                "descriptors": learnt.n_descriptors,
                "failed": learnt.failed,
            }
        )
        for path, reason in learnt.failed.items():
            terminal.say(one_line(f"passed over: {path}: {reason}"))
        terminal.say(
            f"{learnt.n_words} words of {learnt.backbone} from {learnt.n_descriptors} places of "
            f"{counted(learnt.n_photos, 'photo')}: {learnt.file} ({learnt.sha256[:12]})"
        )
