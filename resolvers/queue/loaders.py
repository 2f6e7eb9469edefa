"""Load and list queue entries: submissions with unfinished deliveries."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select, text, true
from sqlmodel import col

from models.queue.tables import IS_DEFERRED, IS_OPEN, DeliveryState, QueueEntry, last_reply
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.submission.tables import IS_UNFINISHED, Submission
from models.users.roles import Role
from models.users.tables import User
from resolvers.access import is_managed_user
from resolvers.context import Context
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.sql_text import contains_text_sql
from resolvers.users.selection import NO_SELECTION, UserSelector, selection_condition

MAX_DEFERRED_IDS = 1000  # up to this number deferred deliveries are read first
ENTRY_COLUMNS = frozenset(column.name for column in select_columns(Submission))
DELIVERY_COLUMNS = frozenset(column.name for column in select_columns(QueueEntry)) - {"secret"}


class QueueEntryOrder(StrEnum):
    """The order of a list of queue entries; ties by id."""

    ARRIVED_AT_ASC = "ARRIVED_AT_ASC"
    ARRIVED_AT_DESC = "ARRIVED_AT_DESC"
    SIZE_ASC = "SIZE_ASC"
    SIZE_DESC = "SIZE_DESC"


_SORT_COLUMNS = {"ARRIVED_AT": SortColumn("created_at", datetime), "SIZE": SortColumn("size", int)}
LIST_ORDERS = list_orders(QueueEntryOrder, _SORT_COLUMNS)


class QueueName(StrEnum):
    """The queue of an entry by the state of its deliveries."""

    INCOMING = "INCOMING"
    ACTIVE = "ACTIVE"
    DEFERRED = "DEFERRED"
    HOLD = "HOLD"


@dataclass(frozen=True, slots=True)
class QueueEntryConditions:
    """Conditions of a list of queue entries; all must hold."""

    queue_name: QueueName | None = None
    user_selection: UserSelector = NO_SELECTION  # nothing given: entries of all visible users
    sender: str | None = None  # a part of the address; "" is the null sender of reports
    recipient: str | None = None
    since: datetime | None = None
    before: datetime | None = None


@dataclass(frozen=True, slots=True)
class QueueEntryState:
    """The queue of an entry and its next attempt. None if no delivery is unfinished."""

    queue_name: QueueName | None = None
    next_attempt_at: datetime | None = None


def is_visible_entry(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for own entries, those of managed users, or all for an ADMIN.

    Messages of the platform have no user, so only an ADMIN sees them.
    """
    owner_column = col(Submission.user_id)
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    is_own = owner_column == ctx.viewer.user_id
    if ctx.viewer.role is Role.DOMAIN_ADMIN and ctx.viewer.administered_domains:
        return is_own | owner_column.in_(select(col(User.id)).where(is_managed_user(ctx)))
    return is_own


def is_waiting_entry() -> ColumnElement[bool]:
    """Return the SQL condition of entries with an unfinished delivery, as in the partial index."""
    return cast("ColumnElement[bool]", text(f"submissions.{IS_UNFINISHED}"))


def is_open_delivery() -> ColumnElement[bool]:
    """Return the SQL condition of unfinished deliveries, as in the partial index."""
    return cast("ColumnElement[bool]", text(f"queue_entries.{IS_OPEN}"))


def queue_of_delivery_or_none(delivery: Any) -> QueueName | None:
    """Return the queue of one delivery, or None if it is finished."""
    if delivery.next_at is None:
        return None
    if delivery.lease is not None:
        return QueueName.ACTIVE
    if delivery.held_at is not None:
        return QueueName.HOLD
    is_deferred = delivery.state is DeliveryState.DEFERRED
    return QueueName.DEFERRED if is_deferred else QueueName.INCOMING


