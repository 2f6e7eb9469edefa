"""Subscribing to paths, which need not have a mailbox yet."""

from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, select, update
from sqlmodel import col

from mail.mailboxes.paths import canonical_path, validate_path
from models.errors import NotFound, check_count_from_one_to_limit, require_within_limit
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, core_table, select_columns
from resolvers.context import Context
from resolvers.mailboxes import subscriptions
from resolvers.mailboxes.loaders import (
    MailboxSelector,
    load_visible_by_ids,
    load_visible_by_selectors,
)
from resolvers.mailboxes.owners import LockedAccounts, lock_mail_owners_and_audit_change
from resolvers.users.selection import VIEWER_ONLY, UserSelector


async def set_subscribed(
    ctx: Context,
    selectors: Sequence[MailboxSelector],
    users: UserSelector = VIEWER_ONLY,
    *,
    is_subscribed: bool,
) -> list[ColumnRow]:
    """Subscribe accounts to mailboxes, or unsubscribe them. Returns the mailboxes that exist.

    A selector by path needs no mailbox. Raises InvalidInput, LimitReached, and NotFound if an
    account has no mailbox of another selector.
    """
    max_count = ctx.environment.options.bulk_max_items
    check_count_from_one_to_limit(
        len(selectors),
        max_count,
        f"From 1 to {max_count} mailboxes are required.",
        path=["mailboxes"],
    )
    if is_subscribed:
        selectors = [
            selector
            if selector.path is None
            else MailboxSelector(
                path=validate_path(selector.path, input_path=["mailboxes", str(nth), "path"])
            )
            for nth, selector in enumerate(selectors)
        ]
    name = "mailboxSubscribe" if is_subscribed else "mailboxUnsubscribe"
    async with lock_mail_owners_and_audit_change(ctx, users, name) as locked_owners:
        paths = await _require_selected_paths_by_user(locked_owners, selectors)
        columns = select_columns(Mailbox, ("id", "user_id", "path", "subscribed"))
        statement = select(*columns).where(
            col(Mailbox.user_id).in_(locked_owners.user_ids),
            col(Mailbox.path).in_(set().union(*paths.values())),
        )
        changed_rows = (await (await locked_owners.session.connection()).execute(statement)).all()
        rows = [row for row in changed_rows if row.path in paths[row.user_id]]
        touched = await _write_folderless_subscriptions(
            locked_owners, rows, paths, is_subscribed=is_subscribed
        )
        await _toggle_subscribed_and_journal(
            locked_owners, [row for row in rows if row.subscribed is not is_subscribed], touched
        )
    keys = [row.id for row in sorted(rows, key=lambda row: (row.user_id, row.path))]
    return [row for row in await ctx.load_many(load_visible_by_ids, keys) if row]


async def _require_selected_paths_by_user(
    locked: LockedAccounts, selectors: Sequence[MailboxSelector]
) -> dict[int, set[str]]:
    """Return the paths that the selectors name in each account.

    Raises NotFound if an account has no mailbox of a selector that has no path.
    """
    named_selectors = [
        (nth, selector) for nth, selector in enumerate(selectors) if selector.path is None
    ]
    keys = [(user, selector) for user in locked.user_ids for _, selector in named_selectors]
    max_count = locked.ctx.environment.options.bulk_max_items
    text = f"At most {max_count} mailboxes of all users are allowed."
    require_within_limit(len(keys), max_count, text, path=["mailboxes"])
    rows = await locked.ctx.load_many(load_visible_by_selectors, keys)
    given_paths = {
        canonical_path(selector.path) for selector in selectors if selector.path is not None
    }
    paths = {user: set(given_paths) for user in locked.user_ids}
    positions = [nth for _ in locked.user_ids for nth, _ in named_selectors]
    for (user, selector), nth, row in zip(keys, positions, rows, strict=True):
        if row is None:
            text = locked.prefix_username_unless_viewer(user, str(selector))
            raise NotFound(text, path=["mailboxes", str(nth)])
        paths[user].add(row.path)
    return paths


async def _write_folderless_subscriptions(
    locked: LockedAccounts,
    mailboxes: Sequence[ColumnRow],
    paths_by_user: Mapping[int, set[str]],
    *,
    is_subscribed: bool,
) -> list[int]:
    """Write the subscriptions to paths without a mailbox. Returns the users with a change."""
    before = await subscriptions.load_folderless_subscriptions(locked.session, locked.user_ids)
    after = {}
    for user in locked.user_ids:
        existing_paths = {row.path for row in mailboxes if row.user_id == user}
        had, paths = before.get(user, set()), paths_by_user[user]
        after[user] = had | (paths - existing_paths) if is_subscribed else had - paths
    return await subscriptions.write_changed_folderless_subscriptions(
        locked, before, after, path_in_input="mailboxes"
    )


async def _toggle_subscribed_and_journal(
    locked: LockedAccounts,
    mailboxes: Sequence[ColumnRow],
    user_ids_with_path_changes: Sequence[int],
) -> None:
    """Invert `subscribed` of these mailboxes and record all changes."""
    entries = {}
    for user in {*user_ids_with_path_changes, *(row.user_id for row in mailboxes)}:
        mailbox_ids = [row.id for row in mailboxes if row.user_id == user]
        entries[user] = [
            *locked.ctx.journal_entries(
                EventType.USER_UPDATED, [user] if user in user_ids_with_path_changes else []
            ),
            *locked.ctx.journal_entries(EventType.MAILBOX_UPDATED, mailbox_ids),
        ]
    await locked.record_changes(entries)
    if mailboxes:
        table = core_table(Mailbox)
        changed = update(table).where(table.c.id == bindparam("key"))
        changed = changed.values(subscribed=~table.c.subscribed)
        parameters = [{"key": row.id} for row in mailboxes]
        await (await locked.session.connection()).execute(changed, parameters)
