"""Runs that are cut off, cancelled, taken over, or go on listening: nothing is lost or doubled."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.network.outbound_http import NetworkPolicy
from models.admin.tasks import TaskState
from models.connectors import ConnectorProtocol, ConnectorRun, ConnectorSecurity
from models.runtime import leases
from models.runtime.environment import Environment
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import ConnectorWorker
from tests.conftest import Client, raw_message
from tests.support.accounts import user_operations
from tests.support.operations.connector_operations import (
    again,
    changed,
    connector,
    far,
    may,
    newest,
    ran,
    row_of,
    run_connectors_until_killed,
    server,
    stored,
)
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.stores.other_processes import another_process, taken_for_dead

pytestmark = pytest.mark.usefixtures("examined")
__all__ = ["far", "server"]
MANY = 70  # messages: more than two units
LONG = 8 * MANY  # so that there is time to do something meanwhile


@pytest.mark.parametrize("protocol", [ConnectorProtocol.IMAP, ConnectorProtocol.POP3])
@pytest.mark.parametrize("deletes", [None, 0])
async def test_a_run_that_is_killed_goes_on_where_it_was(
    ada: Client, far: DovecotAccount, protocol: ConnectorProtocol, deletes: int | None
) -> None:
    names = [f"Nr {nth}" for nth in range(MANY)]
    far.save_messages([raw_message(name) for name in names])
    key = await connector(
        ada, far, protocol=protocol, source_retention=deletes, remove_duplicates=False
    )
    async with leases.registered_process(ada.world):
        await run_connectors_until_killed(ada.world, 1)
        await killed_again(ada.world, key)
        first = await newest(ada.world, key)
        assert first.state is TaskState.RUNNING
        assert 0 < first.imported < MANY
        await taken_for_dead(ada.world)
        run = await ran(ada.world, key)
    assert (run.id, run.state) == (first.id, TaskState.SUCCEEDED), run.log
    assert sorted((await stored(ada.world))["INBOX"]) == sorted(names)
    assert far.count_messages() == (MANY if deletes is None else 0)
    assert (await again(ada.world, key)).imported == 0


async def killed_again(world: Environment, key: int) -> None:
    """Nobody runs it while its process is registered; then it dies a second time."""
    assert (await ran(world, key)).state is TaskState.RUNNING
    await taken_for_dead(world)
    await run_connectors_until_killed(world, 1)


async def test_who_has_lost_the_lease_stores_no_more(ada: Client, far: DovecotAccount) -> None:
    far.save_messages([raw_message(f"Nr {nth}") for nth in range(MANY)])
    key, taken = await connector(ada, far), list[Any]()

    def fault(place: str) -> None:
        if place == "fetched" and not taken:  # another process takes over
            other = changed(ada.world, key, lease=1, holder=1)
            taken.append(asyncio.ensure_future(other))

    object.__setattr__(ada.world, "reach_fault_point", fault)
    run = await ran(ada.world, key)
    await taken[0]
    assert run.state is TaskState.RUNNING
    before = len((await stored(ada.world))["INBOX"])
    assert 0 < before < MANY
    await ada.world.run_transaction(leases.free_orphaned_leases)
    run = await ran(ada.world, key)
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, MANY)
    assert len((await stored(ada.world))["INBOX"]) == MANY


async def test_a_restarted_server_goes_on_with_its_runs_at_once(
    ada: Client, far: DovecotAccount
) -> None:
    far.save_message(raw_message("One"))
    before, after = another_process(ada.world), another_process(ada.world)
    after.process.server_id = before.process.server_id
    holder = await leases.ensure_registered(before)
    key = await connector(ada, far, lease=1, holder=holder)
    gate = NetworkPolicy(allows_private=True)
    assert not await connector_worker.run_single_connector(ada.world, key, gate)
    work = asyncio.create_task(connector_worker.run_worker(after, gate))
    try:
        async with asyncio.timeout(30):
            while not (await row_of(ada.world, key)).last_success_at:  # noqa: ASYNC110 - a row
                await asyncio.sleep(0.02)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    assert (await newest(ada.world, key)).imported == 1


async def test_a_run_ends_where_it_is_asked_to(ada: Client, far: DovecotAccount) -> None:
    far.save_messages([raw_message(f"Nr {nth}") for nth in range(LONG)])
    key = await connector(ada, far, interval=600)
    ctx = may(ada)

    def fault(place: str) -> None:
        if place == "fetched" and not stopped:
            stopped.append(asyncio.ensure_future(stop()))

    async def stop() -> None:
        run = await newest(ada.world, key)
        await connector_mutations.cancel_runs(ctx, [run.id])

    stopped: list[Any] = []
    object.__setattr__(ada.world, "reach_fault_point", fault)
    run = await ran(ada.world, key)
    await stopped[0]
    assert (run.state, run.error) == (TaskState.CANCELLED, None), run.log
    assert 0 < run.imported < LONG
    row = await row_of(ada.world, key)
    assert (row.run_id, row.failures) == (None, 0)
    run = await again(ada.world, key)
    assert (run.state, len((await stored(ada.world))["INBOX"])) == (TaskState.SUCCEEDED, LONG)


async def test_what_comes_is_heard_at_once(ada: Client, far: DovecotAccount) -> None:
    far.save_message(raw_message("One"))
    idle = [{"name": "IDLE", "value": ""}]
    key = await connector(ada, far, interval=600, custom_options=idle)
    worker = ConnectorWorker(ada.world, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    await until(lambda: not worker.run_count_by_host)  # it listens, and takes nobody's place
    assert (await newest(ada.world, key)).stage == "LISTEN"
    far.save_message(raw_message("Two"))
    await until(lambda: False, lambda: heard(ada.world, "Two"))
    run = await newest(ada.world, key)
    await connector_mutations.cancel_runs(may(ada), [run.id])
    (task,) = worker.running
    await asyncio.wait_for(task, 20)
    assert (await newest(ada.world, key)).state is TaskState.CANCELLED


async def heard(world: Environment, subject: str) -> bool:
    """Whether it is in INBOX."""
    return subject in (await stored(world)).get("INBOX", [])


async def until(done: Callable[[], bool], wait: Any = None) -> None:
    """Wait until this is so, ten seconds at most."""
    async with asyncio.timeout(10):
        while not (await wait() if wait else done()):  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.02)


async def test_there_is_room_for_so_many_runs_with_a_host(ada: Client, far: DovecotAccount) -> None:
    keys = [await connector(ada, far, name=str(nth)) for nth in range(4)]
    worker = ConnectorWorker(ada.world, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    assert len(worker.running) == ada.world.options.connectors_per_host == 2
    for _ in range(4):
        await asyncio.gather(*worker.running)
        await asyncio.sleep(0)
        await connector_worker.start_due_runs(worker)
    for key in keys:
        assert (await newest(ada.world, key)).state is TaskState.SUCCEEDED


async def test_a_private_address_is_refused_and_nothing_is_connected_to(
    ada: Client, far: DovecotAccount
) -> None:
    key = await connector(ada, far)
    worker = ConnectorWorker(ada.world, NetworkPolicy())
    await connector_worker.start_due_runs(worker)
    await asyncio.gather(*worker.running)
    run = await newest(ada.world, key)
    assert (run.state, run.stage) == (TaskState.FAILED, "CONNECT")
    assert "without encryption" in run.error
    run = await again(ada.world, key, security=ConnectorSecurity.TLS)
    assert (run.state, run.stage) == (TaskState.FAILED, "TLS")  # it was connected to
    await changed(ada.world, key, next_run_at=ada.world.now())
    worker = ConnectorWorker(ada.world)
    for private, stage in ((False, "RESOLVE"), (True, "TLS")):  # by a setting that changes
        options = replace(ada.world.options, connectors_private=private)
        object.__setattr__(ada.world, "options", options)
        await changed(ada.world, key, next_run_at=ada.world.now())
        await connector_worker.start_due_runs(worker)
        await asyncio.gather(*worker.running)
        assert (await newest(ada.world, key)).stage == stage
    assert "inside" in next(line for line in await lines(ada.world, key) if "RESOLVE" in line)


async def test_who_receives_nothing_fetches_nothing(
    ada: Client, far: DovecotAccount, root: Client
) -> None:
    far.save_message(raw_message("One"))
    key = await connector(ada, far)
    for disabled in (True, False):
        given: dict[str, Any] = {"users": {"usernames": ["ada"]}, "set": {"disabled": disabled}}
        assert (await user_operations.run(root, "userUpdate", **given))["errors"] == []
        worker = ConnectorWorker(ada.world, NetworkPolicy(allows_private=True))
        await connector_worker.start_due_runs(worker)
        await asyncio.gather(*worker.running)
        assert bool(await stored(ada.world)) is not disabled
    assert (await newest(ada.world, key)).imported == 1


async def lines(world: Environment, key: int) -> list[str]:
    """What all runs of a connector have logged."""
    asked = select(col(ConnectorRun.log)).where(col(ConnectorRun.connector_id) == key)
    return [line for row in await world.database.read(asked) for line in row.log]


async def test_the_history_has_an_end(ada: Client, far: DovecotAccount) -> None:
    key = await connector(ada, far, interval=600)
    for _ in range(3):
        await again(ada.world, key)
    object.__setattr__(connector_worker, "MAX_STORED_RUNS", 2)
    try:
        await again(ada.world, key)
    finally:
        object.__setattr__(connector_worker, "MAX_STORED_RUNS", 100)
    rows = await ada.world.database.read(runs(key))
    assert len(rows) == 2


def runs(key: int) -> Any:
    """The runs of a connector."""
    return select(col(ConnectorRun.id)).where(col(ConnectorRun.connector_id) == key)


async def test_a_connector_that_is_removed_while_it_runs_ends_its_run(
    ada: Client, far: DovecotAccount
) -> None:
    far.save_messages([raw_message(f"Nr {nth}") for nth in range(LONG)])
    key = await connector(ada, far)
    ctx, removed = may(ada), list[Any]()

    def fault(place: str) -> None:
        if place == "fetched" and not removed:
            removed.append(asyncio.ensure_future(connector_mutations.delete_connectors(ctx, [key])))

    object.__setattr__(ada.world, "reach_fault_point", fault)
    worker = ConnectorWorker(ada.world, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    await asyncio.gather(*worker.running)
    await removed[0]
    assert len((await stored(ada.world))["INBOX"]) < LONG
