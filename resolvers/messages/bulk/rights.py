"""Rights that bulk operations need in shared mailboxes, and the owners of selected messages."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import col

from models.errors import Conflict, Forbidden, Invalid
from models.mailboxes.shares import Rights, ShareRight
from models.messages.tables import Message
from models.store.columns import Picked, picked
from models.users.tables import User
from resolvers.access import own, shared
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.loaders import Named, find
from resolvers.mailboxes.rights import NONE
from resolvers.messages.bulk.row_changes import Changes
from resolvers.messages.filters.filter_conditions import Selection

TO, SELECT = ["to"], ["select"]


async def owner_of(ctx: Context, selection: Selection) -> int:
    """Return the owner of the selected messages, which can be a user that shares them.

    Raises InvalidInput if they belong to several accounts.
    """
    if selection.ids is not None:
        statement = select(col(Message.user_id)).where(
            col(Message.id).in_(selection.ids), shared(ctx, Message)
        )
        owners = {row.user_id for row in await ctx.read(statement.distinct())}
        mine = select(col(Message.id)).where(
            col(Message.id).in_(selection.ids), col(Message.user_id) == own(ctx)
        )
        if owners and await ctx.read(mine.limit(1)):
            owners.add(own(ctx))
        if len(owners) > 1:
            text = "they are of several accounts: one at a time"
            raise Invalid(text, constraint="exclusive", path=[*SELECT, "ids"])
        return owners.pop() if owners else own(ctx)
    key = folder_of(selection)
    mailbox = await ctx.load(mailbox_loaders.shared_by_ids, key) if key is not None else None
    return int(mailbox.user_id) if mailbox else own(ctx)


def folder_of(selection: Selection) -> int | None:
    """Return the mailbox ID in a selector, or None."""
    name = selection.mailbox if selection.where is None else selection.where.mailbox
    return name.id if name is not None else None


async def target(ctx: Context, to: Named, owner: int) -> tuple[Picked, Picked | None]:
    """Return the target mailbox, and its owner if that is another account.

    A path or special use selects a mailbox of the viewer, an ID also a shared one. Raises NotFound,
    Forbidden, or Conflict if the accounts share no storage.
    """
    mailbox = await find(ctx, to, ShareRight.INSERT, path=TO)
    if mailbox.user_id == owner:
        return mailbox, None
    statement = select(*picked(User)).where(col(User.id).in_([mailbox.user_id, owner]))
    rows = {row.id: row for row in await ctx.read(statement)}
    if rows[mailbox.user_id].tenant_id != rows[owner].tenant_id:
        text = "accounts of different domains share no storage: nothing goes from one to the other"
        raise Conflict(text, path=TO)
    return mailbox, rows[mailbox.user_id]


def for_changes(changes: Changes | None) -> Rights:
    r"""Return the rights that changes need: SEEN for \Seen, DELETE for \Deleted, else WRITE."""
    if changes is None or changes.nothing:
        return NONE
    flags = set(changes.flags)
    needed = {ShareRight.SEEN} if "seen" in flags else set[ShareRight]()
    if "deleted" in flags:
        needed.add(ShareRight.DELETE)
    if flags - {"seen", "deleted"} or changes.add or changes.remove or changes.values:
        needed.add(ShareRight.WRITE)
    return frozenset(needed | ({ShareRight.WRITE} if changes.replace is not None else set()))


async def lacking(
    ctx: Context, boxes: Sequence[int], needed: Rights
) -> dict[int, list[ShareRight]]:
    """Return the rights that the viewer lacks, by mailbox ID, for mailboxes of others."""
    has = await mailbox_rights.of_boxes(ctx, boxes)
    missing = {
        mailbox: mailbox_rights.ordered(needed - has.get(mailbox, NONE)) for mailbox in boxes
    }
    return {mailbox: rights for mailbox, rights in missing.items() if rights}


async def require(ctx: Context, boxes: Sequence[int], needed: Rights, path: Sequence[str]) -> None:
    """Raise Forbidden if the viewer lacks a right in one of these mailboxes of others."""
    missing = await lacking(ctx, boxes, needed)
    for rights in missing.values():
        text = f"this needs the right {rights[0]} in the folder"
        raise Forbidden(text, requires=rights[0], path=path)