async def load_visible_entries_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load queue entries by id, in the given order, also finished ones.

    None for ids that the viewer can't see.
    """
    statement = select(*select_columns(Submission)).where(is_visible_entry(ctx))
    return await read_by_keys(ctx, statement, col(Submission.id), ids)


async def load_visible_waiting_ids_by_queue_id(
    ctx: Context, queue_ids: Sequence[str]
) -> dict[str, int]:
    """Load the ids of waiting queue entries that the viewer sees, by queue id."""
    statement = select(col(Submission.queue_id), col(Submission.id)).where(
        is_waiting_entry(), is_visible_entry(ctx), col(Submission.queue_id).in_(set(queue_ids))
    )
    return {row.queue_id: row.id for row in await ctx.read(statement)}


async def load_deliveries_by_entry(ctx: Context, entry_ids: list[int]) -> list[list[ColumnRow]]:
    """Load the deliveries of entries in the order of the recipients. The caller checks access."""
    statement = select(*select_columns(QueueEntry, DELIVERY_COLUMNS)).where(
        col(QueueEntry.submission_id).in_(entry_ids)
    )
    rows_by_entry: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in await ctx.read(statement.order_by(col(QueueEntry.id))):
        rows_by_entry[row.submission_id].append(row)
    return [rows_by_entry[key] for key in entry_ids]


async def load_entry_states(ctx: Context, entry_ids: list[int]) -> list[QueueEntryState]:
    """Load the states of entries with one statement and one row for each entry."""
    is_leased, is_held = col(QueueEntry.lease).is_not(None), col(QueueEntry.held_at).is_not(None)
    statement = (
        select(
            col(QueueEntry.submission_id),
            _any_row_sql(is_leased).label("active"),
            _any_row_sql(is_held).label("held"),
            _any_row_sql(col(QueueEntry.state) == DeliveryState.DEFERRED).label("deferred"),
            func.min(case((~is_leased & ~is_held, col(QueueEntry.next_at)))).label("next_at"),
        )
        .where(col(QueueEntry.submission_id).in_(entry_ids), is_open_delivery())
        .group_by(col(QueueEntry.submission_id))
    )
    state_by_entry = {
        row.submission_id: _queue_entry_state(row) for row in await ctx.read(statement)
    }
    return [state_by_entry.get(key, QueueEntryState()) for key in entry_ids]


def _any_row_sql(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.max(case((condition, 1), else_=0))


def _queue_entry_state(entry_row: ColumnRow) -> QueueEntryState:
    queue_name = QueueName.DEFERRED if entry_row.deferred else QueueName.INCOMING
    if entry_row.active:
        queue_name = QueueName.ACTIVE
    elif entry_row.held:
        queue_name = QueueName.HOLD
    return QueueEntryState(queue_name, entry_row.next_at)


async def load_last_errors_by_entry(ctx: Context, entry_ids: list[int]) -> list[str | None]:
    """Load the last error reply to the unfinished deliveries of entries, or None."""
    columns = (QueueEntry.submission_id, QueueEntry.last_code, QueueEntry.last_response)
    statement = select(*map(col, columns)).where(
        col(QueueEntry.submission_id).in_(entry_ids),
        is_open_delivery(),
        col(QueueEntry.last_code).is_not(None),
    )
    error_by_entry: dict[int, str | None] = {}
    for row in await ctx.read(statement.order_by(col(QueueEntry.attempts), col(QueueEntry.id))):
        error_by_entry[row.submission_id] = last_reply(row)
    return [error_by_entry.get(key) for key in entry_ids]


async def visible_entry_clauses(
    ctx: Context, conditions: QueueEntryConditions, *, only_open: bool = True
) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses for visible entries that meet the conditions.

    With `only_open` the recipient must have an unfinished delivery. Raises the errors of the
    user selection.
    """
    clauses = [is_visible_entry(ctx)]
    if conditions.user_selection.is_given:
        user_ids = select(col(User.id)).where(
            await selection_condition(ctx, conditions.user_selection)
        )
        clauses.append(col(Submission.user_id).in_(user_ids))
    if conditions.sender is not None:
        sender = col(Submission.envelope_from)
        clauses.append(
            contains_text_sql(sender, conditions.sender) if conditions.sender else sender == ""
        )
    if conditions.recipient:
        matching_entries = _select_entry_ids(
            contains_text_sql(col(QueueEntry.recipient), conditions.recipient), only_open=only_open
        )
        clauses.append(col(Submission.id).in_(matching_entries))
    if conditions.since is not None:
        clauses.append(col(Submission.created_at) >= conditions.since)
    if conditions.before is not None:
        clauses.append(col(Submission.created_at) < conditions.before)
    if conditions.queue_name is not None:
        clauses += _queue_clauses(conditions.queue_name)
    if (
        conditions.queue_name is QueueName.DEFERRED
        and (deferred_ids := await _load_deferred_entry_ids_if_few(ctx)) is not None
    ):
        clauses.append(col(Submission.id).in_(deferred_ids))
    return clauses


