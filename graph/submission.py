"""Sending, and how it went, as the API shows them."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph import ids
from graph.composing import Composing, NamedAddressInput, composed
from graph.errors import MutationPayload, Options, Warning, leaf  # noqa: A004 - the outline's word
from graph.fields import Info, query, subscription
from graph.messages import Message
from graph.mutations import mutation
from graph.reading import TlsInfo
from graph.refs import MailboxRef, named, plain
from graph.rows import Shape, identified, link
from graph.scalars import Duration
from graph.tasks import UndoToken
from graph.views import Made
from models.errors import Problems, found
from models.queue import DeliveryState
from models.roles import Scope
from models.submission import SubmissionState
from resolvers import messages, progress, submission, undoing
from resolvers.submission import Envelope, Outgoing

for words, text in (
    (SubmissionState, "Where a submission stands: the sum of its deliveries."),
    (DeliveryState, "How far a delivery to one recipient has come."),
):
    strawberry.enum(words, description=text)


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
        answer = None if row.last_code is None else f"{row.last_code} {row.last_response or ''}"
        return cls(
            recipient=row.recipient,
            state=row.state,
            attempts=row.attempts,
            next_attempt_at=row.next_at if row.lease is None else None,
            last_response=answer,
            delivered_at=row.delivered_at,
            mx=row.mx,
            tls=TlsInfo.maybe(row.tls),
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


async def _outgoing(info: Info, given: MessageSendInput, problems: Problems) -> Outgoing:
    """What the resolver is to send."""
    envelope = given.envelope or EnvelopeInput()
    return Outgoing(
        **await composed(info, given, problems),
        envelope=Envelope(
            envelope.from_.address if envelope.from_ else None,
            [each.address for each in envelope.to] if envelope.to else None,
        ),
        mailbox=named(given.mailbox) if given.mailbox else None,
        upload_only=given.upload_only,
        is_draft=given.is_draft,
        send_time=plain(given.send_time),
        undo_window=plain(given.undo_window),
    )


@strawberry.type(description="Answer of messageSend.")
class MessageSendPayload(MutationPayload):
    submission: Submission | None = leaf("On its way; null when only stored.", default=None)
    message: Message | None = leaf("Stored copy.", default=None)
    undo: UndoToken | None = leaf("Takes it back while it is held.", default=None)


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
        sent, undo = await undoing.send(info.context, outgoing, problems)
        return MessageSendPayload(
            submission=Submission.maybe(sent.submission),
            message=Message.maybe(sent.message),
            undo=UndoToken(token=undo[0], expires_at=undo[1]) if undo else None,
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
        key = ids.decode("Submission", id) if id else None
        rows = progress.of_submissions(ctx) if key is None else progress.of_submission(ctx, key)
        async for row in rows:
            yield Submission.of(row)
