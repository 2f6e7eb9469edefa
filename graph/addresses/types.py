"""GraphQL types and queries of addresses."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.autoreply.types import Autoreply
from graph.domains.types import Domain
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import leaf
from graph.types.fields import Info, field, query
from graph.types.input_conditions import Conditions
from graph.types.object_views import Made, View, same
from graph.types.references import AddressRef, UserRef, address_named, items_of, plain, user_of
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.users.limits import Usage
from mail.addresses.address_syntax import normal
from models.addresses.tables import AddressKind
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses.loaders import AddressWhere, OfUser
from resolvers.autoreply import autoreplies
from resolvers.domains import loaders as domain_loaders
from resolvers.users import loaders as user_loaders
from resolvers.users.quota import limits as quota_limits

if TYPE_CHECKING:
    from graph.users.types import User

OURS: dict[str, Any] = {"role": Role.DOMAIN_ADMIN}


@strawberry.type(description="Limits of an address with what is used of them.")
class AddressLimits(View):
    @field("Messages forwarded per 24 h.")
    async def forwards(self, info: Info) -> Usage:
        return Usage.of(quota_limits.forwards(info.context.world, self.row))


@strawberry.type(description="What accepts mail.")
class Address(Shape):
    address: str = leaf("Unicode form, may hold *.")
    local_part: str = leaf("Left of @.")
    kind: AddressKind = leaf("What happens to its mail.")
    name: str | None = leaf("Identity name.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="Owner of a MAILBOX address.",
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.by_ids,
        Domain.maybe,
        description="Domain record; null = holds in all domains.",
    )
    targets: list[str] = leaf(
        "FORWARD: addresses, smtp:// relays, http(s):// URLs. The password of a relay is ***."
    )
    main: bool = leaf("Default of its user.")
    active: bool = leaf("False = refuses mail, and forwards none.")
    send_as: bool = leaf("Offered as sender to the users it delivers to.")
    is_wildcard: bool = leaf("Holds *.")
    is_catch_all: bool = leaf("*@domain.")
    expires_at: datetime | None = leaf("End of a temporary address.")
    for_domain: str | None = leaf("Site a masked address was given to.")
    last_received_at: datetime | None = leaf("Newest mail to it; noted a little later.")
    tags: list[str] = leaf("Labels.")
    public_comment: str | None = leaf("Shown to users.")
    meta_data: JSON | None = leaf("Free data of the application.")
    created_at: datetime = leaf("Creation.")
    updated_at: datetime | None = leaf("Last change.")

    batch = staticmethod(address_loaders.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Address"),
        "address": Made(("shown",), same),
        "local_part": Made(("shown",), lambda shown: shown.rpartition("@")[0]),
        "is_wildcard": Made(("shown",), lambda shown: "*" in shown),
        "is_catch_all": Made(("local",), lambda local: local == "*"),
    }

    @field("The address under the own name of its domain, where it was asked for by another name.")
    async def in_primary_domain(self) -> str | None:
        primary_address: str | None = vars(self).get("primary")
        return primary_address

    @field("Limits with what is used of them.", "forwards_max", "forwarded", "forwarded_until")
    async def limits(self) -> AddressLimits:
        return AddressLimits.of(self.row)

    @field(
        "FORWARD: what it answers by itself; createdAt is null where none is set. Null for others.",
        "kind",
    )
    async def autoreply(self, info: Info) -> Autoreply | None:
        if self.row.kind is not AddressKind.FORWARD:
            return None
        return Autoreply.maybe(await info.context.load(autoreplies.of_addresses, self.row.id))

    @field("For administrators.", "private_comment", **OURS)
    async def private_comment(self) -> str | None:
        text: str | None = self.row.private_comment
        return text

    @field("Free data hidden from the user.", "internal_data", **OURS)
    async def internal_data(self) -> JSON | None:
        internal_data: JSON | None = self.row.internal_data
        return internal_data


async def address_page(info: Info, listing: OfUser) -> Connection[Address]:
    """Return a page of the addresses of an account, by address."""
    return await connected(
        info,
        Address,
        await info.context.load(address_loaders.pages, listing),
        lambda row: Cursor(listing.ask.ordering, row.local, row.id),
        lambda: info.context.load(address_loaders.counts, listing),
    )


@strawberry.input(description="Which addresses; fields are combined with AND.")
class AddressFilter(Conditions):
    query: str | None = leaf("Partial match.", default=UNSET)
    forward: str | None = leaf("Partial match of a target.", default=UNSET)
    tags: list[str] | None = leaf("Any of.", default=UNSET)
    required_tags: list[str] | None = leaf("All of.", default=UNSET)
    kinds: list[AddressKind] | None = leaf("Only these kinds.", default=UNSET)
    domain: str | None = leaf("In this domain, by its own name.", default=UNSET)
    user: UserRef | None = leaf("Delivering to this user.", default=UNSET)
    active: bool | None = leaf("On or off.", default=UNSET)
    wildcard: bool | None = leaf("Only or no wildcards.", default=UNSET)
    temporary: bool | None = leaf(
        "Only or no temporary ones: with an end, or made by addressCreateTemporary.", default=UNSET
    )

    async def where(self, info: Info) -> AddressWhere:
        """Convert the filter to conditions of the resolvers.

        An unknown user selects no address.
        """
        user = await user_of(info, self.user) if self.user else None
        return AddressWhere(
            query=self.query or None,
            forward=self.forward or None,
            tags=items_of(self.tags),
            required_tags=items_of(self.required_tags),
            kinds=items_of(self.kinds),
            domain=self.domain or None,
            user_id=(user.id if user else 0) if self.user else None,
            active=plain(self.active),
            wildcard=plain(self.wildcard),
            temporary=plain(self.temporary),
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
        ref, ctx = address_named(by, path="by"), info.context
        if ref.id is not None:
            return Address.maybe(await ctx.load(address_loaders.by_ids, ref.id))
        (row,) = await address_loaders.named(ctx, [ref.address])
        if allow_wildcard:
            row = await address_loaders.resolved(ctx, ref.address)
        found = Address.maybe(row)
        if found is not None and normal(found.address).domain != normal(ref.address).domain:
            vars(found)["primary"] = found.address if "*" not in found.address else None
        return found

    @query("Listing, by local part.", scope=Scope.READ, **OURS)
    async def addresses(
        self,
        info: Info,
        filter: AddressFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Address]:
        where = await filter.where(info) if filter else AddressWhere()
        list_ordering = ordering("addresses", None if where == AddressWhere() else where)
        requested_page = page_asked(list_ordering, first, after, last, before)
        return await connected(
            info,
            Address,
            await address_loaders.listed(
                info.context, where, requested_page, columns(info, Address)
            ),
            lambda row: Cursor(requested_page.ordering, row.local, row.id),
            lambda: address_loaders.count(info.context, where),
        )
