"""Status of access tokens, API keys and application passwords, with their role and scopes."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    Update,
    and_,
    bindparam,
    or_,
    select,
    update,
)
from sqlmodel import col

from models.auth.application_passwords import ApplicationPassword
from models.auth.credentials import SECOND_FACTOR_TIMEOUT, AccessToken, ApiKey
from models.base64url import encode_base64url
from models.mailboxes.shares import MailboxShare
from models.oauth.tables import OauthScope
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, UtcDateTime, core_table, select_columns
from models.store.prepared_statements import prepare_cached
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import User
from resolvers.auth import app_passwords, credential_makers
from resolvers.auth.credential_cache import CachedCredential, cache_of_database
from resolvers.auth.token_scopes import scopes_of_token
from resolvers.oauth.scopes import opens_http, product_scopes, scopes_for_role
from resolvers.viewer import ShareVisibility, Viewer

# prefixes of secrets: scanners of leaked text recognize them
TOKEN_PREFIX, API_KEY_PREFIX = "mgt_", "mgk_"
HTTP_SCOPES = frozenset({Scope.MAIL_READ, Scope.MAIL, Scope.SUBMIT})  # of application passwords
# A viewer who signed in with a temporary password can only set a new password.
NEW_PASSWORD_ONLY = {
    "allowed_operations": frozenset({"accessTokenRevoke", "userUpdate", "viewer"}),
    "new_password_only": True,
}


def secret_digest(secret: str) -> str:
    """Return the SHA-256 that is stored of a secret.

    It has 256 random bits, so no salt is needed.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def generate_secret(environment: Environment, prefix: str) -> str:
    """Return a new random secret of 256 bits in base64url, with this prefix."""
    return prefix + encode_base64url(environment.random_bytes(32))


def is_user_enabled_sql() -> ColumnElement[bool]:
    """The WHERE clause for users that can sign in: active, not suspended or deleted."""
    return and_(col(User.active), ~col(User.suspended), col(User.deleted_at).is_(None))


@prepare_cached
def token_lookup_sql(column: str) -> Select[*tuple[Any, ...]]:
    """SQL: the valid access token with the value of the parameter `of` in this column."""
    now = bindparam("now", type_=UtcDateTime)
    statement = (
        select(*select_columns(AccessToken), *_user_rights_columns())
        .join(User, col(User.id) == col(AccessToken.user_id))
        .where(
            core_table(AccessToken).c[column] == bindparam("of"),
            col(AccessToken.expires_at) > now,
            col(AccessToken.created_at) > bindparam("oldest", type_=UtcDateTime),
            col(AccessToken.auth_version) == col(User.auth_version),
            is_user_enabled_sql(),
            or_(
                ~col(AccessToken.pending),
                col(AccessToken.created_at) > bindparam("pending_since", type_=UtcDateTime),
            ),
        )
    )
    actor = col(AccessToken.actor_id), col(AccessToken.actor_key_id)
    return credential_makers.add_maker_columns(statement, *actor, now)


async def load_token_if_valid(
    environment: Environment, *, digest: str = "", id: int | None = None
) -> CachedCredential | None:
    """Load an access token with the rights of its user, by digest or id; None if it is not valid.

    A token that waits for a second factor has a viewer of the role PUBLIC.
    """
    now, max_life = environment.now(), environment.options.tokens_max_age
    statement, lookup_value = (
        (token_lookup_sql("digest"), digest) if id is None else (token_lookup_sql("id"), id)
    )
    parameters = {
        "of": lookup_value,
        "now": now,
        "oldest": now - max_life,
        "pending_since": now - SECOND_FACTOR_TIMEOUT,
    }
    for row in await environment.database.read_prepared(statement, parameters):
        last_used_at, user_id = row.last_used_at, row.user_id
        expires_at = min(row.expires_at, row.created_at + max_life)
        if credential_makers.has_maker(row):
            if not credential_makers.can_maker_act(row, row.owners, AdminPermission.IMPERSONATE):
                return None
            viewer = Viewer(
                user_id,
                Role.USER,
                scopes_of_token(row),
                **_role_rights(row, Role.USER),
                token_id=row.id,
                actor_id=row.actor_id or 0,
                actor_key_id=row.actor_key_id,
                expires_at=expires_at,
                auth_version=row.auth_version,
                share_visibility=_update_share_visibility(environment, user_id, row),
            )
            owners = user_id, row.actor_id or 0
            return CachedCredential(viewer, now, last_used_at, _earliest_end(row), owner_ids=owners)
        if row.pending:
            expires_at_pending = min(expires_at, row.created_at + SECOND_FACTOR_TIMEOUT)
            viewer = Viewer(token_id=row.id, pending_user_id=user_id, expires_at=expires_at_pending)
            return CachedCredential(viewer, now, now, expires_at_pending, owner_ids=(user_id,))
        if row.oauth_grant_id is not None:
            return _oauth_credential_if_http_scope_or_none(environment, row, now, expires_at)
        rights: dict[str, Any] = (
            dict(NEW_PASSWORD_ONLY) if row.temporary else _role_rights(row, row.owners)
        )
        viewer = Viewer(
            user_id,
            Role.USER if row.temporary else row.owners,
            scopes_of_token(row),
            **rights,
            token_id=row.id,
            expires_at=row.created_at + max_life,
            auth_version=row.auth_version,
            share_visibility=_update_share_visibility(environment, user_id, row),
        )
        idle_lifetime = row.expires_at - last_used_at
        return CachedCredential(
            viewer, now, last_used_at, expires_at, idle_lifetime=idle_lifetime, owner_ids=(user_id,)
        )
    return None


