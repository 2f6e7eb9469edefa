"""What is in other people's mail: nobody's to read but ROOT's, who is noted for it.

Administrators see folders, messages and files of the accounts they manage as records: ids, flags,
dates, sizes, and the headers by which mail is found. To read one they act as its owner.
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
READ = "read mail"  # as the security log of its owner calls it


class Withheld:
    """A row of somebody else's mail: what is in it is refused to whoever asks for it."""

    __slots__ = ("_columns", "_row")

    def __init__(self, row: Any, columns: Collection[str] = CONTENT) -> None:
        self._row = row
        self._columns = columns

    def __getattr__(self, name: str) -> Any:
        if name in self._columns:
            raise refusal()
        return getattr(self._row, name)


def refusal() -> Forbidden:
    """What an administrator is told who would read somebody's mail."""
    return Forbidden("what is in other people's mail is read by acting as them", requires="actAs")


async def shown(
    ctx: Context, rows: Sequence[Any], columns: Collection[str] = CONTENT
) -> Sequence[Any]:
    """These rows, of mail the viewer sees as records, as they may be handed out.

    Where anything is shared with the viewer, they say in which folder they lie. `columns` are
    withheld of other people's rows.
    """
    foreign = [row for row in rows if row.user_id != ctx.viewer.user_id]
    if not foreign or not administered(ctx):  # then they are shared
        return rows
    readable = await readable_boxes(ctx, {_box(row) for row in foreign})
    closed = [row for row in foreign if _box(row) not in readable]
    if ctx.viewer.role is Role.ROOT:
        await witnessed(ctx, {row.user_id for row in closed})
        return rows
    keys = {row.id for row in closed}
    return [Withheld(row, columns) if row.id in keys else row for row in rows]


def _box(row: Any) -> int | None:
    box: int | None = getattr(row, "mailbox_id", None)
    return box


async def refusals(ctx: Context, user_ids: list[int]) -> list[Forbidden | None]:
    """Why the viewer sees no mail and files of these accounts, not even as records; else None."""
    others = set(user_ids) - {ctx.viewer.user_id}
    seen = set(user_ids) - others
    if others and administered(ctx):
        asked = select(col(User.id)).where(col(User.id).in_(others), managed_users(ctx))
        seen |= {row.id for row in await ctx.read(asked)}
    text = "you don't manage the mail of this account"
    no = Forbidden(text, requires=AdminPermission.LOGIN_AS)
    return [None if key in seen else no for key in user_ids]


async def readable_boxes(ctx: Context, ids: Collection[int | None]) -> set[int]:
    """Which of these folders are shared with the viewer to be read."""
    keys = {key for key in ids if key is not None}
    if not keys or not ctx.viewer.reach.shared:
        return set()
    boxes = select(col(Mailbox.id)).where(shared(ctx, Mailbox, ShareRight.READ))
    return {row.id for row in await ctx.read(boxes.where(col(Mailbox.id).in_(keys)))}


def openable(ctx: Context, user_id: int) -> None:
    """Forbidden where what is in this user's mail is not for the viewer to read."""
    if user_id != ctx.viewer.user_id and ctx.viewer.role is not Role.ROOT:
        raise refusal()


def legible(ctx: Context, row: Any) -> None:
    """Forbidden where what is in this row is not for the viewer to read."""
    if isinstance(row, Withheld):
        raise refusal()
    if not ctx.viewer.reach.shared:  # else what is not shared is Withheld
        openable(ctx, row.user_id)


async def witnessed(ctx: Context, user_ids: Iterable[int]) -> None:
    """Note in these users' security logs that their mail is read, before it is."""
    users: Collection[int] = sorted(user_ids)
    if not users:
        return
    async with ctx.aside(*users) as (apart, session):
        for user_id in users:
            await security_log.note(apart, session, Event(READ, user_id))
