"""The servers of tests don't warn of slow operations: tests require logs without warnings."""

from datetime import timedelta
from pathlib import Path

from bench.servers.merganser_process import MerganserServer
from merganser.settings.settings import Settings
from tests.conftest import TEST_OPTIONS
from tests.support.servers.merganser_server import MerganserProcess

THRESHOLD = "log_slow_operation_threshold"


def threshold_in_environment(variables: dict[str, str]) -> timedelta:
    """Return the threshold of a server with these variables: 0 turns the warning off."""
    value = variables[f"MERGANSER_{THRESHOLD.upper()}"]
    threshold: timedelta = getattr(Settings.model_validate({THRESHOLD: value}), THRESHOLD)
    return threshold


def test_operation_is_not_slow_for_the_servers_of_tests(tmp_path: Path) -> None:
    """On a busy machine, any operation takes longer than the default threshold."""
    server, bench_server = MerganserProcess(tmp_path), MerganserServer(tmp_path)
    assert threshold_in_environment(server.process_env) == timedelta(0)
    assert threshold_in_environment(bench_server.process_environment()) == timedelta(0)
    assert TEST_OPTIONS.log_slow_operation_threshold == timedelta(0)
