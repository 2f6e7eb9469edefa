"""Mailboxes with a special use that are created when they are needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import select
from sqlmodel import col

from mail.mailboxes.special_use_names import scheduled_in
from mail.storage.message_insert import Place
from models.errors import found
from models.mailboxes.tables import SpecialUse
from models.store.columns import Picked
from models.users.tables import User
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import Named, NewMailboxes
from resolvers.users.selection import MINE, Users

COLUMNS = frozenset({"id", "user_id", "path", "retention"})


@dataclass(frozen=True, slots=True)
class SpecialMailbox:
    """A special use, and the name of its mailbox in a language."""

    use: SpecialUse
    name_in: Callable[[str | None], str]


SCHEDULED = SpecialMailbox(SpecialUse.SCHEDULED, scheduled_in)


async def ensure_special_mailbox(ctx: Context, user_id: int, special: SpecialMailbox) -> Picked:
    """Return the mailbox of an account with this special use; create it if there is none.

    If a mailbox with its name exists, the new one gets a number. Raises LimitReached.
    """
    there = await ctx.load(mailbox_loaders.named, (user_id, Named(special_use=special.use)))
    if there is not None:
        return there
    (user,) = await ctx.read(select(col(User.language)).where(col(User.id) == user_id))
    name = special.name_in(user.language)
    taken = {mailbox.path for mailbox in await mailbox_loaders.all_of(ctx, user_id, COLUMNS)}
    path, nth = name, 1
    while path in taken:
        nth += 1
        path = f"{name} {nth}"
    new = NewMailboxes([path], retention=timedelta(0), special_use=special.use)
    whose = MINE if user_id == ctx.viewer.user_id else Users(ids=(user_id,))
    (made,) = await mailbox_loaders.create(ctx, new, whose)
    return found(await ctx.load(mailbox_loaders.by_ids, made.id))


async def held_place(ctx: Context, place: Place) -> Place:
    """Return the placement of a copy of a held message: the mailbox SCHEDULED."""
    mailbox = await ensure_special_mailbox(ctx, place.user_id, SCHEDULED)
    return replace(place, mailbox_id=mailbox.id)
