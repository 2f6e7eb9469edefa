"""Execute the delivery plan of a recipient: store, redirect, refuse and reply.

All placements are stored in one transaction, with the state of the script. Redirects and replies
follow. Receipts keep a repeated delivery after a crash from doing a step twice. A message that was
neither stored nor redirected is kept in the fallback mailbox, so that none is lost.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import or_, update
from sqlalchemy.exc import StatementError
from sqlmodel import col

from mail import autoreply, sieve
from mail.autoreply import sieve_notification, sieve_vacation
from mail.delivery import dsn_matching, filter_execution, trace_steps
from mail.delivery.delivery_plan import DeliveryPlan, PlannedPlacement, plan_deliveries
from mail.delivery.script_rejection import RejectedByScript
from mail.envelope.local_recipient import LocalRecipient
from mail.filters.script_state import remember_key, remembered_keys
from mail.inbound.incoming_message import IncomingMessage
from mail.queue.redirect import enqueue_redirect
from mail.recipients.forward_targets import ForwardEndpoint
from mail.recipients.recipient_routes import OutgoingForward
from mail.sieve import Edit
from mail.storage import delivery_headers, openpgp_encryption, received_messages
from mail.storage.header_prepend import read_beginning, replace_beginning
from mail.storage.message_flags import MAX_KEYWORDS
from mail.storage.message_insert import InsertedMessage, InsertKind, MessagePlacement
from mail.storage.received_messages import DeliveryCopies, receipt_digest
from mail.storage.storable_message import StorableMessage
from mail.text.storable_text import make_storable
from models.errors import NotFound, RequestError
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
    "merganser_sieve_runs", "Scripts that mail was run through: done, or failed.", "outcome"
)


class _DuplicateIdsChanged(Exception):
    """An ID that the script tested for duplicates was stored in the meantime."""


async def execute_plan(
    environment: Environment,
    incoming: "IncomingMessage",
    plan: DeliveryPlan,
    encryption_slot: asyncio.Semaphore,
) -> InsertedMessage | None:
    """Execute the plan of a recipient. Returns None if the message is not stored.

    On return all is durable. Raises RejectedByScript, ServiceUnavailable if the message can't be
    encrypted, and the errors of `received_messages.store_copies_once`. Holds `encryption_slot`
    while a copy with its own bytes is in memory.
    """
    if plan.script_id is not None:
        SIEVE_RUNS.add("failed" if plan.script_error else "done")
    if plan.rejection is not None:
        raise RejectedByScript(plan.rejection)
    for _ in range(MAX_TRIES):
        try:
            placed = await _store_plan_or_use_inbox(environment, incoming, plan, encryption_slot)
            break
        except _DuplicateIdsChanged:
            (plan,) = await plan_deliveries(
                environment, incoming, [plan.recipient_verdict], [plan.filter_result]
            )
            if plan.rejection is not None:
                raise RejectedByScript(plan.rejection) from None
    else:
        raise RuntimeError("what the script hung on has changed each time")
    failed = await _enqueue_redirects_and_return_error(environment, incoming, plan, placed)
    if failed:
        plan = replace(plan, script_error=plan.script_error or failed)
        if not plan.is_stored:
            kept = replace(
                plan,
                placements=[plan.fallback_placement],
                new_duplicate_ids=(),
                tested_duplicate_ids=frozenset(),
            )
            plan = replace(
                kept, filter_result=filter_execution.without_recorded_actions(plan.filter_result)
            )
            placed = await _store_plan_or_use_inbox(environment, incoming, plan, encryption_slot)
        elif plan.script_id is not None:
            await environment.run_transaction(
                lambda turn: _store_script_error(turn, plan),
                plan.recipient_verdict.recipient.user_id,
            )
    await _send_reply_and_notifications(environment, incoming, plan)
    return placed


async def _store_plan_or_use_inbox(
    environment: Environment,
    incoming: "IncomingMessage",
    plan: DeliveryPlan,
    encryption_slot: asyncio.Semaphore,
) -> InsertedMessage | None:
    """Store all placements with the script state. Uses INBOX in place of a deleted mailbox."""
    receipt = receipt_digest(
        incoming.message, plan.recipient_verdict.recipient, incoming.envelope_sender
    )
    remarks = plan.new_duplicate_ids or plan.script_error or plan.filter_result.matched_filter_ids
    if not (plan.placements or remarks or incoming.dsn):
        return None

    def write_with_message(
        transaction: DatabaseTransaction, inserted: InsertedMessage | None
    ) -> None:
        _raise_if_duplicate_ids_changed(transaction, plan, receipt)
        record_script_state_and_matches(transaction, plan, (incoming.message, receipt), inserted)
        if incoming.dsn is not None:
            doubtful = plan.recipient_verdict.verdict.is_spam
            dsn_matching.update_reported_deliveries(
                transaction, plan.recipient_verdict.recipient, incoming.dsn, require_proof=doubtful
            )

    try:
        return await _store_placements(
            environment, incoming, (plan, receipt), encryption_slot, write_with_message
        )
    except NotFound as gone:
        inbox = plan.mailboxes.by_special_use(SpecialUse.INBOX)
        spot = PlannedPlacement(inbox.id, inbox.encryption_key) if inbox else None
        if gone.path != ["mailbox"] or spot is None or list(plan.placements) == [spot]:
            raise
        rest = replace(plan, placements=[spot])  # a mailbox was deleted in the meantime
        return await _store_placements(
            environment, incoming, (rest, receipt), encryption_slot, write_with_message
        )


async def _store_placements(
    environment: Environment,
    incoming: "IncomingMessage",
    plan_and_receipt: tuple[DeliveryPlan, str],
    encryption_slot: asyncio.Semaphore,
    write_with_message: Callable[[DatabaseTransaction, InsertedMessage | None], None],
) -> InsertedMessage | None:
    """Store the placements of a plan in one transaction."""
    todo, receipt = plan_and_receipt
    to = todo.recipient_verdict.recipient
    with ExitStack() as made:
        places = [storage_placement(environment, incoming, todo, spot) for spot in todo.placements]
        if not any(spot.edit_count or spot.encryption_key is not None for spot in todo.placements):
            letter = await _with_delivery_headers(
                incoming, incoming.raw_message, incoming.message, to, made
            )
            copies = DeliveryCopies(
                receipt, [(letter, there) for there in places], _insert_kind(incoming)
            )
            return await received_messages.store_copies_once(
                environment, to, copies, write_with_message
            )
        async with encryption_slot:
            each = await messages_for_placements(environment, incoming, todo, made)
            copies = DeliveryCopies(
                receipt, list(zip(each, places, strict=True)), _insert_kind(incoming)
            )
            return await received_messages.store_copies_once(
                environment, to, copies, write_with_message
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
    there = replace(
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
        return there
    return replace(
        there,
        received_at=lay.received_at,
        envelope_from=None,  # unknown for a fetched message
        draft=lay.draft,
        seen=there.seen or lay.seen,
        flagged=there.flagged or lay.flagged,
        answered=there.answered or lay.answered,
        keywords=list(dict.fromkeys([*there.keywords, *lay.keywords]))[:MAX_KEYWORDS],
    )


async def messages_for_placements(
    environment: Environment,
    incoming: "IncomingMessage",
    plan: DeliveryPlan,
    temporary_files: ExitStack,
) -> list[StorableMessage]:
    """Return the message for each placement: with header edits, encryption and delivery headers."""
    made: dict[tuple[int, str | None], StorableMessage] = {}
    for spot in plan.placements:
        if (spot.edit_count, spot.encryption_key) not in made:
            made[spot.edit_count, spot.encryption_key] = await _message_for_placement(
                environment, incoming, (plan, spot), temporary_files
            )
    return [made[spot.edit_count, spot.encryption_key] for spot in plan.placements]


async def _message_for_placement(
    environment: Environment,
    incoming: "IncomingMessage",
    plan_and_placement: tuple[DeliveryPlan, PlannedPlacement],
    temporary_files: ExitStack,
) -> StorableMessage:
    """Return the message for one placement."""
    source, letter, (todo, spot) = incoming.raw_message, incoming.message, plan_and_placement
    to = todo.recipient_verdict.recipient

    async def read_changed(raw_message: bytes | Path) -> StorableMessage:
        made, found = await received_messages.parse_storable_message(raw_message), incoming.message
        return replace(
            made,
            received_digest=incoming.content_digest,
            verification=found.verification,
            scan=found.scan,
        )

    if spot.edit_count:
        source = await _with_header_edits(
            incoming, todo.header_edits[: spot.edit_count], temporary_files
        )
        letter = await read_changed(source)
    if spot.encryption_key is not None:
        sealed = await openpgp_encryption.encrypt_to_bytes_unless_encrypted(
            environment, source, letter, (to.user_id, spot.encryption_key)
        )
        if sealed is not None:
            source, letter = sealed, await read_changed(sealed)
    return await _with_delivery_headers(incoming, source, letter, to, temporary_files)


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
    return await delivery_headers.add_delivery_headers_and_label(
        raw_message, message, recipient, incoming.envelope_sender, temporary_files
    )


async def _with_header_edits(
    incoming: "IncomingMessage", header_edits: Sequence[Edit], temporary_files: ExitStack
) -> bytes | Path:
    """Return the message with header edits. A temporary file is closed with `temporary_files`."""
    end = incoming.message.facts.structure.body_start
    head = await read_beginning(incoming.raw_message, end)
    return await replace_beginning(
        incoming.raw_message,
        await asyncio.to_thread(sieve.edit_header_block, head, header_edits),
        end,
        temporary_files,
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
    letter, receipt = message_and_receipt
    _remember_duplicate_ids(transaction, plan, receipt)
    _store_script_error(transaction, plan)
    filter_execution.record_matches_and_webhooks(
        transaction, plan.recipient_verdict.recipient.user_id, plan.filter_result, letter, inserted
    )


def _raise_if_duplicate_ids_changed(
    transaction: DatabaseTransaction, plan: DeliveryPlan, receipt_digest: str
) -> None:
    """Raise _DuplicateIdsChanged if the state of the IDs that the script tested has changed."""
    if not plan.tested_duplicate_ids:
        return
    user = plan.recipient_verdict.recipient.user_id
    if (
        remembered_keys(
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
    for one in plan.new_duplicate_ids:
        until = now + timedelta(seconds=one.seconds)
        remember_key(
            transaction,
            plan.recipient_verdict.recipient.user_id,
            (SieveMemoryKind.DUPLICATE, one.key),
            until,
            receipt_digest,
        )


def _store_script_error(transaction: DatabaseTransaction, plan: DeliveryPlan) -> None:
    """Store the error of a script for its user. The same error is stored at most once an hour."""
    if plan.script_error is None or plan.script_id is None:
        return
    now, text = transaction.environment.now(), make_storable(plan.script_error)
    new = or_(
        col(SieveScript.last_error).is_(None),
        col(SieveScript.last_error) != text,
        col(SieveScript.last_error_at) <= now - ERROR_REPEAT_INTERVAL,
    )
    shown = (
        update(SieveScript)
        .where(col(SieveScript.id) == plan.script_id, new)
        .values(last_error=text, last_error_at=now)
    )
    if transaction.connection.execute(shown).rowcount:
        entry = JournalEntry(EventType.SIEVE_FAILED, [plan.script_id])
        transaction.record_entry(plan.recipient_verdict.recipient.user_id, entry, at=now)


async def _enqueue_redirects_and_return_error(
    environment: Environment,
    incoming: "IncomingMessage",
    plan: DeliveryPlan,
    inserted: InsertedMessage | None,
) -> str | None:
    """Enqueue the redirects of a plan. Returns the text of the last error, or None."""
    failed, key = None, inserted.message_id if inserted else None
    for edits, onward in edit_counts_and_forwards_of_plan(plan):
        shown = ", ".join([*onward.target_addresses, *(via.public_url for via in onward.endpoints)])
        try:
            with ExitStack() as files:
                source, letter = await message_with_header_edits(incoming, plan, edits, files)
                came = incoming.content_digest, incoming.envelope_sender
                wish = incoming.dsn_request_for_forward(plan.recipient_verdict.recipient)
                whole = replace(onward, dsn_request=wish, stored_message_id=key)
                await enqueue_redirect(
                    environment, source, came, whole, incoming.authentication_results, letter
                )
        except RequestError as refusal:
            failed = f"not sent on to {shown}: {refusal.message}"
        except Exception as error:  # the message is kept; the client must not send it again
            hide_parameters(error)
            log.exception("not sent on", extra={"user": plan.recipient_verdict.recipient.user_id})
            failed = f"not sent on to {shown}: the server's log has more"
    return failed


def edit_counts_and_forwards_of_plan(plan: DeliveryPlan) -> list[tuple[int, OutgoingForward]]:
    """Return (edit count, forward) pairs: redirects of the script, then targets of filters."""
    to = plan.recipient_verdict.recipient
    mine = OutgoingForward(to.address, None, to.tenant_id, user_id=to.user_id)
    found = [
        (one.edit_count, replace(mine, target_addresses=[one.address])) for one in plan.redirects
    ]
    told = {one.address.lower() for one in plan.redirects}
    if plan.recipient_verdict.verdict.is_spam:
        return found
    for target in plan.filter_result.targets:
        if "://" in target.public_url:
            found.append(
                (
                    0,
                    replace(
                        mine,
                        endpoints=[
                            ForwardEndpoint(to.address, target.public_url, target.secret_url)
                        ],
                    ),
                )
            )
        elif target.public_url.lower() not in told:
            told.add(target.public_url.lower())
            found.append((0, replace(mine, target_addresses=[target.public_url])))
    return found


async def message_with_header_edits(
    incoming: "IncomingMessage", plan: DeliveryPlan, edit_count: int, temporary_files: ExitStack
) -> tuple[bytes | Path, StorableMessage | None]:
    """Return the message with the first header edits applied, and its parsed form.

    The parsed form is None if the header was edited.
    """
    if not edit_count:
        return incoming.raw_message, incoming.message
    return await _with_header_edits(incoming, plan.header_edits[:edit_count], temporary_files), None


async def _send_reply_and_notifications(
    environment: Environment, incoming: "IncomingMessage", plan: DeliveryPlan
) -> None:
    """Send the automatic reply and the notifications. Errors don't affect the delivery.

    Only one reply is sent: of the script, else of a filter, else of the account.
    """
    judged = plan.recipient_verdict
    to = judged.recipient
    if plan.vacation is not None:
        await _run_logging_errors(
            sieve_vacation.send_vacation_reply(
                environment, incoming, judged, plan.vacation, plan.mailboxes
            ),
            to,
        )
    elif plan.filter_result.replies:
        await _run_logging_errors(
            filter_execution.send_first_filter_reply(
                environment, incoming, judged, plan.filter_result, plan.mailboxes
            ),
            to,
        )
    else:
        outcome = await autoreply.try_autoreply_after_delivery(
            environment,
            incoming,
            to,
            is_spam=judged.verdict.is_spam,
        )
        trace_steps.record_autoreply(environment, incoming.trace, to, outcome)
    for notice in plan.notifications:
        await _run_logging_errors(
            sieve_notification.send_notification(
                environment, incoming, judged, notice, plan.mailboxes
            ),
            to,
        )


async def _run_logging_errors(coroutine: Any, recipient: LocalRecipient) -> None:
    """Run a coroutine and log its errors: the message is already stored."""
    try:
        await coroutine
    except Exception as error:  # the message is stored; the client must not send it again
        hide_parameters(error)
        log.exception("not answered", extra={"user": recipient.user_id})


def hide_parameters(error: Exception) -> None:
    """Remove the parameters of an SQL error, since they contain mail."""
    if isinstance(error, StatementError):
        error.hide_parameters = True
