"""Run due connectors. A process holds the lease of a connector and continues interrupted runs."""

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import delete, func, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.connectors.remote_server import Failure, Stage
from mail.network.outbound_http import Gate
from models.admin.tasks import TaskState
from models.connectors import Connector, ConnectorRun
from models.errors import Refused
from models.events.journal import ChangeKind
from models.events.wakeups import CONNECTORS
from models.observability import metrics
from models.runtime import leases
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.connectors import one_time_imports
from resolvers.connectors import run as connector_run
from resolvers.connectors.options import chosen
from resolvers.connectors.run_state import Lost, Run, Stopped
from resolvers.connectors.schedule import next_at, queued
from resolvers.context import Context, Viewer

log = logging.getLogger(__name__)

PAUSE_AFTER_ERROR = 60.0  # seconds until a run continues if its end could not be written
BEAT = 15.0  # between two writes of progress, which also detect a cancellation
IDLE = 15.0  # between two reads without a wake-up
MOST = 500  # of a process, including those that only listen
KEPT = 100  # of a connector


ENDED = metrics.counter("merganser_connector_runs", "Runs of connectors that ended.", "outcome")
MESSAGES = metrics.counter(
    "merganser_connector_messages", "Messages that connectors imported and so on.", "outcome"
)
BYTES = metrics.counter("merganser_connector_bytes", "Bytes that connectors fetched.")


COUNTED = {"imported": "imported", "skipped": "skipped", "deleted_remote": "deleted elsewhere"}
COUNTS = {*COUNTED, "bytes"}


@dataclass
class Worker:
    """The state of the connector worker of this process."""

    world: World
    gate: Gate | None = None  # None: from the settings when a run begins
    trust: Any = None
    running: "dict[asyncio.Task[None], Run]" = field(default_factory=dict)
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def busy(self) -> Counter[str]:
        """The number of runs by host, without those that only listen."""
        return Counter(run.connector.host for run in self.running.values() if not run.listens)


async def run(world: World, gate: Gate | None = None, trust: Any = None) -> None:
    """Run due connectors until cancelled, and take over runs of dead processes."""
    async with leases.registered(world):
        await _run_on(world, gate, trust)


async def _run_on(world: World, gate: Gate | None, trust: Any) -> None:
    worker = Worker(world, gate, trust)
    with world.wakeups.listen([CONNECTORS]) as bell:
        try:
            while True:
                bell.clear()
                worker.freed.clear()
                try:
                    await look(worker)
                except Exception:  # the worker must survive; it reads again
                    log.exception("connectors could not be looked at")
                waits = [asyncio.ensure_future(each.wait()) for each in (bell, worker.freed)]
                await asyncio.wait(waits, timeout=IDLE, return_when=asyncio.FIRST_COMPLETED)
                for each in waits:
                    each.cancel()
                if bell.is_set():
                    nudge(worker)
        finally:
            for task in worker.running:
                task.cancel()
            await asyncio.gather(*worker.running, return_exceptions=True)


def nudge(worker: Worker) -> None:
    """Let all runs of this process check whether they are cancelled."""
    for run in worker.running.values():
        run.nudged.set()


async def look(worker: Worker) -> None:
    """Start due runs, up to the limits of the process and of each host."""
    options = worker.world.options
    most = options.connectors_per_host
    while worker.busy.total() < options.connectors_at_once and len(worker.running) < MOST:
        full = [host for host, many in worker.busy.items() if host and many >= most]
        found = await _claim(worker.world, full)
        if found is None:
            return
        found.freed = worker.freed
        task = asyncio.create_task(_carried(worker, found))
        worker.running[task] = found
        task.add_done_callback(partial(_freed, worker))


def _freed(worker: Worker, task: "asyncio.Task[None]") -> None:
    del worker.running[task]
    worker.freed.set()


