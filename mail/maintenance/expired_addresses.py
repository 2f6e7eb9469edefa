"""Delete temporary addresses that have expired."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlmodel import col

from mail.autoreply.chosen_addresses import remove_deleted_addresses
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, core_table

RESERVED_AFTER_EXPIRY = timedelta(days=30)  # no other user can get an address for this time
BATCH_SIZE = 200  # addresses in one transaction


async def delete_addresses_after_reservation(environment: Environment) -> int:
    """Delete addresses at the end of their reservation, in batches. Returns their number."""
    conditions = (
        col(Address.expires_at) <= environment.now() - RESERVED_AFTER_EXPIRY,
        ~col(Address.main),
    )
    columns = (col(Address.id), col(Address.user_id), col(Address.domain_id))
    deleted_count = 0
    while True:
        rows = await environment.database.read(
            select(*columns).where(*conditions).limit(BATCH_SIZE)
        )
        streams = {key for row in rows for key in (row.user_id, row.domain_id) if key} | {PLATFORM}
        ids = [row.id for row in rows]
        deletion = delete(Address).where(col(Address.id).in_(ids), *conditions).returning(*columns)

        def delete_batch(transaction: DatabaseTransaction, removal: Any = deletion) -> int:
            ended = transaction.connection.execute(removal).all()
            _lower_counts_and_journal_deletions(transaction, ended)
            remove_deleted_addresses(transaction, {row.user_id for row in ended if row.user_id})
            return len(ended)

        batch_count = (
            await environment.run_transaction(delete_batch, *sorted(streams)) if rows else 0
        )
        deleted_count += batch_count
        if len(rows) < BATCH_SIZE or not batch_count:
            return deleted_count


def _lower_counts_and_journal_deletions(
    transaction: DatabaseTransaction, addresses: Sequence[ColumnRow]
) -> None:
    """Lower the address counts of the domains, and journal the deletions."""
    table = core_table(Domain)
    count_by_domain = Counter(row.domain_id for row in addresses if row.domain_id)
    update_domain = update(table).where(table.c.id == bindparam("key"))
    if count_by_domain:
        transaction.connection.execute(
            update_domain.values(address_count=table.c.address_count - bindparam("many")),
            [{"key": key, "many": number} for key, number in count_by_domain.items()],
        )
    ids_by_stream: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)
    for row in addresses:
        ids_by_stream[row.user_id or row.domain_id or PLATFORM, False].append(row.id)
        if row.user_id and row.domain_id:
            ids_by_stream[row.domain_id, True].append(row.id)  # the user's stream has it too
    for (stream, is_duplicate), ids in sorted(ids_by_stream.items()):
        data = {"twice": True} if is_duplicate else {}
        transaction.record_entry(
            stream,
            JournalEntry(EventType.ADDRESS_DELETED, ids, data),
            at=transaction.environment.now(),
        )
