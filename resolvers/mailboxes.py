"""Operations on folders."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, bindparam, func, select, update
from sqlalchemy import delete as delete_rows
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.paths import checked_path, in_tree, with_parents
from models.columns import Picked, picked
from models.errors import Conflict, Forbidden, Invalid, LimitReached, NotFound
from models.journal import LONGEST as LONGEST_ROW
from models.journal import ChangeKind
from models.mailboxes import Mailbox, SpecialUse
from models.messages import Message
from models.prepared import chosen, number, prepared, values_of
from models.users import User
from resolvers.access import administered, own, owned, records
from resolvers.context import Context
from resolvers.listing import by_keys
from resolvers.moves import STATE, archive

BY = ("id", "path", "special_use")  # what names a folder
LIFE = timedelta(days=36_500)  # of messages, at most


@dataclass(frozen=True, slots=True)
class Named:
    """One folder of the user in question, by one of these."""

    id: int | None = None
    path: str | None = None
    special_use: SpecialUse | None = None

    def __str__(self) -> str:
        return str(self.path if self.path is not None else self.special_use or self.id)


@dataclass(frozen=True, slots=True)
class Tree:
    """All folders of a user, with the columns their reader asked for."""

    user_id: int
    columns: frozenset[str]


@dataclass(frozen=True, slots=True)
class NewMailboxes:
    """Folders to be made."""

    paths: Sequence[str]
    hidden: bool = False
    retention: timedelta | None = None  # None: what the account has; nothing: for ever
    subscribe: bool = True
    special_use: SpecialUse | None = None


def new_mailbox(ctx: Context, user: User, path: str, use: SpecialUse | None) -> Mailbox:
    """A folder of `user`, whose row is held; its UIDVALIDITY was never given before."""
    at = ctx.world.now()
    user.uid_validity = max(user.uid_validity + 1, int(at.timestamp()))
    key = ctx.world.key()
    return Mailbox(
        id=key,
        user_id=user.id,
        path=path,
        guid=ctx.world.random(16).hex(),
        special_use=use,
        uid_validity=user.uid_validity,
        retention=user.retention,
        created_at=at,
    )


async def all_of(
    ctx: Context, user_id: int, columns: Collection[str], *, show_hidden: bool = False
) -> Sequence[Picked]:
    """A user's folders, INBOX and what is below it first, then as the tree has them."""
    rows = await ctx.load(trees, Tree(user_id, frozenset(columns)))
    if show_hidden:
        return rows
    return chosen(rows, [at for at, hidden in enumerate(values_of(rows, "hidden")) if not hidden])


async def trees(ctx: Context, keys: list[Tree]) -> list[Sequence[Picked]]:
    """The folders of these users, hidden ones too, in the order of `all_of`."""
    columns = frozenset({"id", "user_id", "path", "hidden"}).union(*(key.columns for key in keys))
    if len(keys) == 1 and _plainly(ctx, keys[0].user_id):
        rows = await ctx.find(_tree(columns), user=keys[0].user_id)
        places = [in_tree(path) for path in values_of(rows, "path")]
        return [chosen(rows, sorted(range(len(rows)), key=places.__getitem__))]
    asked = select(*picked(Mailbox, columns)).where(
        col(Mailbox.user_id).in_({key.user_id for key in keys}), records(ctx, Mailbox)
    )
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in sorted(await ctx.read(asked), key=lambda row: in_tree(row.path)):
        found[row.user_id].append(row)
    return [found[key.user_id] for key in keys]


def _plainly(ctx: Context, user_id: int) -> bool:
    """Whether a select that was made once will do: it asks for one's own."""
    return user_id == ctx.viewer.user_id or not administered(ctx)


