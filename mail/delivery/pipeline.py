"""Deliver an incoming message, step by step.

1. Read the message and check its sender, or use the results of a trusted server
(mail/inbound/sender_verification.py). Our results are added to the header.

2. Scan it (mail/scanners).

3. Merge recipients that lead to the same account.

4. Compute the spam verdict of each account (mail/spam/verdict.py). Spam goes to Junk, is refused or
is quarantined (mail/delivery/quarantine.py). A quarantined message causes no reply and no copy. The
label of a subaddress can select another mailbox (mail/delivery/subaddress_mailbox.py).

5. Run the filters and then the script of each account (mail/delivery/filter_execution.py,
mail/delivery/delivery_plan.py).

6. Store it in each account, with delivery header fields (mail/storage/delivery_headers.py) unless
it was fetched, and encrypted if the account requires it. A full mailbox does not affect other
accounts. Then forward it and reply (mail/delivery/plan_execution.py,
mail/delivery/account_forwards.py). Legal holds get a copy of a message that is not stored
(mail/delivery/discarded_messages.py).

7. Enqueue the copies of BCC rules (mail/delivery/recipient_rewrites.py).

8. Enqueue forwards of addresses, and failed deliveries to the accounts they lead to
(mail/delivery/failed_deliveries.py). Spam is not forwarded. Train the spam filter for training
addresses. Send the automatic replies of forwarding addresses.

9. Write the delivery trace (mail/delivery/trace_steps.py) and return one result per recipient: an
exception if any part of it is not durable.

Recipients are accepted before, in mail/recipients/recipient_routes.py. On return everything that
was not refused is durable.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mail import autoreply
from mail.authentication.forwarding_hosts import find_forwarder
from mail.delivery import (
    account_forwards,
    delivery_plan,
    discarded_messages,
    filter_execution,
    plan_execution,
    quarantine,
    recipient_rewrites,
    subaddress_mailbox,
    success_dsn,
    trace_steps,
)
from mail.delivery.account_forwards import ForwardOutcome
from mail.delivery.delivery_plan import DeliveryPlan
from mail.delivery.failed_deliveries import FailedDelivery, enqueue_failed_deliveries
from mail.delivery.refusal_replies import is_permanent_refusal
from mail.envelope.client import SmtpClientInfo
from mail.envelope.dsn_parameters import DsnRequest
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound import dsn_parser, sender_verification, spam_check
from mail.inbound.incoming_message import InboxKey, IncomingMessage
from mail.inbound.scan_rejection import require_accepted_by_verdict, require_forwardable
from mail.inbound.spam_check import RecipientVerdict
from mail.logs.message_entries import CheckedMessage, VerdictEntry, record_verdicts
from mail.queue.redirect import enqueue_redirect
from mail.recipients.recipient_routes import (
    AcceptedAccount,
    AcceptedRecipient,
    AcceptedResource,
    AutoreplyAddress,
    OutgoingForward,
)
from mail.resources.invitation_answers import answer_invitation_and_return_trace_text
from mail.scanners import scan_incoming_and_store_result
from mail.scanners.rspamd_training import train_rspamd_with_attached_or_whole_message
from mail.storage.message_insert import InsertedMessage
from models.errors import RequestError
from models.logs.entries import LogComponent, LogLevel
from models.metrics.usage_recorder import UsageCaller
from models.runtime.environment import Environment


async def read_and_verify_incoming(
    environment: Environment,
    raw_message: bytes | Path,
    envelope_sender: str,
    client: SmtpClientInfo | None = None,
    content_digest: str | None = None,
) -> IncomingMessage:
    """Read a message from an SMTP client, or from a trusted server if there is no client.

    The header fields about spam and authentication are used only from a trusted server.
    `content_digest` is the SHA-256 of the message as received. Raises as sender_verification.
    """
    forwarder = await find_forwarder(environment, client.ip_address) if client else None
    forwarded = forwarder is not None
    source, message = await sender_verification.verify_sender_and_add_authentication_results(
        environment, raw_message, envelope_sender, client, from_forwarding_host=forwarded
    )
    message = replace(message, received_digest=content_digest or message.received_digest)
    trusted = forwarder is not None and not forwarder.filter_spam
    return IncomingMessage(
        source,
        message,
        envelope_sender,
        from_trusted_server=client is None,
        client=client,
        skip_spam_filter=trusted,
    )


async def deliver_to_accepted_recipients(
    environment: Environment,
    incoming: IncomingMessage,
    accepted_recipients: Sequence[AcceptedRecipient],
) -> list[object]:
    """Deliver a message to accepted recipients; return one result each, an exception if refused."""
    trace_steps.record_sender_and_accepted(
        environment, incoming.trace, incoming.envelope_sender, accepted_recipients
    )
    await trace_steps.record_rejected_recipients(environment, incoming.trace, accepted_recipients)
    await scan_incoming_and_store_result(environment, incoming, accepted_recipients)
    people: dict[InboxKey, AcceptedAccount] = {}
    for recipient in accepted_recipients:
        for person in recipient.accounts:
            people.setdefault(_inbox_key(person.recipient), person)
            incoming.dsn_requests.setdefault(_inbox_key(person.recipient), recipient.dsn_request)
    everybody = list(people.values())
    if incoming.fetched is None:
        incoming.dsn = await dsn_parser.dsn_of_message_or_none(
            incoming.raw_message, incoming.message, incoming.envelope_sender
        )
    await _deliver_to_accounts_and_note_results(environment, incoming, everybody)
    await _enqueue_bcc_copies(environment, incoming, accepted_recipients)
    outcomes = [
        await _forward_book_or_train_and_return_result(environment, incoming, recipient)
        for recipient in accepted_recipients
    ]
    for recipient, outcome in zip(accepted_recipients, outcomes, strict=True):
        if recipient.autoreply_address is not None and not isinstance(outcome, BaseException):
            await _send_address_autoreply(environment, incoming, recipient.autoreply_address)
    trace_steps.record_refused_and_schedule_write(
        environment, incoming.trace, incoming.message, accepted_recipients, outcomes
    )
    return outcomes


def _inbox_key(recipient: LocalRecipient) -> InboxKey:
    return recipient.user_id, recipient.mailbox_id


async def _deliver_to_accounts_and_note_results(
    environment: Environment, incoming: IncomingMessage, accounts: Sequence[AcceptedAccount]
) -> None:
    """Deliver the message to each account and note the results in `incoming.results`."""
    recipients = [person.recipient for person in accounts]
    verdicts = await spam_check.compute_verdicts_and_set_junk_mailboxes(
        environment,
        incoming.message,
        incoming.envelope_sender,
        recipients,
        from_trusted_server=incoming.from_trusted_server,
    )
    verdicts_with_mailboxes = [
        await subaddress_mailbox.find_or_create_subaddress_mailbox(environment, verdict)
        for verdict in verdicts
    ]
    filter_results = await filter_execution.run_filters_if_any(
        environment, incoming, verdicts_with_mailboxes
    )
    plans = await delivery_plan.run_scripts_and_plan_deliveries(
        environment, incoming, verdicts_with_mailboxes, filter_results
    )
    _record_verdicts_in_log(environment, incoming, [plan.recipient_verdict for plan in plans])
    encryption_slot = asyncio.Semaphore()  # bounds memory: one copy with its own bytes at a time
    deliveries = [
        _quarantine_or_deliver_to_account(environment, incoming, plan, encryption_slot)
        for plan in plans
    ]
    outcomes = await asyncio.gather(*deliveries, return_exceptions=True)
    incoming.results |= dict(zip(map(_inbox_key, recipients), outcomes, strict=True))


async def _quarantine_or_deliver_to_account(
    environment: Environment,
    incoming: IncomingMessage,
    plan: DeliveryPlan,
    encryption_slot: asyncio.Semaphore,
) -> InsertedMessage | None:
    """Quarantine the message, or store and forward it by the plan of an account.

    Returns None if the account does not store it. Raises SpamRefused and as `execute_plan`.
    """
    recipient, verdict = plan.recipient_verdict.recipient, plan.recipient_verdict.verdict
    trace_steps.record_verdict(environment, incoming.trace, recipient, verdict)
    caller = UsageCaller(recipient.user_id, incoming.client.ip_address if incoming.client else None)
    scan = incoming.message.scan
    environment.usage.count_verdict(
        caller,
        recipient.domain_id,
        is_spam=verdict.is_spam or verdict.is_refused,
        has_virus=scan is not None and bool(scan.virus_name),
    )
    if why := quarantine.quarantine_reason(environment, incoming.message, verdict):
        await quarantine.quarantine_message(environment, incoming, recipient, why)
        trace_steps.record_quarantined(environment, incoming.trace, recipient, why)
        return None
    await require_accepted_by_verdict(environment, incoming, plan.recipient_verdict)
    stored_copies = await plan_execution.execute_plan(environment, incoming, plan, encryption_slot)
    forward_outcome = await account_forwards.forward_to_account_targets(
        environment, incoming, plan.recipient_verdict, stored_copies
    )
    if stored_copies is None and forward_outcome not in (None, ForwardOutcome.SENT):
        stored_copies = await plan_execution.store_in_fallback_mailbox(
            environment, incoming, plan, encryption_slot
        )
    if stored_copies is None:
        await discarded_messages.copy_to_running_legal_holds(
            environment, incoming, plan, encryption_slot
        )
    else:
        size = incoming.message.size
        environment.usage.count_received_message(caller, recipient.domain_id, size)
    trace_steps.record_stored_and_forwarded(
        environment, incoming.trace, recipient, stored_copies, forward_outcome
    )
    return stored_copies


def _record_verdicts_in_log(
    environment: Environment, incoming: IncomingMessage, verdicts: Sequence[RecipientVerdict]
) -> None:
    """Write the verdicts to the log store, for each domain only those of its recipients."""
    if not environment.logs.is_recorded(LogComponent.SPAM, LogLevel.INFO):
        return
    addresses_by_entry: dict[VerdictEntry, list[str]] = {}
    for recipient_verdict in verdicts:
        recipient, verdict = recipient_verdict.recipient, recipient_verdict.verdict
        action = "refuse" if verdict.is_refused else "junk" if verdict.is_spam else "accept"
        entry = VerdictEntry(recipient.domain_id, action, verdict.reason, verdict.score)
        addresses_by_entry.setdefault(entry, []).append(recipient.address)
    message, facts = incoming.message, incoming.message.facts
    checked = CheckedMessage(
        incoming.envelope_sender,
        facts.subject,
        facts.message_id,
        incoming.trace.queue_id,
        incoming.client.ip_address if incoming.client else None,
        message.size,
        message.scan,
    )
    record_verdicts(environment, checked, addresses_by_entry)


async def _enqueue_bcc_copies(
    environment: Environment,
    incoming: IncomingMessage,
    accepted_recipients: Sequence[AcceptedRecipient],
) -> None:
    """Enqueue the copies of BCC rules. An error fails the delivery, so that it is repeated."""
    if not incoming.applies_bcc_rules:
        return
    reached = [
        person.recipient
        for accepted in accepted_recipients
        for person in accepted.accounts
        if isinstance(incoming.results[_inbox_key(person.recipient)], InsertedMessage)
    ]
    addresses = [recipient.address for recipient in accepted_recipients] + [
        recipient.rewritten_address for recipient in reached if recipient.rewritten_address
    ]
    await recipient_rewrites.enqueue_bcc_copies(environment, incoming, reached, addresses)


async def _forward_book_or_train_and_return_result(
    environment: Environment, incoming: IncomingMessage, accepted: AcceptedRecipient
) -> object:
    """Enqueue the forwards or book the resource of one recipient, and return its result."""
    results: list[object] = []
    failures: list[FailedDelivery] = []
    dsn_request = success_dsn.dsn_request_for_targets(accepted)
    for person in accepted.accounts:
        result = incoming.results[_inbox_key(person.recipient)]
        if person.forwarded_by is not None and isinstance(result, RequestError):
            failures.append(_failed_target(person.forwarded_by, dsn_request, result))
        else:
            results.append(result)
    failures += [
        _failed_target(forward, dsn_request)
        for forward in accepted.forwards
        if forward.is_local_retry
    ]
    results += await _enqueue_or_drop_forwards(environment, incoming, accepted, dsn_request)
    if accepted.resource is not None:
        results.append(
            await _answer_invitation_or_return_error(environment, incoming, accepted.resource)
        )
    if accepted.train_as_spam is not None:
        results.append(
            await train_rspamd_with_attached_or_whole_message(
                environment, incoming, is_spam=accepted.train_as_spam
            )
        )
    return await _combined_result(environment, incoming, accepted, results, failures)


def _failed_target(
    forward: OutgoingForward, dsn_request: DsnRequest, error: RequestError | None = None
) -> FailedDelivery:
    """Return the failed delivery to the local account that an address forwards to."""
    return FailedDelivery(
        forward.target_addresses[0],
        forward.tenant_id,
        dsn_request,
        error,
        domain_id=forward.traced_domain_id,
    )


async def _enqueue_or_drop_forwards(
    environment: Environment,
    incoming: IncomingMessage,
    accepted: AcceptedRecipient,
    dsn_request: DsnRequest,
) -> list[object]:
    """Enqueue the forwards of a recipient, and return their results.

    Spam is not forwarded. If the recipient has no local account, it is refused.
    """
    forwards = [forward for forward in accepted.forwards if not forward.is_local_retry]
    has_account = bool(accepted.accounts) or len(forwards) < len(accepted.forwards)
    if has_account and account_forwards.is_forward_refused_as_spam(environment, incoming):
        for forward in forwards:
            trace_steps.record_spam_not_forwarded(environment, incoming.trace, forward)
        return []
    return [
        await _enqueue_forward_or_return_error(
            environment, incoming, replace(forward, dsn_request=dsn_request)
        )
        for forward in forwards
    ]


async def _combined_result(
    environment: Environment,
    incoming: IncomingMessage,
    accepted: AcceptedRecipient,
    results: Sequence[object],
    failures: Sequence[FailedDelivery],
) -> object:
    """Queue the failed targets of a recipient, and return one result for all targets.

    A temporary error makes the client repeat the message. A permanent refusal is the result only if
    no target has the message.
    """
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        if not is_permanent_refusal(error):
            return error
    is_taken = len(errors) < len(results) or any(failure.is_retried for failure in failures)
    if not is_taken:
        refusals = [failure.error for failure in failures] + errors
        return next(iter(refusals), None)
    try:
        await enqueue_failed_deliveries(environment, incoming, failures)
    except Exception as error:  # noqa: BLE001 - the error is the result of this recipient
        return error
    trace_steps.record_refused_targets(environment, incoming.trace, accepted, failures, errors)
    return next((result for result in results if not isinstance(result, BaseException)), None)


async def _send_address_autoreply(
    environment: Environment, incoming: IncomingMessage, autoreply_address: AutoreplyAddress
) -> None:
    """Send the automatic reply of a forwarding address."""
    spam = await spam_check.is_spam_for_address(environment, incoming, autoreply_address)
    outcome = await autoreply.try_autoreply_and_return_outcome(
        environment, incoming, autoreply_address, is_spam=spam
    )
    trace_steps.record_autoreply(environment, incoming.trace, autoreply_address, outcome)


async def _answer_invitation_or_return_error(
    environment: Environment, incoming: IncomingMessage, resource: AcceptedResource
) -> object:
    """Answer an invitation to a resource. Returns the text for the trace, or the error."""
    try:
        require_forwardable(incoming)
        answer = await answer_invitation_and_return_trace_text(environment, incoming, resource)
    except Exception as error:  # noqa: BLE001 - the error is the result of this recipient
        return error
    trace_steps.record_invitation_answer(environment, incoming.trace, resource, answer)
    return answer


async def _enqueue_forward_or_return_error(
    environment: Environment, incoming: IncomingMessage, forward: OutgoingForward
) -> object:
    """Enqueue a forward. Returns it, or the error."""
    spam = account_forwards.is_forward_refused_by_spam_headers(environment, incoming)
    try:
        require_forwardable(incoming)
        if spam and not (forward.is_returned_bounce or forward.is_backup_mx):
            raise account_forwards.SpamForwardRefused("Spam is not forwarded.")
        digest_and_sender = incoming.content_digest, incoming.envelope_sender
        await enqueue_redirect(
            environment,
            incoming.raw_message,
            digest_and_sender,
            forward,
            incoming.authentication_results,
            incoming.message,
        )
    except Exception as error:  # noqa: BLE001 - the error is the result of this recipient
        return error
    trace_steps.record_forward(environment, incoming.trace, forward)
    return forward
