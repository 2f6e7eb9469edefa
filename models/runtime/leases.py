"""Leases: which process works on a row. A lease ends when its holder's heartbeat stops.

Each leased row names its holder, a row of `server_processes`. Each process increases a counter
there. A process whose counter stands still is deleted by another one, and its leases are given
back in the same unit of work. So no lease depends on the time of day.
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
# of each leased table: what names the work that needs the row, and what differs at each lease
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
    """Column values of a row that this process takes."""
    return {"lease": lease, "holder": process_id}


def freed(table: Any) -> dict[str, Any]:
    """Column values of a row whose lease ends before its work is done: it is due at once.

    A recipient goes back to its place in the line of its destination.
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
    """Keep leases from being freed while this process uses them. `work` has keys of `_WORK`."""
    world.process.work.update(work)
    try:
        yield
    finally:
        world.process.work.subtract(work)
        world.process.work += Counter()  # without those that are zero


class StoreReserved(Exception):
    """The process must not use the store: a command has it for itself, or has changed its keys."""


async def ensure_registered(world: World) -> int:
    """Register this process unless it is registered; return its id. Raises StoreReserved."""
    process = world.process
    async with process.lock:
        if process.id is None:
            key = world.key()

            def unit(turn: Turn) -> None:
                _register(turn, key)
                _follow_clocks(turn)  # no other transaction of this process is under way

            await world.apply(unit)
            process.id = key
    return process.id


def _register(turn: Turn, key: int) -> None:
    """Insert the row of this process, and end what earlier runs of the same process held."""
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
    """Make waits shorter by the time by which a clock was set back, or was ahead at its end."""
    if follow_clock(turn, steady=steady) | forget_clocks(turn):
        turn.bells |= set(BELLS)


def _check_free(turn: Turn) -> None:
    """Raise StoreReserved if this process must not use the store."""
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
    """The processes that are registered beside this one."""
    columns = (ServerProcess.id, ServerProcess.beats, ServerProcess.host, ServerProcess.pid)
    asked = select(*map(col, columns)).where(col(ServerProcess.id) != (world.process.id or 0))
    return await world.database.read(asked)


def free_orphans(turn: Turn) -> int:
    """Give back each lease whose holder is not registered; return how many rows were held."""
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
    """Delete the registrations of a server that is known to have ended, with their leases."""

    def unit(turn: Turn) -> None:
        turn.connection.execute(delete(ServerProcess).where(col(ServerProcess.server) == server))
        free_orphans(turn)

    await world.apply(unit)


async def free_stale(world: World) -> int:
    """Give back what the store leases to this process and no work uses; return how many rows.

    A commit can be lost after it was reported: an asynchronous standby that replaces the primary
    may have a claim and lack the end of its work. A commit can also succeed without an answer. A
    row counts only if the last look has found it, too: its work may begin or end between the
    reading of the store and that of the work.
    """
    process = world.process
    if process.id is None or process.abandoned:  # an abandoned lease is given back after a pause
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

    def unit(turn: Turn) -> int:
        many = 0
        for row in stale:  # work that has ended meanwhile has ended the lease
            table, (work_column, lease_column) = LEASED[row.place], _WORK[row.place]
            this = update(table).where(work_column == row.work, lease_column == row.lease)
            this = this.where(col(table.holder) == process.id)
            many += turn.connection.execute(this.values(**freed(table))).rowcount
        turn.bells |= set(BELLS)
        return many

    many = await world.apply_aside(unit)
    if many:
        log.warning("leases without work were given back", extra={"rows": many})
    return many


async def end_exclusive(world: World) -> None:
    """Delete the registrations of commands that had the store alone and are known to have ended."""
    these = delete(ServerProcess).where(col(ServerProcess.exclusive).is_not(None))
    await world.apply(lambda turn: turn.connection.execute(these).close())


@asynccontextmanager
async def registered(world: World) -> AsyncGenerator[None]:
    """Keep this process registered, with heartbeats. Leaving the last block gives leases back."""
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
    """Delete the registration of this process, and give its leases back."""
    process = world.process
    if process.id is not None:
        this = delete(ServerProcess).where(col(ServerProcess.id) == process.id)

        def unit(turn: Turn) -> None:
            turn.connection.execute(this)
            free_orphans(turn)

        process.id = None
        await world.apply(unit)


async def _send_heartbeats(world: World) -> None:
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
    """Increase the counter of this process; register it anew if another process deleted it."""
    process = world.process
    process_id = await ensure_registered(world)
    due = [each for each in process.abandoned if each.due <= time.monotonic()]
    steady = observe_clock(world)

    def unit(turn: Turn) -> bool:
        values = {"beats": ServerProcess.beats + 1, "beat_at": boot_time()}
        this = update(ServerProcess).where(col(ServerProcess.id) == process_id)
        beaten = this.values(**values, seen_at=turn.world.now())
        lost = not turn.connection.execute(beaten).rowcount
        if lost:
            _register(turn, process_id)
            for restore in process.restore:
                restore(turn)
        _follow_clocks(turn, steady=steady)
        for each in due:
            mine = update(each.table).where(*each.where, col(each.table.holder) == process_id)
            turn.connection.execute(mine.values(**freed(each.table)))
            turn.bells |= set(BELLS)
        return lost

    if await world.apply_aside(unit):
        log.warning("this process was taken for dead: others may have done a part of its work")
    process.abandoned = [each for each in process.abandoned if each not in due]
    if steady:
        process.was_ahead = None  # waits have followed it


def abandon(world: World, table: Any, *where: Any, after: float) -> None:
    """Give back a lease whose work failed here, `after` so many seconds, once the store answers."""
    lease = AbandonedLease(table, where, time.monotonic() + after)
    world.process.abandoned.append(lease)


async def end_dead(world: World) -> int:
    """Delete the processes whose heartbeat has stopped, with their leases; return how many."""
    process = world.process
    columns = (ServerProcess.id, ServerProcess.beats, ServerProcess.boot, ServerProcess.beat_at)
    asked = select(*map(col, columns))
    rows = await world.apply_aside(lambda turn: turn.connection.execute(asked).all())
    beats = [
        Heartbeat(row.id, row.beats, row.boot, row.beat_at) for row in rows if row.id != process.id
    ]
    dead = process.observer.find_dead(beats, one_machine=world.database.dialect == "sqlite")
    found = frozenset(each.process_id for each in beats)
    gone, process.known = process.known - found, found
    if not dead and not gone:
        return 0
    many = await world.apply_aside(lambda turn: _end(turn, dead))
    if many:
        log.warning("processes without a heartbeat were taken for dead", extra={"processes": many})
    return many


def _end(turn: Turn, dead: Sequence[Heartbeat]) -> int:
    """Delete processes unless they have given a heartbeat since; return how many."""
    many = 0
    for each in dead:
        this = delete(ServerProcess).where(
            col(ServerProcess.id) == each.process_id, col(ServerProcess.beats) == each.beats
        )
        many += turn.connection.execute(this).rowcount
    free_orphans(turn)
    return many
