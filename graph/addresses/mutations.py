"""Mutations that create, change and delete addresses."""

from datetime import datetime, timedelta
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.addresses.types import Address
from graph.admin.tasks import Task, TaskPayload
from graph.autoreply.mutations import AutoreplyPatch
from graph.types import global_ids
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.list_inputs import convert_list_items
from graph.types.mutations import LONG_MUTATION_COST, mutation
from graph.types.object_access import MANAGED, MANAGED_OR_DOMAINS
from graph.types.references import (
    AddressRef,
    DomainRef,
    UserRef,
    address_selectors_from_refs,
    domain_selector_from_ref,
    require_visible_user_id_if_named,
    value_or_none,
)
from graph.types.scalars import Duration, Upload
from graph.users.limits import AddressLimitsInput, validated_limit_columns_of_patch
from models.addresses.tables import AddressKind
from models.users.list_formats import UserFileFormat
from models.users.roles import Role, Scope, UserPermission
from resolvers.addresses import bulk_create, file_create, temporary_addresses
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses import mutations as address_mutations
from resolvers.addresses import update as address_update
from resolvers.addresses.mutations import NewAddress
from resolvers.addresses.temporary_addresses import NewTemporaryAddress
from resolvers.addresses.update import AddressPatchValues
from resolvers.transfer import record_tasks

WRITE_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN, "scope": Scope.FULL}
FORWARD_TO_DESCRIPTION = (
    "Targets of a FORWARD address, at most 100: mail addresses, URLs of relay servers (smtp:// or "
    "smtps://), and URLs that receive the message by POST (http:// or https://). Hosts in private "
    "networks are refused by default. The kind FORWARD must have at least one, other kinds none."
)
CREATE_FIELDS = (
    "name", "active", "send_as", "expires_at", "tags", "public_comment", "private_comment",
    "private_metadata",
)  # fmt: skip
UPDATE_FIELDS = (*CREATE_FIELDS, "kind")


