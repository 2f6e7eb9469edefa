"""Forward stored messages to the targets of their account.

Spam is not forwarded. Each forward counts against the daily limit of the account; its owner is
notified when the limit is reached. A message that is not forwarded is stored, even if rules of the
account delete it (mail/delivery/pipeline.py).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from sqlalchemy import select
from sqlmodel import col

from mail import autoreply
from mail.addresses.address_syntax import normalized_address
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.incoming_message import IncomingMessage
from mail.inbound.scan_rejection import SpamRefused, require_forwardable
from mail.inbound.spam_check import RecipientVerdict
from mail.limits import user_limits
from mail.limits.user_limits import UserLimitExceeded
from mail.queue.redirect import enqueue_redirect
from mail.recipients import forward_targets
from mail.recipients.batch_resolution import load_receiving_address_rows
from mail.recipients.forward_targets import ForwardEndpoint
from mail.recipients.recipient_routes import MailLoop, OutgoingForward
from mail.spam import verdict
from mail.storage import openpgp_encryption
from mail.storage.message_insert import InsertedMessage
from mail.storage.storable_message import StorableMessage
from models.errors import NotFound, RequestError, ServiceUnavailable
from models.observability import metrics
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.store.prepared_statements import PreparedStatement, integer_parameter
from models.users.tables import User

log = logging.getLogger(__name__)


class ForwardOutcome(StrEnum):
    """The result of forwarding a message to the targets of its account."""

    SENT = "SENT"
    SPAM = "SPAM"
    LIMIT_REACHED = "LIMIT"  # the daily limit of forwards is reached
    LOOP = "LOOP"
    NO_TARGET = "NOBODY"  # each target is the account itself or already has the message
    NOT_ENCRYPTED = "UNENCRYPTED"  # encryption is required, but not possible


FORWARDS = metrics.counter(
    "merganser_forwards",
    "Messages forwarded for accounts: sent, or the reason why not.",
    "outcome",
)
_SELECT_ACCOUNT = PreparedStatement(
    select(
        col(User.id),
        col(User.forward_to),
        col(User.relays),
        col(User.encrypt_forwarded),
        col(User.openpgp_public_key),
    ).where(col(User.id) == integer_parameter("user"))
)


class SpamForwardRefused(RequestError):
    """The message is spam and is not forwarded to other addresses."""


def is_forward_refused_by_spam_headers(environment: Environment, incoming: IncomingMessage) -> bool:
    """Return True if spam header fields of a trusted server reach the score limit for forwards.

    Header fields count only if a trusted server handed the message over.
    """
    message, options = incoming.message, environment.options
    facts = verdict.spam_facts(
        message.facts.spam_headers if incoming.from_trusted_server else (),
        options.spam_headers,
        incoming.envelope_sender,
        message.authentication,
    )
    return facts.score.value >= options.spam_no_forward_score


def is_forward_refused_as_spam(environment: Environment, incoming: IncomingMessage) -> bool:
    """Return True if the spam header fields or the scan result forbid to forward a message."""
    try:
        require_forwardable(incoming)
    except SpamRefused:
        return True
    return is_forward_refused_by_spam_headers(environment, incoming)


async def forward_to_account_targets(
    environment: Environment,
    incoming: "IncomingMessage",
    recipient_verdict: RecipientVerdict,
    inserted: InsertedMessage | None = None,
) -> ForwardOutcome | None:
    """Enqueue a stored message for the forwarding targets of its account.

    Returns None if the account has no targets or does not exist. The stored copy, if there is one,
    remembers the forward. On return the queue entries are durable. Other errors are raised, so that
    the client sends the message again; it is stored only once.
    """
    if not recipient_verdict.recipient.has_forward_targets:
        return None
    try:
        outcome = await _enqueue_forward(environment, incoming, recipient_verdict, inserted)
    except MailLoop:
        outcome = ForwardOutcome.LOOP
    except ServiceUnavailable:
        outcome = ForwardOutcome.NOT_ENCRYPTED
    except UserLimitExceeded as refusal:
        await user_limits.report_refusal_once_per_period(
            environment, recipient_verdict.recipient.user_id, refusal.limit
        )
        outcome = ForwardOutcome.LIMIT_REACHED
    except NotFound:  # the account was deleted in the meantime
        return None
    FORWARDS.add(outcome.lower())
    if outcome is not ForwardOutcome.SENT:
        log.info(
            "Message not forwarded",
            extra={"user": recipient_verdict.recipient.user_id, "outcome": outcome},
        )
    return outcome


async def _enqueue_forward(
    environment: Environment,
    incoming: "IncomingMessage",
    recipient_verdict: RecipientVerdict,
    inserted: InsertedMessage | None,
) -> ForwardOutcome:
    """Enqueue the forward and return SENT, or the reason why nothing is forwarded."""
    forward = await build_account_forward(environment, incoming, recipient_verdict)
    if isinstance(forward, ForwardOutcome):
        return forward
    key = inserted.message_id if inserted else None
    outgoing_forward = replace(
        forward.forward,
        dsn_request=incoming.dsn_request_for_forward_without_success(recipient_verdict.recipient),
        stored_message_id=key,
    )
    await enqueue_redirect(
        environment,
        forward.raw_message,
        (incoming.content_digest, incoming.redirect_sender(recipient_verdict.recipient)),
        outgoing_forward,
        incoming.authentication_results,
        forward.message,
    )
    return ForwardOutcome.SENT


@dataclass(frozen=True, slots=True)
class AccountForward:
    """A message as it is forwarded to the targets of an account."""

    raw_message: bytes | Path
    message: StorableMessage | None  # None: the bytes were encrypted for the forward
    forward: OutgoingForward


async def build_account_forward(
    environment: Environment, incoming: "IncomingMessage", recipient_verdict: RecipientVerdict
) -> AccountForward | ForwardOutcome:
    """Return the message to forward and its targets, or the reason not to forward.

    Raises NotFound if the account does not exist, ServiceUnavailable if the message can't be
    encrypted.
    """
    recipient, source, message = recipient_verdict.recipient, incoming.raw_message, incoming.message
    if not recipient_verdict.verdict.allows_forwards(environment.options.spam_no_forward_score):
        return ForwardOutcome.SPAM
    row = next(
        iter(
            await environment.database.read_prepared(_SELECT_ACCOUNT, {"user": recipient.user_id})
        ),
        None,
    )
    if row is None:
        raise NotFound(str(recipient.user_id), path=["user"])
    been = await _delivered_to_values(source, message)
    forward = await _build_forward_to_unreached_targets(environment, recipient, row, been)
    if not (forward.target_addresses or forward.endpoints):
        return ForwardOutcome.NO_TARGET
    if row.encrypt_forwarded:
        key = (row.id, row.openpgp_public_key or "")
        hidden = await openpgp_encryption.encrypt_to_bytes_unless_encrypted(
            environment, source, message, key
        )
        if hidden is not None:
            return AccountForward(hidden, None, forward)
    return AccountForward(source, message, forward)


async def _delivered_to_values(raw_message: bytes | Path, message: StorableMessage) -> list[str]:
    """Return the values of the Delivered-To header fields."""
    header = await autoreply.read_header_fields(raw_message, message)
    return [field.value.strip() for field in header if field.name.casefold() == "delivered-to"]


async def _build_forward_to_unreached_targets(
    environment: Environment,
    recipient: LocalRecipient,
    account_row: ColumnRow,
    delivered_to: Sequence[str],
) -> OutgoingForward:
    """Return the targets without the account itself and without addresses in Delivered-To."""
    pairs = list(
        zip(
            account_row.forward_to,
            forward_targets.targets_with_passwords(environment, account_row),
            strict=True,
        )
    )
    unreached_addresses = [target for target, _ in pairs if "://" not in target]
    own_addresses = {
        text
        for text, address_row in (
            await load_receiving_address_rows(environment, unreached_addresses)
        ).items()
        if address_row.user_id == recipient.user_id
    }
    passed = {normalized_address(address) for address in delivered_to}
    address = recipient.receiving_address
    return OutgoingForward(
        address,
        None,
        recipient.tenant_id,
        [
            address
            for address in unreached_addresses
            if address not in own_addresses and normalized_address(address) not in passed
        ],
        [
            ForwardEndpoint(address, public_target, full_target)
            for public_target, full_target in pairs
            if "://" in public_target
        ],
        user_id=recipient.user_id,
        domain_id=recipient.domain_id,
    )
