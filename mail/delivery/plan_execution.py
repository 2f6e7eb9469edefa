"""Execute the delivery plan of a recipient: store, redirect, refuse and reply.

One transaction stores all placements, queues the redirects and records the state of the script. So
an ID that `duplicate` tested is recorded only if the actions succeed (RFC 7352, section 3). A
message that is not stored and not completely redirected is kept in the fallback mailbox, so that
none is lost. Replies follow. Receipts keep a repeated delivery from doing a step twice.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import or_, update
from sqlmodel import col

from mail import autoreply
from mail.autoreply import sieve_notification, sieve_vacation
from mail.delivery import dsn_matching, filter_execution, trace_steps
from mail.delivery.delivery_plan import (
    DeliveryPlan,
    PlannedPlacement,
    run_scripts_and_plan_deliveries,
)
from mail.delivery.plan_redirects import (
    enqueue_plan_redirects_and_return_error,
    prepare_plan_redirects,
    with_header_edits,
)
from mail.delivery.script_rejection import RejectedByScript
from mail.envelope.local_recipient import LocalRecipient
from mail.filters.script_environment import NO_MAILBOXES, load_script_mailboxes
from mail.filters.script_state import load_remembered_sieve_keys, upsert_remembered_sieve_key
from mail.inbound.incoming_message import IncomingMessage
from mail.queue.redirect import PreparedRedirect
from mail.storage import delivery_headers, openpgp_encryption, received_messages
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.message_flags import MAX_KEYWORDS, unique_keywords
from mail.storage.message_insert import InsertedMessage, MessagePlacement
from mail.storage.quota import InsertKind
from mail.storage.received_messages import AfterInsert, DeliveryCopies, receipt_digest
from mail.storage.storable_message import StorableMessage
from mail.text.storable_text import make_storable
from models.errors import NotFound
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.filters.sieve_scripts import SieveMemoryKind, SieveScript
from models.mailboxes.tables import SpecialUse
from models.observability import metrics
from models.runtime.environment import DatabaseTransaction, Environment

log = logging.getLogger(__name__)

MAX_TRIES = 3  # if other deliveries change the state of the script
ERROR_REPEAT_INTERVAL = timedelta(hours=1)  # between two records of the same script error
SIEVE_RUNS = metrics.counter(
    "merganser_sieve_runs", "Runs of Sieve scripts: done, failed.", "outcome"
)


class _DuplicateIdsChanged(Exception):
    """An ID that the script tested for duplicates was stored in the meantime."""


class _RedirectRefused(Exception):
    """A redirect was refused, and the plan does not store the message."""


async def execute_plan(
    environment: Environment,
    incoming: "IncomingMessage",
    plan: DeliveryPlan,
    encryption_slot: asyncio.Semaphore,
) -> InsertedMessage | None:
    """Execute the plan of a recipient. Returns None if the message is not stored.

    On return all is durable; if an error is raised, nothing is. Raises RejectedByScript,
    ServiceUnavailable if the message can't be encrypted, and the errors of
    `received_messages.store_copies_once`. Holds `encryption_slot` while a copy with its own bytes
    is in memory.
    """
    if plan.script_id is not None:
        SIEVE_RUNS.add("failed" if plan.script_error else "done")
    for _ in range(MAX_TRIES):
        if plan.rejection is not None:
            raise RejectedByScript(plan.rejection)
        try:
            stored_copies = await _store_and_redirect_or_use_fallback(
                environment, incoming, plan, encryption_slot
            )
            break
        except _DuplicateIdsChanged:
            (plan,) = await run_scripts_and_plan_deliveries(
                environment, incoming, [plan.recipient_verdict], [plan.filter_result]
            )
    else:
        raise RuntimeError("the state that the script depends on changed at each attempt")
    await _send_reply_and_notifications(environment, incoming, plan)
    return stored_copies


async def store_in_fallback_mailbox(
    environment: Environment,
    incoming: "IncomingMessage",
    plan: DeliveryPlan,
    encryption_slot: asyncio.Semaphore,
) -> InsertedMessage | None:
    """Store a message that an executed plan did not store, so that it is not lost.

    Its redirects, the script state and the matches of filters are not recorded again. Raises as
    `execute_plan`.
    """
    fallback_plan = replace(
        plan,
        placements=[plan.fallback_placement],
        new_duplicate_ids=(),
        tested_duplicate_ids=frozenset(),
        filter_result=replace(plan.filter_result, matched_filter_ids=(), webhook_ids=()),
    )
    return await _store_plan_or_use_inbox(
        environment, incoming, (fallback_plan, ()), encryption_slot
    )


async def _store_and_redirect_or_use_fallback(
    environment: Environment,
    incoming: "IncomingMessage",
    plan: DeliveryPlan,
    encryption_slot: asyncio.Semaphore,
) -> InsertedMessage | None:
    """Store and redirect a message. If it would be stored nowhere and a redirect fails, keep it."""
    with ExitStack() as temporary_files:
        prepared = await prepare_plan_redirects(environment, incoming, plan, temporary_files)
        if prepared.error is not None:
            plan = _kept_with_error(plan, prepared.error)
        try:
            return await _store_plan_or_use_inbox(
                environment, incoming, (plan, prepared.redirects), encryption_slot
            )
        except _RedirectRefused as refusal:
            plan = _kept_with_error(plan, str(refusal))
            return await _store_plan_or_use_inbox(
                environment, incoming, (plan, prepared.redirects), encryption_slot
            )


def _kept_with_error(plan: DeliveryPlan, redirect_error: str) -> DeliveryPlan:
    """Return the plan with the error of a redirect. A message that is stored nowhere is kept."""
    return replace(
        plan,
        placements=plan.placements or [plan.fallback_placement],
        script_error=plan.script_error or redirect_error,
    )


async def _store_plan_or_use_inbox(
    environment: Environment,
    incoming: "IncomingMessage",
    plan_and_redirects: tuple[DeliveryPlan, Sequence[PreparedRedirect]],
    encryption_slot: asyncio.Semaphore,
) -> InsertedMessage | None:
    """Store all placements, redirects and the script state.

    Uses INBOX in place of a deleted mailbox. Raises _RedirectRefused, _DuplicateIdsChanged and the
    errors of `received_messages.store_copies_once`; nothing is stored then.
    """
    plan, redirects = plan_and_redirects
    recipient, verdict = plan.recipient_verdict.recipient, plan.recipient_verdict.verdict
    receipt = receipt_digest(incoming.message, recipient, incoming.envelope_sender)
    remarks = plan.new_duplicate_ids or plan.script_error or plan.filter_result.matched_filter_ids
    if not (plan.placements or redirects or remarks or incoming.dsn):
        return None

    def write_redirects_script_state_and_dsn_results(
        transaction: DatabaseTransaction,
        inserted: InsertedMessage | None,
        redirect_blobs: Sequence[StoredMessageBlobs],
    ) -> None:
        _raise_if_duplicate_ids_changed(transaction, plan, receipt)
        error = enqueue_plan_redirects_and_return_error(
            transaction, list(zip(redirects, redirect_blobs, strict=True)), inserted
        )
        if error is not None and not plan.is_stored:
            raise _RedirectRefused(error)
        executed_plan = replace(plan, script_error=plan.script_error or error)
        record_script_state_and_matches(
            transaction, executed_plan, (incoming.message, receipt), inserted
        )
        if incoming.dsn is not None:
            dsn_matching.update_reported_deliveries(
                transaction, recipient, incoming.dsn, require_proof=verdict.is_spam
            )

    copies = DeliveryCopies(
        receipt,
        (),
        _insert_kind(incoming),
        queued_messages=[redirect.message for redirect in redirects],
    )
    store = partial(
        _store_placements,
        environment,
        incoming,
        encryption_slot=encryption_slot,
        write_with_message=write_redirects_script_state_and_dsn_results,
    )
    try:
        return await store((plan, copies))
    except NotFound as gone:
        if gone.path != ["mailbox"]:
            raise
        inbox_placement = await _load_inbox_placement_or_none(environment, plan)
        if inbox_placement is None:  # the account was deleted
            raise
        return await store((replace(plan, placements=[inbox_placement]), copies))


async def _load_inbox_placement_or_none(
    environment: Environment, plan: DeliveryPlan
) -> PlannedPlacement | None:
    user_id = plan.recipient_verdict.recipient.user_id
    mailboxes = (await load_script_mailboxes(environment, [user_id])).get(user_id, NO_MAILBOXES)
    inbox = mailboxes.find_by_special_use(SpecialUse.INBOX)
    return PlannedPlacement(inbox.id, inbox.encryption_key) if inbox else None


async def _store_placements(
    environment: Environment,
    incoming: "IncomingMessage",
    plan_and_copies: tuple[DeliveryPlan, DeliveryCopies],
    encryption_slot: asyncio.Semaphore,
    write_with_message: AfterInsert,
) -> InsertedMessage | None:
    """Store the placements of a plan in one transaction. The copies are still without them."""
    plan, copies = plan_and_copies
    recipient = plan.recipient_verdict.recipient
    with ExitStack() as temporary_files:
        placements = [
            storage_placement(environment, incoming, plan, planned_placement)
            for planned_placement in plan.placements
        ]
        if not any(
            planned_placement.edit_count or planned_placement.encryption_key is not None
            for planned_placement in plan.placements
        ):
            message = await _with_delivery_headers(
                incoming, incoming.raw_message, incoming.message, recipient, temporary_files
            )
            copies = replace(copies, placements=[(message, placement) for placement in placements])
            return await received_messages.store_copies_once(
                environment, recipient, copies, write_with_message
            )
        async with encryption_slot:
            messages = await prepare_messages_for_placements(
                environment, incoming, plan, temporary_files
            )
            copies = replace(copies, placements=list(zip(messages, placements, strict=True)))
            return await received_messages.store_copies_once(
                environment, recipient, copies, write_with_message
            )


def _insert_kind(incoming: "IncomingMessage") -> InsertKind:
    """Return how a message is counted. A fetched message is received mail only if it is new."""
    if incoming.fetched is None:
        return InsertKind.RECEIVED
    return InsertKind.FETCHED if incoming.fetched.is_new_mail else InsertKind.ADDED_BY_USER


def storage_placement(
    environment: Environment,
    incoming: "IncomingMessage",
    plan: DeliveryPlan,
    placement: PlannedPlacement,
) -> MessagePlacement:
    """Return where and with which flags to store a message. A fetched message keeps its flags."""
    in_mailbox = replace(
        received_messages.default_placement(
            environment, plan.recipient_verdict.recipient, incoming.envelope_sender
        ),
        mailbox_id=placement.mailbox_id,
        mailbox_path=placement.new_mailbox_path,
        seen=placement.seen,
        flagged=placement.flagged,
        answered=placement.answered,
        keywords=placement.keywords,
        filter_ids=plan.filter_result.matched_filter_ids,
    )
    if (lay := incoming.fetched) is None:
        return in_mailbox
    return replace(
        in_mailbox,
        received_at=lay.received_at,
        envelope_from=None,  # unknown for a fetched message
        draft=lay.draft,
        seen=in_mailbox.seen or lay.seen,
        flagged=in_mailbox.flagged or lay.flagged,
        answered=in_mailbox.answered or lay.answered,
        keywords=unique_keywords([*in_mailbox.keywords, *lay.keywords])[:MAX_KEYWORDS],
    )


async def prepare_messages_for_placements(
    environment: Environment,
    incoming: "IncomingMessage",
    plan: DeliveryPlan,
    temporary_files: ExitStack,
) -> list[StorableMessage]:
    """Return the message for each placement: with header edits, encryption and delivery headers."""
    messages: dict[tuple[int, str | None], StorableMessage] = {}
    for placement in plan.placements:
        if (placement.edit_count, placement.encryption_key) not in messages:
            messages[
                placement.edit_count, placement.encryption_key
            ] = await _edit_and_encrypt_for_placement(
                environment, incoming, (plan, placement), temporary_files
            )
    return [
        messages[placement.edit_count, placement.encryption_key] for placement in plan.placements
    ]


async def _edit_and_encrypt_for_placement(
    environment: Environment,
    incoming: "IncomingMessage",
    plan_and_placement: tuple[DeliveryPlan, PlannedPlacement],
    temporary_files: ExitStack,
) -> StorableMessage:
    """Return the message for one placement."""
    source, message, (plan, placement) = incoming.raw_message, incoming.message, plan_and_placement
    recipient = plan.recipient_verdict.recipient

    async def parse_changed_message(raw_message: bytes | Path) -> StorableMessage:
        changed_message = await received_messages.parse_storable_message(raw_message)
        original_message = incoming.message
        return replace(
            changed_message,
            received_digest=incoming.content_digest,
            authentication=original_message.authentication,
            scan=original_message.scan,
        )

    if placement.edit_count:
        source = await with_header_edits(
            incoming, plan.header_edits[: placement.edit_count], temporary_files
        )
        message = await parse_changed_message(source)
    if placement.encryption_key is not None:
        sealed = await openpgp_encryption.encrypt_to_bytes_unless_encrypted(
            environment, source, message, (recipient.user_id, placement.encryption_key)
        )
        if sealed is not None:
            source, message = sealed, await parse_changed_message(sealed)
    return await _with_delivery_headers(incoming, source, message, recipient, temporary_files)


async def _with_delivery_headers(
    incoming: "IncomingMessage",
    raw_message: bytes | Path,
    message: StorableMessage,
    recipient: LocalRecipient,
    temporary_files: ExitStack,
) -> StorableMessage:
    """Return the message with our delivery headers. A fetched message gets none."""
    if incoming.fetched is not None:
        return message
    return await delivery_headers.add_delivery_headers_and_subject_label(
        raw_message, message, recipient, incoming.envelope_sender, temporary_files
    )


def record_script_state_and_matches(
    transaction: DatabaseTransaction,
    plan: DeliveryPlan,
    message_and_receipt: tuple[StorableMessage, str],
    inserted: InsertedMessage | None,
) -> None:
    """Record the script state, the script error and the filter matches of a message.

    Runs in the transaction that stores the message.
    """
    message, receipt = message_and_receipt
    _remember_duplicate_ids(transaction, plan, receipt)
    _store_script_error_if_new(transaction, plan)
    filter_execution.count_matches_and_insert_webhook_deliveries(
        transaction, plan.recipient_verdict.recipient.user_id, plan.filter_result, message, inserted
    )


def _raise_if_duplicate_ids_changed(
    transaction: DatabaseTransaction, plan: DeliveryPlan, receipt_digest: str
) -> None:
    """Raise _DuplicateIdsChanged if the state of the IDs that the script tested has changed."""
    if not plan.tested_duplicate_ids:
        return
    user = plan.recipient_verdict.recipient.user_id
    if (
        load_remembered_sieve_keys(
            transaction, user, SieveMemoryKind.DUPLICATE, plan.tested_duplicate_ids, receipt_digest
        )
        != plan.known_duplicate_ids & plan.tested_duplicate_ids
    ):
        raise _DuplicateIdsChanged


def _remember_duplicate_ids(
    transaction: DatabaseTransaction, plan: DeliveryPlan, receipt_digest: str
) -> None:
    """Store the IDs of `duplicate` tests until they expire."""
    now = transaction.environment.now()
    for duplicate_id in plan.new_duplicate_ids:
        until = now + timedelta(seconds=duplicate_id.seconds)
        upsert_remembered_sieve_key(
            transaction,
            plan.recipient_verdict.recipient.user_id,
            (SieveMemoryKind.DUPLICATE, duplicate_id.key),
            until,
            receipt_digest,
        )


def _store_script_error_if_new(transaction: DatabaseTransaction, plan: DeliveryPlan) -> None:
    """Store the error of a script for its user. The same error is stored at most once an hour."""
    if plan.script_error is None or plan.script_id is None:
        return
    now, text = transaction.environment.now(), make_storable(plan.script_error)
    new = or_(
        col(SieveScript.last_error).is_(None),
        col(SieveScript.last_error) != text,
        col(SieveScript.last_error_at) <= now - ERROR_REPEAT_INTERVAL,
    )
    statement = (
        update(SieveScript)
        .where(col(SieveScript.id) == plan.script_id, new)
        .values(last_error=text, last_error_at=now)
    )
    if transaction.connection.execute(statement).rowcount:
        entry = JournalEntry(EventType.SIEVE_FAILED, [plan.script_id])
        transaction.record_entry(plan.recipient_verdict.recipient.user_id, entry, at=now)


async def _send_reply_and_notifications(
    environment: Environment, incoming: "IncomingMessage", plan: DeliveryPlan
) -> None:
    """Send the automatic reply and the notifications. Errors don't affect the delivery.

    Only one reply is sent: of the script, else of a filter, else of the account.
    """
    recipient_verdict = plan.recipient_verdict
    recipient = recipient_verdict.recipient
    if plan.vacation is not None:
        await _run_logging_errors(
            sieve_vacation.send_vacation_reply_if_allowed(
                environment, incoming, recipient_verdict, plan.vacation, plan.mailboxes
            ),
            recipient,
        )
    elif plan.filter_result.replies:
        await _run_logging_errors(
            filter_execution.send_first_filter_reply_if_addressed(
                environment, incoming, recipient_verdict, plan.filter_result, plan.mailboxes
            ),
            recipient,
        )
    else:
        outcome = await autoreply.try_autoreply_and_return_outcome(
            environment,
            incoming,
            recipient,
            is_spam=recipient_verdict.verdict.is_spam,
        )
        trace_steps.record_autoreply(environment, incoming.trace, recipient, outcome)
    for notice in plan.notifications:
        await _run_logging_errors(
            sieve_notification.enqueue_notification_and_store_copy(
                environment, incoming, recipient_verdict, notice, plan.mailboxes
            ),
            recipient,
        )


async def _run_logging_errors(coroutine: Any, recipient: LocalRecipient) -> None:
    """Run a coroutine and log its errors: the message is already stored."""
    try:
        await coroutine
    except Exception:  # the message is stored; the client must not send it again
        log.exception("Automatic reply not sent", extra={"user": recipient.user_id})