@prepared
def _tree(columns: frozenset[str]) -> Select[*tuple[Any, ...]]:
    return select(*picked(Mailbox, columns)).where(
        owned(Mailbox), col(Mailbox.user_id) == number("user")
    )


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The folders with these ids, in this order; None where the viewer sees none."""
    theirs = select(*picked(Mailbox)).where(records(ctx, Mailbox))
    return await by_keys(ctx, theirs, col(Mailbox.id), ids)


async def named(ctx: Context, keys: list[tuple[int, Named]]) -> list[Picked | None]:
    """The folders of these users, by id, path or role, in this order; None where there is none."""
    if len(keys) == 1 and _plainly(ctx, keys[0][0]):
        (user_id, name), *_ = keys
        by = next((by for by in BY if getattr(name, by) is not None), "id")
        rows = await ctx.find(_named(by), user=user_id, name=getattr(name, by))
        return [next(iter(rows), None)]
    users = {user_id for user_id, _ in keys}
    asked = select(*picked(Mailbox)).where(
        col(Mailbox.user_id).in_(users),
        records(ctx, Mailbox),
        col(Mailbox.id).in_([name.id for _, name in keys if name.id])
        | col(Mailbox.path).in_([name.path for _, name in keys if name.path])
        | col(Mailbox.special_use).in_([name.special_use for _, name in keys if name.special_use]),
    )
    rows = await ctx.read(asked)

    def fits(row: Picked, user_id: int, name: Named) -> bool:
        return row.user_id == user_id and (
            row.id == name.id
            or (name.path is not None and row.path == name.path)
            or (name.special_use is not None and row.special_use == name.special_use)
        )

    return [next((row for row in rows if fits(row, user_id, name)), None) for user_id, name in keys]


@prepared
def _named(by: str) -> Select[*tuple[Any, ...]]:
    column = getattr(Mailbox, by)
    return select(*picked(Mailbox)).where(
        owned(Mailbox),
        col(Mailbox.user_id) == number("user"),
        column == bindparam("name", type_=column.type),
    )


async def find(ctx: Context, name: Named, *, path: Sequence[str] = ("mailbox",)) -> Picked:
    """The viewer's folder of this name, or NotFound."""
    row = await ctx.load(named, (own(ctx), name))
    if row is None:
        raise NotFound(str(name), path=path)
    return row


async def create(ctx: Context, new: NewMailboxes) -> list[Mailbox]:
    """Create folders at these paths, and those above that are missing: all of them or none."""
    wanted = [
        checked_path(path, path_in=["paths"], index=nth) for nth, path in enumerate(new.paths)
    ]
    if not wanted:
        raise Invalid("name at least one path", constraint="required", path=["paths"])
    if new.special_use and len(wanted) > 1:
        raise Invalid("one folder has the role", constraint="exclusive", path=["specialUse"])
    user_id = own(ctx)
    try:
        async with ctx.write(user_id) as session:
            user = await session.get_one(User, user_id, populate_existing=True)
            there = await _paths_of(session, user_id)
            made = _made(ctx, user, wanted, there)
            _check_room(ctx, there, made, path="paths")
            asked = {box.path: box for box in made}
            for box in (asked[path] for path in wanted):
                box.hidden, box.subscribed = new.hidden, new.subscribe
                if new.retention is not None:
                    box.retention = seconds(new.retention)
                box.special_use = new.special_use
            session.add_all([user, *made])
            await session.flush()
            await ctx.record(
                session,
                user_id,
                ChangeKind.MAILBOX_CREATED,
                [box.id for box in made],
                path=[box.path for box in made],
            )
    except IntegrityError as clash:
        raise Conflict("another folder has this role", path=["specialUse"]) from clash
    return [asked[path] for path in wanted]


def _check_room(
    ctx: Context, there: Collection[str], made: Collection[Mailbox], *, path: str
) -> None:
    limit = ctx.world.options.max_mailboxes
    if made and len(there) + len(made) > limit:
        raise LimitReached("too many folders", limit=limit, used=len(there), path=[path])


def seconds(retention: timedelta, path: Sequence[str] = ("retention",)) -> int | None:
    """How long messages live, as it is stored; None: for ever."""
    if not retention:
        return None
    if not timedelta(seconds=1) <= retention <= LIFE:
        raise Invalid(
            "a life is between a second and a hundred years",
            constraint="range",
            path=path,
        )
    return int(retention.total_seconds())


async def _paths_of(session: AsyncSession, user_id: int) -> set[str]:
    theirs = select(col(Mailbox.path)).where(col(Mailbox.user_id) == user_id)
    return set((await (await session.connection()).execute(theirs)).scalars())


def _made(ctx: Context, user: User, paths: Sequence[str], there: set[str]) -> list[Mailbox]:
    for index, path in enumerate(paths):
        if path in there or path in paths[:index]:
            raise Conflict("there is already a folder of this path", path=["paths"], index=index)
    return [new_mailbox(ctx, user, path, None) for path in with_parents(paths, there)]


async def rename(ctx: Context, name: Named, new_path: str) -> list[Picked]:
    """Move a folder with all that is below it; those above the new place are made.

    INBOX and hidden folders stay where they are. Returns all that were moved, the folder
    itself first.
    """
    path = checked_path(new_path, path_in=["newPath"])
    user_id = own(ctx)
    async with ctx.write(user_id) as session:
        old = await find(ctx, name)
        if old.path == path:
            return [old]
        if old.special_use is SpecialUse.INBOX or old.hidden:
            raise Forbidden("INBOX and hidden folders keep their place", path=["mailbox"])
        if path.startswith(f"{old.path}/"):
            raise Forbidden("a folder does not move below itself", path=["newPath"])
        await _move_below(ctx, session, old, path)
    rows = await ctx.load_all(by_ids, [old.id])
    below = await all_of(ctx, user_id, set(Mailbox.model_fields), show_hidden=True)
    return [row for row in rows if row] + [row for row in below if row.path.startswith(f"{path}/")]


