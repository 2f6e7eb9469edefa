"""Rows of codes, refresh tokens and access tokens, inside the transaction of one request.

A transaction that uses a code or a refresh token locks the stream of its user first, then the row
of the grant. So two uses at the same moment follow each other, and a grant that is
revoked at the same time creates no token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from authlib.oauth2.rfc6749 import TokenMixin
from authlib.oidc.core import AuthorizationCodeMixin
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    insert,
    select,
    update,
)
from sqlmodel import col

from models.auth.credentials import AccessToken
from models.auth.security_log import AuthProtocol
from models.oauth.tables import (
    OauthAuthorizationCode,
    OauthClient,
    OauthGrant,
    OauthRefreshToken,
    OauthScope,
)
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, UtcDateTime, select_columns
from models.store.prepared_statements import PreparedStatement, StatementWithValues
from models.users.roles import Scope
from models.users.tables import User
from resolvers.auth.credential_status import (
    TOKEN_PREFIX,
    generate_secret,
    is_user_enabled_sql,
    secret_digest,
)
from resolvers.oauth import scopes as oauth_scopes
from resolvers.oauth import user_claims

REFRESH_TOKEN_PREFIX = "mgr_"  # noqa: S105 - a prefix
CODE_PREFIX = "mgo_"
CLIENT_SECRET_PREFIX = "mgs_"  # noqa: S105 - a prefix
MAX_SECRET_LENGTH = 128  # characters of a code or token that is looked up
MAX_TOKENS_OF_FAMILY = 100  # of each kind; the oldest end


@dataclass(frozen=True, slots=True)
class TokenFamily:
    """The common values of all tokens from one authorization code."""

    grant_id: int
    family_id: int
    user_id: int
    auth_version: int


@dataclass(frozen=True, slots=True)
class StoredCode(AuthorizationCodeMixin):  # type: ignore[misc]
    """An authorization code as authlib's grant of codes reads it."""

    row: ColumnRow
    code_challenge_method: str = "S256"

    @property
    def family(self) -> TokenFamily:
        """The family that the code begins."""
        row = self.row
        return TokenFamily(row.grant_id, row.id, row.user_id, row.auth_version)

    @property
    def code_challenge(self) -> str:
        """The PKCE challenge of the authorization request."""
        return str(self.row.code_challenge)

    def get_redirect_uri(self) -> str:
        """Return the redirect URI of the authorization request."""
        return str(self.row.redirect_uri)

    def get_scope(self) -> str:
        """Return the scopes that the user allowed."""
        return oauth_scopes.scope_text(self.row.scopes)

    def get_nonce(self) -> str | None:
        """Return the nonce of the authorization request; None if it had none."""
        nonce: str | None = self.row.nonce
        return nonce

    def get_auth_time(self) -> int:
        """Return when the user signed in, in seconds since 1970."""
        return int(self.row.signed_in_at.timestamp())


@dataclass(frozen=True, slots=True)
class StoredToken(TokenMixin):  # type: ignore[misc]
    """An access token or refresh token as authlib's grants and endpoints read it."""

    row: ColumnRow
    is_refresh_token: bool
    is_valid: bool

    @property
    def family(self) -> TokenFamily:
        """The family of the token."""
        row = self.row
        return TokenFamily(row.grant_id, row.family_id, row.user_id, row.auth_version)

    def check_client(self, client: Any) -> bool:
        """True if the token was made for this client."""
        return bool(self.row.client_row_id == client.row.id)

    def get_scope(self) -> str:
        """Return the scopes that the token was made with."""
        return oauth_scopes.scope_text(self.row.scopes)

    def effective_scopes(self) -> list[OauthScope]:
        """Return the scopes of the token that its user can give now."""
        return oauth_scopes.scopes_for_role(self.row.scopes, self.row.user_role)

    def is_expired(self) -> bool:
        """True if the token can't be used: it or its user has ended."""
        return not self.is_valid

    def is_revoked(self) -> bool:
        """True if the token can't be used."""
        return not self.is_valid


_GRANT_COLUMNS: tuple[Any, ...] = (
    col(OauthGrant.user_id),
    col(OauthGrant.client_id).label("client_row_id"),
)


def _code_sql() -> Select[*tuple[Any, ...]]:
    statement = select(*select_columns(OauthAuthorizationCode), *_GRANT_COLUMNS)
    return statement.join(
        OauthGrant, col(OauthGrant.id) == col(OauthAuthorizationCode.grant_id)
    ).where(col(OauthAuthorizationCode.digest) == bindparam("digest"))


def _refresh_token_sql() -> Select[*tuple[Any, ...]]:
    statement = select(
        *select_columns(OauthRefreshToken),
        *_GRANT_COLUMNS,
        col(OauthClient.client_id).label("public_client_id"),
        col(User.role).label("user_role"),
        and_(
            col(User.auth_version) == col(OauthRefreshToken.auth_version), is_user_enabled_sql()
        ).label("is_user_unchanged"),
    )
    return (
        statement.join(OauthGrant, col(OauthGrant.id) == col(OauthRefreshToken.grant_id))
        .join(OauthClient, col(OauthClient.id) == col(OauthGrant.client_id))
        .join(User, col(User.id) == col(OauthGrant.user_id))
        .where(col(OauthRefreshToken.digest) == bindparam("digest"))
    )


