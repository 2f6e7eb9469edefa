"""End the shares of administrators who lose the right to them."""

from collections import defaultdict
from collections.abc import Collection, Sequence

from sqlalchemy import select, tuple_
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.events.event_types import EventType
from models.mailboxes.shares import MailboxShare, decode_rights
from models.store.columns import ColumnRow
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.context import Context
from resolvers.mailboxes import shares
from resolvers.mailboxes.administrator_shares import (
    security_event_of_share,
    select_logged_shares,
    share_values,
)
from resolvers.mailboxes.rights import NO_RIGHTS
from resolvers.users.remaining_rights import RemainingRights, is_user_beyond_rights


async def end_shares_without_right(
    ctx: Context, maker_ids: Collection[int], rights: RemainingRights
) -> None:
    """End the shares that administrators made and may no longer make with these rights.

    The end is in the audit log, and in the security logs of the owners.
    """
    if rights.role is Role.ROOT:
        return
    owners = select(col(User.id)).where(is_user_beyond_rights(rights, AdminPermission.IMPERSONATE))
    condition = col(MailboxShare.made_by).in_(maker_ids) & col(MailboxShare.owner_id).in_(owners)
    found_rows = await ctx.read(select_logged_shares(condition))
    if not found_rows:
        return
    keys = [(row.mailbox_id, row.user_id) for row in found_rows]
    condition &= tuple_(col(MailboxShare.mailbox_id), col(MailboxShare.user_id)).in_(keys)
    streams = {stream for row in found_rows for stream in (row.owner_id, row.user_id)}
    async with ctx.write_session(*streams) as session:
        connection = await session.connection()
        rows = (await connection.execute(select_logged_shares(condition))).all()
        await shares.end_shares(ctx, session, condition)
        await _journal_ends_for_owners(ctx, session, rows)
        entries = [
            NewAuditLogEntry(
                "mailboxShareSet",
                "Mailbox",
                row.mailbox_id,
                row.domain_id,
                share_values(row, decode_rights(row.rights)),
            )
            for row in rows
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
        events = [security_event_of_share(row, NO_RIGHTS) for row in rows]
        await security_log.insert_security_events_and_queue_notices(ctx, session, events)


async def _journal_ends_for_owners(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow]
) -> None:
    """Record MAILBOX_UPDATED for the owners, whose streams are locked."""
    mailbox_ids: defaultdict[int, set[int]] = defaultdict(set)
    for row in rows:
        mailbox_ids[row.owner_id].add(row.mailbox_id)
    changes = {
        owner: [(EventType.MAILBOX_UPDATED, sorted(ids))] for owner, ids in mailbox_ids.items()
    }
    if changes:
        await ctx.record_changes(session, changes)
