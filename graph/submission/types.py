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
from graph.submission.compose_inputs import (
    CONTENT_FIELDS,
    MailAddressInput,
    MessageContentInput,
    resolve_message_fields,
)
from graph.submission.inputs import (
    FileAttachmentInput,
    MailMergeInput,
    absolute_url_builder,
    file_attachments_from_inputs,
    mail_merge_entries,
    template_values,
)
from graph.submission.references import (
    SubmissionRef,
    load_submission_id,
    load_submission_ids,
)
from graph.types import global_ids
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, Warning, attribute_field  # noqa: A004 - the outline's word
from graph.types.fields import Info, query, subscription
from graph.types.mutations import mutation
from graph.types.object_references import id_from_ref
from graph.types.object_views import DerivedField
from graph.types.references import (
    MailboxRef,
    MessageRef,
    UserRef,
    find_unchecked_message_id,
    is_given,
    load_named_user_id,
    mailbox_selector_from_ref,
    value_or_none,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    link,
    selected_columns,
    selected_fields,
)
from graph.types.scalars import Duration, Upload, validate_custom_data
from models.errors import ErrorCollector, InvalidInput, NotFound
from models.queue.tables import DeliveryState, last_reply
from models.store.keyset_pages import Cursor
from models.submission.tables import SubmissionState
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.admin import progress
from resolvers.context import Context
from resolvers.files import stored_files
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import undo as bulk_undo
from resolvers.messages.content_access import load_access_refusals
from resolvers.queue import loaders as queue_loaders
from resolvers.queue.loaders import QueueName
from resolvers.submission import loaders as submission_loaders
from resolvers.submission import mutations as submission_mutations
from resolvers.submission import send_on_behalf
from resolvers.submission.create import EnvelopeOverride, SendRequest, SentMessage, SentRowSelection
from resolvers.submission.drafts import DraftSendRequest
from resolvers.submission.outgoing_messages import MAX_PER_MERGE


@strawberry.type(description="One recipient of a submission.")
class RecipientDelivery:
    recipient: str = attribute_field("Address.")
    state: DeliveryState = attribute_field("How far it has come.")
    attempts: int = attribute_field("How often it was tried.")
    next_attempt_at: datetime | None = attribute_field(
        "Next try; null while one is under way, or it is held."
    )
    last_response: str | None = attribute_field("What the other side said last.")
    delivered_at: datetime | None = attribute_field("Taken by the other side.")
    mx: str | None = attribute_field("Server it was handed to.")
    tls: TlsInfo | None = attribute_field("Encryption, null = none.")
    reported_at: datetime | None = attribute_field(
        "When a report came back from a server that had taken it; null: none has."
    )
    dsn_reporter: str | None = attribute_field("The server that reports, as it names itself.")
    dsn_verified: bool | None = attribute_field(
        "Whether the report shows that it is of a server that this was handed to: else anybody "
        "who knows the Message-ID may have written it."
    )
    queue_name: QueueName | None = attribute_field(
        "Where it stands in the queue; null = it has left it."
    )

    @classmethod
    def from_row(cls, row: Any) -> "RecipientDelivery":
        """Return the delivery of a row."""
        return cls(
            recipient=row.recipient,
            state=row.state,
            attempts=row.attempts,
            next_attempt_at=row.next_at if row.lease is None and row.held_at is None else None,
            last_response=last_reply(row),
            delivered_at=row.delivered_at,
            mx=row.mx,
            tls=TlsInfo.parse_or_none(row.tls),
            reported_at=row.reported_at,
            dsn_reporter=row.dsn_reporter,
            dsn_verified=row.dsn_verified,
            queue_name=queue_loaders.queue_of_delivery(row),
        )


