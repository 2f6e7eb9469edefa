"""Mutations that send messages and drafts, cancel and reschedule submissions."""

from collections.abc import Sequence
from datetime import datetime

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import UndoToken
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
    resolve_submission_ids_or_raise,
)
from graph.submission.types import RecipientDelivery, Submission
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, Warning, attribute_field  # noqa: A004 - the outline's word
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED, OWN
from graph.types.references import (
    MailboxRef,
    UserRef,
    mailbox_selector_from_ref,
    require_visible_user_id_if_named,
    value_or_none,
)
from graph.types.row_mapping import (
    selected_fields,
)
from graph.types.scalars import Duration, Upload, validate_custom_data
from models.errors import ErrorCollector, InvalidInput
from models.users.roles import AdminPermission, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.messages.bulk import undo as bulk_undo
from resolvers.messages.bulk.undo import StoredUndo
from resolvers.submission import loaders as submission_loaders
from resolvers.submission import mutations as submission_mutations
from resolvers.submission import send_on_behalf
from resolvers.submission.create import SendRequest, SentMessage, SentRowSelection
from resolvers.submission.message_envelope import ENVELOPE_OF_HEADER, EnvelopeOverride
from resolvers.submission.outgoing_messages import MAX_PER_MERGE


@strawberry.input(
    description="SMTP envelope (RFC 5321), if it differs from the header of the message."
)
class EnvelopeInput:
    from_: MailAddressInput | None = attribute_field(
        "Address of the SMTP command MAIL FROM, which the user must be allowed to send as. The "
        "display name is ignored. Default: the address of From.",
        name="from",
        default=strawberry.UNSET,
    )
    to: list[MailAddressInput] | None = attribute_field(
        "Addresses of the SMTP commands RCPT TO, at least one. Each gets the message once. They "
        "replace all other recipients, also the `bcc` of the identity. Default: the addresses of "
        "To, Cc and Bcc.",
        default=strawberry.UNSET,
    )


def envelope_override(envelope_input: EnvelopeInput | None) -> EnvelopeOverride:
    """Return sender and recipients that replace those of the header."""
    if envelope_input is None:
        return ENVELOPE_OF_HEADER
    recipients = value_or_none(envelope_input.to)
    return EnvelopeOverride(
        envelope_input.from_.address if envelope_input.from_ else None,
        None if recipients is None else [recipient.address for recipient in recipients],
    )


@strawberry.input(description="Input of messageSend.")
class MessageSendInput(MessageContentInput):
    envelope: EnvelopeInput | None = attribute_field(
        "SMTP envelope of the message. Default: sender and recipients of the header.",
        default=strawberry.UNSET,
    )
    mailbox: MailboxRef | None = attribute_field(
        "Mailbox of the sending user for the stored copy; a mailbox of another user is NOT_FOUND. "
        "Default: `sentMailbox` of the identity, else the mailbox with the special use SENT. For "
        "`raw` and `rawUpload` the default is always SENT.",
        default=strawberry.UNSET,
    )
    send_at: datetime | None = attribute_field(
        "Time when the message is sent, at most 3,653 days ahead. A time in the past means now. "
        "If `undoWindow` ends later, the message is sent at the end of `undoWindow`. Until it is "
        "sent, the copy is in the mailbox with the special use SCHEDULED, afterwards in "
        "`mailbox`. If the copy is deleted or in Trash at the send time, the submission is "
        "cancelled. Default: now.",
        default=strawberry.UNSET,
    )
    undo_window: Duration | None = attribute_field(
        "Duration (ISO 8601) for which the message is held, so that sending can be undone, at "
        "most P1D. Default: PT0S.",
        default=strawberry.UNSET,
    )
    request_dsn: bool = attribute_field(
        "True asks the servers for delivery reports of success, delay and failure (RFC 3461). "
        "Default: false.",
        default=False,
    )
    user: UserRef | None = attribute_field(
        "User whose account sends the message. Not needed to send as an address of another user: "
        "`from` is enough. Another user excludes `original` and `fileAttachments` (FORBIDDEN), "
        "and uploads of the caller (NOT_FOUND). Default: the signed-in user.",
        default=strawberry.UNSET,
    )
    raw: str | None = attribute_field(
        "Complete message (RFC 5322) as text or base64, at most 64 MiB by default. It excludes "
        "`from`, `identity`, `to`, `cc`, `bcc`, `replyTo`, `subject`, `text`, `html`, `headers`, "
        "`attachments` and `original`. It also excludes `rawUpload`, `fileAttachments`, "
        "`template`, `encrypt` and `mailMerge`. The user must be allowed to send as From and "
        "Sender. Missing Date and Message-ID are added; a future `sendAt` replaces the Date. The "
        "message is sent to its To, Cc and Bcc unless `envelope.to` is given.",
        default=strawberry.UNSET,
    )
    raw_upload: Upload | None = attribute_field(
        "Upload that contains the complete message (RFC 5322), instead of `raw`. It must be an "
        "upload of the sending user, else the error is NOT_FOUND. The rules of `raw` apply. "
        "Default: none.",
        default=strawberry.UNSET,
    )
    file_attachments: list[FileAttachmentInput] | None = attribute_field(
        "Stored files of the sending user: to attach, which requires the scope MAIL_READ, or to "
        "link to, which requires MAIL. At most 250. Default: none.",
        default=strawberry.UNSET,
    )
    template: JSON | None = attribute_field(
        "JSON object with values for `{{name}}` in `subject`, `text` and `html`. A value is a "
        "string, number, boolean or null (an empty text). Only in `html` the values are "
        "HTML-escaped. A name without a value is refused. Default: none, and `{{name}}` stays as "
        "it is, except in a mail merge.",
        default=strawberry.UNSET,
    )
    mail_merge: list[MailMergeInput] | None = attribute_field(
        f"Sends one message for each of 1 to {MAX_PER_MERGE} entries, with at most "
        "10,000 recipients and 128 MiB together. Not allowed with `to`, `cc`, `bcc`, "
        "`envelope.to`, `raw` and `rawUpload`. All "
        "messages are sent, or none. Default: one message.",
        default=strawberry.UNSET,
    )
    encrypt: bool = attribute_field(
        "True encrypts the message with the OpenPGP keys that the accounts of all "
        "recipients, and the sending account, have stored. Without a key of the sending "
        "account, its copy is stored unencrypted. Refused with `raw`, `rawUpload`, "
        "`bcc`, with an identity that has `bcc`, and if a recipient "
        "has no account on this server or no key. Default: false.",
        default=False,
    )
    metadata: JSON | None = attribute_field(
        "JSON object that is stored with the copy, or with each copy of a mail merge, at most 64 "
        "KiB by default. Default: none.",
        default=strawberry.UNSET,
    )


