"""Loading, finding and creating mailboxes."""

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

BY = ("id", "path", "special_use", "guid")  # each of them identifies a mailbox
GUID = re.compile("[0-9a-f]{32}")
LIFE = timedelta(days=36_500)  # the longest retention of messages


@dataclass(frozen=True, slots=True)
class Named:
    """One mailbox of a user, by exactly one of these fields."""

    id: int | None = None
    path: str | None = None
    special_use: SpecialUse | None = None
    guid: str | None = None

    def __str__(self) -> str:
        """Return the name that people know; "" if the mailbox is selected by ID."""
        return self.path or self.special_use or self.guid or ""


@dataclass(frozen=True, slots=True)
class Tree:
    """The key of a batch: all mailboxes of a user, with the columns that are read."""

    user_id: int
    columns: frozenset[str]
    pattern: str | None = None  # of their paths, from mail/mailboxes/paths.py


@dataclass(frozen=True, slots=True)
class NewMailboxes:
    """Mailboxes to create."""

    paths: Sequence[str]
    hidden: bool = False
    retention: timedelta | None = None  # None: that of the user; zero: unlimited
    subscribe: bool = True
    special_use: SpecialUse | None = None
    guid: str | None = None  # only for one mailbox of one account
    encrypt: bool = False  # new messages, with the user's OpenPGP key


async def all_of(ctx: Context, user_id: int, columns: Collection[str]) -> Sequence[Picked]:
    """Load a user's mailboxes, also hidden ones: INBOX and its children, then in tree order."""
    return await ctx.load(trees, Tree(user_id, frozenset(columns)))


async def trees(ctx: Context, keys: list[Tree]) -> list[Sequence[Picked]]:
    """Load the mailboxes of these users, each list in the order of `load_all_of_user`."""
    patterns = {key.pattern for key in keys}
    if len(patterns) > 1:
        parts = [[key for key in keys if key.pattern == pattern] for pattern in patterns]
        known = {key: rows for part in parts for key, rows in await _trees(ctx, part)}
        return [known[key] for key in keys]
    return [rows for _, rows in await _trees(ctx, keys)]


async def _trees(ctx: Context, keys: list[Tree]) -> list[tuple[Tree, Sequence[Picked]]]:
    """Load the mailboxes of these users. All keys have the same path pattern."""
    pattern = keys[0].pattern
    columns = frozenset({"id", "user_id", "path", "hidden"}).union(*(key.columns for key in keys))
    if len(keys) == 1 and pattern is None and _plainly(ctx, keys[0].user_id):
        if keys[0].user_id != ctx.viewer.user_id:
            return [(keys[0], [])]
        rows = await ctx.find(_tree(columns))
        places = [in_tree(path) for path in values_of(rows, "path")]
        return [(keys[0], chosen(rows, sorted(range(len(rows)), key=places.__getitem__)))]
    statement = select(*picked(Mailbox, columns)).where(
        col(Mailbox.user_id).in_({key.user_id for key in keys}), records(ctx, Mailbox)
    )
    if pattern is not None:
        statement = statement.where(fitting(ctx, pattern))
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in sorted(await ctx.read(statement), key=lambda row: in_tree(row.path)):
        found[row.user_id].append(row)
    return [(key, found[key.user_id]) for key in keys]


def fitting(ctx: Context, pattern: str) -> ColumnElement[bool]:
    """Build the condition that a path matches this pattern of `mail/mailboxes/paths.py`."""
    if ctx.world.database.dialect == "postgresql":
        pattern = pattern.replace("(?>", "(?:")
    found: ColumnElement[bool] = col(Mailbox.path).regexp_match(pattern)
    return found


def _plainly(ctx: Context, user_id: int) -> bool:
    """True if the prepared select of the viewer's own mailboxes is enough for this user.

    It is for the viewer, and for other users if the viewer can't see their mailboxes.
    """
    return user_id == ctx.viewer.user_id or not beyond(ctx)


@prepared
def _tree(columns: frozenset[str]) -> Select[*tuple[Any, ...]]:
    return select(*picked(Mailbox, columns)).where(owned(Mailbox))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the mailboxes with these IDs, in this order. None if the viewer can't see one."""
    theirs = select(*picked(Mailbox)).where(records(ctx, Mailbox))
    return await by_keys(ctx, theirs, col(Mailbox.id), ids)


