"""Whose messages a bulk operation is about, and into whose folders they go."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Conflict, Invalid, NotFound
from models.events.journal import PLATFORM
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import Picked
from resolvers.access import administered, managed_apart, own
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import Named
from resolvers.mailboxes.owners import owners
from resolvers.messages.bulk import rights as bulk_rights
from resolvers.messages.content_access import openable
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.users.selection import Users, managed_all

GIVEN = "mail given to another account"  # as the security log of its owner calls it


@dataclass(frozen=True, slots=True)
class Whose:
    """The accounts whose messages are selected; `given_to` is another, which is to have them.

    `folders` are those the messages of each account go to; who lacks one is not among them.
    """

    ids: Sequence[int]
    others: Sequence[Picked] = ()  # accounts that are not the viewer's, the other one too
    given_to: Picked | None = None
    folders: Mapping[int, Picked] = field(default_factory=dict)
    grantee: int = 0  # to whom they are shared, or the folder they go to is

    @property
    def streams(self) -> list[int]:
        """The streams to hold; that of the platform has the tasks of what is done to others."""
        more = [self.given_to.id] if self.given_to else []
        more += [self.grantee] if self.grantee else []
        return [*self.ids, *more, *([PLATFORM] if self.others else [])]

    def name(self, user_id: int) -> str:
        """How an account that is not the viewer's is called."""
        return next((f"{row.username}: " for row in self.others if row.id == user_id), "")


async def whose(
    ctx: Context, users: Users, *, source: Users | None = None, to: Named | None = None
) -> Whose:
    """The accounts of a selection; those of others only for administrators.

    With a `source` the messages are that account's, and go to the one of `users`. NotFound
    where that has no folder `to`, or where there is only one account.
    """
    if source is None and not users.given:
        found = Whose([own(ctx)])
    else:
        found = await _others(ctx, users, source)
    return found if to is None else await _with_folders(ctx, found, to)


async def of_selection(ctx: Context, selection: Selection, to: Named | None = None) -> Whose:
    """The accounts of a selection without users: the owners of what it names by id, else one's own.

    What is shared with the viewer is changed by the rights of the share. Other accounts' messages
    are changed only by administrators. NotFound as `whose`.
    """
    if rows := await _managed(ctx, selection):
        found = Whose([row.id for row in rows], _not_mine(ctx, rows))
        return found if to is None else await _with_folders(ctx, found, to)
    if not ctx.viewer.user_id and selection.ids:
        raise NotFound(str(selection.ids[0]), path=["select", "ids"], index=0)
    if ctx.viewer.user_id and ctx.viewer.reach.shared:
        return await shared(ctx, selection, to)
    return await whose(ctx, Users(), to=to)


async def _managed(ctx: Context, selection: Selection) -> Sequence[Picked]:
    """The owners of what a selection names by id, if one of them is another managed account."""
    if not administered(ctx):
        return []
    box = bulk_rights.folder_of(selection)
    if selection.ids is not None:
        asked = select(col(Message.user_id)).where(
            col(Message.id).in_(selection.ids), managed_apart(ctx, Message)
        )
    elif box is not None:
        asked = select(col(Mailbox.user_id)).where(
            col(Mailbox.id) == box, managed_apart(ctx, Mailbox)
        )
    else:
        return []
    keys = {row.user_id for row in await ctx.read(asked.distinct())}
    return await managed_all(ctx, keys, path="select") if keys - {ctx.viewer.user_id} else []


async def shared(ctx: Context, selection: Selection, to: Named | None = None) -> Whose:
    """The account of a selection that says of none; and a folder `to`, which may be another's."""
    mine, owner = own(ctx), await bulk_rights.owner_of(ctx, selection)
    if to is None:
        return Whose([owner], grantee=mine if owner != mine else 0)
    box, given_to = await bulk_rights.target(ctx, to, owner)
    grantee = mine if {owner, box.user_id} != {mine} else 0
    return Whose([owner], given_to=given_to, folders={owner: box}, grantee=grantee)


async def _others(ctx: Context, users: Users, source: Users | None) -> Whose:
    rows = await owners(ctx, users, "users")
    if source is None:
        return Whose([row.id for row in rows], _not_mine(ctx, rows))
    (origin,) = await owners(ctx, source, "sourceUser")
    if len(rows) != 1:
        text = "from another account messages go to one: select one in users"
        raise Invalid(text, constraint="exclusive", path=["select", "users"])
    (target,) = rows
    if origin.id == target.id:
        return Whose([origin.id], _not_mine(ctx, rows))
    if target.id == ctx.viewer.user_id:
        openable(ctx, origin.id)  # there it would be read
    if origin.tenant_id != target.tenant_id:
        text = "accounts of different domains share no storage: nothing goes from one to the other"
        raise Conflict(text, path=["sourceUser"])
    return Whose([origin.id], _not_mine(ctx, [origin, target]), target)


def _not_mine(ctx: Context, rows: Iterable[Picked]) -> list[Picked]:
    return [row for row in rows if row.id != ctx.viewer.user_id]


async def _with_folders(ctx: Context, whose: Whose, to: Named) -> Whose:
    into = {key: whose.given_to.id if whose.given_to else key for key in whose.ids}
    rows = await ctx.load_all(mailbox_loaders.named, [(key, to) for key in into.values()])
    folders = {key: row for key, row in zip(into, rows, strict=True) if row}
    if len(into) == 1 and not folders:
        raise NotFound(str(to), path=["to"])
    return Whose(whose.ids, whose.others, whose.given_to, folders)


async def log(
    ctx: Context, session: AsyncSession, whose: Whose, mutation: str, many: Mapping[int, int]
) -> None:
    """Note what is done to so many messages of each account, where it is another's."""
    target = whose.given_to
    touched = {**many, **({target.id: sum(many.values())} if target and many else {})}
    done = [
        Done(mutation, "User", row.id, row.domain_id, after={"messages": touched[row.id]})
        for row in whose.others
        if touched.get(row.id)
    ]
    await admin_log.note(ctx, session, *done)
    if target and many:
        told = {"to": target.username, "messages": sum(many.values())}
        await security_log.note(ctx, session, Event(GIVEN, whose.ids[0], detail=told))
