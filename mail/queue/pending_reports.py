"""Send the success reports that a stopped process still owes.

The transaction that writes a successful delivery also marks its report as owed. The transaction
that stores the report removes the mark, so each report is sent exactly once, even if a process ends
between the two.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import tuple_, update
from sqlmodel import col

from mail.envelope.delivery_jobs import Action, Job, Pace, Result
from mail.envelope.dsn_parameters import On
from mail.queue import message_body, recipient_leases
from mail.queue.delivery_results import reported
from mail.queue.dsn_requests import THERE
from models.queue.tables import Delivery
from models.runtime.environment import Turn, World
from models.store.prepared_statements import number

log = logging.getLogger(__name__)

MOST = 100  # recipients in one page

_PLACE = col(Delivery.submission_id), col(Delivery.id)
_OWED = (
    recipient_leases.RECIPIENTS.add_columns(
        *map(col, (Delivery.state, Delivery.last_code, Delivery.last_response)),
        *map(col, (Delivery.mx, Delivery.tls, Delivery.success_owed)),
    )
    .where(
        col(Delivery.success_owed).is_not(None),
        tuple_(*_PLACE) > tuple_(number("submission"), number("last")),
    )
    .order_by(*_PLACE)
    .limit(MOST)
)


async def make_good_regularly(world: World, pace: Pace) -> None:
    """Send the reports that two polls in a row find owed, since no process is making them."""
    known: frozenset[int] = frozenset()
    while True:
        try:
            known = await make_good(world, known)
        except Exception:  # the database may be available at the next poll
            log.exception("what is owed could not be read")
        await asyncio.sleep(pace.owed)


async def make_good(world: World, known: Collection[int]) -> frozenset[int]:
    """Send the success reports of `owed_before` that are still owed. Returns all owed ids."""
    given: dict[str, Any] = {"submission": 0, "last": 0}
    found = set[int]()
    while rows := await world.database.read(_OWED, given):
        found |= {row.id for row in rows}
        given |= {"submission": rows[-1].submission_id, "last": rows[-1].id}
        late = [row for row in rows if row.id in known]
        for job in recipient_leases.jobs(late, 0):
            keys = {recipient.delivery_id for recipient in job.recipients}
            try:
                await _report(world, job, [row for row in late if row.id in keys])
            except Exception:  # a report that fails must not stop the others
                log.exception("a report was not made", extra={"queue": job.queue_id})
    return frozenset(found)


async def _report(world: World, job: Job, rows: Sequence[Any]) -> None:
    """Send the owed success reports of one job, one DSN for each action."""
    if failed := [
        row.id for row in rows if row.state not in THERE
    ]:  # the sender already got a failure report
        await world.apply(lambda transaction: _forgotten(transaction, failed))
    rows = [row for row in rows if row.state in THERE]
    if rows:
        raw = await message_body.head(world, job)
        for action in sorted({row.success_owed for row in rows}):
            alike = {row.id: _result(row) for row in rows if row.success_owed == action}
            await reported(world, job, {}, {On.SUCCESS: alike}, raw)


def _forgotten(turn: Turn, keys: Sequence[int]) -> None:
    """Remove the marks of owed success reports."""
    these = update(Delivery).where(col(Delivery.id).in_(keys))
    turn.connection.execute(these.values(success_owed=None))


def _result(row: Any) -> Result:
    """The delivery result that is stored in a row."""
    action = Action(row.success_owed)
    here = None if action is Action.RELAYED else action
    return Result(row.state, row.last_code, row.last_response, row.mx, row.tls, here=here)
