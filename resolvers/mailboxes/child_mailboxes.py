"""Creation of mailboxes below a parent, which can be a mailbox that another user shares."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import insert, select
from sqlmodel import col

from mail.mailboxes.paths import checked_path
from models.errors import Forbidden, Invalid, LimitReached
from models.events import journal
from models.mailboxes.shares import MailboxShare, ShareRight
from models.mailboxes.tables import Mailbox
from models.store.columns import Picked, picked
from models.users.tables import User
from resolvers.access import own
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import Named, NewMailboxes, find
from resolvers.mailboxes.owners import Held
from resolvers.users.selection import MINE, Users

AT = ["parent"]


async def create(
    ctx: Context, new: NewMailboxes, above: Named, users: Users = MINE
) -> list[Mailbox]:
    """Create mailboxes below a parent: all of them or none.

    In a mailbox of another user this needs the right CREATE. The new mailboxes are shared like
    their parent. Raises InvalidInput if `users` is given, Forbidden, NotFound, Conflict or
    LimitReached.
    """
    if users.given:
        raise Invalid("a parent says whose they are", constraint="exclusive", path=["users"])
    mailbox = await find(ctx, above, ShareRight.CREATE, path=AT)
    if mailbox.user_id == own(ctx):
        return await mailbox_loaders.create(ctx, _below(new, mailbox))
    if new.special_use:
        raise Forbidden("roles are for the owner to give", path=["specialUse"])
    if new.encrypt:
        raise Forbidden("encryption is for the owner to ask for", path=["encryptMessages"])
    async with ctx.write(mailbox.user_id) as session:
        mailbox = await find(ctx, Named(id=mailbox.id), ShareRight.CREATE, path=AT)
        owner = select(*picked(User)).where(col(User.id) == mailbox.user_id)
        held = Held(ctx, session, list(await ctx.read(owner)))
        below = _below(new, mailbox)
        wanted = [
            checked_path(path, path_in=["paths"], index=nth) for nth, path in enumerate(below.paths)
        ]
        try:
            found, made = await mailbox_loaders.make(held, wanted, below)
        except LimitReached as full:  # only the owner may learn the count
            raise LimitReached(full.message, limit=full.limit, used=full.limit, path=AT) from full
        await _share(held, mailbox, made)
    return found


def _below(new: NewMailboxes, box: Picked) -> NewMailboxes:
    return replace(new, paths=[f"{box.path}/{path}" for path in new.paths])


async def _share(held: Held, above: Picked, made: Sequence[Mailbox]) -> None:
    """Share the created mailboxes with the users that the parent is shared with."""
    connection = await held.session.connection()
    statement = select(*picked(MailboxShare, ("user_id", "rights")))
    rows = (
        await connection.execute(statement.where(col(MailboxShare.mailbox_id) == above.id))
    ).all()
    before = journal.reached(held.session)[above.user_id] - len(made)
    given = [
        {
            "mailbox_id": mailbox.id,
            "user_id": row.user_id,
            "owner_id": above.user_id,
            "rights": row.rights,
            "since": before,
        }
        for mailbox in made
        for row in rows
    ]
    await connection.execute(insert(MailboxShare), given)
