"""Release quarantined messages: deliver them as the filters and the script of the account plan.

The spam verdict is not computed again, and filters can't mark the message as spam: the release has
decided. A message that rules would refuse or discard is kept. It can be days old, so there is no
automatic reply and no notification. A message with a virus is not redirected.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from mail.delivery import (
    account_forwards,
    delivery_plan,
    filter_execution,
    plan_execution,
    plan_redirects,
    recipient_rewrites,
    success_dsn,
    trace_steps,
)
from mail.delivery.delivery_plan import DeliveryPlan
from mail.delivery.quarantine import FETCHED_FOR
from mail.delivery.recipient_rewrites import PreparedBccCopy
from mail.delivery.success_dsn import SuccessDsn
from mail.envelope.dsn_parameters import dsn_request_from_record_or_default
from mail.envelope.local_recipient import LocalRecipient
from mail.filters.filter_result import NO_FILTERS
from mail.inbound.incoming_message import FetchedMessageState, IncomingMessage
from mail.inbound.spam_check import RecipientVerdict
from mail.queue import redirect
from mail.queue.redirect import PreparedRedirect
from mail.recipients.recipient_routes import MailLoop
from mail.spam.verdict import SpamVerdict, VerdictReason
from mail.storage import received_messages
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.blobs.message_layout import NewBlob
from mail.storage.message_insert import InsertedMessage, MessagePlacement
from mail.storage.quota import InsertKind
from mail.storage.received_messages import (
    DeliveryCopies,
    parse_storable_message,
    store_blobs_once_per_tenant,
)
from mail.storage.storable_message import StorableMessage
from models.errors import ServiceUnavailable
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow

log = logging.getLogger(__name__)

# a verdict that filters can't change
RELEASED_VERDICT = SpamVerdict(is_spam=False, score=0, reason=VerdictReason.LEVEL)
EMPTY_BLOB = NewBlob("", b"")


@dataclass(frozen=True, slots=True)
class PreparedRelease:
    """A release that is ready for its transaction: the plan, with all bytes stored."""

    plan: DeliveryPlan
    message: StorableMessage  # as it was quarantined
    queue_id: str
    receipt_digest: str
    placements: Sequence[tuple[StorableMessage, MessagePlacement]]
    stored_blobs: Sequence[StoredMessageBlobs]  # of the placements
    redirects: Sequence[tuple[PreparedRedirect, StoredMessageBlobs]]
    envelope_sender: str
    copies: Sequence[tuple[PreparedBccCopy, StoredMessageBlobs]]
    success_dsn: tuple[SuccessDsn, StoredMessageBlobs] | None = None  # DSN of the delivery

    @property
    def needs_queue(self) -> bool:
        """True if the release adds queue entries."""
        return bool(self.redirects or self.copies or self.success_dsn)


async def plan_release_and_store_blobs(
    environment: Environment,
    item_row: ColumnRow,
    raw_message: bytes,
    recipient: LocalRecipient,
    *,
    rewrite_blobs: bool = False,
) -> PreparedRelease:
    """Plan the release of a quarantined message and store all bytes it needs.

    With `rewrite_blobs`, blobs are written even if they exist. Raises ServiceUnavailable if the
    message can't be encrypted.
    """
    with ExitStack() as files:
        return await _plan_release_and_store_blobs(
            environment, item_row, raw_message, (recipient, rewrite_blobs), files
        )


async def _plan_release_and_store_blobs(
    environment: Environment,
    item_row: ColumnRow,
    raw_message: bytes,
    recipient_and_rewrite: tuple[LocalRecipient, bool],
    temporary_files: ExitStack,
) -> PreparedRelease:
    """Plan the release and store the bytes of all copies."""
    recipient, rewrite_blobs = recipient_and_rewrite
    message = replace(
        await parse_storable_message(raw_message), authentication=item_row.authentication
    )
    recipient, fetched = _recipient_and_state_if_fetched(environment, item_row, recipient)
    dsn_requests = {
        (recipient.user_id, recipient.mailbox_id): dsn_request_from_record_or_default(
            item_row.dsn_request
        )
    }
    mail = IncomingMessage(
        raw_message, message, item_row.sender, fetched=fetched, dsn_requests=dsn_requests
    )
    plan, sent = await _plan_release_and_prepare_redirects(
        environment, mail, recipient, temporary_files, has_virus=item_row.virus is not None
    )
    messages = await plan_execution.prepare_messages_for_placements(
        environment, mail, plan, temporary_files
    )
    stored_blobs = [
        await store_blobs_once_per_tenant(
            environment, recipient.tenant_id, message, store_again=rewrite_blobs
        )
        for message in messages
    ]
    placements = [
        plan_execution.storage_placement(environment, mail, plan, planned_placement)
        for planned_placement in plan.placements
    ]
    redirects = await _store_redirect_blobs(environment, sent, rewrite_blobs=rewrite_blobs)
    report = await success_dsn.success_dsn_of_released_if_requested(
        environment, mail, item_row, recipient
    )
    bcc_copies = await recipient_rewrites.build_bcc_copies(
        environment, mail, [recipient], [item_row.recipient], temporary_files
    )
    copies = await _store_bcc_copy_blobs(environment, bcc_copies, rewrite_blobs=rewrite_blobs)
    return PreparedRelease(
        plan,
        _without_bytes(message),
        item_row.queue_id,
        item_row.receipt,
        list(zip(map(_without_bytes, messages), placements, strict=True)),
        stored_blobs,
        redirects,
        item_row.sender,
        copies,
        await _store_dsn_blobs_and_drop_bytes(environment, report, rewrite_blobs=rewrite_blobs)
        if report
        else None,
    )


async def _plan_release_and_prepare_redirects(
    environment: Environment,
    incoming: IncomingMessage,
    recipient: LocalRecipient,
    temporary_files: ExitStack,
    *,
    has_virus: bool,
) -> tuple[DeliveryPlan, Sequence[PreparedRedirect]]:
    """Return the delivery plan, and the redirects of its rules and of the account.

    If a redirect or forward is refused, the plan stores the message.
    """
    plan = await _run_rules_and_plan_without_rejection(environment, incoming, recipient)
    if has_virus:
        plan = replace(plan, redirects=(), filter_result=replace(plan.filter_result, targets=()))
    prepared = await plan_redirects.prepare_plan_redirects(
        environment, incoming, plan, temporary_files
    )
    plan = replace(plan, script_error=plan.script_error or prepared.error)
    forwards = list[PreparedRedirect]()
    if not has_virus:
        forwards = await _build_account_forward_redirects(
            environment, incoming, plan, temporary_files
        )
    is_refused = prepared.error or (recipient.has_forward_targets and not forwards)
    if not plan.placements and (is_refused or not prepared.redirects):
        plan = replace(plan, placements=[plan.fallback_placement])
    return plan, [*prepared.redirects, *forwards]


def _recipient_and_state_if_fetched(
    environment: Environment, item_row: ColumnRow, recipient: LocalRecipient
) -> tuple[LocalRecipient, FetchedMessageState | None]:
    """Return the recipient and the fetched state of a message; None if it was not fetched.

    Fetched mail is redirected by the rules of its account, but not forwarded or copied otherwise.
    """
    own_address = (item_row.dsn_request or {}).get(FETCHED_FOR)
    if own_address is None:
        return recipient, None
    recipient = replace(
        recipient,
        rewritten_address=own_address if own_address != recipient.address else None,
        has_bcc_rules=False,
        has_forward_targets=False,
    )
    return recipient, FetchedMessageState(environment.now(), frozenset(), is_new_mail=True)


async def _run_rules_and_plan_without_rejection(
    environment: Environment, incoming: IncomingMessage, recipient: LocalRecipient
) -> DeliveryPlan:
    """Return the delivery plan. A rejection by rules is replaced by keeping the message."""
    verdicts = [RecipientVerdict(recipient, RELEASED_VERDICT)]
    filter_results = await filter_execution.run_filters_if_any(environment, incoming, verdicts)
    (plan,) = await delivery_plan.run_scripts_and_plan_deliveries(
        environment, incoming, verdicts, filter_results
    )
    if plan.rejection is None:
        return plan
    return replace(
        plan,
        rejection=None,
        placements=[plan.fallback_placement],
        redirects=(),
        new_duplicate_ids=(),
        filter_result=NO_FILTERS,
    )


async def _build_account_forward_redirects(
    environment: Environment,
    incoming: IncomingMessage,
    plan: DeliveryPlan,
    temporary_files: ExitStack,
) -> list[PreparedRedirect]:
    """Prepare the forward of an account with targets. Returns [] if it is not forwarded."""
    if not plan.recipient_verdict.recipient.has_forward_targets:
        return []
    try:
        forward = await account_forwards.build_account_forward(
            environment, incoming, plan.recipient_verdict
        )
        if isinstance(forward, account_forwards.ForwardOutcome):
            return []
        forward_with_dsn = replace(
            forward.forward,
            dsn_request=incoming.dsn_request_for_forward_without_success(
                plan.recipient_verdict.recipient
            ),
        )
        digest_and_sender = (
            incoming.content_digest,
            incoming.redirect_sender(plan.recipient_verdict.recipient),
        )
        return [
            await redirect.build_redirect_with_delivered_to_and_arc(
                environment,
                forward.raw_message,
                digest_and_sender,
                forward_with_dsn,
                temporary_files,
                message=forward.message,
            )
        ]
    except (MailLoop, ServiceUnavailable):
        log.info("Message not forwarded", extra={"user": plan.recipient_verdict.recipient.user_id})
        return []


async def _store_redirect_blobs(
    environment: Environment, redirects: Sequence[PreparedRedirect], *, rewrite_blobs: bool
) -> list[tuple[PreparedRedirect, StoredMessageBlobs]]:
    """Store the bytes of redirects and return the redirects without their bytes."""
    return [
        (
            replace(redirect, message=_without_bytes(redirect.message)),
            await store_blobs_once_per_tenant(
                environment,
                redirect.forward.tenant_id,
                redirect.message,
                store_again=rewrite_blobs,
            ),
        )
        for redirect in redirects
    ]


async def _store_bcc_copy_blobs(
    environment: Environment, bcc_copies: Sequence[PreparedBccCopy], *, rewrite_blobs: bool
) -> list[tuple[PreparedBccCopy, StoredMessageBlobs]]:
    """Store the bytes of BCC copies and return the copies without their bytes."""
    return [
        (
            replace(copy, message=_without_bytes(copy.message)),
            await store_blobs_once_per_tenant(
                environment,
                copy.original_recipient.tenant_id,
                copy.message,
                store_again=rewrite_blobs,
            ),
        )
        for copy in bcc_copies
    ]


async def _store_dsn_blobs_and_drop_bytes(
    environment: Environment, success_dsn: SuccessDsn, *, rewrite_blobs: bool
) -> tuple[SuccessDsn, StoredMessageBlobs]:
    """Store the bytes of the DSN and return it without its bytes."""
    stored_blobs = await store_blobs_once_per_tenant(
        environment, success_dsn.tenant_id, success_dsn.message, store_again=rewrite_blobs
    )
    return replace(success_dsn, message=_without_bytes(success_dsn.message)), stored_blobs


def _without_bytes(message: StorableMessage) -> StorableMessage:
    """Return the message without its stored bytes, to save memory until the transaction."""
    return replace(
        message,
        layout_blob=EMPTY_BLOB,
        part_blobs=(),
        stored_blobs_by_tenant={},
        part_blobs_by_tenant={},
    )


def deliver_prepared_release(
    transaction: DatabaseTransaction, prepared: PreparedRelease, releaser_name: str
) -> InsertedMessage | None:
    """Store the copies of a release, and enqueue its redirects, BCC copies and success DSN.

    The quarantine item stays; the caller deletes it. The transaction must lock the account, and
    PLATFORM if mail is queued. Returns None if rules redirect the message and don't store it.
    `releaser_name` is shown in the delivery trace. Raises the errors of
    `received_messages.insert_copies_in_mailboxes` and `redirect.enqueue_prepared_redirect_once`.
    """
    copies = DeliveryCopies(prepared.receipt_digest, prepared.placements, InsertKind.RELEASED)
    inserted = received_messages.insert_copies_in_mailboxes(
        transaction, copies, prepared.stored_blobs
    )
    plan_execution.record_script_state_and_matches(
        transaction, prepared.plan, (prepared.message, prepared.receipt_digest), inserted
    )
    for outgoing, stored_blobs in prepared.redirects:
        stored_forward = replace(
            outgoing.forward, stored_message_id=inserted.message_id if inserted else None
        )
        redirect.enqueue_prepared_redirect_once(
            transaction, replace(outgoing, forward=stored_forward), stored_blobs
        )
    for copy, stored_blobs in prepared.copies:
        recipient_rewrites.enqueue_bcc_copy(transaction, stored_blobs, copy)
    if prepared.success_dsn is not None:
        success_dsn.enqueue_dsn_once(transaction, *prepared.success_dsn)
    sent = [outgoing.forward for outgoing, _ in prepared.redirects]
    trace = trace_steps.new_trace_of_released(
        transaction.environment,
        prepared.queue_id,
        prepared.plan.recipient_verdict.recipient,
        (inserted, releaser_name),
    )
    trace.sender = prepared.envelope_sender
    for reply in sent:
        trace_steps.record_forward(transaction.environment, trace, reply)
    trace.write_in_transaction(transaction, prepared.message)
    return inserted
