"""Leases: which process works on a row. A lease ends when its holder's heartbeat stops.

Each leased row names its holder, a row of `server_processes`. Each process increases a counter
there. If a counter stops, another process deletes that row and ends its leases in the same
transaction. So no lease depends on the time of day.
"""

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
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
from models.auth.credentials import SecretBoxKey
from models.certificates import Certificate
from models.connectors import Connector
from models.events import wakeups
from models.notifications.push_channels import PushChannel
from models.notifications.webhooks import WebhookLane
from models.queue.tables import QueueEntry
from models.runtime.clock_steps import (
    delete_ended_clocks_and_shorten_waits_if_ahead,
    is_clock_steady_or_note_step,
    store_clock_and_shorten_waits_if_set_back,
)
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.installed_version import installed_version
from models.runtime.machine_addresses import machine_ip_addresses
from models.runtime.registration import (
    AbandonedLease,
    Heartbeat,
    LeasedRow,
    boot_id,
    milliseconds_since_boot,
)
from models.runtime.server_processes import ServerProcess
from models.spam.training import TrainingMessage
from models.store.columns import ColumnRow

log = logging.getLogger(__name__)

LEASED_TABLES: tuple[Any, ...] = (
    QueueEntry, Task, Connector, WebhookLane, PushChannel, Certificate, TrainingMessage,
)  # fmt: skip
# for each leased table: the column with the key of the work, and the column of the lease number
_LEASE_KEYS: tuple[tuple[Any, Any], ...] = (
    (col(QueueEntry.id), col(QueueEntry.lease)),
    *((col(table.lease), col(table.lease)) for table in LEASED_TABLES[1:-1]),
    (col(TrainingMessage.message_id), col(TrainingMessage.revision)),
)
REGISTRATION_LOCK = 0x6D657269  # of PostgreSQL's advisory locks: one process registers at a time
WORKERS = (
    wakeups.QUEUE, wakeups.TASKS, wakeups.CONNECTORS, wakeups.WEBHOOKS, wakeups.PUSHES,
    wakeups.CERTIFICATES, wakeups.LESSONS,
)  # fmt: skip


def lease_values(process_id: int, lease: int) -> dict[str, Any]:
    """Return the column values of a row that this process leases."""
    return {"lease": lease, "holder": process_id}


def freed_lease_values(table: Any) -> dict[str, Any]:
    """Return the column values that end the lease of a row before its work is done.

    The row is due at once. A queue entry keeps its place in the queue of its destination.
    """
    values: dict[str, Any] = {"holder": None}
    if table is not TrainingMessage:
        values["lease"] = None
    if table is QueueEntry:
        values["ready_at"] = case((col(QueueEntry.held_at).is_(None), col(QueueEntry.next_at)))
    return values


def is_unleased(table: Any) -> ColumnElement[bool]:
    """SQL: True if no process works on the row."""
    return col(table.holder).is_(None)


def is_registered(process_id: Any) -> ColumnElement[bool]:
    """SQL: True if the process is registered. One that is taken for dead must not take work."""
    return exists().where(col(ServerProcess.id) == process_id)


@contextmanager
def protect_leases_in_use(environment: Environment, *work_keys: int) -> Generator[None]:
    """Keep these leases from being freed during the block.

    `work_keys` has values of the work columns of `_LEASE_KEYS`.
    """
    environment.process.work_keys.update(work_keys)
    try:
        yield
    finally:
        environment.process.work_keys.subtract(work_keys)
        environment.process.work_keys += Counter()  # without those that are zero


class DatabaseReserved(Exception):
    """This process must not use the database.

    A command has it for itself, or has changed its secret keys.
    """


async def ensure_process_registered(environment: Environment) -> int:
    """Register this process unless it is registered, and return its id.

    Raises DatabaseReserved if this process must not use the database.
    """
    process = environment.process
    async with process.lock:
        if process.id is None:
            key = environment.new_id()

            def replace_registration(transaction: DatabaseTransaction) -> None:
                _replace_registration_and_free_leases(transaction, key)
                # no other transaction of this process is running
                _shorten_waits_after_steps(transaction)

            await environment.run_transaction(replace_registration)
            process.id = key
    return process.id


