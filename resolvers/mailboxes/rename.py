"""Renaming of mailboxes with their children."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Integer, String, bindparam, func, or_, select, update
from sqlmodel import col

from mail.mailboxes.paths import LEVELS, checked_path, with_parents
from models.errors import Conflict, Forbidden, Invalid, NotFound
from models.events.journal import ChangeKind
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import Picked, picked, table_of
from models.store.prepared_statements import number
from resolvers.context import Context
from resolvers.mailboxes import subscriptions
from resolvers.mailboxes.loaders import Named, accounts_of, by_ids, check_room, named, new_mailbox
from resolvers.mailboxes.owners import Held, holding
from resolvers.users.selection import MINE, Users

ASIDE = "//"  # no valid path begins with it


@dataclass(frozen=True, slots=True)
class Renamed:
    """A mailbox, and the path it gets."""

    mailbox: Named
    new_path: str
    subscriptions: bool = True  # subscriptions of old paths apply to the new ones


@dataclass(slots=True)
class Move:
    """A mailbox of one account that moves with its children."""

    old: Picked
    rows: list[Picked]
    there: dict[str, int]  # mailboxes at or above the new path
    path: str

    def target(self, path: str) -> str:
        """Return the new path of the mailbox or of one of its children."""
        return self.path + path[len(self.old.path) :]


async def rename(ctx: Context, asked: Renamed, users: Users = MINE) -> list[Picked]:
    """Rename a mailbox with its children, and create missing parents of the new path.

    Returns all renamed mailboxes, by account, each mailbox before its children. Raises NotFound,
    Conflict, InvalidInput or LimitReached, and Forbidden for INBOX and hidden mailboxes.
    """
    path = checked_path(asked.new_path, path_in=["newPath"])
    async with holding(ctx, users, "mailboxRename") as held:
        olds = await ctx.load_all(named, [(user, asked.mailbox) for user in held.ids])
        for user, old in zip(held.ids, olds, strict=True):
            _check(held, user, old, asked, path)
        moving = [old for old in olds if old is not None and old.path != path]
        moves = await _moves(held, moving, path)
        for user, move in moves.items():
            _check_targets(held, user, move)
        if moves:
            await _carry_out(held, moves, follow=asked.subscriptions)
    keys = [row.id for old in olds if old for row in _ordered(moves.get(old.user_id), old)]
    return [row for row in await ctx.load_all(by_ids, keys) if row]


def _ordered(move: Move | None, old: Picked) -> Sequence[Picked]:
    return sorted(move.rows, key=lambda row: row.path.split("/")) if move else [old]


def _check(held: Held, user: int, old: Picked | None, asked: Renamed, path: str) -> None:
    """Raise NotFound or Forbidden if the mailbox can't move to the new path."""
    if old is None:
        raise NotFound(held.whose(user, str(asked.mailbox)), path=["mailbox"])
    if old.path == path:
        return
    if old.special_use is SpecialUse.INBOX or old.hidden:
        text = held.whose(user, "INBOX and hidden folders keep their place")
        raise Forbidden(text, path=["mailbox"])
    if path.startswith(f"{old.path}/"):
        raise Forbidden("a folder does not move below itself", path=["newPath"])


def below(path: str) -> ColumnElement[bool]:
    """Build the condition that a mailbox is below this path.

    LIKE ignores case on SQLite, so this compares the prefix.
    """
    prefix = f"{path}/"
    return func.substr(col(Mailbox.path), 1, len(prefix)) == prefix


async def _moves(held: Held, olds: Sequence[Picked], path: str) -> dict[int, Move]:
    """Load what moves and what occupies the target paths, with two statements for all accounts."""
    alike: defaultdict[str, list[int]] = defaultdict(list)
    for old in olds:
        alike[old.path].append(old.user_id)
    connection = await held.session.connection()
    moves = {old.user_id: Move(old, [], {}, path) for old in olds}
    if not moves:
        return {}
    theirs = [
        col(Mailbox.user_id).in_(users) & ((col(Mailbox.path) == old) | below(old))
        for old, users in alike.items()
    ]
    columns = picked(Mailbox, ("id", "user_id", "path", "subscribed"))
    for row in (await connection.execute(select(*columns).where(or_(*theirs)))).all():
        moves[row.user_id].rows.append(row)
    place = col(Mailbox.path).in_(with_parents([path])) | below(path)
    occupied = select(*columns).where(col(Mailbox.user_id).in_(moves), place)
    for row in (await connection.execute(occupied)).all():
        moves[row.user_id].there[row.path] = row.id
    return moves


def _check_targets(held: Held, user: int, move: Move) -> None:
    """Raise InvalidInput if a new path is too deep, and Conflict if it is occupied."""
    moved = {row.id for row in move.rows}
    for row in move.rows:
        target = move.target(row.path)
        if target.count("/") >= LEVELS:
            text = held.whose(user, f"a path has at most {LEVELS} levels")
            raise Invalid(text, constraint="pattern", path=["newPath"])
        if move.there.get(target, row.id) not in moved:
            text = "there is already a folder of this path"
            raise Conflict(held.whose(user, text), path=["newPath"])


