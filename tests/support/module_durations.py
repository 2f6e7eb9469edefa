"""Print the modules that take the most time at the end of a run of many tests."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pytest

MIN_TEST_COUNT = 1000  # a shorter run shows its time anyway
PRINTED_MODULES = 40


def sum_by_module(reports: Sequence[pytest.TestReport]) -> Mapping[str, float]:
    """Return the seconds of each module: setup, call and teardown of its tests."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        seconds[report.nodeid.partition("::")[0]] += report.duration
    return seconds


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the slowest modules."""
    reports = [
        report
        for outcome in ("passed", "failed", "error", "")
        for report in terminalreporter.getreports(outcome)
        if isinstance(report, pytest.TestReport)
    ]
    if len({report.nodeid for report in reports}) < MIN_TEST_COUNT:
        return
    seconds = sum_by_module(reports)
    slowest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:PRINTED_MODULES]
    total = sum(seconds.values())
    terminalreporter.section(f"slowest modules of {total:.0f} s in all processes")
    for module in slowest:
        terminalreporter.line(f"{seconds[module]:7.1f} s  {module}")
