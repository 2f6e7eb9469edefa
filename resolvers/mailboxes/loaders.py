"""Operations on folders."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, or_, select
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes.paths import checked_path, in_tree, with_parents
from models.errors import Conflict, Forbidden, Invalid, LimitReached, NotFound
from models.events.journal import ChangeKind
from models.mailboxes.shares import ShareRight
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import Picked, picked
from models.store.prepared_statements import chosen, prepared, values_of
from models.users.tables import User
from resolvers.access import administered, beyond, own, owned, records, shared
from resolvers.context import Context
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes import subscriptions
from resolvers.mailboxes.owners import Held, holding
from resolvers.pagination import FEW, by_keys
from resolvers.users.selection import MINE, Users

BY = ("id", "path", "special_use", "guid")  # what names a folder
GUID = re.compile("[0-9a-f]{32}")
LIFE = timedelta(days=36_500)  # of messages, at most


@dataclass(frozen=True, slots=True)
class Named:
    """One folder of the user in question, by one of these."""

    id: int | None = None
    path: str | None = None
    special_use: SpecialUse | None = None
    guid: str | None = None

    def __str__(self) -> str:
        """What people call it; "" if it is named by its key."""
        return self.path or self.special_use or self.guid or ""


@dataclass(frozen=True, slots=True)
class Tree:
    """All folders of a user, with the columns their reader asked for."""

    user_id: int
    columns: frozenset[str]
    pattern: str | None = None  # of their paths: mail/mailboxes/paths.py


@dataclass(frozen=True, slots=True)
class NewMailboxes:
    """Folders to be made."""

    paths: Sequence[str]
    hidden: bool = False
    retention: timedelta | None = None  # None: what the account has; nothing: for ever
    subscribe: bool = True
    special_use: SpecialUse | None = None
    guid: str | None = None  # of one folder of one account
    encrypt: bool = False  # to the key of the account, what arrives


async def all_of(ctx: Context, user_id: int, columns: Collection[str]) -> Sequence[Picked]:
    """A user's folders, hidden ones too, INBOX and what is below it first, then as a tree."""
    return await ctx.load(trees, Tree(user_id, frozenset(columns)))


async def trees(ctx: Context, keys: list[Tree]) -> list[Sequence[Picked]]:
    """The folders of these users, hidden ones too, in the order of `all_of`."""
    patterns = {key.pattern for key in keys}
    if len(patterns) > 1:
        parts = [[key for key in keys if key.pattern == pattern] for pattern in patterns]
        known = {key: rows for part in parts for key, rows in await _trees(ctx, part)}
        return [known[key] for key in keys]
    return [rows for _, rows in await _trees(ctx, keys)]


async def _trees(ctx: Context, keys: list[Tree]) -> list[tuple[Tree, Sequence[Picked]]]:
    """The folders of these users that fit the one pattern of all keys."""
    pattern = keys[0].pattern
    columns = frozenset({"id", "user_id", "path", "hidden"}).union(*(key.columns for key in keys))
    if len(keys) == 1 and pattern is None and _plainly(ctx, keys[0].user_id):
        if keys[0].user_id != ctx.viewer.user_id:
            return [(keys[0], [])]
        rows = await ctx.find(_tree(columns))
        places = [in_tree(path) for path in values_of(rows, "path")]
        return [(keys[0], chosen(rows, sorted(range(len(rows)), key=places.__getitem__)))]
    asked = select(*picked(Mailbox, columns)).where(
        col(Mailbox.user_id).in_({key.user_id for key in keys}), records(ctx, Mailbox)
    )
    if pattern is not None:
        asked = asked.where(fitting(ctx, pattern))
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in sorted(await ctx.read(asked), key=lambda row: in_tree(row.path)):
        found[row.user_id].append(row)
    return [(key, found[key.user_id]) for key in keys]


def fitting(ctx: Context, pattern: str) -> ColumnElement[bool]:
    """Whether the path of a folder fits this pattern of mail/mailboxes/paths.py."""
    if ctx.world.database.dialect == "postgresql":
        pattern = pattern.replace("(?>", "(?:")
    found: ColumnElement[bool] = col(Mailbox.path).regexp_match(pattern)
    return found


def _plainly(ctx: Context, user_id: int) -> bool:
    """Whether a select that was made once will do: it asks for one's own, or there is nothing."""
    return user_id == ctx.viewer.user_id or not beyond(ctx)


@prepared
def _tree(columns: frozenset[str]) -> Select[*tuple[Any, ...]]:
    return select(*picked(Mailbox, columns)).where(owned(Mailbox))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The folders with these ids, in this order; None where the viewer sees none."""
    theirs = select(*picked(Mailbox)).where(records(ctx, Mailbox))
    return await by_keys(ctx, theirs, col(Mailbox.id), ids)


async def shared_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The folders with these ids that others share with the viewer, in this order."""
    if not ctx.viewer.reach.shared:
        return [None for _ in ids]
    theirs = select(*picked(Mailbox)).where(shared(ctx, Mailbox))
    return await by_keys(ctx, theirs, col(Mailbox.id), ids)


