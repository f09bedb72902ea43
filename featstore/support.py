"""How OpenMP's threads wait for each other."""

import os


def wait_briefly() -> None:
    """Let an idle thread spin for microseconds, not milliseconds, before it sleeps.

    On a machine where anything else runs, long spinning makes the threads of a network wait for each other's time
    slices: with one other busy process on two cores a small network ran at a quarter of its speed or less.
    It has to be said before torch is imported; what the user has set already stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
