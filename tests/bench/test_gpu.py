"""The script for a GPU can be rehearsed: every step that is quick on a CPU ends and has something to say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).with_name("gpu.py")


@pytest.mark.slow
def test_the_steps_of_the_gpu_script_run_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, GPU, "--out", tmp_path, "--rehearse", "--seconds", "400", "--without"]
    done = subprocess.run([*command, "compiled,gpu tests"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "error" in line or "skipped" in line]
    said = {line["step"]: line["figures"] for line in lines if "figures" in line}
    assert said["facts"]["flags are put back"]
    assert said["again"]["within"]
    assert said["end to end"]["photos"] == 12
    assert min(figures["model-epochs/s"] for figures in said["stack"].values()) > 0
    assert said["folded"]["status"] == 0


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, GPU, "--out", tmp_path, "--rehearse", "--only", "speed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no step speed; there are: facts," in done.stderr