async def named(ctx: Context, keys: list[tuple[int, Named]]) -> list[Picked | None]:
    """The folders of these users, as they are named, in this order; None where there is none."""
    if len(keys) <= FEW and all(_plainly(ctx, user_id) for user_id, _ in keys):
        return [await _own_named(ctx, *key) for key in keys]
    users = {user_id for user_id, _ in keys}
    asked = select(*picked(Mailbox)).where(
        col(Mailbox.user_id).in_(users),
        records(ctx, Mailbox),
        or_(*(getattr(Mailbox, by).in_(_given(by, keys)) for by in BY)),
    )
    known: dict[tuple[int, str, Any], Picked] = {}
    for row in await ctx.read(asked):
        known |= {(row.user_id, by, getattr(row, by)): row for by in BY}
    return [known.get((user_id, _by(name), getattr(name, _by(name)))) for user_id, name in keys]


async def _own_named(ctx: Context, user_id: int, name: Named) -> Picked | None:
    if user_id != ctx.viewer.user_id:
        return None
    by = _by(name)
    return next(iter(await ctx.find(_named(by), name=getattr(name, by))), None)


async def by_paths(ctx: Context, keys: list[tuple[int, str]]) -> list[Picked | None]:
    """The folders of these users at these paths, as `named` returns them."""
    return await ctx.load_all(named, [(user, Named(path=path)) for user, path in keys])


def _by(name: Named) -> str:
    return next((by for by in BY if getattr(name, by) is not None), "id")


def _given(by: str, keys: Sequence[tuple[int, Named]]) -> set[Any]:
    return {getattr(name, by) for _, name in keys} - {None}


@prepared
def _named(by: str) -> Select[*tuple[Any, ...]]:
    column = getattr(Mailbox, by)
    return select(*picked(Mailbox)).where(
        owned(Mailbox),
        column == bindparam("name", type_=column.type),
    )


async def find(
    ctx: Context,
    name: Named,
    right: ShareRight | None = None,
    *,
    path: Sequence[str] = ("mailbox",),
) -> Picked:
    """The viewer's folder of this name, or NotFound.

    With a `right`, also another's that is named by its id and shared; Forbidden without it.
    """
    row = await ctx.load(named, (own(ctx), name))
    if row is None and right is not None:
        row = await _shared(ctx, name, right, path)
    if row is None:
        raise NotFound(str(name), path=path)
    return row


async def find_seen(ctx: Context, name: Named, user_id: int | None = None) -> Picked | None:
    """The folder of this name, or None if the viewer does not see it, not even as a record.

    The folder is that of `user_id`. Without `user_id`, an id names the folder of any account,
    and another name that of the viewer.
    """
    if user_id is None and name.id is not None:
        mine = await ctx.load(named, (ctx.viewer.user_id, name)) if ctx.viewer.user_id else None
        row = mine or await ctx.load(shared_by_ids, name.id)
        return row or (await ctx.load(by_ids, name.id) if administered(ctx) else None)
    return await ctx.load(named, (own(ctx) if user_id is None else user_id, name))


async def _shared(
    ctx: Context, name: Named, right: ShareRight, path: Sequence[str]
) -> Picked | None:
    row = await ctx.load(shared_by_ids, name.id) if name.id is not None else None
    if row and right not in await ctx.load(mailbox_rights.rights, (row.user_id, row.id)):
        raise Forbidden(f"this needs the right {right} in the folder", requires=right, path=path)
    return row


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


async def named_of_each(held: Held, name: Named) -> list[Picked]:
    """The folder of each account; NotFound where one has none such."""
    rows = await held.ctx.load_all(named, [(user, name) for user in held.ids])
    for user, row in zip(held.ids, rows, strict=True):
        if row is None:
            raise NotFound(held.whose(user, str(name)), path=["mailbox"])
    return [row for row in rows if row]


async def accounts_of(held: Held, keys: Collection[int]) -> dict[int, User]:
    """These accounts as they are inside the unit, by their keys."""
    asked = instances(User).where(col(User.id).in_(keys)).order_by(col(User.id))
    again = asked.execution_options(populate_existing=True)
    return {user.id: user for user in (await held.session.exec(again)).all()}


def check_keys(
    held: Held, accounts: Iterable[User], path: Sequence[str] = ("encryptMessages",)
) -> None:
    """Invalid where one of these accounts has no key that its mail could be encrypted to."""
    for user in accounts:
        if not user.pub_key:
            text = held.whose(user.id, "this takes an OpenPGP key of the account")
            raise Invalid(text, constraint="required", path=path)


