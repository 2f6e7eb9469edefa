"""Mutations that create, change and delete addresses."""

from datetime import datetime, timedelta
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.addresses.types import Address
from graph.autoreply.mutations import AutoreplyInput
from graph.types import global_ids
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import AddressRef, UserRef, address_named, keys_of, owner_named
from graph.types.scalars import Duration
from models.addresses.tables import AddressKind
from models.users.roles import Role, Scope, UserPermission
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses import mutations as address_mutations
from resolvers.addresses import temporary_addresses
from resolvers.addresses import update as address_update
from resolvers.addresses.mutations import NewAddress
from resolvers.addresses.temporary_addresses import NewTemporary
from resolvers.addresses.update import Patch

OURS: dict[str, Any] = {"role": Role.DOMAIN_ADMIN, "scope": Scope.MASTER}
TARGETS = (
    "FORWARD: addresses, smtp:// and smtps:// relays with or without user and password, "
    "http(s):// URLs; at most 100. A relay whose password is *** stays as it was."
)
REPLY = "FORWARD: what it answers by itself, without `addresses`."
NEW = (
    "name", "active", "send_as", "expires_at", "tags", "public_comment", "private_comment",
    "meta_data", "internal_data",
)  # fmt: skip
CHANGED = (*NEW, "kind")


@strawberry.input(description="Input of addressCreate.")
class AddressCreateInput(Options):
    address: str = leaf('Unicode; "@domain" is read as "*@domain".')
    kind: AddressKind | None = leaf("Default MAILBOX with a user, else FORWARD.", default=UNSET)
    user: UserRef | None = leaf("Needed for MAILBOX.", default=UNSET)
    name: str | None = leaf("Identity name, at most 128 characters.", default=UNSET)
    targets: list[str] | None = leaf(TARGETS, default=UNSET)
    main: bool = leaf("Default of its user; the first one is so anyway.", default=False)
    active: bool = leaf("False = refuses mail, and forwards none.", default=True)
    send_as: bool = leaf("Offered as sender to the users it delivers to.", default=True)
    allow_wildcard: bool = leaf(
        "Needed for *: *@domain, *end@domain, begin*@domain with at most 32 fixed characters, or "
        "name@*, which takes an ADMIN.",
        default=False,
    )
    forwards: int | None = leaf(
        "Forwarded messages per 24 h, 0 = unlimited; null = what the platform says.", default=UNSET
    )
    expires_at: datetime | None = leaf("When it ends.", default=UNSET)
    tags: list[str] | None = leaf("Labels.", default=UNSET)
    autoreply: AutoreplyInput | None = leaf(REPLY, default=UNSET)
    public_comment: str | None = leaf("Shown to users.", default=UNSET)
    private_comment: str | None = leaf("For administrators.", default=UNSET)
    meta_data: JSON | None = leaf("Free data of the application.", default=UNSET)
    internal_data: JSON | None = leaf("Free data hidden from the user.", default=UNSET)


@strawberry.input(description="What to change on addresses; absent = unchanged, null = cleared.")
class AddressPatch:
    address: strawberry.Maybe[str] = leaf(
        "Another spelling, or another address, of one that is no pattern."
    )
    kind: strawberry.Maybe[AddressKind] = leaf("MAILBOX stays MAILBOX, others stay others.")
    name: strawberry.Maybe[str | None] = leaf("Identity name, at most 128 characters.")
    targets: strawberry.Maybe[list[str]] = leaf(f"In place of those there are. {TARGETS}")
    main: strawberry.Maybe[bool] = leaf(
        "True: default of its user, in place of the one there is. An account whose main address "
        "is in another domain moves there."
    )
    active: strawberry.Maybe[bool] = leaf("False = refuses mail, and forwards none.")
    send_as: strawberry.Maybe[bool] = leaf("Offered as sender to the users it delivers to.")
    forwards: strawberry.Maybe[int | None] = leaf(
        "Forwarded messages per 24 h, 0 = unlimited; null = what the platform says."
    )
    expires_at: strawberry.Maybe[datetime | None] = leaf("When it ends.")
    tags: strawberry.Maybe[list[str] | None] = leaf("Labels, in place of those there are.")
    autoreply: strawberry.Maybe[AutoreplyInput | None] = leaf(f"{REPLY} Null forgets it.")
    public_comment: strawberry.Maybe[str | None] = leaf("Shown to users.")
    private_comment: strawberry.Maybe[str | None] = leaf("For administrators.")
    meta_data: strawberry.Maybe[JSON | None] = leaf("Free data of the application.")
    internal_data: strawberry.Maybe[JSON | None] = leaf("Free data hidden from the user.")

    def patch(self) -> Patch:
        """Convert the input to changes of addresses. Absent fields are left out."""
        values = {name: change.value for name in CHANGED if (change := getattr(self, name))}
        if self.forwards:
            values["forwards_max"] = self.forwards.value
        autoreply_input = self.autoreply.value if self.autoreply else None
        return Patch(
            values,
            address=self.address.value if self.address else None,
            main=self.main.value if self.main else None,
            targets=self.targets.value if self.targets else None,
            autoreply=autoreply_input.given() if autoreply_input else None,
            unanswered=self.autoreply is not None and autoreply_input is None,
        )


