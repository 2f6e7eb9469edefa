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
mail/delivery/account_forwards.py).

7. Enqueue the copies of BCC rules (mail/delivery/recipient_rewrites.py).

8. Enqueue forwards of addresses, and retries for accounts that could not take a forwarded message.
Spam is not forwarded. Train the spam filter for training addresses. Send the automatic replies of
forwarding addresses.

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
    filter_execution,
    plan_execution,
    quarantine,
    recipient_rewrites,
    subaddress_mailbox,
    success_dsn,
    trace_steps,
)
from mail.delivery.delivery_plan import DeliveryPlan
from mail.envelope.client import SmtpClientInfo
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound import dsn_parser, sender_verification, spam_check
from mail.inbound.incoming_message import InboxKey, IncomingMessage
from mail.inbound.scan_rejection import (
    SpamRefused,
    require_accepted_by_verdict,
    require_forwardable,
)
from mail.queue.redirect import enqueue_redirect
from mail.recipients.recipient_routes import (
    AcceptedAccount,
    AcceptedRecipient,
    AutoreplyAddress,
    OutgoingForward,
)
from mail.scanners import scan_incoming_and_store_result
from mail.scanners.rspamd_training import train_with_received_message
from mail.storage.message_insert import InsertedMessage
from models.errors import RequestError
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
    whole, letter = await sender_verification.read_and_verify_sender(
        environment, raw_message, envelope_sender, client, from_forwarding_host=forwarded
    )
    letter = replace(letter, received_digest=content_digest or letter.received_digest)
    trusted = forwarder is not None and not forwarder.filter_spam
    return IncomingMessage(
        whole,
        letter,
        envelope_sender,
        from_trusted_server=client is None,
        client=client,
        skip_spam_filter=trusted,
    )


