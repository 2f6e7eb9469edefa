"""Tables of access tokens, API keys, sign-in throttles and encryption keys."""

from datetime import datetime, timedelta

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from models.auth.security_log import AuthProtocol
from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    enum_column,
    foreign_key,
    json_column,
    partial_index,
)
from models.users.roles import Role, Scope

SECOND_FACTOR_TIMEOUT = timedelta(minutes=10)  # for the second factor after the password
# after this time without failures the waits begin with the shortest again
THROTTLE_RESET = timedelta(days=1)


class AccessToken(UserOwnedRow, table=True):
    """A bearer token that a sign-in returned. Only the hash of its secret is stored."""

    __tablename__ = "access_tokens"
    __table_args__ = (
        Index("access_tokens_of_user", "user_id", "created_at", "id"),
        partial_index(
            "access_tokens_of_grant",
            "oauth_grant_id IS NOT NULL",
            "oauth_grant_id",
            "oauth_family_id",
        ),
    )

    user_id: int = foreign_key("users.id", index=False)
    digest: str = Field(unique=True)  # SHA-256 of the secret, hex
    auth_version: Int64  # of its user at the sign-in
    # resolvers/auth/credential_status.py narrows it for a token with an actor
    scope: Scope = enum_column(Scope, default=Scope.FULL)
    scopes: list[str] | None = json_column()  # at most these; None: all that `scope` allows
    protocol: AuthProtocol = enum_column(AuthProtocol, default=AuthProtocol.API)
    ip: str | None = None
    pending: bool = False  # the second factor is missing: the token has no other use
    temporary: bool = False  # from a temporary password: only to set a new password
    actor_id: OptionalInt64 = None  # the administrator who acts as its user
    actor_key_id: OptionalInt64 = None  # or the API key without a user; 0: the bootstrap key
    # of a token that an OAuth client got; None: a sign-in
    oauth_grant_id: int | None = foreign_key("oauth_grants.id", index=False, default=None)
    oauth_family_id: OptionalInt64 = None  # of the refresh tokens that it ends with
    oauth_scopes: list[str] | None = json_column()  # values of OauthScope
    created_at: Timestamp
    last_used_at: Timestamp
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)


class ApiKey(RowWithId, table=True):
    """A long-lived bearer credential of a user or of the platform."""

    __tablename__ = "api_keys"

    name: str
    digest: str = Field(unique=True)  # SHA-256 of the secret, hex
    role: Role = enum_column(Role, default=Role.USER)
    scopes: list[str] = json_column(list)
    read_only: bool = False
    active: bool = True
    user_id: int | None = foreign_key("users.id", default=None)
    # of a DOMAIN_ADMIN's key: only these; empty: all of its user
    domains: list[int] = json_column(list)
    operations: list[str] = json_column(list)  # allowed root fields; empty: all
    allowed_ips: list[str] = json_column(list)  # allowed networks; empty: all
    made_by: OptionalInt64 = None  # the administrator who created it for its user
    made_by_key: OptionalInt64 = None  # or the API key without a user
    maker: str | None = None  # the maker's name; None: the user created it
    creator_id: OptionalInt64 = None  # users.id; of a key without a user, which outlives its maker
    created_at: Timestamp
    expires_at: OptionalTimestamp = None
    last_used_at: OptionalTimestamp = None
    last_used_ip: str | None = None


class Throttle(RowWithId, table=True):
    """Failed sign-ins of a name or network in the current window."""

    __tablename__ = "throttles"
    __table_args__ = (
        partial_index("throttles_by_wait", "wait_since IS NOT NULL", "wait_since", "id"),
        partial_index("throttles_by_ip", "first_ip IS NOT NULL", "first_ip", "last_ip"),
    )

    key: str = Field(unique=True)
    failures: Int64 = 0
    times: Int64 = 0  # windows in a row that were used up; each makes the next wait longer
    until: datetime = Field(sa_type=UtcDateTime, index=True)
    wait_since: OptionalTimestamp = None  # when the limit was reached; None: it was not
    network: str | None = None  # that the failures came from; None: any
    first_ip: str | None = None  # of the network, as 32 hex digits
    last_ip: str | None = None


class SecretBoxKey(SQLModel, table=True):
    """The name of a key that secrets of this database are encrypted with.

    The key itself is in the key file.
    """

    __tablename__ = "secret_box_keys"

    name: str = Field(primary_key=True)
    proof: str  # `SecretBox.key_fingerprint`
    created_at: Timestamp
