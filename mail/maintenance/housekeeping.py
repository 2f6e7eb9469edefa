"""Housekeeping: delete expired rows, purge deleted messages, and free unused blobs."""

import asyncio
import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Select,
    bindparam,
    case,
    delete,
    exists,
    inspect,
    select,
    text,
    tuple_,
    update,
)
from sqlmodel import SQLModel, col

from mail.delivery import quarantine
from mail.files import resumable_file
from mail.files.upload_removal import delete_expired
from mail.maintenance import expired_addresses, journal_retention
from mail.storage.audit_copies import unfinished
from mail.storage.blobs.garbage_collector import collect
from mail.storage.thread_assignment import ended
from models.admin.admin_log import AdminLogEntry
from models.admin.audits import Audit, AuditCopy
from models.admin.key_values import KeyValue
from models.admin.settings import SettingChange
from models.admin.tasks import Task, Undo
from models.auth.application_passwords import AppPassword
from models.auth.credential_changes import CredentialChange, old_changes
from models.auth.credentials import CALM, PENDING, AccessToken, Throttle
from models.auth.second_factors import TotpSeed, WebauthnChallenge
from models.auth.security_log import AuthEvent
from models.autoreply import AutoreplySender
from models.connectors import Connector, ConnectorRun
from models.events.journal import ChangeKind, Entry
from models.files.blobs import SubmissionBlob, Upload
from models.files.tables import File, FileShare
from models.filters.sieve_scripts import SieveMemory
from models.mailboxes.tables import Mailbox
from models.messages.message_trace import MessageStep
from models.messages.tables import Message, Receipt, Thread
from models.queue.rate_limits import RateHold, RateWindow
from models.queue.tables import OPEN, Delivery, PlaceTurn
from models.runtime.environment import Turn, World
from models.runtime.idempotency import Replay
from models.runtime.server_processes import ServerProcess
from models.spam.greylist import Greylisted
from models.spam.quarantine import QuarantineItem
from models.store.columns import Picked, table_of
from models.submission.compose_requests import ComposeListener, ComposeRequest
from models.transfer import Export, ImportArchive
from models.users.tables import Usage, User

log = logging.getLogger(__name__)

FIRST = 60.0  # seconds after the start
EVERY = 900.0  # seconds between rounds
SWEEP = 86_400.0  # seconds
ROUND = 1000  # rows in one transaction
TASKS_FOR = timedelta(days=7)  # after the end of a task
IMPORTS_FOR = timedelta(days=30)  # after the end of a single import
SHOWN_FOR = timedelta(hours=6)  # WebAuthn challenges, and TOTP secrets that were not confirmed


@dataclass(frozen=True, slots=True)
class Tidied:
    """The number of rows that one round deleted. `expired` messages became deleted messages.

    The field names are the keys of the log entry.
    """

    purged: int = 0
    expired: int = 0
    threads: int = 0
    audits: int = 0  # that ended
    copies: int = 0  # audit copies of messages
    files: int = 0  # unused files
    held: int = 0  # expired quarantine items
    announced: int = 0  # users that got a quarantine digest
    shares: int = 0  # expired file shares
    exports: int = 0  # expired exports of users
    archives: int = 0  # import archives without a running task
    imports: int = 0  # finished single imports
    receipts: int = 0
    replays: int = 0
    undos: int = 0
    tokens: int = 0
    throttles: int = 0
    credential_changes: int = 0
    events: int = 0  # entries of the security log
    steps: int = 0  # delivery trace steps
    entries: int = 0  # entries of the admin log
    settings: int = 0  # entries of the settings history
    usages: int = 0
    windows: int = 0  # sending windows
    turns: int = 0  # delivery slots of destinations
    holds: int = 0  # users that had reached a sending limit
    autoreply_senders: int = 0  # recipients of vacation replies whose interval is over
    sieve_memories: int = 0  # stored values of Sieve scripts
    greylisted: int = 0  # greylisting entries
    sent: int = 0  # blob references of finished submissions
    compose_requests: int = 0  # expired compose requests
    compose_listeners: int = 0  # of processes that have stopped
    addresses: int = 0  # expired temporary addresses
    uploads: int = 0
    changes: int = 0
    tasks: int = 0
    app_passwords: int = 0
    challenges: int = 0
    seeds: int = 0
    key_values: int = 0
    blobs: int = 0
    objects: int = 0
    bytes: int = 0  # stored bytes of the deleted blobs and objects


