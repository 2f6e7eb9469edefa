"""Tests of the benchmark of operations: its goals, and small measurements."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.progress import Progress

from bench.figures.goals import (
    CODE_EXCHANGE_CPU,
    DELIVERY_LOG_SHARE,
    LOG_PAGE_P95,
    LOG_WRITE_RATE,
    REFUSAL_CPU_RATIO,
    REFUSAL_P99_RATIO,
    SCIM_CREATION_SECONDS,
    SCIM_INDEXED_CPU,
    SCIM_SCAN_CPU,
    SCIM_STATEMENTS,
    SESSION_LIST_CPU,
    TERMINATION_SECONDS,
    evaluate_goals,
)
from bench.figures.measurements import MeasuredValue
from bench.scenarios.operations import (
    code_exchange,
    delivery_log,
    log_entries,
    scim_creation,
    scim_lists,
    session_list,
)
from bench.servers.compared_servers import DatabaseKind
from bench.servers.merganser_process import use_launcher
from models.logs.entries import EPOCH
from tests.support.servers.forked_process import fork_subprocess

LIMITS = {  # for each goal the last value that meets it and the first one that does not
    f"{TERMINATION_SECONDS.format(1000)}, default event bus": (1.0, 1.01),
    SESSION_LIST_CPU.format("a page of sessions", 10_000): (10.0, 10.1),
    SESSION_LIST_CPU.format("a page of sessionSummaries", 10_000): (10.0, 10.1),
    LOG_WRITE_RATE.format(1_000_000): (15_000.0, 14_999.0),
    f"{LOG_WRITE_RATE.format(1_000_000)}, with the CPU of the database": (15_000.0, 14_999.0),
    f"{LOG_PAGE_P95.format(1_000_000)}, component": (25.0, 25.1),
    DELIVERY_LOG_SHARE: (3.0, 3.1),
    SCIM_INDEXED_CPU.format(100_000, "first page"): (75.0, 75.1),
    SCIM_SCAN_CPU.format(100_000, "active eq true"): (400.0, 401.0),
    SCIM_STATEMENTS: (6.0, 7.0),
    SCIM_CREATION_SECONDS.format(1000): (60.0, 60.1),
    SCIM_CREATION_SECONDS.format(200): (12.0, 12.1),
    CODE_EXCHANGE_CPU: (5.0, 5.1),
    f"{REFUSAL_CPU_RATIO}, HTTP, closed, to accept and close, asyncio": (2.0, 2.1),
    f"{REFUSAL_CPU_RATIO}, HTTP, closed, to accept and close, blocking": (2.0, 2.1),
    f"{REFUSAL_P99_RATIO} during 1,000 connections per second, refused": (1.2, 1.21),
}


@pytest.fixture
def forked_servers() -> Iterator[None]:
    """Start servers as forks."""
    with use_launcher(fork_subprocess):
        yield


@pytest.fixture
def few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure each value a few times only: the tests check which values there are."""
    for module, name, value in (
        (log_entries, "PAGE_REPEATS", 2),
        (session_list, "WARM_UP_REQUESTS", 1),
        (session_list, "MEASURED_REQUESTS", 2),
        (delivery_log, "WARM_UP_ROUNDS", 1),
        (delivery_log, "MESSAGES_PER_ACCOUNT", 2),
        (scim_lists, "WARM_UP_REQUESTS", 0),
        (code_exchange, "WARM_UP_COUNT", 2),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("name", LIMITS)
def test_each_goal_is_met_up_to_its_limit(name: str) -> None:
    for value, is_met in zip(LIMITS[name], (True, False), strict=True):
        (goal,) = evaluate_goals([], [MeasuredValue(name, value, "")])
        assert goal.is_met is is_met


@pytest.mark.usefixtures("few_repetitions")
async def test_each_page_of_log_entries_has_a_goal(tmp_path: Path) -> None:
    progress = Progress(disable=True)
    facts = await log_entries.measure_log_entries(DatabaseKind.SQLITE, tmp_path, 3000, progress)
    goals = [goal.name for goal in evaluate_goals([], facts)]
    assert len(goals) == 1 + len(log_entries.page_conditions(3000, EPOCH))
    counts = [fact.value for fact in facts if fact.name == "… entries in the page"]
    assert counts[0] == log_entries.PAGE_SIZE  # without a filter
    assert counts[6] == 0  # of an absent word


@pytest.mark.usefixtures("few_repetitions")
async def test_each_session_list_has_a_goal(tmp_path: Path) -> None:
    progress = Progress(disable=True)
    facts = await session_list.measure_session_lists(DatabaseKind.SQLITE, tmp_path, 30, progress)
    assert len(facts) == len(session_list.DOCUMENTS)
    assert len(list(evaluate_goals([], facts))) == len(facts)
    assert all(fact.value > 0 for fact in facts)


@pytest.mark.usefixtures("few_repetitions")
async def test_cost_of_the_log_entries_of_a_delivery_has_a_goal(tmp_path: Path) -> None:
    progress = Progress(disable=True)
    facts = await delivery_log.measure_delivery_log(DatabaseKind.SQLITE, tmp_path, 1, progress)
    assert facts[0].value > 0
    (goal,) = evaluate_goals([], facts)
    assert goal.name == DELIVERY_LOG_SHARE


@pytest.mark.usefixtures("few_repetitions")
async def test_each_scim_list_has_a_goal(tmp_path: Path) -> None:
    progress = Progress(disable=True)
    facts = await scim_lists.measure_scim_lists(
        DatabaseKind.SQLITE, tmp_path, 200, progress, measured_requests=1
    )
    assert len(list(evaluate_goals([], facts))) == len(facts)
    assert all(fact.value > 0 for fact in facts)


@pytest.mark.usefixtures("forked_servers", "few_repetitions")
async def test_code_exchange_has_a_goal(tmp_path: Path) -> None:
    progress = Progress(disable=True)
    facts = await code_exchange.measure_code_exchange(DatabaseKind.SQLITE, tmp_path, 5, progress)
    (goal,) = evaluate_goals([], facts)
    assert goal.name == CODE_EXCHANGE_CPU
    assert facts[0].value > 0


@pytest.mark.usefixtures("forked_servers")
async def test_scim_creation_has_a_goal(tmp_path: Path) -> None:
    progress = Progress(disable=True)
    facts = await scim_creation.measure_scim_creation(DatabaseKind.SQLITE, tmp_path, 5, progress)
    (goal,) = evaluate_goals([], facts)
    assert goal.name == SCIM_CREATION_SECONDS.format(5)
    assert all(fact.value > 0 for fact in facts)
