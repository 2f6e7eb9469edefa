"""Renaming of mailboxes with their children."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Integer, String, bindparam, func, or_, select, update
from sqlmodel import col

from mail.mailboxes.paths import MAX_LEVELS, missing_paths_with_parents, validate_path
from models.errors import Conflict, Forbidden, InvalidInput, NotFound
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import ColumnRow, core_table, select_columns
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.mailboxes import subscriptions
from resolvers.mailboxes.create import (
    build_mailbox_with_next_uid_validity,
    load_refreshed_users,
    require_mailbox_capacity,
)
from resolvers.mailboxes.loaders import (
    MailboxSelector,
    load_visible_by_ids,
    load_visible_by_selectors,
)
from resolvers.mailboxes.owners import LockedAccounts, lock_mail_owners_and_audit_change
from resolvers.users.selection import VIEWER_ONLY, UserSelector

TEMPORARY_PREFIX = "//"  # no valid path begins with it


@dataclass(frozen=True, slots=True)
class MailboxRename:
    """A mailbox, and the path it gets."""

    mailbox: MailboxSelector
    new_path: str
    moves_subscriptions: bool = True  # subscriptions of old paths apply to the new ones


@dataclass(slots=True)
class MailboxMove:
    """A mailbox of one account that moves with its children."""

    mailbox: ColumnRow
    subtree: list[ColumnRow]
    ids_by_occupied_path: dict[str, int]  # mailboxes at or above the new path
    new_path: str

    def new_path_of(self, old_path: str) -> str:
        """Return the new path of the mailbox or of one of its children."""
        return self.new_path + old_path[len(self.mailbox.path) :]


async def rename_mailbox(
    ctx: Context, request: MailboxRename, users: UserSelector = VIEWER_ONLY
) -> list[ColumnRow]:
    """Rename a mailbox with its children, and create missing parents of the new path.

    Returns all renamed mailboxes, by account, each mailbox before its children. Raises NotFound,
    Conflict, InvalidInput or LimitReached, and Forbidden for INBOX and hidden mailboxes.
    """
    path = validate_path(request.new_path, input_path=["newPath"])
    async with lock_mail_owners_and_audit_change(ctx, users, "mailboxRename") as locked_owners:
        olds = await ctx.load_many(
            load_visible_by_selectors, [(user, request.mailbox) for user in locked_owners.user_ids]
        )
        for user, old in zip(locked_owners.user_ids, olds, strict=True):
            _require_movable(locked_owners, user, old, request, path)
        moving = [old for old in olds if old is not None and old.path != path]
        moves = await _load_moves(locked_owners, moving, path)
        for user, move in moves.items():
            _require_free_targets(locked_owners, user, move)
        if moves:
            await _write_moves(
                locked_owners, moves, moves_subscriptions=request.moves_subscriptions
            )
    keys = [
        row.id for old in olds if old for row in _rows_in_tree_order(moves.get(old.user_id), old)
    ]
    return [row for row in await ctx.load_many(load_visible_by_ids, keys) if row]


def _rows_in_tree_order(move: MailboxMove | None, mailbox: ColumnRow) -> Sequence[ColumnRow]:
    return sorted(move.subtree, key=lambda row: row.path.split("/")) if move else [mailbox]


def _require_movable(
    locked: LockedAccounts,
    user_id: int,
    mailbox: ColumnRow | None,
    request: MailboxRename,
    new_path: str,
) -> None:
    """Raise NotFound or Forbidden if the mailbox can't move to the new path."""
    if mailbox is None:
        raise NotFound(
            locked.prefix_username_unless_viewer(user_id, str(request.mailbox)), path=["mailbox"]
        )
    if mailbox.path == new_path:
        return
    if mailbox.special_use is SpecialUse.INBOX or mailbox.hidden:
        text = locked.prefix_username_unless_viewer(
            user_id, "INBOX and hidden mailboxes can't be renamed."
        )
        raise Forbidden(text, path=["mailbox"])
    if new_path.startswith(f"{mailbox.path}/"):
        raise Forbidden("A mailbox can't be moved below itself.", path=["newPath"])