async def _claim(world: World, busy: list[str], only: int | None = None) -> Run | None:
    """Claim the next due connector that no process runs, or return None.

    `connector_id` limits it to one id.
    """
    while True:
        now, lease = world.now(), world.key()
        due = (
            col(Connector.next_run_at) <= now,
            leases.is_free(Connector),
            col(Connector.host).not_in(busy),
            col(Connector.user_id).in_(select(col(User.id)).where(~col(User.disabled))),
            true() if only is None else col(Connector.id) == only,
        )
        asked = select(col(Connector.id), col(Connector.user_id)).where(*due)
        first = asked.order_by(col(Connector.next_run_at), col(Connector.id)).limit(1)
        found = next(iter(await world.database.read(first)), None)
        if found is None:
            return None  # an idle worker writes nothing
        viewer = Viewer(found.user_id, Role.USER, frozenset({Scope.MASTER}))
        ctx = Context(world, viewer)
        process_id = await leases.ensure_registered(world)
        async with ctx.write(found.user_id) as session:
            claim = update(Connector).where(col(Connector.id) == found.id, *due)
            claim = claim.where(leases.is_registered(process_id))
            values = {**leases.held(process_id, lease), "last_run_at": now}
            claimed = claim.values(values).returning(*picked(Connector))
            row = (await (await session.connection()).execute(claimed)).first()
            begun = await _begun(ctx, session, row) if row else None
        if row and begun:
            options = chosen(row.custom_options)
            return Run(ctx, row, begun, lease, options, lines=list(begun.log))


async def _begun(ctx: Context, session: AsyncSession, connector: Picked) -> Picked:
    """Return the row of the run: a queued one, one that a dead process has left, or a new one."""
    connection, now = await session.connection(), ctx.world.now()
    if connector.run_id is None:
        key = ctx.world.key()
        session.add(queued(ctx, connector.id, connector.user_id, key))
        await session.flush()
        this = update(Connector).where(col(Connector.id) == connector.id)
        await connection.execute(this.values(run_id=key))
    else:
        key = connector.run_id
    mine = update(ConnectorRun).where(col(ConnectorRun.id) == key)
    since = func.coalesce(col(ConnectorRun.started_at), now)
    started = mine.values(state=TaskState.RUNNING, started_at=since)
    found = (await connection.execute(started.returning(*picked(ConnectorRun)))).one()
    await ctx.record(session, connector.user_id, ChangeKind.CONNECTOR_CHANGED, [connector.id])
    return found


async def _carried(worker: Worker, run: Run) -> None:
    """Execute a claimed run while its lease is in use."""
    with leases.in_use(worker.world, run.lease):
        await _run_to_end(worker, run)


async def _run_to_end(worker: Worker, run: Run) -> None:
    log.info("connector begins", extra={"connector": run.connector.id, "run": run.row.id})
    beating = asyncio.create_task(_beats(run))
    options = worker.world.options
    gate = worker.gate or Gate.of(options, private=options.connectors_private)
    fetch = asyncio.create_task(connector_run.fetch(run, gate, worker.trust))
    state, error, stage = TaskState.SUCCEEDED, None, None
    try:
        await asyncio.wait([fetch, beating], return_when=asyncio.FIRST_COMPLETED)
        if not fetch.done():
            fetch.cancel()
            await asyncio.gather(fetch, return_exceptions=True)
            beating.result()
        fetch.result()
    except Lost:
        log.warning("connector taken over", extra={"connector": run.connector.id})
        return
    except Stopped:
        state = TaskState.CANCELLED
    except Failure as problem:
        state, error, stage = TaskState.FAILED, problem.message, problem.stage
    except Refused as problem:
        state, error, stage = TaskState.FAILED, problem.message, Stage.STORE
    except asyncio.CancelledError:
        fetch.cancel()
        await asyncio.gather(fetch, return_exceptions=True)
        await _given_back(run)
        raise
    except Exception:
        log.exception("connector broke", extra={"connector": run.connector.id})
        state, error = TaskState.FAILED, "it broke on our side"
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    try:
        await _end(run, state, error, stage)
    except Exception:
        log.exception("the end of a run was not written", extra={"connector": run.connector.id})
        mine = col(Connector.id) == run.connector.id, col(Connector.lease) == run.lease
        leases.abandon(worker.world, Connector, *mine, after=PAUSE_AFTER_ERROR)