@strawberry.type(description="A message on its way.")
class Submission(NodeView):
    queue_id: str = attribute_field("Id in the queue.")
    state: SubmissionState = attribute_field("Overall.")
    envelope_from: str = attribute_field("MAIL FROM.")
    send_at: datetime | None = attribute_field("Not before.")
    created_at: datetime = attribute_field("Handed in.")
    undoable_until: datetime | None = attribute_field("Can be taken back until.")
    message: Message | None = link(
        "message_id",
        message_loaders.load_visible_by_ids,
        Message.from_row_or_none,
        description="Stored copy.",
    )
    recipients: list[RecipientDelivery] = link(
        "id",
        submission_loaders.load_queue_entries_by_submission,
        lambda rows: [RecipientDelivery.from_row(row) for row in rows],
        description="Each recipient.",
    )

    load_batch = staticmethod(submission_loaders.load_visible_submissions_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Submission")}


async def load_submission_page(
    info: Info,
    user_id: int,
    states: list[SubmissionState] | None,
    page_arguments: PageArguments,
) -> Connection[Submission]:
    """Load a page of the submissions of an account, newest first.

    Raises Forbidden if the viewer can't see them.
    """
    if refusal := await info.context.load(load_access_refusals, user_id):
        raise refusal
    state_filter = frozenset(states or ()) if is_given(states) else None
    requested_page = page_request(
        submission_loaders.ordering_with_states(state_filter), *page_arguments
    )
    page_key = submission_loaders.SubmissionPageKey(
        user_id, requested_page, selected_columns(info, Submission), state_filter
    )
    return await connection_of_page(
        info,
        Submission,
        await info.context.load(submission_loaders.load_submission_pages, page_key),
        lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
        lambda: info.context.load(submission_loaders.count_submissions, page_key),
    )


@strawberry.input(description="SMTP envelope, where it is not that of the header.")
class EnvelopeInput:
    from_: MailAddressInput | None = attribute_field(
        "MAIL FROM.", name="from", default=strawberry.UNSET
    )
    to: list[MailAddressInput] | None = attribute_field("RCPT TO.", default=strawberry.UNSET)


@strawberry.input(description="Input of messageSend.")
class MessageSendInput(MessageContentInput):
    envelope: EnvelopeInput | None = attribute_field(
        "Default: from the header.", default=strawberry.UNSET
    )
    mailbox: MailboxRef | None = attribute_field(
        "Folder for the copy; default that of the identity, else Sent.", default=strawberry.UNSET
    )
    send_at: datetime | None = attribute_field("Later.", default=strawberry.UNSET)
    undo_window: Duration | None = attribute_field(
        "Hold that long first.", default=strawberry.UNSET
    )
    request_dsn: bool = attribute_field(
        "Ask for reports of delivery, delay and failure (RFC 3461).", default=False
    )
    user: UserRef | None = attribute_field(
        "For whom it is sent: an account you manage and may act as. Who may only send as "
        "somebody says so in from.",
        default=strawberry.UNSET,
    )
    raw: str | None = attribute_field(
        "Whole message, text or base64, in place of fields. Its From and Sender are checked, "
        "Date and Message-ID are added; it goes to its To, Cc and Bcc, unless envelope says.",
        default=strawberry.UNSET,
    )
    raw_upload: Upload | None = attribute_field("The same as upload.", default=strawberry.UNSET)
    file_attachments: list[FileAttachmentInput] | None = attribute_field(
        "Stored files, attached (needs the scope MAIL_READ) or linked to (MAIL).",
        default=strawberry.UNSET,
    )
    template: JSON | None = attribute_field(
        "Values for {{name}} in subject, text and html, where they are escaped. A name without "
        "a value is refused.",
        default=strawberry.UNSET,
    )
    mail_merge: list[MailMergeInput] | None = attribute_field(
        f"Sends one message for each entry, at most {MAX_PER_MERGE}, instead of one message to "
        "`to`, `cc` and `bcc`: all are sent, or none.",
        default=strawberry.UNSET,
    )
    encrypt: bool = attribute_field(
        "With the OpenPGP keys of all recipients: refused where one is not known here.",
        default=False,
    )
    metadata: JSON | None = attribute_field(
        "Free data of the application, kept with the copy.", default=strawberry.UNSET
    )


async def _resolve_send_request(
    info: Info, send_input: MessageSendInput, problems: ErrorCollector
) -> SendRequest:
    """Convert the input to the request to send a message.

    Errors of attachments are added to `problems`. Raises NotFound, or Invalid if a value is not
    valid.
    """
    envelope = send_input.envelope or EnvelopeInput()
    return SendRequest(
        **await resolve_message_fields(info, send_input, problems),
        envelope=EnvelopeOverride(
            envelope.from_.address if envelope.from_ else None,
            [recipient.address for recipient in envelope.to] if envelope.to else None,
        ),
        mailbox=mailbox_selector_from_ref(send_input.mailbox) if send_input.mailbox else None,
        send_at=value_or_none(send_input.send_at),
        undo_window=value_or_none(send_input.undo_window),
        request_dsn=send_input.request_dsn,
        public_metadata=validate_custom_data(send_input.metadata, "metadata"),
        raw=send_input.raw or None,
        upload_id=global_ids.decode("Upload", send_input.raw_upload, path="rawUpload")
        if send_input.raw_upload
        else None,
        files=file_attachments_from_inputs(info, send_input.file_attachments or None),
        template=template_values(send_input.template, "template"),
        mail_merge=mail_merge_entries(send_input.mail_merge),
        encrypt=send_input.encrypt,
        url_from_path=absolute_url_builder(info),
    )


def _check_no_fields_beside_raw(send_input: MessageSendInput) -> None:
    """Raise Invalid if fields are given beside `raw` or `rawUpload`."""
    if send_input.raw or send_input.raw_upload:
        field_names = [*CONTENT_FIELDS, "file_attachments"]
        if any(getattr(send_input, name) not in (UNSET, None) for name in field_names):
            text = "a whole message has all its fields"
            raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["raw"])


