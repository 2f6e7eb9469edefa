"""Mailboxes with a special use that are created when they are needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from mail.mailboxes.special_use_names import scheduled_mailbox_name
from mail.storage.message_insert import MessagePlacement
from models.errors import require_found
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import ColumnRow
from resolvers.context import Context
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.mailboxes.owners import LockedAccounts, lock_mail_owners_and_audit_change
from resolvers.users.selection import VIEWER_ONLY, UserSelector


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
    users = (
        VIEWER_ONLY
        if user_id == ctx.viewer.user_id
        else UserSelector(is_reference=True, ids=(user_id,))
    )
    async with lock_mail_owners_and_audit_change(ctx, users, "mailboxCreate") as locked:
        created = await _create_with_unused_path(locked, user_id, special)
    return require_found(await ctx.load(mailbox_loaders.load_visible_by_ids, created.id))


async def _create_with_unused_path(
    locked: LockedAccounts, user_id: int, special: SpecialMailbox
) -> Mailbox:
    """Create the mailbox, with a number if a mailbox with its name exists."""
    user = (await mailbox_create.load_refreshed_users(locked, [user_id]))[user_id]
    existing = await mailbox_create.load_existing_by_user(locked.session, [user_id])
    used_paths = {row.path for row in existing[user_id]}
    mailbox_create.require_mailbox_capacity(locked, user_id, len(used_paths), 1, path_in_input=None)
    path = name = special.name_in(user.language)
    nth = 1
    while path in used_paths:
        nth += 1
        path = f"{name} {nth}"
    mailbox = mailbox_create.build_mailbox_with_next_uid_validity(
        locked.ctx, user, path, special.use
    )
    mailbox.retention, mailbox.retention_inherited = None, False  # messages are kept
    await mailbox_create.insert_mailboxes_and_adopt_subscriptions(
        locked, [user], {user_id: [mailbox]}
    )
    return mailbox


async def placement_in_ensured_scheduled_mailbox(
    ctx: Context, placement: MessagePlacement
) -> MessagePlacement:
    """Return the placement of a copy of a held message: the mailbox SCHEDULED."""
    mailbox = await ensure_special_mailbox(ctx, placement.user_id, SCHEDULED)
    return replace(placement, mailbox_id=mailbox.id)
