"""Run the test suite in parallel, and repeat failed tests once, alone and in one process.

`python -m tests.support.suite [ARGUMENTS OF PYTEST]`. The tests that depend on a clock run after
the others, with fewer processes. A test that fails and then passes alone is printed as `unstable`.
The run passes with at most five unstable tests. A test that fails twice fails the run. So does a
run that could not collect all tests.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import clock_tests, required_programs, run_scope

MAX_UNSTABLE_TESTS = 5
PASSED = pytest.ExitCode.OK
FAILED = pytest.ExitCode.TESTS_FAILED
NO_TESTS = pytest.ExitCode.NO_TESTS_COLLECTED
MAX_REPEATED_TESTS = 40  # more failures have a common cause, and the run fails anyway
PARALLEL_OPTIONS = ("--dist", "loadfile", "--no-loadscope-reorder")
PROCESSES = ("-n", "4")
CHECKED_BEFORE = ("--ignore", "tests/source")  # `make check` runs the rules of source code
CLOCK_PROCESSES = ("-n", "3")  # for tests that depend on a clock


def _run_pytest(cache: str, *arguments: str, **variables: str) -> int:
    command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, check=False).returncode


def _failed_tests(cache: str) -> list[str]:
    """The node IDs of the tests that failed in the last run with this cache folder."""
    path = Path(cache) / "v" / "cache" / "lastfailed"
    return sorted(json.loads(path.read_text())) if path.exists() else []


def _run_in_parallel(cache: str, arguments: list[str]) -> int:
    """Run all tests once, and return the exit status for both runs of pytest."""
    marker = clock_tests.MARKER
    selection = arguments or CHECKED_BEFORE
    status = _run_pytest(cache, *PARALLEL_OPTIONS, *PROCESSES, "-m", f"not {marker}", *selection)
    # Without these paths, the second run would import the modules of all tests.
    clock_files = arguments or [str(path) for path in clock_tests.find_clock_files(Path("tests"))]
    if status not in {PASSED, FAILED, NO_TESTS} or not clock_files:
        return status
    clock_status = _run_pytest(
        cache, *PARALLEL_OPTIONS, *CLOCK_PROCESSES, "-m", marker, *clock_files
    )
    statuses = {status, clock_status}
    if len(statuses) > 1:
        statuses.discard(NO_TESTS)
    return max(statuses)


def run_suite(arguments: list[str]) -> int:
    """Run the tests, repeat what failed, and return the exit status for the whole run."""
    with tempfile.TemporaryDirectory(prefix="pytest-cache-") as cache:
        status = _run_in_parallel(cache, arguments)
        failed = _failed_tests(cache)
        if status != FAILED or not failed:  # passed, interrupted, or not collected
            return status
        if len(failed) > MAX_REPEATED_TESTS:
            print(f"{len(failed)} tests failed: too many to repeat.")
            return status
        print(f"Repeating {len(failed)} failed tests, alone and in one process.", flush=True)
        last_failed = ("--last-failed", "--last-failed-no-failures=none")
        repeated_status = _run_pytest(cache, *last_failed, *arguments, REPEATS_FAILED_TESTS="1")
        failed_twice = _failed_tests(cache)
    unstable = [test for test in failed if test not in failed_twice]
    for test in failed_twice:
        print(f"failed twice: {test}")
    for test in unstable:
        print(f"unstable: {test} (failed in the parallel run, passed alone)")
    if repeated_status == 0 and len(unstable) > MAX_UNSTABLE_TESTS:
        print(f"{len(unstable)} tests are unstable: at most {MAX_UNSTABLE_TESTS} are allowed.")
        return 1
    return repeated_status


def main() -> int:
    """Run the suite. In CI, a missing program is an error, since its tests would be skipped."""
    missing = required_programs.missing_packages() if run_scope.CI else []
    if missing:
        print(f"CI needs all programs of the tests: apt-get install {' '.join(missing)}")
        return 2
    return run_suite(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