async def _resolve_send_request(
    info: Info, send_input: MessageSendInput, problems: ErrorCollector
) -> SendRequest:
    """Convert the input to the request to send a message.

    Errors of attachments are added to `problems`. Raises NotFound, or InvalidInput if a value is
    not valid.
    """
    return SendRequest(
        **await resolve_message_fields(info, send_input, problems),
        envelope=envelope_override(send_input.envelope or None),
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


def _require_no_fields_beside_raw(send_input: MessageSendInput) -> None:
    """Raise InvalidInput if fields are given beside `raw` or `rawUpload`."""
    if send_input.raw or send_input.raw_upload:
        field_names = [*CONTENT_FIELDS, "file_attachments"]
        if any(getattr(send_input, name) not in (UNSET, None) for name in field_names):
            text = "A raw message can't be combined with other fields of the message."
            raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["raw"])


def send_warnings(sent_messages: Sequence[SentMessage], path: Sequence[str]) -> list[Warning]:
    """Return the distinct warnings of the sent messages, with the path of their input field."""
    warnings = dict.fromkeys(warning for message in sent_messages for warning in message.warnings)
    return [Warning(code=code, message=text, path=[*path]) for code, text in warnings]


def undo_token_or_none(undo: StoredUndo | None) -> UndoToken | None:
    """Return the undo token of a stored undo; None stays None."""
    return UndoToken(token=undo.token, expires_at=undo.expires_at) if undo else None


@strawberry.type(description="Payload of messageSend and draftSend.")
class MessageSendPayload(MutationPayload):
    submissions: list[Submission] = attribute_field(
        "Submissions: one, or one for each entry of `mailMerge`, in the order of the entries. "
        "Empty if the mutation failed.",
        default_factory=list,
    )
    messages: list[Message] = attribute_field(
        "Stored copies, in the order of the submissions. A message without a stored copy is left "
        "out. The copy of a sent draft keeps the ID of the draft, except with `mailMerge`.",
        default_factory=list,
    )
    undo: UndoToken | None = attribute_field(
        "Token for the mutation `undo`, which cancels all submissions and makes each stored copy "
        "a draft. A sent draft gets back its content, without the values of `template`. Only the "
        "caller can use the token, also an administrator who sent for another user. Null without "
        "`undoWindow`, and with `validateOnly`.",
        default=None,
    )

    @classmethod
    def from_sent_messages(
        cls,
        sent_messages: Sequence[SentMessage],
        undo: StoredUndo | None,
        warning_path: Sequence[str],
    ) -> "MessageSendPayload":
        """Return the payload of one sent message or several.

        `warning_path` names the field of the input for warnings about the stored copies.
        """
        return cls(
            submissions=[
                Submission.from_row(sent.submission) for sent in sent_messages if sent.submission
            ],
            messages=[Message.from_row(sent.message) for sent in sent_messages if sent.message],
            undo=undo_token_or_none(undo),
            warnings=send_warnings(sent_messages, warning_path),
        )


def _sent_row_selection(info: Info) -> SentRowSelection:
    """Return which rows of the sent messages the client reads."""
    field_names = selected_fields(info)
    return SentRowSelection(
        submissions=not field_names.isdisjoint({"submission", "submissions"}),
        messages=not field_names.isdisjoint({"message", "messages"}),
    )


