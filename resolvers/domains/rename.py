"""Rename a domain with its addresses, usernames and rules in one transaction."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import aliased
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import ascii_domain, checked_domain, checked_username
from mail.text import confusables
from models.addresses.rewrites import BccRule, RecipientRewrite
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, Invalid, NotFound, Refused, Several
from models.events.journal import PLATFORM, ChangeKind
from models.store.columns import Picked, picked, table_of
from models.users.search_index import words_of
from models.users.tables import User
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations, references
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.mutations import hold_all, of_owners

LISTED = 100  # conflicts of usernames in one response
USERNAME = 128  # characters


_FOUND_BY = (
    update(table_of(User))
    .where(col(User.id) == bindparam("user"))
    .values(words=bindparam("found_by"))
)


@dataclass(frozen=True, slots=True)
class Renamed:
    """The renamed domain with the numbers of changed rows."""

    domain: Picked
    addresses: int
    users: int  # with a new username or main address
    aliases: int  # alias domains of it
    keys: int


@dataclass(frozen=True, slots=True)
class Names:
    """The domain id, its old and new name, and SQL expressions for the usernames to change."""

    key: int
    old: str
    new: str

    @property
    def suffixes(self) -> tuple[str, str]:
        """The old and new suffix of usernames, always in ASCII."""
        return f"@{ascii_domain(self.old)}", f"@{ascii_domain(self.new)}"

    @property
    def keys(self) -> tuple[str, str]:
        """The old and new suffix of usernames in their compared form, in Unicode."""
        return f"@{self.old}", f"@{self.new}"

    @property
    def called(self) -> ColumnElement[bool]:
        """Users in the domain, or with an address there, whose username ends with its name."""
        there = select(col(Address.user_id)).where(col(Address.domain_id) == self.key)
        lives = or_(col(User.domain_id) == self.key, col(User.id).in_(there))
        return and_(lives, col(User.username_key).endswith(self.keys[0], autoescape=True))

    @property
    def reached(self) -> ColumnElement[bool]:
        """Users whose main address is in the domain."""
        main = select(col(Address.user_id)).where(
            col(Address.domain_id) == self.key, col(Address.main)
        )
        return col(User.id).in_(main)

    @property
    def renamed(self) -> Any:
        """The usernames with the new suffix."""
        old, new = self.suffixes
        return without(col(User.username), old) + new

    @property
    def compared(self) -> Any:
        """The compared forms of usernames with the new suffix."""
        old, new = self.keys
        return without(col(User.username_key), old) + new


def without(column: Any, end: str) -> Any:
    """Return the SQL expression for a column without this suffix."""
    return func.substr(column, 1, func.length(column) - len(end), type_=String)


async def rename(ctx: Context, old: str, new: str) -> Renamed:
    """Rename a domain, its addresses, and the usernames that are addresses in it.

    Uses one transaction, and a number of statements that does not depend on the number of
    users. Raises NotFound, InvalidInput, or MultipleErrors with every conflict.
    """
    new = checked_domain(new, path="newDomain")
    confusables.refuse_domain(new, path="newDomain")
    row = await domain_loaders.named(ctx, old)
    if row is None:
        raise NotFound(old, path=["oldDomain"])
    if row.name == new:
        raise Invalid("that is its name", constraint="same", path=["newDomain"])
    names = Names(row.id, row.name, new)
    async with ctx.write() as session:
        await hold_all(session, [row.id])
        if (await _row(ctx, row.id, old)).name != row.name:
            raise NotFound(old, path=["oldDomain"])  # another transaction renamed it first
        problems = [
            *await domain_loaders.taken(session, new, path="newDomain"),
            *await _clashes(ctx, names),
            *await _rewritten(ctx, names),
        ]
        if problems:
            raise Several(problems)
        changed = await _changed(ctx, session, names)
        after = await _row(ctx, row.id, old)
        told = Done(
            mutation="domainRename",
            kind="Domain",
            target_id=row.id,
            domain_id=row.id,
            before={"name": names.old},
            after={"name": new},
        )
        await admin_log.note(ctx, session, told)
    return Renamed(after, **changed)


async def _row(ctx: Context, key: int, name: str) -> Picked:
    for row in await ctx.read(select(*picked(Domain)).where(col(Domain.id) == key)):
        return row
    raise NotFound(name, path=["oldDomain"])


async def _clashes(ctx: Context, names: Names) -> list[Refused]:
    """Return why usernames can't be changed: a new one is in use or not allowed."""
    other: Any = aliased(User)
    theirs: Select[*tuple[Any, ...]] = (
        select(col(User.username), col(other.username).label("other"))
        .join(other, col(other.username_key) == names.compared)
        .where(names.called)
        .order_by(col(User.id))
        .limit(LISTED)
    )
    found: list[Refused] = [
        Conflict(f"the user {row.username} would be called as {row.other} is", path=["newDomain"])
        for row in await ctx.read(theirs)
    ]
    longest = select(func.max(func.length(names.renamed)).label("longest"))
    for row in await ctx.read(longest.where(names.called)):
        if row.longest is not None:
            found += _unfit(names.suffixes[1], row.longest)
    return found


