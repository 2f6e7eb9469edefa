"""Load the identity providers of domains for their administrators."""

from sqlalchemy import select
from sqlmodel import col

from models.identity_providers import IdentityLink, IdentityProvider
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from resolvers.access import is_overseen_user
from resolvers.context import Context
from resolvers.domains.loaders import is_in_administered_domain

HAS_SECRET_COLUMN = "has_client_secret"  # noqa: S105 - a name
LINK_COLUMNS = (
    "id", "user_id", "issuer", "subject", "created_at", "last_sign_in_at", "access_ended_at",
)  # fmt: skip
READABLE_COLUMNS = frozenset(column.name for column in select_columns(IdentityProvider)) - {
    "client_secret"
}


async def load_visible_providers_by_domain_id(
    ctx: Context, domain_ids: list[int]
) -> list[ColumnRow | None]:
    """Load the identity provider of each domain, in the order of the IDs.

    None for a domain that has no provider, or that the viewer does not administer.
    """
    has_secret = col(IdentityProvider.client_secret).is_not(None).label(HAS_SECRET_COLUMN)
    statement = select(*select_columns(IdentityProvider, READABLE_COLUMNS), has_secret).where(
        col(IdentityProvider.domain_id).in_(domain_ids),
        is_in_administered_domain(ctx, col(IdentityProvider.domain_id)),
    )
    rows = {row.domain_id: row for row in await ctx.read(statement)}
    return [rows.get(domain_id) for domain_id in domain_ids]


async def load_visible_links_by_user_id(
    ctx: Context, user_ids: list[int]
) -> list[ColumnRow | None]:
    """Load the links of users that the viewer is or oversees, in this order; None without one."""
    columns = select_columns(IdentityLink, LINK_COLUMNS)
    visible_ids = select(col(User.id)).where(is_overseen_user(ctx))
    statement = select(*columns).where(
        col(IdentityLink.user_id).in_(user_ids), col(IdentityLink.user_id).in_(visible_ids)
    )
    rows = {row.user_id: row for row in await ctx.read(statement)}
    return [rows.get(user_id) for user_id in user_ids]
