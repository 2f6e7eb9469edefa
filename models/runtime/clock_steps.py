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
from models.identity_providers import IdentityLink
from models.notifications.push_channels import PushChannel
from models.notifications.webhooks import Webhook, WebhookDelivery, WebhookLane
from models.queue.rate_limits import RateLimitHold, RateWindow
from models.queue.tables import QueueEntry
from models.routing.mta_sts import MtaStsPolicy
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.registration import ProcessRegistration, boot_id, clock_ahead_of_boot
from models.runtime.server_processes import ServerClock, ServerProcess
from models.spam.greylist import GreylistEntry
from models.spam.training import TrainingMessage
from models.store.columns import UtcDateTime, core_table, insert_with_conflict
from models.submission.tables import Submission
from models.users.tables import Usage, User

log = logging.getLogger(__name__)

LARGEST_IGNORED_STEP = timedelta(seconds=30)  # smaller steps are ignored
CLOCK_RETENTION = timedelta(days=1)  # after it the clock of a server that has ended is deleted
_SECOND = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True)
class WaitColumn:
    """A column with the end of a wait of limited length, and the rows that it counts for."""

    table: Any
    column: Any
    conditions: Sequence[Any] = ()


_IS_SCHEDULED = exists().where(
    col(Submission.id) == col(QueueEntry.submission_id),
    col(Submission.release_at).is_not(None),
    col(Submission.send_at).is_not(None),
)
_IS_UNDO_WINDOW = (col(Submission.release_at).is_not(None), col(Submission.send_at).is_(None))
_IS_UNCLAIMED = (col(QueueEntry.ready_at).is_(None), col(QueueEntry.lease).is_(None))
WAIT_COLUMNS = (
    WaitColumn(QueueEntry, QueueEntry.next_at, (*_IS_UNCLAIMED, ~_IS_SCHEDULED)),
    WaitColumn(Submission, Submission.undoable_until, _IS_UNDO_WINDOW),
    WaitColumn(Submission, Submission.release_at, _IS_UNDO_WINDOW),
    WaitColumn(Connector, Connector.next_run_at),
    WaitColumn(Webhook, Webhook.retry_at),
    WaitColumn(WebhookLane, WebhookLane.due_at),
    WaitColumn(WebhookDelivery, WebhookDelivery.next_attempt_at),
    WaitColumn(PushChannel, PushChannel.retry_at),
    WaitColumn(PushChannel, PushChannel.window_at),
    WaitColumn(Certificate, Certificate.acme_next_at),
    WaitColumn(TrainingMessage, TrainingMessage.due_at),
    WaitColumn(DkimKey, DkimKey.due_at, (col(DkimKey.state) == DkimKeyState.PENDING,)),
    WaitColumn(MtaStsPolicy, MtaStsPolicy.retry_at),
    WaitColumn(GreylistEntry, GreylistEntry.since),
    WaitColumn(IdentityLink, IdentityLink.check_due_at),
    # windows in which something is counted, and locks
    WaitColumn(Throttle, Throttle.until),
    WaitColumn(RateWindow, RateWindow.until),
    WaitColumn(RateLimitHold, RateLimitHold.until),
    WaitColumn(RateLimitHold, RateLimitHold.notified_until),
    WaitColumn(Usage, Usage.until),
    WaitColumn(Usage, Usage.notified_until),
    WaitColumn(User, User.received_until),
    WaitColumn(User, User.received_notified_until),
    WaitColumn(Address, Address.forwarded_until),
    WaitColumn(Address, Address.replied_until),
)


def is_plausible_wait_running(until: datetime, now: datetime, longest_wait: timedelta) -> bool:
    """True while a wait of at most `longest_wait` lasts.

    An end further ahead was computed before the clock was set back, so that wait is over.
    """
    return now < until <= now + longest_wait


def store_clock_and_shorten_waits_if_set_back(
    transaction: DatabaseTransaction, *, is_steady: bool = True
) -> bool:
    """Store the clock of this server. If it was set back, shorten all waits by that time.

    If the clock is not steady, the step is handled at the next heartbeat. Return True if the waits
    were shortened.
    """
    process, now = transaction.environment.process, transaction.environment.now()
    boot, ahead = boot_id(), clock_ahead_of_boot(now)
    stored_clocks = select(*map(col, (ServerClock.boot, ServerClock.ahead, ServerClock.seen_at)))
    own_clock = stored_clocks.where(col(ServerClock.server) == process.server_id).with_for_update()
    stored_clock = transaction.connection.execute(own_clock).first()
    set_back_by = (_clock_ahead_before_step_ms(process, stored_clock, ahead) - ahead) * _MILLISECOND
    if stored_clock is not None and stored_clock.boot == boot:
        set_back_by = max(set_back_by, (stored_clock.ahead - ahead) * _MILLISECOND)
        if set_back_by > LARGEST_IGNORED_STEP and not is_steady:
            return False
    elif stored_clock is not None:  # it was set back by that time at least
        set_back_by = max(set_back_by, stored_clock.seen_at - now)
    insert = insert_with_conflict(transaction.connection.dialect.name, ServerClock)
    values = {"boot": boot, "ahead": ahead, "seen_at": now}
    stored = insert.values(server=process.server_id, **values)
    transaction.connection.execute(
        stored.on_conflict_do_update(index_elements=["server"], set_=values)
    )
    process.stored_clock_ahead = ahead
    if set_back_by > LARGEST_IGNORED_STEP:
        shorten_waits_and_lower_other_clocks(transaction, set_back_by)
    return set_back_by > LARGEST_IGNORED_STEP