async def shared_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the mailboxes with these IDs that others share with the viewer, in this order."""
    if not ctx.viewer.reach.shared:
        return [None for _ in ids]
    theirs = select(*picked(Mailbox)).where(shared(ctx, Mailbox))
    return await by_keys(ctx, theirs, col(Mailbox.id), ids)


async def named(ctx: Context, keys: list[tuple[int, Named]]) -> list[Picked | None]:
    """Load mailboxes by user ID and selector, in this order. None if there is no such mailbox."""
    if len(keys) <= FEW and all(_plainly(ctx, user_id) for user_id, _ in keys):
        return [await _own_named(ctx, *key) for key in keys]
    users = {user_id for user_id, _ in keys}
    statement = select(*picked(Mailbox)).where(
        col(Mailbox.user_id).in_(users),
        records(ctx, Mailbox),
        or_(*(getattr(Mailbox, by).in_(_given(by, keys)) for by in BY)),
    )
    known: dict[tuple[int, str, Any], Picked] = {}
    for row in await ctx.read(statement):
        known |= {(row.user_id, by, getattr(row, by)): row for by in BY}
    return [known.get((user_id, _by(name), getattr(name, _by(name)))) for user_id, name in keys]


async def _own_named(ctx: Context, user_id: int, name: Named) -> Picked | None:
    if user_id != ctx.viewer.user_id:
        return None
    by = _by(name)
    return next(iter(await ctx.find(_named(by), name=getattr(name, by))), None)


async def by_paths(ctx: Context, keys: list[tuple[int, str]]) -> list[Picked | None]:
    """Load mailboxes by user ID and path, in this order. None if there is no such mailbox."""
    return await ctx.load_all(named, [(user, Named(path=path)) for user, path in keys])


def _by(name: Named) -> str:
    """Return the field by which the mailbox is selected."""
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
    """Return the viewer's mailbox. Raises NotFound.

    With `right`, a mailbox of another user can be selected by ID. Raises Forbidden if it is shared
    without that right.
    """
    row = await ctx.load(named, (own(ctx), name))
    if row is None and right is not None:
        row = await _shared(ctx, name, right, path)
    if row is None:
        raise NotFound(str(name), path=path)
    return row


async def find_seen(ctx: Context, name: Named, user_id: int | None = None) -> Picked | None:
    """Return the mailbox, or None if the viewer can't see it, not even as a record.

    The mailbox belongs to `user_id`. Without `user_id`, an ID selects a mailbox of any account, and
    another selector one of the viewer's.
    """
    if user_id is None and name.id is not None:
        mine = await ctx.load(named, (ctx.viewer.user_id, name)) if ctx.viewer.user_id else None
        row = mine or await ctx.load(shared_by_ids, name.id)
        return row or (await ctx.load(by_ids, name.id) if administered(ctx) else None)
    return await ctx.load(named, (own(ctx) if user_id is None else user_id, name))


async def _shared(
    ctx: Context, name: Named, right: ShareRight, path: Sequence[str]
) -> Picked | None:
    """Return a mailbox that is shared with the viewer. Raises Forbidden without this right."""
    row = await ctx.load(shared_by_ids, name.id) if name.id is not None else None
    if row and right not in await ctx.load(mailbox_rights.rights, (row.user_id, row.id)):
        raise Forbidden(f"this needs the right {right} in the folder", requires=right, path=path)
    return row


def new_mailbox(ctx: Context, user: User, path: str, use: SpecialUse | None) -> Mailbox:
    """Build a mailbox of a user with a locked row. UIDVALIDITY and GUID are new."""
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
    """Return the mailbox of each locked account. Raises NotFound if an account has none."""
    rows = await held.ctx.load_all(named, [(user, name) for user in held.ids])
    for user, row in zip(held.ids, rows, strict=True):
        if row is None:
            raise NotFound(held.whose(user, str(name)), path=["mailbox"])
    return [row for row in rows if row]


async def accounts_of(held: Held, keys: Collection[int]) -> dict[int, User]:
    """Load users inside the transaction, by ID. Cached instances are refreshed."""
    asked = instances(User).where(col(User.id).in_(keys)).order_by(col(User.id))
    again = asked.execution_options(populate_existing=True)
    return {user.id: user for user in (await held.session.exec(again)).all()}


def check_keys(
    held: Held, accounts: Iterable[User], path: Sequence[str] = ("encryptMessages",)
) -> None:
    """Raise InvalidInput if one of these users has no OpenPGP key to encrypt mail to."""
    for user in accounts:
        if not user.pub_key:
            text = held.whose(user.id, "this takes an OpenPGP key of the account")
            raise Invalid(text, constraint="required", path=path)


async def create(ctx: Context, new: NewMailboxes, users: Users = MINE) -> list[Mailbox]:
    """Create mailboxes at these paths with their missing parents: all of them or none.

    Returns the requested mailboxes, by account in the order of the paths. Raises InvalidInput,
    Conflict or LimitReached.
    """
    wanted = [checked_path(p, path_in=["paths"], index=nth) for nth, p in enumerate(new.paths)]
    async with holding(ctx, users, "mailboxCreate") as held:
        found, _ = await make(held, wanted, new)
    return found


async def make(
    held: Held, wanted: Sequence[str], new: NewMailboxes
) -> tuple[list[Mailbox], list[Mailbox]]:
    """Create mailboxes in a transaction.

    Returns the requested mailboxes, and all that were created.
    """
    _check_new(new, held.ids)
    accounts = list((await accounts_of(held, held.ids)).values())
    if new.encrypt:
        check_keys(held, accounts)
    there = await _there(held.session, held.ids)
    made = {user.id: _made(held, user, wanted, new, there[user.id]) for user in accounts}
    found = []
    for mailboxes in made.values():
        by_path = {mailbox.path: mailbox for mailbox in mailboxes}
        found += [by_path[path] for path in wanted]
    for mailbox in found:
        mailbox.guid = new.guid or mailbox.guid
        mailbox.hidden, mailbox.subscribed = new.hidden, new.subscribe
        mailbox.encrypt_messages = new.encrypt
        if new.retention is not None:
            mailbox.retention = seconds(new.retention)
        mailbox.special_use = new.special_use
    await store(held, accounts, made)
    return found, [mailbox for mailboxes in made.values() for mailbox in mailboxes]


async def store(
    held: Held, accounts: Sequence[User], made: Mapping[int, Sequence[Mailbox]]
) -> None:
    """Insert the mailboxes, take over subscriptions to their paths, and record the changes."""
    before = await subscriptions.standing(held.session, list(made))
    after = {
        user: before[user] - {mailbox.path for mailbox in mailboxes}
        for user, mailboxes in made.items()
    }
    for user, mailboxes in made.items():
        for mailbox in mailboxes:
            mailbox.subscribed = mailbox.subscribed or mailbox.path in before[user]
    held.session.add_all(
        [*accounts, *(mailbox for mailboxes in made.values() for mailbox in mailboxes)]
    )
    await held.session.flush()
    await subscriptions.rewrite(held.session, before, after)
    kind = ChangeKind.MAILBOX_CREATED
    await held.tell(
        {
            user: held.ctx.entries(
                kind,
                [mailbox.id for mailbox in mailboxes],
                path=[mailbox.path for mailbox in mailboxes],
            )
            for user, mailboxes in made.items()
        }
    )


def _check_new(new: NewMailboxes, users: Sequence[int]) -> None:
    """Raise InvalidInput if the values contradict each other."""
    if not new.paths:
        raise Invalid("name at least one path", constraint="required", path=["paths"])
    if new.special_use and len(new.paths) > 1:
        raise Invalid("one folder has the role", constraint="exclusive", path=["specialUse"])
    if new.guid is not None and (len(new.paths) > 1 or len(users) > 1):
        raise Invalid("one folder has the guid", constraint="exclusive", path=["guid"])
    if new.guid is not None and not GUID.fullmatch(new.guid):
        raise Invalid("a guid has 32 hex digits", constraint="pattern", path=["guid"])


async def _there(session: AsyncSession, users: Sequence[int]) -> Mapping[int, Sequence[Picked]]:
    """Load the values of the users' mailboxes that must be unique."""
    names = ("user_id", "path", "guid", "special_use")
    statement = select(*picked(Mailbox, names)).where(col(Mailbox.user_id).in_(users))
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in (await (await session.connection()).execute(statement)).all():
        found[row.user_id].append(row)
    return found


def check_room(held: Held, user_id: int, there: int, more: int, *, path: str) -> None:
    """Raise LimitReached if an account with this many mailboxes can't get this many more."""
    limit = held.ctx.world.options.max_mailboxes
    if more and there + more > limit:
        text = held.whose(user_id, "too many folders")
        raise LimitReached(text, limit=limit, used=there, path=[path])


def seconds(retention: timedelta, path: Sequence[str] = ("retention",)) -> int | None:
    """Return the retention in seconds, in its stored form. None means unlimited.

    Raises InvalidInput if it is not between a second and a hundred years.
    """
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
    """Build the mailboxes of one user, with missing parents. Raises Conflict or LimitReached."""
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
