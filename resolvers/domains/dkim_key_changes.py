"""Record changes of DKIM keys in the journal and in the audit log."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.authentication import private_keys
from models.domains.dkim_keys import DkimKey
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, select_columns
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import dkim_keys

AuditLogValues = dict[str, Any]  # of a key, by GraphQL name


async def journal_and_audit_key_changes(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    rows_before_and_ids: tuple[Mapping[int, ColumnRow], Sequence[int]],
) -> None:
    """Record created and updated keys in the journals and in the audit log.

    `rows_before_and_ids` holds the former rows by id and the ids of all changed keys.
    """
    before, ids = rows_before_and_ids
    statement = select(*select_columns(DkimKey, dkim_keys.READABLE_COLUMNS)).where(
        col(DkimKey.id).in_(ids)
    )
    after = {row.id: row for row in await ctx.read(statement)}
    await journal_key_changes(
        ctx,
        session,
        [after[key] for key in ids if key in before],
        event_type=EventType.DKIM_KEY_UPDATED,
    )
    await journal_key_changes(
        ctx,
        session,
        [after[key] for key in ids if key not in before],
        event_type=EventType.DKIM_KEY_CREATED,
    )
    entries = []
    for key_id in ids:
        row, row_before = after[key_id], before.get(key_id)
        values_before = None if row_before is None else audit_log_values(row_before)
        entries.append(
            NewAuditLogEntry(
                mutation, "DkimKey", key_id, row.domain_id, values_before, audit_log_values(row)
            )
        )
    await audit_log.insert_audit_log_entries(ctx, session, *entries)


def audit_log_values(dkim_key: ColumnRow | DkimKey) -> AuditLogValues:
    """Return the values of a DKIM key for the audit log."""
    return {
        "domain": dkim_key.domain,
        "selector": dkim_key.selector,
        "algorithm": dkim_key.algorithm.value,
        "keySize": dkim_key.key_size,
        "fingerprint": private_keys.fingerprint(dkim_key.public),
        "state": dkim_key.state.value,
    }


async def journal_key_changes(
    ctx: Context,
    session: AsyncSession,
    keys: Sequence[ColumnRow | DkimKey],
    *,
    event_type: EventType,
) -> None:
    """Record an event of DKIM keys in the streams of the domains and of the platform."""
    ids_by_stream: dict[int, list[int]] = {}
    for row in keys:
        ids_by_stream.setdefault(PLATFORM, []).append(row.id)
        if row.domain_id is not None:
            ids_by_stream.setdefault(row.domain_id, []).append(row.id)
    if ids_by_stream:
        changes_by_stream = {key: [(event_type, ids)] for key, ids in ids_by_stream.items()}
        await ctx.record_changes(session, changes_by_stream)
