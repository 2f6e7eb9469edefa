"""Set and delete the identity provider of a domain. For an ADMIN.

An administrator of a domain can't set it: who controls the provider can sign in as every user.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.outbound_http import parse_http_target
from models.errors import ErrorCollector, InvalidInput, NotFound
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.identity_providers import (
    DEFAULT_GROUPS_CLAIM,
    DEFAULT_SCOPES,
    DEFAULT_USERNAME_CLAIM,
    IdentityLink,
    IdentityProvider,
)
from models.store.columns import ColumnRow, select_columns
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.credential_status import secret_digest
from resolvers.context import Context
from resolvers.domains.loaders import (
    DomainIdOrName,
    reference_text,
    require_administered_domain_by_ref,
    require_administered_domains_by_ref,
)
from resolvers.identity_providers.accounts import admins_by_group_sql, withdraw_group_role
from resolvers.identity_providers.provider_metadata import cache_of_database
from resolvers.identity_providers.provider_records import secret_purpose

MAX_CLIENT_TEXT_LENGTH = 512  # characters of client ID and secret
MAX_CLAIM_LENGTH = 128  # characters of the name of a claim
MAX_GROUP_LENGTH = 256
MAX_ADMIN_GROUPS = 100
MAX_SCOPES = 20
MAX_SCOPE_LENGTH = 64
OPENID = "openid"
LOGGED_COLUMNS = {  # names in the audit log by column
    "issuer": "issuer",
    "client_id": "clientId",
    "scopes": "scopes",
    "username_claim": "usernameClaim",
    "groups_claim": "groupsClaim",
    "admin_groups": "adminGroups",
    "active_claim": "activeClaim",
    "user_creation_allowed": "userCreationAllowed",
    "password_sign_in_allowed": "passwordSignInAllowed",
}


@dataclass(frozen=True, slots=True)
class GivenSecret:
    """A client secret that an input gives; None: the client has no secret."""

    text: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProviderValues:
    """The values of a provider to set."""

    issuer: str
    client_id: str
    secret: GivenSecret | None = None  # None: the stored secret stays
    scopes: Sequence[str] = DEFAULT_SCOPES
    username_claim: str = DEFAULT_USERNAME_CLAIM
    groups_claim: str = DEFAULT_GROUPS_CLAIM
    admin_groups: Sequence[str] = ()
    active_claim: str | None = None
    user_creation_allowed: bool = False
    password_sign_in_allowed: bool = True


async def set_provider_and_return_domain_id(
    ctx: Context, domain: DomainIdOrName, values: ProviderValues
) -> int:
    """Create or replace the provider of a domain, and return the id of the domain.

    Raises InvalidInput for wrong values, also if the issuer or client changes and no secret is
    given: a stored secret is never sent to another server. Raises NotFound.
    """
    columns = validated_columns(ctx, values)
    domain_row = await require_administered_domain_by_ref(ctx, domain)
    async with ctx.write_session(PLATFORM, domain_row.id) as session:
        before = await _load_row(ctx, domain_row.id)
        row_id = before.id if before else ctx.environment.new_id()
        columns["client_secret"] = _encrypted_secret_to_store(
            ctx, before, columns, values.secret, row_id
        )
        columns |= {"id": row_id, "domain_id": domain_row.id}
        await _upsert_provider_and_journal_change(ctx, session, before, columns)
        logged_before = audit_log_values(before) if before else None
        logged_after = {name: columns[column] for column, name in LOGGED_COLUMNS.items()}
        if values.secret is not None and values.secret.text:
            logged_after["clientSecret"] = secret_digest(values.secret.text)[:8]
        entry = NewAuditLogEntry(
            "identityProviderSet",
            "Domain",
            domain_row.id,
            domain_row.id,
            logged_before,
            logged_after,
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
    _apply_in_all_processes(ctx, columns["issuer"])
    return int(domain_row.id)


async def delete_providers(ctx: Context, domains: Sequence[DomainIdOrName]) -> list[int]:
    """Delete the providers of domains with their links, all or none; return the domain ids.

    The users keep their tokens, but lose the role DOMAIN_ADMIN that their groups gave. Raises
    NotFound if a domain has none.
    """
    rows = await require_administered_domains_by_ref(ctx, domains)
    domain_ids = [row.id for row in rows]
    admins_sql = admins_by_group_sql(col(IdentityProvider.domain_id).in_(domain_ids))
    admins = await ctx.read(admins_sql)
    admin_ids = {row.user_id for row in admins}
    async with (
        ctx.combined_transaction(),
        ctx.write_session(PLATFORM, *domain_ids, *admin_ids) as session,
    ):
        entries, issuers = [], set[str]()
        for index, domain_id in enumerate(domain_ids):
            before = await _load_row(ctx, domain_id)
            if before is None:
                raise NotFound(reference_text(domains[index]), path=["domains"], index=index)
            issuers.add(before.issuer)
            entries.append(
                NewAuditLogEntry(
                    "identityProviderDelete",
                    "Domain",
                    domain_id,
                    domain_id,
                    audit_log_values(before),
                )
            )
        for row in await ctx.read(admins_sql):
            if row.user_id in admin_ids:  # the others became administrators just now
                await withdraw_group_role(ctx, row.user_id, row.domain_id, path="domains")
        statement = delete(IdentityProvider).where(col(IdentityProvider.domain_id).in_(domain_ids))
        await (await session.connection()).execute(statement)
        await _record_change(ctx, session, domain_ids)
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    _apply_in_all_processes(ctx, *issuers)
    return domain_ids


async def _load_row(ctx: Context, domain_id: int) -> ColumnRow | None:
    statement = select(*select_columns(IdentityProvider))
    rows = await ctx.read(statement.where(col(IdentityProvider.domain_id) == domain_id))
    return next(iter(rows), None)


async def _upsert_provider_and_journal_change(
    ctx: Context,
    session: AsyncSession,
    before: ColumnRow | None,
    columns: dict[str, Any],
) -> None:
    """Insert or update the row of a provider, and record the change of its domain."""
    connection, now = await session.connection(), ctx.environment.now()
    if before is None:
        new_row = {"created_at": now, **columns}
        await connection.execute(insert(IdentityProvider).values(new_row))
    else:
        statement = update(IdentityProvider).where(col(IdentityProvider.id) == columns["id"])
        await connection.execute(statement.values({**columns, "updated_at": now}))
        if (before.issuer, before.client_id) != (columns["issuer"], columns["client_id"]):
            # the refresh tokens belong to the former client
            links = update(IdentityLink).where(col(IdentityLink.provider_id) == columns["id"])
            await connection.execute(links.values(refresh_token=None, check_due_at=None))
    await _record_change(ctx, session, [columns["domain_id"]])


async def _record_change(ctx: Context, session: AsyncSession, domain_ids: Sequence[int]) -> None:
    changes_by_stream = {key: [(EventType.DOMAIN_UPDATED, [key])] for key in domain_ids}
    await ctx.record_changes(
        session, {**changes_by_stream, PLATFORM: [(EventType.DOMAIN_UPDATED, list(domain_ids))]}
    )


def _apply_in_all_processes(ctx: Context, *issuers: str) -> None:
    """Drop what was cached about the provider, and whether passwords are allowed."""
    for issuer in issuers:
        cache_of_database(ctx.environment.database).drop(issuer)
    drop_cached_credentials(ctx.environment)
    ctx.environment.wakeups.announce_credentials_changed([None])


def _encrypted_secret_to_store(
    ctx: Context,
    before: ColumnRow | None,
    columns: Mapping[str, Any],
    secret: GivenSecret | None,
    row_id: int,
) -> str | None:
    """Return the encrypted secret to store.

    Raises InvalidInput if none is given and the stored one is for another issuer or client.
    """
    if secret is not None:
        if secret.text is None:
            return None
        return ctx.environment.secret_box.encrypt(secret.text, secret_purpose(row_id))
    is_same_client = before is not None and (before.issuer, before.client_id) == (
        columns["issuer"],
        columns["client_id"],
    )
    if before is None or not is_same_client:
        raise InvalidInput(
            "The secret is required for a new issuer or client. Write null for a public client.",
            constraint=ValidationConstraint.REQUIRED,
            path=["clientSecret"],
        )
    stored: str | None = before.client_secret
    return stored


def audit_log_values(row: ColumnRow) -> dict[str, Any]:
    """Return the values of a provider for the audit log, without the secret."""
    return {name: getattr(row, column) for column, name in LOGGED_COLUMNS.items()}


def validated_columns(ctx: Context, values: ProviderValues) -> dict[str, Any]:
    """Return the columns of valid values, without the secret. Raises InvalidInput."""
    problems, columns = ErrorCollector(), dict[str, Any]()
    with problems.collecting():
        columns["issuer"] = _validated_issuer(ctx, values.issuer)
    with problems.collecting():
        columns["client_id"] = _validated_text(
            values.client_id, MAX_CLIENT_TEXT_LENGTH, ["clientId"]
        )
    with problems.collecting():
        if values.secret is not None and values.secret.text is not None:
            _validated_text(values.secret.text, MAX_CLIENT_TEXT_LENGTH, ["clientSecret"])
    with problems.collecting():
        columns["scopes"] = _validated_scopes(values.scopes)
    for column, path in (("username_claim", "usernameClaim"), ("groups_claim", "groupsClaim")):
        with problems.collecting():
            columns[column] = _validated_text(getattr(values, column), MAX_CLAIM_LENGTH, [path])
    with problems.collecting():
        columns["active_claim"] = values.active_claim and _validated_text(
            values.active_claim, MAX_CLAIM_LENGTH, ["activeClaim"]
        )
    with problems.collecting():
        columns["admin_groups"] = _validated_groups(values.admin_groups)
    problems.raise_collected()
    columns["user_creation_allowed"] = values.user_creation_allowed
    columns["password_sign_in_allowed"] = values.password_sign_in_allowed
    return columns


def _validated_issuer(ctx: Context, issuer: str) -> str:
    """Return an issuer. Raises InvalidInput if it is no URL that the server may request."""
    allows_private = ctx.environment.options.identity_providers_allow_private_networks
    parse_http_target(issuer, allow_private=allows_private, error_path=["issuer"])
    if not issuer.isascii() or "?" in issuer:
        text = "The issuer is an ASCII URL without a query."
        raise InvalidInput(text, constraint=ValidationConstraint.URL, path=["issuer"])
    if not issuer.startswith("https://") and not allows_private:
        text = "The issuer begins with https://."
        raise InvalidInput(text, constraint=ValidationConstraint.URL, path=["issuer"])
    return issuer


def _validated_text(text: str, max_length: int, path: Sequence[str]) -> str:
    if not 0 < len(text) <= max_length or not text.isprintable() or text != text.strip():
        message = f"The text has 1 to {max_length} printable characters, without spaces around it."
        raise InvalidInput(message, constraint=ValidationConstraint.LENGTH, path=path)
    return text


def _validated_scopes(scopes: Sequence[str]) -> list[str]:
    """Return the scopes, each once. Raises InvalidInput without `openid`."""
    path = ["scopes"]
    if len(scopes) > MAX_SCOPES:
        text = f"At most {MAX_SCOPES} scopes are allowed."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=path)
    for index, scope in enumerate(scopes):
        is_token = scope.isascii() and scope.isprintable() and not set(scope) & {" ", '"', "\\"}
        if not 0 < len(scope) <= MAX_SCOPE_LENGTH or not is_token:
            text = "The scope has a character that RFC 6749, section 3.3, does not allow."
            raise InvalidInput(text, constraint=ValidationConstraint.SYNTAX, path=path, index=index)
    if OPENID not in scopes:
        text = "The scope openid is required."
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=path)
    return list(dict.fromkeys(scopes))


def _validated_groups(groups: Sequence[str]) -> list[str]:
    path = ["adminGroups"]
    if len(groups) > MAX_ADMIN_GROUPS:
        text = f"At most {MAX_ADMIN_GROUPS} groups are allowed."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=path)
    for index, group in enumerate(groups):
        if not 0 < len(group) <= MAX_GROUP_LENGTH or not group.isprintable():
            text = f"The name of a group has 1 to {MAX_GROUP_LENGTH} printable characters."
            raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=path, index=index)
    return list(dict.fromkeys(groups))