async def _move_below(ctx: Context, session: AsyncSession, old: Picked, path: str) -> None:
    user_id = old.user_id
    connection = await session.connection()
    there = await _paths_of(session, user_id)
    if path in there:
        raise Conflict("there is already a folder of this path", path=["newPath"])
    prefix = f"{old.path}/"
    below = func.substr(col(Mailbox.path), 1, len(prefix)) == prefix  # LIKE knows no case on SQLite
    subtree = select(col(Mailbox.id), col(Mailbox.path)).where(
        col(Mailbox.user_id) == user_id, (col(Mailbox.id) == old.id) | below
    )
    rows = (await connection.execute(subtree.order_by(col(Mailbox.path)))).all()
    moved = {row.path: path + row.path[len(old.path) :] for row in rows}
    for target in moved.values():
        checked_path(target, path_in=["newPath"])
        if target in there and target not in moved:
            raise Conflict(f"there is already a folder {target}", path=["newPath"])

    user = await session.get_one(User, user_id, populate_existing=True)
    above = path.rpartition("/")[0]
    parents = _made(ctx, user, [above], there) if above and above not in there else []
    _check_room(ctx, there, parents, path="newPath")
    session.add_all([user, *parents])
    await session.flush()
    if parents:
        await ctx.record(
            session,
            user_id,
            ChangeKind.MAILBOX_CREATED,
            [box.id for box in parents],
            path=[box.path for box in parents],
        )
    last = await ctx.record(
        session,
        user_id,
        ChangeKind.MAILBOX_RENAMED,
        [row.id for row in rows],
        path=list(moved.values()),
        oldPath=list(moved),
    )
    tail = func.substr(col(Mailbox.path), len(old.path) + 1)
    await connection.execute(
        update(Mailbox)
        .where(col(Mailbox.id).in_([row.id for row in rows]))
        .values(path=path + tail, modify_index=last)
    )


async def delete(
    ctx: Context, names: Sequence[Named], *, recursive: bool, require_empty: bool
) -> list[int]:
    """Delete folders, their messages into the archive: all of them or none.

    Returns the ids that are gone. INBOX and folders with a role are never deleted.
    """
    if not names:
        raise Invalid("name at least one folder", constraint="required", path=["mailboxes"])
    user_id = own(ctx)
    async with ctx.write(user_id) as session:
        gone: dict[int, Picked] = {}
        everything = await all_of(ctx, user_id, set(Mailbox.model_fields), show_hidden=True)
        rows = await ctx.load_all(named, [(user_id, name) for name in names])
        listed = {row.id for row in rows if row}
        for index, (name, row) in enumerate(zip(names, rows, strict=True)):
            if row is None:
                raise NotFound(str(name), path=["mailboxes"], index=index)
            below = [other for other in everything if other.path.startswith(f"{row.path}/")]
            if not recursive and any(other.id not in listed for other in below):
                raise Conflict(
                    "there are folders below it: say recursive", path=["mailboxes"], index=index
                )
            for one in (row, *(below if recursive else ())):
                _deletable(one, index, require_empty=require_empty)
                gone[one.id] = one
        await _remove(ctx, session, list(gone.values()))
    return list(gone)


def _deletable(row: Picked, index: int, *, require_empty: bool) -> None:
    if row.special_use or row.hidden:
        refusal = Forbidden("INBOX, hidden folders and those with a role stay", path=["mailboxes"])
        refusal.index = index
        raise refusal
    if require_empty and row.total:
        raise Conflict("the folder is not empty", path=["mailboxes"], index=index)


async def _remove(ctx: Context, session: AsyncSession, rows: Sequence[Picked]) -> None:
    user_id = own(ctx)
    connection = await session.connection()
    keys = [row.id for row in rows]
    inside = select(*picked(Message, STATE)).where(col(Message.mailbox_id).in_(keys))
    messages = (await connection.execute(inside.order_by(col(Message.id)))).all()
    paths = {row.id: row.path for row in rows}
    for start in range(0, len(messages), LONGEST_ROW):
        await archive(ctx, session, messages[start : start + LONGEST_ROW], paths)
    await connection.execute(delete_rows(Mailbox).where(col(Mailbox.id).in_(keys)))
    await ctx.record(
        session,
        user_id,
        ChangeKind.MAILBOX_DELETED,
        keys,
        path=[row.path for row in rows],
    )
