"""GraphQL types and queries of addresses."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.addresses.filters import AddressFilter
from graph.autoreply.types import Autoreply
from graph.domains.types import Domain
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, field, query
from graph.types.object_access import ACCOUNTS, DOMAINS
from graph.types.object_views import DerivedField, View, return_unchanged
from graph.types.references import (
    AddressRef,
    address_selector_from_ref,
    require_no_user_condition,
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
from models.store.keyset_pages import ordering_name
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


@strawberry.type(description="Limits of an address and their use.")
class AddressLimits(View):
    @field(
        "Limit of messages that the address forwards in 24 hours, which begin with the first one, "
        "and its use. A message counts once for each target. Only the kind FORWARD forwards mail."
    )
    async def forwards_per_day(self, info: Info) -> Usage:
        return Usage.from_window(
            quota_limits.forward_usage_of_address(info.context.environment, self.row)
        )


@strawberry.type(
    description=(
        "Address that the platform serves. It is the main address or an alias of a user, an "
        "address of another kind, or a pattern of addresses."
    )
)
class Address(NodeView):
    address: str = attribute_field(
        "Address with the domain in Unicode form. A pattern contains `*`."
    )
    local_part: str = attribute_field("Part of the address before the `@`, as it was written.")
    kind: AddressKind = attribute_field(
        "Kind of the address, which decides what happens to its mail."
    )
    name: str | None = attribute_field(
        "Display name for messages sent from the address. Null: there is none."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description=(
            "User that gets the mail of a MAILBOX address. Null: the address has another kind, or "
            "the caller can't see the user."
        ),
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description=(
            "Domain of the address. Null: the address is valid in all domains (`name@*`), or the "
            "caller can't see the domain."
        ),
    )
    forward_to: list[str] = attribute_field(
        "Targets of a FORWARD address: addresses, smtp:// and smtps:// relays, http:// and "
        "https:// URLs. The password of a relay is shown as `***`. Empty for other kinds. At "
        "most 100."
    )
    main: bool = attribute_field("True: this is the main address of its user.")
    active: bool = attribute_field(
        "False: the address was disabled. It refuses mail and forwards none. Expiry does not "
        "change this field."
    )
    send_as: bool = attribute_field(
        "True: the users to whom the address delivers can use it as sender. So can users to whom "
        "its owner gave the share right POST. False: only users whose `allowedSenders` contains "
        "the address can use it."
    )
    wildcard: bool = attribute_field("True: the address is a pattern with `*`.")
    catch_all: bool = attribute_field(
        "True for `*@domain`, which receives mail for all unknown addresses of the domain."
    )
    expires_at: datetime | None = attribute_field(
        "Time when the address expires and refuses mail. The server deletes the address 30 days "
        "later. Null: the address does not expire."
    )
    for_site: str | None = attribute_field(
        "Domain name of the website that got this temporary address. Null: none was given."
    )
    last_received_at: datetime | None = attribute_field(
        "Approximate time of the last stored message to the address. Null: there was "
        "none, as for every kind but MAILBOX."
    )
    tags: list[str] = attribute_field(
        "Tags of the address, for filters, sender rules and selections. At most 100."
    )
    public_comment: str | None = attribute_field(
        "Comment that the user of the address can also read. Null: there is none."
    )
    metadata: JSON | None = attribute_field(
        "JSON object with data of your application, which the user can read. Null: there is none."
    )
    created_at: datetime = attribute_field("Time when the address was created.")
    updated_at: datetime | None = attribute_field("Time of the last change of the address.")

    load_batch = staticmethod(address_loaders.load_visible_addresses_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Address"),
        "address": DerivedField(("display_address",), return_unchanged),
        "local_part": DerivedField(("display_address",), lambda shown: shown.rpartition("@")[0]),
        "metadata": DerivedField(("public_metadata",), return_unchanged),
        "wildcard": DerivedField(("display_address",), lambda shown: "*" in shown),
        "catch_all": DerivedField(("local",), lambda local: local == "*"),
    }

    @field(
        "The same address in the domain itself, if the query `address` named it in an alias "
        "domain. Null otherwise, and for a pattern."
    )
    async def canonical_address(self) -> str | None:
        primary_address: str | None = vars(self).get("primary")
        return primary_address

    @field(
        "Limits of the address and their use.", "forwards_per_day", "forwarded", "forwarded_until"
    )
    async def limits(self) -> AddressLimits:
        return AddressLimits.from_row(self.row)

    @field(
        "Automatic reply of a FORWARD address; `createdAt` is null if none was set. Null for "
        "other kinds.",
        "kind",
    )
    async def autoreply(self, info: Info) -> Autoreply | None:
        if self.row.kind is not AddressKind.FORWARD:
            return None
        return Autoreply.from_row_or_none(
            await info.context.load(
                autoreplies.load_visible_autoreplies_by_forward_address, self.row.id
            )
        )

    @field(
        "Comment for administrators. Null: there is none.", "private_comment", **DOMAIN_ADMIN_GUARD
    )
    async def private_comment(self) -> str | None:
        text: str | None = self.row.private_comment
        return text

    @field(
        "JSON object with data of your application that the user can't read. Null: there is none.",
        "private_metadata",
        **DOMAIN_ADMIN_GUARD,
    )
    async def private_metadata(self) -> JSON | None:
        private_metadata: JSON | None = self.row.private_metadata
        return private_metadata


async def load_address_page_of_user(
    info: Info,
    user_id: int,
    filter: AddressFilter | None,
    order_by: AddressOrder,
    page_arguments: PageArguments,
) -> Connection[Address]:
    """Load a page of the addresses of an account.

    Raises InvalidInput if the filter names a user.
    """
    conditions = await _conditions_of_one_account(info, filter)
    list_ordering = ordering_name(
        f"user-addresses-{order_by}", None if conditions == AddressConditions() else conditions
    )
    page_key = AddressPageKey(
        user_id,
        page_request(list_ordering, *page_arguments),
        address_loaders.LIST_ORDERS[order_by],
        selected_columns(info, Address),
        conditions,
    )
    return await _load_address_page(info, page_key)


async def _conditions_of_one_account(info: Info, filter: AddressFilter | None) -> AddressConditions:
    """Return the conditions of a filter. Raises InvalidInput if the filter names a user."""
    if not filter:
        return AddressConditions()
    require_no_user_condition(filter.user, "addresses")
    return await filter.resolve_conditions_or_match_nothing(info)


async def load_temporary_address_page(
    info: Info,
    user_id: int,
    filter: AddressFilter | None,
    order_by: AddressOrder,
    page_arguments: PageArguments,
) -> Connection[Address]:
    """Load a page of the temporary addresses of an account that have not expired.

    Raises InvalidInput if the filter names a user.
    """
    conditions = await _conditions_of_one_account(info, filter)
    list_ordering = ordering_name(
        f"temporary-addresses-{order_by}",
        None if conditions == AddressConditions() else conditions,
    )
    page_key = AddressPageKey(
        user_id,
        page_request(list_ordering, *page_arguments),
        address_loaders.LIST_ORDERS[order_by],
        selected_columns(info, Address),
        conditions,
        is_temporary=True,
    )
    return await _load_address_page(info, page_key)


async def _load_address_page(info: Info, page_key: AddressPageKey) -> Connection[Address]:
    ordering = page_key.page_request.ordering
    return await connection_of_page(
        info,
        Address,
        await info.context.load(address_loaders.load_visible_address_pages_by_user, page_key),
        lambda row: page_key.order.cursor_of_row(row, ordering),
        lambda: info.context.load(address_loaders.count_visible_addresses_by_user, page_key),
    )


@strawberry.type
class AddressQuery:
    @query(
        "Returns an address by ID or by its text. Case, dots and a subaddress (`+label`) of the "
        "text are ignored, and an alias domain means its domain. Inactive and expired addresses "
        "are returned too. With `allowWildcard`, a text returns the address that would receive "
        "mail for it, such as a pattern. One that is inactive, expired or in an inactive domain "
        "is then not returned. A DOMAIN_ADMIN also sees addresses without a user in administered "
        "domains. Null if there is none or the caller can't see it.",
        scope=Scope.READ,
        access=ACCOUNTS,
        cost=2,
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
            row = await address_loaders.find_visible_receiving_address(ctx, ref.address)
        own_address = Address.from_row_or_none(row)
        if (
            own_address is not None
            and normalized_address(own_address.address).domain
            != normalized_address(ref.address).domain
        ):
            vars(own_address)["primary"] = (
                own_address.address if "*" not in own_address.address else None
            )
        return own_address

    @query(
        "Returns addresses of every kind, also inactive and expired ones. A DOMAIN_ADMIN gets the "
        "addresses in administered domains, the addresses of the users of these domains, and the "
        "caller's own addresses. An ADMIN gets all addresses of the platform.",
        scope=Scope.READ,
        **DOMAIN_ADMIN_GUARD,
        access=DOMAINS,
    )
    async def addresses(
        self,
        info: Info,
        filter: AddressFilter | None = UNSET,
        order_by: AddressOrder = AddressOrder.LOCAL_PART_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Address]:
        conditions = (
            await filter.resolve_conditions_or_match_nothing(info)
            if filter
            else AddressConditions()
        )
        list_ordering = ordering_name(
            f"addresses-{order_by}", None if conditions == AddressConditions() else conditions
        )
        list_order = address_loaders.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Address,
            await address_loaders.read_visible_address_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, Address),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: address_loaders.count_visible_addresses(info.context, conditions),
        )
