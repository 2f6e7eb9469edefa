"""Correction of waits after the clock of a server was set back.

Times at which work is due are times of day, since they must outlast a reboot. If the clock of a
server is set back, they are too far ahead. So each heartbeat compares the time of day with the
time since the boot, and shortens all waits by the time by which the clock was set back. It does so
at the second heartbeat after the step, since a transaction that read the clock before the step may
commit a wait after the first one. A clock that was ahead between two heartbeats counts, too. A
clock that is set forward only makes waits end early.

The end of a hold that a user has chosen is a time of day by intention, and does not change.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Interval, delete, exists, func, literal, select, type_coerce, update
from sqlalchemy.sql.elements import ColumnElement
from sqlmodel import col

from models.addresses.tables import Address
from models.auth.credentials import Throttle
from models.certificates import Certificate
from models.connectors import Connector
from models.domains.dkim_keys import DkimKey, DkimKeyState
from models.notifications.push_channels import PushChannel
from models.notifications.webhooks import Webhook, WebhookDelivery, WebhookLane
from models.queue.rate_limits import RateHold, RateWindow
from models.queue.tables import Delivery
from models.routing.mta_sts import StsPolicy
from models.runtime.environment import Turn, World
from models.runtime.registration import Registration, boot_id, clock_ahead
from models.runtime.server_processes import ServerClock, ServerProcess
from models.spam.greylist import Greylisted
from models.spam.training import Lesson
from models.store.columns import Instant, insert_or, table_of
from models.submission.tables import Submission
from models.users.tables import Usage, User

log = logging.getLogger(__name__)

STEP = timedelta(seconds=30)  # smaller steps are ignored
KEPT = timedelta(days=1)  # after it the clock of a server that has ended is deleted
_SECOND = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Wait:
    """A column with the end of a wait of limited length, and the rows that it counts for."""

    table: Any
    column: Any
    where: Sequence[Any] = ()


_SCHEDULED = exists().where(
    col(Submission.id) == col(Delivery.submission_id),
    col(Submission.release_at).is_not(None),
    col(Submission.send_time).is_not(None),
)
_UNDO = (col(Submission.release_at).is_not(None), col(Submission.send_time).is_(None))
_UNCLAIMED = (col(Delivery.turn_at).is_(None), col(Delivery.lease).is_(None))
WAITS = (
    Wait(Delivery, Delivery.next_at, (*_UNCLAIMED, ~_SCHEDULED)),
    Wait(Submission, Submission.undo_until, _UNDO),
    Wait(Submission, Submission.release_at, _UNDO),
    Wait(Connector, Connector.next_run_at),
    Wait(Webhook, Webhook.retry_at),
    Wait(WebhookLane, WebhookLane.due_at),
    Wait(WebhookDelivery, WebhookDelivery.next_attempt_at),
    Wait(PushChannel, PushChannel.retry_at),
    Wait(PushChannel, PushChannel.window_at),
    Wait(Certificate, Certificate.acme_next_at),
    Wait(Lesson, Lesson.due_at),
    Wait(DkimKey, DkimKey.due_at, (col(DkimKey.state) == DkimKeyState.PENDING,)),
    Wait(StsPolicy, StsPolicy.retry_at),
    Wait(Greylisted, Greylisted.since),
    # windows in which something is counted, and locks
    Wait(Throttle, Throttle.until),
    Wait(RateWindow, RateWindow.until),
    Wait(RateHold, RateHold.until),
    Wait(RateHold, RateHold.told_until),
    Wait(Usage, Usage.until),
    Wait(Usage, Usage.told_until),
    Wait(User, User.received_until),
    Wait(User, User.received_told_until),
    Wait(Address, Address.forwarded_until),
    Wait(Address, Address.replied_until),
)


def is_ahead(until: datetime, now: datetime, longest: timedelta) -> bool:
    """True while a wait of at most `longest_wait` lasts.

    An end further ahead was computed before the clock was set back, so that wait is over.
    """
    return now < until <= now + longest


def follow_clock(turn: Turn, *, steady: bool = True) -> bool:
    """Store the clock of this server. If it was set back, shorten all waits by that time.

    If the clock is not steady, the step is handled at the next heartbeat. Return True if the waits
    were shortened.
    """
    process, now = turn.world.process, turn.world.now()
    boot, ahead = boot_id(), clock_ahead(now)
    stored_clocks = select(*map(col, (ServerClock.boot, ServerClock.ahead, ServerClock.seen_at)))
    own_clock = stored_clocks.where(col(ServerClock.server) == process.server).with_for_update()
    known = turn.connection.execute(own_clock).first()
    back = (_former_ahead(process, known, ahead) - ahead) * _MILLISECOND
    if known is not None and known.boot == boot:
        back = max(back, (known.ahead - ahead) * _MILLISECOND)
        if back > STEP and not steady:
            return False
    elif known is not None:  # it was set back by that time at least
        back = max(back, known.seen_at - now)
    new = insert_or(turn.connection.dialect.name, ServerClock)
    values = {"boot": boot, "ahead": ahead, "seen_at": now}
    stored = new.values(server=process.server, **values)
    turn.connection.execute(stored.on_conflict_do_update(index_elements=["server"], set_=values))
    process.noted_ahead = ahead
    if back > STEP:
        shorten_waits(turn, back)
    return back > STEP


def _former_ahead(process: Registration, known: Any, ahead: int) -> int:
    """Return how many milliseconds this process has seen its clock ahead.

    The time by which waits were shortened since is subtracted: another process that shortened all
    waits has lowered the stored clock of this server.
    """
    if process.was_ahead is None:
        return ahead
    followed = 0
    if known is not None and process.noted_ahead is not None:
        followed = max(process.noted_ahead - known.ahead, 0)
    return max(process.was_ahead - followed, ahead)


def observe_clock(world: World) -> bool:
    """Note a step of the clock since the last heartbeat; return False if there was one.

    Transactions that read the clock before the step may still be running then.
    """
    process, highest = world.process, world.clock.take_highest()
    if (highest - clock_ahead(world.now())) * _MILLISECOND <= STEP:
        return True
    process.was_ahead = max(highest, process.was_ahead or highest)
    return False


def forget_clocks(turn: Turn) -> bool:
    """Delete the clocks of servers that have ended.

    If one of them was ahead of this server's clock, shorten all waits by that time. Return True if
    the waits were shortened.
    """
    now = turn.world.now()
    ended = (
        col(ServerClock.server).not_in(select(col(ServerProcess.server))),
        col(ServerClock.server) != turn.world.process.server,
    )
    seen = turn.connection.execute(select(col(ServerClock.seen_at)).where(*ended)).scalars().all()
    useless = [at for at in seen if at > now + STEP or at < now - KEPT]
    if useless:
        these = col(ServerClock.seen_at).in_(useless)
        turn.connection.execute(delete(ServerClock).where(*ended, these))
    if max(useless, default=now) <= now:
        return False
    shorten_waits(turn, max(useless) - now)
    return True


def shorten_waits(turn: Turn, by: timedelta) -> None:
    """Make everything that waits due earlier by this time.

    That includes the waits that other servers wrote. The stored clocks of those servers become
    lower by the same time: if their clocks were set back too, they must not shorten the waits
    again.
    """
    now, dialect = turn.world.now(), turn.connection.dialect.name
    notes, changed = table_of(ServerClock), 0
    others = update(notes).where(notes.c.server != turn.world.process.server)
    lower = notes.c.ahead - by // _MILLISECOND
    earlier = _earlier(dialect, notes.c.seen_at, by)
    turn.connection.execute(others.values(ahead=lower, seen_at=earlier))
    for wait in WAITS:
        column = table_of(wait.table).c[wait.column.key]
        these = update(table_of(wait.table)).where(column > now, *wait.where)
        values = {column.name: _earlier(dialect, column, by)}
        changed += turn.connection.execute(these.values(values)).rowcount
    facts = {"seconds": round(by / _SECOND), "waits": changed}
    log.warning("a clock was set back: waits are shorter by that time", extra=facts)


def _earlier(dialect: str, column: Any, by: timedelta) -> ColumnElement[Any]:
    """Return SQL for the time in a column minus a difference."""
    if dialect == "sqlite":  # a text with microseconds, as SQLAlchemy stores it
        moved = func.strftime("%Y-%m-%d %H:%M:%f000", column, f"-{by / _SECOND:.3f} seconds")
        return type_coerce(moved, Instant)
    return type_coerce(column - literal(by, Interval), Instant)
