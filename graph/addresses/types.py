"""GraphQL types and queries of addresses."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.autoreply.types import Autoreply
from graph.domains.types import Domain
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField, View, return_unchanged
from graph.types.references import (
    AddressRef,
    DomainRef,
    UserRef,
    address_selector_from_ref,
    domain_selector_from_ref,
    load_user_or_viewer,
    optional_tuple,
    value_or_none,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.users.limits import Usage
from mail.addresses.address_syntax import normalized_address
from models.addresses.tables import AddressKind
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses.loaders import AddressConditions, AddressOrder, AddressPageKey
from resolvers.autoreply import autoreplies
from resolvers.domains import loaders as domain_loaders
from resolvers.users import loaders as user_loaders
from resolvers.users.quota import limits as quota_limits

if TYPE_CHECKING:
    from graph.users.types import User

DOMAIN_ADMIN_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN}


@strawberry.type(description="Limits of an address with what is used of them.")
class AddressLimits(View):
    @field("Messages forwarded in 24 hours. A message counts once for each target.")
    async def forwards_per_day(self, info: Info) -> Usage:
        return Usage.from_window(
            quota_limits.forward_usage_of_address(info.context.environment, self.row)
        )


@strawberry.type(description="What accepts mail.")
class Address(NodeView):
    address: str = attribute_field("Unicode form, may hold *.")
    local_part: str = attribute_field("Left of @.")
    kind: AddressKind = attribute_field("What happens to its mail.")
    name: str | None = attribute_field("Identity name.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Owner of a MAILBOX address.",
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain record; null = holds in all domains.",
    )
    forward_to: list[str] = attribute_field(
        "FORWARD: addresses, smtp:// relays, http(s):// URLs. The password of a relay is ***."
    )
    main: bool = attribute_field("Default of its user.")
    active: bool = attribute_field("False = refuses mail, and forwards none.")
    send_as: bool = attribute_field("Offered as sender to the users it delivers to.")
    wildcard: bool = attribute_field("Holds *.")
    catch_all: bool = attribute_field("*@domain.")
    expires_at: datetime | None = attribute_field("End of a temporary address.")
    for_site: str | None = attribute_field("Site a masked address was given to.")
    last_received_at: datetime | None = attribute_field("Newest mail to it; noted a little later.")
    tags: list[str] = attribute_field("Labels.")
    public_comment: str | None = attribute_field("Shown to users.")
    metadata: JSON | None = attribute_field("Free data of the application.")
    created_at: datetime = attribute_field("Creation.")
    updated_at: datetime | None = attribute_field("Last change.")

    load_batch = staticmethod(address_loaders.load_visible_addresses_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Address"),
        "address": DerivedField(("shown",), return_unchanged),
        "local_part": DerivedField(("shown",), lambda shown: shown.rpartition("@")[0]),
        "metadata": DerivedField(("public_metadata",), return_unchanged),
        "wildcard": DerivedField(("shown",), lambda shown: "*" in shown),
        "catch_all": DerivedField(("local",), lambda local: local == "*"),
    }

    @field("The address under the own name of its domain, where it was asked for by another name.")
    async def canonical_address(self) -> str | None:
        primary_address: str | None = vars(self).get("primary")
        return primary_address

    @field("Limits with what is used of them.", "forwards_per_day", "forwarded", "forwarded_until")
    async def limits(self) -> AddressLimits:
        return AddressLimits.from_row(self.row)

    @field(
        "FORWARD: what it answers by itself; createdAt is null where none is set. Null for others.",
        "kind",
    )
    async def autoreply(self, info: Info) -> Autoreply | None:
        if self.row.kind is not AddressKind.FORWARD:
            return None
        return Autoreply.from_row_or_none(
            await info.context.load(autoreplies.load_autoreplies_by_address, self.row.id)
        )

    @field("For administrators.", "private_comment", **DOMAIN_ADMIN_GUARD)
    async def private_comment(self) -> str | None:
        text: str | None = self.row.private_comment
        return text

    @field("Free data hidden from the user.", "private_metadata", **DOMAIN_ADMIN_GUARD)
    async def private_metadata(self) -> JSON | None:
        private_metadata: JSON | None = self.row.private_metadata
        return private_metadata


async def load_address_page(info: Info, page_key: AddressPageKey) -> Connection[Address]:
    """Return a page of the addresses of an account, by address."""
    return await connection_of_page(
        info,
        Address,
        await info.context.load(address_loaders.load_address_pages_by_user, page_key),
        lambda row: Cursor(page_key.page_request.ordering, row.local, row.id),
        lambda: info.context.load(address_loaders.count_addresses_by_user, page_key),
    )


@strawberry.input(description="Which addresses; fields are combined with AND.")
class AddressFilter(ConditionsInput):
    query: str | None = attribute_field("Partial match.", default=UNSET)
    forward: str | None = attribute_field("Partial match of a target.", default=UNSET)
    tags: list[str] | None = attribute_field("Any of.", default=UNSET)
    required_tags: list[str] | None = attribute_field("All of.", default=UNSET)
    kinds: list[AddressKind] | None = attribute_field("Only these kinds.", default=UNSET)
    domain: DomainRef | None = attribute_field("Addresses in this domain.", default=UNSET)
    user: UserRef | None = attribute_field("Delivering to this user.", default=UNSET)
    active: bool | None = attribute_field("On or off.", default=UNSET)
    wildcard: bool | None = attribute_field("Only or no wildcards.", default=UNSET)
    temporary: bool | None = attribute_field(
        "Only or no temporary ones: with an end, or made by temporaryAddressCreate.", default=UNSET
    )

    async def resolve_conditions(self, info: Info) -> AddressConditions:
        """Convert the filter to conditions of the resolvers.

        An unknown user selects no address.
        """
        user = await load_user_or_viewer(info, self.user) if self.user else None
        return AddressConditions(
            query=self.query or None,
            forward=self.forward or None,
            tags=optional_tuple(self.tags),
            required_tags=optional_tuple(self.required_tags),
            kinds=optional_tuple(self.kinds),
            domain=domain_selector_from_ref(self.domain, path="filter") if self.domain else None,
            user_id=(user.id if user else 0) if self.user else None,
            active=value_or_none(self.active),
            wildcard=value_or_none(self.wildcard),
            temporary=value_or_none(self.temporary),
        )


@strawberry.type
class AddressQuery:
    @query(
        "One address, as it is written; with allowWildcard the one that takes mail for it.",
        scope=Scope.READ,
    )
    async def address(
        self, info: Info, by: AddressRef, allow_wildcard: bool = False
    ) -> Address | None:
        ref, ctx = address_selector_from_ref(by, path="by"), info.context
        if ref.id is not None:
            return Address.from_row_or_none(
                await ctx.load(address_loaders.load_visible_addresses_by_id, ref.id)
            )
        (row,) = await address_loaders.load_visible_addresses_by_text(ctx, [ref.address])
        if allow_wildcard:
            row = await address_loaders.find_receiving_address(ctx, ref.address)
        found = Address.from_row_or_none(row)
        if (
            found is not None
            and normalized_address(found.address).domain != normalized_address(ref.address).domain
        ):
            vars(found)["primary"] = found.address if "*" not in found.address else None
        return found

    @query(
        "Lists the addresses that the viewer administers.", scope=Scope.READ, **DOMAIN_ADMIN_GUARD
    )
    async def addresses(
        self,
        info: Info,
        filter: AddressFilter | None = UNSET,
        order_by: AddressOrder = AddressOrder.ADDRESS_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Address]:
        conditions = await filter.resolve_conditions(info) if filter else AddressConditions()
        list_ordering = ordering_name(
            f"addresses-{order_by}", None if conditions == AddressConditions() else conditions
        )
        list_order = address_loaders.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Address,
            await address_loaders.read_address_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, Address),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: address_loaders.count_visible_addresses(info.context, conditions),
        )
