"""How much memory Python code takes, in a process of its own that cannot take the machine's."""

import resource
import subprocess
import sys

ADDRESSES = 1 << 34
SAY_PEAK = """
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024)
"""
"""Not ru_maxrss, which a process inherits from the one that starts it."""


def peak_of(code: str) -> tuple[str, int]:
    """What the code prints, and the most bytes that it took."""
    done = subprocess.run(
        [sys.executable, "-c", code + SAY_PEAK],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES)),
    )
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.splitlines()
    return "\n".join(said), int(peak)
