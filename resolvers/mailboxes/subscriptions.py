"""Subscriptions to paths that have no mailbox."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any

from sqlalchemy import bindparam, delete, insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import LimitReached
from models.mailboxes.tables import MailboxSubscription
from models.store.columns import core_table
from models.users.tables import User
from resolvers.access import can_see_managed_mail_records, is_managed_user, require_user_id
from resolvers.context import Context
from resolvers.mailboxes.owners import LockedAccounts

PathsByUser = Mapping[int, set[str]]  # by user ID


async def load_folderless_subscriptions(
    session: AsyncSession, user_ids: Collection[int]
) -> PathsByUser:
    """Load these subscriptions by user, in a transaction that has locked the users' streams."""
    statement = select(col(MailboxSubscription.user_id), col(MailboxSubscription.path)).where(
        col(MailboxSubscription.user_id).in_(user_ids)
    )
    paths_by_user: defaultdict[int, set[str]] = defaultdict(set)
    for user_id, path in await (await session.connection()).execute(statement):
        paths_by_user[user_id].add(path)
    return paths_by_user


async def write_changed_folderless_subscriptions(
    locked: LockedAccounts,
    paths_before: PathsByUser,
    paths_after: PathsByUser,
    *,
    path_in_input: str,
) -> list[int]:
    """Write the difference of these subscriptions. Returns the IDs of the users with a change.

    Raises LimitReached if a user gets more of them than `mailboxes_max_per_user`.
    """
    _require_capacity(locked, paths_before, paths_after, path_in_input)
    connection, users = await locked.session.connection(), sorted({*paths_before, *paths_after})
    deleted_rows = [
        row for user in users for row in _rows_only_in_first(user, paths_before, paths_after)
    ]
    new = [row for user in users for row in _rows_only_in_first(user, paths_after, paths_before)]
    table = core_table(MailboxSubscription)
    if deleted_rows:
        is_subscription = (
            table.c.user_id == bindparam("user"),
            table.c.digest == bindparam("which"),
        )
        parameters = [{"user": row["user_id"], "which": row["digest"]} for row in deleted_rows]
        await connection.execute(delete(table).where(*is_subscription), parameters)
    if new:
        await connection.execute(insert(table), new)
    return sorted({row["user_id"] for row in [*deleted_rows, *new]})


def _require_capacity(
    locked: LockedAccounts, paths_before: PathsByUser, paths_after: PathsByUser, path_in_input: str
) -> None:
    """Raise LimitReached if the number of a user's subscriptions grows beyond the limit."""
    limit = locked.ctx.environment.options.mailboxes_max_per_user
    for user, paths in paths_after.items():
        used = len(paths_before.get(user, ()))
        if len(paths) > max(limit, used):
            text = locked.prefix_username_unless_viewer(
                user, "The account has the maximum number of subscriptions without mailboxes."
            )
            raise LimitReached(text, limit=limit, used=used, path=[path_in_input])


def _rows_only_in_first(
    user_id: int, first: PathsByUser, second: PathsByUser
) -> list[dict[str, Any]]:
    """Return the rows of a user's paths that only the first mapping has."""
    paths = sorted(first.get(user_id, set()) - second.get(user_id, set()))
    return [
        {"user_id": user_id, "digest": sha256(path.encode()).hexdigest(), "path": path}
        for path in paths
    ]


async def load_visible_folderless_subscriptions(
    ctx: Context, user_ids: list[int]
) -> list[list[str]]:
    """Load the paths for these users, in their order. Empty for users the viewer can't see."""
    statement = select(col(MailboxSubscription.user_id), col(MailboxSubscription.path)).where(
        col(MailboxSubscription.user_id).in_(user_ids)
    )
    if can_see_managed_mail_records(ctx):
        query = select(col(User.id)).where(is_managed_user(ctx))
        statement = statement.where(col(MailboxSubscription.user_id).in_(query))
    else:
        statement = statement.where(col(MailboxSubscription.user_id) == require_user_id(ctx))
    paths_by_user: defaultdict[int, list[str]] = defaultdict(list)
    for row in await ctx.read(statement):
        paths_by_user[row.user_id].append(row.path)
    return [paths_by_user[key] for key in user_ids]
