"""Load and list queue entries: submissions with unfinished deliveries."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select, text, true
from sqlmodel import col

from models.queue.tables import DEFERRED, OPEN, Delivery, DeliveryState, answer
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.submission.tables import WAITING, Submission
from models.users.roles import Role
from models.users.tables import User
from resolvers import pagination
from resolvers.access import managed_users
from resolvers.context import Context
from resolvers.pagination import Scan, by_keys
from resolvers.sql_text import within
from resolvers.users.selection import MINE, Users, described

OLDEST = "queue-"
FEW = 1000  # up to this number deferred deliveries are read first
PLACE = (col(Submission.created_at), col(Submission.id))
SHOWN = frozenset(column.name for column in picked(Submission))
SERVED = frozenset(column.name for column in picked(Delivery)) - {"secret"}


class QueueName(StrEnum):
    """The queue of an entry by the state of its deliveries."""

    INCOMING = "INCOMING"
    ACTIVE = "ACTIVE"
    DEFERRED = "DEFERRED"
    HOLD = "HOLD"


@dataclass(frozen=True, slots=True)
class EntryWhere:
    """Conditions of a list of queue entries; all must hold."""

    queue_name: QueueName | None = None
    users: Users = MINE  # empty: all that the viewer sees
    sender: str | None = None  # a part of the address; "" is the null sender of reports
    recipient: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """The queue of an entry and its next attempt. None if no delivery is unfinished."""

    name: QueueName | None = None
    next_at: datetime | None = None


def visible(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for own entries, those of managed users, or all for an ADMIN.

    Messages of the platform have no user, so only an ADMIN sees them.
    """
    owner = col(Submission.user_id)
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    mine = owner == ctx.viewer.user_id
    if ctx.viewer.role is Role.DOMAIN_ADMIN and ctx.viewer.administers:
        return mine | owner.in_(select(col(User.id)).where(managed_users(ctx)))
    return mine


def waiting() -> ColumnElement[bool]:
    """Return the SQL condition of entries with an unfinished delivery, as in the partial index."""
    return cast("ColumnElement[bool]", text(f"submissions.{WAITING}"))


def unserved() -> ColumnElement[bool]:
    """Return the SQL condition of unfinished deliveries, as in the partial index."""
    return cast("ColumnElement[bool]", text(f"deliveries.{OPEN}"))


def name_of(row: Any) -> QueueName | None:
    """Return the queue of one delivery, or None if it is finished."""
    if row.next_at is None:
        return None
    if row.lease is not None:
        return QueueName.ACTIVE
    if row.held_at is not None:
        return QueueName.HOLD
    deferred = row.state is DeliveryState.DEFERRED
    return QueueName.DEFERRED if deferred else QueueName.INCOMING


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load queue entries by id, in the given order, also finished ones.

    None for ids that the viewer can't see.
    """
    seen = select(*picked(Submission)).where(visible(ctx))
    return await by_keys(ctx, seen, col(Submission.id), ids)


async def deliveries_of(ctx: Context, ids: list[int]) -> list[list[Picked]]:
    """Load the deliveries of entries in the order of the recipients. The caller checks access."""
    asked = select(*picked(Delivery, SERVED)).where(col(Delivery.submission_id).in_(ids))
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in await ctx.read(asked.order_by(col(Delivery.id))):
        found[row.submission_id].append(row)
    return [found[key] for key in ids]


async def standings(ctx: Context, ids: list[int]) -> list[Standing]:
    """Load the states of entries with one statement and one row for each entry."""
    leased, held = col(Delivery.lease).is_not(None), col(Delivery.held_at).is_not(None)
    asked = (
        select(
            col(Delivery.submission_id),
            _any(leased).label("active"),
            _any(held).label("held"),
            _any(col(Delivery.state) == DeliveryState.DEFERRED).label("deferred"),
            func.min(case((~leased & ~held, col(Delivery.next_at)))).label("next_at"),
        )
        .where(col(Delivery.submission_id).in_(ids), unserved())
        .group_by(col(Delivery.submission_id))
    )
    found = {row.submission_id: _standing(row) for row in await ctx.read(asked)}
    return [found.get(key, Standing()) for key in ids]


def _any(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.max(case((condition, 1), else_=0))


def _standing(row: Picked) -> Standing:
    name = QueueName.DEFERRED if row.deferred else QueueName.INCOMING
    if row.active:
        name = QueueName.ACTIVE
    elif row.held:
        name = QueueName.HOLD
    return Standing(name, row.next_at)


async def last_errors(ctx: Context, ids: list[int]) -> list[str | None]:
    """Load the last error reply to the unfinished deliveries of entries, or None."""
    columns = (Delivery.submission_id, Delivery.last_code, Delivery.last_response)
    asked = select(*map(col, columns)).where(
        col(Delivery.submission_id).in_(ids),
        unserved(),
        col(Delivery.last_code).is_not(None),
    )
    found: dict[int, str | None] = {}
    for row in await ctx.read(asked.order_by(col(Delivery.attempts), col(Delivery.id))):
        found[row.submission_id] = answer(row)
    return [found.get(key) for key in ids]


async def terms(ctx: Context, where: EntryWhere, *, left: bool = True) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses for visible entries that meet the conditions.

    With `only_open` the recipient must have an unfinished delivery. Raises the errors of the
    user selection.
    """
    found = [visible(ctx)]
    if where.users.given:
        theirs = select(col(User.id)).where(await described(ctx, where.users, path="filter"))
        found.append(col(Submission.user_id).in_(theirs))
    if where.sender is not None:
        sender = col(Submission.envelope_from)
        found.append(within(sender, where.sender) if where.sender else sender == "")
    if where.recipient:
        named = _those(within(col(Delivery.recipient), where.recipient), left=left)
        found.append(col(Submission.id).in_(named))
    if where.since is not None:
        found.append(col(Submission.created_at) >= where.since)
    if where.queue_name is not None:
        found += _in_queue(where.queue_name)
    if where.queue_name is QueueName.DEFERRED and (few := await _deferred(ctx)) is not None:
        found.append(col(Submission.id).in_(few))
    return found