def _replace_registration_and_free_leases(
    transaction: DatabaseTransaction, process_id: int
) -> None:
    """Insert the row of this process, and end the leases of earlier runs of the process."""
    process, now = transaction.environment.process, transaction.environment.now()
    if transaction.connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        transaction.connection.execute(text(f"SELECT pg_advisory_xact_lock({REGISTRATION_LOCK})"))
    _require_process_may_use_database(transaction)
    former = delete(ServerProcess).where(
        col(ServerProcess.server) == process.server_id, col(ServerProcess.name) == process.name
    )
    transaction.connection.execute(former)
    values = {
        "id": process_id,
        "server": process.server_id,
        "name": process.name,
        "exclusive": process.exclusive_purpose,
        "host": socket.gethostname(),
        "ip_addresses": machine_ip_addresses(),
        "pid": os.getpid(),
        "version": installed_version(),
        "answers_requests": process.answers_requests,
        "boot": boot_id(),
        "heartbeat_count": 0,
        "heartbeat_at": milliseconds_since_boot(),
        "secret_box_keys": list(transaction.environment.secret_box.keys),
        "started_at": now,
        "seen_at": now,
    }
    transaction.connection.execute(insert(ServerProcess), values)
    free_orphaned_leases(transaction)


def _shorten_waits_after_steps(transaction: DatabaseTransaction, *, is_steady: bool = True) -> None:
    """Shorten waits if the clock of this server, or of one that has ended, was set back."""
    if store_clock_and_shorten_waits_if_set_back(
        transaction, is_steady=is_steady
    ) | delete_ended_clocks_and_shorten_waits_if_ahead(transaction):
        transaction.workers_to_wake |= set(WORKERS)


def _require_process_may_use_database(transaction: DatabaseTransaction) -> None:
    """Raise DatabaseReserved if this process must not use the database."""
    if transaction.environment.process.exclusive_purpose is not None:
        return
    reserved = select(col(ServerProcess.exclusive)).where(col(ServerProcess.exclusive).is_not(None))
    purpose = transaction.connection.execute(reserved.limit(1)).scalar()
    if purpose is not None:
        raise DatabaseReserved(f"The database is in use by a command that has to {purpose}.")
    needed = set(transaction.connection.execute(select(col(SecretBoxKey.name))).scalars())
    if transaction.environment.process.open_blocks and not needed <= set(
        transaction.environment.secret_box.keys
    ):
        raise DatabaseReserved("The secrets of the database were encrypted with other keys.")


async def load_other_processes(environment: Environment) -> Sequence[ColumnRow]:
    """Return `id`, `heartbeat_count`, `host` and `pid` of the other registered processes."""
    columns = (
        ServerProcess.id,
        ServerProcess.heartbeat_count,
        ServerProcess.host,
        ServerProcess.pid,
    )
    statement = select(*map(col, columns)).where(
        col(ServerProcess.id) != (environment.process.id or 0)
    )
    return await environment.database.read(statement)


def free_orphaned_leases(transaction: DatabaseTransaction) -> int:
    """End each lease without a registered holder; return the number of rows."""
    registered, count = select(col(ServerProcess.id)), 0
    for table in LEASED_TABLES:
        is_orphaned = [col(table.holder).is_not(None), col(table.holder).not_in(registered)]
        if table is QueueEntry:
            is_orphaned.append(col(QueueEntry.lease).is_not(None))  # as its index has it
        these = update(table).where(*is_orphaned).values(**freed_lease_values(table))
        count += transaction.connection.execute(these).rowcount
    if count:
        transaction.workers_to_wake |= set(WORKERS)
    return count


async def delete_server_registrations_and_free_leases(
    environment: Environment, server_id: str
) -> None:
    """Delete the registrations of a server that has certainly ended, with their leases."""

    def delete_processes(transaction: DatabaseTransaction) -> None:
        processes = delete(ServerProcess).where(col(ServerProcess.server) == server_id)
        transaction.connection.execute(processes)
        free_orphaned_leases(transaction)

    await environment.run_transaction(delete_processes)