async def set_recipients_if_other_sender(
    sender_ctx: Context, info: Info, submissions: Sequence[Submission]
) -> None:
    """Load the recipients of submissions if another user's messages were sent.

    The caller can see them in the payload only, so they are loaded in the sender's context.
    """
    if sender_ctx is not info.context:
        keys = [submission.row.id for submission in submissions]
        rows_by_submission = await sender_ctx.load_many(
            submission_loaders.load_visible_queue_entries_by_submission, keys
        )
        for submission, rows in zip(submissions, rows_by_submission, strict=True):
            submission.recipients = [RecipientDelivery.from_row(row) for row in rows]


@strawberry.input(description="Input of submissionCancel.")
class SubmissionCancelInput(Options):
    submissions: list[SubmissionRef] = attribute_field(
        "Submissions to cancel, 1 to 1,000 by default."
    )


@strawberry.input(description="Input of submissionReschedule.")
class SubmissionRescheduleInput(Options):
    submissions: list[SubmissionRef] = attribute_field(
        "Submissions to reschedule, 1 to 1,000 by default."
    )
    send_at: datetime = attribute_field(
        "New time when the messages are sent, at most 3,653 days ahead. A time in the past sends "
        "them at once. No message is sent before its undo window ends."
    )


@strawberry.type(description="Payload of submissionCancel and submissionReschedule.")
class SubmissionsPayload(MutationPayload):
    submissions: list[Submission] = attribute_field(
        "Changed submissions, in the order of the input.", default_factory=list
    )


@strawberry.type
class SubmissionMutation:
    @mutation(
        "Composes a message, or takes a complete one, stores a copy and sends it to its "
        "recipients. The From address must be one that the user can send as. LIMIT_REACHED for "
        "more than 400 recipients of a message (by default). The message is sent without a copy, "
        "with the warning NOT_SAVED_TO_SENT, if the quota is full or there is no mailbox for the "
        "copy. The same holds if the account or mailbox encrypts the copy with an unusable key. "
        "FORBIDDEN_OPERATION if the account is inactive or suspended, can't send as the sender, "
        "or the message is spam or has a virus. If the server scans the message for spam or "
        "viruses, no earlier mutation of an `@atomic` request can have changed anything (else "
        "FORBIDDEN_OPERATION). RATE_LIMITED at a sending limit of the user, the domain or the "
        "platform. UNAVAILABLE if a scanner does not respond and its setting defers mail, or with "
        "`encrypt` if an OpenPGP key is unusable. What an administrator sends for a user is in "
        "the security log of the user.",
        scope=Scope.SUBMIT,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def message_send(self, info: Info, input: MessageSendInput) -> MessageSendPayload:
        problems = ErrorCollector()
        _require_no_fields_beside_raw(input)
        outgoing = await _resolve_send_request(info, input, problems)
        user = await require_visible_user_id_if_named(info, input.user or None)
        async with send_on_behalf.logged_sending_transaction_as_user(
            info.context, user, "messageSend"
        ) as ctx:
            messages, undo = await bulk_undo.send_with_undo(
                ctx, outgoing, problems, _sent_row_selection(info), info.context.viewer.user_id
            )
            payload = MessageSendPayload.from_sent_messages(messages, undo, ["mailbox"])
            await set_recipients_if_other_sender(ctx, info, payload.submissions)
            return payload

    @mutation(
        "Cancels the deliveries of submissions, except those that are finished or in progress. A "
        "submission of another user is NOT_FOUND. CONFLICT if a given submission has no delivery "
        "that can be cancelled; then nothing is cancelled. If every delivery of a submission is "
        "then cancelled, the stored copy of its message becomes a draft. Copies that BCC rules "
        "made of it are cancelled too. The draft moves to the mailbox with the special use "
        "DRAFTS, or to INBOX without such a mailbox. A copy that the user has deleted, or moved "
        "out of the mailbox for scheduled or sent messages, does not become a draft. "
        "LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.SUBMIT,
        access=OWN,
    )
    async def submission_cancel(
        self, info: Info, input: SubmissionCancelInput
    ) -> SubmissionsPayload:
        keys = await resolve_submission_ids_or_raise(info, input.submissions)
        rows = await submission_mutations.cancel_submissions(info.context, keys)
        return SubmissionsPayload(submissions=[Submission.from_row(row) for row in rows])

    @mutation(
        "Changes the send time of submissions that are scheduled, held for undo, or waiting in "
        "the queue: all or none. A submission has one delivery for each recipient. Deliveries "
        "that are finished or in progress are unchanged. The queue lifetime of the others begins "
        "again at the new time. A future time moves the stored copy of a message that waits for "
        "its first attempt back to the mailbox with the special use SCHEDULED. CONFLICT if all "
        "deliveries of a submission are finished or in progress. A submission of another user is "
        "NOT_FOUND. LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.SUBMIT,
        access=OWN,
    )
    async def submission_reschedule(
        self, info: Info, input: SubmissionRescheduleInput
    ) -> SubmissionsPayload:
        keys = await resolve_submission_ids_or_raise(info, input.submissions)
        rows = await submission_mutations.reschedule_submissions(info.context, keys, input.send_at)
        return SubmissionsPayload(submissions=[Submission.from_row(row) for row in rows])
