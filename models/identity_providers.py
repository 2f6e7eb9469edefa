"""Tables of identity providers: where the users of a domain sign in, and their linked accounts."""

from datetime import datetime

from sqlalchemy import Index, text
from sqlmodel import Field

from models.store.columns import (
    BIG_INTEGER,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    foreign_key,
    json_column,
)

DEFAULT_SCOPES = ("openid", "profile", "email")
DEFAULT_USERNAME_CLAIM = "email"
DEFAULT_GROUPS_CLAIM = "groups"


class IdentityProvider(RowWithId, table=True):
    """The OpenID Connect provider of a domain."""

    __tablename__ = "identity_providers"

    domain_id: int = foreign_key("domains.id", index=False, unique=True)
    issuer: str
    client_id: str
    client_secret: str | None = None  # encrypted; None: a public client
    scopes: list[str] = json_column(list)
    username_claim: str = DEFAULT_USERNAME_CLAIM  # names an address of the domain
    groups_claim: str = DEFAULT_GROUPS_CLAIM
    admin_groups: list[str] = json_column(list)  # their members are DOMAIN_ADMIN of the domain
    active_claim: str | None = None  # false in it ends the account
    user_creation_allowed: bool = False
    password_sign_in_allowed: bool = True  # users can also sign in with a password
    created_at: Timestamp
    updated_at: OptionalTimestamp = None


class IdentityLink(UserOwnedRow, table=True):
    """The account of a provider (`iss` and `sub`) that a user signs in with."""

    __tablename__ = "identity_links"
    __table_args__ = (
        Index(
            "uq_identity_links_subject",
            "provider_id",
            "issuer",
            "client_id",
            "subject",
            unique=True,
        ),
        Index(
            "identity_links_due",
            "check_due_at",
            sqlite_where=text("check_due_at IS NOT NULL"),
            postgresql_where=text("check_due_at IS NOT NULL"),
        ),
    )

    user_id: int = foreign_key("users.id", index=False, unique=True)
    provider_id: int = foreign_key("identity_providers.id", index=False)
    issuer: str
    client_id: str  # `sub` can differ between clients of a provider
    subject: str
    is_admin_by_group: bool = False  # the provider gave the role DOMAIN_ADMIN
    refresh_token: str | None = None  # encrypted; None: the provider gave none
    check_due_at: OptionalTimestamp = None  # of the next request with the refresh token
    is_checking: bool = False  # a check has begun and its result is not stored
    access_ended_at: OptionalTimestamp = None  # by the provider; the next sign-in there clears it
    created_at: Timestamp
    last_sign_in_at: Timestamp


class IdentitySession(RowWithId, table=True):
    """A session at a provider (`sid`), and the family of OAuth tokens that began in it."""

    __tablename__ = "identity_sessions"
    __table_args__ = (Index("identity_sessions_of_digest", "session_digest", "link_id"),)

    link_id: int = foreign_key("identity_links.id")
    session_digest: str  # SHA-256 of `sid`, hex
    # the id of the authorization code, and of the family of its tokens
    family_id: int = Field(sa_type=BIG_INTEGER, index=True)
    created_at: Timestamp


class UsedIdentityToken(RowWithId, table=True):
    """A response or logout token of a provider that was accepted: it can't be used again."""

    __tablename__ = "used_identity_tokens"

    digest: str = Field(unique=True)  # SHA-256, hex, of the nonce, or of provider and `jti`
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