async def deliver(
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
    for each in accepted_recipients:
        for person in each.accounts:
            people.setdefault(_inbox_key(person.recipient), person)
            incoming.dsn_requests.setdefault(_inbox_key(person.recipient), each.dsn_request)
    everybody = list(people.values())
    if incoming.fetched is None:
        incoming.dsn = await dsn_parser.dsn_of_message(
            incoming.raw_message, incoming.message, incoming.envelope_sender
        )
    await _deliver_to_accounts(environment, incoming, everybody)
    await _enqueue_bcc_copies(environment, incoming, accepted_recipients, everybody)
    outcomes = [
        await _enqueue_forwards_and_train(environment, incoming, each)
        for each in accepted_recipients
    ]
    for each, outcome in zip(accepted_recipients, outcomes, strict=True):
        if each.autoreply_address is not None and not isinstance(outcome, BaseException):
            await _send_address_autoreply(environment, incoming, each.autoreply_address)
    trace_steps.record_refused_and_schedule_write(
        environment, incoming.trace, incoming.message, accepted_recipients, outcomes
    )
    return outcomes


def _inbox_key(recipient: LocalRecipient) -> InboxKey:
    return recipient.user_id, recipient.mailbox_id


async def _deliver_to_accounts(
    environment: Environment, incoming: IncomingMessage, accounts: Sequence[AcceptedAccount]
) -> None:
    """Deliver the message to each account and note the results in `incoming.results`."""
    alone = asyncio.Semaphore()  # bounds memory: one copy with its own bytes at a time

    async def deliver_to_account(plan: DeliveryPlan) -> InsertedMessage | None:
        to, verdict = plan.recipient_verdict.recipient, plan.recipient_verdict.verdict
        trace_steps.record_verdict(environment, incoming.trace, to, verdict)
        if why := quarantine.quarantine_reason(environment, incoming.message, verdict):
            await quarantine.quarantine_message(environment, incoming, to, why)
            trace_steps.record_quarantined(environment, incoming.trace, to, why)
            return None
        await require_accepted_by_verdict(environment, incoming, plan.recipient_verdict)
        placed = await plan_execution.execute_plan(environment, incoming, plan, alone)
        sent = await account_forwards.forward_to_account_targets(
            environment, incoming, plan.recipient_verdict, placed
        )
        trace_steps.record_stored_and_forwarded(environment, incoming.trace, to, placed, sent)
        return placed

    to = [person.recipient for person in accounts]
    verdicts = await spam_check.compute_verdicts(
        environment,
        incoming.message,
        incoming.envelope_sender,
        to,
        from_trusted_server=incoming.from_trusted_server,
    )
    judged = [
        await subaddress_mailbox.find_or_create_subaddress_mailbox(environment, each)
        for each in verdicts
    ]
    said = await filter_execution.run_filters(environment, incoming, judged)
    ruled = await delivery_plan.plan_deliveries(environment, incoming, judged, said)
    outcomes = await asyncio.gather(*map(deliver_to_account, ruled), return_exceptions=True)
    incoming.results |= dict(zip(map(_inbox_key, to), outcomes, strict=True))


async def _enqueue_bcc_copies(
    environment: Environment,
    incoming: IncomingMessage,
    accepted_recipients: Sequence[AcceptedRecipient],
    accounts: Sequence[AcceptedAccount],
) -> None:
    """Enqueue the copies of BCC rules. An error fails the delivery, so that it is repeated."""
    if not incoming.applies_bcc_rules:
        return
    reached = [
        person.recipient
        for person in accounts
        if isinstance(incoming.results[_inbox_key(person.recipient)], InsertedMessage)
    ]
    named = [each.address for each in accepted_recipients] + [
        to.rewritten_address for to in reached if to.rewritten_address
    ]
    await recipient_rewrites.enqueue_bcc_copies(environment, incoming, reached, named)


async def _enqueue_forwards_and_train(
    environment: Environment, incoming: IncomingMessage, accepted: AcceptedRecipient
) -> object:
    """Enqueue the forwards of one recipient and return its result."""
    outcomes: list[object] = []
    wish = success_dsn.dsn_request_for_targets(accepted)
    onward = list(accepted.forwards)
    if accepted.accounts and account_forwards.is_forward_refused_by_spam_headers(
        environment,
        incoming.message,
        incoming.envelope_sender,
        from_trusted_server=incoming.from_trusted_server,
    ):
        onward = []
    for person in accepted.accounts:
        outcome = incoming.results[_inbox_key(person.recipient)]
        later = isinstance(outcome, RequestError) and not isinstance(outcome, SpamRefused)
        if person.forwarded_by is not None and later:
            onward.append(person.forwarded_by)
        else:
            outcomes.append(outcome)
    outcomes += [
        await _enqueue_forward_or_return_error(
            environment, incoming, replace(each, dsn_request=wish)
        )
        for each in onward
    ]
    if accepted.train_as_spam is not None:
        outcomes.append(
            await train_with_received_message(environment, incoming, is_spam=accepted.train_as_spam)
        )
    refused = [each for each in outcomes if isinstance(each, BaseException)]
    return refused[0] if refused else next(iter(outcomes), None)


async def _send_address_autoreply(
    environment: Environment, incoming: IncomingMessage, autoreply_address: AutoreplyAddress
) -> None:
    """Send the automatic reply of a forwarding address."""
    spam = await spam_check.is_spam_for_address(environment, incoming, autoreply_address)
    outcome = await autoreply.try_autoreply_after_delivery(
        environment, incoming, autoreply_address, is_spam=spam
    )
    trace_steps.record_autoreply(environment, incoming.trace, autoreply_address, outcome)


async def _enqueue_forward_or_return_error(
    environment: Environment, incoming: IncomingMessage, forward: OutgoingForward
) -> object:
    """Enqueue a forward. Returns it, or the error."""
    spam = account_forwards.is_forward_refused_by_spam_headers(
        environment,
        incoming.message,
        incoming.envelope_sender,
        from_trusted_server=incoming.from_trusted_server,
    )
    try:
        require_forwardable(incoming)
        if spam and not (forward.is_returned_bounce or forward.is_backup_mx):
            raise account_forwards.SpamForwardRefused("spam is not sent on")
        came = incoming.content_digest, incoming.envelope_sender
        await enqueue_redirect(
            environment,
            incoming.raw_message,
            came,
            forward,
            incoming.authentication_results,
            incoming.message,
        )
    except Exception as error:  # noqa: BLE001 - the error is the result of this recipient
        return error
    trace_steps.record_forward(environment, incoming.trace, forward)
    return forward
