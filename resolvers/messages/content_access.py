"""Access to the content of other users' mail: only ROOT can read it, and each read is logged.

Administrators see mailboxes, messages and files of the accounts they manage as records: IDs, flags,
dates, sizes, and the header fields that mail is found by. To read a message they act as its owner.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import SecurityEventAction
from models.errors import Forbidden
from models.mailboxes.shares import ShareRight
from models.mailboxes.tables import Mailbox
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.access import can_see_managed_mail_records, is_managed_user, is_shared
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context

CONTENT_COLUMNS = frozenset({"subject", "preview", "mime_structure", "attachments"})  # columns
READ_EVENT = SecurityEventAction.MESSAGES_READ  # the name in the owner's security log


class RowWithoutContent:
    """A row of another user's mail. Reading one of its content columns raises Forbidden."""

    __slots__ = ("_columns", "_row")

    def __init__(self, row: Any, withheld_columns: Collection[str] = CONTENT_COLUMNS) -> None:
        self._row = row
        self._columns = withheld_columns

    def __getattr__(self, name: str) -> Any:
        if name in self._columns:
            raise content_refusal()
        return getattr(self._row, name)


def content_refusal() -> Forbidden:
    """Return the error for an administrator who reads another user's mail."""
    return Forbidden(
        "The content of another user's messages can only be read by acting as the user.",
        requires="userImpersonate",
    )


async def withhold_content_or_log_read(
    ctx: Context, rows: Sequence[Any], withheld_columns: Collection[str] = CONTENT_COLUMNS
) -> Sequence[Any]:
    """Return the rows as the viewer can see them: content of other users' mail is withheld.

    If mailboxes are shared with the viewer, the rows must have `mailbox_id`. For ROOT nothing is
    withheld, and the read is logged.
    """
    foreign = [row for row in rows if row.user_id != ctx.viewer.user_id]
    if not foreign or not can_see_managed_mail_records(ctx):  # then the foreign rows are shared
        return rows
    readable = await load_ids_of_readable_shared_mailboxes(
        ctx, {_mailbox_id_of_row(row) for row in foreign}
    )
    unreadable_rows = [row for row in foreign if _mailbox_id_of_row(row) not in readable]
    if ctx.viewer.role is Role.ROOT:
        await write_content_read_to_security_log(ctx, {row.user_id for row in unreadable_rows})
        return rows
    keys = {row.id for row in unreadable_rows}
    return [RowWithoutContent(row, withheld_columns) if row.id in keys else row for row in rows]


def _mailbox_id_of_row(message_row: Any) -> int | None:
    mailbox: int | None = getattr(message_row, "mailbox_id", None)
    return mailbox


async def require_root_and_log_reads(ctx: Context, unreadable_user_ids: Collection[int]) -> None:
    """Raise Forbidden if the viewer is not ROOT and there are such users. Log the reads by ROOT.

    The viewer has no other right to read the mail of these users.
    """
    if unreadable_user_ids and ctx.viewer.role is not Role.ROOT:
        raise content_refusal()
    await write_content_read_to_security_log(ctx, unreadable_user_ids)


async def load_access_refusals(ctx: Context, user_ids: list[int]) -> list[Forbidden | None]:
    """Return for each user why the viewer can't see their mail and files as records, or None."""
    other_ids = set(user_ids) - {ctx.viewer.user_id}
    visible_ids = set(user_ids) - other_ids
    if other_ids and can_see_managed_mail_records(ctx):
        statement = select(col(User.id)).where(col(User.id).in_(other_ids), is_managed_user(ctx))
        visible_ids |= {row.id for row in await ctx.read(statement)}
    text = "You don't manage the mail of this account."
    no = Forbidden(text, requires=AdminPermission.IMPERSONATE)
    return [None if key in visible_ids else no for key in user_ids]


async def load_ids_of_readable_shared_mailboxes(
    ctx: Context, mailbox_ids: Collection[int | None]
) -> set[int]:
    """Return those of these mailboxes that are shared with the viewer with the right READ."""
    keys = {key for key in mailbox_ids if key is not None}
    if not keys or not ctx.viewer.share_visibility.has_shared_mailboxes:
        return set()
    mailboxes = select(col(Mailbox.id)).where(is_shared(ctx, Mailbox, ShareRight.READ))
    return {row.id for row in await ctx.read(mailboxes.where(col(Mailbox.id).in_(keys)))}


async def load_content_readability(ctx: Context, mailbox_ids: list[int]) -> list[bool]:
    """Return for each mailbox whether it is shared with the viewer with the right READ."""
    readable = await load_ids_of_readable_shared_mailboxes(ctx, mailbox_ids)
    return [key in readable for key in mailbox_ids]


def require_readable_account(ctx: Context, user_id: int) -> None:
    """Raise Forbidden if the viewer can't read the content of this user's mail."""
    if user_id != ctx.viewer.user_id and ctx.viewer.role is not Role.ROOT:
        raise content_refusal()


def require_readable_row(ctx: Context, row: Any) -> None:
    """Raise Forbidden if the viewer can't read the content of this row."""
    if isinstance(row, RowWithoutContent):
        raise content_refusal()
    if (
        not ctx.viewer.share_visibility.has_shared_mailboxes
    ):  # otherwise rows that are not shared are RowWithoutContent
        require_readable_account(ctx, row.user_id)


async def write_content_read_to_security_log(ctx: Context, user_ids: Iterable[int]) -> None:
    """Log in these users' security logs that their mail is read, before it is read."""
    users: Collection[int] = sorted(user_ids)
    if not users:
        return
    if ctx.is_dry_run:  # its rollback would delete the entries
        for user_id in users:
            event = NewSecurityEvent(READ_EVENT, user_id)
            ctx.call_after_dry_run(partial(security_log.log_event_in_background, ctx, event))
        return
    async with ctx.separate_or_nested_write_session(*users) as (separate_ctx, session):
        events = [NewSecurityEvent(READ_EVENT, user_id) for user_id in users]
        await security_log.insert_security_events_and_queue_notices(separate_ctx, session, events)
