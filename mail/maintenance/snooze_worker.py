"""Return snoozed messages to their mailboxes when their time has come."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlmodel import col

from mail.maintenance.housekeeping import rounds
from mail.storage.mailbox_move import COLUMNS, relocate
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Turn, World
from models.store.columns import Picked, picked

log = logging.getLogger(__name__)

LOOK = 15.0  # seconds
SOON = 0.05  # seconds
STATE = (*COLUMNS, "snoozed_from")


async def run(world: World) -> None:
    """Return due messages until cancelled.

    Several processes can run it at the same time. Messages that became due while none was running
    return at the start.
    """
    while True:
        wait = LOOK
        try:
            if many := await wake(world):
                log.info("brought back what was snoozed", extra={"messages": many})
            wait = await _until_next(world)
        except Exception:  # the next poll may succeed
            log.exception("what was snoozed could not be brought back")
        await asyncio.sleep(wait)


async def _until_next(world: World) -> float:
    """Seconds until the next snoozed message is due, within the limits of the poll interval."""
    next_ = func.min(col(Message.snoozed_until)).label("next")
    (row,) = await world.database.read(select(next_).where(col(Message.snoozed_until).is_not(None)))
    if row.next is None:
        return LOOK
    seconds: float = (row.next - world.now()).total_seconds()
    return min(LOOK, max(SOON, seconds))


async def wake(world: World) -> int:
    """Return all due messages to their mailboxes. Returns their number."""
    asked = select(col(Message.id), col(Message.user_id)).where(*_due(world))
    return await rounds(world, asked.order_by(col(Message.snoozed_until), col(Message.id)), _wake)


def _due(world: World) -> list[Any]:
    """SQL conditions for snoozed messages that are due."""
    until = col(Message.snoozed_until)
    return [until.is_not(None), until <= world.now()]


async def _wake(world: World, user_id: int, ids: Sequence[int]) -> int:
    """Return these messages of a user if they are still due. Returns their number."""
    asked = select(*picked(Message, STATE)).where(col(Message.id).in_(ids), *_due(world))

    def return_batch(turn: Turn) -> int:
        rows = turn.connection.execute(asked.order_by(col(Message.id))).all()
        there = [row for row in rows if row.mailbox_id is not None]
        if there:
            _bring_back(turn, user_id, there)
        if gone := [row.id for row in rows if row.mailbox_id is None]:  # deleted
            ended = {"snoozed_until": None, "snoozed_from": None}
            turn.connection.execute(update(Message).where(col(Message.id).in_(gone)).values(ended))
        return len(rows)

    return await world.apply(return_batch, user_id)


def _bring_back(turn: Turn, user_id: int, rows: Sequence[Picked]) -> None:
    """Move messages to their former mailbox or INBOX, unread and at the top of the list."""
    homes = _homes(turn, user_id, rows)
    ended = {"snoozed_until": None, "snoozed_from": None}
    changes = {"seen": False, "listed_at": turn.world.now(), **ended}
    relocate(turn, user_id, rows, homes, changes)


def _homes(turn: Turn, user_id: int, rows: Sequence[Picked]) -> dict[int, Picked]:
    """The former mailbox of each message, or INBOX if that was deleted."""
    wanted = {row.snoozed_from for row in rows} - {None}
    asked = select(*picked(Mailbox, ("id", "path", "retention"))).where(
        col(Mailbox.user_id) == user_id,
        col(Mailbox.id).in_(wanted) | (col(Mailbox.path) == "INBOX"),
    )
    boxes = turn.connection.execute(asked).all()
    by_id = {box.id: box for box in boxes}
    inbox = next(box for box in boxes if box.path == "INBOX")
    return {row.id: by_id.get(row.snoozed_from, inbox) for row in rows}
