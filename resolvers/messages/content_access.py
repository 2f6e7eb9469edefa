"""Access to the content of other users' mail: only ROOT can read it, and each read is logged.

Administrators see mailboxes, messages and files of the accounts they manage as records: IDs, flags,
dates, sizes, and the header fields that mail is found by. To read a message they act as its owner.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.errors import Forbidden
from models.mailboxes.shares import ShareRight
from models.mailboxes.tables import Mailbox
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.access import administered, managed_users, shared
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.context import Context

CONTENT = frozenset({"subject", "preview", "structure", "attachments"})  # columns
READ = "read mail"  # the name in the owner's security log


class Withheld:
    """A row of another user's mail. Reading one of its content columns raises Forbidden."""

    __slots__ = ("_columns", "_row")

    def __init__(self, row: Any, columns: Collection[str] = CONTENT) -> None:
        self._row = row
        self._columns = columns

    def __getattr__(self, name: str) -> Any:
        if name in self._columns:
            raise refusal()
        return getattr(self._row, name)


def refusal() -> Forbidden:
    """Return the error for an administrator who reads another user's mail."""
    return Forbidden("what is in other people's mail is read by acting as them", requires="actAs")


async def shown(
    ctx: Context, rows: Sequence[Any], columns: Collection[str] = CONTENT
) -> Sequence[Any]:
    """Return the rows as the viewer can see them: content of other users' mail is withheld.

    If mailboxes are shared with the viewer, the rows must have `mailbox_id`. For ROOT nothing is
    withheld, and the read is logged.
    """
    foreign = [row for row in rows if row.user_id != ctx.viewer.user_id]
    if not foreign or not administered(ctx):  # then the foreign rows are shared
        return rows
    readable = await readable_boxes(ctx, {_box(row) for row in foreign})
    closed = [row for row in foreign if _box(row) not in readable]
    if ctx.viewer.role is Role.ROOT:
        await witnessed(ctx, {row.user_id for row in closed})
        return rows
    keys = {row.id for row in closed}
    return [Withheld(row, columns) if row.id in keys else row for row in rows]


def _box(row: Any) -> int | None:
    mailbox: int | None = getattr(row, "mailbox_id", None)
    return mailbox


async def refusals(ctx: Context, user_ids: list[int]) -> list[Forbidden | None]:
    """Return for each user why the viewer can't see their mail and files as records, or None."""
    others = set(user_ids) - {ctx.viewer.user_id}
    seen = set(user_ids) - others
    if others and administered(ctx):
        statement = select(col(User.id)).where(col(User.id).in_(others), managed_users(ctx))
        seen |= {row.id for row in await ctx.read(statement)}
    text = "you don't manage the mail of this account"
    no = Forbidden(text, requires=AdminPermission.LOGIN_AS)
    return [None if key in seen else no for key in user_ids]


async def readable_boxes(ctx: Context, ids: Collection[int | None]) -> set[int]:
    """Return those of these mailboxes that are shared with the viewer with the right READ."""
    keys = {key for key in ids if key is not None}
    if not keys or not ctx.viewer.reach.shared:
        return set()
    mailboxes = select(col(Mailbox.id)).where(shared(ctx, Mailbox, ShareRight.READ))
    return {row.id for row in await ctx.read(mailboxes.where(col(Mailbox.id).in_(keys)))}


def openable(ctx: Context, user_id: int) -> None:
    """Raise Forbidden if the viewer can't read the content of this user's mail."""
    if user_id != ctx.viewer.user_id and ctx.viewer.role is not Role.ROOT:
        raise refusal()


def legible(ctx: Context, row: Any) -> None:
    """Raise Forbidden if the viewer can't read the content of this row."""
    if isinstance(row, Withheld):
        raise refusal()
    if not ctx.viewer.reach.shared:  # otherwise rows that are not shared are RowWithoutContent
        openable(ctx, row.user_id)


async def witnessed(ctx: Context, user_ids: Iterable[int]) -> None:
    """Log in these users' security logs that their mail is read, before it is read."""
    users: Collection[int] = sorted(user_ids)
    if not users:
        return
    async with ctx.aside(*users) as (apart, session):
        for user_id in users:
            await security_log.note(apart, session, Event(READ, user_id))
