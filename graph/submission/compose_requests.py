"""GraphQL types, mutation and subscription of compose requests."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.files.types import File
from graph.mailboxes.types import Mailbox
from graph.messages.content_fields import MessageRelation
from graph.messages.mime_parts import MailAddress
from graph.submission.compose_inputs import (
    MailAddressInput,
    MessageRelationInput,
    resolve_common_fields,
)
from graph.submission.identities import Identity
from graph.submission.inputs import (
    FileAttachmentInput,
    absolute_url_builder,
    file_attachments_from_inputs,
)
from graph.submission.references import ComposeRequestRef, IdentityRef
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info, field, subscription
from graph.types.mutations import mutation
from graph.types.object_references import id_from_ref
from graph.types.object_views import DerivedField, NestedViewField
from graph.types.references import (
    MailboxRef,
    MessageRelationKind,
    UserRef,
    load_named_user_id,
    mailbox_selector_from_ref,
)
from graph.types.row_mapping import NodeView, global_id_field, link, objects_from_rows_with_links
from mail.compose.message_builder import Priority
from models.users.roles import Scope
from resolvers.files import stored_files
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import loaders as message_loaders
from resolvers.submission import compose_requests, identities
from resolvers.submission.compose_requests import NewComposeRequest
from resolvers.submission.composition import MessageFields

LastSeenArgument = Annotated[
    ComposeRequestRef | None,
    strawberry.argument(
        description="Last request that this client has seen. Default: none; requests before the "
        "subscription are left out."
    ),
]


def _addresses_field(key: str) -> NestedViewField:
    """Return a field that shows a stored list of addresses."""
    return NestedViewField(
        ("written",), lambda content: content.get(key) or [], MailAddress, is_list=True
    )


def _message_field(key: str) -> DerivedField:
    """Return a field that shows a stored value of the message to compose."""
    return DerivedField(("written",), lambda content: content.get(key))


@strawberry.type(description="A compose window to open. It lasts for ten minutes.")
class ComposeRequest(NodeView):
    identity: Identity | None = link(
        "identity_id",
        identities.load_visible_identities_by_id,
        Identity.from_row_or_none,
        description="Who is to send; null = the default.",
    )
    to: list[MailAddress] = attribute_field("To.")
    cc: list[MailAddress] = attribute_field("Cc.")
    bcc: list[MailAddress] = attribute_field("Bcc.")
    reply_to: list[MailAddress] = attribute_field("Reply-To.")
    subject: str | None = attribute_field("Subject.")
    text: str | None = attribute_field(
        "Plain text, with the quote and the links that were asked for."
    )
    html: str | None = attribute_field(
        "The same as HTML, as it was given: to be made safe before it is shown."
    )
    mailbox: Mailbox | None = link(
        "mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        Mailbox.from_row_or_none,
        description="Folder for the copy; null = the usual one.",
    )
    priority: Priority = attribute_field("How much it hurries.")
    requested_at: datetime = attribute_field("Asked at.")
    requested_by: str | None = attribute_field("Who asked: a user, or the name of a key.")
    expires_at: datetime = attribute_field("Too late from then on.")

    load_batch = staticmethod(compose_requests.load_own_compose_requests_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("ComposeRequest"),
        "to": _addresses_field("to"),
        "cc": _addresses_field("cc"),
        "bcc": _addresses_field("bcc"),
        "reply_to": _addresses_field("reply_to"),
        "subject": _message_field("subject"),
        "text": _message_field("text"),
        "html": _message_field("html"),
        "priority": DerivedField(("written",), lambda written: Priority(written["priority"])),
        "requested_at": DerivedField(("created_at",), lambda at: at),
    }

    @field("Files to attach; not those that are gone.", "written")
    async def files(self, info: Info) -> list[File]:
        rows = await info.context.load_many(
            stored_files.load_own_files_by_id, self.row.written["files"]
        )
        return await objects_from_rows_with_links(
            info, File, [row for row in rows if row is not None]
        )

    @field("The message that the new message replies to or forwards. Null: none.", "written")
    async def source(self, info: Info) -> MessageRelation | None:
        stored = self.row.written.get("source")
        if not stored:
            return None
        row = await info.context.load(message_loaders.load_visible_by_ids, stored[0])
        return MessageRelation(relation=MessageRelationKind(stored[1]), row=row)


@strawberry.input(description="Input of composeRequest.")
class ComposeRequestInput(Options):
    user: UserRef | None = attribute_field(
        "Whose clients; default the viewer's own, others' for who may act as them.", default=UNSET
    )
    identity: IdentityRef | None = attribute_field(
        "The sender's identity. Default: the default identity.", default=UNSET
    )
    to: list[MailAddressInput] | None = attribute_field(
        "Default: those an answer goes to.", default=UNSET
    )
    cc: list[MailAddressInput] | None = attribute_field("Copies.", default=UNSET)
    bcc: list[MailAddressInput] | None = attribute_field("Hidden copies.", default=UNSET)
    reply_to: list[MailAddressInput] | None = attribute_field("Answers go there.", default=UNSET)
    subject: str | None = attribute_field(
        "Subject. Default: derived from the subject of `source`.", default=UNSET
    )
    text: str | None = attribute_field("Plain text.", default=UNSET)
    html: str | None = attribute_field("HTML.", default=UNSET)
    file_attachments: list[FileAttachmentInput] | None = attribute_field(
        "Stored files of the user: to attach, or linked to below the text.", default=UNSET
    )
    mailbox: MailboxRef | None = attribute_field("Folder for the copy.", default=UNSET)
    priority: Priority = attribute_field("How much it hurries.", default=Priority.NORMAL)
    source: MessageRelationInput | None = attribute_field(
        "The message that the new message replies to or forwards. The client adds its attachments.",
        default=UNSET,
    )


@strawberry.type(description="Answer of composeRequest.")
class ComposeRequestPayload(MutationPayload):
    delivered_count: int = attribute_field(
        "Number of clients that received the request.", default=0
    )
    compose_request: ComposeRequest | None = attribute_field(
        "The request, as the clients receive it.", default=None
    )


@strawberry.type
class ComposeMutation:
    @mutation(
        "Asks each client of the user that subscribes to composeRequested to open a compose "
        "window. Fails with USER_OFFLINE, and stores nothing, if no client subscribes.",
        scope=Scope.SUBMIT,
    )
    async def compose_request(
        self, info: Info, input: ComposeRequestInput
    ) -> ComposeRequestPayload:
        values: dict[str, Any] = await resolve_common_fields(info, input)
        fields = MessageFields(
            **values, files=file_attachments_from_inputs(info, input.file_attachments or None)
        )
        request = NewComposeRequest(
            fields,
            mailbox_selector_from_ref(input.mailbox) if input.mailbox else None,
            await load_named_user_id(info, input.user or None),
            absolute_url_builder(info),
        )
        result = await compose_requests.create_compose_request(info.context, request)
        return ComposeRequestPayload(
            delivered_count=result.listener_count,
            compose_request=ComposeRequest.from_row(result.request),
        )


@strawberry.type
class ComposeSubscription:
    @subscription(
        "Returns the compose windows that the viewer's clients are asked to open. With `after`, "
        "returns the later requests that have not expired first.",
        scope=Scope.MAIL_READ,
    )
    async def compose_requested(
        self, info: Info, after: LastSeenArgument = UNSET
    ) -> AsyncIterator[ComposeRequest]:
        key = id_from_ref(after, "after") if after else None
        async for row in compose_requests.follow_compose_requests(info.context, key):
            yield ComposeRequest.from_row(row)