@strawberry.input(
    description=(
        "Address that addressesCreate creates. It has the fields of AddressCreateInput except "
        "`options`, which is given once for all addresses, in AddressesCreateInput."
    )
)
class NewAddressInput:
    address: str = attribute_field(
        "New address without subaddress (`+label`), with the domain in Unicode or ASCII form. "
        "`@domain` means `*@domain`, a catch-all."
    )
    kind: AddressKind | None = attribute_field(
        "Kind of the address. Default: MAILBOX with `user`, else FORWARD. RESOURCE is "
        "refused. LEARN_HAM and LEARN_SPAM require a spam filter that can be trained "
        "(setting MERGANSER_RSPAMD_LEARN_URL).",
        default=UNSET,
    )
    user: UserRef | None = attribute_field(
        "User that gets the mail of a MAILBOX address. Required for MAILBOX, not allowed for "
        "other kinds.",
        default=UNSET,
    )
    name: str | None = attribute_field(
        "Display name for messages sent from the address, at most 128 characters. Default: none.",
        default=UNSET,
    )
    forward_to: list[str] | None = attribute_field(FORWARD_TO_DESCRIPTION, default=UNSET)
    main: bool = attribute_field(
        "True makes the address the main address of its user in place of the current one. If it "
        "is in another domain, the account moves to that domain: FORBIDDEN unless the caller "
        "administers both domains. The first MAILBOX address of a user that has neither `*` nor "
        "`expiresAt` is always the main address. True is refused for addresses of other kinds, "
        "and for addresses with `*` or `expiresAt`.",
        default=False,
    )
    active: bool = attribute_field(
        "False: the address refuses mail and forwards none.", default=True
    )
    send_as: bool = attribute_field(
        "True: the users to whom the address delivers can use it as sender. So can users to whom "
        "its owner gave the share right POST. False: only users whose `allowedSenders` contains "
        "the address can use it.",
        default=True,
    )
    allow_wildcard: bool = attribute_field(
        "True allows an address with `*`: `*@domain`, `*end@domain` or `begin*@domain`, where "
        "`end` or `begin` has at most 32 characters, dots not counted. It also allows `name@*`, "
        "which requires role ADMIN. Such an address is refused otherwise.",
        default=False,
    )
    limits: strawberry.Maybe[AddressLimitsInput] = attribute_field(
        "Limit of messages that a FORWARD address forwards in 24 hours; other kinds refuse it. "
        "Default: that of the platform (setting `limits.forwardsPerDay`)."
    )
    expires_at: datetime | None = attribute_field(
        "Time in the future when the address expires and refuses mail. The server deletes the "
        "address 30 days later. Null: the address does not expire. Default: null.",
        default=UNSET,
    )
    tags: list[str] | None = attribute_field(
        "Tags of the address, at most 100 of 1 to 128 characters. Default: none.", default=UNSET
    )
    autoreply: AutoreplyPatch | None = attribute_field(
        "Automatic reply of a FORWARD address; other kinds refuse it. The reply is off unless "
        "`enabled` is true. The field `addresses` is not allowed in it. Default: none.",
        default=UNSET,
    )
    public_comment: str | None = attribute_field(
        "Comment that the user of the address can also read, at most 1,000 characters. Default: "
        "none.",
        default=UNSET,
    )
    private_comment: str | None = attribute_field(
        "Comment for administrators, at most 1,000 characters. Users with the role USER can't "
        "read it. Default: none.",
        default=UNSET,
    )
    metadata: JSON | None = attribute_field(
        "JSON object with data of your application, which the user can read. At most 64 KiB "
        "by default.",
        default=UNSET,
    )
    private_metadata: JSON | None = attribute_field(
        "JSON object with data of your application that the user can't read. At most 64 KiB "
        "by default.",
        default=UNSET,
    )

    async def to_new_address(self, info: Info) -> NewAddress:
        """Convert the input to the address to create.

        Raises NotFound if the viewer can't see the user, and InvalidInput.
        """
        values = {name: getattr(self, name) for name in CREATE_FIELDS}
        values["public_metadata"] = self.metadata
        values = {name: value for name, value in values.items() if value is not UNSET}
        values |= self.limits.value.to_column_values() if self.limits else {}
        return NewAddress(
            self.address,
            self.kind or None,
            await require_visible_user_id_if_named(info, self.user or None),
            main=self.main,
            wildcard=self.allow_wildcard,
            forward_to=self.forward_to or (),
            columns=values,
            autoreply=self.autoreply.to_column_values() if self.autoreply else None,
        )


@strawberry.input(description="Input of addressCreate.")
class AddressCreateInput(Options, NewAddressInput):
    pass


@strawberry.input(description="Input of addressesCreate.")
class AddressesCreateInput(Options):
    addresses: list[NewAddressInput] = attribute_field(
        f"Addresses to create, 1 to {bulk_create.MAX_ADDRESSES}."
    )


@strawberry.input(description="Input of addressesCreateFromFile.")
class AddressesCreateFromFileInput(Options):
    file: Upload = attribute_field(
        "Uploaded UTF-8 file. The task consumes the upload. Its fields have the names of "
        "`NewAddressInput`, except `autoreply`; `user` has the username or an address of the user. "
        "JSON Lines has an object in each line. CSV has the field names in its first line; `;` "
        "separates the items of a list. The field for the limit of forwarded messages is "
        "`limits.forwardsPerDay`; the value `unlimited` means no limit. An unknown field name in "
        "the first line of a CSV file is the error VALIDATION."
    )
    format: UserFileFormat | None = attribute_field(
        "Format of the file. Default: JSON_LINES if the file begins with a brace, else CSV.",
        default=UNSET,
    )