async def _carry_out(held: Held, moves: Mapping[int, Move], *, follow: bool) -> None:
    parents = await _parents(held, moves)
    before = await subscriptions.standing(held.session, list(moves))
    after = {}
    subscribed: dict[int, bool] = {}
    for user, move in moves.items():
        after[user] = _subscriptions(move, before[user], subscribed, follow=follow)
        for mailbox in parents[user]:
            mailbox.subscribed = mailbox.path in after[user] or mailbox.subscribed
            after[user].discard(mailbox.path)
    held.session.add_all(mailbox for mailboxes in parents.values() for mailbox in mailboxes)
    await held.session.flush()
    await subscriptions.rewrite(held.session, before, after)
    lasts = await _tell(held, moves, parents)
    await _update(held, moves, lasts)
    connection, table = await held.session.connection(), table_of(Mailbox)
    for value in (True, False):
        keys = [{"key": key} for key, said in subscribed.items() if said is value]
        if keys:
            these = update(table).where(table.c.id == bindparam("key")).values(subscribed=value)
            await connection.execute(these, keys)


async def _parents(held: Held, moves: Mapping[int, Move]) -> dict[int, list[Mailbox]]:
    """Build the missing parents of the new paths, by user. Raises LimitReached."""
    missing = {
        user: [p for p in with_parents([move.path], move.there) if p != move.path]
        for user, move in moves.items()
    }
    needy = [user for user, paths in missing.items() if paths]
    if not needy:
        return {user: [] for user in moves}
    accounts = await accounts_of(held, needy)
    many = select(col(Mailbox.user_id), func.count()).where(col(Mailbox.user_id).in_(needy))
    counted = await (await held.session.connection()).execute(many.group_by(col(Mailbox.user_id)))
    for user, there in counted.all():
        check_room(held, user, there, len(missing[user]), path="newPath")
    held.session.add_all(accounts.values())
    return {
        user: [new_mailbox(held.ctx, accounts[user], path, None) for path in paths]
        for user, paths in missing.items()
    }


def _subscriptions(
    move: Move, before: set[str], subscribed: dict[int, bool], *, follow: bool
) -> set[str]:
    """Return the subscribed paths without a mailbox after the move.

    Adds each mailbox with a change of `subscribed` to `changes_by_mailbox`.
    """
    prefix = f"{move.old.path}/"
    after = set(before)
    if follow:
        after = {move.target(path) if path.startswith(prefix) else path for path in before}
    else:
        after |= {row.path for row in move.rows if row.subscribed}
    for row in move.rows:
        target = move.target(row.path)
        wanted = target in after or (follow and row.subscribed)
        after.discard(target)
        if wanted != row.subscribed:
            subscribed[row.id] = wanted
    return after


async def _tell(
    held: Held, moves: Mapping[int, Move], parents: Mapping[int, Sequence[Mailbox]]
) -> Mapping[int, int]:
    """Record the new parents and the renamed mailboxes.

    Returns the last position of each stream.
    """
    told = {}
    for user, move in moves.items():
        made = parents[user]
        created, renamed = ChangeKind.MAILBOX_CREATED, ChangeKind.MAILBOX_RENAMED
        paths = [row.path for row in move.rows]
        new = [move.target(path) for path in paths]
        keys = [row.id for row in move.rows]
        told[user] = [
            *held.ctx.entries(
                created, [mailbox.id for mailbox in made], path=[mailbox.path for mailbox in made]
            ),
            *held.ctx.entries(renamed, keys, path=new, oldPath=paths),
        ]
    return await held.tell(told)


async def _update(held: Held, moves: Mapping[int, Move], lasts: Mapping[int, int]) -> None:
    """Write the new paths in one statement.

    A mailbox that moves to one of its own parents' paths is first moved aside, since old and new
    paths can be equal.
    """
    connection, table = await held.session.connection(), table_of(Mailbox)
    start = func.substr(table.c.path, 1, bindparam("long", type_=Integer), type_=String)
    here = (table.c.path == bindparam("old")) | (start == bindparam("prefix"))
    tail = func.substr(table.c.path, bindparam("from", type_=Integer), type_=String)
    statement = (
        update(table)
        .where(table.c.user_id == bindparam("user"), here)
        .values(path=bindparam("to", type_=String) + tail, modify_index=number("last"))
    )

    def given(user: int, old: str, new: str) -> dict[str, Any]:
        return {
            "user": user,
            "old": old,
            "prefix": f"{old}/",
            "long": len(old) + 1,
            "from": len(old) + 1,
            "to": new,
            "last": lasts[user],
        }

    upwards = {u: move for u, move in moves.items() if move.old.path.startswith(f"{move.path}/")}
    if upwards:
        aside = [given(u, move.old.path, ASIDE + move.old.path) for u, move in upwards.items()]
        await connection.execute(statement, aside)
    everything = [
        given(u, (ASIDE if u in upwards else "") + move.old.path, move.path)
        for u, move in moves.items()
    ]
    await connection.execute(statement, everything)
