"""Leases: which process works on a row. A lease ends when its holder's heartbeat stops.

Each leased row names its holder, a row of `server_processes`. Each process increases a counter
there. If a counter stops, another process deletes that row and ends its leases in the same
transaction. So no lease depends on the time of day.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any

from sqlalchemy import (
    ColumnElement,
    case,
    delete,
    exists,
    insert,
    literal_column,
    select,
    text,
    union_all,
    update,
)
from sqlmodel import col

from models.admin.tasks import Task
from models.auth.credentials import VaultKey
from models.certificates import Certificate
from models.connectors import Connector
from models.events import wakeups
from models.notifications.push_channels import PushChannel
from models.notifications.webhooks import WebhookLane
from models.queue.tables import Delivery
from models.runtime.clock_steps import follow_clock, forget_clocks, observe_clock
from models.runtime.environment import Turn, World
from models.runtime.registration import AbandonedLease, Heartbeat, HeldRow, boot_id, boot_time
from models.runtime.server_processes import ServerProcess
from models.spam.training import Lesson

log = logging.getLogger(__name__)

LEASED: tuple[Any, ...] = (
    Delivery, Task, Connector, WebhookLane, PushChannel, Certificate, Lesson,
)  # fmt: skip
# for each leased table: the column with the key of the work, and the column of the lease number
_WORK: tuple[tuple[Any, Any], ...] = (
    (col(Delivery.id), col(Delivery.lease)),
    *((col(table.lease), col(table.lease)) for table in LEASED[1:-1]),
    (col(Lesson.message_id), col(Lesson.turn)),
)
REGISTERING = 0x6D657269  # of PostgreSQL's advisory locks: one process registers at a time
BELLS = (
    wakeups.QUEUE, wakeups.TASKS, wakeups.CONNECTORS, wakeups.WEBHOOKS, wakeups.PUSHES,
    wakeups.CERTIFICATES, wakeups.LESSONS,
)  # fmt: skip


def held(process_id: int, lease: int) -> dict[str, Any]:
    """Return the column values of a row that this process leases."""
    return {"lease": lease, "holder": process_id}


def freed(table: Any) -> dict[str, Any]:
    """Return the column values that end the lease of a row before its work is done.

    The row is due at once. A queue entry keeps its place in the queue of its destination.
    """
    values: dict[str, Any] = {"holder": None}
    if table is not Lesson:
        values["lease"] = None
    if table is Delivery:
        values["turn_at"] = case((col(Delivery.held_at).is_(None), col(Delivery.next_at)))
    return values


def is_free(table: Any) -> ColumnElement[bool]:
    """SQL: True if no process works on the row."""
    return col(table.holder).is_(None)


def is_registered(process_id: Any) -> ColumnElement[bool]:
    """SQL: True if the process is registered. One that is taken for dead must not take work."""
    return exists().where(col(ServerProcess.id) == process_id)


@contextmanager
def in_use(world: World, *work: int) -> Generator[None]:
    """Keep these leases from being freed during the block.

    `work_keys` has values of the work columns of `_LEASE_KEYS`.
    """
    world.process.work.update(work)
    try:
        yield
    finally:
        world.process.work.subtract(work)
        world.process.work += Counter()  # without those that are zero


class StoreReserved(Exception):
    """This process must not use the database.

    A command has it for itself, or has changed its secret keys.
    """


async def ensure_registered(world: World) -> int:
    """Register this process unless it is registered, and return its id.

    Raises DatabaseReserved if this process must not use the database.
    """
    process = world.process
    async with process.lock:
        if process.id is None:
            key = world.key()

            def register(transaction: Turn) -> None:
                _register(transaction, key)
                _follow_clocks(transaction)  # no other transaction of this process is running

            await world.apply(register)
            process.id = key
    return process.id


def _register(turn: Turn, key: int) -> None:
    """Insert the row of this process, and end the leases of earlier runs of the process."""
    process, now = turn.world.process, turn.world.now()
    if turn.connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        turn.connection.execute(text(f"SELECT pg_advisory_xact_lock({REGISTERING})"))
    _check_free(turn)
    former = delete(ServerProcess).where(
        col(ServerProcess.server) == process.server, col(ServerProcess.name) == process.name
    )
    turn.connection.execute(former)
    values = {
        "id": key,
        "server": process.server,
        "name": process.name,
        "exclusive": process.exclusive,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": version("merganser"),
        "boot": boot_id(),
        "beats": 0,
        "beat_at": boot_time(),
        "vault_keys": list(turn.world.vault.keys),
        "started_at": now,
        "seen_at": now,
    }
    turn.connection.execute(insert(ServerProcess), values)
    free_orphans(turn)


def _follow_clocks(turn: Turn, *, steady: bool = True) -> None:
    """Shorten waits if the clock of this server, or of one that has ended, was set back."""
    if follow_clock(turn, steady=steady) | forget_clocks(turn):
        turn.bells |= set(BELLS)


def _check_free(turn: Turn) -> None:
    """Raise DatabaseReserved if this process must not use the database."""
    if turn.world.process.exclusive is not None:
        return
    reserved = select(col(ServerProcess.exclusive)).where(col(ServerProcess.exclusive).is_not(None))
    purpose = turn.connection.execute(reserved.limit(1)).scalar()
    if purpose is not None:
        raise StoreReserved(f"this store is in use by a command that has to {purpose}")
    needed = set(turn.connection.execute(select(col(VaultKey.name))).scalars())
    if turn.world.process.users and not needed <= set(turn.world.vault.keys):
        raise StoreReserved("the secrets of this store were sealed with other keys meanwhile")


async def other_processes(world: World) -> Sequence[Any]:
    """Return `id`, `beats`, `host` and `pid` of the other registered processes."""
    columns = (ServerProcess.id, ServerProcess.beats, ServerProcess.host, ServerProcess.pid)
    asked = select(*map(col, columns)).where(col(ServerProcess.id) != (world.process.id or 0))
    return await world.database.read(asked)


def free_orphans(turn: Turn) -> int:
    """End each lease without a registered holder; return the number of rows."""
    registered, many = select(col(ServerProcess.id)), 0
    for table in LEASED:
        lost = [col(table.holder).is_not(None), col(table.holder).not_in(registered)]
        if table is Delivery:
            lost.append(col(Delivery.lease).is_not(None))  # as its index has it
        these = update(table).where(*lost).values(**freed(table))
        many += turn.connection.execute(these).rowcount
    if many:
        turn.bells |= set(BELLS)
    return many


async def end_server(world: World, server: str) -> None:
    """Delete the registrations of a server that has certainly ended, with their leases."""

    def delete_processes(transaction: Turn) -> None:
        processes = delete(ServerProcess).where(col(ServerProcess.server) == server)
        transaction.connection.execute(processes)
        free_orphans(transaction)

    await world.apply(delete_processes)


async def free_stale(world: World) -> int:
    """End the leases of this process that no work uses; return the number of rows.

    A commit can be lost after it was reported: an asynchronous standby that replaces the primary
    may have the start of a lease without its end. A commit can also succeed without a response. A
    row counts only if the last check found it, too, since its work may begin or end between the
    reading of the database and that of the work.
    """
    process = world.process
    if process.id is None or process.abandoned:  # an abandoned lease ends after a pause
        return 0
    parts = [
        select(
            literal_column(str(place)).label("place"), key.label("work"), lease.label("lease")
        ).where(col(LEASED[place].holder) == process.id, lease.is_not(None))
        for place, (key, lease) in enumerate(_WORK)
    ]
    asked = union_all(*parts).subquery()
    rows = await world.database.read(select(*asked.c))
    held = [HeldRow(row.place, row.work, row.lease) for row in rows]
    work = set(process.work).union(*(list_work() for list_work in process.under_way))
    unused = frozenset(row for row in held if row.work not in work)
    stale, process.suspected = process.suspected & unused, unused
    if not stale:
        return 0

    def free(transaction: Turn) -> int:
        count = 0
        for row in stale:  # work that has ended meanwhile has ended the lease
            table, (work_column, lease_column) = LEASED[row.place], _WORK[row.place]
            leased = update(table).where(work_column == row.work, lease_column == row.lease)
            leased = leased.where(col(table.holder) == process.id)
            count += transaction.connection.execute(leased.values(**freed(table))).rowcount
        transaction.bells |= set(BELLS)
        return count

    row_count = await world.apply_aside(free)
    if row_count:
        log.warning("leases without work were given back", extra={"rows": row_count})
    return row_count


async def end_exclusive(world: World) -> None:
    """Delete the registrations of commands that had the database for themselves and have ended."""
    these = delete(ServerProcess).where(col(ServerProcess.exclusive).is_not(None))
    await world.apply(lambda transaction: transaction.connection.execute(these).close())


@asynccontextmanager
async def registered(world: World) -> AsyncGenerator[None]:
    """Keep this process registered, with heartbeats. Its leases end with the last block."""
    process = world.process
    process.users += 1
    try:
        if process.users == 1:
            try:
                await ensure_registered(world)
            except StoreReserved:
                raise
            except Exception:  # the heartbeats try again
                log.exception("this process could not be registered")
            process.task = asyncio.create_task(_send_heartbeats(world))
        yield
    finally:
        process.users -= 1
        if not process.users:
            if process.task is not None:
                process.task.cancel()
                await asyncio.gather(process.task, return_exceptions=True)
            with contextlib.suppress(Exception):  # its leases end with its heartbeats
                await deregister(world)


async def deregister(world: World) -> None:
    """Delete the registration of this process, and end its leases."""
    process = world.process
    if process.id is not None:
        own_row = delete(ServerProcess).where(col(ServerProcess.id) == process.id)

        def delete_registration(transaction: Turn) -> None:
            transaction.connection.execute(own_row)
            free_orphans(transaction)

        process.id = None
        await world.apply(delete_registration)


async def _send_heartbeats(world: World) -> None:
    """Send heartbeats until cancelled, and free dead and stale leases."""
    failing = False
    while True:
        await asyncio.sleep(world.process.beat)
        try:
            await send_heartbeat(world)
            await end_dead(world)
            await free_stale(world)
            failing = False
        except StoreReserved as reserved:
            log.error("this process must not use the store", extra={"why": str(reserved)})
            if world.process.on_reserved is not None:
                world.process.on_reserved()
        except Exception:  # the store may be back at the next heartbeat
            if not failing:
                log.exception("the heartbeat of this process could not be written")
            failing = True


async def send_heartbeat(world: World) -> None:
    """Increase the counter of this process.

    If another process has deleted the registration, register this process again.
    """
    process = world.process
    process_id = await ensure_registered(world)
    due_leases = [lease for lease in process.abandoned if lease.due <= time.monotonic()]
    steady = observe_clock(world)

    def beat(transaction: Turn) -> bool:
        values = {"beats": ServerProcess.beats + 1, "beat_at": boot_time()}
        own_row = update(ServerProcess).where(col(ServerProcess.id) == process_id)
        increased = own_row.values(**values, seen_at=transaction.world.now())
        is_deleted = not transaction.connection.execute(increased).rowcount
        if is_deleted:
            _register(transaction, process_id)
            for restore in process.restore:
                restore(transaction)
        _follow_clocks(transaction, steady=steady)
        for lease in due_leases:
            row = update(lease.table).where(*lease.where, col(lease.table.holder) == process_id)
            transaction.connection.execute(row.values(**freed(lease.table)))
            transaction.bells |= set(BELLS)
        return is_deleted

    if await world.apply_aside(beat):
        log.warning("this process was taken for dead: others may have done a part of its work")
    process.abandoned = [lease for lease in process.abandoned if lease not in due_leases]
    if steady:
        process.was_ahead = None  # the waits are shortened


def abandon(world: World, table: Any, *where: Any, after: float) -> None:
    """End the lease of failed work, at a heartbeat after `delay_seconds`."""
    lease = AbandonedLease(table, where, time.monotonic() + after)
    world.process.abandoned.append(lease)


async def end_dead(world: World) -> int:
    """Delete the processes without a heartbeat, and end their leases.

    Return the number of processes.
    """
    process = world.process
    columns = (ServerProcess.id, ServerProcess.beats, ServerProcess.boot, ServerProcess.beat_at)
    asked = select(*map(col, columns))
    rows = await world.apply_aside(lambda transaction: transaction.connection.execute(asked).all())
    heartbeats = [
        Heartbeat(row.id, row.beats, row.boot, row.beat_at) for row in rows if row.id != process.id
    ]
    dead = process.observer.find_dead(heartbeats, one_machine=world.database.dialect == "sqlite")
    found = frozenset(heartbeat.process_id for heartbeat in heartbeats)
    gone, process.known = process.known - found, found
    if not dead and not gone:
        return 0
    many = await world.apply_aside(lambda transaction: _end(transaction, dead))
    if many:
        log.warning("processes without a heartbeat were taken for dead", extra={"processes": many})
    return many


def _end(turn: Turn, dead: Sequence[Heartbeat]) -> int:
    """Delete processes unless they have sent a heartbeat since; return the number deleted."""
    many = 0
    for heartbeat in dead:
        row = delete(ServerProcess).where(
            col(ServerProcess.id) == heartbeat.process_id,
            col(ServerProcess.beats) == heartbeat.beats,
        )
        many += turn.connection.execute(row).rowcount
    free_orphans(turn)
    return many
