"""The quota of the metadata that bulk operations add to messages."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Select, func, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.quota import require_quota_for_growth, take_quota_and_count_received
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow
from models.store.prepared_statements import is_in_parameter, prepare_cached, raw_values
from models.users.custom_data_usage import ByteLength
from resolvers.context import Context
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.users.custom_data import json_byte_count


@prepare_cached
def _metadata_sizes_query(dialect: str) -> Select[*tuple[Any, ...]]:
    """Build the select of the bytes of metadata of messages with these `ids`, by user."""
    size = func.sum(ByteLength(col(Message.public_metadata))).label("size")
    return (
        select(col(Message.user_id), size)
        .where(
            is_in_parameter(dialect, col(Message.id), "ids"),
            col(Message.public_metadata).is_not(None),
        )
        .group_by(col(Message.user_id))
    )


def metadata_bytes_by_user(
    transaction: DatabaseTransaction, message_ids: Sequence[int]
) -> Counter[int]:
    """Return the bytes of metadata of these messages, by user ID."""
    statement = _metadata_sizes_query(transaction.environment.database.dialect)
    rows = transaction.fetch_rows(statement, ids=list(message_ids))
    return Counter({row.user_id: int(row.size) for row in rows})


def take_quota_of_rows(
    transaction: DatabaseTransaction, user_id: int, rows: Sequence[ColumnRow]
) -> ColumnRow:
    """Count these messages, which keep their metadata, in the storage of a user.

    Returns the new usage, as `take_quota_and_count_received` does. Raises OverQuota.
    """
    size = sum(row.size for row in rows)
    if metadata_bytes := metadata_bytes_by_user(transaction, raw_values(rows, "id")).total():
        require_quota_for_growth(transaction, user_id, size + metadata_bytes)
    return take_quota_and_count_received(transaction, user_id, size, message_count=len(rows))


async def require_quota_for_metadata_in_session(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow], changes: FlagChanges
) -> None:
    """Raise OverQuota as `require_quota_for_metadata` does, if the changes have metadata."""
    if "public_metadata" in (changes.values or {}):
        check = partial(require_quota_for_metadata, rows=rows, changes=changes)
        await ctx.environment.run_in_session(session, check)


def require_quota_for_metadata(
    transaction: DatabaseTransaction, rows: Sequence[ColumnRow], changes: FlagChanges
) -> None:
    """Raise OverQuota if the new metadata of these messages doesn't fit into an account."""
    metadata = (changes.values or {}).get("public_metadata")
    if metadata is None or not rows:
        return
    counts = Counter(raw_values(rows, "user_id"))
    stored_bytes = metadata_bytes_by_user(transaction, raw_values(rows, "id"))
    size = json_byte_count(metadata)
    for user_id, count in counts.items():
        require_quota_for_growth(transaction, user_id, count * size - stored_bytes[user_id])
