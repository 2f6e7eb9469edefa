"""Rights that bulk operations need in shared mailboxes, and the owners of selected messages."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col

from models.errors import Conflict, Forbidden, InvalidInput
from models.mailboxes.shares import Rights, ShareRight
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_shared, require_user_id
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.loaders import MailboxSelector, require_own_or_shared_mailbox
from resolvers.mailboxes.rights import NO_RIGHTS
from resolvers.messages.bulk.bulk_requests import BulkRequest
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector

TARGET_PATH, SELECTOR_PATH = ["to"], ["select"]


async def require_single_owner_or_viewer_id(ctx: Context, selector: MessageSelector) -> int:
    """Return the owner of the selected messages, which can be a user that shares them.

    Raises InvalidInput if they belong to several accounts.
    """
    if selector.ids is not None:
        statement = select(col(Message.user_id)).where(
            col(Message.id).in_(selector.ids), is_shared(ctx, Message)
        )
        owners = {row.user_id for row in await ctx.read(statement.distinct())}
        query = select(col(Message.id)).where(
            col(Message.id).in_(selector.ids), col(Message.user_id) == require_user_id(ctx)
        )
        if owners and await ctx.read(query.limit(1)):
            owners.add(require_user_id(ctx))
        if len(owners) > 1:
            text = "The messages must belong to one account."
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=[*SELECTOR_PATH, "ids"]
            )
        return owners.pop() if owners else require_user_id(ctx)
    key = mailbox_id_of_selector_or_none(selector)
    mailbox = await ctx.load(mailbox_loaders.load_shared_by_ids, key) if key is not None else None
    return int(mailbox.user_id) if mailbox else require_user_id(ctx)


def mailbox_id_of_selector_or_none(selector: MessageSelector) -> int | None:
    """Return the mailbox ID in a selector, or None."""
    name = selector.mailbox if selector.conditions is None else selector.conditions.mailbox
    return name.id if name is not None else None


class BulkTargetMailbox(NamedTuple):
    """The target mailbox of a bulk change."""

    mailbox: ColumnRow
    other_owner: ColumnRow | None  # None if the mailbox is in the same account


async def require_target_and_other_owner(
    ctx: Context, target_mailbox: MailboxSelector, owner_id: int
) -> BulkTargetMailbox:
    """Return the target mailbox, and its owner if that is another account.

    A path or special use selects a mailbox of the viewer, an ID also a shared one. Raises NotFound,
    Forbidden, or Conflict if the accounts share no storage.
    """
    mailbox = await require_own_or_shared_mailbox(
        ctx, target_mailbox, ShareRight.INSERT, path_in_input=TARGET_PATH
    )
    if mailbox.user_id == owner_id:
        return BulkTargetMailbox(mailbox, None)
    statement = select(*select_columns(User)).where(col(User.id).in_([mailbox.user_id, owner_id]))
    rows = {row.id: row for row in await ctx.read(statement)}
    if rows[mailbox.user_id].tenant_id != rows[owner_id].tenant_id:
        text = "Messages can't be moved or copied between accounts of different domains."
        raise Conflict(text, path=TARGET_PATH)
    return BulkTargetMailbox(mailbox, rows[mailbox.user_id])


def rights_for_changes(changes: FlagChanges | None) -> Rights:
    r"""Return the rights that changes need: SEEN for \Seen, DELETE for \Deleted, else WRITE."""
    if changes is None or changes.is_empty:
        return NO_RIGHTS
    flags = set(changes.flags)
    rights = {ShareRight.SEEN} if "seen" in flags else set[ShareRight]()
    if "deleted" in flags:
        rights.add(ShareRight.DELETE)
    if flags - {"seen", "deleted"} or changes.add or changes.remove or changes.values:
        rights.add(ShareRight.WRITE)
    return frozenset(rights | ({ShareRight.WRITE} if changes.replace is not None else set()))


def rights_needed_in_source(request: BulkRequest, *, to_other_account: bool) -> Rights:
    """Return the rights that the request needs in shared mailboxes that contain the messages.

    A message that goes to another account is lost for its owner, so this needs EXPUNGE.
    """
    rights = {ShareRight.READ}
    if request.target_mailbox is None:
        rights |= rights_for_changes(request.changes)
    elif not request.is_copy:
        rights |= {ShareRight.DELETE, *({ShareRight.EXPUNGE} if to_other_account else ())}
    if request.is_delete:
        rights.add(ShareRight.EXPUNGE if request.is_permanent else ShareRight.DELETE)
    return frozenset(rights)


async def load_missing_rights_in_shared_mailboxes(
    ctx: Context, mailbox_ids: Sequence[int], needed: Rights
) -> dict[int, list[ShareRight]]:
    """Return the rights that the viewer lacks, by mailbox ID, for mailboxes of others."""
    has = await mailbox_rights.load_rights_in_shared_mailboxes(ctx, mailbox_ids)
    missing = {
        mailbox: mailbox_rights.sorted_rights(needed - has.get(mailbox, NO_RIGHTS))
        for mailbox in mailbox_ids
    }
    return {mailbox: rights for mailbox, rights in missing.items() if rights}


async def require_rights_in_shared_mailboxes(
    ctx: Context, mailbox_ids: Sequence[int], needed: Rights, input_path: Sequence[str]
) -> None:
    """Raise Forbidden if the viewer lacks a right in one of these mailboxes of others."""
    missing = await load_missing_rights_in_shared_mailboxes(ctx, mailbox_ids, needed)
    for rights in missing.values():
        text = f"Requires the right {rights[0]} in the mailbox."
        raise Forbidden(text, requires=rights[0], path=input_path)
