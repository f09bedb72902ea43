"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Memory = Annotated[
    str, typer.Option(help="Most memory for features and models in training; what does not fit streams.")
]
Photos = Annotated[Path | None, typer.Option(help="The photo folder, for the report's pictures.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="A head of your own: the .py file or module that registers it."),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")]
StorePlace = Annotated[
    str | None, typer.Argument(help="The store: a folder, zip file or URL [that of featstore.toml].")
]
LabelFiles = Annotated[
    list[Path] | None,
    typer.Option(help="Label table: CSV, TSV or Parquet; several are joined on the photo [that of featstore.toml]."),
]
PathColumn = Annotated[
    str | None, typer.Option(help="Column with the photo's path, or `digest` with its SHA-256. [path]")
]
Tasks = Annotated[str | None, typer.Option(help="Columns to learn, comma-separated [all numeric, or all yes/no].")]
KindOfLabels = Annotated[
    str | None, typer.Option(help="regression, binary, multiclass or multilabel [what the cells look like].")
]
Missing = Annotated[
    list[str] | None,
    typer.Option(help="A word that means no label, as NA or -9; again for more [an empty cell; of numbers also NA]."),
]
Scale = Annotated[
    list[str] | None,
    typer.Option(help="Ends of the rating scale, as 1:7; or of one task, as beauty=1:10 [range of the labels]."),
]
Aggregate = Annotated[str | None, typer.Option(help="One row per rater: mean or median of the rows of each photo.")]
Sd = Annotated[
    list[str] | None,
    typer.Option("--sd", help="Column of standard deviations between raters: {task}_sd, or TASK=COLUMN [none]."),
]
NRaters = Annotated[
    list[str] | None,
    typer.Option("--n-raters", help="How many raters beside --sd: a number, a column, or TASK=either [none]."),
]
Group = Annotated[
    str | None,
    typer.Option(help="Keep rows together: a column, or name (file name without its number), or folder."),
]
Strict = Annotated[bool, typer.Option(help="Refuse photos without labels and labels without photos.")]
