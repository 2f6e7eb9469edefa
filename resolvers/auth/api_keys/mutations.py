"""Create, update and delete API keys."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import ApiKey
from models.errors import ErrorCollector, InvalidInput
from models.store.columns import ColumnRow
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import credential_makers, log_actors, security_log
from resolvers.auth.api_keys.loaders import load_calling_key_or_none, load_visible_api_keys_by_id
from resolvers.auth.api_keys.rights import (
    calling_key_exceeded_error,
    end_within_calling_key,
    limit_key_for_another_user,
    require_and_inherit_limits_of_calling_key,
    require_changeable_keys,
    require_given_end_within,
    require_given_networks_within,
    require_permitted_owner_id,
)
from resolvers.auth.api_keys.validation import (
    ApiKeyChange,
    NewApiKey,
    collect_name_networks_and_end_errors,
    collect_new_key_errors_and_require_role,
)
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.credential_makers import is_operator, platform_admin_key_id_or_none
from resolvers.auth.credential_status import API_KEY_PREFIX, generate_secret, secret_digest
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context

log = logging.getLogger(__name__)
LOGGED_COLUMNS = (
    "name", "role", "scopes", "read_only", "active", "user_id", "domains", "operations",
    "allowed_ips", "expires_at", "maker",
)  # fmt: skip


class CreatedApiKey(NamedTuple):
    """A new API key with its secret, which is not stored."""

    row: ApiKey
    secret: str


async def create_api_key(
    ctx: Context, new_key: NewApiKey, problems: ErrorCollector | None = None
) -> CreatedApiKey:
    """Create an API key. Returns it with its secret, which is not stored.

    Raises all errors of its fields together with the `problems` found before. Role, scopes and
    domains can't exceed those of the caller or of the owner. If a key creates it, its operations,
    networks and end can't exceed those of that key. A DOMAIN_ADMIN needs IMPERSONATE to create a
    key for another user. Such a key has at most the scopes and the lifetime of a token of
    userImpersonate, names
    its maker, and ends when the maker loses the role or the permission.
    """
    environment, problems = ctx.environment, problems or ErrorCollector()
    calling_key = await load_calling_key_or_none(ctx)
    new_key = require_and_inherit_limits_of_calling_key(calling_key, new_key)
    collect_new_key_errors_and_require_role(ctx, new_key, problems)
    problems.raise_collected()
    owner_id = await require_permitted_owner_id(ctx, new_key)
    if (
        is_for_another_user := bool(owner_id)
        and owner_id != ctx.viewer.user_id
        and not is_operator(ctx.viewer)
    ):
        new_key = limit_key_for_another_user(ctx, new_key)
    secret = generate_secret(environment, API_KEY_PREFIX)
    row = ApiKey(
        id=environment.new_id(),
        name=new_key.name.strip(),
        digest=secret_digest(secret),
        role=new_key.role,
        scopes=sorted(new_key.scopes),
        read_only=new_key.read_only,
        user_id=owner_id,
        domains=sorted(set(new_key.domains)),
        operations=sorted(set(new_key.operations)),
        allowed_ips=sorted(set(new_key.allowed_ips)),
        created_at=environment.now(),
        expires_at=end_within_calling_key(calling_key, new_key.expires_at),
        creator_id=None if owner_id else ctx.viewer.user_id or None,
    )
    async with ctx.write_session(*([owner_id] if owner_id else [])) as session:
        if is_for_another_user:
            row.made_by, row.made_by_key = (
                ctx.viewer.user_id or None,
                platform_admin_key_id_or_none(ctx.viewer),
            )
            row.maker = (await log_actors.load_log_actor(session, ctx.viewer)).name
        session.add(row)
        await session.flush()
        await _write_security_log_and_audit_if_of_others(ctx, session, "apiKeyCreate", [row])
    log.info("API key created", extra={"key": row.id, "role": row.role, "by": ctx.viewer.principal})
    return CreatedApiKey(row, secret)


async def _write_security_log_and_audit_if_of_others(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    keys: Sequence[ApiKey | ColumnRow],
    changed_values: Mapping[str, Any] | None = None,
) -> None:
    """Write a mutation to the owners' security logs, and to the audit log if the viewer is another.

    `changed_values` are the changed columns.
    """
    viewer, action = ctx.viewer, security_log.ACTION_BY_MUTATION[mutation]
    for key in keys:
        if key.user_id:
            detail = {"key": str(key.id), "name": key.name}
            event = NewSecurityEvent(action, key.user_id, target=str(key.id), detail=detail)
            await security_log.log_event_and_queue_notice(ctx, session, event)
    keys_of_others = [
        key for key in keys if viewer.is_acting or not key.user_id or key.user_id != viewer.user_id
    ]
    owner_ids = {key.user_id for key in keys_of_others if key.user_id}
    statement = select(col(User.id), col(User.domain_id)).where(col(User.id).in_(owner_ids))
    users = (await (await session.connection()).execute(statement)).all() if owner_ids else []
    domain_ids = {row.id: row.domain_id for row in users}
    values_by_id = {
        key.id: {name: getattr(key, name) for name in changed_values or LOGGED_COLUMNS}
        for key in keys_of_others
    }
    after = {"apiKeyUpdate": changed_values}.get(mutation)
    is_create = mutation == "apiKeyCreate"
    await audit_log.insert_audit_log_entries(
        ctx,
        session,
        *(
            NewAuditLogEntry(
                mutation,
                "ApiKey",
                key.id,
                domain_ids.get(key.user_id or 0),
                before=None if is_create else values_by_id[key.id],
                after=values_by_id[key.id] if is_create else after,
            )
            for key in keys_of_others
        ),
    )


async def update_api_keys(ctx: Context, ids: list[int], change: ApiKeyChange) -> list[ColumnRow]:
    """Change these keys, all or none; return them.

    Raises Forbidden for a key with a higher role than the viewer's, and if a key would exceed the
    limits of the calling key. Raises NotFound for a key that the viewer does not see.
    """
    problems = ErrorCollector()
    collect_name_networks_and_end_errors(ctx, change, problems)
    problems.raise_collected()
    changed_values = change.column_values
    if not changed_values:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    if calling_key := await load_calling_key_or_none(ctx):
        if change.allowed_ips is not None:
            require_given_networks_within(calling_key, change.allowed_ips or ["0.0.0.0/0"])
        if change.removes_expiry and calling_key.expires_at:
            raise calling_key_exceeded_error("end", "expiresAt")
        require_given_end_within(calling_key, change.expires_at)
    rows = await require_changeable_keys(ctx, ids)
    for row in rows:
        max_expires_at = row.created_at + credential_makers.MAX_LIFETIME
        if row.maker and (
            change.removes_expiry or (change.expires_at and change.expires_at > max_expires_at)
        ):
            text = "An API key for another user expires at most PT4H after its creation."
            raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["expiresAt"])
    owner_ids = {row.user_id or 0 for row in rows}
    async with ctx.write_session(*(owner for owner in owner_ids if owner)) as session:
        connection = await session.connection()
        statement = update(ApiKey).where(col(ApiKey.id).in_(ids)).values(**changed_values)
        await connection.execute(statement)
        await _write_security_log_and_audit_if_of_others(
            ctx, session, "apiKeyUpdate", rows, changed_values
        )
    drop_cached_credentials(ctx.environment, *owner_ids)
    return [row for row in await load_visible_api_keys_by_id(ctx, ids) if row]


async def delete_api_keys(ctx: Context, ids: list[int]) -> None:
    """Delete these keys, all or none.

    Raises NotFound for a key that the viewer does not see, Forbidden for one with a higher role.
    """
    rows = await require_changeable_keys(ctx, ids)
    owner_ids = {row.user_id or 0 for row in rows}
    async with ctx.write_session(*(owner for owner in owner_ids if owner)) as session:
        await session.exec(delete(ApiKey).where(col(ApiKey.id).in_(ids)))
        await _write_security_log_and_audit_if_of_others(ctx, session, "apiKeyDelete", rows)
    drop_cached_credentials(ctx.environment, *owner_ids)
