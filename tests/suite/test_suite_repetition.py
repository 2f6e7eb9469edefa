"""`make test` repeats failed tests once, and fails for each test that fails twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.suite import MAX_UNSTABLE_TESTS

PROJECT = Path(__file__).parents[2]
TESTS = """
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", range({unstable}))
def test_unstable(number):
    mark = Path(__file__).with_name(f"ran-{{number}}")
    ran_before = mark.exists()
    mark.touch()
    assert ran_before


@pytest.mark.parametrize("number", range({failing}))
def test_failing(number):
    assert number < 0


def test_passing():
    count = Path(__file__).with_name("passed")
    assert not count.exists()
    count.touch()
"""


@pytest.mark.parametrize(
    ("unstable", "failing", "status"),
    [(0, 0, 0), (2, 0, 0), (1, 1, 1), (MAX_UNSTABLE_TESTS, 0, 0), (MAX_UNSTABLE_TESTS + 1, 0, 1)],
)
def test_failed_tests_are_repeated_once(
    tmp_path: Path, unstable: int, failing: int, status: int
) -> None:
    (tmp_path / "test_sample.py").write_text(TESTS.format(unstable=unstable, failing=failing))
    (tmp_path / "pytest.ini").touch()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.suite"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == status, ran.stdout + ran.stderr
    assert ran.stdout.count("\nunstable: ") == unstable
    assert ran.stdout.count("\nfailed twice: ") == failing
    assert ("Repeating" in ran.stdout) == (unstable + failing > 0)


def test_run_without_all_tests_fails(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    (tmp_path / "test_sample.py").write_text(TESTS.format(unstable=0, failing=0))
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.suite"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert "unstable" not in ran.stdout
