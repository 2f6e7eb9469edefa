"""Mailboxes with a special use that are created when they are needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy import select
from sqlmodel import col

from mail.mailboxes.special_use_names import scheduled_mailbox_name
from mail.storage.message_insert import MessagePlacement
from models.errors import LimitReached, require_found
from models.mailboxes.tables import SpecialUse
from models.store.columns import ColumnRow
from models.users.tables import User
from resolvers.context import Context
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.users.limit_values import Unlimited
from resolvers.users.selection import VIEWER_ONLY, UserSelector

TREE_COLUMNS = frozenset({"id", "user_id", "path", "retention"})


@dataclass(frozen=True, slots=True)
class SpecialMailbox:
    """A special use, and the name of its mailbox in a language."""

    use: SpecialUse
    name_in: Callable[[str | None], str]


SCHEDULED = SpecialMailbox(SpecialUse.SCHEDULED, scheduled_mailbox_name)


async def ensure_special_mailbox(ctx: Context, user_id: int, special: SpecialMailbox) -> ColumnRow:
    """Return the mailbox of an account with this special use; create it if there is none.

    If a mailbox with its name exists, the new one gets a number. Raises LimitReached.
    """
    existing = await ctx.load(
        mailbox_loaders.load_visible_by_selectors,
        (user_id, MailboxSelector(special_use=special.use)),
    )
    if existing is not None:
        return existing
    async with ctx.write_session(user_id):  # of concurrent requests, one creates the mailbox
        return await _find_or_create_special_mailbox(ctx, user_id, special)


async def _find_or_create_special_mailbox(
    ctx: Context, user_id: int, special: SpecialMailbox
) -> ColumnRow:
    """Find or create the mailbox in a transaction that locks the account."""
    selector = user_id, MailboxSelector(special_use=special.use)
    (existing,) = await mailbox_loaders.load_visible_by_selectors(ctx, [selector])
    if existing is not None:
        return existing
    (user,) = await ctx.read(select(col(User.language)).where(col(User.id) == user_id))
    name = special.name_in(user.language)
    used_paths = {
        mailbox.path
        for mailbox in await mailbox_loaders.load_visible_mailboxes_of_user(
            ctx, user_id, TREE_COLUMNS
        )
    }
    path, nth = name, 1
    while path in used_paths:
        nth += 1
        path = f"{name} {nth}"
    new = NewMailboxes([path], retention=Unlimited.UNLIMITED, special_use=special.use)
    users = (
        VIEWER_ONLY
        if user_id == ctx.viewer.user_id
        else UserSelector(is_reference=True, ids=(user_id,))
    )
    try:
        (created,) = await mailbox_create.create_mailboxes(ctx, new, users)
    except LimitReached as error:
        raise error.copy_with_path([]) from None  # the input names no path
    return require_found(await ctx.load(mailbox_loaders.load_visible_by_ids, created.id))


async def placement_in_ensured_scheduled_mailbox(
    ctx: Context, placement: MessagePlacement
) -> MessagePlacement:
    """Return the placement of a copy of a held message: the mailbox SCHEDULED."""
    mailbox = await ensure_special_mailbox(ctx, placement.user_id, SCHEDULED)
    return replace(placement, mailbox_id=mailbox.id)
