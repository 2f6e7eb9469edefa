"""Messages waiting to go out: who sees what of them, and lists of them."""

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
FEW = 1000  # recipients that are tried again: so many are looked up one by one
PLACE = (col(Submission.created_at), col(Submission.id))
SHOWN = frozenset(column.name for column in picked(Submission))
SERVED = frozenset(column.name for column in picked(Delivery)) - {"secret"}


class QueueName(StrEnum):
    """How far what waits has come."""

    INCOMING = "INCOMING"
    ACTIVE = "ACTIVE"
    DEFERRED = "DEFERRED"
    HOLD = "HOLD"


@dataclass(frozen=True, slots=True)
class EntryWhere:
    """Which entries to list; all conditions hold."""

    queue_name: QueueName | None = None
    users: Users = MINE  # nothing given: all that the viewer sees
    sender: str | None = None  # a part of it; "": nobody, as that of reports
    recipient: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an entry stands, of what of it is left to send; None where nothing is."""

    name: QueueName | None = None
    next_at: datetime | None = None


def visible(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for entries: one's own, those of accounts one manages, or all.

    What the platform sends by itself is nobody's, and so an ADMIN's to see.
    """
    owner = col(Submission.user_id)
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    mine = owner == ctx.viewer.user_id
    if ctx.viewer.role is Role.DOMAIN_ADMIN and ctx.viewer.administers:
        return mine | owner.in_(select(col(User.id)).where(managed_users(ctx)))
    return mine


def waiting() -> ColumnElement[bool]:
    """SQL: something of it is left to send. As the index has it."""
    return cast("ColumnElement[bool]", text(f"submissions.{WAITING}"))


def unserved() -> ColumnElement[bool]:
    """SQL: a delivery is not at its end. As the index has it."""
    return cast("ColumnElement[bool]", text(f"deliveries.{OPEN}"))


def name_of(row: Any) -> QueueName | None:
    """Where one delivery stands; None where it is at its end."""
    if row.next_at is None:
        return None
    if row.lease is not None:
        return QueueName.ACTIVE
    if row.held_at is not None:
        return QueueName.HOLD
    deferred = row.state is DeliveryState.DEFERRED
    return QueueName.DEFERRED if deferred else QueueName.INCOMING


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The entries with these ids, in this order, also of what has gone; None where none is seen."""
    seen = select(*picked(Submission)).where(visible(ctx))
    return await by_keys(ctx, seen, col(Submission.id), ids)


async def deliveries_of(ctx: Context, ids: list[int]) -> list[list[Picked]]:
    """The deliveries of entries that the viewer has reached, in the order they were named."""
    asked = select(*picked(Delivery, SERVED)).where(col(Delivery.submission_id).in_(ids))
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in await ctx.read(asked.order_by(col(Delivery.id))):
        found[row.submission_id].append(row)
    return [found[key] for key in ids]


async def standings(ctx: Context, ids: list[int]) -> list[Standing]:
    """Where these entries stand; in one statement, and a row for each, however many recipients."""
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
    """What was said last to those of these entries that are tried again; None where nothing was."""
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
    """The WHERE clause for what a filter finds of what the viewer sees.

    Recipients are those that are left to be served; without `left` any.
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
    """The submissions that wait for another attempt; None where they are many.

    Of many the next ones are soon found in the order of the list; to find few among all that waits
    we would have to ask each.
    """
    again = cast("ColumnElement[bool]", text(f"deliveries.{DEFERRED}"))
    asked = select(col(Delivery.submission_id)).where(again)
    rows = await ctx.read(asked.order_by(col(Delivery.submission_id)).limit(FEW + 1))
    return {row.submission_id for row in rows} if len(rows) <= FEW else None


def _those(*conditions: ColumnElement[bool], left: bool = True) -> Select[int]:
    """SQL: the submissions that have a delivery of which all this is true."""
    open_ = (unserved(),) if left else ()
    return select(col(Delivery.submission_id)).where(*open_, *conditions)


def _in_queue(name: QueueName) -> list[ColumnElement[bool]]:
    """SQL for a queue. Few are served or held at once; whether one was tried is asked of each."""
    few = {"left": False}  # by indexes of their own, which hold nothing that is at its end
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
    """A page of entries, the oldest first."""
    names = SHOWN.intersection(columns) | {"id", "created_at"}
    rows = select(*picked(Submission, names)).where(waiting(), *await terms(ctx, where))
    return await pagination.one(ctx, Scan(rows, ask, PLACE, falling=False))


async def count(ctx: Context, where: EntryWhere) -> int:
    """How many entries such a list has."""
    asked = select(func.count().label("many")).select_from(Submission)
    (row,) = await ctx.read(asked.where(waiting(), *await terms(ctx, where)))
    return int(row.many)


async def fitting(ctx: Context, ids: Sequence[int], where: EntryWhere) -> list[Picked]:
    """Those of these that a filter finds, in this order; of what has gone, whatever its queue."""
    conditions = await terms(ctx, replace(where, queue_name=None), left=False)
    if where.queue_name is not None:
        gone = ~col(Submission.id).in_(_those(col(Delivery.submission_id).in_(ids)))
        conditions.append(or_(and_(*_in_queue(where.queue_name)), gone))
    asked = select(*picked(Submission)).where(col(Submission.id).in_(ids), *conditions)
    found = {row.id: row for row in await ctx.read(asked)}
    return [found[key] for key in ids if key in found]