def _send_warnings(sent_messages: Sequence[SentMessage]) -> list[Warning]:
    """Return the distinct warnings of the sent messages."""
    warnings = dict.fromkeys(warning for message in sent_messages for warning in message.warnings)
    return [Warning(code=code, message=text, path=["mailbox"]) for code, text in warnings]


def _undo_token(token_and_expiry: tuple[str, datetime] | None) -> UndoToken | None:
    """Return the undo token of a pair: token and expiry; None stays None."""
    return (
        UndoToken(token=token_and_expiry[0], expires_at=token_and_expiry[1])
        if token_and_expiry
        else None
    )


@strawberry.type(description="Answer of messageSend.")
class MessageSendPayload(MutationPayload):
    submission: Submission | None = attribute_field(
        "On its way; null when only stored.", default=None
    )
    message: Message | None = attribute_field("Stored copy.", default=None)
    submissions: list[Submission] = attribute_field(
        "All that are on their way: several of a mail merge, in its order.", default_factory=list
    )
    messages: list[Message] = attribute_field("The stored copies.", default_factory=list)
    undo: UndoToken | None = attribute_field(
        "Takes all back while they are held; a draft is one again.", default=None
    )

    @classmethod
    def from_sent_messages(
        cls, sent_messages: Sequence[SentMessage], token_and_expiry: tuple[str, datetime] | None
    ) -> "MessageSendPayload":
        """Return the payload of one sent message or several.

        `token_and_expiry` is that of the undo token.
        """
        submissions = [
            Submission.from_row(message.submission)
            for message in sent_messages
            if message.submission
        ]
        copies = [Message.from_row(message.message) for message in sent_messages if message.message]
        return cls(
            submission=submissions[0] if submissions else None,
            message=copies[0] if copies and sent_messages[0].message else None,
            submissions=submissions,
            messages=copies,
            undo=_undo_token(token_and_expiry),
            warnings=_send_warnings(sent_messages),
        )


def _sent_row_selection(info: Info) -> SentRowSelection:
    """Return which rows of the sent messages the client reads."""
    field_names = selected_fields(info)
    return SentRowSelection(
        submissions=not field_names.isdisjoint({"submission", "submissions"}),
        messages=not field_names.isdisjoint({"message", "messages"}),
    )


async def _load_recipients_if_other_sender(
    sender_ctx: Context, info: Info, payload: MessageSendPayload
) -> MessageSendPayload:
    """Load the recipients of the payload's submissions if another user's message was sent.

    The caller can see them in this payload only, so they are loaded in the sender's context.
    """
    if sender_ctx is not info.context:
        keys = [submission.row.id for submission in payload.submissions]
        rows_by_submission = await sender_ctx.load_many(
            submission_loaders.load_queue_entries_by_submission, keys
        )
        for submission, rows in zip(payload.submissions, rows_by_submission, strict=True):
            submission.recipients = [RecipientDelivery.from_row(row) for row in rows]
    return payload


@strawberry.input(description="Input of draftSend.")
class DraftSendInput(Options):
    message: MessageRef = attribute_field("A draft.")
    delete_files: bool = attribute_field(
        "Also delete the stored files it was given; needs the scope MAIL.", default=False
    )
    send_at: datetime | None = attribute_field("Later.", default=strawberry.UNSET)
    undo_window: Duration | None = attribute_field(
        "Hold that long first.", default=strawberry.UNSET
    )


@strawberry.input(description="Input of submissionCancel.")
class SubmissionCancelInput(Options):
    submissions: list[SubmissionRef] = attribute_field("The submissions to cancel.")


