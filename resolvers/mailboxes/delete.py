"""Deletion of mailboxes. Their messages go to the archive of deleted messages."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import delete as delete_rows
from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Conflict, Forbidden, NotFound, require_within_limit
from models.events.event_types import EventType
from models.events.journal import MAX_IDS_PER_ROW
from models.mailboxes.shares import MailboxShare
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from resolvers.context import Context
from resolvers.filters import mutations as filter_mutations
from resolvers.mailboxes import shares, subscriptions
from resolvers.mailboxes.loaders import (
    MailboxSelector,
    MailboxTreeKey,
    load_visible_by_selectors,
    load_visible_trees,
)
from resolvers.mailboxes.owners import LockedAccounts, lock_mail_owners_and_audit_change
from resolvers.messages.bulk.row_changes import STATE_COLUMNS, group_rows_by_user, move_to_deleted
from resolvers.users.selection import VIEWER_ONLY, UserSelector

TREE_COLUMNS = frozenset(
    {"id", "user_id", "path", "special_use", "hidden", "message_count", "subscribed"}
)


@dataclass(frozen=True, slots=True)
class MailboxDeletion:
    """The mailboxes to delete, and the conditions for that."""

    selectors: Sequence[MailboxSelector]
    is_recursive: bool = False  # with their children
    requires_empty: bool = False
    deletes_subscriptions: bool = True  # False keeps the subscriptions to their paths


async def delete_mailboxes(
    ctx: Context, request: MailboxDeletion, users: UserSelector = VIEWER_ONLY
) -> list[int]:
    """Delete mailboxes and archive their messages: all of them or none.

    Returns the IDs of the deleted mailboxes. Raises InvalidInput or NotFound, Conflict if there are
    children or messages that the request excludes, and Forbidden for INBOX, hidden mailboxes and
    those with a special use, and LimitReached if a user would keep too many
    subscriptions to paths without a mailbox.
    """
    max_mailboxes = ctx.environment.options.bulk_max_items
    require_within_limit(
        len(request.selectors),
        max_mailboxes,
        f"At most {max_mailboxes} mailboxes can be deleted at once.",
        path=["mailboxes"],
    )
    async with lock_mail_owners_and_audit_change(
        ctx, users, "mailboxDelete", extra_locked_streams=shares.load_grantee_ids
    ) as locked_owners:
        all_trees = await ctx.load_many(
            load_visible_trees,
            [MailboxTreeKey(user, TREE_COLUMNS) for user in locked_owners.user_ids],
        )
        keys = [(user, name) for user in locked_owners.user_ids for name in request.selectors]
        rows = iter(await ctx.load_many(load_visible_by_selectors, keys))
        deleted_by_user: dict[int, list[ColumnRow]] = {}
        for user, tree in zip(locked_owners.user_ids, all_trees, strict=True):
            selected_rows = [next(rows) for _ in request.selectors]
            deleted_by_user[user] = _require_deletable_mailboxes(
                locked_owners, user, selected_rows, tree, request
            )
        await _delete_mailboxes_keeping_deleted_messages(
            locked_owners, deleted_by_user, deletes_subscriptions=request.deletes_subscriptions
        )
    return [row.id for user_rows in deleted_by_user.values() for row in user_rows]


def _require_deletable_mailboxes(
    locked: LockedAccounts,
    user_id: int,
    selected: Sequence[ColumnRow | None],
    tree: Sequence[ColumnRow],
    request: MailboxDeletion,
) -> list[ColumnRow]:
    """Return the mailboxes to delete in one account. Raises NotFound, Conflict or Forbidden."""
    rows_by_id: dict[int, ColumnRow] = {}
    listed = {row.id for row in selected if row}
    for index, (name, row) in enumerate(zip(request.selectors, selected, strict=True)):
        if row is None:
            raise NotFound(
                locked.prefix_username_unless_viewer(user_id, str(name)),
                path=["mailboxes"],
                index=index,
            )
        below = [other for other in tree if other.path.startswith(f"{row.path}/")]
        if not request.is_recursive and any(other.id not in listed for other in below):
            text = locked.prefix_username_unless_viewer(
                user_id, "The mailbox has child mailboxes: set `recursive` to delete them too."
            )
            raise Conflict(text, path=["mailboxes"], index=index)
        for mailbox in (row, *(below if request.is_recursive else ())):
            _require_deletable(locked, mailbox, index, requires_empty=request.requires_empty)
            rows_by_id[mailbox.id] = mailbox
    return list(rows_by_id.values())


def _require_deletable(
    locked: LockedAccounts, mailbox: ColumnRow, index: int, *, requires_empty: bool
) -> None:
    """Raise Forbidden if the mailbox can't be deleted, and Conflict if it has to be empty."""
    if mailbox.special_use or mailbox.hidden:
        text = "INBOX, hidden mailboxes and mailboxes with a special use can't be deleted."
        text = locked.prefix_username_unless_viewer(mailbox.user_id, text)
        raise Forbidden(text, path=["mailboxes"], index=index)
    if requires_empty and mailbox.message_count:
        text = locked.prefix_username_unless_viewer(mailbox.user_id, "The mailbox is not empty.")
        raise Conflict(text, path=["mailboxes"], index=index)