def _oauth_credential_if_http_scope_or_none(
    environment: Environment, row: ColumnRow, now: datetime, expires_at: datetime
) -> CachedCredential | None:
    """Return the credential of an OAuth client; None if it has no scope for HTTP.

    Its role is USER, as that of an application password. With the scope DOMAIN_ADMIN it has this
    role and all rights as long as its user has the role. A use does not extend it.
    """
    oauth_scopes = scopes_for_role(row.oauth_scopes, row.owners)
    if not opens_http(oauth_scopes):
        return None
    role, scopes = Role.USER, product_scopes(oauth_scopes)
    if OauthScope.DOMAIN_ADMIN in oauth_scopes:
        role, scopes = Role.DOMAIN_ADMIN, frozenset({Scope.FULL})
    viewer = Viewer(
        row.user_id,
        role,
        scopes,
        **_role_rights(row, role),
        token_id=row.id,
        expires_at=expires_at,
        auth_version=row.auth_version,
        share_visibility=_update_share_visibility(environment, row.user_id, row),
    )
    owner_ids = (row.user_id,)
    return CachedCredential(viewer, now, row.last_used_at, expires_at, owner_ids=owner_ids)


@prepare_cached
def api_key_lookup_sql(column: str) -> Select[*tuple[Any, ...]]:
    """SQL: the valid API key with the value of the parameter `of` in this column."""
    now = bindparam("now", type_=UtcDateTime)
    statement = (
        select(*select_columns(ApiKey), *_user_rights_columns())
        .outerjoin(User, col(User.id) == col(ApiKey.user_id))
        .where(
            core_table(ApiKey).c[column] == bindparam("of"),
            col(ApiKey.active),
            or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now),
            or_(col(ApiKey.user_id).is_(None), is_user_enabled_sql()),
        )
    )
    return credential_makers.add_maker_columns(
        statement, col(ApiKey.made_by), col(ApiKey.made_by_key), now
    )


async def load_api_key_if_valid(
    environment: Environment, *, digest: str = "", id: int | None = None
) -> CachedCredential | None:
    """Load an API key with its rights, by digest or id; None if it is not valid.

    Its rights never exceed those of its owner. A key that is restricted to domains acts for these,
    not for a user. It is not valid while its owner administers none of them.
    """
    now = environment.now()
    statement, lookup_value = (
        (api_key_lookup_sql("digest"), digest) if id is None else (api_key_lookup_sql("id"), id)
    )
    for row in await environment.database.read_prepared(
        statement, {"of": lookup_value, "now": now}
    ):
        role = row.role if row.owners is None or row.owners.includes(row.role) else row.owners
        scopes = frozenset(map(Scope, row.scopes)) or frozenset({Scope.FULL})
        if has_maker := credential_makers.has_maker(row):
            if not credential_makers.can_maker_act(row, row.owners, AdminPermission.IMPERSONATE):
                return None
            role = Role.USER
            scopes = credential_makers.limit_scopes_to_impersonation([*map(Scope, row.scopes)])
        user_id, key_owner_id = row.user_id or 0, 0
        role_rights: dict[str, Any] = _role_rights(row, role)
        if row.domains:
            key_owner_id, user_id = user_id, 0
            role_rights = _rights_in_domains_of_key(row, role)
            role = Role.DOMAIN_ADMIN
            if not role_rights["administered_domains"]:
                return None
        viewer = Viewer(
            user_id,
            role,
            scopes,
            **role_rights,
            read_only=row.read_only,
            api_key_id=row.id,
            key_owner_id=key_owner_id,
            actor_id=(row.made_by or 0) if has_maker else 0,
            actor_key_id=row.made_by_key,
            allowed_operations=frozenset(row.operations),
            allowed_networks=tuple(row.allowed_ips),
            expires_at=row.expires_at,
            auth_version=row.users_version or 0,
            share_visibility=_update_share_visibility(environment, user_id, row),
        )
        return CachedCredential(
            viewer,
            now,
            row.last_used_at,
            _earliest_end(row),
            owner_ids=(row.user_id or 0, row.made_by or 0),
        )
    return None


