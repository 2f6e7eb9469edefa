"""Connector runs that are killed, cancelled, taken over or listening lose and duplicate nothing."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.network.outbound_http import NetworkPolicy
from merganser.server.components.worker_component import WorkerComponent, WorkerDefinition
from merganser.server.shutdown import GracefulShutdown
from models.admin.tasks import TaskState
from models.connectors import Connector, ConnectorProtocol, ConnectorRun, ConnectorSecurity
from models.runtime import leases
from models.runtime.components import ComponentState, HoldReason
from models.runtime.environment import Environment
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import ConnectorWorker
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.accounts import user_operations
from tests.support.mail_servers.imap_and_pop3_servers import (
    REMOTE_PASSWORD,
    FakeImapServer,
    FaultsByCommand,
    run_remote_server,
)
from tests.support.operations.connector_operations import (
    add_connector,
    context_with_connector_permission,
    dovecot_account,
    load_connector_row,
    load_newest_run,
    load_subjects_by_mailbox,
    rerun_connector,
    run_connector,
    run_connectors_until_killed,
    shared_dovecot,
    update_connector_row,
)
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.stores.other_processes import deregister_as_dead, make_other_process
from tests.support.time_limits import HANG_SECONDS

pytestmark = pytest.mark.usefixtures("verify_consistency")
__all__ = ["dovecot_account", "shared_dovecot"]
MESSAGE_COUNT = 70  # messages of more than two batches
LONG_MESSAGE_COUNT = 8 * MESSAGE_COUNT  # leaves time for another action during the run


@pytest.mark.parametrize("protocol", [ConnectorProtocol.IMAP, ConnectorProtocol.POP3])
@pytest.mark.parametrize("source_retention", [None, 0])
async def test_killed_run_continues_at_its_checkpoint(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    protocol: ConnectorProtocol,
    source_retention: int | None,
) -> None:
    names = [f"Nr {number}" for number in range(MESSAGE_COUNT)]
    dovecot_account.save_messages([raw_message(name) for name in names])
    connector_id = await add_connector(
        ada,
        dovecot_account,
        protocol=protocol,
        source_retention=source_retention,
        remove_duplicates=False,
    )
    async with leases.keep_process_registered(ada.environment):
        await run_connectors_until_killed(ada.environment, 1)
        await kill_again(ada.environment, connector_id)
        first_run = await load_newest_run(ada.environment, connector_id)
        assert first_run.state is TaskState.RUNNING
        assert 0 < first_run.imported_count < MESSAGE_COUNT
        await deregister_as_dead(ada.environment)
        run = await run_connector(ada.environment, connector_id)
    assert (run.id, run.state) == (first_run.id, TaskState.SUCCEEDED), run.log
    assert sorted((await load_subjects_by_mailbox(ada.environment))["INBOX"]) == sorted(names)
    assert dovecot_account.count_messages() == (MESSAGE_COUNT if source_retention is None else 0)
    assert (await rerun_connector(ada.environment, connector_id)).imported_count == 0


async def kill_again(environment: Environment, connector_id: int) -> None:
    """Check that no process takes the run of a registered process, then kill it again."""
    assert (await run_connector(environment, connector_id)).state is TaskState.RUNNING
    await deregister_as_dead(environment)
    await run_connectors_until_killed(environment, 1)


async def test_run_with_a_lost_lease_stores_nothing_more(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_messages([raw_message(f"Nr {number}") for number in range(MESSAGE_COUNT)])
    connector_id, takeovers = await add_connector(ada, dovecot_account), list[Any]()

    def fault(fault_point: str) -> None:
        if fault_point == "fetched" and not takeovers:  # another process takes the lease
            takeover = update_connector_row(ada.environment, connector_id, lease=1, holder=1)
            takeovers.append(asyncio.ensure_future(takeover))

    object.__setattr__(ada.environment, "reach_fault_point", fault)
    run = await run_connector(ada.environment, connector_id)
    await takeovers[0]
    assert run.state is TaskState.RUNNING
    before = len((await load_subjects_by_mailbox(ada.environment))["INBOX"])
    assert 0 < before < MESSAGE_COUNT
    await ada.environment.run_transaction(leases.free_orphaned_leases)
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, MESSAGE_COUNT)
    assert len((await load_subjects_by_mailbox(ada.environment))["INBOX"]) == MESSAGE_COUNT


async def test_restarted_server_continues_its_runs_at_once(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("One"))
    before, after = make_other_process(ada.environment), make_other_process(ada.environment)
    after.process.server_id = before.process.server_id
    holder = await leases.ensure_process_registered(before)
    connector_id = await add_connector(ada, dovecot_account, lease=1, holder=holder)
    policy = NetworkPolicy(allows_private=True)
    assert not await connector_worker.run_connector_if_due(ada.environment, connector_id, policy)
    worker_task = asyncio.create_task(connector_worker.run_worker(after, policy))
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while not (await load_connector_row(ada.environment, connector_id)).last_success_at:  # noqa: ASYNC110 - a row
                await asyncio.sleep(0.02)
    finally:
        worker_task.cancel()
        await asyncio.gather(worker_task, return_exceptions=True)
    assert (await load_newest_run(ada.environment, connector_id)).imported_count == 1


async def test_running_connector_can_be_cancelled(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_messages(
        [raw_message(f"Nr {number}") for number in range(LONG_MESSAGE_COUNT)]
    )
    connector_id = await add_connector(ada, dovecot_account, interval=600)
    ctx = context_with_connector_permission(ada)

    def fault(fault_point: str) -> None:
        if fault_point == "fetched" and not cancel_tasks:
            cancel_tasks.append(asyncio.ensure_future(cancel_run()))

    async def cancel_run() -> None:
        run = await load_newest_run(ada.environment, connector_id)
        await connector_mutations.cancel_runs(ctx, [run.id])

    cancel_tasks: list[Any] = []
    object.__setattr__(ada.environment, "reach_fault_point", fault)
    run = await run_connector(ada.environment, connector_id)
    await cancel_tasks[0]
    assert (run.state, run.error) == (TaskState.CANCELLED, None), run.log
    assert 0 < run.imported_count < LONG_MESSAGE_COUNT
    row = await load_connector_row(ada.environment, connector_id)
    assert (row.run_id, row.failures) == (None, 0)
    run = await rerun_connector(ada.environment, connector_id)
    assert (run.state, len((await load_subjects_by_mailbox(ada.environment))["INBOX"])) == (
        TaskState.SUCCEEDED,
        LONG_MESSAGE_COUNT,
    )


async def test_idle_fetches_new_messages_at_once(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("One"))
    idle = [{"name": "IDLE", "value": ""}]
    connector_id = await add_connector(ada, dovecot_account, interval=600, custom_options=idle)
    worker = ConnectorWorker(ada.environment, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    # it listens and occupies no slot of the host
    await wait_until(lambda: not worker.run_count_by_host)
    assert (await load_newest_run(ada.environment, connector_id)).stage == "IDLE"
    dovecot_account.save_message(raw_message("Two"))
    await wait_until(lambda: False, lambda: is_in_inbox(ada.environment, "Two"))
    run = await load_newest_run(ada.environment, connector_id)
    await connector_mutations.cancel_runs(context_with_connector_permission(ada), [run.id])
    (task,) = worker.running
    await asyncio.wait_for(task, HANG_SECONDS)
    assert (await load_newest_run(ada.environment, connector_id)).state is TaskState.CANCELLED


def connector_component(environment: Environment) -> WorkerComponent:
    """Return the worker of connectors as the component of a server, not started."""
    policy = NetworkPolicy(allows_private=True)
    definition = WorkerDefinition(
        "connectors",
        lambda _: connector_worker.run_worker(environment, policy),
        leased_table=Connector,
    )
    return WorkerComponent(definition, environment, GracefulShutdown())


@pytest.mark.parametrize("protocol", [ConnectorProtocol.IMAP, ConnectorProtocol.POP3])
async def test_stopped_worker_stores_the_current_messages_and_continues_later(
    ada: GraphQLClient, dovecot_account: DovecotAccount, protocol: ConnectorProtocol
) -> None:
    names = [f"Nr {number}" for number in range(LONG_MESSAGE_COUNT)]
    dovecot_account.save_messages([raw_message(name) for name in names])
    connector_id = await add_connector(ada, dovecot_account, protocol=protocol)
    environment, worker = ada.environment, connector_component(ada.environment)
    holds: list[asyncio.Task[None]] = []

    def stop_worker(fault_point: str) -> None:
        if fault_point == "fetched" and not holds:  # a group of messages is being stored
            holds.append(worker.begin_hold(HoldReason.COMPONENT_STOP))

    object.__setattr__(environment, "reach_fault_point", stop_worker)
    async with leases.keep_process_registered(environment):
        await worker.start()
        await wait_until(lambda: bool(holds))
        await asyncio.wait_for(holds[0], 20)
        assert worker.state is ComponentState.STOPPED
        row = await load_connector_row(environment, connector_id)
        assert (row.lease, row.holder) == (None, None)
        run = await load_newest_run(environment, connector_id)
        assert (run.id, run.state) == (row.run_id, TaskState.RUNNING)
        stored = (await load_subjects_by_mailbox(environment))["INBOX"]
        assert 0 < len(stored) == run.imported_count < LONG_MESSAGE_COUNT
        await worker.release(HoldReason.COMPONENT_STOP)

        async def is_finished() -> bool:
            return bool((await load_connector_row(environment, connector_id)).last_success_at)

        await wait_until(lambda: False, is_finished)
        await worker.close()
    assert (await load_newest_run(environment, connector_id)).id == run.id
    assert sorted((await load_subjects_by_mailbox(environment))["INBOX"]) == sorted(names)


async def test_stopped_worker_ends_runs_that_only_listen(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    idle = [{"name": "IDLE", "value": ""}]
    connector_id = await add_connector(ada, dovecot_account, interval=600, custom_options=idle)
    environment, worker = ada.environment, connector_component(ada.environment)

    async def is_listening() -> bool:
        row = await load_connector_row(environment, connector_id)
        is_running = row.run_id is not None
        return is_running and (await load_newest_run(environment, connector_id)).stage == "IDLE"

    async with leases.keep_process_registered(environment):
        await worker.start()
        await wait_until(lambda: False, is_listening)
        await asyncio.wait_for(worker.hold(HoldReason.COMPONENT_STOP), 20)
        row = await load_connector_row(environment, connector_id)
        assert (row.lease, row.holder) == (None, None)
        await worker.close()


async def test_server_that_always_reports_a_change_is_asked_at_intervals(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.connectors.run.MIN_PAUSE", 600.0)
    monkeypatch.setattr("resolvers.connectors.run.MAX_PAUSE", 600.0)
    environment, worker = ada.environment, connector_component(ada.environment)
    endless_news: FaultsByCommand = {"IDLE": b"+ idling\r\n* 1 EXISTS\r\n"}

    def idle_count() -> int:
        return sum(b" IDLE" in line for line in remote.received_lines)

    async with (
        run_remote_server(FakeImapServer(faults=endless_news)) as remote,
        leases.keep_process_registered(environment),
    ):
        idle = [{"name": "IDLE", "value": ""}]
        await add_connector(
            ada,
            DovecotAccount(Path(), {"imap": remote.port}),
            password=REMOTE_PASSWORD,
            interval=600,
            custom_options=idle,
        )
        await worker.start()
        await wait_until(lambda: idle_count() >= 2)
        for number in range(30):  # each takes as long as a fetch that finds no message
            await deliver_to(ada, f"Nr {number}")
        # the run pauses, and ends at once when the worker stops
        await asyncio.wait_for(worker.hold(HoldReason.COMPONENT_STOP), HANG_SECONDS)
        assert idle_count() == 2
        await worker.close()


async def is_in_inbox(environment: Environment, subject: str) -> bool:
    """True if INBOX has a message with this subject."""
    return subject in (await load_subjects_by_mailbox(environment)).get("INBOX", [])


async def wait_until(is_done: Callable[[], bool], is_done_async: Any = None) -> None:
    """Wait up to 10 seconds until the condition is true."""
    async with asyncio.timeout(HANG_SECONDS):
        while not (await is_done_async() if is_done_async else is_done()):  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.02)


async def test_number_of_runs_per_host_is_limited(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    connector_ids = [
        await add_connector(ada, dovecot_account, name=str(number)) for number in range(4)
    ]
    worker = ConnectorWorker(ada.environment, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    assert len(worker.running) == ada.environment.options.connectors_max_runs_per_host == 2
    for _ in range(4):
        await asyncio.gather(*worker.running)
        await asyncio.sleep(0)
        await connector_worker.start_due_runs(worker)
    for connector_id in connector_ids:
        assert (await load_newest_run(ada.environment, connector_id)).state is TaskState.SUCCEEDED


async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        await reader.read()
    writer.close()


async def test_connectors_of_one_user_leave_runs_to_others(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment = ada.environment
    options = replace(environment.options, connectors_max_runs=4, connectors_max_runs_per_host=1)
    object.__setattr__(environment, "options", options)
    earlier = environment.now() - timedelta(hours=1)
    worker = ConnectorWorker(environment, NetworkPolicy(allows_private=True))
    async with await asyncio.start_server(stay_silent, "0.0.0.0", 0) as listener:  # noqa: S104 - each loopback address
        account = DovecotAccount(Path(), {"imap": listener.sockets[0].getsockname()[1]})
        for number in range(1, 5):
            await add_connector(ada, account, host=f"127.0.0.{number}", next_run_at=earlier)
        await add_connector(bob, account, host="127.0.0.5")
        await connector_worker.start_due_runs(worker)
        running = Counter(run.connector.user_id for run in worker.running.values())
        assert running == {ada.user.id: 2, bob.user.id: 1}
        tasks = list(worker.running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_private_address_is_refused_before_connecting(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    connector_id = await add_connector(ada, dovecot_account)
    worker = ConnectorWorker(ada.environment, NetworkPolicy())
    await connector_worker.start_due_runs(worker)
    await asyncio.gather(*worker.running)
    run = await load_newest_run(ada.environment, connector_id)
    assert (run.state, run.stage) == (TaskState.FAILED, "CONNECT")
    assert run.error == "Connections without TLS are no longer allowed: change `security`."
    run = await rerun_connector(ada.environment, connector_id, security=ConnectorSecurity.TLS)
    assert (run.state, run.stage) == (TaskState.FAILED, "TLS")  # connected, but without TLS
    await update_connector_row(ada.environment, connector_id, next_run_at=ada.environment.now())
    worker = ConnectorWorker(ada.environment)
    for allows_private, stage in ((False, "RESOLVE"), (True, "TLS")):  # changed by the setting
        options = replace(ada.environment.options, connectors_allow_private_networks=allows_private)
        object.__setattr__(ada.environment, "options", options)
        await update_connector_row(ada.environment, connector_id, next_run_at=ada.environment.now())
        await connector_worker.start_due_runs(worker)
        await asyncio.gather(*worker.running)
        assert (await load_newest_run(ada.environment, connector_id)).stage == stage
    assert "The host is in a private network: use a public address." in next(
        line for line in await load_log_lines(ada.environment, connector_id) if "RESOLVE" in line
    )


async def test_connector_of_disabled_user_does_not_run(
    ada: GraphQLClient, dovecot_account: DovecotAccount, root: GraphQLClient
) -> None:
    dovecot_account.save_message(raw_message("One"))
    connector_id = await add_connector(ada, dovecot_account)
    for active in (False, True):
        arguments: dict[str, Any] = {"users": {"usernames": ["ada"]}, "set": {"active": active}}
        assert (await user_operations.execute_mutation(root, "userUpdate", **arguments))[
            "errors"
        ] == []
        worker = ConnectorWorker(ada.environment, NetworkPolicy(allows_private=True))
        await connector_worker.start_due_runs(worker)
        await asyncio.gather(*worker.running)
        assert bool(await load_subjects_by_mailbox(ada.environment)) is active
    assert (await load_newest_run(ada.environment, connector_id)).imported_count == 1


async def load_log_lines(environment: Environment, connector_id: int) -> list[str]:
    """Return the log lines of all runs of a connector."""
    statement = select(col(ConnectorRun.log)).where(col(ConnectorRun.connector_id) == connector_id)
    return [line for row in await environment.database.read(statement) for line in row.log]


async def test_number_of_stored_runs_is_limited(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    connector_id = await add_connector(ada, dovecot_account, interval=600)
    for _ in range(3):
        await rerun_connector(ada.environment, connector_id)
    object.__setattr__(connector_worker, "MAX_STORED_RUNS", 2)
    try:
        await rerun_connector(ada.environment, connector_id)
    finally:
        object.__setattr__(connector_worker, "MAX_STORED_RUNS", 100)
    rows = await ada.environment.database.read(select_runs(connector_id))
    assert len(rows) == 2


def select_runs(connector_id: int) -> Any:
    """Return a statement for the runs of a connector."""
    return select(col(ConnectorRun.id)).where(col(ConnectorRun.connector_id) == connector_id)


async def test_deleting_a_connector_ends_its_run(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_messages(
        [raw_message(f"Nr {number}") for number in range(LONG_MESSAGE_COUNT)]
    )
    connector_id = await add_connector(ada, dovecot_account)
    ctx, delete_tasks = context_with_connector_permission(ada), list[Any]()

    def fault(fault_point: str) -> None:
        if fault_point == "fetched" and not delete_tasks:
            delete_tasks.append(
                asyncio.ensure_future(connector_mutations.delete_connectors(ctx, [connector_id]))
            )

    object.__setattr__(ada.environment, "reach_fault_point", fault)
    worker = ConnectorWorker(ada.environment, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    await asyncio.gather(*worker.running)
    await delete_tasks[0]
    assert len((await load_subjects_by_mailbox(ada.environment))["INBOX"]) < LONG_MESSAGE_COUNT
