"""Print the areas and modules that take the most time at the end of a run of many tests."""

from collections import defaultdict

import pytest

MIN_TEST_COUNT = 1000  # a shorter run shows its time anyway
PRINTED_NAMES = 40


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds of the slowest areas and modules: setup, call and teardown of all tests."""
    reports = [
        report
        for outcome in ("passed", "failed", "error", "")
        for report in terminalreporter.getreports(outcome)
        if isinstance(report, pytest.TestReport)
    ]
    if len({report.nodeid for report in reports}) < MIN_TEST_COUNT:
        return
    areas: defaultdict[str, float] = defaultdict(float)
    modules: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        module = report.nodeid.partition("::")[0]
        modules[module] += report.duration
        areas["/".join(module.split("/")[:2])] += report.duration  # such as tests/mail
    total = sum(modules.values())
    terminalreporter.section(f"slowest areas and modules of {total:.0f} s in all processes")
    for seconds in (areas, modules):
        for name in sorted(seconds, key=seconds.__getitem__, reverse=True)[:PRINTED_NAMES]:
            terminalreporter.line(f"{seconds[name]:7.1f} s  {name}")
