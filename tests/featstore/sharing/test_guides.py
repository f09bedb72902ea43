"""docs/sharing.md does what it says: its commands are run, one after the other, against a bucket on this machine."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from typer.testing import CliRunner

import featstore.cli
import heads.cli

DOCS = Path(__file__).parents[3] / "docs"
CONFIG = """
photos = "photos"
engine = "eager"
[backbones.test_resnet]
weights = "random:0"
[views.small]
size = [64, 48]
grid = [2, 2]
[tensors.grid]
layout = "stack"
view = "small"
segments = ["test_resnet", "test_resnet:max"]
[tensors.whole]
layout = "concat"
view = "small"
segments = ["test_resnet"]
"""


SAID = {
    "extract --store cache/colleague.zarr": "0 done, 10 reused",
    "nothing new": "nothing to be pushed",
    "featstore log": "paper-v1",
    "featstore diff": "the same on both sides, to the last bit",
    "--verify 2": "computed again",
    "verify published/features.zip": "sound",
}
"""By words of a command, words of what it says."""


def blocks(guide: str) -> list[tuple[str, str]]:
    """(language, text) of every code block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)


def run(command: str) -> str:
    program, *arguments = shlex.split(command)
    if program == "python":
        files = [str(file) for each in arguments for file in (sorted(Path().glob(each)) if "*" in each else [each])]
        subprocess.run([sys.executable, *files], check=True)
        return ""
    app = {"featstore": featstore.cli.app, "heads": heads.cli.app}[program]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"{command}\n{done.output}"
    return done.output


@pytest.mark.slow
def test_the_guides_do_what_they_say(
    bucket: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket="our-bucket")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "featstore.toml").write_text(CONFIG)
    lines = [
        f"{path.relative_to(photos).as_posix()},{1 + i % 7}" for i, path in enumerate(sorted(photos.rglob("*.jpg")))
    ]
    (tmp_path / "labels.csv").write_text("path,beauty\n" + "\n".join(lines) + "\n")
    told: dict[str, str] = {}
    for language, text in blocks((DOCS / "sharing.md").read_text()):
        if language == "toml":
            (tmp_path / "featstore.toml").write_text(text + CONFIG)
        for command in text.splitlines() if language == "sh" else ():
            told[command] = run(command)
    for words, said in SAID.items():
        output = next(output for command, output in told.items() if words in command)
        assert said in output, output
    assert featstore.open("published/features.zip")["grid"].read([0]).any()


def test_every_line_of_the_threat_model_has_its_test() -> None:
    text = (DOCS / "security.md").read_text()
    named = re.findall(r"`(test_\w+)`", text)
    sources = "".join(file.read_text() for file in DOCS.parent.glob("tests/**/test_*.py"))
    assert [name for name in named if f"def {name}(" not in sources] == []
    promises = text.partition("## What cannot be done to you")[2].partition("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    assert [row for row in rows if "`test_" not in row] == []
