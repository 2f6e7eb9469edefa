"""The stored identity providers as the protocol code uses them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, or_, select
from sqlmodel import col

from mail.recipients.address_resolution import SIGN_IN_USER_ID, sign_in_parameters
from models.domains.tables import Domain
from models.identity_providers import IdentityLink, IdentityProvider
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role
from models.users.tables import User
from resolvers.domains.served_domains import find_served_domain_id
from resolvers.identity_providers.errors import ProviderFailure

CALLBACK_PATH = "/oauth/callback"
LOGOUT_PATH = "/oauth/backchannel-logout"
PASSWORD_SIGN_IN_COLUMN = "is_password_sign_in_allowed"  # noqa: S105 - a name
ACCESS_ENDED_COLUMN = "is_access_ended"
# The roles of users who can sign in at the provider of their domain.
ROLES_WITH_PROVIDER = (Role.USER, Role.DOMAIN_ADMIN)


def secret_purpose(provider_id: int) -> str:
    """Return the purpose that the client secret of a provider is encrypted for."""
    return f"identity provider:{provider_id}"


def refresh_token_purpose(link_id: int) -> str:
    """Return the purpose that the refresh token of a link is encrypted for."""
    return f"identity link:{link_id}"


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """The provider of a domain, with its client secret."""

    row: ColumnRow
    client_secret: str | None = field(default=None, repr=False)

    @property
    def id(self) -> int:
        """The row id."""
        return int(self.row.id)

    @property
    def issuer(self) -> str:
        """The issuer: the value that `iss` must have."""
        return str(self.row.issuer)

    @property
    def client_id(self) -> str:
        """The identifier of this server as a client."""
        return str(self.row.client_id)

    def is_same_client(self, issuer: str | None, client_id: str | None) -> bool:
        """True for the issuer and client of this provider, which can have been replaced."""
        return (issuer, client_id) == (self.issuer, self.client_id)

    @property
    def domain_name(self) -> str:
        """The name of the domain in normal form."""
        return str(self.row.domain_name)


def callback_url(public_url: str, domain_name: str) -> str:
    """Return the redirect URI that the provider of a domain sends users back to."""
    return f"{public_url.rstrip('/')}{CALLBACK_PATH}/{_url_name(domain_name)}"


def logout_url(public_url: str, domain_name: str) -> str:
    """Return the URL for back-channel logout of the provider of a domain."""
    return f"{public_url.rstrip('/')}{LOGOUT_PATH}/{_url_name(domain_name)}"


def _url_name(domain_name: str) -> str:
    return domain_name if domain_name.isascii() else domain_name.encode("idna").decode()


def is_password_sign_in_allowed_sql() -> ColumnElement[bool]:
    """SQL: the user can sign in with its own password.

    Users without a domain, administrators of the platform and accounts with `allow_local` always
    can. The provider of the domain can forbid it to others.
    """
    forbids = exists().where(
        col(IdentityProvider.domain_id) == col(User.domain_id),
        ~col(IdentityProvider.password_sign_in_allowed),
    )
    return (~(_is_bound_to_provider_sql() & forbids)).label(PASSWORD_SIGN_IN_COLUMN)


def is_access_ended_sql(user: Any = User) -> ColumnElement[bool]:
    """SQL: the provider has ended the user's access since the last sign-in there.

    `user` is the table or an alias of it.
    """
    has_ended = exists().where(
        col(IdentityLink.user_id) == col(user.id),
        col(IdentityLink.access_ended_at).is_not(None),
    )
    return _is_bound_to_provider_sql(user) & has_ended


def _is_bound_to_provider_sql(user: Any = User) -> ColumnElement[bool]:
    # no IN, whose values prepared statements can't bind
    has_role = or_(*(col(user.role) == role for role in ROLES_WITH_PROVIDER))
    return ~col(user.allow_local) & has_role


def _provider_sql(*conditions: Any) -> Select[*tuple[Any, ...]]:
    columns = (*select_columns(IdentityProvider), col(Domain.name).label("domain_name"))
    statement = select(*columns).join(Domain, col(Domain.id) == col(IdentityProvider.domain_id))
    return statement.where(*conditions)


async def find_provider_of_domain(
    environment: Environment, domain_id: int
) -> ProviderConfig | None:
    """Return the provider of a domain by the row id of the domain; None if it has none.

    Raises ProviderFailure if the client secret can't be decrypted.
    """
    return await _find_provider(environment, col(IdentityProvider.domain_id) == domain_id)


async def find_provider_by_domain_name(
    environment: Environment, domain_name: str
) -> ProviderConfig | None:
    """Return the provider of the active domain with this name or alias; None if it has none.

    Raises ProviderFailure if the client secret can't be decrypted.
    """
    domain_id = await find_served_domain_id(environment, domain_name)
    return None if domain_id is None else await find_provider_of_domain(environment, domain_id)


async def find_provider_of_login_name(
    environment: Environment, login_name: str
) -> ProviderConfig | None:
    """Find the identity provider of a user's domain, by a username or address of the user.

    Returns None if there is no such user, or the domain has no provider. Raises ProviderFailure if
    the client secret can't be decrypted.
    """
    domain_id = select(col(User.domain_id)).where(col(User.id) == SIGN_IN_USER_ID)
    return await _find_provider(
        environment,
        col(IdentityProvider.domain_id) == domain_id.scalar_subquery(),
        sign_in_parameters(environment, login_name),
    )


async def find_provider_by_id(environment: Environment, provider_id: int) -> ProviderConfig | None:
    """Return the provider with this row id of an active domain; None if there is none.

    Raises ProviderFailure.
    """
    is_provider = (col(IdentityProvider.id) == provider_id) & col(Domain.active)
    return await _find_provider(environment, is_provider)


async def _find_provider(
    environment: Environment, condition: Any, parameters: Mapping[str, Any] | None = None
) -> ProviderConfig | None:
    for row in await environment.database.read(_provider_sql(condition), parameters):
        return config_from_row(environment, row)
    return None


def config_from_row(environment: Environment, row: ColumnRow) -> ProviderConfig:
    """Return a provider with its decrypted client secret. Raises ProviderFailure."""
    if row.client_secret is None:
        return ProviderConfig(row)
    try:
        secret = environment.secret_box.decrypt(row.client_secret, secret_purpose(row.id))
    except DecryptionError as problem:
        raise ProviderFailure("The stored client secret can't be decrypted.") from problem
    return ProviderConfig(row, secret)


async def has_any_provider(environment: Environment) -> bool:
    """True if a domain of the platform has an identity provider."""
    statement = select(col(IdentityProvider.id)).limit(1)
    return bool(await environment.database.read(statement))


def user_columns_with_password_rule(columns: Collection[str] | None = None) -> list[Any]:
    """Return columns of users, and what decides whether their own passwords are accepted."""
    user_columns = select_columns(User) if columns is None else select_columns(User, columns)
    is_ended = is_access_ended_sql().label(ACCESS_ENDED_COLUMN)
    return [*user_columns, is_password_sign_in_allowed_sql(), is_ended]
