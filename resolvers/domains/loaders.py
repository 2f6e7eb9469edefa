"""Load, list and lock domains, and create the domain of a new address."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, false, func, or_, select, true
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import checked_domain, normal_domain
from mail.text import confusables
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, LimitReached, NotFound, check_count
from models.events import journal
from models.events.journal import PLATFORM, ChangeKind, Stream
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role
from models.users.tables import DomainAdmin, User
from resolvers import pagination
from resolvers.context import Context
from resolvers.pagination import Scan, by_keys
from resolvers.sql_text import same, within


@dataclass(frozen=True, slots=True)
class DomainWhere:
    """Conditions of a domain list; all must hold. The user id 0 matches no user."""

    query: str | None = None
    active: bool | None = None
    backup_mx: bool | None = None
    administered_by: int | None = None
    not_administered_by: int | None = None
    tags: tuple[str, ...] | None = None  # any of them


@dataclass(frozen=True, slots=True)
class Named:
    """A reference to a domain by id or by its own name. Names of alias domains don't count."""

    id: int | None = None
    name: str | None = None


def visible_domains(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for the domains that the viewer administers."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    if ctx.viewer.role is Role.DOMAIN_ADMIN and ctx.viewer.administers:
        return col(Domain.id).in_(ctx.viewer.administers)
    return false()


def administered(ctx: Context, column: Any) -> ColumnElement[bool]:
    """Return the WHERE clause that the domain id in this column is an administered one."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    there: ColumnElement[bool] = column.in_(select(col(Domain.id)).where(visible_domains(ctx)))
    return there


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load domains by id, in the given order. None for an id that the viewer can't see.

    Visible are administered domains and those of the viewer's account and addresses.
    """
    own = ctx.viewer.user_id
    home = select(col(User.domain_id)).where(col(User.id) == own)
    places = select(col(Address.domain_id)).where(col(Address.user_id) == own)
    seen = visible_domains(ctx) | col(Domain.id).in_(home) | col(Domain.id).in_(places)
    return await by_keys(ctx, select(*picked(Domain)).where(seen), col(Domain.id), ids)


async def administered_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load domains by id, in the given order. None for an id that the viewer doesn't administer."""
    seen = select(*picked(Domain)).where(visible_domains(ctx))
    return await by_keys(ctx, seen, col(Domain.id), ids)


async def named(ctx: Context, name: str) -> Picked | None:
    """Return the domain of this name, or None if the viewer doesn't administer it."""
    asked = select(*picked(Domain)).where(
        col(Domain.name) == normal_domain(name), visible_domains(ctx)
    )
    rows: Sequence[Picked] = await ctx.read(asked)
    return next(iter(rows), None)


async def chosen(ctx: Context, refs: Sequence[Named], *, path: str = "domains") -> list[Picked]:
    """Load the referenced domains in the order of the references, each once.

    Raises InvalidInput if there are too many references, and NotFound with the index of a
    domain that the viewer doesn't administer.
    """
    most = ctx.world.options.bulk
    check_count(len(refs), most, f"name 1 to {most} domains", path=[path])
    names = [None if ref.name is None else normal_domain(ref.name) for ref in refs]
    which = or_(
        col(Domain.id).in_([ref.id for ref in refs if ref.id is not None]),
        col(Domain.name).in_([name for name in names if name is not None]),
    )
    rows: Sequence[Picked] = await ctx.read(
        select(*picked(Domain)).where(which, visible_domains(ctx))
    )
    by_id = {row.id: row for row in rows}
    by_name = {row.name: row for row in rows}
    found: dict[int, Picked] = {}
    for index, (ref, name) in enumerate(zip(refs, names, strict=True)):
        row = by_id.get(ref.id) if name is None else by_name.get(name)
        if row is None:
            raise NotFound(ref.name or str(ref.id), path=[path], index=index)
        found.setdefault(row.id, row)
    return list(found.values())


async def pages(
    ctx: Context, where: DomainWhere, ask: Ask, columns: Collection[str]
) -> Page[Picked]:
    """Read a page of the administered domains, ordered by name."""
    rows = select(*picked(Domain, {"id", "name", *columns})).where(*_conditions(ctx, where))
    place = (col(Domain.name), col(Domain.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, where: DomainWhere) -> int:
    """Count the administered domains that meet the conditions."""
    asked = select(func.count()).select_from(Domain).where(*_conditions(ctx, where))
    (row,) = await ctx.read(asked)
    return int(row[0])


def _conditions(ctx: Context, where: DomainWhere) -> list[ColumnElement[bool]]:
    conditions = [visible_domains(ctx)]
    if where.query:
        named_so = within(col(Domain.name), where.query)
        conditions.append(named_so | within(col(Domain.description), where.query))
    if where.active is not None:
        conditions.append(col(Domain.active).is_(where.active))
    if where.backup_mx is not None:
        conditions.append(col(Domain.backup_mx).is_(where.backup_mx))
    if where.administered_by is not None:
        conditions.append(col(Domain.id).in_(_charges(where.administered_by)))
    if where.not_administered_by is not None:
        conditions.append(col(Domain.id).not_in(_charges(where.not_administered_by)))
    if where.tags is not None:
        listed = {"sqlite": func.json_each, "postgresql": func.jsonb_array_elements_text}
        each = listed[ctx.world.database.dialect](col(Domain.tags)).table_valued("value")
        alike = or_(false(), *(same(each.c.value, tag.strip()) for tag in where.tags))
        conditions.append(exists(select(each.c.value).where(alike)))
    return conditions


def _charges(user_id: int) -> Select[int]:
    return select(col(DomainAdmin.domain_id)).where(col(DomainAdmin.user_id) == user_id)


async def ensure(
    ctx: Context, session: AsyncSession, name: str, *, path: str, within: Sequence[str] = ()
) -> Domain:
    """Return the locked domain of a new address; create it if the setting allows that.

    Adds a warning for a created domain, with the input path. Raises NotFound if the viewer
    doesn't administer the domain or it may not be created, Conflict if the name is an alias
    domain, and LimitReached if the domain can't have another address.
    """
    name = checked_domain(name, path=path)
    viewer, connection = ctx.viewer, await session.connection()
    free = viewer.role.includes(Role.ADMIN)
    alias = (await connection.execute(_aliased(name))).first()
    if alias and (free or alias.domain_id in viewer.administers):
        raise Conflict(f"{name} is an alias of another domain", path=[path])
    known = select(col(Domain.id)).where(col(Domain.name) == name)
    row = (await connection.execute(known)).first()
    if row is None and may_create(ctx):
        await journal.lock(session, [PLATFORM])  # this lock protects the names of domains
        row = (await connection.execute(known)).first()
        if row is None:
            confusables.refuse_domain(name, path=path)
            await free_name(session, name, path=path)
            warn_created(ctx, name, path=[*within, path])
            return await added(ctx, session, new(ctx, name))
    if row is None:
        raise unknown(ctx, name, path=[path])
    if not (free or row.id in viewer.administers):
        raise NotFound(name, path=[path])
    return await with_room(session, row.id, name, path=path)


async def with_room(session: AsyncSession, key: int, name: str, *, path: str) -> Domain:
    """Return the locked domain if it can have another address.

    Raises NotFound or LimitReached as `lock_or_create_domain`.
    """
    held = select(col(Stream.id)).where(col(Stream.id) == key).with_for_update()
    await (await session.connection()).execute(held)
    domain = await session.get(Domain, key, populate_existing=True)
    if (
        domain is None or domain.name != name
    ):  # deleted or renamed while this transaction waited for the lock
        raise NotFound(name, path=[path])
    if domain.max_addresses and domain.address_count >= domain.max_addresses:
        raise LimitReached(
            "the domain has all its addresses",
            limit=domain.max_addresses,
            used=domain.address_count,
            path=[path],
        )
    return domain


def _aliased(name: str) -> Select[int]:
    return select(col(DomainAlias.domain_id)).where(col(DomainAlias.alias) == name)


def may_create(ctx: Context) -> bool:
    """True if the viewer is an ADMIN and the first address in a domain creates the domain."""
    return ctx.viewer.role.includes(Role.ADMIN) and ctx.world.options.auto_create_domains


def new(ctx: Context, name: str, **columns: Any) -> Domain:
    """Return an unsaved domain. Columns that are not given have the platform's defaults."""
    at, options = ctx.world.now(), ctx.world.options
    usual: dict[str, Any] = {
        "max_users": options.domain_max_users,
        "max_addresses": options.domain_max_addresses,
        "default_user_quota": options.domain_default_user_quota,
        "max_user_quota": options.domain_max_user_quota,
        "quota": options.domain_quota,
    }
    made: dict[str, Any] = {"id": ctx.world.key(), "created_at": at, "updated_at": at}
    return Domain(name=name, **made, **{**usual, **columns})


def unknown(ctx: Context, name: str, *, path: Sequence[str]) -> NotFound:
    """Return the NotFound error for an address in a domain that is missing or not visible."""
    refusal = NotFound(name, path=path)
    if ctx.viewer.role.includes(Role.ADMIN):
        refusal.message = (
            f"there is no domain {name}: create it first, by domainCreate or `merganser domain add`"
        )
    return refusal


def warn_created(ctx: Context, name: str, *, path: Sequence[str]) -> None:
    """Warn the caller that an address has created a domain, whose name can be a typing error."""
    ctx.warn("DOMAIN_CREATED", f"the domain {name} did not exist, and is created", path=path)


async def taken(session: AsyncSession, name: str, *, path: str) -> list[Conflict]:
    """Return a Conflict for the domain and for the alias domain that have this name.

    The caller holds the lock on the stream PLATFORM, so the result stays true.
    """
    connection = await session.connection()
    found = []
    if (await connection.execute(select(col(Domain.id)).where(col(Domain.name) == name))).first():
        found.append(Conflict(f"{name} is a domain already", path=[path]))
    if (await connection.execute(_aliased(name))).first():
        found.append(Conflict(f"{name} is an alias of a domain", path=[path]))
    return found


async def free_name(session: AsyncSession, name: str, *, path: str) -> None:
    """Raise Conflict if a domain or alias domain has this name. PLATFORM must be locked."""
    for conflict in await taken(session, name, path=path):
        raise conflict


async def added(ctx: Context, session: AsyncSession, domain: Domain) -> Domain:
    """Insert a new domain with its stream, in a transaction that has locked PLATFORM."""
    session.add_all([domain, Stream(id=domain.id)])
    await session.flush()
    told = [(ChangeKind.DOMAIN_CHANGED, [domain.id])]
    await ctx.record_all(session, {PLATFORM: told, domain.id: told}, did="created")
    return domain
