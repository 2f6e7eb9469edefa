"""GraphQL types and mutations of identities."""

from collections.abc import Mapping
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox
from graph.submission.references import IdentityRef
from graph.types import global_ids
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info
from graph.types.mutations import mutation
from graph.types.object_references import ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import (
    MailboxRef,
    UserRef,
    load_named_user_id,
    mailbox_selector_from_ref,
)
from graph.types.row_mapping import NodeView, global_id_field, link, selected_columns
from graph.types.scalars import EmailAddress
from models.errors import require_found
from models.store.keyset_pages import Cursor
from models.users.roles import Scope
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.submission import identities, identity_mutations, identity_pages
from resolvers.submission.identity_mutations import IdentityChanges
from resolvers.submission.identity_pages import IdentityPageKey

TEXT_FIELDS = ("name", "signature_text", "signature_html")


@strawberry.type(
    description="A sender that a user may use.", directives=[Auth(scope=Scope.MAIL_READ)]
)
class Identity(NodeView):
    name: str | None = attribute_field(
        "From name: its own, else that of the address, or of the account."
    )
    address: EmailAddress = attribute_field("From address.")
    default: bool = attribute_field(
        "Used when none is named: the chosen one, else the main address."
    )
    reply_to: EmailAddress | None = attribute_field("Reply-To of messages that have none.")
    bcc: list[EmailAddress] = attribute_field("Always copied, without being seen.")
    signature_text: str | None = attribute_field("Plain signature, for clients to put in.")
    signature_html: str | None = attribute_field(
        "The same as HTML, without scripts, forms and what else is dangerous in a page."
    )
    sent_mailbox: Mailbox | None = link(
        "mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        Mailbox.from_row_or_none,
        description="Where copies go; null = Sent.",
    )

    load_batch = staticmethod(identities.load_visible_identities_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Identity")}


async def load_identity_page(
    info: Info, user_id: int, page_arguments: PageArguments
) -> Connection[Identity]:
    """Load a page of the identities of an account, by address."""
    ctx, requested_page = info.context, page_request(identity_pages.LIST_ORDERING, *page_arguments)
    page_key = IdentityPageKey(user_id, requested_page, selected_columns(info, Identity))
    return await connection_of_page(
        info,
        Identity,
        await ctx.load(identity_pages.load_identity_pages, page_key),
        lambda one: Cursor(requested_page.ordering, *one.sort_key),
        lambda: ctx.load(identity_pages.count_identities, page_key),
    )


@strawberry.input(description="What is said of an identity; absent = unchanged.")
class IdentityPatch:
    name: str | None = attribute_field(
        "From name, at most 255 bytes; null = that of the address.", default=UNSET
    )
    default: bool | None = attribute_field(
        "Used when none is named, instead of the one that was.", default=UNSET
    )
    reply_to: EmailAddress | None = attribute_field("Reply-To; null = none.", default=UNSET)
    bcc: list[EmailAddress] | None = attribute_field(
        "Always copied, at most 20; null = nobody.", default=UNSET
    )
    signature_text: str | None = attribute_field("Plain signature, at most 64 KiB.", default=UNSET)
    signature_html: str | None = attribute_field(
        "HTML signature, at most 64 KiB; what is dangerous is taken out.", default=UNSET
    )
    sent_mailbox: MailboxRef | None = attribute_field(
        "Where copies go, a folder of the user's own; null = Sent.", default=UNSET
    )

    def to_identity_changes(self, *error_path: str) -> IdentityChanges:
        """Convert the input to changes of an identity. Absent fields are left out.

        `error_path` is the path of the input, for errors. Raises Invalid if the mailbox has no
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
    user: UserRef | None = attribute_field("Whose; default: the viewer's.", default=UNSET)
    address: EmailAddress = attribute_field("One that the user may send as.")


@strawberry.input(description="Input of identityUpdate.")
class IdentityUpdateInput(Options):
    identities: list[IdentityRef] = attribute_field("The identities to update.")
    set: IdentityPatch = attribute_field("The fields to change.")


@strawberry.input(description="Input of identityDelete.")
class IdentityDeleteInput(Options):
    identities: list[IdentityRef] = attribute_field("The identities to delete.")


@strawberry.type(description="Result of identityCreate.")
class IdentityPayload(MutationPayload):
    identity: Identity | None = attribute_field("The new identity.", default=None)


@strawberry.type(description="Result of identityUpdate.")
class IdentitiesPayload(MutationPayload):
    identities: list[Identity] = attribute_field(
        "The identities, in the order of the references.", default_factory=list
    )


@strawberry.type
class IdentityMutation:
    @mutation(
        "Says of an address, of which nothing was said yet, what belongs to it. Of others a "
        "DOMAIN_ADMIN needs BCC_RULES for bcc and replyTo.",
        scope=Scope.SETTINGS,
    )
    async def identity_create(self, info: Info, input: IdentityCreateInput) -> IdentityPayload:
        owner = await load_named_user_id(info, input.user or None)
        key = await identity_mutations.create_identity(
            info.context, owner, input.address, input.to_identity_changes()
        )
        (identity,) = await _load_identities(info, [key])
        return IdentityPayload(identity=identity)

    @mutation("Name, signature, Reply-To and the rest, as identityCreate.", scope=Scope.SETTINGS)
    async def identity_update(self, info: Info, input: IdentityUpdateInput) -> IdentitiesPayload:
        keys = ids_from_refs(info, input.identities, "identities")
        await identity_mutations.update_identities(
            info.context, keys, input.set.to_identity_changes("set")
        )
        return IdentitiesPayload(identities=await _load_identities(info, keys))

    @mutation(
        "Takes back what was said of identities, all or none. It does not touch the address: "
        "where the user may still send as it by itself, it stays with its defaults.",
        scope=Scope.SETTINGS,
    )
    async def identity_delete(self, info: Info, input: IdentityDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.identities, "identities")
        await identity_mutations.delete_identities(info.context, keys)
        return DeletePayload(deleted_ids=[global_ids.encode("Identity", key) for key in keys])


async def _load_identities(info: Info, identity_ids: list[int]) -> list[Identity]:
    """Load identities by id, in that order. Raises NotFound if one is gone."""
    rows = await info.context.load_many(identities.load_visible_identities_by_id, identity_ids)
    return [Identity.from_row(require_found(row)) for row in rows]