async def _deferred(ctx: Context) -> set[int] | None:
    """Return the ids of entries with deferred deliveries, or None if they are too many.

    If there are more than MAX_DEFERRED_IDS, a page in list order finds the next ones soon. Few
    ones would need a check of every waiting entry.
    """
    again = cast("ColumnElement[bool]", text(f"deliveries.{DEFERRED}"))
    asked = select(col(Delivery.submission_id)).where(again)
    rows = await ctx.read(asked.order_by(col(Delivery.submission_id)).limit(FEW + 1))
    return {row.submission_id for row in rows} if len(rows) <= FEW else None


def _those(*conditions: ColumnElement[bool], left: bool = True) -> Select[int]:
    """Select the entries that have a delivery for which all conditions hold."""
    open_ = (unserved(),) if left else ()
    return select(col(Delivery.submission_id)).where(*open_, *conditions)


def _in_queue(name: QueueName) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses of a queue.

    Few deliveries are leased or held at a time; whether one is deferred is checked for each
    entry.
    """
    few = {"left": False}  # they have partial indexes without finished deliveries
    active = col(Submission.id).in_(_those(col(Delivery.lease).is_not(None), **few))
    held = col(Submission.id).in_(_those(col(Delivery.held_at).is_not(None), **few))
    this = col(Delivery.submission_id) == col(Submission.id)
    tried = _those(this, col(Delivery.state) == DeliveryState.DEFERRED)
    deferred = tried.correlate(Submission).exists()
    found: dict[QueueName, list[ColumnElement[bool]]] = {
        QueueName.ACTIVE: [active],
        QueueName.HOLD: [~active, held],
        QueueName.DEFERRED: [~active, ~held, deferred],
        QueueName.INCOMING: [~active, ~held, ~deferred],
    }
    return found[name]


async def page(ctx: Context, where: EntryWhere, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """Read a page of queue entries, the oldest first."""
    names = SHOWN.intersection(columns) | {"id", "created_at"}
    rows = select(*picked(Submission, names)).where(waiting(), *await terms(ctx, where))
    return await pagination.one(ctx, Scan(rows, ask, PLACE, falling=False))


async def count(ctx: Context, where: EntryWhere) -> int:
    """Count the queue entries that meet the conditions."""
    asked = select(func.count().label("many")).select_from(Submission)
    (row,) = await ctx.read(asked.where(waiting(), *await terms(ctx, where)))
    return int(row.many)


async def fitting(ctx: Context, ids: Sequence[int], where: EntryWhere) -> list[Picked]:
    """Load those of these entries that meet the conditions, in this order.

    Finished entries match every queue name.
    """
    conditions = await terms(ctx, replace(where, queue_name=None), left=False)
    if where.queue_name is not None:
        gone = ~col(Submission.id).in_(_those(col(Delivery.submission_id).in_(ids)))
        conditions.append(or_(and_(*_in_queue(where.queue_name)), gone))
    asked = select(*picked(Submission)).where(col(Submission.id).in_(ids), *conditions)
    found = {row.id: row for row in await ctx.read(asked)}
    return [found[key] for key in ids if key in found]
