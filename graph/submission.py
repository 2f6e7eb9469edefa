"""Sending, and how it went, as the API shows them."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

import strawberry

from graph import ids
from graph.errors import MutationPayload, Options, Warning, leaf  # noqa: A004 - the outline's word
from graph.fields import Info, query
from graph.messages import Message
from graph.mutations import mutation
from graph.refs import MailboxRef, MessageRef, message_of, named
from graph.rows import Shape, identified, link
from graph.scalars import Duration
from graph.views import Made
from mail.compose import Attachment, HeaderLine, Priority
from mail.fields import Named
from models.errors import Invalid, NotFound, Problems, found
from models.queue import DeliveryState
from models.roles import Scope
from models.submission import SubmissionState
from resolvers import messages, submission
from resolvers.references import Reference, ReferenceAction
from resolvers.submission import Envelope, Outgoing


class ContentEncoding(StrEnum):
    """How the content of an attachment is written."""

    BASE64 = "BASE64"
    HEX = "HEX"
    UTF8 = "UTF8"


for words, text in (
    (Priority, "How much its sender hurries."),
    (SubmissionState, "Where a submission stands: the sum of its deliveries."),
    (DeliveryState, "How far a delivery to one recipient has come."),
    (ReferenceAction, "What is done with the message referred to."),
    (ContentEncoding, "How content is written."),
):
    strawberry.enum(words, description=text)


@strawberry.type(description="Encryption of a connection.")
class TlsInfo:
    name: str = leaf("Cipher.")
    version: str = leaf("Protocol version.")


@strawberry.type(description="One recipient of a submission.")
class RecipientDelivery:
    recipient: str = leaf("Address.")
    state: DeliveryState = leaf("How far it has come.")
    attempts: int = leaf("How often it was tried.")
    next_attempt_at: datetime | None = leaf("Next try; null while one is under way.")
    last_response: str | None = leaf("What the other side said last.")
    delivered_at: datetime | None = leaf("Taken by the other side.")
    mx: str | None = leaf("Server it was handed to.")
    tls: TlsInfo | None = leaf("Encryption, null = none.")

    @classmethod
    def of(cls, row: Any) -> "RecipientDelivery":
        """The delivery of a row."""
        version, _, name = (row.tls or "").partition(" ")
        answer = None if row.last_code is None else f"{row.last_code} {row.last_response or ''}"
        return cls(
            recipient=row.recipient,
            state=row.state,
            attempts=row.attempts,
            next_attempt_at=row.next_at if row.lease is None else None,
            last_response=answer,
            delivered_at=row.delivered_at,
            mx=row.mx,
            tls=TlsInfo(name=name, version=version) if version else None,
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
        messages.by_ids,
        Message.maybe,
        description="Stored copy.",
    )
    recipients: list[RecipientDelivery] = link(
        "id",
        submission.deliveries_of,
        lambda rows: [RecipientDelivery.of(row) for row in rows],
        description="Each recipient.",
    )

    batch = staticmethod(submission.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("Submission")}


@strawberry.input(one_of=True, description="Names one submission.")
class SubmissionRef:
    id: strawberry.Maybe[strawberry.ID] = leaf("Global id.")
    queue_id: strawberry.Maybe[str] = leaf("Id in the queue.")


@strawberry.input(description="Somebody in a header.")
class NamedAddressInput:
    address: str = leaf("Mail address.")
    name: str | None = leaf("Display name.", default=strawberry.UNSET)


@strawberry.input(description="A header field.")
class HeaderInput:
    key: str = leaf("Name.")
    value: str = leaf("One line of text.")


@strawberry.input(description="A file to attach.")
class AttachmentInput:
    content: str = leaf("The bytes, as encoding says.")
    encoding: ContentEncoding = leaf("How content is written.", default=ContentEncoding.BASE64)
    filename: str | None = leaf("Its name.", default=strawberry.UNSET)
    content_type: str | None = leaf("Media type.", default=strawberry.UNSET)
    cid: str | None = leaf(
        "Content-ID, without angle brackets: an image of the html.", default=strawberry.UNSET
    )


@strawberry.input(description="The message this one answers or forwards.")
class ReferenceInput:
    message: MessageRef = leaf("Which message.")
    action: ReferenceAction = leaf("What is done with it.")


@strawberry.input(description="SMTP envelope, where it is not that of the header.")
class EnvelopeInput:
    from_: NamedAddressInput | None = leaf("MAIL FROM.", name="from", default=strawberry.UNSET)
    to: list[NamedAddressInput] | None = leaf("RCPT TO.", default=strawberry.UNSET)


@strawberry.input(description="Input of messageSend.")
class MessageSendInput(Options):
    from_: NamedAddressInput | None = leaf(
        "One of your addresses; default the main one.", name="from", default=strawberry.UNSET
    )
    to: list[NamedAddressInput] | None = leaf(
        "Default: those an answer goes to.", default=strawberry.UNSET
    )
    cc: list[NamedAddressInput] | None = leaf("Copies.", default=strawberry.UNSET)
    bcc: list[NamedAddressInput] | None = leaf("Hidden copies.", default=strawberry.UNSET)
    reply_to: list[NamedAddressInput] | None = leaf("Answers go there.", default=strawberry.UNSET)
    subject: str | None = leaf(
        "Up to 2 KiB; default that of the reference.", default=strawberry.UNSET
    )
    text: str | None = leaf("Up to 1 MiB; made from html when missing.", default=strawberry.UNSET)
    html: str | None = leaf(
        "Up to 1 MiB; images as data: URLs become attachments.", default=strawberry.UNSET
    )
    headers: list[HeaderInput] | None = leaf("More header fields.", default=strawberry.UNSET)
    attachments: list[AttachmentInput] | None = leaf("Files.", default=strawberry.UNSET)
    priority: Priority = leaf("How much you hurry.", default=Priority.NORMAL)
    envelope: EnvelopeInput | None = leaf("Default: from the header.", default=strawberry.UNSET)
    reference: ReferenceInput | None = leaf(
        "Answers or forwards a message.", default=strawberry.UNSET
    )
    mailbox: MailboxRef | None = leaf(
        "Folder for the copy; default Sent.", default=strawberry.UNSET
    )
    upload_only: bool = leaf("Store, do not send.", default=False)
    is_draft: bool = leaf("Store as a draft, do not send.", default=False)
    send_time: datetime | None = leaf("Later.", default=strawberry.UNSET)
    undo_window: Duration | None = leaf("Hold that long first.", default=strawberry.UNSET)


def _plain(value: Any) -> Any:
    return None if value is strawberry.UNSET else value


def _named(person: NamedAddressInput) -> Named:
    return Named(person.address, person.name or None)


def _people(people: Sequence[NamedAddressInput] | None) -> list[Named]:
    return [_named(person) for person in people or ()]


def _content(file: AttachmentInput, nth: int) -> bytes:
    try:
        match file.encoding:
            case ContentEncoding.BASE64:
                return base64.b64decode("".join(file.content.split()), validate=True)
            case ContentEncoding.HEX:
                return bytes.fromhex(file.content)
            case ContentEncoding.UTF8:
                return file.content.encode()
    except (binascii.Error, ValueError) as wrong:
        raise Invalid(
            f"this is not {file.encoding}",
            constraint="encoding",
            path=["attachments", str(nth), "content"],
            index=nth,
        ) from wrong


def _attached(file: AttachmentInput, nth: int, problems: Problems) -> Attachment:
    content = b""  # the others keep their places, where this one's is none
    with problems.caught():
        content = _content(file, nth)
    return Attachment(content, file.filename or None, file.content_type or None, file.cid or None)


async def _reference(info: Info, reference: ReferenceInput) -> Reference:
    key = await message_of(info, reference.message)
    if key is None:
        raise NotFound("", path=["reference", "message"])
    return Reference(key, reference.action)


async def _outgoing(info: Info, given: MessageSendInput, problems: Problems) -> Outgoing:
    """What the resolver is to send."""
    envelope, files = given.envelope or EnvelopeInput(), given.attachments or ()
    return Outgoing(
        from_=_named(given.from_) if given.from_ else None,
        to=_people(given.to) if given.to is not strawberry.UNSET else None,
        cc=_people(given.cc) if given.cc is not strawberry.UNSET else None,
        bcc=_people(given.bcc),
        reply_to=_people(given.reply_to),
        subject=_plain(given.subject),
        text=_plain(given.text),
        html=_plain(given.html),
        headers=[HeaderLine(each.key, each.value) for each in given.headers or ()],
        attachments=[_attached(each, nth, problems) for nth, each in enumerate(files)],
        priority=given.priority,
        envelope=Envelope(
            envelope.from_.address if envelope.from_ else None,
            [each.address for each in envelope.to] if envelope.to else None,
        ),
        reference=await _reference(info, given.reference) if given.reference else None,
        mailbox=named(given.mailbox) if given.mailbox else None,
        upload_only=given.upload_only,
        is_draft=given.is_draft,
        send_time=_plain(given.send_time),
        undo_window=_plain(given.undo_window),
    )


@strawberry.type(description="Answer of messageSend.")
class MessageSendPayload(MutationPayload):
    submission: Submission | None = leaf("On its way; null when only stored.", default=None)
    message: Message | None = leaf("Stored copy.", default=None)


@strawberry.input(description="Input of submissionCancel.")
class SubmissionCancelInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")


@strawberry.type(description="Answer of submission mutations.")
class SubmissionsPayload(MutationPayload):
    submissions: list[Submission] = leaf("As they are now.", default_factory=list)


@strawberry.type
class SubmissionQuery:
    @query("One submission, or null.", scope=Scope.MAIL_READ)
    async def submission(self, info: Info, by: SubmissionRef) -> Submission | None:
        if by.id:
            key = ids.decode("Submission", by.id.value, path="by")
            row = await info.context.load(submission.by_ids, key)
        else:
            name = by.queue_id.value if by.queue_id else ""
            row = await info.context.load(submission.by_queue_ids, name)
        return Submission.maybe(row)


@strawberry.type
class SubmissionMutation:
    @mutation("Build, store and send.", scope=Scope.SUBMIT)
    async def message_send(self, info: Info, input: MessageSendInput) -> MessageSendPayload:
        problems = Problems()
        outgoing = await _outgoing(info, input, problems)
        sent = await submission.send(info.context, outgoing, problems)
        return MessageSendPayload(
            submission=Submission.maybe(sent.submission),
            message=Message.maybe(sent.message),
            warnings=[
                Warning(code=code, message=words, path=["mailbox"]) for code, words in sent.warnings
            ],
        )

    @mutation("Scheduled, held or still queued.", scope=Scope.SUBMIT)
    async def submission_cancel(
        self, info: Info, input: SubmissionCancelInput
    ) -> SubmissionsPayload:
        keys = [
            ids.decode("Submission", key, path="ids", index=n) for n, key in enumerate(input.ids)
        ]
        rows = await submission.cancel(info.context, keys)
        return SubmissionsPayload(submissions=[Submission.of(found(row)) for row in rows])