async def run(world: World, stop: asyncio.Event, spool: Path | None = None) -> None:
    """Run a round every `ROUND_INTERVAL` seconds until `stop` is set; once a day it sweeps.

    Several processes can run it at the same time. `upload_folder` has the unfinished uploads.
    """
    at, wait = None, FIRST
    while not await _stopped(stop, wait):
        wait, now = EVERY, time.monotonic()
        due = at is None or now - at >= SWEEP
        try:
            done = await tidy(world, sweep=due)
            if spool is not None:
                await swept(world, spool)
        except Exception:  # any error: the next round must still run
            log.exception("housekeeping failed")
            continue
        at = now if due else at
        log.info("tidied", extra=asdict(done))


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    """Wait for `stop`, at most this number of seconds. Returns True if it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()


async def tidy(world: World, *, sweep: bool = True) -> Tidied:
    """Run one round and return its counts.

    With `sweep`, it also deletes journal entries by age, objects without a row, and empty threads.
    """
    expired = await _expire(world)
    purged, threads = await _purge(world)
    ended = _ended(world)
    removed = {
        name: await _remove(world, table, condition) for name, (table, condition) in ended.items()
    }
    files = await _files(world)
    held, announced = await _held(world), await quarantine.announce(world)
    audits, copies = await _audits(world)
    uploads = await delete_expired(world)
    addresses = await expired_addresses.remove(world)
    changes = await journal_retention.trim(world, aged=sweep)
    if sweep:
        threads += await _empty_threads(world)
    await world.database.refresh_statistics()
    kept = world.options.restore_window
    collected = await collect(world, world.blobs, keep=kept, sweep=sweep)
    return Tidied(
        purged=purged,
        expired=expired,
        threads=threads,
        audits=audits,
        copies=copies,
        files=files,
        held=held,
        announced=announced,
        uploads=uploads,
        addresses=addresses,
        changes=changes,
        blobs=collected.rows,
        objects=collected.objects,
        bytes=collected.bytes,
        **removed,
    )


def _ended(world: World) -> dict[str, tuple[type[SQLModel], Any]]:
    """The tables with expired rows, and the condition for them, by the name of the count."""
    now, options = world.now(), world.options
    return {
        "shares": (FileShare, col(FileShare.expires_at) <= now),
        "exports": (Export, col(Export.expires_at) <= now),
        "archives": (ImportArchive, ~_working(col(ImportArchive.task_id))),
        "imports": (Connector, _imported(now - IMPORTS_FOR)),
        "receipts": (Receipt, col(Receipt.at) <= now - options.receipts_for),
        "replays": (Replay, col(Replay.at) <= now - options.replays_for),
        "undos": (Undo, col(Undo.expires_at) <= now),
        "tokens": (
            AccessToken,
            (col(AccessToken.expires_at) <= now)
            | (col(AccessToken.pending) & (col(AccessToken.created_at) <= now - PENDING)),
        ),
        "credential_changes": (CredentialChange, old_changes(now)),
        "throttles": (Throttle, col(Throttle.until) <= now - CALM),
        "events": (AuthEvent, col(AuthEvent.created_at) <= now - options.authlog_for),
        "steps": (MessageStep, col(MessageStep.at) <= now - options.trace_for),
        "entries": (AdminLogEntry, col(AdminLogEntry.at) <= now - options.adminlog_for),
        "settings": (SettingChange, col(SettingChange.at) <= now - options.adminlog_for),
        "usages": (Usage, col(Usage.until) <= now),
        "windows": (RateWindow, col(RateWindow.until) <= now),
        "turns": (PlaceTurn, col(PlaceTurn.until) <= now),
        "holds": (RateHold, col(RateHold.told_until) <= now),
        "autoreply_senders": (AutoreplySender, col(AutoreplySender.until) <= now),
        "sieve_memories": (SieveMemory, col(SieveMemory.until) <= now),
        "greylisted": (Greylisted, col(Greylisted.until) <= now),
        "sent": (SubmissionBlob, ~_to_send()),
        "compose_requests": (ComposeRequest, col(ComposeRequest.expires_at) <= now),
        "compose_listeners": (
            ComposeListener,
            col(ComposeListener.holder).not_in(select(col(ServerProcess.id))),
        ),
        "tasks": (Task, col(Task.finished_at) <= now - TASKS_FOR),
        "app_passwords": (AppPassword, col(AppPassword.expires_at) <= now),
        "key_values": (KeyValue, col(KeyValue.expires_at) <= now),
        "challenges": (WebauthnChallenge, col(WebauthnChallenge.created_at) <= now - SHOWN_FOR),
        "seeds": (
            TotpSeed,
            col(TotpSeed.seed).is_(None) & (col(TotpSeed.pending_at) <= now - SHOWN_FOR),
        ),
    }


def _working(key: Any) -> Any:
    """SQL: a task or connector run with this id exists and is not finished."""
    task = exists().where(col(Task.id) == key, col(Task.finished_at).is_(None))
    run = exists().where(col(ConnectorRun.id) == key, col(ConnectorRun.finished_at).is_(None))
    return task | run


def _to_send() -> Any:
    """SQL: a submission has an open queue entry, or still owes a success report."""
    mine = col(Delivery.submission_id) == col(SubmissionBlob.submission_id)
    owed = exists().where(mine, col(Delivery.success_owed).is_not(None))
    return exists().where(mine, text(f"deliveries.{OPEN}")) | owed


def _imported(before: datetime) -> Any:
    """SQL: a single import with a run that ended before this time."""
    ended = (col(ConnectorRun.finished_at) <= before) & (
        col(ConnectorRun.connector_id) == col(Connector.id)
    )
    waiting = col(Connector.next_run_at)
    return col(Connector.once) & waiting.is_(None) & exists().where(ended)


async def _expire(world: World) -> int:
    """Move expired messages to the deleted messages. Returns their number."""
    asked = select(col(Message.id), col(Message.user_id)).where(*_overdue(world))
    asked = asked.order_by(col(Message.expires), col(Message.id))
    return await rounds(world, asked, _archive)


async def rounds(
    world: World,
    asked: Select[int, int],
    work: Callable[[World, int, Sequence[int]], Awaitable[int]],
) -> int:
    """Call `process` with user id and row ids, in batches, until no rows are left.

    `process` returns the number of processed rows. Returns their sum.
    """
    done = 0
    while rows := await world.database.read(asked.limit(ROUND)):
        theirs: defaultdict[int, list[int]] = defaultdict(list)
        for row in rows:
            theirs[row.user_id].append(row.id)
        before = done
        for user_id, ids in theirs.items():
            done += await work(world, user_id, ids)
        if len(rows) < ROUND or done == before:
            break
    return done


def _overdue(world: World) -> list[Any]:
    """SQL conditions for expired messages in a mailbox."""
    return [col(Message.expires) <= world.now(), col(Message.mailbox_id).is_not(None)]


async def _archive(world: World, user_id: int, ids: Sequence[int]) -> int:
    """Move these expired messages of a user to the deleted messages. Returns their number."""
    columns = [getattr(Message, name) for name in ("id", "mailbox_id", "uid", "size", "seen")]
    chosen = select(*columns).where(col(Message.id).in_(ids), *_overdue(world))

    def delete_batch(turn: Turn) -> int:
        rows = turn.connection.execute(chosen.order_by(col(Message.id))).all()
        if rows:
            facts = {"mailbox": [r.mailbox_id for r in rows], "uid": [r.uid for r in rows]}
            entry = Entry(ChangeKind.MESSAGE_ARCHIVED, [row.id for row in rows], facts)
            last = turn.record(user_id, entry, at=world.now())
            _take_out(turn, [row.id for row in rows], last)
            _count_out(turn, user_id, rows, last)
        return len(rows)

    return await world.apply(delete_batch, user_id)


def _take_out(turn: Turn, ids: Sequence[int], last: int) -> None:
    """Remove messages from their mailboxes and set the time of their purge."""
    now, options = turn.world.now(), turn.world.options
    path = select(col(Mailbox.path)).where(col(Mailbox.id) == col(Message.mailbox_id))
    turn.connection.execute(
        update(Message)
        .where(col(Message.id).in_(ids))
        .values(
            mailbox_id=None,
            modseq=last,
            archived_at=now,
            archived_from=path.scalar_subquery(),
            archived_mailbox_id=Message.mailbox_id,
            purge_at=case(
                (col(Message.draft), now + options.undo_window), else_=now + options.archive_for
            ),
            expires=None,  # a restored message does not expire again
        )
    )


def _count_out(turn: Turn, user_id: int, rows: Sequence[Picked], last: int) -> None:
    """Lower the counters of mailboxes and user by these messages."""
    counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.mailbox_id].update(total=1, unseen=not row.seen, size=row.size)
    table = table_of(Mailbox)
    lower = {name: table.c[name] - bindparam(f"by_{name}") for name in ("total", "unseen", "size")}
    statement = (
        update(table)
        .where(table.c.id == bindparam("key"))
        .values(**lower, modseq=last, modify_index=last)
    )
    given = [
        {"key": key, **{f"by_{name}": many[name] for name in lower}} for key, many in counts.items()
    ]
    turn.connection.execute(statement, given)
    size = sum(row.size for row in rows)
    turn.connection.execute(
        update(User)
        .where(col(User.id) == user_id)
        .values(used=User.used - size, message_count=User.message_count - len(rows))
    )


async def _purge(world: World) -> tuple[int, int]:
    """Delete messages at the end of their retention, and threads without messages.

    Returns the number of messages and of threads.
    """
    wanted = unfinished(col(Message.user_id))  # a running audit needs them
    due = [col(Message.purge_at) <= world.now(), col(Message.mailbox_id).is_(None), ~wanted]
    asked = select(col(Message.id), col(Message.user_id)).where(*due)
    asked = asked.order_by(col(Message.purge_at), col(Message.id)).limit(ROUND)
    messages, threads = 0, 0
    while rows := await world.database.read(asked):
        ids = [row.id for row in rows]
        removal = delete(Message).where(col(Message.id).in_(ids), *due)

        def delete_batch(turn: Turn, removal: Any = removal) -> tuple[int, int]:
            gone = turn.connection.execute(removal.returning(col(Message.thread_id))).scalars()
            left = list(gone)
            return len(left), _end(turn, set(left))

        # The streams are locked, since a delivery could add a message to one of these threads.
        many, ended = await world.apply(delete_batch, *sorted({row.user_id for row in rows}))
        messages, threads = messages + many, threads + ended
        if len(rows) < ROUND or not many:
            break
    return messages, threads


def _end(turn: Turn, ids: Collection[int]) -> int:
    """Delete those of these threads that have no messages. Returns their number."""
    return turn.connection.execute(ended(ids)).rowcount


async def _empty_threads(world: World) -> int:
    """Delete all threads without messages. Returns their number."""
    used = exists().where(col(Message.thread_id) == col(Thread.id))
    reached, gone = 0, 0
    while True:
        asked = select(col(Thread.id), col(Thread.user_id)).where(~used, col(Thread.id) > reached)
        rows = await world.database.read(asked.order_by(col(Thread.id)).limit(ROUND))
        if not rows:
            return gone
        ids, reached = [row.id for row in rows], rows[-1].id
        owners = sorted({row.user_id for row in rows})
        gone += await world.apply(partial(_end, ids=ids), *owners)


async def _remove(world: World, table: type[SQLModel], ended: Any) -> int:
    """Delete the rows that meet a condition, in short transactions. Returns their number."""
    keys = inspect(table).local_table.primary_key.columns
    # SKIP LOCKED, since two processes that delete the same rows could deadlock.
    some = select(*keys).where(ended).limit(ROUND).with_for_update(skip_locked=True)
    removal, gone = delete(table).where(tuple_(*keys).in_(some)), 0
    while True:
        many = await world.apply(
            lambda transaction: transaction.connection.execute(removal).rowcount
        )
        gone += many
        if many < ROUND:
            return gone


async def _audits(world: World) -> tuple[int, int]:
    """End expired audits, and delete the copies of ended audits.

    Returns the number of audits and of copies. An audit's row is kept, unless it was removed.
    """
    now = world.now()
    due = update(Audit).where(col(Audit.ended_at).is_(None), col(Audit.expires) <= now)
    due = due.values(ended_at=now).returning(col(Audit.id))
    ended = await world.apply(
        lambda transaction: transaction.connection.execute(due).scalars().all()
    )
    if ended:
        log.info("audits have expired", extra={"audits": list(ended)})
    over = select(col(Audit.id)).where(col(Audit.ended_at).is_not(None))
    copies = await _remove(world, AuditCopy, col(AuditCopy.audit_id).in_(over))
    done = delete(Audit).where(col(Audit.removed), col(Audit.ended_at).is_not(None))
    await world.apply(lambda transaction: transaction.connection.execute(done).rowcount)
    return len(ended), copies


async def _files(world: World) -> int:
    """Delete files that were neither fetched nor shared for the retention time.

    Returns their number.
    """
    if not world.options.files_for:
        return 0
    shared = exists().where(col(FileShare.file_id) == col(File.id))
    unused = [col(File.used_at) <= world.now() - world.options.files_for, ~shared]
    asked = select(col(File.id), col(File.user_id)).where(*unused)

    async def delete_files(world: World, user_id: int, ids: Sequence[int]) -> int:
        removal = delete(File).where(col(File.id).in_(ids), *unused).returning(col(File.id))

        def delete_batch(turn: Turn) -> int:
            gone = list(turn.connection.execute(removal).scalars())
            if gone:
                turn.record(user_id, Entry(ChangeKind.FILE_CHANGED, gone), at=world.now())
            return len(gone)

        return await world.apply(delete_batch, user_id)

    return await rounds(world, asked.order_by(col(File.used_at), col(File.id)), delete_files)


async def _held(world: World) -> int:
    """Delete expired quarantine items. Returns their number."""
    asked = select(col(QuarantineItem.id), col(QuarantineItem.user_id))
    asked = asked.where(col(QuarantineItem.expires_at) <= world.now())

    async def delete_items(world: World, user_id: int, ids: Sequence[int]) -> int:
        work = partial(quarantine.drop, user_id=user_id, ids=ids, did="expired")
        return await world.apply(work, user_id)

    order = col(QuarantineItem.expires_at), col(QuarantineItem.id)
    return await rounds(world, asked.order_by(*order), delete_items)


async def swept(world: World, spool: Path) -> int:
    """Delete upload files without an unfinished upload. Returns their number.

    The row of an upload is inserted before its file, so a file without a row is unused.
    """
    keys, gone = await asyncio.to_thread(resumable_file.arrived, spool), 0
    waiting = select(col(Upload.id)).where(
        col(Upload.blob_name).is_(None), col(Upload.expires_at) > world.now()
    )
    for begin in range(0, len(keys), ROUND):
        part = keys[begin : begin + ROUND]
        rows = await world.database.read(waiting.where(col(Upload.id).in_(part)))
        useless = set(part).difference(row.id for row in rows)
        gone += await asyncio.to_thread(resumable_file.sweep, spool, useless)
    return gone