def _clock_ahead_before_step_ms(
    registration: ProcessRegistration, stored_clock: Any, clock_ahead_ms: int
) -> int:
    """Return how many milliseconds this process has seen its clock ahead.

    The time by which waits were shortened since is subtracted: another process that shortened all
    waits has lowered the stored clock of this server.
    """
    if registration.clock_ahead_before_step is None:
        return clock_ahead_ms
    followed = 0
    if stored_clock is not None and registration.stored_clock_ahead is not None:
        followed = max(registration.stored_clock_ahead - stored_clock.ahead, 0)
    return max(registration.clock_ahead_before_step - followed, clock_ahead_ms)


def is_clock_steady_or_note_step(environment: Environment) -> bool:
    """Note a step of the clock since the last heartbeat; return False if there was one.

    Transactions that read the clock before the step may still be running then.
    """
    process, highest = environment.process, environment.clock.take_highest_reading_ahead_of_boot()
    if (highest - clock_ahead_of_boot(environment.now())) * _MILLISECOND <= LARGEST_IGNORED_STEP:
        return True
    process.clock_ahead_before_step = max(highest, process.clock_ahead_before_step or highest)
    return False


def delete_ended_clocks_and_shorten_waits_if_ahead(transaction: DatabaseTransaction) -> bool:
    """Delete the clocks of servers that have ended.

    If one of them was ahead of this server's clock, shorten all waits by that time. Return True if
    the waits were shortened.
    """
    now = transaction.environment.now()
    is_ended = (
        col(ServerClock.server).not_in(select(col(ServerProcess.server))),
        col(ServerClock.server) != transaction.environment.process.server_id,
    )
    seen_at = (
        transaction.connection.execute(select(col(ServerClock.seen_at)).where(*is_ended))
        .scalars()
        .all()
    )
    unusable = [
        at for at in seen_at if at > now + LARGEST_IGNORED_STEP or at < now - CLOCK_RETENTION
    ]
    if unusable:
        is_unusable = col(ServerClock.seen_at).in_(unusable)
        transaction.connection.execute(delete(ServerClock).where(*is_ended, is_unusable))
    if max(unusable, default=now) <= now:
        return False
    shorten_waits_and_lower_other_clocks(transaction, max(unusable) - now)
    return True


def shorten_waits_and_lower_other_clocks(
    transaction: DatabaseTransaction, difference: timedelta
) -> None:
    """Make everything that waits due earlier by this time.

    That includes the waits that other servers wrote. The stored clocks of those servers become
    lower by the same time: if their clocks were set back too, they must not shorten the waits
    again.
    """
    now, dialect = transaction.environment.now(), transaction.connection.dialect.name
    clocks, changed = core_table(ServerClock), 0
    other_clocks = update(clocks).where(
        clocks.c.server != transaction.environment.process.server_id
    )
    lower = clocks.c.ahead - difference // _MILLISECOND
    earlier = _earlier_time_sql(dialect, clocks.c.seen_at, difference)
    transaction.connection.execute(other_clocks.values(ahead=lower, seen_at=earlier))
    for wait in WAIT_COLUMNS:
        column = core_table(wait.table).c[wait.column.key]
        these = update(core_table(wait.table)).where(column > now, *wait.conditions)
        values = {column.name: _earlier_time_sql(dialect, column, difference)}
        changed += transaction.connection.execute(these.values(values)).rowcount
    facts = {"seconds": round(difference / _SECOND), "waits": changed}
    log.warning("The clock was set back; waits are shorter by that time", extra=facts)


def _earlier_time_sql(dialect: str, column: Any, difference: timedelta) -> ColumnElement[Any]:
    """Return SQL for the time in a column minus a difference."""
    if dialect == "sqlite":  # a text with microseconds, as SQLAlchemy stores it
        moved = func.strftime(
            "%Y-%m-%d %H:%M:%f000", column, f"-{difference / _SECOND:.3f} seconds"
        )
        return type_coerce(moved, UtcDateTime)
    return type_coerce(column - literal(difference, Interval), UtcDateTime)
