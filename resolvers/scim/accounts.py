"""Users as SCIM accounts: which of them a request sees, and their attributes."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from scim2_models import NotFoundException
from sqlalchemy import ColumnElement, false, select
from sqlmodel import col

from models.addresses.tables import Address
from models.scim import SCIM_NAME_COLUMNS, ScimAddress, ScimGroup, ScimGroupMember, ScimUser
from models.store.columns import ColumnRow, select_columns
from models.store.query_hints import without_index
from models.users.tables import User
from resolvers.context import Context
from resolvers.scim.resources import (
    AccountEmailAttribute,
    AccountEmailType,
    AccountNameAttribute,
    AccountResource,
    AccountRoleAttribute,
)

USER_COLUMNS = (
    "id", "username", "name", "active", "suspended", "language", "role", "domain_id",
    "created_at", "updated_at",
)  # fmt: skip
SCIM_COLUMNS = ("external_id", *SCIM_NAME_COLUMNS, "suspended_by_scim")
DEFAULT_MAIN_TYPE = AccountEmailType.work


@dataclass(frozen=True, slots=True)
class AccountEmail:
    """An address of an account that SCIM shows."""

    address_id: int
    address: str
    domain_id: int
    is_main: bool
    has_scim_row: bool
    type: str | None
    is_primary: bool | None  # as the client wrote it
    created_by_scim: bool


@dataclass(frozen=True, slots=True)
class ScimAccount:
    """A user with its SCIM attributes, addresses and groups."""

    row: ColumnRow  # USER_COLUMNS and SCIM_COLUMNS
    emails: Sequence[AccountEmail] = field(default_factory=list)  # the main address first
    groups: Sequence[ColumnRow] = field(default_factory=list)  # id and display_name

    @property
    def stream_ids(self) -> set[int]:
        """The streams to lock for a change: of the user, and of the domains of its addresses."""
        return {self.row.id, self.row.domain_id, *(email.domain_id for email in self.emails)}


def is_in_tenant_sql(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for the users of the domains of the API key.

    Deleted users have no domain. Without a condition on `deleted_at`, an index has all columns.
    """
    domain_ids = sorted(ctx.viewer.administered_domains)
    if not domain_ids:
        return false()
    domain = col(User.domain_id)
    return domain == domain_ids[0] if len(domain_ids) == 1 else domain.in_(domain_ids)


def is_tenant_group_sql(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for the groups of the domains of the API key."""
    return col(ScimGroup.domain_id).in_(sorted(ctx.viewer.administered_domains))


def is_shown_address_sql(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for main addresses, and for others that SCIM has set, of one tenant.

    The select must join `ScimAddress` to `Address` from outside.
    """
    is_in_domain = col(Address.domain_id).in_(sorted(ctx.viewer.administered_domains))
    return col(Address.main) | (col(ScimAddress.address_id).is_not(None) & is_in_domain)


async def load_accounts(ctx: Context, user_ids: Sequence[int]) -> list[ScimAccount]:
    """Load accounts by user id, in this order, with three statements.

    Users outside of the domains of the API key are left out.
    """
    if not user_ids:
        return []
    statement = (
        select(*select_columns(User, USER_COLUMNS), *select_columns(ScimUser, SCIM_COLUMNS))
        .outerjoin(ScimUser, col(ScimUser.user_id) == col(User.id))
        .where(col(User.id).in_(user_ids), without_index(is_in_tenant_sql(ctx)))
    )
    rows = {row.id: row for row in await ctx.read(statement)}
    emails = await _load_emails(ctx, list(rows))
    groups = await _load_groups(ctx, list(rows))
    return [ScimAccount(rows[key], emails[key], groups[key]) for key in user_ids if key in rows]


async def require_account(ctx: Context, user_id: int | None) -> ScimAccount:
    """Load an account. Raises NotFoundException if it is not in a domain of the API key."""
    accounts = await load_accounts(ctx, [] if user_id is None else [user_id])
    if not accounts:
        raise NotFoundException(detail="There is no account with this ID.")
    return accounts[0]


async def _load_emails(
    ctx: Context, user_ids: Sequence[int]
) -> defaultdict[int, list[AccountEmail]]:
    """Load the main addresses and the addresses that SCIM has set, by user id."""
    emails = defaultdict[int, list[AccountEmail]](list)
    if not user_ids:
        return emails
    statement = (
        select(
            *select_columns(Address, ("id", "user_id", "display_address", "domain_id", "main")),
            *select_columns(ScimAddress, ("address_id", "type", "is_primary", "created_by_scim")),
        )
        .outerjoin(ScimAddress, col(ScimAddress.address_id) == col(Address.id))
        .where(col(Address.user_id).in_(user_ids), without_index(is_shown_address_sql(ctx)))
        .order_by(col(Address.main).desc(), col(Address.id))
    )
    for row in await ctx.read(statement):
        emails[row.user_id].append(
            AccountEmail(
                row.id,
                row.display_address,
                row.domain_id,
                row.main,
                row.address_id is not None,
                row.type,
                row.is_primary,
                bool(row.created_by_scim),
            )
        )
    return emails


async def _load_groups(ctx: Context, user_ids: Sequence[int]) -> defaultdict[int, list[ColumnRow]]:
    """Load the groups of users that the API key sees, by user id."""
    groups = defaultdict[int, list[ColumnRow]](list)
    if not user_ids:
        return groups
    statement = (
        select(col(ScimGroupMember.user_id), col(ScimGroup.id), col(ScimGroup.display_name))
        .join(ScimGroup, col(ScimGroup.id) == col(ScimGroupMember.group_id))
        .where(col(ScimGroupMember.user_id).in_(user_ids), without_index(is_tenant_group_sql(ctx)))
        .order_by(col(ScimGroup.id))
    )
    for row in await ctx.read(statement):
        groups[row.user_id].append(row)
    return groups


def account_resource(account: ScimAccount) -> AccountResource:
    """Return the attributes of an account that clients can change, and its role."""
    row = account.row
    name_parts = {
        name.removesuffix("_name") if name == "formatted_name" else name: getattr(row, name)
        for name in SCIM_NAME_COLUMNS
    }
    return AccountResource(
        external_id=row.external_id,
        user_name=row.username,
        name=AccountNameAttribute(**name_parts) if any(name_parts.values()) else None,
        display_name=row.name or None,
        emails=[_email_attribute(email, account.emails) for email in account.emails],
        active=row.active and not row.suspended,
        preferred_language=row.language,
        roles=[AccountRoleAttribute(value=row.role)],
    )


def _email_attribute(
    email: AccountEmail, all_emails: Sequence[AccountEmail]
) -> AccountEmailAttribute:
    """Return an address as a SCIM email.

    `primary` is true for the main address, but false if it is the only one and a client has set
    false. For another address it is None, or false if a client has set that.
    """
    if email.is_main:
        is_primary: bool | None = email.is_primary is not False or len(all_emails) > 1
    else:
        is_primary = False if email.is_primary is False else None
    email_type = email.type or (DEFAULT_MAIN_TYPE if email.is_main else None)
    return AccountEmailAttribute(
        value=email.address,
        type=None if email_type is None else AccountEmailType(email_type),
        primary=is_primary,
    )


def account_version(account: ScimAccount) -> str:
    """Return the version of an account: a digest of its attributes apart from groups."""
    return resource_version(account.row, account_resource(account))


def resource_version(row: ColumnRow, resource: AccountResource) -> str:
    """Return the version of an account from its row and its attributes apart from groups."""
    text = resource.model_dump_json()
    return hashlib.sha256(f"{row.updated_at} {text}".encode()).hexdigest()[:24]
