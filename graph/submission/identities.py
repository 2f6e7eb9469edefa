"""GraphQL types and mutations of identities."""

from collections.abc import Mapping
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox
from graph.submission.references import IdentityRef
from graph.types.access_grants import GIVES_ACCESS
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.object_references import ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import (
    MailboxRef,
    UserRef,
    mailbox_selector_from_ref,
    require_visible_user_id_if_named,
)
from graph.types.row_mapping import NodeView, global_id_field, link, selected_columns
from graph.types.scalars import EmailAddress
from models.errors import require_found
from models.users.roles import Scope
from resolvers.list_orders import OwnerPageKey
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.submission.identities import loaders as identity_loaders
from resolvers.submission.identities import mutations as identity_mutations
from resolvers.submission.identities import pages as identity_pages
from resolvers.submission.identities.pages import IdentityOrder
from resolvers.submission.identities.validation import IdentityChanges

TEXT_FIELDS = ("name", "signature_text", "signature_html")


@strawberry.type(
    description="Address that a user can send as, with display name, signature and other defaults "
    "(RFC 8621).",
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class Identity(NodeView):
    name: str | None = attribute_field(
        "Display name of the header field From. Without a stored name: the name of the address, "
        "else of the account. Null: none of them has a name."
    )
    address: EmailAddress = attribute_field("Address of the header field From.")
    default: bool = attribute_field(
        "True if the identity is used when no other is named: the chosen one, or that of the main "
        "address."
    )
    reply_to: EmailAddress | None = attribute_field(
        "Address of the header field Reply-To of messages that this API composes with "
        "the identity, if they have no other. Null: none."
    )
    bcc: list[EmailAddress] = attribute_field(
        "Addresses that get a blind copy of each message with a recipient that this API composes "
        "with the identity. Complete messages (`raw`) and messages submitted by SMTP are not "
        "copied. At most 20."
    )
    signature_text: str | None = attribute_field(
        "Plain text signature of the identity. Clients insert it: the server does not. Null: none."
    )
    signature_html: str | None = attribute_field(
        "HTML signature of the identity, sanitized. Clients insert it: the server does not. Null: "
        "none."
    )
    sent_mailbox: Mailbox | None = link(
        "mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        Mailbox.from_row_or_none,
        description=(
            "Mailbox for the copies of messages sent with the identity. Copies of complete "
            "messages (`raw`) and of messages submitted by SMTP go to Sent. Null: the mailbox with "
            "the special use SENT."
        ),
    )

    load_batch = staticmethod(identity_loaders.load_visible_identities_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Identity")}


async def load_identity_page(
    info: Info, user_id: int, order_by: IdentityOrder, page_arguments: PageArguments
) -> Connection[Identity]:
    """Load a page of the identities of an account."""
    ctx, list_order = info.context, identity_pages.LIST_ORDERS[order_by]
    requested_page = page_request(f"identities-{order_by}", *page_arguments)
    page_key = OwnerPageKey(user_id, requested_page, list_order, selected_columns(info, Identity))
    return await connection_of_page(
        info,
        Identity,
        await ctx.load(identity_pages.load_visible_identity_pages, page_key),
        lambda item: list_order.cursor_of_row(item, requested_page.ordering),
        lambda: ctx.load(identity_pages.count_visible_identities, page_key),
    )


@strawberry.input(
    description=(
        "Values of an identity. An omitted field is unchanged, or has its default if the identity "
        "has no stored values."
    )
)
class IdentityPatch:
    name: str | None = attribute_field(
        "Display name of the header field From, one line of at most 255 bytes. Null or empty: the "
        "display name of the address, or else of the account. Default of a new identity: null.",
        default=UNSET,
    )
    default: bool | None = attribute_field(
        "True makes this the default identity, in place of the previous one; for several "
        "identities of one user it is an error. False, for the "
        "default identity, makes the identity of the main address the default; for another "
        "identity it changes nothing. Null changes nothing.",
        default=UNSET,
    )
    reply_to: EmailAddress | None = attribute_field(
        "Address of the header field Reply-To of messages that this API composes with "
        "the identity, if they have no other. Null, the default "
        "of a new identity: none.",
        default=UNSET,
        metadata=GIVES_ACCESS,
    )
    bcc: list[EmailAddress] | None = attribute_field(
        "Addresses that get a blind copy of each message with a recipient that this API composes "
        "with the identity, at most 20. They replace the earlier ones. Complete messages (`raw`) "
        "and messages submitted by SMTP are not copied. Null or an empty list, the default of a "
        "new identity: none.",
        default=UNSET,
        metadata=GIVES_ACCESS,
    )
    signature_text: str | None = attribute_field(
        "Plain text signature, at most 64 KiB. Null, the default of a new identity: none.",
        default=UNSET,
    )
    signature_html: str | None = attribute_field(
        "HTML signature, at most 64 KiB. It is sanitized. Null, the default of a new identity: "
        "none.",
        default=UNSET,
    )
    sent_mailbox: MailboxRef | None = attribute_field(
        "Mailbox of the identity's user that gets the copies of messages sent with the identity. "
        "A mailbox of another user is NOT_FOUND. A mailbox with the special use SNOOZED or "
        "SCHEDULED is refused. Copies of complete messages (`raw`) and of messages submitted by "
        "SMTP go to the mailbox with the special use SENT. Null, the default of a new identity: "
        "the mailbox with the special use SENT.",
        default=UNSET,
    )

    def to_identity_changes(self, *error_path: str) -> IdentityChanges:
        """Convert the input to changes of an identity. Absent fields are left out.

        `error_path` is the path of the input, for errors. Raises InvalidInput if the mailbox has no
        valid ID.
        """
        values: dict[str, Any] = {
            name: value
            for name in (*TEXT_FIELDS, "reply_to", "bcc")
            if (value := getattr(self, name)) is not UNSET
        }
        if isinstance(self.default, bool):
            values["preferred"] = self.default
        sent_mailbox = self.sent_mailbox
        mailbox = (
            mailbox_selector_from_ref(sent_mailbox, path="sentMailbox") if sent_mailbox else None
        )
        return IdentityChanges(values, mailbox, sent_mailbox is not UNSET, error_path)


@strawberry.input(description="Input of identityCreate.")
class IdentityCreateInput(IdentityPatch, Options):
    user: UserRef | None = attribute_field(
        "User who gets the identity. Default: the signed-in user.", default=UNSET
    )
    address: EmailAddress = attribute_field(
        "Address of the identity, without `*`. The user must be allowed to send as it."
    )


@strawberry.input(description="Input of identityUpdate.")
class IdentityUpdateInput(Options):
    identities: list[IdentityRef] = attribute_field(
        "Identities to change, 1 to 1,000 by default. One whose address the user can no longer "
        "send as is NOT_FOUND."
    )
    set: IdentityPatch = attribute_field(
        "Values to change, the same for all identities. At least one value is required."
    )


@strawberry.input(description="Input of identityDelete.")
class IdentityDeleteInput(Options):
    identities: list[IdentityRef] = attribute_field(
        "Identities whose stored values are deleted, 1 to 1,000 by default. An identity without "
        "stored values is refused with CONFLICT."
    )


@strawberry.type(description="Payload of identityCreate.")
class IdentityPayload(MutationPayload):
    identity: Identity | None = attribute_field("Created identity.", default=None)


@strawberry.type(description="Payload of identityUpdate.")
class IdentitiesPayload(MutationPayload):
    identities: list[Identity] = attribute_field(
        "Identities of the input in their new state, in the order of the input.",
        default_factory=list,
    )


@strawberry.type
class IdentityMutation:
    @mutation(
        "Stores display name, signature and other values for an address that the user can send "
        "as. An address that already has stored values is a CONFLICT. A user has at most 100 "
        "identities with stored values, without those that the user can no longer send as "
        "(LIMIT_REACHED). A DOMAIN_ADMIN needs the permission BCC_RULES to set `bcc` or `replyTo` "
        "of other users. If an administrator sets `bcc` or `replyTo` for another user, that user "
        "gets a message. These values are removed when the administrator loses the right to set "
        "them. FORBIDDEN_OPERATION if the user can't send as the address.",
        scope=Scope.SETTINGS,
        access=MANAGED.with_scope(Scope.FULL),
    )
    async def identity_create(self, info: Info, input: IdentityCreateInput) -> IdentityPayload:
        owner = await require_visible_user_id_if_named(info, input.user or None)
        key = await identity_mutations.create_identity(
            info.context, owner, input.address, input.to_identity_changes()
        )
        (identity,) = await _require_visible_identities(info, [key])
        return IdentityPayload(identity=identity)

    @mutation(
        "Changes display name, signature and other values of identities, all or none. All given "
        "identities get the same values. An identity that has no stored values yet, since it "
        "follows from an address of the user, gets stored values. For another user, an identity "
        "without stored values is NOT_FOUND if its address is a forwarding address or is in "
        "`allowedSenders`: use `identityCreate`. A DOMAIN_ADMIN needs the permission BCC_RULES to "
        "set `bcc` or `replyTo` of other users. If an administrator sets `bcc` or `replyTo` for "
        "another user, that user gets a message. These values are removed when the administrator "
        "loses the right to set them. LIMIT_REACHED for more than 1,000 references (by default), "
        "or if a user would have more than 100 identities with stored values.",
        scope=Scope.SETTINGS,
        access=MANAGED.with_scope(Scope.FULL),
    )
    async def identity_update(self, info: Info, input: IdentityUpdateInput) -> IdentitiesPayload:
        keys = ids_from_refs(info, input.identities, "identities")
        await identity_mutations.update_identities(
            info.context, keys, input.set.to_identity_changes("set")
        )
        return IdentitiesPayload(identities=await _require_visible_identities(info, keys))

    @mutation(
        "Deletes the stored values of identities, such as display name and signature, all or none. "
        "The identities then have default values. A user who can send as such an address can still "
        "send as it. An identity without stored values is a CONFLICT. LIMIT_REACHED for more than "
        "1,000 references (by default).",
        scope=Scope.SETTINGS,
        access=MANAGED.with_scope(Scope.FULL),
    )
    async def identity_delete(self, info: Info, input: IdentityDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.identities, "identities")
        await identity_mutations.delete_identities(info.context, keys)
        return DeletePayload.of_keys("Identity", keys)


async def _require_visible_identities(info: Info, identity_ids: list[int]) -> list[Identity]:
    """Load identities by id, in that order. Raises NotFound if one is gone."""
    rows = await info.context.load_many(
        identity_loaders.load_visible_identities_by_id, identity_ids
    )
    return [Identity.from_row(require_found(row)) for row in rows]
