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
from graph.types.object_access import MANAGED
from graph.types.object_references import id_from_ref
from graph.types.object_views import DerivedField, NestedViewField
from graph.types.references import (
    MailboxRef,
    UserRef,
    mailbox_selector_from_ref,
    require_visible_user_id_if_named,
)
from graph.types.row_mapping import NodeView, global_id_field, link, objects_from_rows_with_links
from mail.compose.message_draft import Priority
from models.messages.tables import MessageRelationKind
from models.users.roles import AdminPermission, Scope
from resolvers.files import stored_files
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import loaders as message_loaders
from resolvers.submission import compose_requests
from resolvers.submission.compose_requests import NewComposeRequest
from resolvers.submission.composition import MessageFields
from resolvers.submission.identities import loaders as identity_loaders

LastSeenArgument = Annotated[
    ComposeRequestRef | None,
    strawberry.argument(
        description="Last request that this client has received. Default: none; requests before "
        "the subscription are left out."
    ),
]


def _addresses_field(key: str) -> NestedViewField:
    """Return a field that shows a stored list of addresses."""
    return NestedViewField(
        ("content",), lambda content: content.get(key) or [], MailAddress, is_list=True
    )


def _message_field(key: str) -> DerivedField:
    """Return a field that shows a stored value of the message to compose."""
    return DerivedField(("content",), lambda content: content.get(key))


@strawberry.type(
    description="Request to open a compose window in the clients of a user. It expires after 10 "
    "minutes."
)
class ComposeRequest(NodeView):
    identity: Identity | None = link(
        "identity_id",
        identity_loaders.load_visible_identities_by_id,
        Identity.from_row_or_none,
        description=(
            "Identity to send the new message with. Null: the default identity, or the caller "
            "can't see the identity."
        ),
    )
    to: list[MailAddress] = attribute_field(
        "Addresses for the header field To of the new message. By default at most 400."
    )
    cc: list[MailAddress] = attribute_field(
        "Addresses for the header field Cc of the new message. By default at most 400."
    )
    bcc: list[MailAddress] = attribute_field(
        "Addresses for the header field Bcc of the new message. By default at most 400."
    )
    reply_to: list[MailAddress] = attribute_field(
        "Addresses for the header field Reply-To of the new message. By default at most 400."
    )
    subject: str | None = attribute_field("Subject of the new message. Null: none was given.")
    text: str | None = attribute_field(
        "Plain text of the new message, with the quote and the links to files. Null: none was "
        "given."
    )
    html: str | None = attribute_field(
        "HTML of the new message, not sanitized: the client must sanitize it before it shows it. "
        "Null: none was given."
    )
    mailbox: Mailbox | None = link(
        "mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        Mailbox.from_row_or_none,
        description="Mailbox for the stored copy of the new message. Null: that of the identity, "
        "or Sent.",
    )
    priority: Priority = attribute_field("Priority of the new message.")
    requested_at: datetime = attribute_field("Time when the request was created.")
    requested_by: str | None = attribute_field(
        "Username of the user who created the request, `key NAME` for an API key of the platform, "
        "or `operator` for the bootstrap key."
    )
    expires_at: datetime = attribute_field(
        "Time when the request expires: 10 minutes after it was created."
    )

    load_batch = staticmethod(compose_requests.load_own_open_compose_requests_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("ComposeRequest"),
        "to": _addresses_field("to"),
        "cc": _addresses_field("cc"),
        "bcc": _addresses_field("bcc"),
        "reply_to": _addresses_field("reply_to"),
        "subject": _message_field("subject"),
        "text": _message_field("text"),
        "html": _message_field("html"),
        "priority": DerivedField(("content",), lambda content: Priority(content["priority"])),
        "requested_at": DerivedField(("created_at",), lambda at: at),
    }

    @field(
        "Stored files that the client attaches to the new message. Files that were deleted since"
        " then are missing. A caller who created the request for another user gets an empty "
        "list. At most 250.",
        "content",
    )
    async def files(self, info: Info) -> list[File]:
        rows = await info.context.load_many(
            stored_files.load_own_files_by_id, self.row.content["files"]
        )
        return await objects_from_rows_with_links(
            info, File, [row for row in rows if row is not None]
        )

    @field("Message that the new message replies to or forwards. Null: none.", "content")
    async def original(self, info: Info) -> MessageRelation | None:
        stored = self.row.content.get("source")
        if not stored:
            return None
        row = await info.context.load(message_loaders.load_visible_by_ids, stored[0])
        return MessageRelation(relation=MessageRelationKind(stored[1]), row=row)


