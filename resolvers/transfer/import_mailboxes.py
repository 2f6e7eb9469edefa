"""Mailboxes that messages are imported into: existing ones, and new ones."""

from mail.mailboxes import paths
from models.errors import Conflict
from models.mailboxes.tables import HOLDING_USES, SpecialUse
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes


async def standing(ctx: Context, user_id: int) -> dict[str, int]:
    """Return the mailboxes of a user by path. The mailbox of snoozed mail maps to INBOX."""
    rows = await mailbox_loaders.all_of(ctx, user_id, {"special_use"})
    boxes = {row.path: int(row.id) for row in rows}
    for row in rows:
        if row.special_use in HOLDING_USES:  # a message imported there would never be unsnoozed
            boxes[row.path] = boxes["INBOX"]
    return boxes


async def made(ctx: Context, boxes: dict[str, int], folder: str, *, subscribe: bool) -> int:
    """Return the ID of the viewer's mailbox at a path, and create it with its parents if missing.

    Adds new mailboxes to `mailbox_ids`. Raises Invalid for a bad path, LimitReached.
    """
    path = paths.checked_path(folder)
    while path not in boxes:
        new = NewMailboxes(paths.with_parents([path], boxes), subscribe=subscribe)
        try:
            boxes |= {box.path: int(box.id) for box in await mailbox_loaders.create(ctx, new)}
        except Conflict:  # another import or the user created it meanwhile
            ctx.forget()
            boxes |= await standing(ctx, ctx.viewer.user_id)
    return boxes[path]


async def roles(ctx: Context) -> dict[SpecialUse, str]:
    """Return the paths of the viewer's mailboxes with a special use."""
    rows = await mailbox_loaders.all_of(ctx, ctx.viewer.user_id, {"special_use"})
    return {row.special_use: row.path for row in rows if row.special_use is not None}
