"""Train the spam filter in the background from what users do with their mail.

Messages moved to Junk or marked `$Junk` are learned as spam. Messages moved out of Junk (but not to
Trash), marked `$NotJunk` or released from quarantine are learned as good mail. The last action
counts.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.scanners.body_stream import Body
from mail.scanners.circuit_breaker import Down
from mail.scanners.rspamd_training import LESSONS, taught
from mail.storage import message_content
from mail.storage.blobs.errors import Corrupt
from models.errors import NotFound
from models.events import wakeups
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.runtime import leases
from models.runtime.environment import Turn, World
from models.spam.training import Lesson
from models.store.columns import Picked, insert_or, picked

log = logging.getLogger(__name__)

MARKS = {"$junk": True, "junk": True, "$notjunk": False, "notjunk": False, "nonjunk": False}
QUIET = (SpecialUse.TRASH, SpecialUse.SNOOZED)  # a move from Junk to these is no vote
BATCH = 10  # lessons per lease
ATTEMPTS = 60
PAUSE, LONGEST = timedelta(minutes=1), timedelta(hours=1)
IDLE = 60.0  # seconds between two looks without a wake-up


async def moved(world: World, session: AsyncSession, rows: Sequence[Picked], to: Picked) -> None:
    """Enqueue lessons for messages that are moved to a mailbox, in the same transaction."""
    if not world.options.rspamd_learn or not rows:
        return
    places = {row.mailbox_id for row in rows if row.mailbox_id is not None} | {to.id}
    asked = select(col(Mailbox.id), col(Mailbox.special_use)).where(col(Mailbox.id).in_(places))
    found = (await (await session.connection()).execute(asked)).all()
    uses = {row.id: row.special_use for row in found}
    spam = uses.get(to.id) == SpecialUse.JUNK
    if uses.get(to.id) in QUIET:
        return
    was_junk = [uses.get(row.mailbox_id) == SpecialUse.JUNK for row in rows]
    ids = [row.id for row, was in zip(rows, was_junk, strict=True) if was is not spam]
    await world.join(session, lambda turn: note(turn, ids, spam=spam))


def marked(turn: Turn, ids: Sequence[int], keywords: Collection[str]) -> None:
    """Enqueue lessons for messages that get a junk or not-junk keyword."""
    said = {MARKS[word.lower()] for word in keywords if word.lower() in MARKS}
    if turn.world.options.rspamd_learn and len(said) == 1:
        note(turn, ids, spam=said.pop())


def released(turn: Turn, ids: Sequence[int]) -> None:
    """Enqueue lessons for messages that are released from quarantine."""
    if turn.world.options.rspamd_learn:
        note(turn, ids, spam=False)


def note(turn: Turn, ids: Sequence[int], *, spam: bool) -> None:
    """Enqueue one lesson per message. A newer lesson replaces the older one."""
    if not ids:
        return
    new = insert_or(turn.connection.dialect.name, Lesson)
    names = ("spam", "turn", "due_at", "attempts", "holder")
    again = {name: getattr(new.excluded, name) for name in names}
    upsert = new.on_conflict_do_update(index_elements=["message_id"], set_=again)
    same = {"spam": spam, "turn": turn.world.key(), "due_at": turn.world.now(), "attempts": 0}
    same["holder"] = None
    turn.connection.execute(upsert, [{"message_id": key, **same} for key in ids])
    turn.bells.add(wakeups.LESSONS)


async def run(world: World) -> None:
    """Train the spam filter with enqueued lessons until cancelled."""
    async with leases.registered(world):
        await _teach_all(world)


async def _teach_all(world: World) -> None:
    with world.wakeups.listen([wakeups.LESSONS]) as bell:
        while True:
            bell.clear()
            try:
                while await teach(world):
                    pass
            except Exception:  # leased lessons become due again
                log.exception("the spam filter could not be taught")
            try:
                async with asyncio.timeout(IDLE):  # unlike wait_for, it loses no wake-up
                    await bell.wait()
            except TimeoutError:
                continue


async def teach(world: World) -> bool:
    """Train with the next lessons. Returns False if there are none or the filter is down."""
    if not world.options.rspamd_learn:
        return False
    lessons = await _claim(world)
    try:
        with leases.in_use(world, *(lesson.message_id for lesson in lessons)):
            for place, lesson in enumerate(lessons):
                try:
                    await _teach(world, lesson)
                except Down:
                    await _later(world, lessons[place:])
                    return False
    except Exception:
        these = col(Lesson.message_id).in_([lesson.message_id for lesson in lessons])
        leases.abandon(world, Lesson, these, after=PAUSE.total_seconds())
        raise
    return bool(lessons)


async def _claim(world: World) -> Sequence[Picked]:
    """Lease the next due lessons for this process."""
    now = world.now()
    due = select(col(Lesson.message_id)).where(col(Lesson.due_at) <= now, leases.is_free(Lesson))
    due = due.order_by(col(Lesson.due_at), col(Lesson.message_id)).limit(BATCH)
    if not await world.database.read(due):
        return ()  # an idle worker writes nothing
    process_id = await leases.ensure_registered(world)
    async with world.write() as session:
        connection = await session.connection()
        ids = (await connection.execute(due.with_for_update(skip_locked=True))).scalars().all()
        these = col(Lesson.message_id).in_(ids), leases.is_registered(process_id)
        claim = update(Lesson).where(*these)
        claim = claim.values(holder=process_id, attempts=Lesson.attempts + 1)
        return (await connection.execute(claim.returning(*picked(Lesson)))).all()


async def _teach(world: World, lesson: Picked) -> None:
    """Train with one lesson and delete it. Deleted and damaged messages are skipped."""
    body = await _body(world, lesson.message_id)
    try:
        result = "refused" if body is None else await taught(world, body, spam=lesson.spam)
    except (Corrupt, NotFound):  # noticed while streaming
        result = "refused"
    LESSONS.add("spam" if lesson.spam else "ham", result)
    await _done(world, lesson)


async def _done(world: World, lesson: Picked) -> None:
    """Delete a lesson unless a newer one has replaced it."""
    this = delete(Lesson).where(
        col(Lesson.message_id) == lesson.message_id, col(Lesson.turn) == lesson.turn
    )
    await world.apply(lambda turn: turn.connection.execute(this).close())


async def _body(world: World, key: int) -> Body | None:
    """Return the message as received; None if it is deleted, damaged or encrypted."""
    columns = (col(Message.id), col(Message.user_id), col(Message.blob_id), col(Message.structure))
    asked = select(*columns, col(Message.encrypted)).where(col(Message.id) == key)
    rows = [row for row in await world.database.read(asked) if not row.encrypted]
    found = await message_content.sources(world, rows)
    try:
        return Body(found[0].size, found[0].whole) if found else None
    except Corrupt:  # already logged by the reader
        return None


async def _later(world: World, lessons: Sequence[Picked]) -> None:
    """Schedule retries of lessons. Lessons with too many attempts are deleted."""
    now = world.now()
    over = [lesson for lesson in lessons if lesson.attempts >= ATTEMPTS]
    for lesson in over:
        LESSONS.add("spam" if lesson.spam else "ham", "given_up")
        await _done(world, lesson)

    def unit(turn: Turn) -> None:
        for lesson in lessons:
            this = update(Lesson).where(
                col(Lesson.message_id) == lesson.message_id, col(Lesson.turn) == lesson.turn
            )
            due_at = _due(now, lesson.attempts)
            turn.connection.execute(this.values(due_at=due_at, holder=None))

    await world.apply(unit)


def _due(now: datetime, attempts: int) -> datetime:
    """Return the time of the next attempt. The delay doubles up to MAX_RETRY_DELAY."""
    pause: timedelta = PAUSE * 2 ** min(attempts - 1, 10)
    return now + min(pause, LONGEST)
