"""Components that are held finish their work, release their leases, and start again."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from bench.servers.ports import free_port
from mail.routing.mx_hosts import OutboundSettings
from mail.smtp.lmtp import LmtpListener
from merganser.server.components.listener_component import ListenerComponent, ListenerDefinition
from merganser.server.components.worker_component import WorkerComponent, WorkerDefinition
from merganser.server.components.workers import running_workers
from merganser.server.processes.process_roles import WHOLE_SERVER
from merganser.server.shutdown import GracefulShutdown
from merganser.server.sockets import open_listening_sockets
from models.admin.tasks import Task, TaskKind, TaskState
from models.runtime import leases
from models.runtime.components import (
    Component,
    ComponentKind,
    ComponentState,
    HoldReason,
)
from models.runtime.environment import Environment
from models.runtime.worker_stop import is_worker_stopping, sleep_until_worker_stops
from tests.support.mail_servers.lmtp_client import InMemoryBackend, connect_lmtp
from tests.support.servers.live_server import wait_until

COMPONENT_STOP, NODE_STATE = HoldReason.COMPONENT_STOP, HoldReason.NODE_STATE


def worker_component(
    environment: Environment, worker: WorkerDefinition, shutdown: GracefulShutdown | None = None
) -> WorkerComponent:
    return WorkerComponent(worker, environment, shutdown or GracefulShutdown())


async def test_every_worker_stops_starts_and_does_not_end_the_server(
    environment: Environment, tmp_path: Path
) -> None:
    shutdown = GracefulShutdown()
    arguments = environment, OutboundSettings(), shutdown, tmp_path, WHOLE_SERVER
    async with leases.keep_process_registered(environment), running_workers(*arguments) as workers:
        assert {worker.state for worker in workers} == {ComponentState.RUNNING}
        assert list(environment.components) == workers
        held = [worker for worker in workers if worker.can_be_held]
        assert len(held) > 10
        async with asyncio.timeout(120):
            await asyncio.gather(*(worker.hold(COMPONENT_STOP) for worker in held))
        for worker in held:
            assert worker.task
            assert worker.task.done()
            assert worker.state is ComponentState.STOPPED
            assert worker.detail == "Stopped by componentStop."
        assert shutdown.worker_error is None
        await asyncio.gather(*(worker.release(COMPONENT_STOP) for worker in held))
        assert {worker.state for worker in workers} == {ComponentState.RUNNING}
        assert not any(worker.task.done() for worker in workers if worker.task)
    assert list(environment.components) == []


async def test_held_worker_finishes_its_work_and_frees_its_leases(
    environment: Environment,
) -> None:
    has_begun, may_finish, finished_count = asyncio.Event(), asyncio.Event(), 0

    async def lease_and_work(_stop: asyncio.Event) -> None:
        nonlocal finished_count
        while not is_worker_stopping():
            has_begun.set()
            await may_finish.wait()
            finished_count += 1
            await sleep_until_worker_stops(60)

    worker = worker_component(
        environment, WorkerDefinition("tasks", lease_and_work, leased_table=Task)
    )
    async with leases.keep_process_registered(environment):
        process_id = await leases.ensure_process_registered(environment)
        await insert_leased_task(environment, process_id)
        await worker.start()
        await has_begun.wait()
        holding = worker.begin_hold(COMPONENT_STOP)
        await wait_until(lambda: worker.state is not ComponentState.RUNNING)
        assert await task_holders(environment) == [process_id]
        assert (worker.state, holding.done()) == (ComponentState.STOPPING, False)
        may_finish.set()
        await holding
        assert (worker.state, finished_count) == (ComponentState.STOPPED, 1)
        assert await task_holders(environment) == [None]
    await worker.close()


async def test_worker_released_while_it_stops_runs_again(environment: Environment) -> None:
    has_begun, has_to_stop, may_finish = asyncio.Event(), asyncio.Event(), asyncio.Event()
    start_count = 0

    async def work(_stop: asyncio.Event) -> None:
        nonlocal start_count
        start_count += 1
        has_begun.set()
        while not is_worker_stopping():
            await sleep_until_worker_stops(60)
        has_to_stop.set()
        await may_finish.wait()

    worker = worker_component(environment, WorkerDefinition("snooze", work))
    await worker.start()
    await has_begun.wait()
    holding = worker.begin_hold(COMPONENT_STOP)
    await has_to_stop.wait()
    assert worker.state is ComponentState.STOPPING
    releasing = worker.begin_release(COMPONENT_STOP)
    may_finish.set()
    await asyncio.gather(holding, releasing)
    assert (worker.state, start_count) == (ComponentState.RUNNING, 2)
    assert worker.task is not None
    assert not worker.task.done()
    await worker.close()


async def insert_leased_task(environment: Environment, process_id: int) -> None:
    async with environment.write_session() as session:
        session.add(
            Task(
                id=environment.new_id(),
                kind=TaskKind.SEARCH_INDEX_REBUILD,
                state=TaskState.RUNNING,
                order={},
                created_at=environment.now(),
                lease=1,
                holder=process_id,
            )
        )


async def task_holders(environment: Environment) -> list[int | None]:
    return [row.holder for row in await environment.database.read(select(col(Task.holder)))]


async def test_worker_starts_again_when_no_reason_holds_it(environment: Environment) -> None:
    async def work(stop: asyncio.Event) -> None:
        await stop.wait()

    worker = worker_component(environment, WorkerDefinition("snooze", work))
    await worker.start()
    await worker.hold(COMPONENT_STOP)
    changed_at = worker.state_changed_at
    await worker.hold(NODE_STATE)
    await worker.release(COMPONENT_STOP)
    assert (worker.state, worker.state_changed_at) == (ComponentState.STOPPED, changed_at)
    assert worker.detail == "Stopped because of the state of the node."
    await worker.release(NODE_STATE)
    assert worker.state.name == "RUNNING"
    await asyncio.gather(
        worker.hold(NODE_STATE), worker.release(NODE_STATE), worker.hold(NODE_STATE)
    )
    assert worker.state.name == "STOPPED"
    await worker.close()


async def test_rule_holds_components_before_their_start(environment: Environment) -> None:
    starts: list[str] = []

    class RecordedComponent(Component):
        async def start_work(self) -> None:
            starts.append(self.name)

        async def finish_work(self) -> None:
            starts.append(f"-{self.name}")

    registry = environment.components
    registry.set_hold_rule_and_begin_changes(
        COMPONENT_STOP, lambda component: component.name == "snooze"
    )
    for name in ("snooze", "tasks"):
        component = RecordedComponent(name, ComponentKind.WORKER, environment.now)
        registry.add(component)
        await component.start()
    assert starts == ["tasks"]
    await asyncio.gather(*registry.set_hold_rule_and_begin_changes(COMPONENT_STOP, lambda _: True))
    assert starts == ["tasks", "-tasks"]
    await asyncio.gather(*registry.set_hold_rule_and_begin_changes(COMPONENT_STOP, lambda _: False))
    assert starts[2:] == ["snooze", "tasks"]


async def test_component_that_cannot_be_held_raises(environment: Environment) -> None:
    component = Component("http", ComponentKind.LISTENER, environment.now, can_be_held=False)
    environment.components.add(component)
    with pytest.raises(ValueError, match="http can't be held"):
        await component.hold(COMPONENT_STOP)
    assert environment.components.set_hold_rule_and_begin_changes(NODE_STATE, lambda _: True) == []


async def test_failed_worker_stops_the_server(environment: Environment) -> None:
    shutdown = GracefulShutdown()

    async def fail(_stop: asyncio.Event) -> None:
        raise ArithmeticError

    worker = worker_component(environment, WorkerDefinition("snooze", fail), shutdown)
    await worker.start()
    await wait_until(lambda: shutdown.worker_error)
    assert isinstance(shutdown.worker_error, ArithmeticError)
    assert (worker.state, worker.detail) == (ComponentState.FAILED, "ArithmeticError")


@asynccontextmanager
async def lmtp_component(
    environment: Environment, folder: Path
) -> AsyncIterator[tuple[ListenerComponent, int]]:
    """An LMTP listener on a socket that another process has open, too; and its port."""
    bound_sockets = open_listening_sockets("LMTP", f"127.0.0.1:{free_port()}", is_shared=True)
    socket_of_first_process = bound_sockets[0].dup()
    definition = ListenerDefinition(
        "lmtp",
        "127.0.0.1:0",
        bound_sockets,
        lambda: LmtpListener(environment, folder / "spool", backend=InMemoryBackend()),
        finish_timeout=20,
    )
    component = ListenerComponent(definition, environment.now)
    try:
        yield component, bound_sockets[0].getsockname()[1]
    finally:
        await component.close()
        socket_of_first_process.close()


async def test_held_listener_finishes_data_and_refuses_connections(
    environment: Environment, tmp_path: Path
) -> None:
    async with lmtp_component(environment, tmp_path) as (component, port):
        await component.start()
        idle, sending = await connect_lmtp(port), await connect_lmtp(port)
        await sending.start_data("ada@example.org")
        holding = component.begin_hold(COMPONENT_STOP)
        assert (await idle.read_reply()).startswith("421 ")
        assert component.state is ComponentState.STOPPING
        with pytest.raises(ConnectionRefusedError):
            await connect_lmtp(port)
        sending.send_bytes(b"Subject: Finished\r\n\r\nText\r\n.\r\n")
        assert (await sending.read_reply()).startswith("250 ")
        await sending.close()
        await holding
        assert component.state.name == "STOPPED"
        await component.release(COMPONENT_STOP)
        client = await connect_lmtp(port)
        await client.start_data("ada@example.org")
        await client.close()
        await idle.close()


async def test_listener_that_is_held_at_start_refuses_connections(
    environment: Environment, tmp_path: Path
) -> None:
    async with lmtp_component(environment, tmp_path) as (component, port):
        component.hold_reasons.add(NODE_STATE)
        await component.start()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=60)
        assert component.state is ComponentState.STOPPED
        await component.release(NODE_STATE)
        await (await connect_lmtp(port)).close()
