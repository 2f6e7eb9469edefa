"""What is in other people's mail: nobody's to read but ROOT's, who is noted for it.

Administrators see folders and messages of the accounts they manage as records: ids, flags,
dates, sizes, and the headers by which mail is found. To read one they act as its owner.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from models.errors import Forbidden
from models.roles import Role
from resolvers import authlog
from resolvers.authlog import Event
from resolvers.context import Context

CONTENT = frozenset({"subject", "preview", "structure", "attachments"})  # columns
READ = "read mail"  # as the security log of its owner calls it


class Withheld:
    """A row of somebody else's mail: what is in it is refused to whoever asks for it."""

    __slots__ = ("_row",)

    def __init__(self, row: Any) -> None:
        self._row = row

    def __getattr__(self, name: str) -> Any:
        if name in CONTENT:
            raise refusal()
        return getattr(self._row, name)


def refusal() -> Forbidden:
    """What an administrator is told who would read somebody's mail."""
    return Forbidden("what is in other people's mail is read by acting as them", requires="actAs")


async def shown(ctx: Context, rows: Sequence[Any]) -> Sequence[Any]:
    """These rows, of mail the viewer sees as records, as they may be handed out."""
    foreign = {row.user_id for row in rows if row.user_id != ctx.viewer.user_id}
    if not foreign:
        return rows
    if ctx.viewer.role is Role.ROOT:
        await witnessed(ctx, foreign)
        return rows
    return [row if row.user_id == ctx.viewer.user_id else Withheld(row) for row in rows]


def openable(ctx: Context, user_id: int) -> None:
    """Forbidden where what is in this user's mail is not for the viewer to read."""
    if user_id != ctx.viewer.user_id and ctx.viewer.role is not Role.ROOT:
        raise refusal()


async def witnessed(ctx: Context, user_ids: Iterable[int]) -> None:
    """Note in these users' security logs that their mail is read, before it is."""
    users: Collection[int] = sorted(user_ids)
    async with ctx.aside(*users) as (apart, session):
        for user_id in users:
            await authlog.note(apart, session, Event(READ, user_id))
