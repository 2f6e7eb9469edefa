"""Credentials, and how often they failed."""

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

PENDING = timedelta(minutes=10)  # that a second factor may be outstanding
CALM = timedelta(days=1)  # after a wait: then the next begins with the shortest again


class AccessToken(Owned, table=True):
    """A login of a program. Only the hash of its secret is kept."""

    __tablename__ = "access_tokens"

    digest: str = Field(unique=True)  # SHA-256 of the secret, hex
    auth_version: Number  # of its user when it was made
    scope: Scope = choice(Scope, default=Scope.MASTER)  # with an actor narrower: resolvers/standing
    protocol: str = "API"
    ip: str | None = None
    pending: bool = False  # a second factor is outstanding: good for nothing else
    temporary: bool = False  # by a temporary password: good for setting a new password
    actor_id: MaybeNumber = None  # the administrator who acts as its user
    actor_key_id: MaybeNumber = None  # or the API key, without an account; 0: the bootstrap key
    created_at: Moment
    last_used_at: Moment
    expires_at: datetime = Field(sa_type=Instant, index=True)


class ApiKey(Row, table=True):
    """A long-lived key, of a user or of the platform."""

    __tablename__ = "api_keys"

    name: str
    digest: str = Field(unique=True)  # SHA-256 of the secret, hex
    role: Role = choice(Role, default=Role.USER)
    scopes: list[str] = plain(list)
    read_only: bool = False
    active: bool = True
    user_id: int | None = ref("users.id", default=None)
    domains: list[int] = plain(list)  # of a DOMAIN_ADMIN's key: only these; empty = all of its user
    operations: list[str] = plain(list)  # root fields it is good for; empty = all
    allowed_ips: list[str] = plain(list)  # networks it is good from; empty = all
    made_by: MaybeNumber = None  # the administrator who made it for its user
    made_by_key: MaybeNumber = None  # or the API key, without an account
    maker: str | None = None  # the maker's name; None: the user has made it
    created_at: Moment
    expires_at: MaybeMoment = None
    last_used_at: MaybeMoment = None
    last_used_ip: str | None = None


class Throttle(SQLModel, table=True):
    """Failed logins under a name, or from a network, in the window that is running."""

    __tablename__ = "throttles"

    key: str = Field(primary_key=True)
    failures: Number = 0
    times: Number = 0  # windows in a row that were used up: each makes the next wait longer
    until: datetime = Field(sa_type=Instant, index=True)


class VaultKey(SQLModel, table=True):
    """A key that secrets of this store are encrypted with. The key file has the key itself."""

    __tablename__ = "vault_keys"

    name: str = Field(primary_key=True)
    proof: str  # Vault.proof
    created_at: Moment
