"""The Hypothesis settings of all property tests, as a pytest plugin."""

import hypothesis
from hypothesis.internal.conjecture import providers

from tests.support import run_scope

IS_REPEATABLE = run_scope.CI and not run_scope.RUNS_ALL_TESTS

# The default limits (200 ms for an example, 1 s for ten) are too short on a busy machine. CI draws
# the same examples in each run; `make test-all` draws new ones, and prints the seed of a failure.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=IS_REPEATABLE,
    print_blob=True,
)
hypothesis.settings.load_profile("tests")
if IS_REPEATABLE:
    # Hypothesis draws some values from the constants of all imported modules of the project. Each
    # process of a parallel run has imported others.
    setattr(providers, "is_local_module_file", lambda _path: False)  # noqa: B010 - not exported
