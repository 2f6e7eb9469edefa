"""List quarantined messages, and read their content, as far as the viewer may see them."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, select
from sqlmodel import col

from mail.storage import message_content, message_open
from mail.storage.message_content import StoredMessage
from models.errors import InvalidInput
from models.spam.quarantine import QuarantineItem
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import AdminPermission, Role, Scope, UserPermission, expand_scopes
from models.users.tables import DeletedUser, User
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import is_managed_user
from resolvers.context import Context
from resolvers.list_orders import (
    ListOrder,
    SortColumn,
    list_orders,
    read_list_pages,
    read_ordered_page,
)
from resolvers.messages import content
from resolvers.messages.content_access import write_content_read_to_security_log
from resolvers.pagination import read_by_keys
from resolvers.sql_text import contains_text_sql
from resolvers.users.selection import NO_SELECTION, UserSelector, selection_condition

READ_SCOPES = {Scope.READ, Scope.SETTINGS}  # one of these is enough
MAX_TEXT_LENGTH = 1 << 16  # characters
MAX_SCORE = 1e9


class QuarantineOrder(StrEnum):
    """The order of a list of quarantined messages; ties by id."""

    CREATED_AT_DESC = "CREATED_AT_DESC"
    CREATED_AT_ASC = "CREATED_AT_ASC"
    SCORE_DESC = "SCORE_DESC"
    SCORE_ASC = "SCORE_ASC"
    SIZE_DESC = "SIZE_DESC"
    SIZE_ASC = "SIZE_ASC"


_SORT_COLUMNS = {
    "CREATED_AT": SortColumn("created_at", datetime),
    "SCORE": SortColumn("score", float),
    "SIZE": SortColumn("size", int),
}
LIST_ORDERS = list_orders(QuarantineOrder, _SORT_COLUMNS)


@dataclass(frozen=True, slots=True)
class QuarantineConditions:
    """The conditions of a list of quarantined messages. All of them must hold."""

    user_selector: UserSelector = NO_SELECTION  # nothing given: messages of all visible users
    query: str | None = None  # part of subject, sender, recipient or name of a spam test
    score_above: float | None = None
    has_virus: bool | None = None
    received_since: datetime | None = None

    def __post_init__(self) -> None:
        """Raise InvalidInput if the score is out of range."""
        if self.score_above is not None and not -MAX_SCORE <= self.score_above <= MAX_SCORE:
            raise InvalidInput(
                "The score must be from -1e9 to 1e9.",
                constraint=ValidationConstraint.RANGE,
                path=["filter", "scoreAbove"],
            )


@dataclass(frozen=True, slots=True)
class UserQuarantineListing:
    """A request for a page of the quarantined messages of one user that meet conditions.

    The conditions name no user.
    """

    user_id: int
    page_request: PageRequest
    order: ListOrder
    columns: frozenset[str]
    conditions: QuarantineConditions


def is_visible_item_sql(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for messages the viewer may see.

    A user sees the own messages with the permission QUARANTINE, an administrator also those of
    managed users.
    """
    viewer = ctx.viewer
    if not READ_SCOPES & expand_scopes(viewer.scopes):
        return false()
    owner = col(QuarantineItem.user_id)
    if viewer.role is Role.USER and UserPermission.QUARANTINE not in viewer.permissions:
        return false()
    sees_own_only = (
        viewer.role is Role.DOMAIN_ADMIN and AdminPermission.QUARANTINE not in viewer.permissions
    )
    if viewer.role is Role.USER or sees_own_only:
        return owner == viewer.user_id
    if viewer.role.includes(Role.ADMIN):  # a store that begins with accounts sorts what it finds
        return owner.not_in(select(col(DeletedUser.id)))
    visible_user_ids = select(col(User.id)).where(col(User.id) == owner, is_managed_user(ctx))
    return visible_user_ids.correlate(QuarantineItem).exists()


def _select_visible_items(
    ctx: Context, column_names: Collection[str] | None = None
) -> Select[*tuple[Any, ...]]:
    """Return a SELECT of the visible quarantined messages."""
    return select(*select_columns(QuarantineItem, column_names)).where(is_visible_item_sql(ctx))