@strawberry.input(description="Input of addressUpdate.")
class AddressUpdateInput(Options):
    addresses: list[AddressRef] = leaf("Which ones.")
    set: AddressPatch = leaf("The same for all.")


@strawberry.input(description="Input of addressCreateTemporary.")
class AddressCreateTemporaryInput(Options):
    user: UserRef | None = leaf("Whose; nothing = the viewer's.", default=UNSET)
    domain: str | None = leaf(
        "One in which the user has an address; default: that of the main address.", default=UNSET
    )
    validity: Duration | None = leaf(
        "Until it ends; null = until it is switched off (a masked address).",
        default=Duration(timedelta(days=365)),
    )
    comment: str | None = leaf("What it is for.", default=UNSET)
    for_domain: str | None = leaf("Site it is given to.", default=UNSET)


@strawberry.type(description="Answer of addressCreate.")
class AddressPayload(MutationPayload):
    address: Address | None = leaf("The address.", default=None)


@strawberry.type(description="Addresses that were changed, or were so already.")
class AddressesPayload(MutationPayload):
    addresses: list[Address] = leaf("The addresses, as they are now.", default_factory=list)


@strawberry.type
class AddressMutation:
    @mutation("Any kind. CONFLICT where it is taken, whatever its dots and case.", **OURS)
    async def address_create(self, info: Info, input: AddressCreateInput) -> AddressPayload:
        values = {name: getattr(input, name) for name in (*NEW, "forwards")}
        values = {name: value for name, value in values.items() if value is not UNSET}
        if "forwards" in values:
            values["forwards_max"] = values.pop("forwards")
        new = NewAddress(
            input.address,
            input.kind or None,
            await owner_named(info, input.user or None),
            main=input.main,
            wildcard=input.allow_wildcard,
            targets=input.targets or (),
            facts=values,
            autoreply=input.autoreply.given() if input.autoreply else None,
        )
        return AddressPayload(address=Address.of(await address_mutations.create(info.context, new)))

    @mutation(
        "A random address of a user, which ends by itself or is switched off by its owner.",
        scope=Scope.SETTINGS,
        user_permission=UserPermission.SPAM_ALIAS,
    )
    async def address_create_temporary(
        self, info: Info, input: AddressCreateTemporaryInput
    ) -> AddressPayload:
        new = NewTemporary(
            await owner_named(info, input.user or None),
            input.domain or None,
            input.validity,
            input.comment or None,
            input.for_domain or None,
        )
        return AddressPayload(
            address=Address.of(await temporary_addresses.create(info.context, new))
        )

    @mutation(
        "Several at once, all or none. Owners change name and main, and switch off what they made "
        "by addressCreateTemporary; a DOMAIN_ADMIN of the domain changes all.",
        scope=Scope.SETTINGS,
    )
    async def address_update(self, info: Info, input: AddressUpdateInput) -> AddressesPayload:
        refs = [address_named(ref, path="addresses", index=index) for index, ref in
                enumerate(input.addresses)]  # fmt: skip
        keys = await address_update.change(info.context, refs, input.set.patch())
        rows = await info.context.load_all(address_loaders.by_ids, keys)
        return AddressesPayload(addresses=[Address.of(row) for row in rows if row])

    @mutation(
        "Several at once, all or none. CONFLICT for a main address. Owners delete what they made "
        "by addressCreateTemporary; a DOMAIN_ADMIN of the domain deletes all others.",
        scope=Scope.SETTINGS,
    )
    async def address_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        keys = keys_of(info, "Address", input.ids)
        await address_mutations.remove(info.context, keys)
        return DeletePayload(deleted_ids=[global_ids.encode("Address", key) for key in keys])
