"""Apply a bulk request to the selected messages: move or copy, set flags, snooze, delete."""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, select_columns
from resolvers.context import Context
from resolvers.messages.bulk import copy, flags, row_changes, snooze
from resolvers.messages.bulk.bulk_requests import BulkOutcome, BulkRequest
from resolvers.messages.bulk.metadata_quota import require_quota_for_metadata_in_session
from resolvers.messages.bulk.row_changes import UidChange


async def apply_bulk_request_to_rows(
    ctx: Context,
    session: AsyncSession,
    request: BulkRequest,
    rows: Sequence[ColumnRow],
    target_by_user: Mapping[int, ColumnRow],
) -> BulkOutcome:
    """Apply the request to messages, each account's target mailbox given by user ID.

    Raises OverQuota if the copies or new metadata don't fit.
    """
    outcome = BulkOutcome(rows=rows)
    if not rows:
        return outcome
    if request.target_mailbox is not None:
        for user_id, user_rows in row_changes.group_rows_by_user(rows).items():
            outcome.uids_by_message_id |= await _move_or_copy_to_mailbox(
                ctx, session, request, user_rows, target_by_user[user_id]
            )
    if request.changes is not None and not request.changes.is_empty:
        if request.target_mailbox is not None:  # the rows after the move
            rows = await row_changes.load_rows_in_transaction(
                session, list(outcome.uids_by_message_id)
            )
        await require_quota_for_metadata_in_session(ctx, session, rows, request.changes)
        await flags.change_flags(ctx, session, rows, request.changes)
        await snooze.snooze_or_unsnooze_messages(ctx, session, rows, request.changes)
    if request.is_permanent:
        await row_changes.delete_permanently(ctx, session, rows)
    elif request.is_delete:
        mailboxes = await load_mailboxes(session, {row.mailbox_id for row in rows})
        await row_changes.move_to_deleted(
            ctx, session, rows, {key: mailbox.path for key, mailbox in mailboxes.items()}
        )
    return outcome


async def _move_or_copy_to_mailbox(
    ctx: Context,
    session: AsyncSession,
    request: BulkRequest,
    rows: Sequence[ColumnRow],
    target: ColumnRow,
) -> dict[int, UidChange]:
    """Move or copy messages of one account into a mailbox.

    Returns old and new UID by message ID.
    """
    if target.user_id == rows[0].user_id and not request.is_copy:
        return await row_changes.move_messages_to_mailbox(ctx, session, rows, target)
    uids = await copy.copy_returning_uids_by_copy_id(ctx, session, rows, target)
    if not request.is_copy:  # the copy belongs to another account
        await row_changes.delete_permanently(ctx, session, rows)
    return uids


async def load_mailboxes(session: AsyncSession, mailbox_ids: Iterable[int]) -> dict[int, ColumnRow]:
    """Load mailboxes by ID, in the transaction of the session."""
    statement = select(*select_columns(Mailbox)).where(col(Mailbox.id).in_(sorted(mailbox_ids)))
    return {row.id: row for row in (await (await session.connection()).execute(statement)).all()}
