"""GraphQL types of resources and their bookings."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.domains.types import Domain
from graph.messages.mime_parts import MailAddress
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField, View
from graph.types.references import value_or_none
from graph.types.row_mapping import NodeView, global_id_field, link
from graph.types.scalars import EmailAddress
from models.resources.tables import BookingPolicy, ResourceKind
from models.store.keyset_pages import ordering_name
from resolvers.domains import loaders as domain_loaders
from resolvers.resources import bookings, loaders
from resolvers.resources.bookings import BookingConditions, BookingOrder, BookingPageKey


@strawberry.type(description="Time for which a resource is booked: one occurrence of an event.")
class Booking(View):
    starts_at: datetime = attribute_field("Time when the booking of the resource starts.")
    ends_at: datetime = attribute_field("Time when the booking of the resource ends.")
    uid: str | None = attribute_field(
        "UID of the event (RFC 5545), the same for all its occurrences. Null unless the caller "
        "organizes the event or administers the domain of the resource."
    )
    summary: str | None = attribute_field(
        "Title of the booked event, cut to 1,000 characters. Null if it has none, or unless the "
        "caller organizes the event or administers the domain of the resource."
    )

    @field(
        "Organizer of the booked event. Null unless the caller organizes the event or administers "
        "the domain of the resource.",
        "organizer",
        "organizer_name",
    )
    async def organizer(self) -> MailAddress | None:
        row = self.row
        return MailAddress.from_row((row.organizer_name, row.organizer)) if row.organizer else None


@strawberry.input(description="Conditions on bookings. All must hold.")
class BookingFilter(ConditionsInput):
    ends_after: datetime | None = attribute_field(
        "Returns only bookings that end after this time.", default=UNSET
    )
    starts_before: datetime | None = attribute_field(
        "Returns only bookings that start before this time.", default=UNSET
    )

    def to_conditions(self) -> BookingConditions:
        """Convert the filter to conditions of the resolvers."""
        return BookingConditions(value_or_none(self.ends_after), value_or_none(self.starts_before))


@strawberry.type(
    description=(
        "Room, thing or group with an address. Invitations to the address (iTIP, RFC 5546) are "
        "accepted or declined by the booking policy, and the organizer gets a reply. Other mail, "
        "and invitations that are not authenticated as from their organizer, are refused."
    )
)
class Resource(NodeView):
    name: str = attribute_field("Display name of the resource.")
    local_part: str = attribute_field("Part of the address of the resource before the `@`.")
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain of the address of the resource. Null if the caller can't see it.",
    )
    kind: ResourceKind = attribute_field(
        "Kind of the resource. Replies show it as the calendar user type (CUTYPE)."
    )
    booking_policy: BookingPolicy = attribute_field(
        "Rule that decides which invitations to the resource are accepted."
    )
    booking_limit: int | None = attribute_field(
        "Highest number of bookings of the resource at the same time. Null unless the policy is "
        "LIMITED."
    )
    active: bool = attribute_field(
        "False: the address of the resource refuses mail. Bookings are kept."
    )
    created_at: datetime = attribute_field("Time when the resource was created.")
    updated_at: datetime | None = attribute_field(
        "Time when the resource was last changed or created. A booking does not change it."
    )

    load_batch = staticmethod(loaders.load_visible_resources_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Resource"),
        "local_part": DerivedField(("local",), lambda local: local),
    }

    @field(
        (
            "Address of the resource, to which invitations are sent. It was made from the first "
            "name, and changes only if the domain is renamed."
        ),
        "address_id",
    )
    async def address(self, info: Info) -> EmailAddress:
        text = await info.context.load(loaders.load_texts_of_addresses, self.row.address_id)
        return EmailAddress(text)

    @field(
        "Accepted bookings of the resource, also past ones. Bookings that ended more than 400 "
        "days ago are deleted. Empty if the policy is ALWAYS_FREE. Everyone who sees the resource "
        "sees the times, but not all details.",
        "id",
    )
    async def bookings(
        self,
        info: Info,
        filter: BookingFilter | None = UNSET,
        order_by: BookingOrder = BookingOrder.STARTS_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Booking]:
        conditions = filter.to_conditions() if filter else BookingConditions()
        ordering = ordering_name(
            f"bookings-{order_by}", None if conditions == BookingConditions() else conditions
        )
        order = bookings.LIST_ORDERS[order_by]
        requested_page = page_request(ordering, first, after, last, before)
        key = BookingPageKey(self.row.id, conditions, requested_page, order)
        return await connection_of_page(
            info,
            Booking,
            await info.context.load(bookings.load_visible_booking_pages, key),
            lambda row: order.cursor_of_row(row, ordering),
            lambda: info.context.load(bookings.count_visible_bookings, key),
        )
