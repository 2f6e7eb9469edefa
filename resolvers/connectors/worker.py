"""Run due connectors. A process holds the lease of a connector and continues interrupted runs."""

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.connectors.remote_server import ConnectorStage, RemoteFailure
from mail.network.outbound_http import NetworkPolicy
from models.admin.tasks import TaskState
from models.connectors import Connector, ConnectorRun
from models.errors import RequestError
from models.events.event_types import EventType
from models.events.wakeups import CONNECTORS
from models.observability import metrics
from models.runtime import leases
from models.runtime.environment import Environment, wake_workers_after_commit
from models.runtime.worker_stop import is_worker_stopping
from models.store.columns import ColumnRow, select_columns
from models.store.outage_log import OUTAGES
from models.store.outages import storage_failure
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.connectors import one_time_imports
from resolvers.connectors import run as connector_run
from resolvers.connectors.options import parse_connector_options
from resolvers.connectors.run_state import (
    ActiveRun,
    RunCancelled,
    RunInterrupted,
    RunLeaseLost,
)
from resolvers.connectors.schedule import new_queued_run, next_run_time
from resolvers.context import Context
from resolvers.viewer import Viewer

log = logging.getLogger(__name__)

PAUSE_AFTER_ERROR = 60.0  # seconds until a run continues after an outage of the storage
PROGRESS_SECONDS = 15.0  # between two writes of progress, which also detect a cancellation
POLL_SECONDS = 15.0  # between two reads without a wake-up
MAX_RUNS = 500  # of a process, including those that only listen
MAX_STORED_RUNS = 100  # of a connector


RUNS_ENDED = metrics.counter(
    "merganser_connector_runs", "Ended connector runs: succeeded, failed, cancelled.", "outcome"
)
MESSAGES_FETCHED = metrics.counter(
    "merganser_connector_messages",
    "Messages of connectors: imported, skipped, deleted on the remote server.",
    "outcome",
)
BYTES_FETCHED = metrics.counter("merganser_connector_bytes", "Bytes that connectors fetched.")


OUTCOME_BY_COLUMN = {
    "imported_count": "imported",
    "skipped_count": "skipped",
    "deleted_remote_count": "deleted elsewhere",
}
COUNT_COLUMNS = {*OUTCOME_BY_COLUMN, "size"}


@dataclass
class ConnectorWorker:
    """The state of the connector worker of this process."""

    environment: Environment
    network_policy: NetworkPolicy | None = None  # None: from the settings when a run begins
    ssl_context: Any = None
    running: "dict[asyncio.Task[None], ActiveRun]" = field(default_factory=dict)
    slot_freed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def run_count_by_host(self) -> Counter[str]:
        """The number of runs by host, without those that only listen."""
        return Counter(run.connector.host for run in self.running.values() if not run.is_listening)

    @property
    def run_count_by_user(self) -> Counter[int]:
        """The number of runs by user, without those that only listen."""
        return Counter(
            run.connector.user_id for run in self.running.values() if not run.is_listening
        )


async def run_worker(
    environment: Environment, network_policy: NetworkPolicy | None = None, ssl_context: Any = None
) -> None:
    """Run due connectors until cancelled or stopped, and take over runs of dead processes."""
    async with leases.keep_process_registered(environment):
        await _start_due_runs_until_worker_stops(environment, network_policy, ssl_context)


