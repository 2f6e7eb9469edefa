"""Create, update and delete OAuth clients, and replace their secrets. For an ADMIN."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import AccessToken
from models.base64url import encode_base64url
from models.errors import ErrorCollector, InvalidInput, LimitReached
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.oauth.tables import (
    DYNAMIC_REGISTRATION,
    OauthClient,
    OauthGrant,
    OauthGrantType,
    OauthScope,
)
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import log_actors
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.credential_status import generate_secret, secret_digest
from resolvers.context import Context
from resolvers.oauth import redirect_uris
from resolvers.oauth.client_loaders import HAS_SECRET_COLUMN, require_visible_clients
from resolvers.oauth.token_rows import CLIENT_SECRET_PREFIX

MAX_CLIENTS = 1000  # of the platform, besides those that have registered themselves
MAX_NAME_LENGTH = 100  # characters
CLIENT_ID_BYTES = 16
LOGGED_COLUMNS = {
    "name": "name",
    "redirect_uris": "redirectUris",
    "grant_types": "grantTypes",
    "scopes": "scopes",
}  # names in the audit log by column


@dataclass(frozen=True, slots=True)
class NewOauthClient:
    """A client to create."""

    name: str
    redirect_uris: Sequence[str]
    grant_types: Collection[OauthGrantType]
    scopes: Collection[OauthScope]
    is_public: bool = False


@dataclass(frozen=True, slots=True)
class OauthClientChanges:
    """Changes to clients; None leaves a value unchanged."""

    name: str | None = None
    redirect_uris: Sequence[str] | None = None
    grant_types: Collection[OauthGrantType] | None = None
    scopes: Collection[OauthScope] | None = None


@dataclass(frozen=True, slots=True)
class CreatedOauthClient:
    """The row id of a client, and its secret, which is not stored; None: a public client."""

    row_id: int
    secret: str | None


def new_client_id(environment: Environment) -> str:
    """Return a new public identifier."""
    return encode_base64url(environment.random_bytes(CLIENT_ID_BYTES))


def validated_client_columns(changes: OauthClientChanges) -> dict[str, Any]:
    """Return the valid columns of the given values.

    Raises InvalidInput, or MultipleErrors.
    """
    problems, values = ErrorCollector(), dict[str, Any]()
    if changes.name is not None:
        with problems.collecting():
            values["name"] = _validated_name(changes.name)
    if changes.redirect_uris is not None:
        with problems.collecting():
            values["redirect_uris"] = redirect_uris.validate_redirect_uris(
                changes.redirect_uris, ["redirectUris"]
            )
    if changes.grant_types is not None:
        with problems.collecting():
            values["grant_types"] = _validated_grant_types(changes.grant_types)
    if changes.scopes is not None:
        with problems.collecting():
            values["scopes"] = _validated_scopes(changes.scopes)
    problems.raise_collected()
    return values


def _validated_name(name: str) -> str:
    """Return the name. Raises InvalidInput: users read it on the consent page."""
    stripped = name.strip()
    if not stripped or len(stripped) > MAX_NAME_LENGTH or not stripped.isprintable():
        text = f"The name has 1 to {MAX_NAME_LENGTH} printable characters."
        raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=["name"])
    return stripped


def _validated_grant_types(grant_types: Collection[OauthGrantType]) -> list[OauthGrantType]:
    if OauthGrantType.AUTHORIZATION_CODE not in grant_types:
        text = "AUTHORIZATION_CODE is required."
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=["grantTypes"])
    return [grant_type for grant_type in OauthGrantType if grant_type in grant_types]


def _validated_scopes(scopes: Collection[OauthScope]) -> list[OauthScope]:
    if not scopes:
        text = "At least one scope is required."
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=["scopes"])
    return [scope for scope in OauthScope if scope in scopes]


async def create_client(ctx: Context, new_client: NewOauthClient) -> CreatedOauthClient:
    """Create a client. Raises InvalidInput, or LimitReached if there are too many."""
    environment = ctx.environment
    values = validated_client_columns(
        OauthClientChanges(
            new_client.name, new_client.redirect_uris, new_client.grant_types, new_client.scopes
        )
    )
    secret = None if new_client.is_public else generate_secret(environment, CLIENT_SECRET_PREFIX)
    row_id = environment.new_id()
    values |= {
        "id": row_id,
        "client_id": new_client_id(environment),
        "secret_digest": secret and secret_digest(secret),
        "created_at": environment.now(),
    }
    async with ctx.write_session(PLATFORM) as session:
        is_created = col(OauthClient.created_by).is_distinct_from(DYNAMIC_REGISTRATION)
        await require_client_count_below_limit(ctx, is_created, MAX_CLIENTS)
        values["created_by"] = (await log_actors.load_log_actor(session, ctx.viewer)).name
        await insert_client_with_journal_and_audit_log(ctx, session, values)
    return CreatedOauthClient(row_id, secret)


async def require_client_count_below_limit(
    ctx: Context, condition: ColumnElement[bool], limit: int
) -> None:
    """Raise LimitReached unless fewer clients than the limit meet the condition."""
    statement = select(func.count().label("many")).select_from(OauthClient).where(condition)
    (row,) = await ctx.read(statement)
    if row.many >= limit:
        text = f"At most {limit} OAuth clients are allowed."
        raise LimitReached(text, limit=limit, used=row.many)


async def insert_client_with_journal_and_audit_log(
    ctx: Context, session: AsyncSession, values: Mapping[str, Any], actor_name: str | None = None
) -> None:
    """Insert the row of a client, its journal entry, and its entry in the audit log.

    `actor_name` is as in NewAuditLogEntry.
    """
    row_id = values["id"]
    await (await session.connection()).execute(insert(OauthClient).values(values))
    await ctx.record_change(session, PLATFORM, EventType.OAUTH_CLIENT_CREATED, [row_id])
    after = {name: values[column] for column, name in LOGGED_COLUMNS.items()}
    entry = NewAuditLogEntry(
        "oauthClientCreate", "OauthClient", row_id, after=after, actor_name=actor_name
    )
    await audit_log.insert_audit_log_entries(ctx, session, entry)


async def update_clients(ctx: Context, ids: Sequence[int], changes: OauthClientChanges) -> None:
    """Update clients, all or none. Raises InvalidInput and NotFound.

    A scope or grant type that is removed ends with the present access tokens.
    """
    values = validated_client_columns(changes)
    if not values:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    async with ctx.write_session(PLATFORM) as session:
        before = await require_visible_clients(ctx, ids)
        row_ids = [row.id for row in before]
        update_rows = update(OauthClient).where(col(OauthClient.id).in_(row_ids))
        new_values = {**values, "updated_at": ctx.environment.now()}
        await (await session.connection()).execute(update_rows.values(new_values))
        await ctx.record_change(session, PLATFORM, EventType.OAUTH_CLIENT_UPDATED, row_ids)
        entries = [_update_log_entry(row, values) for row in before]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)


def _update_log_entry(row: ColumnRow, values: dict[str, Any]) -> NewAuditLogEntry:
    changed = [name for name in values if getattr(row, name) != values[name]]
    before = {LOGGED_COLUMNS[name]: getattr(row, name) for name in changed}
    after = {LOGGED_COLUMNS[name]: values[name] for name in changed}
    return NewAuditLogEntry("oauthClientUpdate", "OauthClient", row.id, None, before, after)


async def rotate_client_secret(ctx: Context, client_row_id: int) -> str:
    """Give a client a new secret, and return it. The old one ends at once; tokens remain.

    Raises NotFound, and InvalidInput for a public client.
    """
    environment = ctx.environment
    secret = generate_secret(environment, CLIENT_SECRET_PREFIX)
    async with ctx.write_session(PLATFORM) as session:
        (row,) = await require_visible_clients(ctx, [client_row_id])
        if not getattr(row, HAS_SECRET_COLUMN):
            raise InvalidInput(
                "A public client has no secret.",
                constraint=ValidationConstraint.EXCLUSIVE,
                path=["oauthClient"],
            )
        update_row = update(OauthClient).where(col(OauthClient.id) == client_row_id)
        await (await session.connection()).execute(
            update_row.values(
                secret_digest=secret_digest(secret), secret_rotated_at=environment.now()
            )
        )
        await ctx.record_change(session, PLATFORM, EventType.OAUTH_CLIENT_UPDATED, [client_row_id])
        entry = NewAuditLogEntry(
            "oauthClientSecretRotate", "OauthClient", client_row_id, after={"secret": secret}
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
    return secret


async def delete_clients(ctx: Context, ids: Sequence[int]) -> None:
    """Delete clients with their grants and tokens, all or none. Raises NotFound."""
    async with ctx.write_session(PLATFORM) as session:
        rows = await require_visible_clients(ctx, ids)
        row_ids, connection = [row.id for row in rows], await session.connection()
        owners: Select[*tuple[Any, ...]] = (
            select(col(AccessToken.user_id).label("user_id"))
            .join(OauthGrant, col(OauthGrant.id) == col(AccessToken.oauth_grant_id))
            .where(col(OauthGrant.client_id).in_(row_ids))
            .distinct()
        )
        owner_ids = list((await connection.execute(owners)).scalars())
        await connection.execute(delete(OauthClient).where(col(OauthClient.id).in_(row_ids)))
        await ctx.record_change(session, PLATFORM, EventType.OAUTH_CLIENT_DELETED, row_ids)
        entries = [
            NewAuditLogEntry(
                "oauthClientDelete", "OauthClient", row.id, before=audit_log_values(row)
            )
            for row in rows
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    if owner_ids:
        drop_cached_credentials(ctx.environment, *owner_ids)


def audit_log_values(row: ColumnRow) -> dict[str, Any]:
    """Return the values of a client for the audit log."""
    return {name: getattr(row, column) for column, name in LOGGED_COLUMNS.items()}
