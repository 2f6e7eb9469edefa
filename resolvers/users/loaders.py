"""Users: load by id or name."""

from collections import defaultdict
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col

from mail.recipients import address_resolution
from models.domains.tables import Domain
from models.errors import NotFound
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import integer_parameter, prepare_cached
from models.users.tables import DomainAdmin, User
from resolvers.access import is_visible_user, require_user_id
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.pagination import read_by_keys


async def load_visible_users_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load users by id, in this order; None for a user that the viewer does not see."""
    if ids == [ctx.viewer.user_id]:
        return [next(iter(await ctx.read_prepared(_select_viewer())), None)]
    statement = select(*select_columns(User)).where(is_visible_user(ctx))
    return await read_by_keys(ctx, statement, col(User.id), ids)


@prepare_cached
def _select_viewer() -> Select[*tuple[Any, ...]]:
    return select(*select_columns(User)).where(col(User.id) == integer_parameter("viewer"))


async def find_user_by_name(ctx: Context, name: str) -> ColumnRow | None:
    """Load the user of this username or address; None if the viewer does not see it."""
    user_id = await address_resolution.find_sign_in_user_id(ctx.environment, name)
    return await ctx.load(load_visible_users_by_id, user_id) if user_id else None


async def require_visible_user_id(ctx: Context, user_id: int | None) -> int:
    """Return the id of the user an operation is for: a visible one, or the viewer for None.

    Raises NotFound if the viewer does not see the user.
    """
    if user_id is None:
        return require_user_id(ctx)
    if await ctx.load(load_visible_users_by_id, user_id) is None:
        raise NotFound(str(user_id), path=["user"])
    return user_id


async def find_special_mailbox_id(
    ctx: Context, user_id: int, special_use: SpecialUse
) -> int | None:
    """Load the id of a user's mailbox with this special use; None if there is none."""
    statement = select(col(Mailbox.id)).where(
        col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == special_use
    )
    row = next(iter(await ctx.read(statement)), None)
    return None if row is None else int(row.id)


async def load_administered_domains(ctx: Context, user_ids: list[int]) -> list[list[ColumnRow]]:
    """Load the domains that these users administer, by name, as far as the viewer sees them."""
    statement = (
        select(*select_columns(Domain), col(DomainAdmin.user_id).label("admin"))
        .join(DomainAdmin, col(DomainAdmin.domain_id) == col(Domain.id))
        .where(col(DomainAdmin.user_id).in_(user_ids), domain_loaders.is_administered_domain(ctx))
        .order_by(col(Domain.name))
    )
    domains_by_user: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in await ctx.read(statement):
        domains_by_user[row.admin].append(row)
    return [domains_by_user[key] for key in user_ids]