async def load_visible_items_by_id(ctx: Context, item_ids: list[int]) -> list[ColumnRow | None]:
    """Load quarantined messages in the order of the IDs; None for one the viewer may not see."""
    return await read_by_keys(ctx, _select_visible_items(ctx), col(QuarantineItem.id), item_ids)


async def _visible_and_filtered_item_clauses(
    ctx: Context, conditions: QuarantineConditions
) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses of a list."""
    terms = [is_visible_item_sql(ctx), *_message_clauses(conditions)]
    if conditions.user_selector.is_given:
        statement = select(col(User.id)).where(
            await selection_condition(ctx, conditions.user_selector, path="filter")
        )
        terms.append(col(QuarantineItem.user_id).in_(statement))
    return terms


def _message_clauses(conditions: QuarantineConditions) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses of the conditions on the messages, without that on the users."""
    terms: list[ColumnElement[bool]] = []
    if conditions.query:
        columns = ("subject", "sender", "recipient", "from_name", "from_address", "tests")
        condition: ColumnElement[bool] = false()
        for name in columns:
            condition |= contains_text_sql(
                func.coalesce(getattr(QuarantineItem, name), ""), conditions.query
            )
        terms.append(condition)
    if conditions.score_above is not None:
        terms.append(col(QuarantineItem.score) > conditions.score_above)
    if conditions.has_virus is not None:
        empty = col(QuarantineItem.virus).is_(None)
        terms.append(~empty if conditions.has_virus else empty)
    if conditions.received_since is not None:
        terms.append(col(QuarantineItem.created_at) >= conditions.received_since)
    return terms


async def read_item_page(
    ctx: Context,
    conditions: QuarantineConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: QuarantineOrder = QuarantineOrder.CREATED_AT_DESC,
) -> Page[ColumnRow]:
    """Return a page of quarantined messages. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    names = {"id", list_order.column, *columns}
    rows = select(*select_columns(QuarantineItem, names)).where(
        *await _visible_and_filtered_item_clauses(ctx, conditions)
    )
    return await read_ordered_page(ctx, rows, QuarantineItem, page_request, list_order)


async def count_items(ctx: Context, conditions: QuarantineConditions) -> int:
    """Return the number of quarantined messages that match."""
    count_statement = select(func.count().label("many")).select_from(QuarantineItem)
    clauses = await _visible_and_filtered_item_clauses(ctx, conditions)
    (row,) = await ctx.read(count_statement.where(*clauses))
    return int(row.many)


async def load_visible_item_pages_by_user(
    ctx: Context, listings: list[UserQuarantineListing]
) -> list[Page[ColumnRow]]:
    """Load pages of quarantined messages. Raises InvalidInput for a cursor of another order."""
    return await read_list_pages(ctx, QuarantineItem, listings, _select_listed_items)


async def count_visible_items_by_user(
    ctx: Context, listings: list[UserQuarantineListing]
) -> list[int]:
    """Return the number of quarantined messages of each listing."""
    statements = [_select_listed_items(ctx, listing, ["id"]) for listing in listings]
    return await pagination.count_rows(ctx, statements)


def _select_listed_items(
    ctx: Context, listing: UserQuarantineListing, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return _select_visible_items(ctx, columns).where(
        col(QuarantineItem.user_id) == listing.user_id, *_message_clauses(listing.conditions)
    )


async def load_visible_messages_and_log_reads(
    ctx: Context, item_ids: list[int]
) -> list[StoredMessage | None]:
    """Load the content of quarantined messages by ID; None for one the viewer may not see.

    Reading another user's message is written to that user's security log.
    """
    rows = await ctx.read(
        _select_visible_items(ctx, content.UNFILED_SOURCE_COLUMNS).where(
            col(QuarantineItem.id).in_(item_ids)
        )
    )
    await write_content_read_to_security_log(
        ctx, {row.user_id for row in rows} - {ctx.viewer.user_id}
    )
    opened_ones = await message_open.open_messages_unlogged(
        ctx.environment, rows, ctx.read, message_content.QUARANTINE_QUERIES
    )
    messages_by_id = {message.row.id: message for message in opened_ones}
    return [messages_by_id.get(key) for key in item_ids]


async def truncated_plain_text(message: StoredMessage) -> str | None:
    """Return up to 65,536 characters of the plain text, made from HTML if necessary."""
    text = await content.plain_text(message)
    return text and text[:MAX_TEXT_LENGTH]
