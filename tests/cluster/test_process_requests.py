"""Requests to all processes: answers, timeouts, and the rows that they leave."""

import asyncio
import os
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.maintenance import housekeeping
from models.cluster.process_requests import ProcessAnswer, ProcessRequest
from models.events.wakeups import Wakeups
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.registration import MAX_REQUESTS_AT_ONCE, ProcessRegistration
from models.sessions.live_sessions import LiveSessionRegistry
from resolvers.cluster import process_requests
from resolvers.cluster.process_requests import ProcessRequestKind, ask_all_processes
from tests.conftest import ManualClock
from tests.support.stores.recorded_statements import record_sql

BUSY_MACHINE_SECONDS = 60.0


async def answer_name(environment: Environment, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Answer with the name of the process."""
    if arguments.get("failingProcess") == environment.process.name:
        raise RuntimeError("no answer")
    padding = "x" * arguments.get("padding", 0) if environment.process.name == "one" else ""
    return {"name": environment.process.name, "padding": padding}


NAME = ProcessRequestKind("NAME", answer_name, timeout=BUSY_MACHINE_SECONDS)
LATE_NAME = replace(NAME, name="LATE_NAME", applies_late=True)
# The time that a test waits if one process does not answer. All others answer within 0.5 seconds.
SHORT_TIMEOUT = 3.0


class ProcessStarter:
    """Starts other processes on the database of a test, each with a task that answers."""

    def __init__(self, environment: Environment, stack: AsyncExitStack) -> None:
        self.environment = environment
        self.may_answer = asyncio.Event()  # a process that waits answers then
        self._stack = stack

    async def start(self, name: str, *, answers: bool = True, is_command: bool = False) -> None:
        """Register a process; unless `answers`, no request is answered."""
        process = ProcessRegistration(name=name, answers_requests=not is_command)
        other = replace(
            self.environment,
            process=process,
            wakeups=Wakeups(),  # the processes don't receive each other's wake-ups
            live_sessions=LiveSessionRegistry(),
        )
        await leases.ensure_process_registered(other)
        if answers:
            kinds = [replace(kind, answer=self._answer_name) for kind in (NAME, LATE_NAME)]
            task = asyncio.create_task(
                process_requests.answer_requests_until_cancelled(other, kinds)
            )
            self._stack.push_async_callback(asyncio.wait, [task])
            self._stack.callback(task.cancel)

    async def _answer_name(
        self, environment: Environment, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        if arguments.get("waitingProcess") == environment.process.name:
            await self.may_answer.wait()
        return await answer_name(environment, arguments)


@pytest.fixture
async def processes(environment: Environment) -> AsyncIterator[ProcessStarter]:
    environment.process.name, environment.process.answers_requests = "asking", True
    await leases.ensure_process_registered(environment)
    async with AsyncExitStack() as stack:
        yield ProcessStarter(environment, stack)


async def row_counts(environment: Environment) -> tuple[int, int]:
    """Return the numbers of requests and of answers in the database."""
    requests = await environment.database.read(select(col(ProcessRequest.id)))
    answers = await environment.database.read(select(col(ProcessAnswer.id)))
    return len(requests), len(answers)


async def wait_for_row_counts(environment: Environment, expected: tuple[int, int]) -> None:
    async with asyncio.timeout(BUSY_MACHINE_SECONDS):
        while await row_counts(environment) != expected:  # noqa: ASYNC110 - rows have no event
            await asyncio.sleep(0.02)


async def test_single_process_asks_itself_without_a_row(processes: ProcessStarter) -> None:
    await processes.start("command", answers=False, is_command=True)
    statements = record_sql(processes.environment.database, with_background=True)
    result = await ask_all_processes(processes.environment, NAME, {})
    (own,) = result.answers
    assert (own.node, own.pid, own.answer["name"]) == (socket.gethostname(), os.getpid(), "asking")
    assert result.unresponsive_nodes == []
    assert [statement.split()[0] for statement in statements] == ["SELECT"]


async def test_all_processes_answer_without_wakeups(processes: ProcessStarter) -> None:
    for name in ("one", "two"):
        await processes.start(name)
    for _ in range(3):
        result = await ask_all_processes(processes.environment, NAME, {})
        names = sorted(answer.answer["name"] for answer in result.answers)
        assert names == ["asking", "one", "two"]
        assert result.unresponsive_nodes == []
    await wait_for_row_counts(processes.environment, (0, 0))


async def test_concurrent_requests_have_their_own_answers(processes: ProcessStarter) -> None:
    await processes.start("one")
    results = await asyncio.gather(
        *(ask_all_processes(processes.environment, NAME, {"padding": size}) for size in range(20))
    )
    for size, result in enumerate(results):
        answers = {answer.answer["name"]: answer.answer["padding"] for answer in result.answers}
        assert answers == {"asking": "", "one": "x" * size}
    await wait_for_row_counts(processes.environment, (0, 0))


@pytest.mark.parametrize(
    "arguments",
    [
        {"waitingProcess": "one"},
        {"failingProcess": "one"},
        {"padding": process_requests.MAX_ANSWER_BYTES},
    ],
)
async def test_process_without_answer_is_named(
    processes: ProcessStarter, arguments: dict[str, Any]
) -> None:
    await processes.start("one")
    await processes.start("two")
    kind = replace(NAME, timeout=SHORT_TIMEOUT)
    result = await ask_all_processes(processes.environment, kind, arguments)
    assert sorted(answer.answer["name"] for answer in result.answers) == ["asking", "two"]
    assert result.unresponsive_nodes == [socket.gethostname()]
    processes.may_answer.set()  # an answer that comes later is not stored
    later_result = await ask_all_processes(processes.environment, NAME, {})
    assert len(later_result.answers) == 3
    await wait_for_row_counts(processes.environment, (0, 0))


async def test_request_that_applies_late_is_kept_for_ten_minutes(
    processes: ProcessStarter, clock: ManualClock
) -> None:
    await processes.start("one", answers=False)
    kind = replace(LATE_NAME, timeout=SHORT_TIMEOUT)
    result = await ask_all_processes(processes.environment, kind, {})
    assert result.unresponsive_nodes == [socket.gethostname()]
    await wait_for_row_counts(processes.environment, (1, 0))
    await processes.start("later")
    await wait_for_row_counts(processes.environment, (1, 1))
    clock.tick(minutes=9)
    await housekeeping.run_housekeeping_round(processes.environment)
    assert await row_counts(processes.environment) == (1, 1)
    clock.tick(minutes=2)
    await housekeeping.run_housekeeping_round(processes.environment)
    assert await row_counts(processes.environment) == (0, 0)


async def test_request_that_applies_late_is_kept_for_processes_taken_for_dead(
    processes: ProcessStarter,
) -> None:
    await processes.start("one")
    result = await ask_all_processes(processes.environment, LATE_NAME, {})
    assert result.unresponsive_nodes == []
    await wait_for_row_counts(processes.environment, (1, 0))
    await processes.start("back")
    await wait_for_row_counts(processes.environment, (1, 1))


async def test_number_of_requests_at_once_is_limited(processes: ProcessStarter) -> None:
    await processes.start("one")
    environment, kind = processes.environment, replace(NAME, timeout=SHORT_TIMEOUT)
    asking = [
        asyncio.create_task(ask_all_processes(environment, kind, {"waitingProcess": "one"}))
        for _ in range(MAX_REQUESTS_AT_ONCE + 1)
    ]
    await wait_for_row_counts(environment, (MAX_REQUESTS_AT_ONCE, 0))
    assert len(environment.process.own_request_ids) == MAX_REQUESTS_AT_ONCE
    results = await asyncio.gather(*asking)
    assert all(result.unresponsive_nodes for result in results)


async def test_error_in_the_asking_process_is_raised(processes: ProcessStarter) -> None:
    await processes.start("one")
    with pytest.raises(RuntimeError, match="no answer"):
        await ask_all_processes(processes.environment, NAME, {"failingProcess": "asking"})
    await wait_for_row_counts(processes.environment, (0, 0))


async def test_arguments_have_a_limit(processes: ProcessStarter) -> None:
    arguments = {"text": "x" * process_requests.MAX_ARGUMENT_BYTES}
    with pytest.raises(ValueError, match="too large"):
        await ask_all_processes(processes.environment, NAME, arguments)


async def test_suspended_process_with_the_lock_of_the_database_delays_no_answer(
    processes: ProcessStarter,
) -> None:
    database = processes.environment.database
    if database.dialect != "sqlite":
        pytest.skip("only SQLite has one lock for all writers")
    await processes.start("one")
    with closing(sqlite3.connect(database.url.partition(":///")[2])) as suspended:
        suspended.execute("BEGIN IMMEDIATE")
        started_at = time.monotonic()
        kind = replace(NAME, timeout=SHORT_TIMEOUT)
        result = await ask_all_processes(processes.environment, kind, {})
        assert time.monotonic() - started_at < BUSY_MACHINE_SECONDS
        suspended.rollback()
    assert [answer.answer["name"] for answer in result.answers] == ["asking"]
    assert result.unresponsive_nodes == [socket.gethostname()]
    await wait_for_row_counts(processes.environment, (0, 0))
