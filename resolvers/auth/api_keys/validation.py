"""Values of new and changed API keys, and the checks of each value."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from typing import Any

from models.errors import ErrorCollector, InvalidInput
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.viewer import GuardRule

MAX_NAME_LENGTH = 128  # characters of a name
MAX_LIST_LENGTH = 100  # networks, domains or operations of a key


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """An API key to create. Without scopes it has all rights of its role.

    Without a user it belongs to the caller or, with the role ADMIN or above, to no user. With
    `domains` it acts for these as a DOMAIN_ADMIN, and for no user.
    """

    name: str
    role: Role = Role.USER
    scopes: Collection[Scope] = ()
    read_only: bool = False
    user_id: int | None = None
    expires_at: datetime | None = None
    domains: Collection[int] = ()
    operations: Collection[str] = ()  # root fields; empty = all
    allowed_ips: Collection[str] = ()  # networks; empty = all


@dataclass(frozen=True, slots=True)
class ApiKeyChange:
    """Changes to API keys; None leaves a field unchanged."""

    name: str | None = None
    active: bool | None = None
    allowed_ips: Collection[str] | None = None
    expires_at: datetime | None = None
    removes_expiry: bool = False  # remove the end

    @property
    def column_values(self) -> dict[str, Any]:
        """The changed columns with their new values."""
        values = {
            "name": self.name and self.name.strip(),
            "active": self.active,
            "allowed_ips": None if self.allowed_ips is None else sorted(set(self.allowed_ips)),
            "expires_at": self.expires_at,
        }
        changed = {name: value for name, value in values.items() if value is not None}
        return changed | ({"expires_at": None} if self.removes_expiry else {})


def collect_new_key_errors_and_require_role(
    ctx: Context, new_key: NewApiKey, problems: ErrorCollector
) -> None:
    """Collect validation errors of a new key. Raises Forbidden if the caller lacks its role."""
    viewer = ctx.viewer
    change = ApiKeyChange(new_key.name, None, new_key.allowed_ips, new_key.expires_at)
    collect_name_networks_and_end_errors(ctx, change, problems)
    with problems.collecting():
        if new_key.role is Role.PUBLIC:
            raise InvalidInput(
                "An API key can't have the role PUBLIC.",
                constraint=ValidationConstraint.ROLE,
                path=["role"],
            )
    viewer.require(GuardRule(role=new_key.role, scope=Scope.FULL))
    with problems.collecting():
        if len(new_key.operations) > MAX_LIST_LENGTH:
            raise InvalidInput(
                f"At most {MAX_LIST_LENGTH} items are allowed.",
                constraint=ValidationConstraint.MAX,
                path=["operations"],
            )
    with problems.collecting():
        _require_valid_domain_restriction(ctx, new_key)


def _require_valid_domain_restriction(ctx: Context, new_key: NewApiKey) -> None:
    """Raise InvalidInput if the key can't be restricted to domains, or must be."""
    viewer = ctx.viewer
    if new_key.domains:
        if new_key.role is Role.USER:
            text = "An API key for domains requires the role DOMAIN_ADMIN or above."
            raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["domains"])
        if len(new_key.domains) > MAX_LIST_LENGTH:
            raise InvalidInput(
                f"At most {MAX_LIST_LENGTH} items are allowed.",
                constraint=ValidationConstraint.MAX,
                path=["domains"],
            )
        if new_key.role.includes(Role.ADMIN) and new_key.user_id is not None:
            text = "An API key with the role ADMIN that is restricted to domains can't have a user."
            raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["user"])
    elif viewer.role is Role.DOMAIN_ADMIN and not viewer.user_id and new_key.role is not Role.USER:
        raise InvalidInput(
            "The domains of the API key are required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["domains"],
        )


def collect_name_networks_and_end_errors(
    ctx: Context, change: ApiKeyChange, problems: ErrorCollector
) -> None:
    """Collect validation errors of name, networks and end."""
    with problems.collecting():
        if change.name is not None and (
            not 0 < len(change.name.strip()) <= MAX_NAME_LENGTH or not change.name.isprintable()
        ):
            text = f"The name has from 1 to {MAX_NAME_LENGTH} printable characters."
            raise InvalidInput(text, constraint=ValidationConstraint.PATTERN, path=["name"])
    with problems.collecting():
        if change.expires_at and change.expires_at <= ctx.environment.now():
            raise InvalidInput(
                "The time must be in the future.",
                constraint=ValidationConstraint.MIN,
                path=["expiresAt"],
            )
    with problems.collecting():
        if len(change.allowed_ips or ()) > MAX_LIST_LENGTH:
            raise InvalidInput(
                f"At most {MAX_LIST_LENGTH} items are allowed.",
                constraint=ValidationConstraint.MAX,
                path=["allowedIps"],
            )
        for index, network in enumerate(change.allowed_ips or ()):
            try:
                ip_network(network)
            except ValueError:
                raise InvalidInput(
                    "Must be an IP address or network.",
                    constraint=ValidationConstraint.CIDR,
                    path=["allowedIps"],
                    index=index,
                ) from None
