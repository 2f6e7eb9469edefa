"""Load, find, list and count addresses."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, false, func, or_, select, true, union_all
from sqlalchemy import literal as plain
from sqlmodel import col

from mail.addresses.address_syntax import normal, normal_domain
from mail.recipients.address_resolution import resolve
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain, DomainAlias
from models.errors import Invalid, NotFound, check_count
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role
from models.users.tables import User
from resolvers import pagination
from resolvers.access import visible_users
from resolvers.context import Context
from resolvers.pagination import Scan, together
from resolvers.sql_text import holding, same, within

TERMS = 100  # per filter


@dataclass(frozen=True, slots=True)
class Named:
    """A reference to an address by id or by its text. The text of a catch-all contains `*`."""

    id: int | None = None
    address: str = ""


@dataclass(frozen=True, slots=True)
class AddressWhere:
    """Conditions of an address list; all must hold. The user id 0 matches no address."""

    query: str | None = None
    forward: str | None = None
    tags: tuple[str, ...] | None = None  # any of
    required_tags: tuple[str, ...] | None = None  # all of
    kinds: tuple[AddressKind, ...] | None = None
    domain: str | None = None
    user_id: int | None = None
    active: bool | None = None
    wildcard: bool | None = None
    temporary: bool | None = None


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of one user's addresses, ordered by their normal form."""

    user_id: int
    ask: Ask
    columns: frozenset[str]
    query: str | None = None
    temporary: bool = False  # only temporary addresses


