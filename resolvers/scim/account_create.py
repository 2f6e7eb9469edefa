"""Create a SCIM account, by the operation of userCreate."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import col

from models.domains.tables import Domain
from models.scim import (
    MAX_EXTERNAL_ID_LENGTH,
    MAX_NAME_PART_LENGTH,
    SCIM_NAME_COLUMNS,
    ScimUser,
)
from resolvers.context import Context
from resolvers.scim.account_emails import sync_addresses_with_wanted_emails, validated_wanted_emails
from resolvers.scim.resources import (
    AccountEmailAttribute,
    AccountNameAttribute,
    AccountResource,
)
from resolvers.sql_text import validated_trimmed_text
from resolvers.users.creation.create import NewUser, create_user


async def create_account(ctx: Context, resource: AccountResource) -> int:
    """Create a user with the attributes of a SCIM resource and return its id.

    Everything happens in one transaction. Without a password the user can't sign in by password.
    Raises the errors of userCreate.
    """
    scim_values = validated_scim_columns(resource)
    emails = await validated_wanted_emails(ctx, await _emails_or_default(ctx, resource))
    is_suspended = resource.active is False
    new_user = NewUser(
        username=resource.user_name,
        address=emails.main.address,
        name=resource.display_name or full_name(resource.name),
        language=resource.preferred_language,
        suspended=is_suspended,
        password=resource.password,
        password_disabled=not resource.password,
    )
    async with ctx.combined_transaction():
        user = await create_user(ctx, new_user)
        async with ctx.write_session(user.id, user.domain_id or 0) as session:
            if not emails.is_plain_main_address:
                await sync_addresses_with_wanted_emails(ctx, session, user.id, None, emails)
            connection = await session.connection()
            await connection.execute(
                insert(ScimUser).values(
                    user_id=user.id, suspended_by_scim=is_suspended, **scim_values
                )
            )
    return user.id


async def _emails_or_default(
    ctx: Context, resource: AccountResource
) -> Sequence[AccountEmailAttribute] | None:
    """Return the emails of a new account, or else the username as an address.

    A username without "@" gets the domain of the API key, if the key has one domain.
    """
    username = resource.user_name or ""
    if resource.emails or not username:
        return resource.emails
    if "@" not in username:
        domain_ids = sorted(ctx.viewer.administered_domains)
        names = await ctx.read(select(col(Domain.name)).where(col(Domain.id).in_(domain_ids)))
        if len(names) != 1:
            return None
        username = f"{username}@{names[0].name}"
    return [AccountEmailAttribute(value=username)]


def full_name(name: AccountNameAttribute | None) -> str | None:
    """Return the name for people: the formatted one, or else given name and family name."""
    if name is None:
        return None
    return name.formatted or " ".join(filter(None, (name.given_name, name.family_name))) or None


def validated_scim_columns(resource: AccountResource) -> Mapping[str, Any]:
    """Return the columns of `ScimUser` of a resource. Raises InvalidInput for a long text."""
    name = resource.name or AccountNameAttribute()
    columns: dict[str, Any] = {
        "external_id": validated_trimmed_text(
            resource.external_id, max_length=MAX_EXTERNAL_ID_LENGTH, path=["externalId"]
        )
    }
    for column in SCIM_NAME_COLUMNS:
        attribute = "formatted" if column == "formatted_name" else column
        columns[column] = validated_trimmed_text(
            getattr(name, attribute), max_length=MAX_NAME_PART_LENGTH, path=["name", attribute]
        )
    return columns
