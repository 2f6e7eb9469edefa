"""Deletion of mailboxes. Their messages go to the archive of deleted messages."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import delete as delete_rows
from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Conflict, Forbidden, Invalid, NotFound, check_limit
from models.events.journal import LONGEST, ChangeKind
from models.mailboxes.shares import MailboxShare
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import Picked, picked
from resolvers.context import Context
from resolvers.filters import mutations as filter_mutations
from resolvers.mailboxes import shares, subscriptions
from resolvers.mailboxes.loaders import Named, Tree, named, trees
from resolvers.mailboxes.owners import Held, holding
from resolvers.messages.bulk.row_changes import STATE, archive, by_user
from resolvers.users.selection import MINE, Users

COLUMNS = frozenset({"id", "user_id", "path", "special_use", "hidden", "total", "subscribed"})


@dataclass(frozen=True, slots=True)
class Gone:
    """The mailboxes to delete, and the conditions for that."""

    names: Sequence[Named]
    recursive: bool = False  # with their children
    require_empty: bool = False
    unsubscribe: bool = True  # False keeps the subscriptions to their paths


async def delete(ctx: Context, what: Gone, users: Users = MINE) -> list[int]:
    """Delete mailboxes and archive their messages: all of them or none.

    Returns the IDs of the deleted mailboxes. Raises InvalidInput or NotFound, Conflict if there are
    children or messages that the request excludes, and Forbidden for INBOX, hidden mailboxes and
    those with a special use.
    """
    most = ctx.world.options.bulk
    if not what.names:
        raise Invalid("name at least one folder", constraint="required", path=["mailboxes"])
    check_limit(len(what.names), most, f"at most {most} at once", path=["mailboxes"])
    async with holding(ctx, users, "mailboxDelete", also=shares.grantees) as held:
        all_trees = await ctx.load_all(trees, [Tree(user, COLUMNS) for user in held.ids])
        keys = [(user, name) for user in held.ids for name in what.names]
        rows = iter(await ctx.load_all(named, keys))
        gone: dict[int, list[Picked]] = {}
        for user, tree in zip(held.ids, all_trees, strict=True):
            these = [next(rows) for _ in what.names]
            gone[user] = _chosen(held, user, these, tree, what)
        await _remove(held, gone, unsubscribe=what.unsubscribe)
    return [row.id for theirs in gone.values() for row in theirs]


def _chosen(
    held: Held, user: int, rows: Sequence[Picked | None], tree: Sequence[Picked], what: Gone
) -> list[Picked]:
    """Return the mailboxes to delete in one account. Raises NotFound, Conflict or Forbidden."""
    gone: dict[int, Picked] = {}
    listed = {row.id for row in rows if row}
    for index, (name, row) in enumerate(zip(what.names, rows, strict=True)):
        if row is None:
            raise NotFound(held.whose(user, str(name)), path=["mailboxes"], index=index)
        below = [other for other in tree if other.path.startswith(f"{row.path}/")]
        if not what.recursive and any(other.id not in listed for other in below):
            text = held.whose(user, "there are folders below it: say recursive")
            raise Conflict(text, path=["mailboxes"], index=index)
        for one in (row, *(below if what.recursive else ())):
            _check(held, one, index, require_empty=what.require_empty)
            gone[one.id] = one
    return list(gone.values())


def _check(held: Held, row: Picked, index: int, *, require_empty: bool) -> None:
    """Raise Forbidden if the mailbox can't be deleted, and Conflict if it has to be empty."""
    if row.special_use or row.hidden:
        text = "INBOX, hidden folders and those with a role stay"
        refusal = Forbidden(held.whose(row.user_id, text), path=["mailboxes"])
        refusal.index = index
        raise refusal
    if require_empty and row.total:
        text = held.whose(row.user_id, "the folder is not empty")
        raise Conflict(text, path=["mailboxes"], index=index)


async def _remove(held: Held, gone: Mapping[int, Sequence[Picked]], *, unsubscribe: bool) -> None:
    """Delete the mailboxes with their shares, subscriptions and uses in filters, and record it."""
    connection = await held.session.connection()
    rows = [row for theirs in gone.values() for row in theirs]
    await _archive(held, rows)
    for start in range(0, len(rows), LONGEST):
        keys = [row.id for row in rows[start : start + LONGEST]]
        await shares.end(held.ctx, held.session, col(MailboxShare.mailbox_id).in_(keys))
        await connection.execute(delete_rows(Mailbox).where(col(Mailbox.id).in_(keys)))
    if not unsubscribe:
        before = await subscriptions.standing(held.session, list(gone))
        after = {user: before[user] | set(_subscribed(theirs)) for user, theirs in gone.items()}
        await subscriptions.rewrite(held.session, before, after)
    kind = ChangeKind.MAILBOX_DELETED
    keys_of = {user: {row.id for row in theirs} for user, theirs in gone.items()}
    filters = await filter_mutations.without(held.ctx, held.session, keys_of)
    await held.tell(
        {
            user: [
                *held.ctx.entries(
                    kind, [row.id for row in theirs], path=[row.path for row in theirs]
                ),
                *filters.get(user, ()),
            ]
            for user, theirs in gone.items()
        }
    )


async def drop_empty(ctx: Context, session: AsyncSession, keys: Collection[int]) -> list[int]:
    """Delete those of these mailboxes that are empty, and return their IDs.

    The streams of the owners are locked. A mailbox stays if it can never be deleted, or if a child
    stays.
    """
    connection = await session.connection()
    statement = select(*picked(Mailbox, COLUMNS)).where(col(Mailbox.id).in_(sorted(keys)))
    rows = (await connection.execute(statement)).all()
    empty = [row for row in rows if not (row.total or row.special_use or row.hidden)]
    owners = sorted({row.user_id for row in empty})
    paths = select(col(Mailbox.id), col(Mailbox.user_id), col(Mailbox.path))
    there = (await connection.execute(paths.where(col(Mailbox.user_id).in_(owners)))).all()
    gone: dict[int, Picked] = {}
    for row in sorted(empty, key=lambda row: row.path.count("/"), reverse=True):
        below = f"{row.path}/"
        if all(
            other.id in gone or other.user_id != row.user_id or not other.path.startswith(below)
            for other in there
        ):
            gone[row.id] = row
    if gone:
        whose = by_user(gone.values())
        await _remove(Held(ctx, session, []), whose, unsubscribe=True)
    return list(gone)


def _subscribed(rows: Iterable[Picked]) -> Iterable[str]:
    return (row.path for row in rows if row.subscribed)


async def _archive(held: Held, rows: Sequence[Picked]) -> None:
    """Archive the messages of these mailboxes, a thousand at a time."""
    connection, paths = await held.session.connection(), {row.id: row.path for row in rows}
    filled = [row.id for row in rows if row.total]
    for start in range(0, len(filled), LONGEST):
        inside = col(Message.mailbox_id).in_(filled[start : start + LONGEST])
        statement = select(*picked(Message, STATE)).where(inside).limit(LONGEST)
        while messages := (await connection.execute(statement)).all():
            ordered = sorted(messages, key=lambda row: row.id)
            await archive(held.ctx, held.session, ordered, paths)
