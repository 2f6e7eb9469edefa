"""Temporary addresses, which users create for themselves with a random local part."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from mail.addresses.address_syntax import normalize_and_validate_domain
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import Conflict, ErrorCollector, InvalidInput, LimitReached, NotFound
from models.events.event_types import EventType
from models.quantities import describe_duration
from models.store.columns import ColumnRow, select_columns
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_full_scope_for_other_users, require_user_id
from resolvers.addresses import main_address
from resolvers.addresses.events import AddressChangeDetails, journal_address_changes
from resolvers.addresses.mutations import ADDRESS_TAKEN_TEXT, require_address_free
from resolvers.addresses.validation import MAX_COMMENT_LENGTH
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.sql_text import validated_trimmed_text
from resolvers.users.selection import require_managed_user

RANDOM_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 characters that are hard to confuse
RANDOM_LENGTH = 12  # characters, which are 60 bits
MAX_VALIDITY = timedelta(days=3660)


@dataclass(frozen=True, slots=True)
class NewTemporaryAddress:
    """A temporary address to create."""

    user_id: int | None = None  # None: the viewer's
    domain: DomainIdOrName | None = None  # None: that of the main address
    validity: timedelta | None = None  # None: until it is switched off
    comment: str | None = None
    for_site: str | None = None


async def create_temporary_address(ctx: Context, new_address: NewTemporaryAddress) -> Address:
    """Create an address with a random local part that delivers to the user.

    Raises InvalidInput, NotFound if the user has no address in the domain, and LimitReached if
    the user or the domain has no room for another address.
    """
    comment, site_domain = _validated_comment_and_site_domain(new_address)
    user_id = require_user_id(ctx) if new_address.user_id is None else new_address.user_id
    require_full_scope_for_other_users(ctx, [user_id])
    user = await require_managed_user(ctx, user_id)
    domain_name_row = await _require_domain_of_user(ctx, user_id, new_address.domain)
    now = ctx.environment.now()
    address = Address(
        id=ctx.environment.new_id(),
        local=_random_local_part(ctx),
        domain_id=domain_name_row.id,
        display_address="",
        user_id=user.id,
        send_as=True,
        masked=True,
        expires_at=now + new_address.validity if new_address.validity else None,
        public_comment=comment,
        for_site=site_domain,
        created_at=now,
        updated_at=now,
    )
    address.display_address = f"{address.local}@{domain_name_row.name}"
    try:
        async with ctx.write_session(user.id, domain_name_row.id) as session:
            await _require_below_temporary_address_limit(ctx, user.id)
            domain = await domain_loaders.lock_domain_with_address_room(
                session, domain_name_row.id, domain_name_row.name, path="domain"
            )
            await require_address_free(ctx, address.local, domain.id, ["domain"])
            domain.address_count += 1
            session.add_all([domain, address])
            await session.flush()
            await journal_address_changes(
                ctx, session, [address], AddressChangeDetails(EventType.ADDRESS_CREATED)
            )
            if user.id != ctx.viewer.user_id:
                values_after = {"address": address.display_address, "user": user.username}
                entry = NewAuditLogEntry(
                    "temporaryAddressCreate", "Address", address.id, domain.id, None, values_after
                )
                await audit_log.insert_audit_log_entries(ctx, session, entry)
    except IntegrityError as clash:
        raise Conflict(ADDRESS_TAKEN_TEXT, path=["domain"]) from clash
    return address


def _validated_comment_and_site_domain(
    new_address: NewTemporaryAddress,
) -> tuple[str | None, str | None]:
    """Return the comment and the site domain as stored.

    Raises InvalidInput with all problems of the input.
    """
    problems, comment, site_domain = ErrorCollector(), None, None
    with problems.collecting():
        comment = validated_trimmed_text(
            new_address.comment, max_length=MAX_COMMENT_LENGTH, path=["comment"]
        )
    with problems.collecting():
        site_domain = (
            normalize_and_validate_domain(new_address.for_site, path="forSite")
            if new_address.for_site
            else None
        )
    with problems.collecting():
        if (
            new_address.validity is not None
            and not timedelta(0) < new_address.validity <= MAX_VALIDITY
        ):
            longest = describe_duration(MAX_VALIDITY)
            message = f"The validity must be longer than PT0S and at most {longest}."
            raise InvalidInput(message, constraint=ValidationConstraint.RANGE, path=["validity"])
    problems.raise_collected()
    return comment, site_domain


def _random_local_part(ctx: Context) -> str:
    return "".join(
        RANDOM_ALPHABET[byte % len(RANDOM_ALPHABET)]
        for byte in ctx.environment.random_bytes(RANDOM_LENGTH)
    )


async def _require_domain_of_user(
    ctx: Context, user_id: int, domain: DomainIdOrName | None
) -> ColumnRow:
    """Return id and name of the domain, in which the user must have an address already.

    Without a reference it is the domain of the main address. Raises NotFound or InvalidInput.
    """
    if domain is None:
        main_row = await main_address.find_main_address(ctx, user_id)
        if main_row is None:
            message = "The domain is required, since the user has no main address."
            raise InvalidInput(message, constraint=ValidationConstraint.REQUIRED, path=["domain"])
        is_domain = col(Domain.id) == main_row.domain_id
    else:
        is_domain = domain_loaders.is_referenced_domain(domain)
    user_domains = select(col(Address.domain_id)).where(col(Address.user_id) == user_id)
    statement = select(*select_columns(Domain, {"id", "name"})).where(
        is_domain, col(Domain.id).in_(user_domains)
    )
    row = next(iter(await ctx.read(statement)), None)
    if row is None:
        raise NotFound(domain_loaders.reference_text(domain), path=["domain"])
    return row


async def _require_below_temporary_address_limit(ctx: Context, user_id: int) -> None:
    """Raise LimitReached if the user has the highest number of temporary addresses.

    The transaction must hold the lock on the user's stream.
    """
    limit = ctx.environment.options.addresses_max_temporary_per_user
    statement = select(func.count().label("many")).where(
        col(Address.user_id) == user_id, col(Address.masked)
    )
    ((count,),) = await ctx.read(statement)
    if count >= limit:
        message = f"A user has at most {limit:,} temporary addresses."
        raise LimitReached(message, limit=limit, used=count, path=["user"])
