"""Folders that mail is brought into: those there are, and those that are made for it."""

from mail.mailboxes import paths
from models.errors import Conflict
from models.mailboxes.tables import HOLDING_USES, SpecialUse
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes


async def standing(ctx: Context, user_id: int) -> dict[str, int]:
    """The folders of an account by path; for that of snoozed mail INBOX stands."""
    rows = await mailbox_loaders.all_of(ctx, user_id, {"special_use"})
    boxes = {row.path: int(row.id) for row in rows}
    for row in rows:
        if row.special_use in HOLDING_USES:  # nobody would bring it back from there
            boxes[row.path] = boxes["INBOX"]
    return boxes


async def made(ctx: Context, boxes: dict[str, int], folder: str, *, subscribe: bool) -> int:
    """The viewer's folder at this path; where it is missing it is made, with those above it.

    `boxes` are those that are known, and learn of it. Invalid, LimitReached.
    """
    path = paths.checked_path(folder)
    while path not in boxes:
        new = NewMailboxes(paths.with_parents([path], boxes), subscribe=subscribe)
        try:
            boxes |= {box.path: int(box.id) for box in await mailbox_loaders.create(ctx, new)}
        except Conflict:  # another run, or its owner, was first
            ctx.forget()
            boxes |= await standing(ctx, ctx.viewer.user_id)
    return boxes[path]


async def roles(ctx: Context) -> dict[SpecialUse, str]:
    """The paths of the viewer's folders that have a role."""
    rows = await mailbox_loaders.all_of(ctx, ctx.viewer.user_id, {"special_use"})
    return {row.special_use: row.path for row in rows if row.special_use is not None}
