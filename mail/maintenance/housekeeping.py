"""Removing what has had its time: archived mail, old journal, tokens, blobs nobody needs."""

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
ROUND = 1000  # rows that one unit changes
TASKS_FOR = timedelta(days=7)  # after their end
IMPORTS_FOR = timedelta(days=30)  # likewise
SHOWN_FOR = timedelta(hours=6)  # challenges of security keys, and seeds nobody proved


@dataclass(frozen=True, slots=True)
class Tidied:
    """How many rows one round has removed, or, `expired`, put into the archive."""

    purged: int = 0
    expired: int = 0
    threads: int = 0
    audits: int = 0  # that have come to their end
    copies: int = 0  # of messages, for audits
    files: int = 0  # that nobody used
    held: int = 0  # messages that nobody let in
    announced: int = 0  # accounts that are written to about what is held
    shares: int = 0  # of files
    exports: int = 0  # of accounts
    archives: int = 0  # that nothing brings in any more
    imports: int = 0  # single ones
    receipts: int = 0
    replays: int = 0
    undos: int = 0
    tokens: int = 0
    throttles: int = 0
    credential_changes: int = 0
    events: int = 0  # of the security log
    steps: int = 0  # of messages on their way
    entries: int = 0  # of the administrative log
    settings: int = 0  # of their history
    usages: int = 0
    windows: int = 0  # of messages sent in a time
    turns: int = 0  # of places that get so many messages in a minute
    holds: int = 0  # accounts that had sent too many
    autoreply_senders: int = 0  # who may have another answer
    sieve_memories: int = 0  # of what scripts have to know
    greylisted: int = 0  # who came once, or has not come for long
    sent: int = 0  # references to what is on its way no longer
    compose_requests: int = 0  # that nobody opened in time
    compose_listeners: int = 0  # clients whose server has died
    addresses: int = 0  # temporary ones that have ended
    uploads: int = 0
    changes: int = 0
    tasks: int = 0
    app_passwords: int = 0
    challenges: int = 0
    seeds: int = 0
    key_values: int = 0
    blobs: int = 0
    objects: int = 0
    bytes: int = 0  # stored ones, of blobs and objects


async def run(world: World, stop: asyncio.Event, spool: Path | None = None) -> None:
    """Tidy now and then until told to stop; the store of large bytes is swept once a day.

    Several processes may do so: what one has removed the others do not find. `spool` is the
    folder of uploads that are still arriving.
    """
    at, wait = None, FIRST
    while not await _stopped(stop, wait):
        wait, now = EVERY, time.monotonic()
        due = at is None or now - at >= SWEEP
        try:
            done = await tidy(world, sweep=due)
            if spool is not None:
                await swept(world, spool)
        except Exception:  # whatever it was: the next round may do better, and must come
            log.exception("housekeeping failed")
            continue
        at = now if due else at
        log.info("tidied", extra=asdict(done))


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()


async def tidy(world: World, *, sweep: bool = True) -> Tidied:
    """Do one round.

    With `sweep` look also for changes of too great an age, objects no row names, and empty
    conversations.
    """
    expired = await _expire(world)
    purged, threads = await _purge(world)
    ended = _ended(world)
    removed = {name: await _remove(world, table, end) for name, (table, end) in ended.items()}
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
    """The rows whose time is over, by the names that they are counted under."""
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
    """SQL: whether a task, or a run of a single import, is there that has not ended."""
    task = exists().where(col(Task.id) == key, col(Task.finished_at).is_(None))
    run = exists().where(col(ConnectorRun.id) == key, col(ConnectorRun.finished_at).is_(None))
    return task | run


def _to_send() -> Any:
    """SQL: whether a message has a recipient that it is still to be sent to, or told of."""
    mine = col(Delivery.submission_id) == col(SubmissionBlob.submission_id)
    owed = exists().where(mine, col(Delivery.success_owed).is_not(None))
    return exists().where(mine, text(f"deliveries.{OPEN}")) | owed


def _imported(before: datetime) -> Any:
    """SQL: single imports whose runs ended before then."""
    ended = (col(ConnectorRun.finished_at) <= before) & (
        col(ConnectorRun.connector_id) == col(Connector.id)
    )
    waiting = col(Connector.next_run_at)
    return col(Connector.once) & waiting.is_(None) & exists().where(ended)


async def _expire(world: World) -> int:
    """Put into the archive what has reached its end, as if its owner had deleted it."""
    asked = select(col(Message.id), col(Message.user_id)).where(*_overdue(world))
    asked = asked.order_by(col(Message.expires), col(Message.id))
    return await rounds(world, asked, _archive)


async def rounds(
    world: World,
    asked: Select[int, int],
    work: Callable[[World, int, Sequence[int]], Awaitable[int]],
) -> int:
    """Do `work` to the rows of each owner, some at a time, till there are none; how many."""
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
    return [col(Message.expires) <= world.now(), col(Message.mailbox_id).is_not(None)]