def _access_token_sql() -> Select[*tuple[Any, ...]]:
    statement = select(
        col(AccessToken.id),
        col(AccessToken.auth_version),
        col(AccessToken.created_at),
        col(AccessToken.expires_at),
        col(AccessToken.oauth_grant_id).label("grant_id"),
        col(AccessToken.oauth_family_id).label("family_id"),
        col(AccessToken.oauth_scopes).label("scopes"),
        *_GRANT_COLUMNS,
        col(OauthClient.client_id).label("public_client_id"),
        col(User.role).label("user_role"),
        and_(col(User.auth_version) == col(AccessToken.auth_version), is_user_enabled_sql()).label(
            "is_user_unchanged"
        ),
    )
    return (
        statement.join(OauthGrant, col(OauthGrant.id) == col(AccessToken.oauth_grant_id))
        .join(OauthClient, col(OauthClient.id) == col(OauthGrant.client_id))
        .join(User, col(User.id) == col(OauthGrant.user_id))
        .where(col(AccessToken.digest) == bindparam("digest"))
    )


def _user_of_family_sql() -> Select[*tuple[Any, ...]]:
    """Select the enabled user with this authentication version, with the columns of claims."""
    columns = select_columns(User, ("webmail_access", "role"))
    statement = select(*columns, *user_claims.CLAIM_COLUMNS)
    return user_claims.join_main_address(statement).where(
        col(User.id) == bindparam("user_id"),
        col(User.auth_version) == bindparam("auth_version"),
        is_user_enabled_sql(),
    )


_NOW = bindparam("now", type_=UtcDateTime)
_FIND_CODE = PreparedStatement(_code_sql())
_FIND_REFRESH_TOKEN = PreparedStatement(_refresh_token_sql())
_FIND_ACCESS_TOKEN = PreparedStatement(_access_token_sql())
_FIND_USER_OF_FAMILY = PreparedStatement(_user_of_family_sql())
_USE_CODE = PreparedStatement(
    update(OauthAuthorizationCode)
    .where(col(OauthAuthorizationCode.id) == bindparam("code_id"))
    .where(col(OauthAuthorizationCode.used_at).is_(None))
    .values(used_at=_NOW)
    .returning(col(OauthAuthorizationCode.id))
)
_USE_GRANT = PreparedStatement(
    update(OauthGrant)
    .where(col(OauthGrant.id) == bindparam("grant_id"))
    .values(last_used_at=_NOW)
    .returning(col(OauthGrant.id))
)
_INSERT_ACCESS_TOKEN = PreparedStatement(insert(AccessToken).inline())
_INSERT_REFRESH_TOKEN = PreparedStatement(insert(OauthRefreshToken).inline())


def is_possible_secret(text: str) -> bool:
    """True if a text can be a code or token of this server, by its length and characters."""
    return len(text) <= MAX_SECRET_LENGTH and text.isascii()


def use_up_code_or_return_family_of_reuse(
    transaction: DatabaseTransaction, code: str, client_row_id: int
) -> StoredCode | TokenFamily | None:
    """Use up a code of this client, and return it.

    Returns the family of the code if it was used before, None if it is unknown, expired or of
    another client. Locks the stream of the user.
    """
    now = transaction.environment.now()
    if not is_possible_secret(code):
        return None
    row = _first_or_none(transaction, _FIND_CODE, digest=secret_digest(code))
    if row is None or row.client_row_id != client_row_id:
        return None
    transaction.lock_stream_and_read_position(row.user_id)
    if not transaction.fetch_rows(_USE_CODE, code_id=row.id, now=now):
        return StoredCode(row).family
    return StoredCode(row) if now < row.expires_at else None


def find_refresh_token_and_lock_user(
    transaction: DatabaseTransaction, text: str
) -> StoredToken | None:
    """Return a refresh token, also one that was used or has expired; None if it is unknown.

    Locks the stream of the user.
    """
    now = transaction.environment.now()
    if not is_possible_secret(text):
        return None
    digest = secret_digest(text)
    row = _first_or_none(transaction, _FIND_REFRESH_TOKEN, digest=digest)
    if row is None:
        return None
    transaction.lock_stream_and_read_position(row.user_id)
    # again: another request may have used it
    row = _first_or_none(transaction, _FIND_REFRESH_TOKEN, digest=digest)
    if row is None:
        return None
    is_valid = row.replaced_at is None and now < row.expires_at and row.is_user_unchanged
    return StoredToken(row, is_refresh_token=True, is_valid=bool(is_valid))


def find_access_token(transaction: DatabaseTransaction, text: str) -> StoredToken | None:
    """Return an access token of an OAuth client; None if it is unknown."""
    now = transaction.environment.now()
    if not is_possible_secret(text):
        return None
    row = _first_or_none(transaction, _FIND_ACCESS_TOKEN, digest=secret_digest(text))
    if row is None:
        return None
    ends_at = min(row.expires_at, row.created_at + transaction.environment.options.tokens_max_age)
    is_valid = now < ends_at and row.is_user_unchanged
    return StoredToken(row, is_refresh_token=False, is_valid=bool(is_valid))