@strawberry.input(description="Input of submissionReschedule.")
class SubmissionRescheduleInput(Options):
    submissions: list[SubmissionRef] = attribute_field("The submissions to reschedule.")
    send_at: datetime = attribute_field(
        "Time of the first delivery attempt. A time in the past means immediately."
    )


@strawberry.type(description="Result of submissionCancel and submissionReschedule.")
class SubmissionsPayload(MutationPayload):
    submissions: list[Submission] = attribute_field(
        "The submissions, in the order of the references.", default_factory=list
    )


@strawberry.type
class SubmissionQuery:
    @query("One submission, or null.", scope=Scope.MAIL_READ)
    async def submission(self, info: Info, by: SubmissionRef) -> Submission | None:
        if by.id:
            key = id_from_ref(by, "by")
            row = await info.context.load(submission_loaders.load_own_submissions_by_id, key)
        else:
            name = by.queue_id.value if by.queue_id else ""
            row = await info.context.load(submission_loaders.load_own_submissions_by_queue_id, name)
        return Submission.from_row_or_none(row)


@strawberry.type
class SubmissionMutation:
    @mutation("Build, store and send.", scope=Scope.SUBMIT)
    async def message_send(self, info: Info, input: MessageSendInput) -> MessageSendPayload:
        problems = ErrorCollector()
        _check_no_fields_beside_raw(input)
        outgoing = await _resolve_send_request(info, input, problems)
        user = await load_named_user_id(info, input.user or None)
        async with send_on_behalf.sending_context(info.context, user, "messageSend") as ctx:
            messages, undo = await bulk_undo.send_with_undo(
                ctx, outgoing, problems, _sent_row_selection(info)
            )
            return await _load_recipients_if_other_sender(
                ctx, info, MessageSendPayload.from_sent_messages(messages, undo)
            )

    @mutation(
        "Sends a draft: it becomes the copy in Sent, under the same id, with a new Date.",
        scope=Scope.SUBMIT,
    )
    async def draft_send(self, info: Info, input: DraftSendInput) -> MessageSendPayload:
        key = await find_unchecked_message_id(info, input.message, path="message")
        if key is None:
            raise NotFound("", path=["message"])
        if input.delete_files:
            stored_files.require_writing_owner_id(info.context)
        times = value_or_none(input.send_at), value_or_none(input.undo_window)
        request = DraftSendRequest(key, input.delete_files, *times)
        owner = await send_on_behalf.managed_owner_id(info.context, key)
        async with send_on_behalf.sending_context(info.context, owner, "draftSend") as ctx:
            message, undo = await bulk_undo.submit_draft_with_undo(ctx, request)
            return await _load_recipients_if_other_sender(
                ctx, info, MessageSendPayload.from_sent_messages([message], undo)
            )

    @mutation(
        "Cancels submissions that are scheduled, held for undo, or queued: all or none. The stored "
        "copy becomes a draft.",
        scope=Scope.SUBMIT,
    )
    async def submission_cancel(
        self, info: Info, input: SubmissionCancelInput
    ) -> SubmissionsPayload:
        keys = await load_submission_ids(info, input.submissions)
        rows = await submission_mutations.cancel_submissions(info.context, keys)
        return SubmissionsPayload(submissions=[Submission.from_row(row) for row in rows])

    @mutation(
        "Changes the send time of submissions that are scheduled, held for undo, or queued: all or "
        "none.",
        scope=Scope.SUBMIT,
    )
    async def submission_reschedule(
        self, info: Info, input: SubmissionRescheduleInput
    ) -> SubmissionsPayload:
        keys = await load_submission_ids(info, input.submissions)
        rows = await submission_mutations.reschedule_submissions(info.context, keys, input.send_at)
        return SubmissionsPayload(submissions=[Submission.from_row(row) for row in rows])


@strawberry.type
class SubmissionSubscription:
    @subscription(
        "Returns a submission at once and after each change of its state, until it is finished. "
        "Without a reference, returns every submission of the viewer after each change.",
        scope=Scope.MAIL_READ,
    )
    async def submission_progress(
        self, info: Info, submission: SubmissionRef | None = UNSET
    ) -> AsyncIterator[Submission]:
        ctx = info.context
        key = await load_submission_id(info, submission, "submission") if submission else None
        rows = (
            progress.follow_submissions(ctx)
            if key is None
            else progress.follow_submission(ctx, key)
        )
        async for row in rows:
            yield Submission.from_row(row)
