"""Tables of OAuth clients, grants, authorization codes, refresh tokens and signing keys.

Codes, tokens and client secrets are stored as SHA-256 digests only. Access tokens are rows of
`access_tokens` (models/auth/credentials.py).
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import (
    Int64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    foreign_key,
    json_column,
)

CODE_LIFETIME = timedelta(seconds=60)
CODE_RETENTION = timedelta(days=1)  # a used code is kept so that a second use is recognized
# a replaced signing key is kept so that clients can name their user by an old ID token
SIGNING_KEY_RETENTION = timedelta(days=90)
# `created_by` of a client that has registered itself (RFC 7591); no username has a space
DYNAMIC_REGISTRATION = "dynamic registration"
REGISTERED_CLIENT_RETENTION = timedelta(days=30)  # without use, of a client without valid tokens


class OauthGrantType(StrEnum):
    """A way in which an OAuth client gets access tokens (RFC 6749, section 1.3)."""

    AUTHORIZATION_CODE = "authorization_code"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 - a name


class OauthScope(StrEnum):
    """A scope that an OAuth client can request: those of the product, and of OpenID Connect."""

    OPENID = "openid"
    PROFILE = "profile"
    EMAIL = "email"
    READ = "read"
    MAIL_READ = "mail_read"
    MAIL = "mail"
    SUBMIT = "submit"
    SETTINGS = "settings"
    IMAP = "imap"
    POP3 = "pop3"
    SMTP = "smtp"
    SIEVE = "sieve"
    DOMAIN_ADMIN = "domain_admin"  # no scope of the product, but this role of the user


class OauthClient(RowWithId, table=True):
    """A program that signs users in. Without a secret it is a public client."""

    __tablename__ = "oauth_clients"
    __table_args__ = (
        Index("ix_oauth_clients_created_at", "created_at", "id"),
        Index("ix_oauth_clients_name", "name", "id"),
    )

    client_id: str = Field(unique=True)  # the public identifier of RFC 6749
    name: str
    secret_digest: str | None = None  # SHA-256, hex; None: a public client
    redirect_uris: list[str] = json_column(list)
    grant_types: list[str] = json_column(list)  # values of OauthGrantType
    scopes: list[str] = json_column(list)  # values of OauthScope
    # name of the administrator or key, or DYNAMIC_REGISTRATION; None: not known
    created_by: str | None = None
    created_at: Timestamp
    updated_at: OptionalTimestamp = None
    secret_rotated_at: OptionalTimestamp = None
    last_used_at: OptionalTimestamp = None  # its last token, at most an hour late


class OauthGrant(UserOwnedRow, table=True):
    """The access that a user has given to a client: one row for each pair."""

    __tablename__ = "oauth_grants"
    __table_args__ = (
        Index("uq_oauth_grants_user_id_client_id", "user_id", "client_id", unique=True),
        Index("oauth_grants_of_user", "user_id", "created_at", "id"),
    )

    user_id: int = foreign_key("users.id", index=False)
    client_id: int = foreign_key("oauth_clients.id")
    scopes: list[str] = json_column(list)  # all that the user has allowed
    created_at: Timestamp
    last_used_at: OptionalTimestamp = None


class OauthAuthorizationCode(RowWithId, table=True):
    """An authorization code. Its id is that of the family of all tokens made from it."""

    __tablename__ = "oauth_authorization_codes"

    digest: str = Field(unique=True)
    page_digest: str = Field(unique=True)  # of the consent page that it was made on
    grant_id: int = foreign_key("oauth_grants.id")
    scopes: list[str] = json_column(list)
    redirect_uri: str
    code_challenge: str  # S256
    nonce: str | None = None
    auth_version: Int64  # of the user at the sign-in
    signed_in_at: Timestamp
    created_at: Timestamp
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
    used_at: OptionalTimestamp = None


class OauthRefreshToken(RowWithId, table=True):
    """A refresh token. A second use of one ends all tokens of its family."""

    __tablename__ = "oauth_refresh_tokens"
    __table_args__ = (Index("oauth_refresh_tokens_of_family", "grant_id", "family_id"),)

    digest: str = Field(unique=True)
    grant_id: int = foreign_key("oauth_grants.id", index=False)
    family_id: Int64  # the id of the authorization code that began it
    scopes: list[str] = json_column(list)
    auth_version: Int64  # of the user at the sign-in
    created_at: Timestamp
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
    replaced_at: OptionalTimestamp = None  # when it was used


class OauthSigningKey(RowWithId, table=True):
    """A key that signs ID tokens."""

    __tablename__ = "oauth_signing_keys"

    kid: str = Field(unique=True)
    public_key: dict[str, Any] = json_column(dict)  # JWK
    private_key: str  # JWK, encrypted
    created_at: Timestamp
    activates_at: Timestamp  # signs from this time on
    retires_at: OptionalTimestamp = None  # not published from this time on; None: it is in use