async def free_own_leases_found_stale_twice(environment: Environment) -> int:
    """End the leases of this process that no work uses; return the number of rows.

    A commit can be lost after it was reported: an asynchronous standby that replaces the primary
    may have the start of a lease without its end. A commit can also succeed without a response. A
    row counts only if the last check found it, too, since its work may begin or end between the
    reading of the database and that of the work.
    """
    process = environment.process
    if process.id is None or process.abandoned_leases:  # an abandoned lease ends after a pause
        return 0
    parts = [
        select(
            literal_column(str(index)).label("place"), key.label("work"), lease.label("lease")
        ).where(col(LEASED_TABLES[index].holder) == process.id, lease.is_not(None))
        for index, (key, lease) in enumerate(_LEASE_KEYS)
    ]
    subquery = union_all(*parts).subquery()
    rows = await environment.database.read(select(*subquery.c))
    leased_rows = [LeasedRow(row.place, row.work, row.lease) for row in rows]
    work = set(process.work_keys).union(*(list_work() for list_work in process.sending_entry_ids))
    unused = frozenset(row for row in leased_rows if row.work_key not in work)
    stale, process.suspected_rows = process.suspected_rows & unused, unused
    if not stale:
        return 0

    def free_found_leases(transaction: DatabaseTransaction) -> int:
        count = 0
        for row in stale:  # work that has ended meanwhile has ended the lease
            table, (work_column, lease_column) = (
                LEASED_TABLES[row.table_index],
                _LEASE_KEYS[row.table_index],
            )
            leased = update(table).where(
                work_column == row.work_key, lease_column == row.lease_number
            )
            leased = leased.where(col(table.holder) == process.id)
            count += transaction.connection.execute(
                leased.values(**freed_lease_values(table))
            ).rowcount
        transaction.workers_to_wake |= set(WORKERS)
        return count

    row_count = await environment.run_heartbeat_transaction(free_found_leases)
    if row_count:
        log.warning("Released leases without work", extra={"rows": row_count})
    return row_count


async def delete_exclusive_registrations(environment: Environment) -> None:
    """Delete the registrations of commands that had the database for themselves and have ended."""
    these = delete(ServerProcess).where(col(ServerProcess.exclusive).is_not(None))
    await environment.run_transaction(
        lambda transaction: transaction.connection.execute(these).close()
    )


@asynccontextmanager
async def keep_process_registered(environment: Environment) -> AsyncGenerator[None]:
    """Keep this process registered, with heartbeats. Its leases end with the last block."""
    process = environment.process
    process.open_blocks += 1
    try:
        if process.open_blocks == 1:
            try:
                await ensure_process_registered(environment)
            except DatabaseReserved:
                raise
            except Exception:  # the heartbeats try again
                log.exception("Could not register this process")
            process.heartbeat_task = asyncio.create_task(
                _send_heartbeats_and_free_leases_forever(environment)
            )
        yield
    finally:
        process.open_blocks -= 1
        if not process.open_blocks:
            if process.heartbeat_task is not None:
                process.heartbeat_task.cancel()
                await asyncio.gather(process.heartbeat_task, return_exceptions=True)
            try:
                await deregister_process_and_free_leases(environment)
            except Exception:  # its leases end with its heartbeats
                log.exception("Could not deregister this process")


async def free_leases_of_stopped_worker(environment: Environment, table: Any) -> int:
    """End the leases of this process in a table; return the number of rows.

    Only after the worker of that table has ended in this process: no work uses the leases.
    """
    process_id = environment.process.id
    if process_id is None:
        return 0

    process, abandoned = environment.process, environment.process.abandoned_leases
    ended = [lease for lease in abandoned if lease.table is table]

    def free_worker_leases(transaction: DatabaseTransaction) -> int:
        _end_abandoned_leases(transaction, process_id, ended)
        release = update(table).where(col(table.holder) == process_id)
        count = transaction.connection.execute(release.values(**freed_lease_values(table))).rowcount
        if count:
            transaction.workers_to_wake |= set(WORKERS)
        return count

    process.abandoned_leases = [lease for lease in abandoned if lease.table is not table]
    return await environment.run_transaction(free_worker_leases)


async def deregister_process_and_free_leases(environment: Environment) -> None:
    """Delete the registration of this process, and end its leases."""
    process, process_id = environment.process, environment.process.id
    if process_id is not None:
        own_row = delete(ServerProcess).where(col(ServerProcess.id) == process_id)
        abandoned, process.abandoned_leases = process.abandoned_leases, []

        def delete_registration(transaction: DatabaseTransaction) -> None:
            _end_abandoned_leases(transaction, process_id, abandoned)
            transaction.connection.execute(own_row)
            free_orphaned_leases(transaction)

        process.id = None
        await environment.run_transaction(delete_registration)


async def _send_heartbeats_and_free_leases_forever(environment: Environment) -> None:
    """Send heartbeats until cancelled, and free dead and stale leases."""
    failing = False
    while True:
        await asyncio.sleep(environment.process.heartbeat_seconds)
        try:
            await send_heartbeat_or_register_again(environment)
            await deregister_dead_processes_and_free_leases(environment)
            await free_own_leases_found_stale_twice(environment)
            failing = False
        except DatabaseReserved as reserved:
            log.error("This process must not use the database", extra={"why": str(reserved)})
            if environment.process.on_reserved is not None:
                environment.process.on_reserved()
        except Exception:  # the store may be back at the next heartbeat
            if not failing:
                log.exception("Could not write the heartbeat of this process")
            failing = True


