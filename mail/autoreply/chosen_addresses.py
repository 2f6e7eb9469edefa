"""Remove deleted addresses from the autoreplies that answer only chosen addresses."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col

from models.addresses.tables import Address
from models.autoreply import Autoreply
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.runtime.environment import DatabaseTransaction


def remove_deleted_addresses(transaction: DatabaseTransaction, user_ids: Collection[int]) -> None:
    """Remove addresses that no longer exist from the autoreplies of these users.

    An autoreply that loses its last address is turned off, since an empty list means all addresses.
    The streams of the users must be locked.
    """
    statement = select(col(Autoreply.id), col(Autoreply.enabled), col(Autoreply.addresses)).where(
        col(Autoreply.user_id).in_(user_ids)
    )
    rows = [row for row in transaction.connection.execute(statement) if row.addresses]
    if not rows:
        return
    chosen_ids = {address_id for row in rows for address_id in row.addresses}
    existing = select(col(Address.id)).where(col(Address.id).in_(chosen_ids))
    existing_ids = set(transaction.connection.execute(existing).scalars())
    now = transaction.environment.now()
    for row in rows:
        remaining_ids = [key for key in row.addresses if key in existing_ids]
        if remaining_ids == row.addresses:
            continue
        values: dict[str, Any] = {"addresses": remaining_ids}
        event_type = EventType.AUTOREPLY_UPDATED
        if row.enabled and not remaining_ids:
            values["enabled"] = False
            event_type = EventType.AUTOREPLY_DISABLED
        changed_autoreply = update(Autoreply).where(col(Autoreply.id) == row.id)
        transaction.connection.execute(changed_autoreply.values(**values, updated_at=now))
        entry = JournalEntry(event_type, [row.id], {"changed": [sorted(values)]})
        transaction.record_entry(row.id, entry, at=now)
