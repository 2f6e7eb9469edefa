"""The accounts of a bulk operation: owners of the selected messages and the targets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.security_log import SecurityEventAction
from models.errors import Conflict, InvalidInput, NotFound
from models.events.journal import PLATFORM
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.access import (
    can_see_managed_mail_records,
    is_of_managed_user_unshared,
    require_user_id,
)
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.mailboxes.owners import require_permitted_mail_owners
from resolvers.messages.bulk import rights as bulk_rights
from resolvers.messages.content_access import require_readable_account
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.users.selection import UserSelector, require_managed_users

GIVEN_EVENT = SecurityEventAction.MESSAGES_TRANSFERRED  # the name in the owner's security log


@dataclass(frozen=True, slots=True)
class BulkAccounts:
    """The accounts of a bulk operation.

    `receiving_user` is another account that gets the messages. `target_by_user` has the target
    mailbox of each account; accounts without it are missing.
    """

    user_ids: Sequence[int]
    other_users: Sequence[ColumnRow] = ()  # without the viewer, with the receiving user
    receiving_user: ColumnRow | None = None
    target_by_user: Mapping[int, ColumnRow] = field(default_factory=dict)
    grantee_id: int = 0  # the viewer, if source or target mailbox is shared with them

    @property
    def stream_ids(self) -> list[int]:
        """The streams to lock. The platform's stream has the tasks on other users' mail."""
        receiver_ids = [self.receiving_user.id] if self.receiving_user else []
        receiver_ids += [self.grantee_id] if self.grantee_id else []
        return [*self.user_ids, *receiver_ids, *([PLATFORM] if self.other_users else [])]

    def username_prefix_or_empty(self, user_id: int) -> str:
        """Return the username with a colon, or "" for the viewer."""
        return next((f"{row.username}: " for row in self.other_users if row.id == user_id), "")


async def require_bulk_accounts(
    ctx: Context,
    users: UserSelector,
    *,
    source_user: UserSelector | None = None,
    target_mailbox: MailboxSelector | None = None,
) -> BulkAccounts:
    """Load the accounts of a selection; other users' only for administrators.

    With `source_user`, its messages go to the account of `users`. Raises Forbidden, InvalidInput,
    Conflict, and NotFound if the only account lacks the target mailbox.
    """
    if source_user is None and not users.is_given:
        accounts = BulkAccounts([require_user_id(ctx)])
    else:
        accounts = await _require_selected_accounts(ctx, users, source_user)
    return (
        accounts
        if target_mailbox is None
        else await _with_required_target_mailboxes(ctx, accounts, target_mailbox)
    )


async def require_accounts_of_selector_without_users(
    ctx: Context, selector: MessageSelector, target_mailbox: MailboxSelector | None = None
) -> BulkAccounts:
    """Load the accounts of a selector without users: the owners of the IDs in it, else the viewer.

    Messages in shared mailboxes are changed by the rights of the share, those of other accounts by
    administrators. Raises NotFound as `require_bulk_accounts`.
    """
    if rows := await _load_managed_owners_if_not_only_viewer(ctx, selector):
        accounts = BulkAccounts([row.id for row in rows], _without_viewer(ctx, rows))
        return (
            accounts
            if target_mailbox is None
            else await _with_required_target_mailboxes(ctx, accounts, target_mailbox)
        )
    if not ctx.viewer.user_id and selector.ids:
        raise NotFound(str(selector.ids[0]), path=["select", "ids"], index=0)
    if ctx.viewer.user_id and ctx.viewer.share_visibility.has_shared_mailboxes:
        return await require_own_or_sharing_account(ctx, selector, target_mailbox)
    return await require_bulk_accounts(ctx, UserSelector(), target_mailbox=target_mailbox)


async def _load_managed_owners_if_not_only_viewer(
    ctx: Context, selector: MessageSelector
) -> Sequence[ColumnRow]:
    """Return the owners of the IDs in a selector, or [] if all belong to the viewer."""
    if not can_see_managed_mail_records(ctx):
        return []
    mailbox = bulk_rights.mailbox_id_of_selector_or_none(selector)
    if selector.ids is not None:
        statement = select(col(Message.user_id)).where(
            col(Message.id).in_(selector.ids), is_of_managed_user_unshared(ctx, Message)
        )
    elif mailbox is not None:
        statement = select(col(Mailbox.user_id)).where(
            col(Mailbox.id) == mailbox, is_of_managed_user_unshared(ctx, Mailbox)
        )
    else:
        return []
    owner_ids = [row.user_id for row in await ctx.read(statement.distinct())]
    if set(owner_ids) <= {ctx.viewer.user_id}:
        return []
    return await require_managed_users(ctx, owner_ids, path="select")


async def require_own_or_sharing_account(
    ctx: Context, selector: MessageSelector, target_mailbox: MailboxSelector | None = None
) -> BulkAccounts:
    """Load the account of a selector without users, and the target mailbox, which can be shared."""
    viewer_id = require_user_id(ctx)
    owner = await bulk_rights.require_single_owner_or_viewer_id(ctx, selector)
    if target_mailbox is None:
        return BulkAccounts([owner], grantee_id=viewer_id if owner != viewer_id else 0)
    mailbox, given_to = await bulk_rights.require_target_and_other_owner(ctx, target_mailbox, owner)
    grantee = viewer_id if {owner, mailbox.user_id} != {viewer_id} else 0
    return BulkAccounts(
        [owner], receiving_user=given_to, target_by_user={owner: mailbox}, grantee_id=grantee
    )


async def _require_selected_accounts(
    ctx: Context, users: UserSelector, source_user: UserSelector | None
) -> BulkAccounts:
    rows = await require_permitted_mail_owners(ctx, users, "users")
    if source_user is None:
        return BulkAccounts([row.id for row in rows], _without_viewer(ctx, rows))
    (origin,) = await require_permitted_mail_owners(ctx, source_user, "sourceUser")
    if len(rows) != 1:
        text = "Messages can be moved or copied to only one other account: select one user."
        raise InvalidInput(
            text, constraint=ValidationConstraint.EXCLUSIVE, path=["select", "users"]
        )
    (target,) = rows
    if origin.id == target.id:
        return BulkAccounts([origin.id], _without_viewer(ctx, rows))
    if target.id == ctx.viewer.user_id:
        require_readable_account(ctx, origin.id)  # the viewer could read the messages there
    if origin.tenant_id != target.tenant_id:
        text = "Messages can't be moved or copied between accounts of different domains."
        raise Conflict(text, path=["sourceUser"])
    return BulkAccounts([origin.id], _without_viewer(ctx, [origin, target]), target)


def _without_viewer(ctx: Context, rows: Iterable[ColumnRow]) -> list[ColumnRow]:
    return [row for row in rows if row.id != ctx.viewer.user_id]


async def _with_required_target_mailboxes(
    ctx: Context, bulk_accounts: BulkAccounts, target_mailbox: MailboxSelector
) -> BulkAccounts:
    receiver_by_user = {
        key: bulk_accounts.receiving_user.id if bulk_accounts.receiving_user else key
        for key in bulk_accounts.user_ids
    }
    rows = await ctx.load_many(
        mailbox_loaders.load_visible_by_selectors,
        [(key, target_mailbox) for key in receiver_by_user.values()],
    )
    folders = {key: row for key, row in zip(receiver_by_user, rows, strict=True) if row}
    if len(receiver_by_user) == 1 and not folders:
        raise NotFound(str(target_mailbox), path=["to"])
    return BulkAccounts(
        bulk_accounts.user_ids, bulk_accounts.other_users, bulk_accounts.receiving_user, folders
    )


async def write_audit_log_of_bulk_change(
    ctx: Context,
    session: AsyncSession,
    bulk_accounts: BulkAccounts,
    mutation_name: str,
    message_count_by_user: Mapping[int, int],
) -> None:
    """Log a bulk change for each account of another user.

    Mail given away is also in its security log.
    """
    target = bulk_accounts.receiving_user
    touched = {
        **message_count_by_user,
        **(
            {target.id: sum(message_count_by_user.values())}
            if target and message_count_by_user
            else {}
        ),
    }
    entries = [
        NewAuditLogEntry(
            mutation_name, "User", row.id, row.domain_id, after={"messages": touched[row.id]}
        )
        for row in bulk_accounts.other_users
        if touched.get(row.id)
    ]
    await audit_log.insert_audit_log_entries(ctx, session, *entries)
    if target and message_count_by_user:
        values = {"to": target.username, "messages": sum(message_count_by_user.values())}
        await security_log.log_event_and_queue_notice(
            ctx, session, NewSecurityEvent(GIVEN_EVENT, bulk_accounts.user_ids[0], detail=values)
        )
