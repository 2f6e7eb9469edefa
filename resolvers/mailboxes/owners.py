"""The accounts of a mailbox mutation."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Forbidden
from models.events import journal
from models.events.journal import Entry
from models.store.columns import Picked
from models.users.roles import AdminPermission
from resolvers.access import administered
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.users.selection import Users, chosen

Also = Callable[[Context, Sequence[int]], Awaitable[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Held:
    """The accounts of a mailbox mutation, in a transaction that locks their streams."""

    ctx: Context
    session: AsyncSession
    rows: list[Picked]

    @property
    def ids(self) -> list[int]:
        """The IDs of the accounts, in order."""
        return [row.id for row in self.rows]

    def whose(self, user_id: int, said: str) -> str:
        """Return the text, preceded by the username if the account is not the viewer's."""
        if user_id == self.ctx.viewer.user_id:
            return said
        return f"{next(row.username for row in self.rows if row.id == user_id)}: {said}"

    async def tell(self, told: Mapping[int, Sequence[Entry]]) -> Mapping[int, int]:
        """Record changes in the journals of the accounts.

        Returns the last position of each stream.
        """
        told = {user: entries for user, entries in told.items() if entries}
        await journal.record_all(self.session, told, at=self.ctx.world.now())
        return journal.reached(self.session)


async def owners(ctx: Context, users: Users, path: str) -> list[Picked]:
    """Load the selected users. Raises Forbidden for other users without the permission LOGIN_AS."""
    rows = await chosen(ctx, users, path=path)
    if any(row.id != ctx.viewer.user_id for row in rows) and not administered(ctx):
        text = f"this needs the permission {AdminPermission.LOGIN_AS}"
        raise Forbidden(text, requires=AdminPermission.LOGIN_AS, path=[path])
    return rows


@asynccontextmanager
async def holding(
    ctx: Context, users: Users, mutation: str, *, path: str = "users", also: Also | None = None
) -> AsyncGenerator[Held]:
    """Open a transaction on the mailboxes of the selected accounts.

    It also locks the streams of the users that `extra_streams` returns. Changes of other users'
    accounts are written to the admin log. Raises the errors of `load_owners`.
    """
    rows = await owners(ctx, users, path)
    ids = [row.id for row in rows]
    async with ctx.write(*ids, *(await also(ctx, ids) if also else ())) as session:
        yield Held(ctx, session, rows)
        others = [row for row in rows if row.id != ctx.viewer.user_id]
        log = [Done(mutation, "User", row.id, row.domain_id) for row in others]
        await admin_log.note(ctx, session, *log)
