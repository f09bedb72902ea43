"""The fuzzer in short: mutations of everything that strangers may send do no harm, and what is planted is found."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")
PLANTED = """
import sys, tomllib
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import fuzz
import featstore.toml
from featstore.store.lock import Holder

read_config = featstore.toml.read_config

def index_raw(file):
    tomllib.loads(Path(file).read_text())["labels"]["tasks"]
    return read_config(file)

def write_elsewhere(text):
    Path("../outside/canary.txt").write_text("changed")

featstore.toml.read_config = index_raw
Holder.read = staticmethod(write_elsewhere)
sys.exit(fuzz.main(["--keep", sys.argv[2], "--only", "config,lock", "--mutations", "40"]))
"""
"""Two holes: a configuration that is read without a look at it, and a writer outside of the working folder."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where honest material lies, so that it is made once."""
    folder = tmp_path_factory.mktemp("fuzz")
    assert fuzz(str(FUZZ), "--mutations", "0", "--only", "npy", "--keep", str(folder)).returncode == 0
    return folder


@pytest.mark.slow
def test_a_few_mutations_of_everything_are_refused_in_words_or_do_no_harm(kept: Path) -> None:
    done = fuzz(str(FUZZ), "--mutations", "150", "--keep", str(kept))
    assert done.returncode == 0, done.stdout + done.stderr
    total = done.stdout.splitlines()[-1].split()
    assert total[0] == "all"
    assert int(total[1]) >= 150
    assert int(total[2]) > 40, "hardly anything is refused: what is tried does not read what is mutated"


@pytest.mark.slow
def test_what_is_planted_is_found_and_can_be_seen_alone(kept: Path) -> None:
    done = fuzz("-c", PLANTED, str(FUZZ.parent), str(kept))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "TOMLDecodeError in " in done.stdout
    assert "x changed outside" in done.stdout
    alone = fuzz(str(FUZZ), "--keep", str(kept), "--one", "lock:1")  # without what was planted
    assert "features.zarr.lock.json" in alone.stdout
    assert "changed outside" not in alone.stdout


def fuzz(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600, check=False)