@strawberry.input(
    description=(
        "New values of addresses. An absent field leaves the value. Null clears a value that can "
        "be empty; for other fields null is an error. At least one field is required."
    )
)
class AddressPatch:
    address: strawberry.Maybe[str] = attribute_field(
        "New spelling or new address, without subaddress (`+label`). If a main address gets "
        "another domain, the account moves to that domain: FORBIDDEN unless the caller administers "
        "both domains. Allowed for one address only, and not for an address with `*`."
    )
    kind: strawberry.Maybe[AddressKind] = attribute_field(
        "Kind of the address. It can't change to or from MAILBOX. A change to RESOURCE is refused. "
        "LEARN_HAM and LEARN_SPAM require a spam filter that can be trained (setting "
        "MERGANSER_RSPAMD_LEARN_URL). A change from FORWARD deletes the targets and the automatic "
        "reply. It is refused while the address has its own limit, unless `inheritLimits` is true."
    )
    name: strawberry.Maybe[str | None] = attribute_field(
        "Display name for messages sent from the address, at most 128 characters. Null or an empty "
        "text removes it."
    )
    forward_to: strawberry.Maybe[list[str]] = attribute_field(
        f"{FORWARD_TO_DESCRIPTION} The list replaces the stored one. A relay URL with `***` as "
        "password keeps the stored password."
    )
    main: strawberry.Maybe[bool] = attribute_field(
        "True makes it the main address of its user in place of the current one. If it is in "
        "another domain, the account moves to that domain: FORBIDDEN unless the caller administers "
        "both domains. Allowed for one address only, of the kind MAILBOX, without `*` and "
        "`expiresAt`. False is refused for the main address, and changes nothing for others."
    )
    active: strawberry.Maybe[bool] = attribute_field(
        "False: the address refuses mail and forwards none."
    )
    send_as: strawberry.Maybe[bool] = attribute_field(
        "True: the users to whom the address delivers can use it as sender. So can users to whom "
        "its owner gave the share right POST. False: only users whose `allowedSenders` contains "
        "the address can use it."
    )
    limits: strawberry.Maybe[AddressLimitsInput] = attribute_field(
        "Limit of messages that a FORWARD address forwards in 24 hours; other kinds refuse it."
    )
    inherit_limits: strawberry.Maybe[bool] = attribute_field(
        "True removes the own limit of forwarded messages of a FORWARD address, so that the limit "
        "of the platform applies. Not allowed with `limits`. False changes nothing."
    )
    expires_at: strawberry.Maybe[datetime | None] = attribute_field(
        "Time in the future when the address expires and refuses mail. The server deletes the "
        "address 30 days later. Null: the address does not expire. A time is refused for "
        "a main address."
    )
    tags: strawberry.Maybe[list[str] | None] = attribute_field(
        "Tags of the address, at most 100 of 1 to 128 characters. The list replaces the stored "
        "one. Null or an empty list removes all tags."
    )
    autoreply: strawberry.Maybe[AutoreplyPatch | None] = attribute_field(
        "New values of the automatic reply of a FORWARD address; other kinds refuse it. An absent "
        "field stays unchanged; a new reply is off unless `enabled` is true. The field `addresses` "
        "is not allowed in it. Null deletes the reply."
    )
    public_comment: strawberry.Maybe[str | None] = attribute_field(
        "Comment that the user of the address can also read, at most 1,000 characters. Null "
        "removes it."
    )
    private_comment: strawberry.Maybe[str | None] = attribute_field(
        "Comment for administrators, at most 1,000 characters. Users with the role USER can't "
        "read it. Null removes it."
    )
    metadata: strawberry.Maybe[JSON | None] = attribute_field(
        "JSON object with data of your application, which the user can read. It replaces the "
        "stored one. At most 64 KiB by default. Null removes it."
    )
    private_metadata: strawberry.Maybe[JSON | None] = attribute_field(
        "JSON object with data of your application that the user can't read. It replaces the "
        "stored one. At most 64 KiB by default. Null removes it."
    )

    def to_changes(self) -> AddressPatchValues:
        """Convert the input to changes of addresses. Absent fields are left out."""
        values = {name: change.value for name in UPDATE_FIELDS if (change := getattr(self, name))}
        if self.metadata:
            values["public_metadata"] = self.metadata.value
        values |= validated_limit_columns_of_patch(self, ("forwards_per_day",))
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
    addresses: list[AddressRef] = attribute_field("Addresses to change, 1 to 1,000 by default.")
    set: AddressPatch = attribute_field(
        "New values, the same for all addresses. At least one value is required."
    )