async def send_heartbeat_or_register_again(environment: Environment) -> None:
    """Increase the counter of this process.

    If another process has deleted the registration, register this process again.
    """
    process = environment.process
    process_id = await ensure_process_registered(environment)
    due_leases = [lease for lease in process.abandoned_leases if lease.due_at <= time.monotonic()]
    steady = is_clock_steady_or_note_step(environment)

    def increase_heartbeat_or_register_again(transaction: DatabaseTransaction) -> bool:
        values = {
            "heartbeat_count": ServerProcess.heartbeat_count + 1,
            "heartbeat_at": milliseconds_since_boot(),
        }
        own_row = update(ServerProcess).where(col(ServerProcess.id) == process_id)
        increased = own_row.values(**values, seen_at=transaction.environment.now())
        is_deleted = not transaction.connection.execute(increased).rowcount
        if is_deleted:
            _replace_registration_and_free_leases(transaction, process_id)
            for restore in process.restore_leases:
                restore(transaction)
        _shorten_waits_after_steps(transaction, is_steady=steady)
        _end_abandoned_leases(transaction, process_id, due_leases)
        return is_deleted

    if await environment.run_heartbeat_transaction(increase_heartbeat_or_register_again):
        log.warning("This process lost its leases; others may have done a part of its work")
    process.abandoned_leases = [
        lease for lease in process.abandoned_leases if lease not in due_leases
    ]
    if steady:
        process.clock_ahead_before_step = None  # the waits are shortened


def _end_abandoned_leases(
    transaction: DatabaseTransaction, process_id: int, abandoned_leases: Sequence[AbandonedLease]
) -> None:
    for lease in abandoned_leases:
        row = update(lease.table).where(*lease.conditions, col(lease.table.holder) == process_id)
        values = {**freed_lease_values(lease.table), **lease.values}
        transaction.connection.execute(row.values(values))
        transaction.workers_to_wake |= set(WORKERS)


def end_lease_at_later_heartbeat(
    environment: Environment, table: Any, *conditions: Any, delay_seconds: float, **values: Any
) -> None:
    """End the lease of failed work, and set these values, at a heartbeat after `delay_seconds`.

    If the process or the worker ends before, they are set at that time.
    """
    lease = AbandonedLease(table, conditions, time.monotonic() + delay_seconds, values)
    environment.process.abandoned_leases.append(lease)


async def deregister_dead_processes_and_free_leases(environment: Environment) -> int:
    """Delete the processes without a heartbeat, and end their leases.

    Return the number of processes.
    """
    process = environment.process
    columns = (
        ServerProcess.id,
        ServerProcess.heartbeat_count,
        ServerProcess.boot,
        ServerProcess.heartbeat_at,
    )
    statement = select(*map(col, columns))
    rows = await environment.run_heartbeat_transaction(
        lambda transaction: transaction.connection.execute(statement).all()
    )
    heartbeats = [
        Heartbeat(row.id, row.heartbeat_count, row.boot, row.heartbeat_at)
        for row in rows
        if row.id != process.id
    ]
    dead = process.observer.note_heartbeats_and_find_dead(
        heartbeats, is_one_machine=environment.database.dialect == "sqlite"
    )
    live_process_ids = frozenset(heartbeat.process_id for heartbeat in heartbeats)
    dead_process_ids, process.known_process_ids = (
        process.known_process_ids - live_process_ids,
        live_process_ids,
    )
    if not dead and not dead_process_ids:
        return 0
    count = await environment.run_heartbeat_transaction(
        lambda transaction: _deregister_unless_beating(transaction, dead)
    )
    if count:
        log.warning(
            "Processes without a heartbeat; releasing their leases", extra={"processes": count}
        )
    return count


def _deregister_unless_beating(
    transaction: DatabaseTransaction, dead_heartbeats: Sequence[Heartbeat]
) -> int:
    """Delete processes unless they have sent a heartbeat since; return the number deleted."""
    count = 0
    for heartbeat in dead_heartbeats:
        row = delete(ServerProcess).where(
            col(ServerProcess.id) == heartbeat.process_id,
            col(ServerProcess.heartbeat_count) == heartbeat.beat_count,
        )
        count += transaction.connection.execute(row).rowcount
    free_orphaned_leases(transaction)
    return count
