"""The addresses of a SCIM account: the primary email is the main address of the user.

SCIM shows and changes the main address and the addresses that it has set. It does not change
others, such as temporary addresses and aliases that an administrator created. A former main address
stays an address of the user, so that its mail still arrives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scim2_models import InvalidValueException
from sqlalchemy import delete, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import (
    NormalizedAddress,
    normalize_and_validate_address,
    normalized_address,
)
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain
from models.errors import InvalidInput
from models.scim import MAX_TYPE_LENGTH, ScimAddress
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.addresses.loaders import AddressIdOrText
from resolvers.addresses.mutations import NewAddress, create_address, delete_addresses
from resolvers.addresses.update import AddressPatchValues, update_addresses
from resolvers.context import Context
from resolvers.scim.accounts import DEFAULT_MAIN_TYPE, ScimAccount
from resolvers.scim.resources import AccountEmailAttribute
from resolvers.sql_text import validated_trimmed_text

MAX_EMAILS = 100  # of one account
EMAILS_PATH = ("emails",)


@dataclass(frozen=True, slots=True)
class WantedEmail:
    """A wanted address of an account."""

    address: str
    normalized: NormalizedAddress
    type: str | None
    is_primary: bool | None  # as the client wrote it

    @property
    def has_default_properties(self) -> bool:
        """True if the properties are those of a main address without a row in the database."""
        return self.is_primary is not False and self.type in (None, DEFAULT_MAIN_TYPE)


@dataclass(frozen=True, slots=True)
class WantedEmails:
    """The wanted addresses of an account, and the ids of their domains, by name."""

    main: WantedEmail
    others: Sequence[WantedEmail]
    domain_ids: Mapping[str, int]

    @property
    def is_plain_main_address(self) -> bool:
        """True if there is only a main address, and its properties need no row in the database."""
        return not self.others and self.main.has_default_properties

    @property
    def all_emails(self) -> Sequence[WantedEmail]:
        """The main address and the others."""
        return [self.main, *self.others]


async def validated_wanted_emails(
    ctx: Context,
    emails: Sequence[AccountEmailAttribute] | None,
    present_main: str | None = None,
) -> WantedEmails:
    """Validate the emails of a request and return the wanted addresses of the account.

    The main address is the one marked as primary, else the present one, else the first of the type
    work, else the first. Other addresses outside of the domains of the API key are left out: the
    platform can't receive their mail. Raises InvalidInput, or InvalidValueException for two primary
    addresses.
    """
    if not emails:
        raise _invalid_emails("An email address is required.", ValidationConstraint.REQUIRED)
    if len(emails) > MAX_EMAILS:
        text = f"An account has at most {MAX_EMAILS} email addresses."
        raise _invalid_emails(text, ValidationConstraint.MAX)
    wanted = [_wanted_email(email, index) for index, email in enumerate(emails)]
    domain_ids = await _load_domain_ids(ctx, {email.normalized.domain for email in wanted})
    main = _choose_main_email(wanted, domain_ids, present_main)
    if main.normalized.domain not in domain_ids:
        text = "The primary address must be in a domain of the API key."
        raise _invalid_emails(text, ValidationConstraint.DOMAIN)
    others = {email.normalized: email for email in wanted if email.normalized.domain in domain_ids}
    others.pop(main.normalized, None)
    return WantedEmails(main, list(others.values()), domain_ids)


def _invalid_emails(text: str, constraint: ValidationConstraint) -> InvalidInput:
    return InvalidInput(text, constraint=constraint, path=EMAILS_PATH)


def _wanted_email(email: AccountEmailAttribute, index: int) -> WantedEmail:
    """Return the email with its normalized address. Raises InvalidInput with its index."""
    try:
        address = normalize_and_validate_address(email.value or "")
    except InvalidInput as error:
        error.path, error.index = list(EMAILS_PATH), index
        raise
    email_type = validated_trimmed_text(email.type, max_length=MAX_TYPE_LENGTH, path=EMAILS_PATH)
    return WantedEmail(address, normalized_address(address), email_type, email.primary)


def _choose_main_email(
    wanted: Sequence[WantedEmail], domain_ids: Mapping[str, int], present_main: str | None
) -> WantedEmail:
    """Return the wanted main address."""
    primary = [email for email in wanted if email.is_primary]
    if len({email.normalized for email in primary}) > 1:
        raise InvalidValueException(detail="emails: only one address can be primary.")
    if primary:
        return primary[0]
    usable = [email for email in wanted if email.normalized.domain in domain_ids] or wanted
    present = normalized_address(present_main) if present_main else None
    for email in usable:
        if email.normalized == present:
            return email
    return next((email for email in usable if email.type == "work"), usable[0])


async def _load_domain_ids(ctx: Context, names: set[str]) -> dict[str, int]:
    """Load the ids of the domains of the API key with these names."""
    statement = select(col(Domain.id), col(Domain.name)).where(
        col(Domain.name).in_(names), col(Domain.id).in_(sorted(ctx.viewer.administered_domains))
    )
    return {row.name: row.id for row in await ctx.read(statement)}


async def sync_addresses_with_wanted_emails(
    ctx: Context,
    session: AsyncSession,
    user_id: int,
    account: ScimAccount | None,
    wanted: WantedEmails,
) -> None:
    """Create, delete and select addresses so that the account has the wanted ones.

    Must be called in the transaction that locks the user. `account` is the state before; None for
    a new user, which has its main address. Raises Conflict if another user has an address.
    """
    existing = await _load_existing_addresses(ctx, user_id, wanted)
    shown = {email.address_id: email for email in account.emails} if account else {}
    kept_ids = set[int]()
    connection = await session.connection()
    for email in wanted.all_emails:
        is_main, row = email is wanted.main, existing.get(email.normalized)
        is_created = False
        if row is None:
            new_address = NewAddress(email.address, user_id=user_id, main=is_main)
            address_id, is_created = (await create_address(ctx, new_address)).id, not is_main
        else:
            address_id = row.id
            if is_main and not row.main:
                refs = [AddressIdOrText(id=address_id)]
                await update_addresses(ctx, refs, AddressPatchValues(main=True))
        kept_ids.add(address_id)
        await _store_scim_address(connection, user_id, address_id, email, is_created=is_created)
    dropped = [email for key, email in shown.items() if key not in kept_ids]
    forgotten_ids = [email.address_id for email in dropped if email.has_scim_row]
    if forgotten_ids:
        await connection.execute(
            delete(ScimAddress).where(col(ScimAddress.address_id).in_(forgotten_ids))
        )
    refs = [
        AddressIdOrText(id=email.address_id)
        for email in dropped
        if email.created_by_scim and not email.is_main
    ]
    if refs:
        await delete_addresses(ctx, refs)


async def _load_existing_addresses(
    ctx: Context, user_id: int, wanted: WantedEmails
) -> dict[NormalizedAddress, ColumnRow]:
    """Load the wanted addresses that the user has, by normalized form."""
    names = {domain_id: name for name, domain_id in wanted.domain_ids.items()}
    statement = select(
        col(Address.id), col(Address.local), col(Address.domain_id), col(Address.main)
    ).where(
        col(Address.user_id) == user_id,
        col(Address.kind) == AddressKind.MAILBOX,
        col(Address.domain_id).in_(names),
        col(Address.local).in_([email.normalized.local_part for email in wanted.all_emails]),
    )
    return {
        NormalizedAddress(row.local, names[row.domain_id]): row for row in await ctx.read(statement)
    }


async def _store_scim_address(
    connection: Any, user_id: int, address_id: int, email: WantedEmail, *, is_created: bool
) -> None:
    """Store type and primary flag of an address. An existing row stays deletable or not."""
    values = {"type": email.type, "is_primary": email.is_primary}
    statement = update(ScimAddress).where(col(ScimAddress.address_id) == address_id)
    if not (await connection.execute(statement.values(**values))).rowcount:
        await connection.execute(
            insert(ScimAddress).values(
                address_id=address_id, user_id=user_id, created_by_scim=is_created, **values
            )
        )
