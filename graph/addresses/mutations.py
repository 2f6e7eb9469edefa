"""Mutations that create, change and delete addresses."""

from datetime import datetime, timedelta
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.addresses.types import Address
from graph.autoreply.mutations import AutoreplyInput
from graph.types import global_ids
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import (
    AddressRef,
    DomainRef,
    UserRef,
    address_selector_from_ref,
    domain_selector_from_ref,
    load_named_user_id,
)
from graph.types.scalars import Duration
from graph.users.limits import AddressLimitsInput, patched_limit_columns
from models.addresses.tables import AddressKind
from models.users.roles import Role, Scope, UserPermission
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses import mutations as address_mutations
from resolvers.addresses import temporary_addresses
from resolvers.addresses import update as address_update
from resolvers.addresses.mutations import NewAddress
from resolvers.addresses.temporary_addresses import NewTemporaryAddress
from resolvers.addresses.update import AddressPatchValues

WRITE_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN, "scope": Scope.FULL}
FORWARD_TO_DESCRIPTION = (
    "FORWARD: addresses, smtp:// and smtps:// relays with or without user and password, "
    "http(s):// URLs; at most 100. A relay whose password is *** stays as it was."
)
AUTOREPLY_DESCRIPTION = "FORWARD: what it answers by itself, without `addresses`."
CREATE_FIELDS = (
    "name", "active", "send_as", "expires_at", "tags", "public_comment", "private_comment",
    "private_metadata",
)  # fmt: skip
UPDATE_FIELDS = (*CREATE_FIELDS, "kind")


@strawberry.input(description="Input of addressCreate.")
class AddressCreateInput(Options):
    address: str = attribute_field('Unicode; "@domain" is read as "*@domain".')
    kind: AddressKind | None = attribute_field(
        "Default MAILBOX with a user, else FORWARD.", default=UNSET
    )
    user: UserRef | None = attribute_field("Needed for MAILBOX.", default=UNSET)
    name: str | None = attribute_field("Identity name, at most 128 characters.", default=UNSET)
    forward_to: list[str] | None = attribute_field(FORWARD_TO_DESCRIPTION, default=UNSET)
    main: bool = attribute_field("Default of its user; the first one is so anyway.", default=False)
    active: bool = attribute_field("False = refuses mail, and forwards none.", default=True)
    send_as: bool = attribute_field("Offered as sender to the users it delivers to.", default=True)
    allow_wildcard: bool = attribute_field(
        "Needed for *: *@domain, *end@domain, begin*@domain with at most 32 fixed characters, or "
        "name@*, which takes an ADMIN.",
        default=False,
    )
    limits: AddressLimitsInput | None = attribute_field(
        "Limits of the address. Default: those of the platform.", default=UNSET
    )
    expires_at: datetime | None = attribute_field("When it ends.", default=UNSET)
    tags: list[str] | None = attribute_field("Labels.", default=UNSET)
    autoreply: AutoreplyInput | None = attribute_field(AUTOREPLY_DESCRIPTION, default=UNSET)
    public_comment: str | None = attribute_field("Shown to users.", default=UNSET)
    private_comment: str | None = attribute_field("For administrators.", default=UNSET)
    metadata: JSON | None = attribute_field("Free data of the application.", default=UNSET)
    private_metadata: JSON | None = attribute_field(
        "Free data hidden from the user.", default=UNSET
    )


@strawberry.input(description="What to change on addresses; absent = unchanged, null = cleared.")
class AddressPatch:
    address: strawberry.Maybe[str] = attribute_field(
        "Another spelling, or another address, of one that is no pattern."
    )
    kind: strawberry.Maybe[AddressKind] = attribute_field(
        "MAILBOX stays MAILBOX, others stay others."
    )
    name: strawberry.Maybe[str | None] = attribute_field("Identity name, at most 128 characters.")
    forward_to: strawberry.Maybe[list[str]] = attribute_field(
        f"In place of those there are. {FORWARD_TO_DESCRIPTION}"
    )
    main: strawberry.Maybe[bool] = attribute_field(
        "True: default of its user, in place of the one there is. An account whose main address "
        "is in another domain moves there."
    )
    active: strawberry.Maybe[bool] = attribute_field("False = refuses mail, and forwards none.")
    send_as: strawberry.Maybe[bool] = attribute_field(
        "Offered as sender to the users it delivers to."
    )
    limits: strawberry.Maybe[AddressLimitsInput | None] = attribute_field(
        "Limits of the address. Null: those of the platform."
    )
    expires_at: strawberry.Maybe[datetime | None] = attribute_field("When it ends.")
    tags: strawberry.Maybe[list[str] | None] = attribute_field(
        "Labels, in place of those there are."
    )
    autoreply: strawberry.Maybe[AutoreplyInput | None] = attribute_field(
        f"{AUTOREPLY_DESCRIPTION} Null forgets it."
    )
    public_comment: strawberry.Maybe[str | None] = attribute_field("Shown to users.")
    private_comment: strawberry.Maybe[str | None] = attribute_field("For administrators.")
    metadata: strawberry.Maybe[JSON | None] = attribute_field("Free data of the application.")
    private_metadata: strawberry.Maybe[JSON | None] = attribute_field(
        "Free data hidden from the user."
    )

    def to_changes(self) -> AddressPatchValues:
        """Convert the input to changes of addresses. Absent fields are left out."""
        values = {name: change.value for name in UPDATE_FIELDS if (change := getattr(self, name))}
        if self.metadata:
            values["public_metadata"] = self.metadata.value
        values |= patched_limit_columns(self.limits, ("forwards_per_day",))
        autoreply_input = self.autoreply.value if self.autoreply else None
        return AddressPatchValues(
            values,
            address=self.address.value if self.address else None,
            main=self.main.value if self.main else None,
            forward_to=self.forward_to.value if self.forward_to else None,
            autoreply=autoreply_input.to_column_values() if autoreply_input else None,
            deletes_autoreply=self.autoreply is not None and autoreply_input is None,
        )


