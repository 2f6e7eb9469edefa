"""Which part of the tests runs: a sample, the tests of CI (`CI=1`), or all (`make test-all`).

This module removes `CI` from the environment, because pytest would otherwise print full diffs
of long texts, which takes hours.
"""

import os

RUNS_ALL_TESTS = bool(os.environ.get("ALL_TESTS"))
CI = RUNS_ALL_TESTS or bool(os.environ.setdefault("TESTS_IN_CI", os.environ.pop("CI", "")))
REPEATS_FAILED_TESTS = bool(os.environ.get("REPEATS_FAILED_TESTS"))  # the second run of the suite
