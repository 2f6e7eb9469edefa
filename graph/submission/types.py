"""GraphQL types, queries, mutations and subscription of submissions."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import UndoToken
from graph.messages.content_fields import TlsInfo
from graph.messages.types import Message
from graph.submission.compose_inputs import WRITTEN, Composing, NamedAddressInput, composed
from graph.submission.inputs import (
    FileAttachmentInput,
    MergeInput,
    address,
    files_given,
    merged,
    values_given,
)
from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import MutationPayload, Options, Warning, leaf  # noqa: A004 - the outline's word
from graph.types.fields import Info, query, subscription
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import (
    MailboxRef,
    MessageRef,
    UserRef,
    is_given,
    keys_of,
    message_of,
    named,
    owner_named,
    plain,
)
from graph.types.row_mapping import Shape, asked, columns, identified, link
from graph.types.scalars import Duration, Upload, free_data
from models.errors import Invalid, NotFound, Problems
from models.queue.tables import DeliveryState, answer
from models.store.keyset_pages import Cursor
from models.submission.tables import SubmissionState
from models.users.roles import Scope
from resolvers.admin import progress
from resolvers.context import Context
from resolvers.files import stored_files
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import undo as bulk_undo
from resolvers.messages.content_access import refusals
from resolvers.queue import loaders as queue_loaders
from resolvers.queue.loaders import QueueName
from resolvers.submission import create as submission_create
from resolvers.submission import mutations as submission_mutations
from resolvers.submission import send_on_behalf
from resolvers.submission.create import Envelope, Outgoing, Sent, Shown
from resolvers.submission.drafts import Order
from resolvers.submission.outgoing_messages import ENTRIES


@strawberry.type(description="One recipient of a submission.")
class RecipientDelivery:
    recipient: str = leaf("Address.")
    state: DeliveryState = leaf("How far it has come.")
    attempts: int = leaf("How often it was tried.")
    next_attempt_at: datetime | None = leaf("Next try; null while one is under way, or it is held.")
    last_response: str | None = leaf("What the other side said last.")
    delivered_at: datetime | None = leaf("Taken by the other side.")
    mx: str | None = leaf("Server it was handed to.")
    tls: TlsInfo | None = leaf("Encryption, null = none.")
    reported_at: datetime | None = leaf(
        "When a report came back from a server that had taken it; null: none has."
    )
    reported_by: str | None = leaf("The server that reports, as it names itself.")
    report_proven: bool | None = leaf(
        "Whether the report shows that it is of a server that this was handed to: else anybody "
        "who knows the Message-ID may have written it."
    )
    queue_name: QueueName | None = leaf("Where it stands in the queue; null = it has left it.")

    @classmethod
    def of(cls, row: Any) -> "RecipientDelivery":
        """Return the delivery of a row."""
        return cls(
            recipient=row.recipient,
            state=row.state,
            attempts=row.attempts,
            next_attempt_at=row.next_at if row.lease is None and row.held_at is None else None,
            last_response=answer(row),
            delivered_at=row.delivered_at,
            mx=row.mx,
            tls=TlsInfo.maybe(row.tls),
            reported_at=row.reported_at,
            reported_by=row.reported_by,
            report_proven=row.report_proven,
            queue_name=queue_loaders.name_of(row),
        )


@strawberry.type(description="A message on its way.")
class Submission(Shape):
    queue_id: str = leaf("Id in the queue.")
    state: SubmissionState = leaf("Overall.")
    envelope_from: str = leaf("MAIL FROM.")
    send_time: datetime | None = leaf("Not before.")
    created_at: datetime = leaf("Handed in.")
    undo_until: datetime | None = leaf("Can be taken back until.")
    message: Message | None = link(
        "message_id",
        message_loaders.by_ids,
        Message.maybe,
        description="Stored copy.",
    )
    recipients: list[RecipientDelivery] = link(
        "id",
        submission_create.deliveries_of,
        lambda rows: [RecipientDelivery.of(row) for row in rows],
        description="Each recipient.",
    )

    batch = staticmethod(submission_create.seen_by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("Submission")}


async def submission_page(
    info: Info,
    user_id: int,
    states: list[SubmissionState] | None,
    page: tuple[object, object, object, object],
) -> Connection[Submission]:
    """Load a page of the submissions of an account, newest first.

    `page_arguments` are: first, after, last, before. Raises Forbidden if the viewer can't see them.
    """
    if refusal := await info.context.load(refusals, user_id):
        raise refusal
    state_filter = frozenset(states or ()) if is_given(states) else None
    requested_page = page_asked(submission_create.newest(state_filter), *page)
    page_key = submission_create.OfUser(
        user_id, requested_page, columns(info, Submission), state_filter
    )
    return await connected(
        info,
        Submission,
        await info.context.load(submission_create.pages, page_key),
        lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
        lambda: info.context.load(submission_create.counts, page_key),
    )


@strawberry.input(one_of=True, description="Names one submission.")
class SubmissionRef:
    id: strawberry.Maybe[strawberry.ID] = leaf("Global id.")
    queue_id: strawberry.Maybe[str] = leaf("Id in the queue.")


@strawberry.input(description="SMTP envelope, where it is not that of the header.")
class EnvelopeInput:
    from_: NamedAddressInput | None = leaf("MAIL FROM.", name="from", default=strawberry.UNSET)
    to: list[NamedAddressInput] | None = leaf("RCPT TO.", default=strawberry.UNSET)


@strawberry.input(description="Input of messageSend.")
class MessageSendInput(Composing):
    envelope: EnvelopeInput | None = leaf("Default: from the header.", default=strawberry.UNSET)
    mailbox: MailboxRef | None = leaf(
        "Folder for the copy; default that of the identity, else Sent.", default=strawberry.UNSET
    )
    upload_only: bool = leaf("Store, do not send.", default=False)
    is_draft: bool = leaf("Store as a draft, do not send.", default=False)
    send_time: datetime | None = leaf("Later.", default=strawberry.UNSET)
    undo_window: Duration | None = leaf("Hold that long first.", default=strawberry.UNSET)
    request_dsn: bool = leaf(
        "Ask for reports of delivery, delay and failure (RFC 3461).", default=False
    )
    user: UserRef | None = leaf(
        "For whom it is sent: an account you manage and may act as. Who may only send as "
        "somebody says so in from.",
        default=strawberry.UNSET,
    )
    raw: str | None = leaf(
        "Whole message, text or base64, in place of fields. Its From and Sender are checked, "
        "Date and Message-ID are added; it goes to its To, Cc and Bcc, unless envelope says.",
        default=strawberry.UNSET,
    )
    raw_upload: Upload | None = leaf("The same as upload.", default=strawberry.UNSET)
    file_attachments: list[FileAttachmentInput] | None = leaf(
        "Stored files, attached (needs the scope MAIL_READ) or linked to (MAIL).",
        default=strawberry.UNSET,
    )
    template: JSON | None = leaf(
        "Values for {{name}} in subject, text and html, where they are escaped. A name without "
        "a value is refused.",
        default=strawberry.UNSET,
    )
    merge: list[MergeInput] | None = leaf(
        f"A message for each of these, up to {ENTRIES}, in place of to, cc and bcc: all are "
        "sent, or none.",
        default=strawberry.UNSET,
    )
    encrypt: bool = leaf(
        "With the OpenPGP keys of all recipients: refused where one is not known here.",
        default=False,
    )
    meta_data: JSON | None = leaf(
        "Free data of the application, kept with the copy.", default=strawberry.UNSET
    )


async def _outgoing(info: Info, given: MessageSendInput, problems: Problems) -> Outgoing:
    """Convert the input to the request to send a message.

    Errors of attachments are added to `problems`. Raises NotFound, or Invalid if a value is not
    valid.
    """
    envelope = given.envelope or EnvelopeInput()
    return Outgoing(
        **await composed(info, given, problems),
        envelope=Envelope(
            envelope.from_.address if envelope.from_ else None,
            [recipient.address for recipient in envelope.to] if envelope.to else None,
        ),
        mailbox=named(given.mailbox) if given.mailbox else None,
        upload_only=given.upload_only,
        is_draft=given.is_draft,
        send_time=plain(given.send_time),
        undo_window=plain(given.undo_window),
        request_dsn=given.request_dsn,
        meta_data=free_data(given.meta_data, "metaData"),
        raw=given.raw or None,
        upload_id=global_ids.decode("Upload", given.raw_upload, path="rawUpload")
        if given.raw_upload
        else None,
        files=files_given(info, given.file_attachments or None),
        template=values_given(given.template, "template"),
        merge=merged(given.merge),
        encrypt=given.encrypt,
        address=address(info),
    )


def _check_whole(given: MessageSendInput) -> None:
    """Raise Invalid if fields are given beside `raw` or `rawUpload`."""
    if given.raw or given.raw_upload:
        field_names = [*WRITTEN, "file_attachments"]
        if any(getattr(given, name) not in (UNSET, None) for name in field_names):
            text = "a whole message has all its fields"
            raise Invalid(text, constraint="exclusive", path=["raw"])


def _warnings(sent: Sequence[Sent]) -> list[Warning]:
    """Return the distinct warnings of the sent messages."""
    warnings = dict.fromkeys(warning for message in sent for warning in message.warnings)
    return [Warning(code=code, message=text, path=["mailbox"]) for code, text in warnings]


def _undo(token: tuple[str, datetime] | None) -> UndoToken | None:
    """Return the undo token of a pair: token and expiry; None stays None."""
    return UndoToken(token=token[0], expires_at=token[1]) if token else None


@strawberry.type(description="Answer of messageSend.")
class MessageSendPayload(MutationPayload):
    submission: Submission | None = leaf("On its way; null when only stored.", default=None)
    message: Message | None = leaf("Stored copy.", default=None)
    submissions: list[Submission] = leaf(
        "All that are on their way: several of a mail merge, in its order.", default_factory=list
    )
    messages: list[Message] = leaf("The stored copies.", default_factory=list)
    undo: UndoToken | None = leaf(
        "Takes all back while they are held; a draft is one again.", default=None
    )

    @classmethod
    def of(cls, sent: Sequence[Sent], token: tuple[str, datetime] | None) -> "MessageSendPayload":
        """Return the payload of one sent message or several.

        `token_and_expiry` is that of the undo token.
        """
        submissions = [Submission.of(message.submission) for message in sent if message.submission]
        copies = [Message.of(message.message) for message in sent if message.message]
        return cls(
            submission=submissions[0] if submissions else None,
            message=copies[0] if copies and sent[0].message else None,
            submissions=submissions,
            messages=copies,
            undo=_undo(token),
            warnings=_warnings(sent),
        )


def _shown(info: Info) -> Shown:
    """Return which rows of the sent messages the client reads."""
    field_names = asked(info)
    return Shown(
        submissions=not field_names.isdisjoint({"submission", "submissions"}),
        messages=not field_names.isdisjoint({"message", "messages"}),
    )


async def _by(ctx: Context, info: Info, payload: MessageSendPayload) -> MessageSendPayload:
    """Load the recipients of the payload's submissions if another user's message was sent.

    The caller can see them in this payload only, so they are loaded in the sender's context.
    """
    if ctx is not info.context:
        keys = [submission.row.id for submission in payload.submissions]
        rows_by_submission = await ctx.load_all(submission_create.deliveries_of, keys)
        for submission, rows in zip(payload.submissions, rows_by_submission, strict=True):
            submission.recipients = [RecipientDelivery.of(row) for row in rows]
    return payload


@strawberry.input(description="Input of messageSubmit.")
class MessageSubmitInput(Options):
    message: MessageRef = leaf("A draft.")
    delete_files: bool = leaf(
        "Also delete the stored files it was given; needs the scope MAIL.", default=False
    )
    send_time: datetime | None = leaf("Later.", default=strawberry.UNSET)
    undo_window: Duration | None = leaf("Hold that long first.", default=strawberry.UNSET)


@strawberry.input(description="Input of submissionCancel.")
class SubmissionCancelInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")


@strawberry.input(description="Input of submissionReschedule.")
class SubmissionRescheduleInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    send_time: datetime = leaf("Not before.")


@strawberry.type(description="Answer of submission mutations.")
class SubmissionsPayload(MutationPayload):
    submissions: list[Submission] = leaf("As they are now.", default_factory=list)


@strawberry.type
class SubmissionQuery:
    @query("One submission, or null.", scope=Scope.MAIL_READ)
    async def submission(self, info: Info, by: SubmissionRef) -> Submission | None:
        if by.id:
            key = global_ids.decode("Submission", by.id.value, path="by")
            row = await info.context.load(submission_create.by_ids, key)
        else:
            name = by.queue_id.value if by.queue_id else ""
            row = await info.context.load(submission_create.by_queue_ids, name)
        return Submission.maybe(row)


@strawberry.type
class SubmissionMutation:
    @mutation("Build, store and send.", scope=Scope.SUBMIT)
    async def message_send(self, info: Info, input: MessageSendInput) -> MessageSendPayload:
        problems = Problems()
        _check_whole(input)
        outgoing = await _outgoing(info, input, problems)
        user = await owner_named(info, input.user or None)
        async with send_on_behalf.sending(info.context, user, "messageSend") as ctx:
            messages, undo = await bulk_undo.send(ctx, outgoing, problems, _shown(info))
            return await _by(ctx, info, MessageSendPayload.of(messages, undo))

    @mutation(
        "Sends a draft: it becomes the copy in Sent, under the same id, with a new Date.",
        scope=Scope.SUBMIT,
    )
    async def message_submit(self, info: Info, input: MessageSubmitInput) -> MessageSendPayload:
        key = await message_of(info, input.message, path="message")
        if key is None:
            raise NotFound("", path=["message"])
        if input.delete_files:
            stored_files.permit(info.context)
        times = plain(input.send_time), plain(input.undo_window)
        request = Order(key, input.delete_files, *times)
        owner = await send_on_behalf.owner_of(info.context, key)
        async with send_on_behalf.sending(info.context, owner, "messageSubmit") as ctx:
            message, undo = await bulk_undo.submit(ctx, request)
            return await _by(ctx, info, MessageSendPayload.of([message], undo))

    @mutation("Scheduled, held or still queued.", scope=Scope.SUBMIT)
    async def submission_cancel(
        self, info: Info, input: SubmissionCancelInput
    ) -> SubmissionsPayload:
        keys = keys_of(info, "Submission", input.ids)
        rows = await submission_mutations.cancel(info.context, keys)
        return SubmissionsPayload(submissions=[Submission.of(row) for row in rows])

    @mutation(
        "New send time, all or none: of what is scheduled, held or still queued. A time that is "
        "past means now.",
        scope=Scope.SUBMIT,
    )
    async def submission_reschedule(
        self, info: Info, input: SubmissionRescheduleInput
    ) -> SubmissionsPayload:
        keys = keys_of(info, "Submission", input.ids)
        rows = await submission_mutations.reschedule(info.context, keys, input.send_time)
        return SubmissionsPayload(submissions=[Submission.of(row) for row in rows])


@strawberry.type
class SubmissionSubscription:
    @subscription(
        "A message on its way: one now and whenever it moves on, until its end; without an id "
        "any of the viewer's that moves on.",
        scope=Scope.MAIL_READ,
    )
    async def submission_progress(
        self, info: Info, id: strawberry.ID | None = UNSET
    ) -> AsyncIterator[Submission]:
        ctx = info.context
        key = global_ids.decode("Submission", id) if id else None
        rows = progress.of_submissions(ctx) if key is None else progress.of_submission(ctx, key)
        async for row in rows:
            yield Submission.of(row)