async def _rewritten(ctx: Context, names: Names) -> list[Refused]:
    """Return a Conflict if recipient rewrites use the new name already."""
    target = col(RecipientRewrite.target).endswith(f"@{names.new}", autoescape=True)
    there = (col(RecipientRewrite.domain) == names.new) | target
    if await ctx.read(select(col(RecipientRewrite.id)).where(there).limit(1)):
        return [Conflict(f"a recipient rewrite is about {names.new}", path=["newDomain"])]
    return []


def _unfit(suffix: str, longest: int) -> list[Refused]:
    if longest > USERNAME:
        text = f"a user name would have {longest} characters, and {USERNAME} are the most"
        return [Invalid(text, constraint="length", path=["newDomain"])]
    try:
        checked_username(f"x{suffix}", path=["newDomain"])
    except Invalid as problem:
        return [problem]
    return []


async def _changed(ctx: Context, session: AsyncSession, names: Names) -> dict[str, int]:
    """Update all rows, record the changes, and return the counts of `DomainRenameResult`."""
    main = and_(col(Address.user_id) == col(User.id), col(Address.main))
    affected: Select[*tuple[Any, ...]] = (
        select(
            *picked(User, {"id", "domain_id", "username", "name"}),
            names.called.label("called"),
            col(Address.shown).label("main"),
        )
        .outerjoin(Address, main)
        .where(or_(names.called, names.reached))
        .order_by(col(User.id))
    )
    told = await of_owners(ctx, [names.key])
    addresses = sum(len(ids) for kinds in told.values() for _, ids in kinds)
    users: dict[int, list[int]] = {}
    words = []
    for row in await ctx.read(affected):
        users.setdefault(row.domain_id or PLATFORM, []).append(row.id)
        words.append({"user": row.id, "found_by": _words(names, row)})
    asked = select(func.count()).where(col(DomainAlias.domain_id) == names.key)
    ((aliases,),) = await ctx.read(asked)

    at = ctx.world.now()
    connection = await session.connection()
    await connection.execute(_users(names, at))
    if words:
        await connection.execute(_FOUND_BY, words)
    shown = col(Address.shown)
    await connection.execute(
        update(Address)
        .where(col(Address.domain_id) == names.key)
        .values(shown=without(shown, f"@{names.old}") + f"@{names.new}", updated_at=at)
    )
    await connection.execute(
        update(Domain).where(col(Domain.id) == names.key).values(name=names.new, updated_at=at)
    )
    for following in _rules(names):
        await connection.execute(following)
    for stream, ids in users.items():
        told.setdefault(stream, []).append((ChangeKind.USER_CHANGED, ids))
    for stream in (names.key, PLATFORM):
        told.setdefault(stream, []).append((ChangeKind.DOMAIN_CHANGED, [names.key]))
    await _elsewhere(ctx, session, names, told)
    await ctx.record_all(session, told)
    many = sum(len(ids) for ids in users.values())
    keys = await dkim_key_mutations.follow_rename(ctx, session, names.key, names.old, names.new)
    return {"addresses": addresses, "users": many, "aliases": aliases, "keys": keys}


async def _elsewhere(
    ctx: Context,
    session: AsyncSession,
    names: Names,
    told: dict[int, list[tuple[ChangeKind, list[int]]]],
) -> None:
    """Rename the domain in targets and allowed senders of other users and addresses.

    The stream of the platform records these changes.
    """
    for kind, following in (
        (ChangeKind.ADDRESS_CHANGED, references.addresses),
        (ChangeKind.USER_CHANGED, references.users),
    ):
        if ids := await following(ctx, session, names.old, names.new):
            told.setdefault(PLATFORM, []).append((kind, ids))


def _rules(names: Names) -> list[Any]:
    """Return the statements that rename the domain in recipient rewrites and BCC targets.

    BCC rules refer to the domain of their match by id.
    """
    end = f"@{names.old}"

    def follows(table: Any, column: Any) -> Any:
        named = column.endswith(end, autoescape=True)
        return update(table).where(named).values({column: without(column, end) + f"@{names.new}"})

    came = update(RecipientRewrite).where(col(RecipientRewrite.domain) == names.old)
    return [
        came.values(domain=names.new),
        follows(RecipientRewrite, col(RecipientRewrite.target)),
        follows(BccRule, col(BccRule.bcc_to)),
    ]


def _users(names: Names, at: Any) -> Any:
    """Return the statement that renames usernames and touches users with renamed main address."""
    called = names.called
    username, key = col(User.username), col(User.username_key)
    return (
        update(User)
        .where(or_(called, names.reached))
        .values(
            username=case((called, names.renamed), else_=username),
            username_key=case((called, names.compared), else_=key),
            updated_at=at,
        )
    )


def _words(names: Names, row: Picked) -> str:
    """Return the search words of a user after the rename."""
    old, new = names.suffixes
    username = row.username.removesuffix(old) + new if row.called else row.username
    main = row.main and row.main.removesuffix(f"@{names.old}")
    main = main if main == row.main else f"{main}@{names.new}"
    return words_of(username, row.name, main)
