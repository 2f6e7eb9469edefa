"""The messages that a bulk request selects, with checks of them and of their mailboxes."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sqlalchemy import ColumnElement, func, select, true
from sqlmodel import col

from models.errors import NotFound, StaleObject
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import raw_values
from resolvers.access import is_own_or_shared
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages.bulk.bulk_requests import BulkRequest
from resolvers.messages.bulk.owners import BulkAccounts
from resolvers.messages.bulk.row_changes import STATE_COLUMNS


async def require_mailbox_ids_of_selector(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts
) -> list[int]:
    """Return the mailboxes to select from.

    Raises NotFound if the only account lacks the mailbox.
    """
    name = request.selector.mailbox
    if name is None:
        return []
    rows = await ctx.load_many(
        mailbox_loaders.load_visible_by_selectors,
        [(user_id, name) for user_id in bulk_accounts.user_ids],
    )
    if len(rows) == 1 and rows[0] is None:
        raise NotFound(str(name), path=["select", "mailbox"])
    return [row.id for row in rows if row]


async def load_selected_messages(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts, limit: int
) -> Sequence[ColumnRow]:
    """Load the selected messages with their state columns in the order of their ids."""
    statement = select(*select_columns(Message, STATE_COLUMNS)).where(
        *selected_messages_sql(ctx, request, bulk_accounts)
    )
    return await ctx.read(statement.order_by(col(Message.id)).limit(limit))


def selected_messages_sql(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts
) -> list[ColumnElement[bool]]:
    """Return the SQL conditions of the selected messages."""
    is_visible_message = is_own_or_shared(ctx, Message) if bulk_accounts.grantee_id else true()
    conditions = [
        is_visible_message,
        col(Message.user_id).in_(bulk_accounts.user_ids),
        col(Message.deleted_at).is_(None),
    ]
    if request.source_mailbox_ids is not None:
        conditions.append(col(Message.mailbox_id).in_(request.source_mailbox_ids))
    conditions_sql = request.selector.build_conditions(ctx, conditions)
    if request.duplicate_column is None:
        return conditions_sql
    duplicate_column = col(getattr(Message, request.duplicate_column))
    oldest_first = (col(Message.received_at), col(Message.id))
    nth = func.row_number().over(
        partition_by=(col(Message.mailbox_id), duplicate_column), order_by=oldest_first
    )
    numbered = select(col(Message.id), nth.label("nth")).where(
        *conditions_sql, duplicate_column.is_not(None)
    )
    rows = numbered.subquery()
    return [col(Message.id).in_(select(rows.c.id).where(rows.c.nth > 1))]


async def require_selected_ids(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts, rows: Sequence[ColumnRow]
) -> None:
    """Raise NotFound if a message given by ID does not exist."""
    if request.selector.ids is None:
        return
    if request.duplicate_column:
        plain = replace(request, duplicate_column=None)
        rows = await load_selected_messages(ctx, plain, bulk_accounts, len(request.selector.ids))
    require_all_selected(request, rows)


def require_all_selected(request: BulkRequest, rows: Sequence[ColumnRow]) -> None:
    """Raise NotFound for the first message given by ID that is not among the rows."""
    found_ids = set(raw_values(rows, "id"))
    for index, key in enumerate(request.selector.ids or ()):
        if key not in found_ids:
            raise NotFound(str(key), path=["select", "ids"], index=index)


async def require_unchanged(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts
) -> None:
    """Raise StaleObject if a selected message changed since `unchanged_since_modseq`."""
    if request.unchanged_since_modseq is not None:
        statement = select(func.max(col(Message.modseq)).label("newest"))
        (row,) = await ctx.read(
            statement.where(*selected_messages_sql(ctx, request, bulk_accounts))
        )
        if (row.newest or 0) > request.unchanged_since_modseq:
            raise StaleObject(current_modseq=row.newest, path=["ifUnchangedSince"])


def require_target_mailboxes(
    request: BulkRequest, bulk_accounts: BulkAccounts, user_ids: Iterable[int]
) -> None:
    """Raise NotFound if an account with selected messages lacks the target mailbox."""
    for user_id in sorted(user_ids) if request.target_mailbox else ():
        if user_id not in bulk_accounts.target_by_user:
            raise NotFound(
                f"{bulk_accounts.username_prefix_or_empty(user_id)}{request.target_mailbox}",
                path=["to"],
            )