@strawberry.input(description="Input of addressUpdate.")
class AddressUpdateInput(Options):
    addresses: list[AddressRef] = attribute_field("Which ones.")
    set: AddressPatch = attribute_field("The same for all.")


@strawberry.input(description="Input of addressDelete.")
class AddressDeleteInput(Options):
    addresses: list[AddressRef] = attribute_field("The addresses to delete.")


@strawberry.input(description="Input of temporaryAddressCreate.")
class TemporaryAddressCreateInput(Options):
    user: UserRef | None = attribute_field("Whose; nothing = the viewer's.", default=UNSET)
    domain: DomainRef | None = attribute_field(
        "Domain of the new address, in which the user must have an address. Default: the domain "
        "of the main address.",
        default=UNSET,
    )
    validity: Duration | None = attribute_field(
        "Until it ends; null = until it is switched off (a masked address).",
        default=Duration(timedelta(days=365)),
    )
    comment: str | None = attribute_field("What it is for.", default=UNSET)
    for_site: str | None = attribute_field("Site it is given to.", default=UNSET)


@strawberry.type(description="Answer of addressCreate.")
class AddressPayload(MutationPayload):
    address: Address | None = attribute_field("The address.", default=None)


@strawberry.type(description="Addresses that were changed, or were so already.")
class AddressesPayload(MutationPayload):
    addresses: list[Address] = attribute_field(
        "The addresses, as they are now.", default_factory=list
    )


@strawberry.type
class AddressMutation:
    @mutation("Any kind. CONFLICT where it is taken, whatever its dots and case.", **WRITE_GUARD)
    async def address_create(self, info: Info, input: AddressCreateInput) -> AddressPayload:
        values = {name: getattr(input, name) for name in CREATE_FIELDS}
        values["public_metadata"] = input.metadata
        values = {name: value for name, value in values.items() if value is not UNSET}
        values |= input.limits.to_column_values() if input.limits else {}
        new = NewAddress(
            input.address,
            input.kind or None,
            await load_named_user_id(info, input.user or None),
            main=input.main,
            wildcard=input.allow_wildcard,
            forward_to=input.forward_to or (),
            columns=values,
            autoreply=input.autoreply.to_column_values() if input.autoreply else None,
        )
        return AddressPayload(
            address=Address.from_row(await address_mutations.create_address(info.context, new))
        )

    @mutation(
        "A random address of a user, which ends by itself or is switched off by its owner.",
        scope=Scope.SETTINGS,
        user_permission=UserPermission.TEMPORARY_ADDRESSES,
    )
    async def temporary_address_create(
        self, info: Info, input: TemporaryAddressCreateInput
    ) -> AddressPayload:
        new = NewTemporaryAddress(
            await load_named_user_id(info, input.user or None),
            domain_selector_from_ref(input.domain, path="domain") if input.domain else None,
            input.validity,
            input.comment or None,
            input.for_site or None,
        )
        return AddressPayload(
            address=Address.from_row(
                await temporary_addresses.create_temporary_address(info.context, new)
            )
        )

    @mutation(
        "Several at once, all or none. Owners change name and main, and switch off what they made "
        "by temporaryAddressCreate; a DOMAIN_ADMIN of the domain changes all.",
        scope=Scope.SETTINGS,
    )
    async def address_update(self, info: Info, input: AddressUpdateInput) -> AddressesPayload:
        refs = [address_selector_from_ref(ref, path="addresses", index=index) for index, ref in
                enumerate(input.addresses)]  # fmt: skip
        keys = await address_update.update_addresses(info.context, refs, input.set.to_changes())
        rows = await info.context.load_many(address_loaders.load_visible_addresses_by_id, keys)
        return AddressesPayload(addresses=[Address.from_row(row) for row in rows if row])

    @mutation(
        "Several at once, all or none. CONFLICT for a main address. Owners delete what they made "
        "by temporaryAddressCreate; a DOMAIN_ADMIN of the domain deletes all others.",
        scope=Scope.SETTINGS,
    )
    async def address_delete(self, info: Info, input: AddressDeleteInput) -> DeletePayload:
        refs = [
            address_selector_from_ref(ref, path="addresses", index=index)
            for index, ref in enumerate(input.addresses)
        ]
        keys = await address_mutations.delete_addresses(info.context, refs)
        return DeletePayload(deleted_ids=[global_ids.encode("Address", key) for key in keys])
