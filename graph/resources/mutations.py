"""Mutations that create, change and delete resources."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.resources.references import ResourceRef, resolve_resource_ids_or_raise
from graph.resources.types import Resource
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import LONG_MUTATION_COST, mutation
from graph.types.object_access import DOMAINS
from graph.types.references import DomainRef, domain_selector_from_ref
from models.resources.tables import BookingPolicy, ResourceKind
from models.users.roles import Role, Scope
from resolvers.resources import create, loaders, update
from resolvers.resources.create import NewResource

WRITE_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN, "scope": Scope.FULL}
BOOKING_LIMIT_DESCRIPTION = (
    "Highest number of bookings of the resource at the same time, 1 to 1,000. Required if the "
    "policy becomes LIMITED, not allowed for other policies."
)
PATCH_FIELDS = ("name", "kind", "booking_policy", "booking_limit", "active")


@strawberry.input(description="Input of resourceCreate.")
class ResourceCreateInput(Options):
    name: str = attribute_field(
        "Display name of the resource, 1 to 128 characters. The local part of the address is made "
        "from it: in lower case, in ASCII, with hyphens, at most 48 characters. If it is taken or "
        "reserved, such as `postmaster`, a number is appended."
    )
    domain: DomainRef = attribute_field(
        "Domain that the resource is created in. NOT_FOUND if the caller does not administer it."
    )
    kind: ResourceKind = attribute_field("Room, thing or group of people.")
    booking_policy: BookingPolicy = attribute_field(
        "Rule that decides which invitations to the resource are accepted.",
        default=BookingPolicy.UNLIMITED_SHOW_BUSY,
    )
    booking_limit: int | None = attribute_field(BOOKING_LIMIT_DESCRIPTION, default=UNSET)
    active: bool = attribute_field("False: the address of the resource refuses mail.", default=True)


@strawberry.input(
    description=(
        "New values of resources. An absent field leaves the value. Null is refused, except for "
        "`bookingLimit`. At least one field is required. The address does not change."
    )
)
class ResourcePatch:
    name: strawberry.Maybe[str] = attribute_field(
        "Display name of the resources, 1 to 128 characters."
    )
    kind: strawberry.Maybe[ResourceKind] = attribute_field("Room, thing or group of people.")
    booking_policy: strawberry.Maybe[BookingPolicy] = attribute_field(
        "Rule that decides which invitations to the resources are accepted. Bookings stay as they "
        "are, but are not shown with ALWAYS_FREE."
    )
    booking_limit: strawberry.Maybe[int | None] = attribute_field(
        f"{BOOKING_LIMIT_DESCRIPTION} Null is refused for LIMITED. Another policy clears it. "
        "Bookings beyond it are kept."
    )
    active: strawberry.Maybe[bool] = attribute_field(
        "False: the addresses of the resources refuse mail. Bookings are kept."
    )

    def to_columns(self) -> dict[str, Any]:
        """Return the columns that the patch sets. Absent fields are left out."""
        return {name: change.value for name in PATCH_FIELDS if (change := getattr(self, name))}


@strawberry.input(description="Input of resourceUpdate.")
class ResourceUpdateInput(Options):
    resources: list[ResourceRef] = attribute_field("Resources to change, 1 to 1,000 by default.")
    set: ResourcePatch = attribute_field(
        "New values, the same for all resources. At least one value is required."
    )


@strawberry.input(description="Input of resourceDelete.")
class ResourceDeleteInput(Options):
    resources: list[ResourceRef] = attribute_field("Resources to delete, 1 to 1,000 by default.")


@strawberry.type(description="Payload of resourceCreate.")
class ResourcePayload(MutationPayload):
    resource: Resource | None = attribute_field(
        "Created resource. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of resourceUpdate.")
class ResourcesPayload(MutationPayload):
    resources: list[Resource] = attribute_field(
        "Resources after the change, each once, in the order of the references.",
        default_factory=list,
    )


@strawberry.type
class ResourceMutation:
    @mutation(
        "Creates a room, thing or group that people book by invitations to its address. The "
        "address counts against the limit of the domain: LIMIT_REACHED if the domain can't have "
        "another address. CONFLICT if the address made from the name is taken with each number up "
        "to 1,000. CONFLICT also if another request takes it at the same time.",
        **WRITE_GUARD,
        access=DOMAINS,
    )
    async def resource_create(self, info: Info, input: ResourceCreateInput) -> ResourcePayload:
        new = NewResource(
            input.name,
            domain_selector_from_ref(input.domain, path="domain"),
            input.kind,
            input.booking_policy,
            None if input.booking_limit is UNSET else input.booking_limit,
            input.active,
        )
        (resource,) = await _load_resources(info, [await create.create_resource(info.context, new)])
        return ResourcePayload(resource=resource)

    @mutation(
        "Changes resources (rooms, things or groups that can be booked), all or none. Existing "
        "bookings stay, even beyond a new limit. NOT_FOUND for a resource of a domain that the "
        "caller does not administer. LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
        access=DOMAINS,
        cost=LONG_MUTATION_COST,
    )
    async def resource_update(self, info: Info, input: ResourceUpdateInput) -> ResourcesPayload:
        keys = await resolve_resource_ids_or_raise(info, input.resources)
        keys = await update.update_resources(info.context, keys, input.set.to_columns())
        return ResourcesPayload(resources=await _load_resources(info, keys))

    @mutation(
        "Deletes resources (rooms, things or groups that can be booked) with their addresses and "
        "bookings, all or none. The organizers are not notified. NOT_FOUND for a resource of a "
        "domain that the caller does not administer. LIMIT_REACHED for more than 1,000 references "
        "(by default).",
        **WRITE_GUARD,
        access=DOMAINS,
        cost=LONG_MUTATION_COST,
    )
    async def resource_delete(self, info: Info, input: ResourceDeleteInput) -> DeletePayload:
        keys = await resolve_resource_ids_or_raise(info, input.resources)
        await update.delete_resources(info.context, keys)
        return DeletePayload.of_keys("Resource", keys)


async def _load_resources(info: Info, resource_ids: list[int]) -> list[Resource]:
    """Load resources in the order of the ids."""
    rows = await info.context.load_many(loaders.load_visible_resources_by_id, resource_ids)
    return [Resource.from_row(row) for row in rows if row]
