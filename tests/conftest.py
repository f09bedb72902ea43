"""What the tests of both packages share."""

import os

from hypothesis import HealthCheck, settings

# Property tests that touch a disk: few examples, no deadline on a busy machine, the same ones every time.
settings.register_profile(
    "featstore",
    max_examples=int(os.environ.get("FEATSTORE_EXAMPLES", "25")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("featstore")