@strawberry.input(description="Input of addressDelete.")
class AddressDeleteInput(Options):
    addresses: list[AddressRef] = attribute_field("Addresses to delete, 1 to 1,000 by default.")


@strawberry.input(description="Input of temporaryAddressCreate.")
class TemporaryAddressCreateInput(Options):
    user: UserRef | None = attribute_field(
        "User that gets the address. Default: the signed-in user.", default=UNSET
    )
    domain: DomainRef | None = attribute_field(
        "Domain of the new address, in which the user must have an address, else NOT_FOUND. "
        "Default: the domain of the main address. Required if the user has no main address.",
        default=UNSET,
    )
    validity: Duration | None = attribute_field(
        "Time until the address expires: longer than 0, at most 3,660 days. Null: it does not "
        "expire (a masked address). Default: 365 days.",
        default=Duration(timedelta(days=365)),
    )
    comment: str | None = attribute_field(
        "Comment about the use of the address, at most 1,000 characters. It becomes "
        "`Address.publicComment`. Default: none.",
        default=UNSET,
    )
    for_site: str | None = attribute_field(
        "Domain name of the website that gets the address. Default: none.", default=UNSET
    )


@strawberry.type(description="Payload of addressCreate and temporaryAddressCreate.")
class AddressPayload(MutationPayload):
    address: Address | None = attribute_field(
        "Created address. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of addressUpdate and addressesCreate.")
class AddressesPayload(MutationPayload):
    addresses: list[Address] = attribute_field(
        "Changed or created addresses in the order of the input, each once. Empty if the mutation "
        "failed.",
        default_factory=list,
    )