def _rights_in_domains_of_key(row: ColumnRow, role: Role) -> dict[str, Any]:
    """Return permissions and domains of a key for domains in this role, as arguments of Viewer.

    If its owner is an ADMIN, or it has no owner, it has all permissions of a DOMAIN_ADMIN. There
    are no domains if the owner administers none of those of the key.
    """
    key_domain_ids = frozenset(row.domains)
    if role is Role.USER:
        return {"administered_domains": frozenset()}
    if row.owners is None or row.owners.includes(Role.ADMIN):
        return {
            "permissions": frozenset(AdminPermission),
            "administered_domains": key_domain_ids,
        }
    role_rights = _role_rights(row, role)
    role_rights["administered_domains"] &= key_domain_ids
    return role_rights


def _earliest_end(row: ColumnRow) -> datetime | None:
    """Return the end of a credential, or of the key that made it, whichever is earlier."""
    ends_at = [end for end in (row.expires_at, row.maker_key_expires_at) if end]
    return min(ends_at, default=None)


APP_PASSWORD_OWNER_COLUMNS = [
    col(User.auth_version),
    col(User.permissions),
    col(User.role).label("owners"),
    col(User.domain_id),
]


async def load_app_password_for_http_if_valid(
    environment: Environment, app_password_id: int
) -> CachedCredential | None:
    """Load an application password by id, with its rights over HTTP; None if it is not valid."""
    row = await load_app_password_row_if_valid(environment, app_password_id)
    return app_password_credential_for_http_or_none(environment, row, row) if row else None


async def load_app_password_row_if_valid(
    environment: Environment, app_password_id: int
) -> ColumnRow | None:
    """Load the row of an application password with columns of its user; None if it has ended."""
    parameters = {"id": app_password_id, "now": environment.now()}
    rows = await environment.database.read_prepared(_app_password_lookup_sql(), parameters)
    for row in rows:
        return None if app_passwords.has_ended_with_maker(row) else row
    return None


@prepare_cached
def _app_password_lookup_sql() -> Select[*tuple[Any, ...]]:
    now: BindParameter[datetime] = bindparam("now", type_=UtcDateTime)
    statement = (
        select(*select_columns(ApplicationPassword), *APP_PASSWORD_OWNER_COLUMNS)
        .join(User, col(User.id) == col(ApplicationPassword.user_id))
        .where(
            col(ApplicationPassword.id) == bindparam("id"),
            col(ApplicationPassword.active),
            app_passwords.is_not_expired_sql(now),
            is_user_enabled_sql(),
        )
    )
    maker_columns = col(ApplicationPassword.made_by), col(ApplicationPassword.made_by_key)
    return credential_makers.add_maker_columns(statement, *maker_columns, now)


def app_password_credential_for_http_or_none(
    environment: Environment, row: ColumnRow, user: ColumnRow
) -> CachedCredential | None:
    """Return the viewer of an application password over HTTP; None if it has no scope for HTTP."""
    scopes = HTTP_SCOPES & app_passwords.scopes_of_app_password(row.scopes)
    if not scopes:
        return None
    viewer = Viewer(
        row.user_id,
        Role.USER,
        scopes,
        frozenset(map(UserPermission, user.permissions or ())),
        app_password_id=row.id,
        actor_id=row.made_by or 0,
        actor_key_id=row.made_by_key,
        auth_version=user.auth_version,
        share_visibility=ShareVisibility(has_shared_mailboxes=True),
    )
    now = environment.now()
    owner_ids = row.user_id, row.made_by or 0
    return CachedCredential(viewer, now, row.last_used_at, row.expires_at, owner_ids=owner_ids)


