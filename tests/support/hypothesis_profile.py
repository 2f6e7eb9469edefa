"""The Hypothesis settings of all property tests, as a pytest plugin."""

import hypothesis

from tests.support import run_scope

# The default limits (200 ms for an example, 1 s for ten) are too short on a busy machine. CI draws
# the same examples in each run; `make test-all` draws new ones, and prints the seed of a failure.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=run_scope.CI and not run_scope.RUNS_ALL_TESTS,
    print_blob=True,
)
hypothesis.settings.load_profile("tests")