async def create(ctx: Context, new: NewMailboxes, users: Users = MINE) -> list[Mailbox]:
    """Create folders at these paths, and those above that are missing: all of them or none.

    Returns those that were asked for, account by account in the order of the paths.
    """
    wanted = [checked_path(p, path_in=["paths"], index=nth) for nth, p in enumerate(new.paths)]
    async with holding(ctx, users, "mailboxCreate") as held:
        found, _ = await make(held, wanted, new)
    return found


async def make(
    held: Held, wanted: Sequence[str], new: NewMailboxes
) -> tuple[list[Mailbox], list[Mailbox]]:
    """Create folders at these paths; those that were asked for, and all that were made."""
    _check_new(new, held.ids)
    accounts = list((await accounts_of(held, held.ids)).values())
    if new.encrypt:
        check_keys(held, accounts)
    there = await _there(held.session, held.ids)
    made = {user.id: _made(held, user, wanted, new, there[user.id]) for user in accounts}
    found = []
    for boxes in made.values():
        by_path = {box.path: box for box in boxes}
        found += [by_path[path] for path in wanted]
    for box in found:
        box.guid = new.guid or box.guid
        box.hidden, box.subscribed = new.hidden, new.subscribe
        box.encrypt_messages = new.encrypt
        if new.retention is not None:
            box.retention = seconds(new.retention)
        box.special_use = new.special_use
    await store(held, accounts, made)
    return found, [box for boxes in made.values() for box in boxes]


async def store(
    held: Held, accounts: Sequence[User], made: Mapping[int, Sequence[Mailbox]]
) -> None:
    """Store the folders made for these accounts, with their subscriptions, and tell of them."""
    before = await subscriptions.standing(held.session, list(made))
    after = {user: before[user] - {box.path for box in boxes} for user, boxes in made.items()}
    for user, boxes in made.items():
        for box in boxes:
            box.subscribed = box.subscribed or box.path in before[user]
    held.session.add_all([*accounts, *(box for boxes in made.values() for box in boxes)])
    await held.session.flush()
    await subscriptions.rewrite(held.session, before, after)
    kind = ChangeKind.MAILBOX_CREATED
    await held.tell(
        {
            user: held.ctx.entries(
                kind, [box.id for box in boxes], path=[box.path for box in boxes]
            )
            for user, boxes in made.items()
        }
    )


def _check_new(new: NewMailboxes, users: Sequence[int]) -> None:
    if not new.paths:
        raise Invalid("name at least one path", constraint="required", path=["paths"])
    if new.special_use and len(new.paths) > 1:
        raise Invalid("one folder has the role", constraint="exclusive", path=["specialUse"])
    if new.guid is not None and (len(new.paths) > 1 or len(users) > 1):
        raise Invalid("one folder has the guid", constraint="exclusive", path=["guid"])
    if new.guid is not None and not GUID.fullmatch(new.guid):
        raise Invalid("a guid has 32 hex digits", constraint="pattern", path=["guid"])


async def _there(session: AsyncSession, users: Sequence[int]) -> Mapping[int, Sequence[Picked]]:
    """What must not come twice, of the folders of these accounts."""
    names = ("user_id", "path", "guid", "special_use")
    asked = select(*picked(Mailbox, names)).where(col(Mailbox.user_id).in_(users))
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in (await (await session.connection()).execute(asked)).all():
        found[row.user_id].append(row)
    return found


def check_room(held: Held, user_id: int, there: int, more: int, *, path: str) -> None:
    """LimitReached where an account that has so many folders may not have so many more."""
    limit = held.ctx.world.options.max_mailboxes
    if more and there + more > limit:
        text = held.whose(user_id, "too many folders")
        raise LimitReached(text, limit=limit, used=there, path=[path])


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


def _made(
    held: Held, user: User, wanted: Sequence[str], new: NewMailboxes, there: Sequence[Picked]
) -> list[Mailbox]:
    paths = {row.path for row in there}
    for index, path in enumerate(wanted):
        if path in paths or path in wanted[:index]:
            text = held.whose(user.id, "there is already a folder of this path")
            raise Conflict(text, path=["paths"], index=index)
    if new.special_use and any(row.special_use == new.special_use for row in there):
        text = held.whose(user.id, "another folder has this role")
        raise Conflict(text, path=["specialUse"])
    if new.guid and any(row.guid == new.guid for row in there):
        raise Conflict(held.whose(user.id, "another folder has this guid"), path=["guid"])
    missing = with_parents(wanted, paths)
    check_room(held, user.id, len(there), len(missing), path="paths")
    return [new_mailbox(held.ctx, user, path, None) for path in missing]