async def _load_deferred_entry_ids_if_few(ctx: Context) -> set[int] | None:
    """Return the ids of entries with deferred deliveries, or None if they are too many.

    If there are more than MAX_DEFERRED_IDS, a page in list order finds the next ones soon. Few
    ones would need a check of every waiting entry.
    """
    is_deferred = cast("ColumnElement[bool]", text(f"queue_entries.{IS_DEFERRED}"))
    statement = select(col(QueueEntry.submission_id)).where(is_deferred)
    rows = await ctx.read(
        statement.order_by(col(QueueEntry.submission_id)).limit(MAX_DEFERRED_IDS + 1)
    )
    return {row.submission_id for row in rows} if len(rows) <= MAX_DEFERRED_IDS else None


def _select_entry_ids(*conditions: ColumnElement[bool], only_open: bool = True) -> Select[int]:
    """Select the entries that have a delivery for which all conditions hold."""
    open_condition = (is_open_delivery(),) if only_open else ()
    return select(col(QueueEntry.submission_id)).where(*open_condition, *conditions)


def _queue_clauses(queue_name: QueueName) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses of a queue.

    Few deliveries are leased or held at a time; whether one is deferred is checked for each
    entry.
    """
    any_state = {"only_open": False}  # they have partial indexes without finished deliveries
    is_active = col(Submission.id).in_(
        _select_entry_ids(col(QueueEntry.lease).is_not(None), **any_state)
    )
    is_held = col(Submission.id).in_(
        _select_entry_ids(col(QueueEntry.held_at).is_not(None), **any_state)
    )
    is_of_entry = col(QueueEntry.submission_id) == col(Submission.id)
    deferred_deliveries = _select_entry_ids(
        is_of_entry, col(QueueEntry.state) == DeliveryState.DEFERRED
    )
    is_deferred = deferred_deliveries.correlate(Submission).exists()
    clauses_by_queue: dict[QueueName, list[ColumnElement[bool]]] = {
        QueueName.ACTIVE: [is_active],
        QueueName.HOLD: [~is_active, is_held],
        QueueName.DEFERRED: [~is_active, ~is_held, is_deferred],
        QueueName.INCOMING: [~is_active, ~is_held, ~is_deferred],
    }
    return clauses_by_queue[queue_name]


async def read_visible_waiting_entry_page(
    ctx: Context,
    conditions: QueueEntryConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: QueueEntryOrder = QueueEntryOrder.ARRIVED_AT_ASC,
) -> Page[ColumnRow]:
    """Read a page of queue entries. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    column_names = ENTRY_COLUMNS.intersection(columns) | {"id", list_order.column}
    statement = select(*select_columns(Submission, column_names)).where(
        is_waiting_entry(), *await visible_entry_clauses(ctx, conditions)
    )
    return await read_ordered_page(ctx, statement, Submission, page_request, list_order)


async def count_visible_waiting_entries(ctx: Context, conditions: QueueEntryConditions) -> int:
    """Count the queue entries that meet the conditions."""
    statement = select(func.count().label("many")).select_from(Submission)
    (row,) = await ctx.read(
        statement.where(is_waiting_entry(), *await visible_entry_clauses(ctx, conditions))
    )
    return int(row.many)


async def load_matching_or_finished_queue_entries(
    ctx: Context, entry_ids: Sequence[int], entry_conditions: QueueEntryConditions
) -> list[ColumnRow]:
    """Load those of these entries that meet the conditions, in this order.

    Finished entries match every queue name.
    """
    conditions = await visible_entry_clauses(
        ctx, replace(entry_conditions, queue_name=None), only_open=False
    )
    if entry_conditions.queue_name is not None:
        is_finished = ~col(Submission.id).in_(
            _select_entry_ids(col(QueueEntry.submission_id).in_(entry_ids))
        )
        conditions.append(or_(and_(*_queue_clauses(entry_conditions.queue_name)), is_finished))
    statement = select(*select_columns(Submission)).where(
        col(Submission.id).in_(entry_ids), *conditions
    )
    rows_by_id = {row.id: row for row in await ctx.read(statement)}
    return [rows_by_id[key] for key in entry_ids if key in rows_by_id]
