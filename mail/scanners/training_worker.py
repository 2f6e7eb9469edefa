"""What users do with their mail teaches the spam filter: never at once, so nobody waits for it.

What is moved into Junk, or marked `$Junk`, is learned as spam; what is moved out of it, but not to
the trash, or marked `$NotJunk`, as good mail; so is what was held, and is let in. Who changes his
mind has the last word.
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
QUIET = (SpecialUse.TRASH, SpecialUse.SNOOZED)  # to come there from Junk says nothing
BATCH = 10  # lessons that a worker has in hand
ATTEMPTS = 60
PAUSE, LONGEST = timedelta(minutes=1), timedelta(hours=1)
IDLE = 60.0  # seconds until it looks unasked


async def moved(world: World, session: AsyncSession, rows: Sequence[Picked], to: Picked) -> None:
    """Note, in the unit that moves messages of one account to a folder, what that says of them."""
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
    """Note what it says of messages that they are given these keywords."""
    said = {MARKS[word.lower()] for word in keywords if word.lower() in MARKS}
    if turn.world.options.rspamd_learn and len(said) == 1:
        note(turn, ids, spam=said.pop())


def released(turn: Turn, ids: Sequence[int]) -> None:
    """Note that these messages, which were held, are no spam, in the unit that lets them in."""
    if turn.world.options.rspamd_learn:
        note(turn, ids, spam=False)


def note(turn: Turn, ids: Sequence[int], *, spam: bool) -> None:
    """Let it be learned that these messages are spam, or are not."""
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
    """Teach what is to be learned, until cancelled."""
    async with leases.registered(world):
        await _teach_all(world)


async def _teach_all(world: World) -> None:
    with world.wakeups.listen([wakeups.LESSONS]) as bell:
        while True:
            bell.clear()
            try:
                while await teach(world):
                    pass
            except Exception:  # a worker's edge: what it had in hand is due again later
                log.exception("the spam filter could not be taught")
            try:
                async with asyncio.timeout(IDLE):  # unlike wait_for it is called off at a bell, too
                    await bell.wait()
            except TimeoutError:
                continue


async def teach(world: World) -> bool:
    """Teach the next lessons; False where there are none, or the filter does not answer."""
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
    body = await _body(world, lesson.message_id)
    try:
        result = "refused" if body is None else await taught(world, body, spam=lesson.spam)
    except (Corrupt, NotFound):  # found on the way
        result = "refused"
    LESSONS.add("spam" if lesson.spam else "ham", result)
    await _done(world, lesson)


async def _done(world: World, lesson: Picked) -> None:
    this = delete(Lesson).where(
        col(Lesson.message_id) == lesson.message_id, col(Lesson.turn) == lesson.turn
    )
    await world.apply(lambda turn: turn.connection.execute(this).close())


async def _body(world: World, key: int) -> Body | None:
    """The message as it came; None where it is gone, damaged, or encrypted, which says nothing."""
    columns = (col(Message.id), col(Message.user_id), col(Message.blob_id), col(Message.structure))
    asked = select(*columns, col(Message.encrypted)).where(col(Message.id) == key)
    rows = [row for row in await world.database.read(asked) if not row.encrypted]
    found = await message_content.sources(world, rows)
    try:
        return Body(found[0].size, found[0].whole) if found else None
    except Corrupt:  # which was logged where it was read
        return None


async def _later(world: World, lessons: Sequence[Picked]) -> None:
    """Try these again, unless that was done often enough."""
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
    pause: timedelta = PAUSE * 2 ** min(attempts - 1, 10)
    return now + min(pause, LONGEST)