def record_use_of_grant_and_load_user(
    transaction: DatabaseTransaction, family: TokenFamily
) -> ColumnRow | None:
    """Lock and update the grant of a family, and return the user with the claims.

    Returns None if the grant has ended, or the user can't sign in or has a new password.
    """
    now = transaction.environment.now()
    if not transaction.fetch_rows(_USE_GRANT, grant_id=family.grant_id, now=now):
        return None
    return _first_or_none(
        transaction,
        _FIND_USER_OF_FAMILY,
        user_id=family.user_id,
        auth_version=family.auth_version,
    )


def _first_or_none(
    transaction: DatabaseTransaction, statement: PreparedStatement, **parameters: Any
) -> ColumnRow | None:
    """Return the first row of a prepared statement; None if there is none."""
    rows = transaction.fetch_rows(statement, **parameters)
    row: ColumnRow | None = rows[0] if rows else None
    return row


def access_token_insert(
    environment: Environment,
    family: TokenFamily,
    token: str,
    scopes: Iterable[str],
    ip: str | None,
) -> StatementWithValues:
    """Return the statement that inserts the row of an access token."""
    now = environment.now()
    return _INSERT_ACCESS_TOKEN, {
        "id": environment.new_id(),
        "user_id": family.user_id,
        "digest": secret_digest(token),
        "auth_version": family.auth_version,
        "scope": Scope.IMAP,  # no right of this server: only `oauth_scopes` counts
        "protocol": AuthProtocol.HTTP,
        "ip": ip,
        "pending": False,
        "temporary": False,
        "oauth_grant_id": family.grant_id,
        "oauth_family_id": family.family_id,
        "oauth_scopes": list(scopes),
        "created_at": now,
        "last_used_at": now,
        "expires_at": now + environment.options.oauth_access_token_ttl,
    }


def refresh_token_insert(
    environment: Environment, family: TokenFamily, token: str, scopes: Iterable[str]
) -> StatementWithValues:
    """Return the statement that inserts the row of a refresh token."""
    now = environment.now()
    return _INSERT_REFRESH_TOKEN, {
        "id": environment.new_id(),
        "digest": secret_digest(token),
        "grant_id": family.grant_id,
        "family_id": family.family_id,
        "auth_version": family.auth_version,
        "scopes": list(scopes),
        "created_at": now,
        "expires_at": now + environment.options.oauth_refresh_token_ttl,
    }


def mark_refresh_token_replaced(transaction: DatabaseTransaction, token: StoredToken) -> None:
    """Store that a refresh token was used."""
    is_token = col(OauthRefreshToken.id) == token.row.id
    replaced = update(OauthRefreshToken).where(is_token)
    now: datetime = transaction.environment.now()
    transaction.connection.execute(replaced.values(replaced_at=now))


def delete_family(connection: Connection, family: TokenFamily) -> int:
    """Delete all access tokens and refresh tokens of a family, and return their number."""
    return sum(
        connection.execute(delete(table).where(is_of_family)).rowcount
        for table, is_of_family in _tables_and_conditions_of_family(family)
    )


def delete_oldest_tokens(connection: Connection, family: TokenFamily) -> None:
    """Keep the newest MAX_TOKENS_OF_FAMILY access tokens and refresh tokens of a family."""
    for table, is_of_family in _tables_and_conditions_of_family(family):
        newest = select(col(table.id)).where(is_of_family).order_by(col(table.id).desc())
        is_old = col(table.id).not_in(newest.limit(MAX_TOKENS_OF_FAMILY))
        connection.execute(delete(table).where(is_of_family, is_old))


def _tables_and_conditions_of_family(family: TokenFamily) -> list[tuple[Any, ColumnElement[bool]]]:
    """Return the tables with tokens, and the condition for the rows of the family in each."""
    return [
        (
            AccessToken,
            (col(AccessToken.oauth_grant_id) == family.grant_id)
            & (col(AccessToken.oauth_family_id) == family.family_id),
        ),
        (
            OauthRefreshToken,
            (col(OauthRefreshToken.grant_id) == family.grant_id)
            & (col(OauthRefreshToken.family_id) == family.family_id),
        ),
    ]


def delete_access_token(connection: Connection, token: StoredToken) -> None:
    """Delete an access token."""
    connection.execute(delete(AccessToken).where(col(AccessToken.id) == token.row.id))


def record_use_of_client(transaction: DatabaseTransaction, client_row_id: int) -> None:
    """Store the time of the last token of a client."""
    is_client = col(OauthClient.id) == client_row_id
    used_client = update(OauthClient).where(is_client)
    now = transaction.environment.now()
    transaction.connection.execute(used_client.values(last_used_at=now))


def new_access_token(environment: Environment) -> str:
    """Return the text of a new access token."""
    return generate_secret(environment, TOKEN_PREFIX)


def new_refresh_token(environment: Environment) -> str:
    """Return the text of a new refresh token."""
    return generate_secret(environment, REFRESH_TOKEN_PREFIX)
