"""Tables of access tokens, API keys, sign-in throttles and encryption keys."""

from datetime import datetime, timedelta

from sqlmodel import Field, SQLModel

from models.store.columns import (
    Instant,
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Owned,
    Row,
    choice,
    plain,
    ref,
)
from models.users.roles import Role, Scope

PENDING = timedelta(minutes=10)  # for the second factor after the password
CALM = timedelta(days=1)  # after this time without failures the waits begin with the shortest again


class AccessToken(Owned, table=True):
    """A bearer token that a sign-in returned. Only the hash of its secret is stored."""

    __tablename__ = "access_tokens"

    digest: str = Field(unique=True)  # SHA-256 of the secret, hex
    auth_version: Number  # of its user at the sign-in
    # resolvers/auth/credential_status.py narrows it for a token with an actor
    scope: Scope = choice(Scope, default=Scope.MASTER)
    protocol: str = "API"
    ip: str | None = None
    pending: bool = False  # the second factor is missing: the token has no other use
    temporary: bool = False  # from a temporary password: only to set a new password
    actor_id: MaybeNumber = None  # the administrator who acts as its user
    actor_key_id: MaybeNumber = None  # or the API key without a user; 0: the bootstrap key
    created_at: Moment
    last_used_at: Moment
    expires_at: datetime = Field(sa_type=Instant, index=True)


class ApiKey(Row, table=True):
    """A long-lived bearer credential of a user or of the platform."""

    __tablename__ = "api_keys"

    name: str
    digest: str = Field(unique=True)  # SHA-256 of the secret, hex
    role: Role = choice(Role, default=Role.USER)
    scopes: list[str] = plain(list)
    read_only: bool = False
    active: bool = True
    user_id: int | None = ref("users.id", default=None)
    domains: list[int] = plain(list)  # of a DOMAIN_ADMIN's key: only these; empty: all of its user
    operations: list[str] = plain(list)  # allowed root fields; empty: all
    allowed_ips: list[str] = plain(list)  # allowed networks; empty: all
    made_by: MaybeNumber = None  # the administrator who created it for its user
    made_by_key: MaybeNumber = None  # or the API key without a user
    maker: str | None = None  # the maker's name; None: the user created it
    created_at: Moment
    expires_at: MaybeMoment = None
    last_used_at: MaybeMoment = None
    last_used_ip: str | None = None


class Throttle(SQLModel, table=True):
    """Failed sign-ins of a name or network in the current window."""

    __tablename__ = "throttles"

    key: str = Field(primary_key=True)
    failures: Number = 0
    times: Number = 0  # windows in a row that were used up; each makes the next wait longer
    until: datetime = Field(sa_type=Instant, index=True)


class VaultKey(SQLModel, table=True):
    """The name of a key that secrets of this database are encrypted with.

    The key itself is in the key file.
    """

    __tablename__ = "vault_keys"

    name: str = Field(primary_key=True)
    proof: str  # `SecretBox.key_fingerprint`
    created_at: Moment
