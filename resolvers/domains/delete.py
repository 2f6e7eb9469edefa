"""Delete the rows of domains and of what belongs to them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, String, cast, delete, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.addresses.rewrites import RecipientRewrite
from models.addresses.tables import Address
from models.auth.credentials import ApiKey
from models.domains.dkim_keys import DkimKey
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict
from models.events.event_types import EventType
from models.events.journal import PLATFORM, Stream
from models.resources.tables import Resource
from models.store.columns import ColumnRow, select_columns
from models.users.tables import DomainAdmin, User
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth.authentication import drop_cached_credentials
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.streams import address_changes_by_stream, lock_platform_domains_and_users


async def delete_domains_and_dependents(
    ctx: Context, domain_ids: list[int], *, cascade: bool
) -> list[int]:
    """Delete domains with their addresses, aliases and rules in one transaction.

    Returns the ids. Raises NotFound, and Conflict if a domain has users, or without `cascade`
    addresses or aliases.
    """
    async with ctx.write_session() as session:
        await lock_platform_domains_and_users(session, domain_ids)
        rows = await domain_loaders.reload_locked_domains_or_raise(ctx, domain_ids)
        await _require_deletable(ctx, rows, cascade=cascade)
        changes_by_stream = await address_changes_by_stream(
            ctx, domain_ids, EventType.ADDRESS_DELETED
        )
        changes_by_stream.setdefault(PLATFORM, []).append((EventType.DOMAIN_DELETED, domain_ids))
        key_statement = select(col(DkimKey.id)).where(col(DkimKey.domain_id).in_(domain_ids))
        if key_ids := [row.id for row in await ctx.read(key_statement.order_by(col(DkimKey.id)))]:
            changes_by_stream[PLATFORM].append((EventType.DKIM_KEY_DELETED, key_ids))
        resource_statement = select(col(Resource.id)).where(col(Resource.domain_id).in_(domain_ids))
        if resource_ids := [row.id for row in await ctx.read(resource_statement)]:
            changes_by_stream[PLATFORM].append((EventType.RESOURCE_DELETED, resource_ids))
        admin_statement = select(col(DomainAdmin.user_id)).where(
            col(DomainAdmin.domain_id).in_(domain_ids)
        )
        admins = {row.user_id for row in await ctx.read(admin_statement)}
        connection = await session.connection()
        admins |= await _delete_rewrites_and_limit_api_keys(ctx, session, rows)
        for table, column in (
            (Address, col(Address.domain_id)),
            (DomainAlias, col(DomainAlias.domain_id)),
            (Domain, col(Domain.id)),
            (Stream, col(Stream.id)),
        ):
            await connection.execute(delete(table).where(column.in_(domain_ids)))
        await ctx.record_changes(session, changes_by_stream)
        entries = (
            NewAuditLogEntry("domainDelete", "Domain", row.id, before={"name": row.name})
            for row in rows
        )
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    drop_cached_credentials(ctx.environment, *admins)
    return domain_ids


async def _delete_rewrites_and_limit_api_keys(
    ctx: Context, session: AsyncSession, domains: Sequence[ColumnRow]
) -> set[int]:
    """Delete the recipient rewrites and API keys of deleted domains.

    They have no foreign key. An API key for several domains keeps the others; one without
    remaining domains is deleted, since it would be valid for all domains. Returns the owners of
    the keys, 0 for none.
    """
    connection, domain_ids = await session.connection(), {row.id for row in domains}
    alias_names = select(col(DomainAlias.alias)).where(col(DomainAlias.domain_id).in_(domain_ids))
    matches_name = col(RecipientRewrite.domain).in_([row.name for row in domains])
    matches_domain = matches_name | col(RecipientRewrite.domain).in_(alias_names)
    keys = select(*select_columns(ApiKey, {"id", "user_id", "domains"})).where(
        cast(col(ApiKey.domains), String) != "[]"
    )
    limited_keys = [key for key in await ctx.read(keys) if domain_ids & {*key.domains}]
    deleted_key_ids = [key.id for key in limited_keys if domain_ids >= {*key.domains}]
    deleted_rewrites = await connection.execute(
        delete(RecipientRewrite).where(matches_domain).returning(col(RecipientRewrite.id))
    )
    entries = [
        NewAuditLogEntry("domainDelete", "RecipientRewrite", key)
        for key in deleted_rewrites.scalars()
    ]
    for key in limited_keys:
        remaining_domains = [domain_id for domain_id in key.domains if domain_id not in domain_ids]
        statement = update(ApiKey).where(col(ApiKey.id) == key.id).values(domains=remaining_domains)
        if remaining_domains:
            await connection.execute(statement)
    await connection.execute(delete(ApiKey).where(col(ApiKey.id).in_(deleted_key_ids)))
    entries += [NewAuditLogEntry("domainDelete", "ApiKey", key) for key in deleted_key_ids]
    await audit_log.insert_audit_log_entries(ctx, session, *entries)
    return {key.user_id or 0 for key in limited_keys}


async def _require_deletable(ctx: Context, domains: Sequence[ColumnRow], *, cascade: bool) -> None:
    """Raise Conflict with the index of the first domain that has users, addresses or aliases.

    With `cascade` only users count.
    """
    domain_ids = [row.id for row in domains]
    columns_by_reason = {
        "The domain has users.": col(User.domain_id),
        "The domain has addresses.": col(Address.domain_id),
        "The domain has aliases.": col(DomainAlias.domain_id),
    }
    for reason, column in list(columns_by_reason.items())[: 1 if cascade else None]:
        statement: Select[*tuple[Any, ...]] = (
            select(column.label("key")).where(column.in_(domain_ids)).distinct()
        )
        used_ids = {row.key for row in await ctx.read(statement)}
        for index, row in enumerate(domains):
            if row.id in used_ids:
                raise Conflict(f"{row.name}: {reason}", path=["domains"], index=index)