async def _delete_mailboxes_keeping_deleted_messages(
    locked: LockedAccounts,
    mailboxes_by_user: Mapping[int, Sequence[ColumnRow]],
    *,
    deletes_subscriptions: bool,
) -> None:
    """Archive the messages, delete the mailboxes with shares and filters, and record it."""
    connection = await locked.session.connection()
    rows = [row for user_rows in mailboxes_by_user.values() for row in user_rows]
    await _move_messages_of_mailboxes_to_deleted(locked, rows)
    for start in range(0, len(rows), MAX_IDS_PER_ROW):
        keys = [row.id for row in rows[start : start + MAX_IDS_PER_ROW]]
        await shares.end_shares(locked.ctx, locked.session, col(MailboxShare.mailbox_id).in_(keys))
        await connection.execute(delete_rows(Mailbox).where(col(Mailbox.id).in_(keys)))
    if not deletes_subscriptions:
        before = await subscriptions.load_folderless_subscriptions(
            locked.session, list(mailboxes_by_user)
        )
        after = {
            user: before[user] | set(_subscribed_paths(user_rows))
            for user, user_rows in mailboxes_by_user.items()
        }
        await subscriptions.write_changed_folderless_subscriptions(
            locked, before, after, path_in_input="mailboxes"
        )
    event_type = EventType.MAILBOX_DELETED
    keys_of = {user: {row.id for row in user_rows} for user, user_rows in mailboxes_by_user.items()}
    filters = await filter_mutations.delete_filters_and_build_journal_entries(
        locked.ctx, locked.session, keys_of
    )
    await locked.record_changes(
        {
            user: [
                *locked.ctx.journal_entries(
                    event_type, [row.id for row in user_rows], path=[row.path for row in user_rows]
                ),
                *filters.get(user, ()),
            ]
            for user, user_rows in mailboxes_by_user.items()
        }
    )


async def delete_empty_mailboxes(
    ctx: Context, session: AsyncSession, mailbox_ids: Collection[int]
) -> list[int]:
    """Delete those of these mailboxes that are empty, and return their IDs.

    The streams of the owners are locked. A mailbox stays if it can never be deleted, or if a child
    stays.
    """
    connection = await session.connection()
    statement = select(*select_columns(Mailbox, TREE_COLUMNS)).where(
        col(Mailbox.id).in_(sorted(mailbox_ids))
    )
    rows = (await connection.execute(statement)).all()
    empty = [row for row in rows if not (row.message_count or row.special_use or row.hidden)]
    owners = sorted({row.user_id for row in empty})
    paths = select(col(Mailbox.id), col(Mailbox.user_id), col(Mailbox.path))
    existing_rows = (await connection.execute(paths.where(col(Mailbox.user_id).in_(owners)))).all()
    deleted_rows_by_id: dict[int, ColumnRow] = {}
    for row in sorted(empty, key=lambda row: row.path.count("/"), reverse=True):
        below = f"{row.path}/"
        if all(
            other.id in deleted_rows_by_id
            or other.user_id != row.user_id
            or not other.path.startswith(below)
            for other in existing_rows
        ):
            deleted_rows_by_id[row.id] = row
    if deleted_rows_by_id:
        rows_by_user = group_rows_by_user(deleted_rows_by_id.values())
        await _delete_mailboxes_keeping_deleted_messages(
            LockedAccounts(ctx, session, []), rows_by_user, deletes_subscriptions=True
        )
    return list(deleted_rows_by_id)


def _subscribed_paths(mailboxes: Iterable[ColumnRow]) -> Iterable[str]:
    return (row.path for row in mailboxes if row.subscribed)


async def _move_messages_of_mailboxes_to_deleted(
    locked: LockedAccounts, mailboxes: Sequence[ColumnRow]
) -> None:
    """Archive the messages of these mailboxes, a thousand at a time."""
    connection, paths = await locked.session.connection(), {row.id: row.path for row in mailboxes}
    filled = [row.id for row in mailboxes if row.message_count]
    for start in range(0, len(filled), MAX_IDS_PER_ROW):
        inside = col(Message.mailbox_id).in_(filled[start : start + MAX_IDS_PER_ROW])
        statement = (
            select(*select_columns(Message, STATE_COLUMNS)).where(inside).limit(MAX_IDS_PER_ROW)
        )
        while messages := (await connection.execute(statement)).all():
            ordered = sorted(messages, key=lambda row: row.id)
            await move_to_deleted(locked.ctx, locked.session, ordered, paths)
