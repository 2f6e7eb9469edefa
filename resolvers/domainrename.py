"""Giving a domain another name, with all that is called after it, in one unit."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, String, and_, case, func, or_, select, update
from sqlalchemy.orm import aliased
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail import lookalikes
from mail.addresses import ascii_domain, checked_domain, checked_username
from models.addresses import Address
from models.columns import Picked, picked
from models.domains import Domain, DomainAlias
from models.errors import Conflict, Invalid, NotFound, Refused, Several
from models.journal import PLATFORM, ChangeKind
from models.users import User
from resolvers import adminlog, domains
from resolvers.adminlog import Done
from resolvers.context import Context
from resolvers.domainchange import hold_all, of_owners

LISTED = 100  # conflicts of user names that are told at once
USERNAME = 128  # characters


@dataclass(frozen=True, slots=True)
class Renamed:
    """What a renaming has changed."""

    domain: Picked
    addresses: int
    users: int  # whose name or main address is another now
    aliases: int  # that stand for the new name


@dataclass(frozen=True, slots=True)
class Names:
    """The old name and the new, and what of an account is called after the old one."""

    key: int
    old: str
    new: str

    @property
    def suffixes(self) -> tuple[str, str]:
        """The ends of user names, which are in ASCII always."""
        return f"@{ascii_domain(self.old)}", f"@{ascii_domain(self.new)}"

    @property
    def called(self) -> ColumnElement[bool]:
        """Accounts that live or have an address there, and have a user name like one."""
        there = select(col(Address.user_id)).where(col(Address.domain_id) == self.key)
        lives = or_(col(User.domain_id) == self.key, col(User.id).in_(there))
        return and_(lives, col(User.username_key).endswith(self.suffixes[0], autoescape=True))

    @property
    def reached(self) -> ColumnElement[bool]:
        """Accounts whose main address is there."""
        main = select(col(Address.user_id)).where(
            col(Address.domain_id) == self.key, col(Address.main)
        )
        return col(User.id).in_(main)

    def renamed(self, column: Any) -> Any:
        """A user name with the new end."""
        old, new = self.suffixes
        return without(column, old) + new


def without(column: Any, end: str) -> Any:
    """The text in a column without its end, which is this one."""
    return func.substr(column, 1, func.length(column) - len(end), type_=String)


async def rename(ctx: Context, old: str, new: str) -> Renamed:
    """Rename a domain, its addresses, and the user names that are addresses in it.

    One unit, in as few statements for many accounts as for one. Several, with each thing that
    is in the way, where it cannot be done.
    """
    new = checked_domain(new, path="newDomain")
    lookalikes.refuse_domain(new, path="newDomain")
    row = await domains.named(ctx, old)
    if row is None:
        raise NotFound(old, path=["oldDomain"])
    if row.name == new:
        raise Invalid("that is its name", constraint="same", path=["newDomain"])
    names = Names(row.id, row.name, new)
    async with ctx.write() as session:
        await hold_all(session, [row.id])
        if (await _row(ctx, row.id, old)).name != row.name:
            raise NotFound(old, path=["oldDomain"])  # somebody was quicker
        problems = [
            *await domains.taken(session, new, path="newDomain"),
            *await _clashes(ctx, names),
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
        await adminlog.note(ctx, session, told)
    return Renamed(after, **changed)


async def _row(ctx: Context, key: int, name: str) -> Picked:
    for row in await ctx.read(select(*picked(Domain)).where(col(Domain.id) == key)):
        return row
    raise NotFound(name, path=["oldDomain"])


async def _clashes(ctx: Context, names: Names) -> list[Refused]:
    """Why user names cannot follow: somebody has that name, or it would be none."""
    other: Any = aliased(User)
    theirs: Select[*tuple[Any, ...]] = (
        select(col(User.username), col(other.username).label("other"))
        .join(other, col(other.username_key) == names.renamed(col(User.username_key)))
        .where(names.called)
        .order_by(col(User.id))
        .limit(LISTED)
    )
    found: list[Refused] = [
        Conflict(f"the user {row.username} would be called as {row.other} is", path=["newDomain"])
        for row in await ctx.read(theirs)
    ]
    longest = select(func.max(func.length(names.renamed(col(User.username)))).label("longest"))
    for row in await ctx.read(longest.where(names.called)):
        if row.longest is not None:
            found += _unfit(names.suffixes[1], row.longest)
    return found


def _unfit(suffix: str, longest: int) -> list[Refused]:
    if longest > USERNAME:
        text = f"a user name would have {longest} characters, and {USERNAME} are the most"
        return [Invalid(text, constraint="length", path=["newDomain"])]
    try:
        checked_username(f"x{suffix}", path="newDomain")
    except Invalid as problem:
        return [problem]
    return []


async def _changed(ctx: Context, session: AsyncSession, names: Names) -> dict[str, int]:
    """Change all rows and tell of them; how many there were, as `Renamed` says it."""
    affected = select(col(User.id), col(User.domain_id)).where(or_(names.called, names.reached))
    told = await of_owners(ctx, [names.key])
    addresses = sum(len(ids) for kinds in told.values() for _, ids in kinds)
    users: dict[int, list[int]] = {}
    for row in await ctx.read(affected.order_by(col(User.id))):
        users.setdefault(row.domain_id or PLATFORM, []).append(row.id)
    asked = select(func.count()).where(col(DomainAlias.domain_id) == names.key)
    ((aliases,),) = await ctx.read(asked)

    at = ctx.world.now()
    connection = await session.connection()
    await connection.execute(_users(names, at))
    shown = col(Address.shown)
    await connection.execute(
        update(Address)
        .where(col(Address.domain_id) == names.key)
        .values(shown=without(shown, f"@{names.old}") + f"@{names.new}", updated_at=at)
    )
    await connection.execute(
        update(Domain).where(col(Domain.id) == names.key).values(name=names.new, updated_at=at)
    )
    for stream, ids in users.items():
        told.setdefault(stream, []).append((ChangeKind.USER_CHANGED, ids))
    for stream in (names.key, PLATFORM):
        told.setdefault(stream, []).append((ChangeKind.DOMAIN_CHANGED, [names.key]))
    await ctx.record_all(session, told)
    many = sum(len(ids) for ids in users.values())
    return {"addresses": addresses, "users": many, "aliases": aliases}


def _users(names: Names, at: Any) -> Any:
    """The statement for accounts: names, and the words they are found by, which hold both.

    Of the words the user name is the first line, and the main address the end.
    """
    username, key, words = col(User.username), col(User.username_key), col(User.words)
    called, reached = names.called, names.reached
    old, new = f"@{names.old.casefold()}", f"@{names.new.casefold()}"
    ended = case((reached, without(words, old) + new), else_=words)
    behind: Any = func.substr(ended, func.length(username) + 1, type_=String)
    return (
        update(User)
        .where(or_(called, reached))
        .values(
            username=case((called, names.renamed(username)), else_=username),
            username_key=case((called, names.renamed(key)), else_=key),
            words=case((called, names.renamed(username) + behind), else_=ended),
            updated_at=at,
        )
    )
