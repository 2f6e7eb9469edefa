"""Users: load by id or name."""

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
    """Load users by id, in this order; None for a user that the viewer does not see."""
    if ids == [ctx.viewer.user_id]:
        return [next(iter(await ctx.find(_oneself())), None)]
    seen = select(*picked(User)).where(visible_users(ctx))
    return await by_keys(ctx, seen, col(User.id), ids)


@prepared
def _oneself() -> Select[*tuple[Any, ...]]:
    return select(*picked(User)).where(col(User.id) == number("viewer"))


async def named(ctx: Context, name: str) -> Picked | None:
    """Load the user of this username or address; None if the viewer does not see it."""
    key = await address_resolution.login_of(ctx.world, name)
    return await ctx.load(by_ids, key) if key else None


async def reached(ctx: Context, key: int | None) -> int:
    """Return the id of the user an operation is for: a visible one, or the viewer for None.

    Raises NotFound if the viewer does not see the user.
    """
    if key is None:
        return own(ctx)
    if await ctx.load(by_ids, key) is None:
        raise NotFound(str(key), path=["user"])
    return key


async def folders_of(ctx: Context, user_id: int, use: SpecialUse) -> int | None:
    """Load the id of a user's mailbox with this special use; None if there is none."""
    asked = select(col(Mailbox.id)).where(
        col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == use
    )
    row = next(iter(await ctx.read(asked)), None)
    return None if row is None else int(row.id)


async def administered(ctx: Context, user_ids: list[int]) -> list[list[Picked]]:
    """Load the domains that these users administer, by name, as far as the viewer sees them."""
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