async def _start_due_runs_until_worker_stops(
    environment: Environment, network_policy: NetworkPolicy | None, ssl_context: Any
) -> None:
    worker = ConnectorWorker(environment, network_policy, ssl_context)
    with environment.wakeups.follow([CONNECTORS]) as wakeup:
        try:
            while not is_worker_stopping():
                wakeup.clear()
                worker.slot_freed.clear()
                try:
                    await start_due_runs(worker)
                except Exception:  # the worker must survive; it reads again
                    log.exception("Could not look for due connectors")
                waits = [
                    asyncio.ensure_future(event.wait()) for event in (wakeup, worker.slot_freed)
                ]
                await asyncio.wait(waits, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for event in waits:
                    event.cancel()
                if wakeup.is_set():
                    request_cancel_checks(worker)
            await _wait_for_runs_and_cancel_listening(worker)
        finally:
            for task in worker.running:
                task.cancel()
            await asyncio.gather(*worker.running, return_exceptions=True)


async def _wait_for_runs_and_cancel_listening(worker: ConnectorWorker) -> None:
    """Wait until each run has stored its current group of messages. A run that listens has none."""
    for task, run in worker.running.items():
        if run.is_listening:
            task.cancel()
    if worker.running:
        await asyncio.wait(worker.running)


def request_cancel_checks(worker: ConnectorWorker) -> None:
    """Let all runs of this process check whether they are cancelled."""
    for run in worker.running.values():
        run.cancel_check_requested.set()


async def start_due_runs(worker: ConnectorWorker) -> None:
    """Start due runs, up to the limits of the process, of each host and of each user.

    A user has at most half of the runs: else servers that never end a response, under several
    names, could keep the connectors of all other users from running.
    """
    options = worker.environment.options
    max_per_host = options.connectors_max_runs_per_host
    max_per_user = max(1, options.connectors_max_runs // 2)
    while (
        worker.run_count_by_host.total() < options.connectors_max_runs
        and len(worker.running) < MAX_RUNS
    ):
        full_hosts = [
            host
            for host, run_count in worker.run_count_by_host.items()
            if host and run_count >= max_per_host
        ]
        full_user_ids = [
            user_id
            for user_id, run_count in worker.run_count_by_user.items()
            if run_count >= max_per_user
        ]
        claimed = await _lease_next_due_run(
            worker.environment,
            col(Connector.host).not_in(full_hosts),
            col(Connector.user_id).not_in(full_user_ids),
        )
        if claimed is None:
            return
        claimed.slot_freed = worker.slot_freed
        task = asyncio.create_task(_run_with_lease(worker, claimed))
        worker.running[task] = claimed
        task.add_done_callback(partial(_release_slot, worker))


def _release_slot(worker: ConnectorWorker, task: "asyncio.Task[None]") -> None:
    del worker.running[task]
    worker.slot_freed.set()


async def _lease_next_due_run(
    environment: Environment, *connector_conditions: ColumnElement[bool]
) -> ActiveRun | None:
    """Claim the next due connector with these conditions that no process runs, or return None."""
    while True:
        now, lease = environment.now(), environment.new_id()
        conditions = (
            col(Connector.next_run_at) <= now,
            leases.is_unleased(Connector),
            col(Connector.user_id).in_(select(col(User.id)).where(col(User.active))),
            *connector_conditions,
        )
        statement = select(col(Connector.id), col(Connector.user_id)).where(*conditions)
        statement_first = statement.order_by(col(Connector.next_run_at), col(Connector.id)).limit(1)
        due_connector = next(iter(await environment.database.read(statement_first)), None)
        if due_connector is None:
            return None  # an idle worker writes nothing
        viewer = Viewer(due_connector.user_id, Role.USER, frozenset({Scope.FULL}))
        ctx = Context(environment, viewer)
        process_id = await leases.ensure_process_registered(environment)
        async with ctx.write_session(due_connector.user_id) as session:
            claim = update(Connector).where(col(Connector.id) == due_connector.id, *conditions)
            claim = claim.where(leases.is_registered(process_id))
            values = {**leases.lease_values(process_id, lease), "last_run_at": now}
            claimed = claim.values(values).returning(*select_columns(Connector))
            row = (await (await session.connection()).execute(claimed)).first()
            run_row = await _start_or_continue_run(ctx, session, row) if row else None
        if row and run_row:
            options = parse_connector_options(row.custom_options)
            return ActiveRun(ctx, row, run_row, lease, options, log_lines=list(run_row.log))


async def _start_or_continue_run(
    ctx: Context, session: AsyncSession, connector: ColumnRow
) -> ColumnRow:
    """Return the row of the run: a queued one, one that a dead process has left, or a new one."""
    connection, now = await session.connection(), ctx.environment.now()
    if connector.run_id is None:
        run_id = ctx.environment.new_id()
        session.add(new_queued_run(ctx, connector.id, connector.user_id, run_id))
        await session.flush()
        update_statement = update(Connector).where(col(Connector.id) == connector.id)
        await connection.execute(update_statement.values(run_id=run_id))
    else:
        run_id = connector.run_id
    statement = update(ConnectorRun).where(col(ConnectorRun.id) == run_id)
    started_at = func.coalesce(col(ConnectorRun.started_at), now)
    started = statement.values(state=TaskState.RUNNING, started_at=started_at)
    run_row = (await connection.execute(started.returning(*select_columns(ConnectorRun)))).one()
    await ctx.record_change(session, connector.user_id, EventType.CONNECTOR_UPDATED, [connector.id])
    return run_row


async def _run_with_lease(worker: ConnectorWorker, run: ActiveRun) -> None:
    """Execute a claimed run while its lease is in use."""
    with leases.protect_leases_in_use(worker.environment, run.lease):
        await _execute_run(worker, run)


async def _execute_run(worker: ConnectorWorker, run: ActiveRun) -> None:
    log.info("Connector run started", extra={"connector": run.connector.id, "run": run.row.id})
    progress_task = asyncio.create_task(_record_progress_until_lease_lost(run))
    options = worker.environment.options
    network_policy = worker.network_policy or NetworkPolicy.from_options(
        options, allows_private=options.connectors_allow_private_networks
    )
    fetch_task = asyncio.create_task(
        connector_run.fetch_and_synchronize(run, network_policy, worker.ssl_context)
    )
    state, error, stage = TaskState.SUCCEEDED, None, None
    try:
        await _wait_for_end_of_fetch(fetch_task, progress_task)
    except RunLeaseLost:
        log.warning(
            "Connector run taken over from another process", extra={"connector": run.connector.id}
        )
        return
    except RunInterrupted:
        await _release_lease(run)
        return
    except RunCancelled:
        state = TaskState.CANCELLED
    except RemoteFailure as problem:
        state, error, stage = TaskState.FAILED, problem.message, problem.stage
    except RequestError as problem:
        state, error, stage = TaskState.FAILED, problem.message, ConnectorStage.STORE
    except asyncio.CancelledError:
        fetch_task.cancel()
        await asyncio.gather(fetch_task, return_exceptions=True)
        await _release_lease(run)
        raise
    except Exception as problem:
        if (outage := storage_failure(problem)) is not None:
            OUTAGES.note_suppressed_record(outage)
            _end_lease_after_pause(run)
            return
        log.exception(
            "Connector run failed with an internal error", extra={"connector": run.connector.id}
        )
        state = TaskState.FAILED
        error = "Internal error. The administrator finds the cause in the server log."
    finally:
        progress_task.cancel()
        await asyncio.gather(progress_task, return_exceptions=True)
    try:
        await _store_result_and_next_run(run, state, error, stage)
    except Exception:
        log.exception(
            "Could not write the end of a connector run", extra={"connector": run.connector.id}
        )
        _end_lease_after_pause(run)


def _end_lease_after_pause(run: ActiveRun) -> None:
    """Let a process continue the run after a pause."""
    is_leased = col(Connector.id) == run.connector.id, col(Connector.lease) == run.lease
    leases.end_lease_at_later_heartbeat(
        run.ctx.environment, Connector, *is_leased, delay_seconds=PAUSE_AFTER_ERROR
    )


async def _wait_for_end_of_fetch(
    fetch_task: asyncio.Task[None], progress_task: asyncio.Task[None]
) -> None:
    """Wait for the fetch; cancel it if the progress task ends before. Raises its error."""
    await asyncio.wait([fetch_task, progress_task], return_when=asyncio.FIRST_COMPLETED)
    if not fetch_task.done():
        fetch_task.cancel()
        await asyncio.gather(fetch_task, return_exceptions=True)
        progress_task.result()
    fetch_task.result()


async def _record_progress_until_lease_lost(run: ActiveRun) -> None:
    """Write the progress of a run until its lease is lost or it is cancelled."""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(PROGRESS_SECONDS):
                await run.cancel_check_requested.wait()
        run.cancel_check_requested.clear()
        # a context of its own, since the other one can have an open transaction
        own_ctx = run.ctx.fresh_copy()
        async with own_ctx.write_session(run.connector.user_id) as session:
            await run.require_lease_and_record_progress(session)


async def _release_lease(run: ActiveRun) -> None:
    """Release the lease, so that the next process continues at once."""
    async with run.ctx.environment.write_session() as session:
        is_leased = (col(Connector.id) == run.connector.id, col(Connector.lease) == run.lease)
        statement = update(Connector).where(*is_leased).values(lease=None, holder=None)
        await (await session.connection()).execute(statement)
        wake_workers_after_commit(session, CONNECTORS)


async def _store_result_and_next_run(
    run: ActiveRun, state: TaskState, error: str | None, stage: ConnectorStage | None
) -> None:
    """Write the result of a run and the time of the next one. Does nothing if the lease is lost."""
    ctx, connector_id = run.ctx, run.connector.id
    now = ctx.environment.now()
    if error:
        run.add_log_line(f"{stage or 'here'}: {error}")
    async with ctx.write_session(run.connector.user_id) as session:
        connection = await session.connection()
        is_leased = (col(Connector.id) == connector_id, col(Connector.lease) == run.lease)
        statement = select(*select_columns(Connector)).where(*is_leased).with_for_update()
        row = (await connection.execute(statement)).first()
        if row is None:
            return  # the connector was deleted or taken over
        has_failed = state is TaskState.FAILED
        failures = row.failures + 1 if has_failed else 0
        values: dict[str, Any] = {
            "lease": None,
            "holder": None,
            "run_id": None,
            "failures": failures,
            "last_error": error,
            "next_run_at": _next_run_at(run, row, now, failures),
        }
        if state is TaskState.SUCCEEDED:
            values["last_success_at"] = now
        await connection.execute(update(Connector).where(*is_leased).values(values))
        run_values = {"state": state, "finished_at": now, "error": error, "stage": stage,
                "folder": None, "log": list(run.log_lines)}  # fmt: skip
        update_statement = update(ConnectorRun).where(col(ConnectorRun.id) == run.row.id)
        run_update = update_statement.values(run_values).returning(
            *select_columns(ConnectorRun, COUNT_COLUMNS)
        )
        counts = (await connection.execute(run_update)).one()
        if row.is_one_time:
            await one_time_imports.delete_one_time_import_data(session, [run.row.id])
        expired_runs = (
            select(col(ConnectorRun.id))
            .where(col(ConnectorRun.connector_id) == connector_id)
            .order_by(col(ConnectorRun.id).desc())
            .offset(MAX_STORED_RUNS)
        )
        await connection.execute(delete(ConnectorRun).where(col(ConnectorRun.id).in_(expired_runs)))
        await ctx.record_change(session, row.user_id, EventType.CONNECTOR_UPDATED, [connector_id])
    if row.is_one_time:  # it can have imported a whole account
        await ctx.environment.database.refresh_planner_statistics()
    RUNS_ENDED.add(state.value.lower())
    for name, outcome in OUTCOME_BY_COLUMN.items():
        MESSAGES_FETCHED.add(outcome, amount=max(getattr(counts, name) - getattr(run.row, name), 0))
    BYTES_FETCHED.add(amount=max(counts.size - run.row.size, 0))


def _next_run_at(
    run: ActiveRun, connector_row: ColumnRow, now: datetime, failure_count: int
) -> datetime | None:
    if not connector_row.active:
        return None
    if run.next_run_delay is not None and not failure_count:
        return now + run.next_run_delay
    return next_run_time(now, connector_row.interval, failure_count)


async def run_connector_if_due(
    environment: Environment,
    connector_id: int,
    network_policy: NetworkPolicy,
    ssl_context: Any = None,
) -> bool:
    """Run one connector in this process; False if it is not due or another process runs it."""
    claimed = await _lease_next_due_run(environment, col(Connector.id) == connector_id)
    if claimed is None:
        return False
    claimed.may_listen = False
    async with leases.keep_process_registered(environment):
        await _run_with_lease(ConnectorWorker(environment, network_policy, ssl_context), claimed)
    return True
