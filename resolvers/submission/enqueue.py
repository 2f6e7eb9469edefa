"""Queue prepared messages and the copies that BCC rules make of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mail.queue import enqueue
from mail.queue.enqueue import NewSubmission, SubmissionOwner
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.message_insert import InsertedMessage
from models.runtime.environment import DatabaseTransaction
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.queue import rate_limits
from resolvers.submission.outgoing_messages import future_send_at_within_limit
from resolvers.submission.prepared_messages import BccCopyRecipients, PreparedMessage
from resolvers.submission.schedule import validated_schedule


@dataclass(frozen=True, slots=True)
class QueueableMessage:
    """A prepared message with its stored blobs, and its stored copy if there is one."""

    prepared: PreparedMessage
    stored_blobs: StoredMessageBlobs
    copy: InsertedMessage | None
    kept_blob_ids: Sequence[int] = ()  # further blobs that the submission refers to


def enqueue_message(
    transaction: DatabaseTransaction, ctx: Context, message: QueueableMessage
) -> int:
    """Queue one message and return the id of its submission.

    The caller counts it for the rate limits.
    """
    (submission_id,) = enqueue_messages_with_bcc_and_held_copies(transaction, ctx, [message])
    return submission_id


def enqueue_messages_with_bcc_and_held_copies(
    transaction: DatabaseTransaction, ctx: Context, messages: Sequence[QueueableMessage]
) -> list[int]:
    """Queue messages of one account and return the ids of their submissions.

    A message without a copy is copied to the legal holds of the account here.
    """
    new_submissions = [
        _build_submission_and_insert_blobs(transaction, message) for message in messages
    ]
    submission_ids = _enqueue_submissions_with_bcc_copies(
        transaction,
        ctx,
        new_submissions,
        [message.prepared.copy_recipients for message in messages],
    )
    for message, new_submission, submission_id in zip(
        messages, new_submissions, submission_ids, strict=True
    ):
        if message.copy is None:
            enqueue.copy_to_running_legal_holds(
                transaction,
                (require_user_id(ctx), submission_id),
                message.prepared.message,
                new_submission,
            )
    return submission_ids


def _build_submission_and_insert_blobs(
    transaction: DatabaseTransaction, queueable: QueueableMessage
) -> NewSubmission:
    prepared, copy = queueable.prepared, queueable.copy
    schedule = validated_schedule(transaction.environment, prepared.request)
    new_submission = enqueue.build_submission_and_insert_blobs(
        transaction,
        prepared.message,
        queueable.stored_blobs,
        prepared.sender,
        prepared.recipients,
        stored_copy=copy if prepared.copy is prepared.message else None,
        stored_message_id=copy.message_id if copy else None,
        due_at=schedule.first_attempt_at,
        state=schedule.state,
        send_at=future_send_at_within_limit(transaction.environment, prepared.request),
        undoable_until=schedule.undoable_until,
        sent_mailbox_id=prepared.sent_mailbox_id if copy else None,
        priority=prepared.request.priority,
        dsn_requests=prepared.dsn_requests,
        originates_here=True,
    )
    if not queueable.kept_blob_ids:
        return new_submission
    blob_ids = [*new_submission.blob_ids, *queueable.kept_blob_ids]
    return replace(new_submission, blob_ids=blob_ids)


def enqueue_with_bcc_copies_and_count_rate(
    transaction: DatabaseTransaction,
    ctx: Context,
    new_submission: NewSubmission,
    copy_recipients: BccCopyRecipients,
) -> int:
    """Queue a submission of the viewer and its copies by BCC rules, and return its id.

    Counts one message for the rate limits. Call it inside
    `quota_limits.convert_and_log_exceeded_limits`.
    """
    (key,) = _enqueue_submissions_with_bcc_copies(
        transaction, ctx, [new_submission], [copy_recipients]
    )
    rate_limits.count_against_sending_rates(transaction, require_user_id(ctx))
    return key


def _enqueue_submissions_with_bcc_copies(
    transaction: DatabaseTransaction,
    ctx: Context,
    new_submissions: Sequence[NewSubmission],
    copy_recipients: Sequence[BccCopyRecipients],
) -> list[int]:
    tenant, domain = copy_recipients[0].tenant_id, copy_recipients[0].domain_id
    owner = SubmissionOwner(require_user_id(ctx), tenant, ctx.origin, domain_id=domain)
    keys = enqueue.insert_submissions_in_one_batch(transaction, owner, new_submissions)
    copies = [
        replace(
            submission,
            recipients=recipient.addresses,
            endpoints=(),
            stored_message_id=None,
            sent_mailbox_id=None,
            copy_of=key,
        )
        for submission, recipient, key in zip(new_submissions, copy_recipients, keys, strict=True)
        if recipient.addresses
    ]
    if copies:
        copy_owner = SubmissionOwner(None, tenant, domain_id=domain)
        enqueue.insert_submissions_in_one_batch(transaction, copy_owner, copies)
    return keys
