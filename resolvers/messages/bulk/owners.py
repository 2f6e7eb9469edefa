"""The accounts of a bulk operation: owners of the selected messages and the targets."""

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

GIVEN = "mail given to another account"  # the name in the owner's security log


@dataclass(frozen=True, slots=True)
class Whose:
    """The accounts of a bulk operation.

    `receiving_user` is another account that gets the messages. `target_by_user` has the target
    mailbox of each account; accounts without it are missing.
    """

    ids: Sequence[int]
    others: Sequence[Picked] = ()  # without the viewer, with the receiving user
    given_to: Picked | None = None
    folders: Mapping[int, Picked] = field(default_factory=dict)
    grantee: int = 0  # the viewer, if source or target mailbox is shared with them

    @property
    def streams(self) -> list[int]:
        """The streams to lock. The platform's stream has the tasks on other users' mail."""
        more = [self.given_to.id] if self.given_to else []
        more += [self.grantee] if self.grantee else []
        return [*self.ids, *more, *([PLATFORM] if self.others else [])]

    def name(self, user_id: int) -> str:
        """Return the username with a colon, or "" for the viewer."""
        return next((f"{row.username}: " for row in self.others if row.id == user_id), "")


async def whose(
    ctx: Context, users: Users, *, source: Users | None = None, to: Named | None = None
) -> Whose:
    """Load the accounts of a selection; other users' only for administrators.

    With `source_user`, its messages go to the account of `users`. Raises Forbidden, InvalidInput,
    Conflict, and NotFound if the only account lacks the target mailbox.
    """
    if source is None and not users.given:
        found = Whose([own(ctx)])
    else:
        found = await _others(ctx, users, source)
    return found if to is None else await _with_folders(ctx, found, to)


async def of_selection(ctx: Context, selection: Selection, to: Named | None = None) -> Whose:
    """Load the accounts of a selector without users: the owners of the IDs in it, else the viewer.

    Messages in shared mailboxes are changed by the rights of the share, those of other accounts by
    administrators. Raises NotFound as `load_bulk_accounts`.
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
    """Return the owners of the IDs in a selector, or [] if all belong to the viewer."""
    if not administered(ctx):
        return []
    mailbox = bulk_rights.folder_of(selection)
    if selection.ids is not None:
        statement = select(col(Message.user_id)).where(
            col(Message.id).in_(selection.ids), managed_apart(ctx, Message)
        )
    elif mailbox is not None:
        statement = select(col(Mailbox.user_id)).where(
            col(Mailbox.id) == mailbox, managed_apart(ctx, Mailbox)
        )
    else:
        return []
    keys = {row.user_id for row in await ctx.read(statement.distinct())}
    return await managed_all(ctx, keys, path="select") if keys - {ctx.viewer.user_id} else []


async def shared(ctx: Context, selection: Selection, to: Named | None = None) -> Whose:
    """Load the account of a selector without users, and the target mailbox, which can be shared."""
    mine, owner = own(ctx), await bulk_rights.owner_of(ctx, selection)
    if to is None:
        return Whose([owner], grantee=mine if owner != mine else 0)
    mailbox, given_to = await bulk_rights.target(ctx, to, owner)
    grantee = mine if {owner, mailbox.user_id} != {mine} else 0
    return Whose([owner], given_to=given_to, folders={owner: mailbox}, grantee=grantee)


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
        openable(ctx, origin.id)  # the viewer could read the messages there
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
    """Log a bulk change for each account of another user.

    Mail given away is also in its security log.
    """
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
