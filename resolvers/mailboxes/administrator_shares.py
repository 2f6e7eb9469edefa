"""The maker of shares that administrators give for users, and the log entries of such shares."""

from typing import Any

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import aliased
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.security_log import SecurityEventAction
from models.mailboxes.shares import MailboxShare, Rights
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from resolvers.access import can_see_managed_mail_records, is_managed_user
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.mailboxes.rights import sorted_rights

Grantee = aliased(User)


async def load_administrator_id(ctx: Context, owner_id: int) -> int | None:
    """Return the viewer if it shares mailboxes of the owner as its administrator; else None.

    A DOMAIN_ADMIN needs IMPERSONATE; without it, only the right ADMIN in a mailbox counts.
    """
    if owner_id == ctx.viewer.user_id or not can_see_managed_mail_records(ctx):
        return None
    owner = select(col(User.id)).where(col(User.id) == owner_id, is_managed_user(ctx))
    return (ctx.viewer.user_id or None) if await ctx.read(owner) else None


def select_logged_shares(condition: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    """Select shares with the path, the domain of the owner and the name of the grantee."""
    return (
        select(
            *select_columns(MailboxShare),
            col(Mailbox.path),
            col(User.domain_id).label("domain_id"),
            col(Grantee.username).label("grantee"),
        )
        .select_from(MailboxShare)
        .join(Mailbox, col(Mailbox.id) == col(MailboxShare.mailbox_id))
        .join(User, col(User.id) == col(Mailbox.user_id))
        .join(Grantee, col(Grantee.id) == col(MailboxShare.user_id))
        .where(condition)
        .order_by(
            col(MailboxShare.owner_id), col(MailboxShare.mailbox_id), col(MailboxShare.user_id)
        )
    )


async def log_share_of_administrator(
    ctx: Context, session: AsyncSession, share_row: ColumnRow, before: Rights, after: Rights
) -> None:
    """Write a share that an administrator changes to the logs, and notify the owner.

    `share_row` is of `select_logged_shares`. The stream of the owner is locked.
    """
    old_values, new_values = (
        share_values(share_row, rights) if rights else None for rights in (before, after)
    )
    entry = NewAuditLogEntry(
        "mailboxShareSet",
        "Mailbox",
        share_row.mailbox_id,
        share_row.domain_id,
        old_values,
        new_values,
    )
    await audit_log.insert_audit_log_entries(ctx, session, entry)
    event = security_event_of_share(share_row, after)
    await security_log.log_event_and_queue_notice(ctx, session, event)


def share_values(share_row: ColumnRow, rights: Rights) -> dict[str, Any]:
    """Return the values of a share for the audit log."""
    return {"user": share_row.user_id, "rights": [right.value for right in sorted_rights(rights)]}


def security_event_of_share(share_row: ColumnRow, rights: Rights) -> NewSecurityEvent:
    """Return the event of a share for the security log of the owner. No rights: it has ended."""
    action = SecurityEventAction.MAILBOX_SHARE_DELETED
    if rights:
        action = SecurityEventAction.MAILBOX_SHARE_SET
    return NewSecurityEvent(
        action,
        share_row.owner_id,
        target=f"{share_row.path}, {share_row.grantee}",
        detail={"rights": ", ".join(right.value for right in sorted_rights(rights))},
    )