async def _beats(run: Run) -> None:
    """Write the progress of a run until its lease is lost or it is cancelled."""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(BEAT):
                await run.nudged.wait()
        run.nudged.clear()
        apart = (
            run.ctx.fresh()
        )  # a context of its own, since the other one can have an open transaction
        async with apart.write(run.connector.user_id) as session:
            await run.hold(session)


async def _given_back(run: Run) -> None:
    """Release the lease, so that the next process continues at once."""
    async with run.ctx.world.write() as session:
        mine = (col(Connector.id) == run.connector.id, col(Connector.lease) == run.lease)
        free = update(Connector).where(*mine).values(lease=None, holder=None)
        await (await session.connection()).execute(free)


async def _end(run: Run, state: TaskState, error: str | None, stage: Stage | None) -> None:
    """Write the result of a run and the time of the next one. Does nothing if the lease is lost."""
    ctx, key = run.ctx, run.connector.id
    now = ctx.world.now()
    if error:
        run.say(f"{stage or 'here'}: {error}")
    async with ctx.write(run.connector.user_id) as session:
        connection = await session.connection()
        mine = (col(Connector.id) == key, col(Connector.lease) == run.lease)
        asked = select(*picked(Connector)).where(*mine).with_for_update()
        row = (await connection.execute(asked)).first()
        if row is None:
            return  # the connector was deleted or taken over
        failed = state is TaskState.FAILED
        failures = row.failures + 1 if failed else 0
        values: dict[str, Any] = {
            "lease": None,
            "holder": None,
            "run_id": None,
            "failures": failures,
            "last_error": error,
            "next_run_at": _next(run, row, now, failures),
        }
        if state is TaskState.SUCCEEDED:
            values["last_success_at"] = now
        await connection.execute(update(Connector).where(*mine).values(values))
        told = {"state": state, "finished_at": now, "error": error, "stage": stage,
                "folder": None, "log": list(run.lines)}  # fmt: skip
        this = update(ConnectorRun).where(col(ConnectorRun.id) == run.row.id)
        counted = this.values(told).returning(*picked(ConnectorRun, COUNTS))
        counts = (await connection.execute(counted)).one()
        if row.once:
            await one_time_imports.forget(session, [run.row.id])
        old = (
            select(col(ConnectorRun.id))
            .where(col(ConnectorRun.connector_id) == key)
            .order_by(col(ConnectorRun.id).desc())
            .offset(KEPT)
        )
        await connection.execute(delete(ConnectorRun).where(col(ConnectorRun.id).in_(old)))
        await ctx.record(session, row.user_id, ChangeKind.CONNECTOR_CHANGED, [key])
    if row.once:  # it can have imported a whole account
        await ctx.world.database.refresh_statistics()
    ENDED.add(state.value.lower())
    for name, outcome in COUNTED.items():
        MESSAGES.add(outcome, by=max(getattr(counts, name) - getattr(run.row, name), 0))
    BYTES.add(by=max(counts.bytes - run.row.bytes, 0))


def _next(run: Run, row: Picked, now: datetime, failures: int) -> datetime | None:
    if not row.active:
        return None
    if run.again is not None and not failures:
        return now + run.again
    return next_at(now, row.interval, failures)


async def run_one(world: World, connector_id: int, gate: Gate, trust: Any = None) -> bool:
    """Run one connector in this process; False if it is not due or another process runs it."""
    found = await _claim(world, [], connector_id)
    if found is None:
        return False
    found.may_listen = False
    async with leases.registered(world):
        await _carried(Worker(world, gate, trust), found)
    return True