def is_below_sql(path: str) -> ColumnElement[bool]:
    """Build the condition that a mailbox is below this path.

    LIKE ignores case on SQLite, so this compares the prefix.
    """
    prefix = f"{path}/"
    return func.substr(col(Mailbox.path), 1, len(prefix)) == prefix


async def _load_moves(
    locked: LockedAccounts, mailboxes: Sequence[ColumnRow], new_path: str
) -> dict[int, MailboxMove]:
    """Load what moves and what occupies the target paths, with two statements for all accounts."""
    users_by_path: defaultdict[str, list[int]] = defaultdict(list)
    for old in mailboxes:
        users_by_path[old.path].append(old.user_id)
    connection = await locked.session.connection()
    moves = {old.user_id: MailboxMove(old, [], {}, new_path) for old in mailboxes}
    if not moves:
        return {}
    tree_conditions = [
        col(Mailbox.user_id).in_(users) & ((col(Mailbox.path) == old) | is_below_sql(old))
        for old, users in users_by_path.items()
    ]
    columns = select_columns(Mailbox, ("id", "user_id", "path", "subscribed"))
    for row in (await connection.execute(select(*columns).where(or_(*tree_conditions)))).all():
        moves[row.user_id].subtree.append(row)
    is_at_target = col(Mailbox.path).in_(missing_paths_with_parents([new_path])) | is_below_sql(
        new_path
    )
    occupied = select(*columns).where(col(Mailbox.user_id).in_(moves), is_at_target)
    for row in (await connection.execute(occupied)).all():
        moves[row.user_id].ids_by_occupied_path[row.path] = row.id
    return moves


def _require_free_targets(locked: LockedAccounts, user_id: int, move: MailboxMove) -> None:
    """Raise InvalidInput if a new path is too deep, and Conflict if it is occupied."""
    moved_ids = {row.id for row in move.subtree}
    for row in move.subtree:
        target = move.new_path_of(row.path)
        if target.count("/") >= MAX_LEVELS:
            text = locked.prefix_username_unless_viewer(
                user_id, f"A path has at most {MAX_LEVELS} levels."
            )
            raise InvalidInput(text, constraint=ValidationConstraint.PATTERN, path=["newPath"])
        if move.ids_by_occupied_path.get(target, row.id) not in moved_ids:
            text = "A mailbox with this path already exists."
            raise Conflict(locked.prefix_username_unless_viewer(user_id, text), path=["newPath"])


async def _write_moves(
    locked: LockedAccounts, moves: Mapping[int, MailboxMove], *, moves_subscriptions: bool
) -> None:
    parents = await _build_missing_parents(locked, moves)
    before = await subscriptions.load_folderless_subscriptions(locked.session, list(moves))
    after = {}
    subscribed: dict[int, bool] = {}
    for user, move in moves.items():
        after[user] = _folderless_subscriptions_after(
            move, before[user], subscribed, moves_subscriptions=moves_subscriptions
        )
        for mailbox in parents[user]:
            mailbox.subscribed = mailbox.path in after[user] or mailbox.subscribed
            after[user].discard(mailbox.path)
    locked.session.add_all(mailbox for mailboxes in parents.values() for mailbox in mailboxes)
    await locked.session.flush()
    await subscriptions.write_changed_folderless_subscriptions(
        locked, before, after, path_in_input="mailbox"
    )
    lasts = await _journal_mailbox_moves(locked, moves, parents)
    await _update_paths(locked, moves, lasts)
    connection, table = await locked.session.connection(), core_table(Mailbox)
    for value in (True, False):
        keys = [{"key": key} for key, is_subscribed in subscribed.items() if is_subscribed is value]
        if keys:
            statement = update(table).where(table.c.id == bindparam("key")).values(subscribed=value)
            await connection.execute(statement, keys)


