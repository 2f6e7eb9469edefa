"""Mailboxes that messages are imported into: existing ones, and new ones."""

from mail.mailboxes import paths
from models.errors import Conflict
from models.mailboxes.tables import HOLDING_USES, SpecialUse
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes


async def load_mailbox_ids_by_path(ctx: Context, user_id: int) -> dict[str, int]:
    """Return the mailboxes of a user by path. The mailbox of snoozed mail maps to INBOX."""
    rows = await mailbox_loaders.load_all_of_user(ctx, user_id, {"special_use"})
    boxes = {row.path: int(row.id) for row in rows}
    for row in rows:
        if row.special_use in HOLDING_USES:  # a message imported there would never be unsnoozed
            boxes[row.path] = boxes["INBOX"]
    return boxes


async def get_or_create_mailbox(
    ctx: Context, mailbox_ids: dict[str, int], mailbox_path: str, *, subscribe: bool
) -> int:
    """Return the ID of the viewer's mailbox at a path, and create it with its parents if missing.

    Adds new mailboxes to `mailbox_ids`. Raises Invalid for a bad path, LimitReached.
    """
    path = paths.validate_path(mailbox_path)
    while path not in mailbox_ids:
        new = NewMailboxes(
            paths.missing_paths_with_parents([path], mailbox_ids), is_subscribed=subscribe
        )
        try:
            mailbox_ids |= {
                box.path: int(box.id) for box in await mailbox_loaders.create_mailboxes(ctx, new)
            }
        except Conflict:  # another import or the user has just created it
            ctx.clear_loaded()
            mailbox_ids |= await load_mailbox_ids_by_path(ctx, ctx.viewer.user_id)
    return mailbox_ids[path]


async def load_paths_by_special_use(ctx: Context) -> dict[SpecialUse, str]:
    """Return the paths of the viewer's mailboxes with a special use."""
    rows = await mailbox_loaders.load_all_of_user(ctx, ctx.viewer.user_id, {"special_use"})
    return {row.special_use: row.path for row in rows if row.special_use is not None}