@strawberry.type
class AddressMutation:
    @mutation(
        "Creates an address, such as an alias of a user or a forwarding address. An address of "
        "the kind RESOURCE is created by `resourceCreate` instead. NOT_FOUND for an unknown "
        "domain, or one that the caller does not administer. If an ADMIN names an unknown domain "
        "and MERGANSER_AUTO_CREATE_DOMAINS is on, the domain is created, with the warning "
        "DOMAIN_CREATED. An address of all domains requires the role ADMIN. CONFLICT if the "
        "address is taken, where case and dots of the local part are ignored. CONFLICT also for "
        "an alias domain, or if another request moves the user to another domain at the same "
        "time: retry. LIMIT_REACHED if the domain has its largest number of addresses. "
        "LIMIT_REACHED also if the account moves to this domain, and the domain has no room for "
        "the user or the user's quota. QUOTA_EXCEEDED if the metadata of the address do not fit "
        "into the storage quota of its user.",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def address_create(self, info: Info, input: AddressCreateInput) -> AddressPayload:
        new = await input.to_new_address(info)
        return AddressPayload(
            address=Address.from_row(await address_mutations.create_address(info.context, new))
        )

    @mutation(
        "Creates addresses in one transaction: all or none. The rules are those of "
        "`addressCreate`, and each address sees the ones before it. If one address has an error, "
        "its path begins with `addresses` and the position of the address, from 0. CONFLICT if an "
        "address is taken. LIMIT_REACHED if a domain has its largest number of addresses, or no "
        "room for a user whose main address is created. QUOTA_EXCEEDED if the metadata of an "
        "address do not fit into the storage quota of its user.",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def addresses_create(self, info: Info, input: AddressesCreateInput) -> AddressesPayload:
        bulk_create.require_address_count_within_limit(len(input.addresses))
        converted = await convert_list_items(
            input.addresses, lambda new_address: new_address.to_new_address(info)
        )
        keys = await bulk_create.create_addresses(info.context, converted.values, converted.errors)
        rows = await info.context.load_many(address_loaders.load_visible_addresses_by_id, keys)
        return AddressesPayload(addresses=[Address.from_row(row) for row in rows if row])

    @mutation(
        "Creates addresses from a CSV or JSON Lines file in a background task, in the order of "
        "the file. A DOMAIN_ADMIN can create addresses in the administered domains, an ADMIN in "
        "any domain. The rules are those of `addressCreate`. A refused line does not stop the "
        "task. A caller has at most 2 unfinished tasks of this kind: LIMIT_REACHED. A credential "
        "without a user is FORBIDDEN. `Task.result` has the counts `createdCount` and "
        "`refusedCount`, `errors` with line, code, path and message of the first 1,000 errors, "
        "and `warnings`. After a crash the task continues where it was.",
        **WRITE_GUARD,
    )
    async def addresses_create_from_file(
        self, info: Info, input: AddressesCreateFromFileInput
    ) -> TaskPayload:
        upload = global_ids.decode("Upload", input.file, path="file")
        task = await record_tasks.queue_record_task(
            info.context, file_create.ADDRESSES_CREATE, upload, value_or_none(input.format)
        )
        return TaskPayload(task=Task.from_row_or_none(task))

    @mutation(
        "Creates a MAILBOX address with a random local part, a temporary alias, for a user, who "
        "can also send from it. It works until `validity` has passed (null: without limit) or the "
        "user disables or deletes it. LIMIT_REACHED if the user has 100 such addresses (by "
        "default); expired ones count until they are deleted 30 days later. LIMIT_REACHED also if "
        "the domain has no room. CONFLICT if the random address is taken: retry.",
        scope=Scope.SETTINGS,
        user_permission=UserPermission.TEMPORARY_ADDRESSES,
        access=MANAGED.with_scope(Scope.FULL),
    )
    async def temporary_address_create(
        self, info: Info, input: TemporaryAddressCreateInput
    ) -> AddressPayload:
        new = NewTemporaryAddress(
            await require_visible_user_id_if_named(info, input.user or None),
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
        "Changes addresses, all or none. Users can change `name` and `main` of their own "
        "addresses, and also `active` of those that `temporaryAddressCreate` made. For any change "
        "of such an own address a USER needs the permission TEMPORARY_ADDRESSES. Other fields "
        "require the role DOMAIN_ADMIN, and that the caller administers the domain of the "
        "address. An address that is not the caller's, also one without a user, requires this for "
        "every field, and the scope FULL. The address of a resource is a CONFLICT. CONFLICT also "
        "if the new `address` is taken. LIMIT_REACHED for more than 1,000 addresses (by default). "
        "LIMIT_REACHED also if the new domain can't have another address, or has no room for the "
        "user. QUOTA_EXCEEDED if the new metadata of the addresses do not fit into the storage "
        "quota of their user.",
        scope=Scope.SETTINGS,
        access=MANAGED_OR_DOMAINS.with_scope(Scope.FULL),
    )
    async def address_update(self, info: Info, input: AddressUpdateInput) -> AddressesPayload:
        refs = address_selectors_from_refs(input.addresses)
        keys = await address_update.update_addresses(info.context, refs, input.set.to_changes())
        rows = await info.context.load_many(address_loaders.load_visible_addresses_by_id, keys)
        return AddressesPayload(addresses=[Address.from_row(row) for row in rows if row])

    @mutation(
        "Deletes addresses, all or none. Users can delete their own addresses that "
        "`temporaryAddressCreate` made, for which a USER needs the permission "
        "TEMPORARY_ADDRESSES. Any other address requires the role DOMAIN_ADMIN, and that the "
        "caller administers its domain. An address of another user, or of no user, also requires "
        "the scope FULL. An automatic reply that is limited to deleted addresses is turned off. A "
        "main address and the address of a resource are a CONFLICT. LIMIT_REACHED for more than "
        "1,000 addresses (by default).",
        scope=Scope.SETTINGS,
        access=MANAGED_OR_DOMAINS.with_scope(Scope.FULL),
        cost=LONG_MUTATION_COST,
    )
    async def address_delete(self, info: Info, input: AddressDeleteInput) -> DeletePayload:
        refs = address_selectors_from_refs(input.addresses)
        keys = await address_mutations.delete_addresses(info.context, refs)
        return DeletePayload.of_keys("Address", keys)
