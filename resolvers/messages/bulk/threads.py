"""Changes of whole threads."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlmodel import col

from models.admin.tasks import TaskKind
from models.errors import InvalidInput, require_all_found
from models.messages.tables import Message, Thread
from models.store.columns import ColumnRow, select_columns
from models.store.query_hints import without_index
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_own_or_shared, require_user_id
from resolvers.context import Context
from resolvers.messages.bulk import bulk_changes
from resolvers.messages.bulk import undo as bulk_undo
from resolvers.messages.bulk.bulk_requests import BulkOutcome, BulkRequest
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.bulk.mute import set_muted
from resolvers.messages.bulk.undo import StateBeforeChange
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.listing import is_not_deleted_sql

MAX_THREADS = 250  # per request


@dataclass(frozen=True, slots=True)
class ThreadChangeRequest:
    """Changes of threads: of their messages in mailboxes, and of the mute state."""

    thread_ids: Sequence[int]
    changes: FlagChanges | None = None
    is_muted: bool | None = None


async def change_threads(ctx: Context, request: ThreadChangeRequest) -> BulkOutcome:
    """Change threads: all or none in one transaction.

    If their messages change and are many, a task changes them, without undo. Raises InvalidInput,
    and NotFound with its index for a thread without visible messages.
    """
    changes = None if request.changes is None or request.changes.is_empty else request.changes
    if changes is None and request.is_muted is None:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    user_id = require_user_id(ctx)
    async with ctx.write_session(user_id) as session:
        rows = await _require_threads(ctx, request.thread_ids)
        muted_before: dict[int, bool] = {}
        if request.is_muted is not None:
            muted_before = {row.id: row.muted for row in rows}
            await set_muted(ctx, session, dict.fromkeys(muted_before, request.is_muted))
        if changes is None:
            state = StateBeforeChange(
                TaskKind.MESSAGE_UPDATE, bulk_changes.NO_CHANGES, (), muted_before
            )
            undo = await bulk_undo.store_undo(ctx, session, state)
            return BulkOutcome(undo_token=undo.token, undoable_until=undo.expires_at)
        statement = select(col(Message.id)).where(
            without_index(is_own_or_shared(ctx, Message)),
            is_not_deleted_sql(),
            col(Message.thread_id).in_(request.thread_ids),
        )
        ids = [row.id for row in await ctx.read(statement.order_by(col(Message.id)))]
        later = len(ids) > ctx.environment.options.bulk_max_items
        request_of_messages = BulkRequest(
            MessageSelector(ids=ids), changes, always_as_task=later, muted_before=muted_before
        )
        return await bulk_changes.apply_or_queue_bulk_request(ctx, request_of_messages)


async def _require_threads(ctx: Context, thread_ids: Sequence[int]) -> Sequence[ColumnRow]:
    """Load visible threads that have a message that is not deleted. Raises NotFound."""
    message_query = select(col(Message.id)).where(
        col(Message.thread_id) == col(Thread.id), is_not_deleted_sql()
    )
    statement = select(*select_columns(Thread)).where(
        is_own_or_shared(ctx, Thread), col(Thread.id).in_(thread_ids), message_query.exists()
    )
    rows = {row.id: row for row in await ctx.read(statement)}
    require_all_found(thread_ids, rows)
    return list(rows.values())