async def _archive(world: World, user_id: int, ids: Sequence[int]) -> int:
    columns = [getattr(Message, name) for name in ("id", "mailbox_id", "uid", "size", "seen")]
    chosen = select(*columns).where(col(Message.id).in_(ids), *_overdue(world))

    def unit(turn: Turn) -> int:
        rows = turn.connection.execute(chosen.order_by(col(Message.id))).all()
        if rows:
            facts = {"mailbox": [r.mailbox_id for r in rows], "uid": [r.uid for r in rows]}
            entry = Entry(ChangeKind.MESSAGE_ARCHIVED, [row.id for row in rows], facts)
            last = turn.record(user_id, entry, at=world.now())
            _take_out(turn, [row.id for row in rows], last)
            _count_out(turn, user_id, rows, last)
        return len(rows)

    return await world.apply(unit, user_id)


def _take_out(turn: Turn, ids: Sequence[int], last: int) -> None:
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
            expires=None,  # it has come to pass: what is restored stays
        )
    )


def _count_out(turn: Turn, user_id: int, rows: Sequence[Picked], last: int) -> None:
    """Lower the counters of folders and account by these messages."""
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
    """Remove what the archive lets go, with conversations that end so; how many of each."""
    wanted = unfinished(col(Message.user_id))  # an audit comes first
    due = [col(Message.purge_at) <= world.now(), col(Message.mailbox_id).is_(None), ~wanted]
    asked = select(col(Message.id), col(Message.user_id)).where(*due)
    asked = asked.order_by(col(Message.purge_at), col(Message.id)).limit(ROUND)
    messages, threads = 0, 0
    while rows := await world.database.read(asked):
        ids = [row.id for row in rows]
        removal = delete(Message).where(col(Message.id).in_(ids), *due)

        def unit(turn: Turn, removal: Any = removal) -> tuple[int, int]:
            gone = turn.connection.execute(removal.returning(col(Message.thread_id))).scalars()
            left = list(gone)
            return len(left), _end(turn, set(left))

        # Their streams are held, or a delivery might just be taking up a conversation.
        many, ended = await world.apply(unit, *sorted({row.user_id for row in rows}))
        messages, threads = messages + many, threads + ended
        if len(rows) < ROUND or not many:
            break
    return messages, threads


def _end(turn: Turn, ids: Collection[int]) -> int:
    return turn.connection.execute(ended(ids)).rowcount


async def _empty_threads(world: World) -> int:
    """Remove conversations whose messages were deleted for good by other ways."""
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
    """Remove the rows that have ended, some at a time: nobody shall wait long behind it."""
    keys = inspect(table).local_table.primary_key.columns
    # Locked one by one: two that did this at once would wait for each other in a circle.
    some = select(*keys).where(ended).limit(ROUND).with_for_update(skip_locked=True)
    removal, gone = delete(table).where(tuple_(*keys).in_(some)), 0
    while True:
        many = await world.apply(lambda turn: turn.connection.execute(removal).rowcount)
        gone += many
        if many < ROUND:
            return gone


async def _audits(world: World) -> tuple[int, int]:
    """End audits whose time has come, and remove the copies of those that are over.

    How many of each. The record of an audit stays, unless it was removed before its time.
    """
    now = world.now()
    due = update(Audit).where(col(Audit.ended_at).is_(None), col(Audit.expires) <= now)
    due = due.values(ended_at=now).returning(col(Audit.id))
    ended = await world.apply(lambda turn: turn.connection.execute(due).scalars().all())
    if ended:
        log.info("audits have expired", extra={"audits": list(ended)})
    over = select(col(Audit.id)).where(col(Audit.ended_at).is_not(None))
    copies = await _remove(world, AuditCopy, col(AuditCopy.audit_id).in_(over))
    done = delete(Audit).where(col(Audit.removed), col(Audit.ended_at).is_not(None))
    await world.apply(lambda turn: turn.connection.execute(done).rowcount)
    return len(ended), copies


async def _files(world: World) -> int:
    """Remove files that nobody has fetched or shared for long; how many."""
    if not world.options.files_for:
        return 0
    shared = exists().where(col(FileShare.file_id) == col(File.id))
    unused = [col(File.used_at) <= world.now() - world.options.files_for, ~shared]
    asked = select(col(File.id), col(File.user_id)).where(*unused)

    async def remove(world: World, user_id: int, ids: Sequence[int]) -> int:
        removal = delete(File).where(col(File.id).in_(ids), *unused).returning(col(File.id))

        def unit(turn: Turn) -> int:
            gone = list(turn.connection.execute(removal).scalars())
            if gone:
                turn.record(user_id, Entry(ChangeKind.FILE_CHANGED, gone), at=world.now())
            return len(gone)

        return await world.apply(unit, user_id)

    return await rounds(world, asked.order_by(col(File.used_at), col(File.id)), remove)


async def _held(world: World) -> int:
    """Remove what was held for so long that it is kept no more; how many."""
    asked = select(col(QuarantineItem.id), col(QuarantineItem.user_id))
    asked = asked.where(col(QuarantineItem.expires_at) <= world.now())

    async def remove(world: World, user_id: int, ids: Sequence[int]) -> int:
        work = partial(quarantine.drop, user_id=user_id, ids=ids, did="expired")
        return await world.apply(work, user_id)

    order = col(QuarantineItem.expires_at), col(QuarantineItem.id)
    return await rounds(world, asked.order_by(*order), remove)


async def swept(world: World, spool: Path) -> int:
    """Remove what has arrived of uploads that are over, or whole; how many files.

    The row is made before the file, so a file without a row that waits for it is of no use.
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
