"""The lines of docs/pixels.md that name what photos show, from photos to a trained head."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from featstore.cli import app as featstore_app
from heads import Run
from heads.cli import app as heads_app

PAGE = (Path(__file__).parents[2] / "docs" / "pixels.md").read_text()
SMALL = (
    "--out runs/content --device cpu --set init_trunk=random --set width=0.125 --set hidden=16 --set feature=8 "
    "--set branch=4 --set joined=4 --set crop=67 --set epochs=1 --set branch_epochs=1"
)


def run(app: typer.Typer, words: str) -> None:
    result = CliRunner().invoke(app, shlex.split(words))
    assert result.exit_code == 0, result.output


def test_content_is_grouped_by_photos_that_are_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw, names = np.random.default_rng(0), [f"{i:02}.png" for i in range(30)]
    Path("photos").mkdir()
    for name in names:
        pixels = draw.integers(60, size=(16, 16, 3)) + np.array([190, 0, 0] if int(name[:2]) % 2 else [0, 0, 190])
        Image.fromarray(pixels.astype(np.uint8)).save(Path("photos", name))
    pd.DataFrame({"path": names, "score": draw.random(30)}).to_csv("scores.csv", index=False)
    (extraction,) = re.findall(r"featstore (extract .*)", PAGE[: PAGE.index("KMeans")])[-1:]
    assert "fc7=concat:torchvision:alexnet" in extraction
    words = extraction.replace("torchvision:alexnet", "test_resnet").replace("PHOTOS", "photos")
    run(featstore_app, f"{words} --weights random:0 --device cpu --engine eager")
    (script,) = (each for each in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "KMeans" in each)
    exec(script, {})
    table = pd.read_csv("content.csv")
    assert (table["split"] == "test").sum() == 3
    assert table["shows"].nunique() == 10
    red = table["path"].str[:2].astype(int) % 2
    assert (red.groupby(table["shows"]).nunique() == 1).all()  # no group has photos of both colours

    command = PAGE[PAGE.index("```", PAGE.index("content.csv")) :].split("heads ", 1)[1].split("\n")[0]
    run(heads_app, f"{command} {SMALL}")
    score = Run("runs/content/score")
    assert sorted(score.predictions["path"]) == sorted(table.loc[table["split"] == "test", "path"])
    assert set(Run("runs/content/shows").config.target.classes) == set(table["shows"])