@strawberry.input(description="Input of composeRequestCreate.")
class ComposeRequestCreateInput(Options):
    user: UserRef | None = attribute_field(
        "User whose clients open the window. Default: the signed-in user.",
        default=UNSET,
    )
    identity: IdentityRef | None = attribute_field(
        "Identity of `user` to send the new message with. Default: the default identity of `user`.",
        default=UNSET,
    )
    to: list[MailAddressInput] | None = attribute_field(
        "Addresses for the header field To of the new message, by default at most 400. Default: "
        "none. If both `to` and `cc` are absent or null, a reply goes to the Reply-To of "
        "`original`, else its From, else its Sender. A reply to the user's own message goes to "
        "its To addresses. A reply to all also goes to the other To addresses of `original`, "
        "without the user's own.",
        default=UNSET,
    )
    cc: list[MailAddressInput] | None = attribute_field(
        "Addresses for the header field Cc of the new message, by default at most 400. Default: "
        "none. If both `to` and `cc` are absent or null, a reply to all goes to the other Cc "
        "addresses of `original`, without the user's own.",
        default=UNSET,
    )
    bcc: list[MailAddressInput] | None = attribute_field(
        "Addresses for the header field Bcc of the new message, by default at most 400. Default: "
        "none.",
        default=UNSET,
    )
    reply_to: list[MailAddressInput] | None = attribute_field(
        "Addresses for the header field Reply-To of the new message, by default at most 400. "
        "Default: none.",
        default=UNSET,
    )
    subject: str | None = attribute_field(
        "Subject of the new message, at most 2,048 bytes. Default: the subject of `original`. "
        "`Re: ` or, for a forward, `Fwd: ` is put before it, unless it begins with a word and a "
        "colon such as `Re:`. Without `original` the default is empty.",
        default=UNSET,
    )
    text: str | None = attribute_field(
        "Plain text of the new message, at most 1 MiB. A quote of `original` and links to files "
        "are added to it. Default: none.",
        default=UNSET,
    )
    html: str | None = attribute_field(
        "HTML of the new message, at most 12 MiB. It is not sanitized. A quote of `original` and "
        "links to files are added to it. Default: none.",
        default=UNSET,
    )
    file_attachments: list[FileAttachmentInput] | None = attribute_field(
        "Stored files of `user`, at most 250. A file with the mode ATTACH is attached. For a file "
        "with another mode, a link is added below the text. This requires the scope MAIL, and is "
        "refused if `user` is another user. Default: none.",
        default=UNSET,
    )
    mailbox: MailboxRef | None = attribute_field(
        "Mailbox of `user` for the stored copy of the new message. Default: that of the identity, "
        "or the mailbox with the special use SENT.",
        default=UNSET,
    )
    priority: Priority = attribute_field(
        "Priority of the new message. Default: NORMAL.", default=Priority.NORMAL
    )
    original: MessageRelationInput | None = attribute_field(
        "Message that the new message replies to or forwards. Requires the scope MAIL_READ, and "
        "is refused if `user` is another user. `original.attachments` and a true "
        "`original.includeMessage` are refused, since the client attaches files. Default: none.",
        default=UNSET,
    )


@strawberry.type(description="Payload of composeRequestCreate.")
class ComposeRequestCreatePayload(MutationPayload):
    delivered_count: int = attribute_field(
        "Number of clients that were subscribed to `composeRequested` when the request was "
        "created. 0 if the mutation failed.",
        default=0,
    )
    compose_request: ComposeRequest | None = attribute_field(
        "Created request, as the clients receive it.", default=None
    )


@strawberry.type
class ComposeMutation:
    @mutation(
        "Asks the clients of a user that are subscribed to `composeRequested` to open a compose "
        "window. Nothing is sent. Fails with USER_OFFLINE, and stores nothing, if no client is "
        "subscribed. A user has at most 100 open requests (LIMIT_REACHED), which expire after 10 "
        "minutes. LIMIT_REACHED also for more than 400 addresses in a field (by default), or more "
        "than 100 links to a file. RATE_LIMITED if a link has a password, and the server has to "
        "hash too many passwords now: retry.",
        scope=Scope.SUBMIT,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def compose_request_create(
        self, info: Info, input: ComposeRequestCreateInput
    ) -> ComposeRequestCreatePayload:
        values: dict[str, Any] = await resolve_common_fields(info, input)
        fields = MessageFields(
            **values, files=file_attachments_from_inputs(info, input.file_attachments or None)
        )
        request = NewComposeRequest(
            fields,
            mailbox_selector_from_ref(input.mailbox) if input.mailbox else None,
            await require_visible_user_id_if_named(info, input.user or None),
            absolute_url_builder(info),
        )
        result = await compose_requests.create_compose_request_for_listeners(info.context, request)
        return ComposeRequestCreatePayload(
            delivered_count=result.listener_count,
            compose_request=ComposeRequest.from_row(result.request),
        )


@strawberry.type
class ComposeSubscription:
    @subscription(
        "Returns the requests of `composeRequestCreate` to open a compose window for the signed-in "
        "user. Every subscribed client gets every request. A client counts as reachable for "
        "`composeRequestCreate` while it is subscribed. A request expires after 10 minutes. With "
        "`after`, the stream begins with the requests that were created after the given request "
        "and have not expired. If the server does not know the given request, the stream begins "
        "with all requests that have not expired.",
        scope=Scope.MAIL_READ,
    )
    async def compose_requested(
        self,
        info: Info,
        after: LastSeenArgument = UNSET,
    ) -> AsyncIterator[ComposeRequest]:
        key = id_from_ref(after, "after") if after else None
        async for row in compose_requests.follow_compose_requests(info.context, key):
            yield ComposeRequest.from_row(row)
