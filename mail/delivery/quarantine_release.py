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
    recipient_rewrites,
    success_dsn,
    trace_steps,
)
from mail.delivery.delivery_plan import DeliveryPlan
from mail.delivery.recipient_rewrites import PreparedBccCopy
from mail.delivery.success_dsn import SuccessDsn
from mail.envelope.dsn_parameters import request_from_record
from mail.envelope.local_recipient import LocalRecipient
from mail.filters.filter_result import NO_FILTERS
from mail.inbound.incoming_message import IncomingMessage
from mail.inbound.spam_check import RecipientVerdict
from mail.queue import redirect
from mail.queue.redirect import PreparedRedirect
from mail.recipients.recipient_routes import MailLoop
from mail.spam.verdict import SpamVerdict, VerdictReason
from mail.storage import received_messages
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.blobs.message_layout import NewBlob
from mail.storage.message_insert import InsertedMessage, InsertKind, MessagePlacement
from mail.storage.received_messages import DeliveryCopies, parse_storable_message, store_blobs
from mail.storage.storable_message import StorableMessage
from models.errors import ServiceUnavailable
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow

log = logging.getLogger(__name__)

RELEASED_VERDICT = SpamVerdict(
    is_spam=False, score=0, reason=VerdictReason.LEVEL
)  # a verdict that filters can't change
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
    to, again = recipient_and_rewrite
    letter = replace(await parse_storable_message(raw_message), verification=item_row.verification)
    wishes = {(to.user_id, to.mailbox_id): request_from_record(item_row.wish)}
    mail = IncomingMessage(raw_message, letter, item_row.sender, dsn_requests=wishes)
    todo = await _plan_without_rejection(environment, mail, to)
    if item_row.virus is not None:
        todo = replace(todo, redirects=(), filter_result=replace(todo.filter_result, targets=()))
    sent, failed = await _rule_redirects_and_has_loop(environment, mail, todo, temporary_files)
    if not todo.placements and (failed or not sent):
        todo = replace(todo, placements=[todo.fallback_placement])
    if item_row.virus is None:
        sent += await _account_forward_redirects(environment, mail, todo, temporary_files)
    made = await plan_execution.messages_for_placements(environment, mail, todo, temporary_files)
    kept = [await store_blobs(environment, to.tenant_id, each, store_again=again) for each in made]
    there = [
        plan_execution.storage_placement(environment, mail, todo, spot) for spot in todo.placements
    ]
    leaving = list[tuple[PreparedRedirect, StoredMessageBlobs]]()
    for one in sent:
        safe = await store_blobs(environment, one.forward.tenant_id, one.message, store_again=again)
        leaving.append((replace(one, message=_without_bytes(one.message)), safe))
    report = await success_dsn.success_dsn_of_released(environment, mail, item_row, to)
    copies = [
        (
            replace(copy, message=_without_bytes(copy.message)),
            await _store_copy_blobs(environment, copy, rewrite_blobs=again),
        )
        for copy in await recipient_rewrites.build_bcc_copies(
            environment, mail, [to], [item_row.recipient], temporary_files
        )
    ]
    return PreparedRelease(
        todo,
        _without_bytes(letter),
        item_row.queue_id,
        item_row.receipt,
        list(zip(map(_without_bytes, made), there, strict=True)),
        kept,
        leaving,
        item_row.sender,
        copies,
        await _store_dsn_blobs(environment, report, rewrite_blobs=again) if report else None,
    )


async def _plan_without_rejection(
    environment: Environment, incoming: IncomingMessage, recipient: LocalRecipient
) -> DeliveryPlan:
    """Return the delivery plan. A rejection by rules is replaced by keeping the message."""
    judged = [RecipientVerdict(recipient, RELEASED_VERDICT)]
    said = await filter_execution.run_filters(environment, incoming, judged)
    (todo,) = await delivery_plan.plan_deliveries(environment, incoming, judged, said)
    if todo.rejection is None:
        return todo
    return replace(
        todo,
        rejection=None,
        placements=[todo.fallback_placement],
        redirects=(),
        new_duplicate_ids=(),
        filter_result=NO_FILTERS,
    )


