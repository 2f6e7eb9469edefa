"""Operations on domains."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, false, select, true
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses import checked_domain, normal_domain
from models.addresses import Address
from models.columns import Picked, picked
from models.domains import Domain, DomainAlias
from models.errors import Conflict, NotFound
from models.journal import PLATFORM, ChangeKind, Stream
from models.roles import Role
from models.users import User
from resolvers.access import visible_users
from resolvers.context import Context
from resolvers.listing import by_keys


def visible_domains(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for domains: those one administers, or all."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    if ctx.viewer.role is Role.DOMAIN_ADMIN and ctx.viewer.administers:
        return col(Domain.id).in_(ctx.viewer.administers)
    return false()


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The domains with these ids, in this order; None where the viewer sees none.

    Seen are those one administers, and those of the accounts and addresses one sees.
    """
    users = select(col(User.domain_id)).where(visible_users(ctx))
    theirs = select(col(User.id)).where(visible_users(ctx))
    places = select(col(Address.domain_id)).where(col(Address.user_id).in_(theirs))
    seen = visible_domains(ctx) | col(Domain.id).in_(users) | col(Domain.id).in_(places)
    return await by_keys(ctx, select(*picked(Domain)).where(seen), col(Domain.id), ids)


async def by_name(ctx: Context, name: str) -> Picked | None:
    """The domain of this name, or the one it is an alias of, as far as the viewer may see it."""
    alias = select(col(DomainAlias.domain_id)).where(col(DomainAlias.alias) == normal_domain(name))
    asked = select(*picked(Domain)).where(
        (col(Domain.name) == normal_domain(name)) | col(Domain.id).in_(alias), visible_domains(ctx)
    )
    rows: Sequence[Picked] = await ctx.read(asked)
    return next(iter(rows), None)


async def ensure(ctx: Context, session: AsyncSession, name: str, *, path: str) -> Domain:
    """The domain of this name, held until the unit ends; an ADMIN's first use makes it.

    NotFound where it is none of the viewer's, Conflict where the name is an alias.
    """
    name = checked_domain(name, path=path)
    connection = await session.connection()
    free = ctx.viewer.role.includes(Role.ADMIN)
    aliased = select(col(DomainAlias.domain_id)).where(col(DomainAlias.alias) == name)
    alias = (await connection.execute(aliased)).first()
    if alias and (free or alias.domain_id in ctx.viewer.administers):
        raise Conflict(f"{name} is an alias of another domain", path=[path])
    row = (await connection.execute(select(col(Domain.id)).where(col(Domain.name) == name))).first()
    if not free and (row is None or row.id not in ctx.viewer.administers):
        raise NotFound(name, path=[path])
    if row is None:
        return await _make(ctx, session, name)
    await connection.execute(
        select(col(Stream.id)).where(col(Stream.id) == row.id).with_for_update()
    )
    return await session.get_one(Domain, row.id, populate_existing=True)


async def _make(ctx: Context, session: AsyncSession, name: str) -> Domain:
    at = ctx.world.now()
    domain = Domain(id=ctx.world.key(), name=name, created_at=at, updated_at=at)
    session.add_all([domain, Stream(id=domain.id)])
    await session.flush()
    await ctx.record(session, PLATFORM, ChangeKind.DOMAIN_CHANGED, [domain.id])
    return domain
