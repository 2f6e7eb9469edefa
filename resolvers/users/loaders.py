"""Operations on accounts."""

from collections import defaultdict
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col

from mail.recipients import address_resolution
from models.domains.tables import Domain
from models.errors import NotFound
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import Picked, picked
from models.store.prepared_statements import number, prepared
from models.users.tables import DomainAdmin, User
from resolvers.access import own, visible_users
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.pagination import by_keys


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The accounts with these ids, in this order; None where the viewer sees none."""
    if ids == [ctx.viewer.user_id]:
        return [next(iter(await ctx.find(_oneself())), None)]
    seen = select(*picked(User)).where(visible_users(ctx))
    return await by_keys(ctx, seen, col(User.id), ids)


@prepared
def _oneself() -> Select[*tuple[Any, ...]]:
    return select(*picked(User)).where(col(User.id) == number("viewer"))


async def named(ctx: Context, name: str) -> Picked | None:
    """The account of this user name or address, as far as the viewer may see it."""
    key = await address_resolution.login_of(ctx.world, name)
    return await ctx.load(by_ids, key) if key else None


async def reached(ctx: Context, key: int | None) -> int:
    """The account an operation is about: one the viewer sees, or the viewer's own."""
    if key is None:
        return own(ctx)
    if await ctx.load(by_ids, key) is None:
        raise NotFound(str(key), path=["user"])
    return key


async def folders_of(ctx: Context, user_id: int, use: SpecialUse) -> int | None:
    """The id of a user's folder of this role."""
    asked = select(col(Mailbox.id)).where(
        col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == use
    )
    row = next(iter(await ctx.read(asked)), None)
    return None if row is None else int(row.id)


async def administered(ctx: Context, user_ids: list[int]) -> list[list[Picked]]:
    """The domains these users are in charge of, by name, as far as the viewer may see them."""
    charges = (
        select(*picked(Domain), col(DomainAdmin.user_id).label("admin"))
        .join(DomainAdmin, col(DomainAdmin.domain_id) == col(Domain.id))
        .where(col(DomainAdmin.user_id).in_(user_ids), domain_loaders.visible_domains(ctx))
        .order_by(col(Domain.name))
    )
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in await ctx.read(charges):
        found[row.admin].append(row)
    return [found[key] for key in user_ids]
