"""Read, create and delete alias domains."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from mail.addresses.address_syntax import checked_domain, normal_domain
from mail.text import confusables
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, Invalid, LimitReached, NotFound, check_count
from models.events.journal import PLATFORM, ChangeKind
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from resolvers import pagination
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations
from resolvers.domains import loaders as domain_loaders
from resolvers.pagination import Scan, by_keys
from resolvers.sql_text import within

MOST = 1000  # per domain


@dataclass(frozen=True, slots=True)
class NewAlias:
    """An alias domain to create."""

    alias: str
    domain: str
    active: bool = True


def _visible(ctx: Context) -> ColumnElement[bool]:
    return domain_loaders.administered(ctx, col(DomainAlias.domain_id))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load alias domains by id, in the given order. None for ids that the viewer can't see."""
    seen = select(*picked(DomainAlias)).where(_visible(ctx))
    return await by_keys(ctx, seen, col(DomainAlias.id), ids)


async def named(ctx: Context, alias: str) -> Picked | None:
    """Return the alias domain of this name, or None if the viewer sees none."""
    asked = select(*picked(DomainAlias)).where(
        col(DomainAlias.alias) == normal_domain(alias), _visible(ctx)
    )
    return next(iter(await ctx.read(asked)), None)


async def pages(
    ctx: Context, query: str | None, ask: Ask, columns: Collection[str]
) -> Page[Picked]:
    """Read a page of the visible alias domains, ordered by name."""
    rows = select(*picked(DomainAlias, {"id", "alias", *columns})).where(*_conditions(ctx, query))
    place = (col(DomainAlias.alias), col(DomainAlias.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, query: str | None) -> int:
    """Count the visible alias domains that the query finds."""
    asked = select(func.count()).select_from(DomainAlias).where(*_conditions(ctx, query))
    (row,) = await ctx.read(asked)
    return int(row[0])


def _conditions(ctx: Context, query: str | None) -> list[ColumnElement[bool]]:
    if not query:
        return [_visible(ctx)]
    called = select(col(Domain.id)).where(within(col(Domain.name), query))
    found = within(col(DomainAlias.alias), query) | col(DomainAlias.domain_id).in_(called)
    return [_visible(ctx), found]


async def of_domains(ctx: Context, keys: list[int]) -> list[list[Picked]]:
    """Load all alias domains of domains, ordered by name, in the order of the domains."""
    asked = select(*picked(DomainAlias)).where(col(DomainAlias.domain_id).in_(keys), _visible(ctx))
    found: dict[int, list[Picked]] = {key: [] for key in keys}
    for row in await ctx.read(asked.order_by(col(DomainAlias.alias))):
        found[row.domain_id].append(row)
    return [found[key] for key in keys]


async def create(ctx: Context, new: NewAlias) -> DomainAlias:
    """Create an alias domain.

    Raises InvalidInput for a bad name, NotFound if the viewer does not administer the domain,
    Conflict if the name is in use or the domain is itself an alias, and LimitReached if the
    domain has too many aliases.
    """
    alias = checked_domain(new.alias, path="alias")
    confusables.refuse_domain(alias, path="alias")
    name = normal_domain(new.domain)
    if alias == name:
        raise Invalid("a domain is no alias of itself", constraint="self", path=["alias"])
    row = await domain_loaders.named(ctx, name)
    if row is None:
        if await named(ctx, name) is not None:
            raise Conflict(f"{name} is an alias: it has none itself", path=["domain"])
        raise NotFound(new.domain, path=["domain"])
    made = DomainAlias(
        id=ctx.world.key(),
        alias=alias,
        domain_id=row.id,
        active=new.active,
        created_at=ctx.world.now(),
    )
    try:
        async with ctx.write(PLATFORM, row.id) as session:
            (known,) = await domain_loaders.by_ids(ctx, [row.id])
            if known is None or known.name != row.name:
                raise NotFound(new.domain, path=["domain"])
            if await domain_loaders.taken(session, alias, path="alias"):
                raise Conflict(f"{alias} is taken", path=["alias"])
            (used,) = await of_domains(ctx, [row.id])
            if len(used) >= MOST:
                text = f"a domain has at most {MOST} aliases"
                raise LimitReached(text, limit=MOST, used=len(used), path=["domain"])
            session.add(made)
            await session.flush()
            told = [(ChangeKind.DOMAIN_CHANGED, [row.id])]
            await ctx.record_all(session, {PLATFORM: told, row.id: told})
            after = {"alias": alias, "domain": row.name, "active": new.active}
            done = Done("domainAliasCreate", "DomainAlias", made.id, row.id, after=after)
            await admin_log.note(ctx, session, done)
    except IntegrityError as clash:
        raise Conflict(f"{alias} is taken", path=["alias"]) from clash
    return made


async def remove(ctx: Context, ids: list[int]) -> None:
    """Delete alias domains, all or none. Raises NotFound if the viewer can't see one."""
    most = ctx.world.options.bulk
    check_count(len(ids), most, f"name 1 to {most} aliases", path=["ids"])
    homes = [row.domain_id for row in await by_ids(ctx, ids) if row]
    async with ctx.write(PLATFORM, *homes) as session:
        rows = {}
        for index, row in enumerate(await by_ids(ctx, ids)):
            if row is None:
                raise NotFound(str(ids[index]), path=["ids"], index=index)
            rows[row.id] = row
        connection = await session.connection()
        await connection.execute(delete(DomainAlias).where(col(DomainAlias.id).in_(rows)))
        await dkim_key_mutations.follow_alias(ctx, session, [row.alias for row in rows.values()])
        changed = sorted({row.domain_id for row in rows.values()})
        told = {key: [(ChangeKind.DOMAIN_CHANGED, [key])] for key in changed}
        await ctx.record_all(session, {**told, PLATFORM: [(ChangeKind.DOMAIN_CHANGED, changed)]})
        done = (
            Done(
                "domainAliasDelete",
                "DomainAlias",
                row.id,
                row.domain_id,
                before={"alias": row.alias, "active": row.active},
            )
            for row in rows.values()
        )
        await admin_log.note(ctx, session, *done)