async def is_unchanged_without_second_factor(
    environment: Environment, user_id: int, auth_version: int
) -> bool:
    """True if the user can sign in, has no second factor, and `auth_version` is unchanged."""
    statement = select(col(User.second_factors)).where(
        col(User.id) == user_id, col(User.auth_version) == auth_version, is_user_enabled_sql()
    )
    return any(not row.second_factors for row in await environment.database.read(statement))


async def load_session_end_times(
    environment: Environment, user_ids: Collection[int]
) -> Mapping[int, datetime]:
    """Load when the sessions of these users were last ended by `sessionTerminate`, by user id.

    Users that were never kicked are missing.
    """
    statement = select(col(User.id), col(User.sessions_ended_at)).where(
        col(User.id).in_(sorted(user_ids)), col(User.sessions_ended_at).is_not(None)
    )
    return {row.id: row.sessions_ended_at for row in await environment.database.read(statement)}


def has_shared_mailboxes_sql(user_id: Any) -> ColumnElement[bool]:
    """SQL: True if a mailbox is shared with this user."""
    shares = select(col(MailboxShare.mailbox_id)).where(col(MailboxShare.user_id) == user_id)
    return shares.exists().label("shared")


def _update_share_visibility(
    environment: Environment, user_id: int, credential_row: ColumnRow
) -> ShareVisibility:
    """Return the share visibility of the viewer of this row."""
    return cache_of_database(environment.database).update_share_visibility(
        user_id, has_shared_mailboxes=bool(credential_row.shared)
    )


def _user_rights_columns() -> list[ColumnElement[Any]]:
    """Columns of a credential's user that decide its rights."""
    return [
        col(User.role).label("owners"),
        col(User.permissions).label("permissions"),
        col(User.admin_permissions).label("admin_permissions"),
        col(User.domain_id).label("domain_id"),
        col(User.auth_version).label("users_version"),
        credential_makers.joined_administered_domains_sql(col(User.id)).label("charges"),
        has_shared_mailboxes_sql(col(User.id)),
    ]


def _role_rights(row: ColumnRow, role: Role) -> dict[str, Any]:
    """Return the permissions and domains that the user has in this role, as arguments of Viewer."""
    if role is Role.USER:
        return {"permissions": frozenset(map(UserPermission, row.permissions or ()))}
    if role is Role.DOMAIN_ADMIN:
        return {
            "permissions": frozenset(map(AdminPermission, row.admin_permissions or ())),
            "administered_domains": credential_makers.parse_domain_ids(row.charges),
        }
    return {}


async def record_use_and_extend_token(
    environment: Environment, credential: CachedCredential, now: datetime, ip: str | None
) -> None:
    """Store the use of a token or key. A use moves the end of a token."""
    viewer = credential.viewer
    statement: Update
    if viewer.api_key_id:
        is_this_key = col(ApiKey.id) == viewer.api_key_id
        statement = update(ApiKey).where(is_this_key).values(last_used_at=now, last_used_ip=ip)
    else:
        # else another process did it
        unchanged = col(AccessToken.last_used_at) == credential.used_at
        ends_at = [
            end
            for end in (
                credential.idle_lifetime and now + credential.idle_lifetime,
                viewer.expires_at,
            )
            if end
        ]
        statement = (
            update(AccessToken)
            .where(col(AccessToken.id) == viewer.token_id, unchanged)
            .values(last_used_at=now, expires_at=min(ends_at))
        )

    def update_row(transaction: DatabaseTransaction) -> None:
        transaction.connection.execute(statement)

    await environment.run_transaction(update_row)


def has_same_rights(credential: CachedCredential | None, viewer: Viewer) -> bool:
    """True if a credential still has all the rights that `viewer` has.

    A new password of the user ends tokens, which `load_token_if_valid` no longer finds, except the
    token that has set it. It ends neither API keys nor application passwords.
    """
    if credential is None:
        return False
    return replace(credential.viewer, expires_at=viewer.expires_at) == viewer
