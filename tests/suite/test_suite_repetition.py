"""`make test` runs tests with a clock apart, repeats failed tests once, and fails for each test
that fails twice.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clock_tests import depends_on_clock
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

TEST_OF_PROCESSES = """
import os


def test_number_of_processes():
    assert os.environ["PYTEST_XDIST_WORKER_COUNT"] == "{processes}"
"""
CLOCK_READING = "import time\n\nSTART = time.monotonic()\n"


def make_tests_folder(project: Path) -> Path:
    """Make the folder of the tests of a project, and its settings of pytest."""
    (project / "pytest.ini").write_text(
        "[pytest]\naddopts = -p tests.support.clock_tests -p xdist\n"
    )
    folder = project / "tests"
    folder.mkdir()
    return folder


def run_suite_in(project: Path) -> subprocess.CompletedProcess[str]:
    """Run the suite without the plugins that it does not need: they take half of the CPU time."""
    return subprocess.run(
        [sys.executable, "-m", "tests.support.suite"],
        cwd=project,
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_tests_with_clock_run_with_fewer_processes(tmp_path: Path) -> None:
    folder = make_tests_folder(tmp_path)
    (folder / "test_usual.py").write_text(TEST_OF_PROCESSES.format(processes=4))
    (folder / "test_clock.py").write_text(CLOCK_READING + TEST_OF_PROCESSES.format(processes=3))
    ran = run_suite_in(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("1 passed") == 2
    assert "Repeating" not in ran.stdout


@pytest.mark.parametrize(
    "source",
    [
        "import time\nx = time.process_time()\n",
        "from time import monotonic\n",
        "x = asyncio.get_running_loop().time()\n",
        "from tests.support.servers.loop_step_timer import LoopStepTimer\n",
        "x = asyncio.timeout(0.5)\n",
        "x = EndpointSettings(init_timeout=3)\n",
    ],
)
def test_source_decides_whether_tests_depend_on_a_clock(tmp_path: Path, source: str) -> None:
    path = tmp_path / "test_sample.py"
    path.write_text(source)
    assert depends_on_clock(path)
    other = tmp_path / "test_other.py"
    other.write_text("import time\nx = f(time.time(), timeout=60, retries=3)\n")
    assert not depends_on_clock(other)


@pytest.mark.parametrize(
    ("unstable", "failing", "status"),
    [(1, 1, 1), (MAX_UNSTABLE_TESTS, 0, 0), (MAX_UNSTABLE_TESTS + 1, 0, 1)],
)
def test_failed_tests_are_repeated_once(
    tmp_path: Path, unstable: int, failing: int, status: int
) -> None:
    folder = make_tests_folder(tmp_path)
    (folder / "test_sample.py").write_text(TESTS.format(unstable=unstable, failing=failing))
    ran = run_suite_in(tmp_path)
    assert ran.returncode == status, ran.stdout + ran.stderr
    assert ran.stdout.count("\nunstable: ") == unstable
    assert ran.stdout.count("\nfailed twice: ") == failing
    assert "Repeating" in ran.stdout


def test_run_without_all_tests_fails(tmp_path: Path) -> None:
    folder = make_tests_folder(tmp_path)
    (folder / "test_broken.py").write_text("import no_such_module\n")
    (folder / "test_sample.py").write_text(TESTS.format(unstable=0, failing=0))
    ran = run_suite_in(tmp_path)
    assert ran.returncode != 0
    assert "unstable" not in ran.stdout