async def _build_missing_parents(
    locked: LockedAccounts, moves: Mapping[int, MailboxMove]
) -> dict[int, list[Mailbox]]:
    """Build the missing parents of the new paths, by user. Raises LimitReached."""
    missing = {
        user: [
            p
            for p in missing_paths_with_parents([move.new_path], move.ids_by_occupied_path)
            if p != move.new_path
        ]
        for user, move in moves.items()
    }
    needy = [user for user, paths in missing.items() if paths]
    if not needy:
        return {user: [] for user in moves}
    accounts = await load_refreshed_users(locked, needy)
    statement = select(col(Mailbox.user_id), func.count()).where(col(Mailbox.user_id).in_(needy))
    counted = await (await locked.session.connection()).execute(
        statement.group_by(col(Mailbox.user_id))
    )
    for user, existing_count in counted.all():
        require_mailbox_capacity(
            locked, user, existing_count, len(missing[user]), path_in_input="newPath"
        )
    locked.session.add_all(accounts.values())
    return {
        user: [
            build_mailbox_with_next_uid_validity(locked.ctx, accounts[user], path, None)
            for path in paths
        ]
        for user, paths in missing.items()
    }


def _folderless_subscriptions_after(
    move: MailboxMove,
    subscribed_before: set[str],
    collected_changes: dict[int, bool],
    *,
    moves_subscriptions: bool,
) -> set[str]:
    """Return the subscribed paths without a mailbox after the move.

    Adds each mailbox with a change of `changes_by_mailbox` to `changes_by_mailbox`.
    """
    prefix = f"{move.mailbox.path}/"
    after = set(subscribed_before)
    if moves_subscriptions:
        after = {
            move.new_path_of(path) if path.startswith(prefix) else path
            for path in subscribed_before
        }
    else:
        after |= {row.path for row in move.subtree if row.subscribed}
    for row in move.subtree:
        target = move.new_path_of(row.path)
        is_wanted = target in after or (moves_subscriptions and row.subscribed)
        after.discard(target)
        if is_wanted != row.subscribed:
            collected_changes[row.id] = is_wanted
    return after


async def _journal_mailbox_moves(
    locked: LockedAccounts,
    moves: Mapping[int, MailboxMove],
    parents: Mapping[int, Sequence[Mailbox]],
) -> Mapping[int, int]:
    """Record the new parents and the renamed mailboxes.

    Returns the last position of each stream.
    """
    entries = {}
    for user, move in moves.items():
        created_parents = parents[user]
        created, renamed = EventType.MAILBOX_CREATED, EventType.MAILBOX_RENAMED
        paths = [row.path for row in move.subtree]
        new = [move.new_path_of(path) for path in paths]
        keys = [row.id for row in move.subtree]
        entries[user] = [
            *locked.ctx.journal_entries(
                created,
                [mailbox.id for mailbox in created_parents],
                path=[mailbox.path for mailbox in created_parents],
            ),
            *locked.ctx.journal_entries(renamed, keys, path=new, oldPath=paths),
        ]
    return await locked.record_changes(entries)


async def _update_paths(
    locked: LockedAccounts, moves: Mapping[int, MailboxMove], last_positions: Mapping[int, int]
) -> None:
    """Write the new paths in one statement.

    A mailbox that moves to one of its own parents' paths is first moved aside, since old and new
    paths can be equal.
    """
    connection, table = await locked.session.connection(), core_table(Mailbox)
    start = func.substr(table.c.path, 1, bindparam("long", type_=Integer), type_=String)
    is_in_tree = (table.c.path == bindparam("old")) | (start == bindparam("prefix"))
    tail = func.substr(table.c.path, bindparam("from", type_=Integer), type_=String)
    statement = (
        update(table)
        .where(table.c.user_id == bindparam("user"), is_in_tree)
        .values(path=bindparam("to", type_=String) + tail)
    )

    def _update_parameters(user_id: int, old_path: str, new_path: str) -> dict[str, Any]:
        return {
            "user": user_id,
            "old": old_path,
            "prefix": f"{old_path}/",
            "long": len(old_path) + 1,
            "from": len(old_path) + 1,
            "to": new_path,
            "last": last_positions[user_id],
        }

    upwards = {
        u: move for u, move in moves.items() if move.mailbox.path.startswith(f"{move.new_path}/")
    }
    if upwards:
        aside = [
            _update_parameters(u, move.mailbox.path, TEMPORARY_PREFIX + move.mailbox.path)
            for u, move in upwards.items()
        ]
        await connection.execute(statement, aside)
    everything = [
        _update_parameters(
            u, (TEMPORARY_PREFIX if u in upwards else "") + move.mailbox.path, move.new_path
        )
        for u, move in moves.items()
    ]
    await connection.execute(statement, everything)
