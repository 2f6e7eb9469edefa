"""GraphQL types and mutations of identities."""

from collections.abc import Mapping
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Auth, Info
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import MailboxRef, UserRef, keys_of, named, owner_named
from graph.types.row_mapping import Shape, columns, identified, link
from graph.types.scalars import EmailAddress
from models.errors import found
from models.store.keyset_pages import Cursor
from models.users.roles import Scope
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.submission import identities, identity_mutations
from resolvers.submission.identities import OfUser
from resolvers.submission.identity_mutations import Said

NAMES = ("name", "signature_text", "signature_html")


@strawberry.type(
    description="A sender that a user may use.", directives=[Auth(scope=Scope.MAIL_READ)]
)
class Identity(Shape):
    name: str | None = leaf("From name: its own, else that of the address, or of the account.")
    address: EmailAddress = leaf("From address.")
    default: bool = leaf("Used when none is named: the chosen one, else the main address.")
    reply_to: EmailAddress | None = leaf("Reply-To of messages that have none.")
    bcc: list[EmailAddress] = leaf("Always copied, without being seen.")
    signature_text: str | None = leaf("Plain signature, for clients to put in.")
    signature_html: str | None = leaf(
        "The same as HTML, without scripts, forms and what else is dangerous in a page."
    )
    sent_mailbox: Mailbox | None = link(
        "mailbox_id",
        mailbox_loaders.by_ids,
        Mailbox.maybe,
        description="Where copies go; null = Sent.",
    )

    batch = staticmethod(identities.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("Identity")}


async def identity_page(
    info: Info, user_id: int, first: int | None, after: str | None
) -> Connection[Identity]:
    """Load a page of the identities of an account, by address."""
    ctx, requested_page = info.context, page_asked(identities.ORDER, first, after, None, None)
    page_key = OfUser(user_id, requested_page, columns(info, Identity))
    return await connected(
        info,
        Identity,
        await ctx.load(identities.pages, page_key),
        lambda one: Cursor(requested_page.ordering, *one.place),
        lambda: ctx.load(identities.counts, page_key),
    )


@strawberry.input(description="What is said of an identity; absent = unchanged.")
class IdentityPatch:
    name: str | None = leaf(
        "From name, at most 255 bytes; null = that of the address.", default=UNSET
    )
    default: bool | None = leaf(
        "Used when none is named, instead of the one that was.", default=UNSET
    )
    reply_to: EmailAddress | None = leaf("Reply-To; null = none.", default=UNSET)
    bcc: list[EmailAddress] | None = leaf(
        "Always copied, at most 20; null = nobody.", default=UNSET
    )
    signature_text: str | None = leaf("Plain signature, at most 64 KiB.", default=UNSET)
    signature_html: str | None = leaf(
        "HTML signature, at most 64 KiB; what is dangerous is taken out.", default=UNSET
    )
    sent_mailbox: MailboxRef | None = leaf(
        "Where copies go, a folder of the user's own; null = Sent.", default=UNSET
    )

    def said(self, *at: str) -> Said:
        """Convert the input to changes of an identity. Absent fields are left out.

        `error_path` is the path of the input, for errors. Raises Invalid if the mailbox has no
        valid ID.
        """
        values: dict[str, Any] = {
            name: value
            for name in (*NAMES, "reply_to", "bcc")
            if (value := getattr(self, name)) is not UNSET
        }
        if isinstance(self.default, bool):
            values["preferred"] = self.default
        sent_mailbox = self.sent_mailbox
        mailbox = named(sent_mailbox, path="sentMailbox") if sent_mailbox else None
        return Said(values, mailbox, sent_mailbox is not UNSET, at)


@strawberry.input(description="Input of identityCreate.")
class IdentityCreateInput(IdentityPatch, Options):
    user: UserRef | None = leaf("Whose; default: the viewer's.", default=UNSET)
    address: EmailAddress = leaf("One that the user may send as.")


@strawberry.input(description="Input of identityUpdate.")
class IdentityUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    set: IdentityPatch = leaf("What to change.")


@strawberry.type(description="Identities, as they are now.")
class IdentitiesPayload(MutationPayload):
    identities: list[Identity] = leaf("In the order of the ids.", default_factory=list)


@strawberry.type
class IdentityMutation:
    @mutation(
        "Says of an address, of which nothing was said yet, what belongs to it. Of others a "
        "DOMAIN_ADMIN needs BCC_MAPS for bcc and replyTo.",
        scope=Scope.SETTINGS,
    )
    async def identity_create(self, info: Info, input: IdentityCreateInput) -> IdentitiesPayload:
        owner = await owner_named(info, input.user or None)
        key = await identity_mutations.create(info.context, owner, input.address, input.said())
        return await _now(info, [key])

    @mutation("Name, signature, Reply-To and the rest, as identityCreate.", scope=Scope.SETTINGS)
    async def identity_update(self, info: Info, input: IdentityUpdateInput) -> IdentitiesPayload:
        keys = keys_of(info, "Identity", input.ids)
        await identity_mutations.change(info.context, keys, input.set.said("set"))
        return await _now(info, keys)

    @mutation(
        "Takes back what was said of identities, all or none. It does not touch the address: "
        "where the user may still send as it by itself, it stays with its defaults.",
        scope=Scope.SETTINGS,
    )
    async def identity_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await identity_mutations.remove(info.context, keys_of(info, "Identity", input.ids))
        return DeletePayload(deleted_ids=input.ids)


async def _now(info: Info, keys: list[int]) -> IdentitiesPayload:
    """Load identities and return the payload with them. Raises NotFound if one is gone."""
    rows = await info.context.load_all(identities.by_ids, keys)
    return IdentitiesPayload(identities=[Identity.of(found(row)) for row in rows])
