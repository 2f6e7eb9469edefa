"""Bulk operations on what others share: whose messages they are, and which rights they take."""

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
    """Whose messages are selected: another's where they, or their folder, are shared.

    Invalid where they are of several accounts.
    """
    if selection.ids is not None:
        asked = select(col(Message.user_id)).where(
            col(Message.id).in_(selection.ids), shared(ctx, Message)
        )
        owners = {row.user_id for row in await ctx.read(asked.distinct())}
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
    box = await ctx.load(mailbox_loaders.shared_by_ids, key) if key is not None else None
    return int(box.user_id) if box else own(ctx)


def folder_of(selection: Selection) -> int | None:
    """The folder that a selection names by its id, or None."""
    name = selection.mailbox if selection.where is None else selection.where.mailbox
    return name.id if name is not None else None


async def target(ctx: Context, to: Named, owner: int) -> tuple[Picked, Picked | None]:
    """The folder that messages of this account go to, and its owner where that is another.

    By path or role it is the viewer's, by id it may be shared. Conflict where the accounts
    share no storage.
    """
    box = await find(ctx, to, ShareRight.INSERT, path=TO)
    if box.user_id == owner:
        return box, None
    asked = select(*picked(User)).where(col(User.id).in_([box.user_id, owner]))
    rows = {row.id: row for row in await ctx.read(asked)}
    if rows[box.user_id].tenant_id != rows[owner].tenant_id:
        text = "accounts of different domains share no storage: nothing goes from one to the other"
        raise Conflict(text, path=TO)
    return box, rows[box.user_id]


def for_changes(changes: Changes | None) -> Rights:
    r"""What marking messages takes: SEEN for \Seen, DELETE for \Deleted, WRITE for all else."""
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
    """What the viewer lacks of these rights, by those of others' folders where it is so."""
    has = await mailbox_rights.of_boxes(ctx, boxes)
    missing = {box: mailbox_rights.ordered(needed - has.get(box, NONE)) for box in boxes}
    return {box: rights for box, rights in missing.items() if rights}


async def require(ctx: Context, boxes: Sequence[int], needed: Rights, path: Sequence[str]) -> None:
    """Forbidden where the viewer lacks a right in one of these folders of others."""
    missing = await lacking(ctx, boxes, needed)
    for rights in missing.values():
        text = f"this needs the right {rights[0]} in the folder"
        raise Forbidden(text, requires=rights[0], path=path)
