"""Queries of resources."""

import strawberry
from strawberry import UNSET

from graph.resources.references import ResourceRef, resolve_resource_id_or_raise
from graph.resources.types import Resource
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.references import DomainRef, domain_selector_from_ref, value_or_none
from graph.types.row_mapping import selected_columns
from models.errors import NotFound
from models.resources.tables import ResourceKind
from models.store.keyset_pages import ordering_name
from models.users.roles import Scope
from resolvers.resources import loaders
from resolvers.resources.loaders import ResourceConditions, ResourceOrder


@strawberry.input(description="Conditions on resources. All must hold.")
class ResourceFilter(ConditionsInput):
    domain: DomainRef | None = attribute_field(
        "Returns only resources of this domain. A domain that the caller can't see, or an unknown "
        "one, selects none.",
        default=UNSET,
    )
    query: str | None = attribute_field(
        "Returns only resources with this text in the name or in the local part of the address "
        "(case and accents are ignored). At most 1,000 characters.",
        default=UNSET,
    )
    kind: ResourceKind | None = attribute_field(
        "Returns only resources of this kind.", default=UNSET
    )
    active: bool | None = attribute_field(
        "True returns only active resources, false only the others.", default=UNSET
    )

    def to_conditions(self) -> ResourceConditions:
        """Convert the filter to conditions of the resolvers."""
        return ResourceConditions(
            domain_selector_from_ref(self.domain, path="filter") if self.domain else None,
            self.query or None,
            value_or_none(self.kind),
            value_or_none(self.active),
        )


@strawberry.type
class ResourceQuery:
    @query(
        "Returns a resource (a room, thing or group that can be booked) by ID or address, active "
        "or not. Users see the resources of the domain of their account, and of the domains of "
        "their addresses. A DOMAIN_ADMIN also sees those of administered domains. An ADMIN sees "
        "all. Null if the resource does not exist or the caller can't see it.",
        scope=Scope.READ,
        cost=3,
    )
    async def resource(self, info: Info, by: ResourceRef) -> Resource | None:
        try:
            key = await resolve_resource_id_or_raise(info, by, "by")
        except NotFound:
            return None
        row = await info.context.load(loaders.load_visible_resources_by_id, key)
        return Resource.from_row_or_none(row)

    @query(
        "Returns the resources: rooms, things and groups that can be booked, active or not. Users "
        "see the resources in the domains of their account and addresses. A DOMAIN_ADMIN also "
        "sees those of administered domains, an ADMIN all.",
        scope=Scope.READ,
    )
    async def resources(
        self,
        info: Info,
        filter: ResourceFilter | None = UNSET,
        order_by: ResourceOrder = ResourceOrder.NAME_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Resource]:
        conditions = filter.to_conditions() if filter else ResourceConditions()
        ordering = ordering_name(
            f"resources-{order_by}", None if conditions == ResourceConditions() else conditions
        )
        list_order = loaders.LIST_ORDERS[order_by]
        requested_page = page_request(ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Resource,
            await loaders.read_visible_resource_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, Resource),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, ordering),
            lambda: loaders.count_visible_resources(info.context, conditions),
        )
