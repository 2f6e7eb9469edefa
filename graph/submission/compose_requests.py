"""GraphQL types, mutation and subscription of compose requests."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.files.types import File
from graph.mailboxes.types import Mailbox
from graph.messages.content_fields import MessageReference
from graph.messages.mime_parts import MailAddress
from graph.submission.compose_inputs import NamedAddressInput, ReferenceInput, composed_of
from graph.submission.identities import Identity
from graph.submission.inputs import FileAttachmentInput, address, files_given
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info, field, subscription
from graph.types.mutations import mutation
from graph.types.object_views import Made, Viewed
from graph.types.references import MailboxRef, ReferenceAction, UserRef, named, owner_named
from graph.types.row_mapping import Shape, identified, link, listed
from mail.compose.message_builder import Priority
from models.users.roles import Scope
from resolvers.files import stored_files
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import loaders as message_loaders
from resolvers.submission import compose_requests, identities
from resolvers.submission.compose_requests import Asking
from resolvers.submission.composition import Fields


def _people(name: str) -> Viewed:
    """Return a field that shows a stored list of addresses."""
    return Viewed(("written",), lambda written: written.get(name) or [], MailAddress, many=True)


def _said(name: str) -> Made:
    """Return a field that shows a stored value of the message to compose."""
    return Made(("written",), lambda written: written.get(name))


@strawberry.type(description="A compose window to open. It lasts for ten minutes.")
class ComposeRequest(Shape):
    identity: Identity | None = link(
        "identity_id",
        identities.by_ids,
        Identity.maybe,
        description="Who is to send; null = the default.",
    )
    to: list[MailAddress] = leaf("To.")
    cc: list[MailAddress] = leaf("Cc.")
    bcc: list[MailAddress] = leaf("Bcc.")
    reply_to: list[MailAddress] = leaf("Reply-To.")
    subject: str | None = leaf("Subject.")
    text: str | None = leaf("Plain text, with the quote and the links that were asked for.")
    html: str | None = leaf(
        "The same as HTML, as it was given: to be made safe before it is shown."
    )
    mailbox: Mailbox | None = link(
        "mailbox_id",
        mailbox_loaders.by_ids,
        Mailbox.maybe,
        description="Folder for the copy; null = the usual one.",
    )
    priority: Priority = leaf("How much it hurries.")
    requested_at: datetime = leaf("Asked at.")
    requested_by: str | None = leaf("Who asked: a user, or the name of a key.")
    expires_at: datetime = leaf("Too late from then on.")

    batch = staticmethod(compose_requests.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("ComposeRequest"),
        "to": _people("to"),
        "cc": _people("cc"),
        "bcc": _people("bcc"),
        "reply_to": _people("reply_to"),
        "subject": _said("subject"),
        "text": _said("text"),
        "html": _said("html"),
        "priority": Made(("written",), lambda written: Priority(written["priority"])),
        "requested_at": Made(("created_at",), lambda at: at),
    }

    @field("Files to attach; not those that are gone.", "written")
    async def files(self, info: Info) -> list[File]:
        rows = await info.context.load_all(stored_files.by_ids, self.row.written["files"])
        return await listed(info, File, [row for row in rows if row is not None])

    @field("The message it answers or forwards.", "written")
    async def reference(self, info: Info) -> MessageReference | None:
        stored = self.row.written.get("reference")
        if not stored:
            return None
        row = await info.context.load(message_loaders.by_ids, stored[0])
        return MessageReference(action=ReferenceAction(stored[1]), row=row)


@strawberry.input(description="Input of composeRequest.")
class ComposeRequestInput(Options):
    user: UserRef | None = leaf(
        "Whose clients; default the viewer's own, others' for who may act as them.", default=UNSET
    )
    identity: strawberry.ID | None = leaf("Who is to send.", default=UNSET)
    to: list[NamedAddressInput] | None = leaf("Default: those an answer goes to.", default=UNSET)
    cc: list[NamedAddressInput] | None = leaf("Copies.", default=UNSET)
    bcc: list[NamedAddressInput] | None = leaf("Hidden copies.", default=UNSET)
    reply_to: list[NamedAddressInput] | None = leaf("Answers go there.", default=UNSET)
    subject: str | None = leaf("Default that of the reference.", default=UNSET)
    text: str | None = leaf("Plain text.", default=UNSET)
    html: str | None = leaf("HTML.", default=UNSET)
    file_attachments: list[FileAttachmentInput] | None = leaf(
        "Stored files of the user: to attach, or linked to below the text.", default=UNSET
    )
    mailbox: MailboxRef | None = leaf("Folder for the copy.", default=UNSET)
    priority: Priority = leaf("How much it hurries.", default=Priority.NORMAL)
    reference: ReferenceInput | None = leaf(
        "The message it answers or forwards; its attachments are the client's to add.",
        default=UNSET,
    )


@strawberry.type(description="Answer of composeRequest.")
class ComposeRequestPayload(MutationPayload):
    delivered: int = leaf("How many clients hear of it.", default=0)
    request: ComposeRequest | None = leaf("As they see it.", default=None)


@strawberry.type
class ComposeMutation:
    @mutation(
        "Opens a window to write in in each client of the user that listens to composeRequested. "
        "USER_OFFLINE where there is none: then nothing is kept.",
        scope=Scope.SUBMIT,
    )
    async def compose_request(
        self, info: Info, input: ComposeRequestInput
    ) -> ComposeRequestPayload:
        values: dict[str, Any] = await composed_of(info, input)
        fields = Fields(**values, files=files_given(info, input.file_attachments or None))
        request = Asking(
            fields,
            named(input.mailbox) if input.mailbox else None,
            await owner_named(info, input.user or None),
            address(info),
        )
        result = await compose_requests.request(info.context, request)
        return ComposeRequestPayload(
            delivered=result.delivered, request=ComposeRequest.of(result.request)
        )


@strawberry.type
class ComposeSubscription:
    @subscription(
        "Windows to write in that the viewer's clients are asked to open, as they are asked. "
        "Who comes back says after which: those that are not over come first.",
        scope=Scope.MAIL_READ,
    )
    async def compose_requested(
        self, info: Info, after: strawberry.ID | None = UNSET
    ) -> AsyncIterator[ComposeRequest]:
        key = global_ids.decode("ComposeRequest", after, path="after") if after else None
        async for row in compose_requests.requested(info.context, key):
            yield ComposeRequest.of(row)