async def _rule_redirects_and_has_loop(
    environment: Environment,
    incoming: IncomingMessage,
    plan: DeliveryPlan,
    temporary_files: ExitStack,
) -> tuple[list[PreparedRedirect], bool]:
    """Prepare the redirects of rules. Also returns True if one failed because of a mail loop."""
    made, failed = list[PreparedRedirect](), False
    wish = incoming.dsn_request_for_forward(plan.recipient_verdict.recipient)
    for edits, wanted in plan_execution.edit_counts_and_forwards_of_plan(plan):
        to = replace(wanted, dsn_request=wish)
        source, letter = await plan_execution.message_with_header_edits(
            incoming, plan, edits, temporary_files
        )
        came = incoming.content_digest, incoming.envelope_sender
        try:
            made.append(
                await redirect.prepare_redirect(
                    environment, source, came, to, temporary_files, message=letter
                )
            )
        except MailLoop:
            failed = True
    return made, failed


async def _account_forward_redirects(
    environment: Environment,
    incoming: IncomingMessage,
    plan: DeliveryPlan,
    temporary_files: ExitStack,
) -> list[PreparedRedirect]:
    """Prepare the forward of an account with targets. Returns [] if it is not forwarded."""
    if not plan.recipient_verdict.recipient.has_forward_targets:
        return []
    try:
        found = await account_forwards.build_account_forward(
            environment, incoming, plan.recipient_verdict
        )
        if isinstance(found, account_forwards.ForwardOutcome):
            return []
        to = replace(
            found.forward,
            dsn_request=incoming.dsn_request_for_forward(plan.recipient_verdict.recipient),
        )
        came = incoming.content_digest, incoming.envelope_sender
        return [
            await redirect.prepare_redirect(
                environment, found.raw_message, came, to, temporary_files, message=found.message
            )
        ]
    except (MailLoop, ServiceUnavailable):
        log.info("not forwarded", extra={"user": plan.recipient_verdict.recipient.user_id})
        return []


async def _store_copy_blobs(
    environment: Environment, bcc_copy: PreparedBccCopy, *, rewrite_blobs: bool
) -> StoredMessageBlobs:
    """Store the bytes of a BCC copy."""
    return await store_blobs(
        environment,
        bcc_copy.original_recipient.tenant_id,
        bcc_copy.message,
        store_again=rewrite_blobs,
    )


async def _store_dsn_blobs(
    environment: Environment, success_dsn: SuccessDsn, *, rewrite_blobs: bool
) -> tuple[SuccessDsn, StoredMessageBlobs]:
    """Store the bytes of the DSN and return it without its bytes."""
    kept = await store_blobs(
        environment, success_dsn.tenant_id, success_dsn.message, store_again=rewrite_blobs
    )
    return replace(success_dsn, message=_without_bytes(success_dsn.message)), kept


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
    placed = received_messages.insert_copies_in_mailboxes(
        transaction, copies, prepared.stored_blobs
    )
    plan_execution.record_script_state_and_matches(
        transaction, prepared.plan, (prepared.message, prepared.receipt_digest), placed
    )
    for outgoing, kept in prepared.redirects:
        to = replace(outgoing.forward, stored_message_id=placed.message_id if placed else None)
        redirect.enqueue_prepared_redirect_once(transaction, replace(outgoing, forward=to), kept)
    for copy, kept in prepared.copies:
        recipient_rewrites.enqueue_bcc_copy(transaction, kept, copy)
    if prepared.success_dsn is not None:
        success_dsn.enqueue_dsn_once(transaction, *prepared.success_dsn)
    sent = [outgoing.forward for outgoing, _ in prepared.redirects]
    way = trace_steps.new_trace_of_released(
        transaction.environment,
        prepared.queue_id,
        prepared.plan.recipient_verdict.recipient,
        (placed, releaser_name),
    )
    way.sender = prepared.envelope_sender
    for each in sent:
        trace_steps.record_forward(transaction.environment, way, each)
    way.write_in_transaction(transaction, prepared.message)
    return placed
