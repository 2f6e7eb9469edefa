"""Create resources."""

from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError

from models.addresses.tables import Address, AddressKind
from models.errors import Conflict, ErrorCollector, NotFound
from models.events.event_types import EventType
from models.resources.tables import BookingPolicy, Resource, ResourceKind
from models.store.text_folding import fold_text
from resolvers.addresses.events import AddressChangeDetails, journal_address_changes
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.resources.events import journal_resource_changes, logged_resource_values
from resolvers.resources.validation import (
    find_free_local_part_or_raise_conflict,
    validate_booking_limit,
    validate_resource_name,
)


@dataclass(frozen=True, slots=True)
class NewResource:
    """A resource to create. Its address is made from the name."""

    name: str
    domain: DomainIdOrName
    kind: ResourceKind
    booking_policy: BookingPolicy = BookingPolicy.UNLIMITED_SHOW_BUSY
    booking_limit: int | None = None
    active: bool = True


async def create_resource(ctx: Context, new_resource: NewResource) -> int:
    """Create a resource with its address, and return its id.

    Raises InvalidInput with all problems of the input, NotFound if the viewer does not administer
    the domain, LimitReached if the domain has no room for another address, and Conflict if
    no address is free.
    """
    problems, name = ErrorCollector(), ""
    with problems.collecting():
        name = validate_resource_name(new_resource.name, ["name"])
    with problems.collecting():
        validate_booking_limit(
            new_resource.booking_policy, new_resource.booking_limit, ["bookingLimit"]
        )
    problems.raise_collected()
    domain_before = await domain_loaders.find_administered_domain_by_ref(ctx, new_resource.domain)
    if domain_before is None:
        raise NotFound(domain_loaders.reference_text(new_resource.domain), path=["domain"])
    try:
        async with ctx.write_session(domain_before.id) as session:
            domain = await domain_loaders.lock_domain_with_address_room(
                session, domain_before.id, domain_before.name, path="domain"
            )
            local = await find_free_local_part_or_raise_conflict(
                ctx, domain.id, domain.name, name, new_resource.kind
            )
            address, resource = _new_address_and_resource_rows(
                ctx, new_resource, name, (local, domain.name), domain.id
            )
            domain.address_count += 1
            session.add(domain)
            session.add(address)
            await session.flush()
            session.add(resource)
            await session.flush()
            await journal_address_changes(
                ctx, session, [address], AddressChangeDetails(EventType.ADDRESS_CREATED)
            )
            await journal_resource_changes(ctx, session, EventType.RESOURCE_CREATED, [resource])
            values = {"address": address.display_address, **logged_resource_values(resource)}
            entry = NewAuditLogEntry(
                "resourceCreate", "Resource", resource.id, domain.id, None, values
            )
            await audit_log.insert_audit_log_entries(ctx, session, entry)
            resource_id = resource.id
    except IntegrityError as clash:  # another writer inserted the same address first
        raise Conflict("Another request took the address: retry.", path=["name"]) from clash
    return resource_id


def _new_address_and_resource_rows(
    ctx: Context,
    new_resource: NewResource,
    name: str,
    local_and_domain: tuple[str, str],
    domain_id: int,
) -> tuple[Address, Resource]:
    """Return the unsaved rows of the address and the resource."""
    now, local = ctx.environment.now(), local_and_domain[0]
    address = Address(
        id=ctx.environment.new_id(),
        local=local,
        domain_id=domain_id,
        display_address="@".join(local_and_domain),
        kind=AddressKind.RESOURCE,
        active=new_resource.active,
        send_as=False,
        created_at=now,
        updated_at=now,
    )
    resource = Resource(
        id=ctx.environment.new_id(),
        domain_id=domain_id,
        address_id=address.id,
        local=local,
        name=name,
        folded_name=fold_text(name),
        kind=new_resource.kind,
        booking_policy=new_resource.booking_policy,
        booking_limit=new_resource.booking_limit,
        active=new_resource.active,
        created_at=now,
        updated_at=now,
    )
    return address, resource