def visible_addresses(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for addresses of visible users and of administered domains."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()  # a deleted account has none
    # checked per address, since a list of all visible users can be long
    owner = select(col(User.id)).where(col(User.id) == col(Address.user_id), visible_users(ctx))
    theirs = owner.exists()
    if ctx.viewer.administers:
        return or_(theirs, col(Address.domain_id).in_(ctx.viewer.administers))
    return theirs


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load addresses by id, in the given order. None for an id that the viewer can't see."""
    seen = select(*picked(Address)).where(visible_addresses(ctx))
    return await pagination.by_keys(ctx, seen, col(Address.id), ids)


async def named(ctx: Context, texts: Sequence[str]) -> list[Picked | None]:
    """Load addresses by their text, in the given order. None if the viewer sees none.

    The domain part can be the name of a domain or of an alias domain.
    """
    wanted = [normal(f"*{text}" if text.startswith("@") else text) for text in texts]
    own: Select[*tuple[Any, ...]] = select(
        col(Domain.name).label("called"), col(Domain.id).label("id"), plain(0).label("far")
    )
    far: Select[*tuple[Any, ...]] = select(
        col(DomainAlias.alias), col(DomainAlias.domain_id), plain(1)
    )
    names = [one.domain for one in wanted]
    places = union_all(
        own.where(col(Domain.name).in_(names)), far.where(col(DomainAlias.alias).in_(names))
    ).subquery()
    asked = (
        select(*picked(Address), places.c.called, places.c.far)
        .outerjoin(places, places.c.id == col(Address.domain_id))
        .where(
            col(Address.local).in_([one.local for one in wanted]),
            or_(places.c.id.is_not(None), col(Address.domain_id).is_(None)),
            visible_addresses(ctx),
        )
        .order_by(
            places.c.far.desc()
        )  # the row of the domain itself overwrites that of an alias domain
    )
    rows = {(row.local, row.called or "*"): row for row in await ctx.read(asked)}
    return [rows.get((one.local, one.domain)) for one in wanted]


async def chosen(ctx: Context, refs: Sequence[Named], *, path: str = "addresses") -> list[Picked]:
    """Load the referenced addresses in the order of the references, each once.

    Raises InvalidInput if there are too many references, and NotFound with the index of an
    address that the viewer can't see.
    """
    most = ctx.world.options.bulk
    check_count(len(refs), most, f"name 1 to {most} addresses", path=[path])
    ids = [ref.id for ref in refs if ref.id is not None]
    texts = [ref.address for ref in refs if ref.id is None]
    by_id = dict(zip(ids, await by_ids(ctx, ids), strict=True)) if ids else {}
    by_text = dict(zip(texts, await named(ctx, texts), strict=True)) if texts else {}
    found: dict[int, Picked] = {}
    for index, ref in enumerate(refs):
        row = by_text[ref.address] if ref.id is None else by_id[ref.id]
        if row is None:
            raise NotFound(ref.address or str(ref.id), path=[path], index=index)
        found.setdefault(row.id, row)
    return list(found.values())


async def resolved(ctx: Context, address: str) -> Picked | None:
    """Return the address record that receives mail for this address.

    Returns None if there is none or the viewer can't see it.
    """
    try:
        row = await resolve(ctx.world, address)
    except NotFound:
        return None
    return await ctx.load(by_ids, row.id)


async def listed(
    ctx: Context, where: AddressWhere, ask: Ask, columns: Collection[str]
) -> Page[Picked]:
    """Read a page of the visible addresses, ordered by their normal form."""
    rows = select(*picked(Address, {"id", "local", *columns})).where(*_conditions(ctx, where))
    place = (col(Address.local), col(Address.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, where: AddressWhere) -> int:
    """Count the visible addresses that meet the conditions."""
    asked = select(func.count()).select_from(Address).where(*_conditions(ctx, where))
    (row,) = await ctx.read(asked)
    return int(row[0])


def _conditions(ctx: Context, where: AddressWhere) -> list[ColumnElement[bool]]:
    found = [visible_addresses(ctx), *_labelled(ctx, where)]
    if where.query:
        found.append(within(col(Address.shown), where.query))
    if where.forward:
        dialect = ctx.world.database.dialect
        found.append(holding(dialect, col(Address.targets), within, [where.forward]))
    if where.kinds is not None:
        found.append(col(Address.kind).in_(where.kinds))
    if where.domain is not None:
        here = select(col(Domain.id)).where(col(Domain.name) == normal_domain(where.domain))
        found.append(col(Address.domain_id).in_(here))
    if where.user_id is not None:
        found.append(col(Address.user_id) == where.user_id)
    for wanted, term in (
        (where.active, col(Address.active).is_(True)),
        (where.wildcard, col(Address.local).contains("*") | col(Address.domain_id).is_(None)),
        (where.temporary, col(Address.masked) | col(Address.expires_at).is_not(None)),
    ):
        if wanted is not None:
            found.append(term if wanted else ~term)
    return found


def _labelled(ctx: Context, where: AddressWhere) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses for tags. Raises InvalidInput if there are more than MAX_TAGS."""
    for name, terms in (("tags", where.tags), ("requiredTags", where.required_tags)):
        if len(terms or ()) > TERMS:
            raise Invalid(f"at most {TERMS}", constraint="max", path=["filter", name])
    if () in (where.tags, where.required_tags):
        return [false()]
    each = [[tag] for tag in where.required_tags or ()]
    sets = [where.tags, *each] if where.tags else each
    return [holding(ctx.world.database.dialect, col(Address.tags), same, tags) for tags in sets]


def _temporary(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for user-made addresses and those that expire in the future."""
    endless = and_(col(Address.masked), col(Address.expires_at).is_(None))
    return or_(col(Address.expires_at) > ctx.world.now(), endless)


async def mains(ctx: Context, user_ids: list[int]) -> list[Picked | None]:
    """Load the main addresses of users, in the given order. None for a user without one."""
    seen = select(*picked(Address)).where(col(Address.main), visible_addresses(ctx))
    return await pagination.by_keys(ctx, seen, col(Address.user_id), user_ids)


def _of(ctx: Context, key: OfUser) -> list[ColumnElement[bool]]:
    terms = [col(Address.user_id) == key.user_id, visible_addresses(ctx)]
    if key.temporary:
        terms.append(_temporary(ctx))
    return [*terms, within(col(Address.shown), key.query)] if key.query else terms


async def pages(ctx: Context, keys: list[OfUser]) -> list[Page[Picked]]:
    """Load pages of users' addresses, each in reading order."""
    columns = frozenset({"id", "local"}).union(*(key.columns for key in keys))
    place = (col(Address.local), col(Address.id))
    scans = []
    for key in keys:
        rows = select(*picked(Address, columns)).where(*_of(ctx, key))
        scans.append(Scan(rows, key.ask, place, falling=False))
    return await pagination.pages(ctx, scans)


async def counts(ctx: Context, keys: list[OfUser]) -> list[int]:
    """Count the addresses of each list, in the given order."""
    many = func.count().label("many")
    scans = [select(many).select_from(Address).where(*_of(ctx, key)) for key in keys]
    return [row.many for (row,) in await together(ctx, scans)]


async def temporary(ctx: Context, user_ids: list[int]) -> list[int]:
    """Count the temporary addresses of users that have not expired, in the given order."""
    asked = (
        select(col(Address.user_id), func.count())
        .where(
            col(Address.user_id).in_(user_ids),
            _temporary(ctx),
            visible_addresses(ctx),
        )
        .group_by(col(Address.user_id))
    )
    found = {key: int(many) for key, many in await ctx.read(asked)}
    return [found.get(key, 0) for key in user_ids]
