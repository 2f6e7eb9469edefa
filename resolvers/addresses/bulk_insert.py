"""Store many validated addresses in an open transaction.

Addresses that only add a row are stored together. The number of their statements depends on the
number of their domains, not of the addresses. Other addresses, such as the first one of a user or
of a new domain, are stored one by one.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import Conflict, Forbidden, NotFound, RequestError
from models.events.event_types import EventType
from models.store.columns import ColumnRow
from resolvers.addresses.events import AddressChangeDetails, journal_address_changes
from resolvers.addresses.mutations import (
    ADDRESS_TAKEN_TEXT,
    PreparedAddress,
    audit_log_entry_of_created_address,
    insert_address,
)
from resolvers.addresses.targets import load_alias_names_by_domain, refuse_self_forward
from resolvers.addresses.validation import ALL_DOMAINS_SIGN
from resolvers.admin import audit_log
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.users.selection import require_managed_users

INPUT_PATH = "addresses"


async def insert_addresses_and_return_errors(
    ctx: Context, prepared: Mapping[int, PreparedAddress], *, mutation: str
) -> dict[int, list[RequestError]]:
    """Store the addresses that can be stored; return the errors of the others, by the same keys.

    Must run in a transaction. An address sees the ones before it. The audit log has one entry for
    each, with the name of the `mutation`.
    """
    errors, together = dict[int, list[RequestError]](), dict[int, PreparedAddress]()
    known = await _load_known_owners_and_domains(ctx, prepared.values())
    for index, item in prepared.items():
        if _only_adds_a_row(ctx, item, known):
            together[index] = item
            continue
        errors |= await _insert_together(ctx, together, mutation)
        errors |= await _insert_alone(ctx, index, item, mutation)
        together = {}
        known = await _load_known_owners_and_domains(ctx, prepared.values())
    return errors | await _insert_together(ctx, together, mutation)


@dataclass(frozen=True, slots=True)
class _KnownOwnersAndDomains:
    """The users with a main address, and the names of domains, that exist now."""

    ids_of_users_with_main_address: Collection[int]
    domain_names: Collection[str]


async def _load_known_owners_and_domains(
    ctx: Context, prepared: Iterable[PreparedAddress]
) -> _KnownOwnersAndDomains:
    """Load which of the named users have a main address, and which of the named domains exist."""
    prepared = list(prepared)
    user_ids = {item.address.user_id for item in prepared} - {None}
    domain_names = {item.domain_name for item in prepared}
    users = select(col(Address.user_id)).where(
        col(Address.user_id).in_(user_ids), col(Address.main)
    )
    domains = select(col(Domain.name)).where(col(Domain.name).in_(domain_names))
    return _KnownOwnersAndDomains(
        {row.user_id for row in await ctx.read(users)} if user_ids else set(),
        {row.name for row in await ctx.read(domains)} if domain_names else set(),
    )


def _only_adds_a_row(ctx: Context, item: PreparedAddress, known: _KnownOwnersAndDomains) -> bool:
    """True if the address creates no domain, and changes neither its user nor the used quota."""
    address = item.address
    if item.domain_name == ALL_DOMAINS_SIGN or address.id in item.autoreplies.new_rows:
        return False
    if item.domain_name not in known.domain_names and domain_loaders.can_create_domain_for_address(
        ctx
    ):
        return False
    if address.user_id is None:
        return True
    has_metadata = bool(address.public_metadata or address.private_metadata)
    has_main_address = address.user_id in known.ids_of_users_with_main_address
    return has_main_address and not (item.is_main or has_metadata)


async def _insert_alone(
    ctx: Context, index: int, item: PreparedAddress, mutation: str
) -> dict[int, list[RequestError]]:
    """Store an address in a savepoint; return its errors."""
    errors, warning_count = dict[int, list[RequestError]](), len(ctx.warnings)
    try:
        await insert_address(ctx, item, mutation)
    except RequestError as refusal:
        errors[index] = refusal.all_errors
        ctx.clear_loaded()  # rows of the savepoint, which was rolled back
        del ctx.warnings[warning_count:]  # the domain that they are about is not created
    for warning in ctx.warnings[warning_count:]:
        warning.path[:0] = [INPUT_PATH, str(index)]
    return errors


async def _insert_together(
    ctx: Context, items: Mapping[int, PreparedAddress], mutation: str
) -> dict[int, list[RequestError]]:
    """Store addresses that only add a row, in one savepoint; return the errors by index.

    Addresses without an error are stored. If another writer has stored one of them at the same
    time, each address is stored in a savepoint of its own.
    """
    if not items:
        return {}
    try:
        async with ctx.write_session() as session:
            return await _insert_rows_and_return_errors(ctx, session, items, mutation)
    except IntegrityError:  # another writer inserted one of them: it gets its own error
        errors = dict[int, list[RequestError]]()
        for index, item in items.items():
            errors |= await _insert_alone(ctx, index, item, mutation)
        return errors


async def _insert_rows_and_return_errors(
    ctx: Context, session: AsyncSession, items: Mapping[int, PreparedAddress], mutation: str
) -> dict[int, list[RequestError]]:
    users = await _load_managed_users_or_errors(
        ctx, {item.address.user_id for item in items.values() if item.address.user_id}
    )
    domains = await _lock_domains_or_find_errors(
        ctx, session, {item.domain_name for item in items.values()}
    )
    found_domains = [domain for domain in domains.values() if isinstance(domain, Domain)]
    domain_ids = [domain.id for domain in found_domains]
    alias_names = await load_alias_names_by_domain(ctx, domain_ids)
    stored_addresses = await _load_stored_addresses(ctx, domain_ids, items.values())
    errors, stored = dict[int, list[RequestError]](), list[PreparedAddress]()
    for index, item in items.items():
        address = item.address
        user, domain = users.get(address.user_id or 0), domains[item.domain_name]
        try:
            if isinstance(user, RequestError):
                raise user
            if isinstance(domain, RequestError):
                raise domain
            domain_loaders.require_address_room(domain, path="address")
            address.domain_id = domain.id
            refuse_self_forward(address, alias_names, ["forwardTo"])
            if (domain.id, address.local) in stored_addresses:
                raise Conflict(ADDRESS_TAKEN_TEXT, path=["address"])
        except RequestError as refusal:
            errors[index] = refusal.all_errors
        else:
            stored_addresses.add((domain.id, address.local))
            domain.address_count += 1
            stored.append(item)
    session.add_all([*found_domains, *(item.address for item in stored)])
    await session.flush()
    await journal_address_changes(
        ctx,
        session,
        [item.address for item in stored],
        AddressChangeDetails(EventType.ADDRESS_CREATED),
    )
    usernames = {
        key: None if isinstance(row, RequestError) else row.username for key, row in users.items()
    }
    entries = [
        audit_log_entry_of_created_address(item, usernames.get(item.address.user_id or 0), mutation)
        for item in stored
    ]
    await audit_log.insert_audit_log_entries(ctx, session, *entries)
    return errors


async def _load_managed_users_or_errors(
    ctx: Context, user_ids: Iterable[int]
) -> dict[int, ColumnRow | RequestError]:
    """Return each user that the viewer can change, or why it can't, by id."""
    users, remaining_ids = dict[int, ColumnRow | RequestError](), sorted(user_ids)
    while remaining_ids:
        try:
            rows = await require_managed_users(ctx, remaining_ids, path="user")
        except (NotFound, Forbidden) as refusal:
            user_id = remaining_ids.pop(refusal.index or 0)
            refusal.index = None  # an address has one user
            users[user_id] = refusal
        else:
            return users | {row.id: row for row in rows}
    return users


async def _lock_domains_or_find_errors(
    ctx: Context, session: AsyncSession, names: Iterable[str]
) -> dict[str, Domain | RequestError]:
    """Return each locked domain, or why it can't have another address, by name."""
    domains = dict[str, Domain | RequestError]()
    for name in sorted(names):
        try:
            domains[name] = await domain_loaders.lock_or_create_domain_for_address(
                ctx, session, name, path="address"
            )
        except RequestError as refusal:
            domains[name] = refusal
    return domains


async def _load_stored_addresses(
    ctx: Context, domain_ids: Sequence[int], items: Iterable[PreparedAddress]
) -> set[tuple[int, str]]:
    """Return the domain id and the local part of stored addresses with these local parts."""
    if not domain_ids:
        return set()
    statement = select(col(Address.domain_id), col(Address.local)).where(
        col(Address.domain_id).in_(domain_ids),
        col(Address.local).in_({item.address.local for item in items}),
    )
    return {(row.domain_id, row.local) for row in await ctx.read(statement)}
