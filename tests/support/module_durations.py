"""Print the folders and modules that take the most time at the end of a run of many tests."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import pytest

MIN_TEST_COUNT = 1000  # a shorter run shows its time anyway
PRINTED_NAMES = 40


def sum_by_name(
    reports: Iterable[pytest.TestReport], name_of_path: Callable[[str], str] = str
) -> Mapping[str, float]:
    """Return the seconds of each module, or name of its path: setup, call and teardown."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        seconds[name_of_path(report.nodeid.partition("::")[0])] += report.duration
    return seconds


def _area_of_path(path: str) -> str:
    """Return the folder of an area, such as `tests/mail`."""
    return "/".join(path.split("/")[:2])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the time of the slowest areas and modules."""
    reports = [
        report
        for outcome in ("passed", "failed", "error", "")
        for report in terminalreporter.getreports(outcome)
        if isinstance(report, pytest.TestReport)
    ]
    if len({report.nodeid for report in reports}) < MIN_TEST_COUNT:
        return
    seconds = sum_by_name(reports)
    total = sum(seconds.values())
    terminalreporter.section(f"slowest areas and modules of {total:.0f} s in all processes")
    for durations in (sum_by_name(reports, _area_of_path), seconds):
        for name in sorted(durations, key=durations.__getitem__, reverse=True)[:PRINTED_NAMES]:
            terminalreporter.line(f"{durations[name]:7.1f} s  {name}")
