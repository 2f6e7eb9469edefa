"""The MX server: mail from other servers for local recipients (SMTP, RFC 5321)."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mail.authentication.forwarding_hosts import find_forwarder
from mail.delivery.listener_backend import LocalBackend, MxBackend, SmtpArrival
from mail.envelope.smtp_replies import (
    MAIL_LOOP_REPLY,
    MAILBOX_LIMIT_REPLY,
    NETWORK_LIMIT_REPLY,
    RECIPIENT_REQUIRES_TLS_REPLY,
    TRY_LATER_REPLY,
    greylisted_reply,
    queued_reply,
)
from mail.limits.rate_counter import HourlyCounter
from mail.queue.redirect import MAX_HOPS
from mail.recipients.recipient_routes import AcceptedRecipient
from mail.smtp import metrics
from mail.smtp.line_protocol import CommandRejected, SmtpTransaction
from mail.smtp.lmtp import log_result_and_build_reply
from mail.smtp.received_header import count_received_fields
from mail.smtp.replies import reply_from_error
from mail.smtp.smtp_server import SmtpListener, SmtpListenerConfig, SmtpSession
from mail.smtp.spool_file import SpoolFile
from mail.spam.greylist import Greylist
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionService

log = logging.getLogger(__name__)

MAX_HEADER = 1 << 20  # bytes of a large message that are searched for Received fields


@dataclass(frozen=True, slots=True)
class MxRules:
    """The limits for clients of the MX server."""

    network_hourly: int = 1000  # messages per network and hour; 0: no limit
    network_hourly_per_account: int = 100  # of these to one account
    recipient_timeout: float = 8  # seconds to check a recipient
    greylist: Greylist | None = None


class MxListener(SmtpListener):
    """The MX listener."""

    metrics = metrics.SMTP
    service = SessionService.SMTP

    def __init__(
        self,
        environment: Environment,
        spool_folder: Path,
        terms: SmtpListenerConfig,
        rules: MxRules | None = None,
        backend: MxBackend | None = None,
    ) -> None:
        super().__init__(environment, spool_folder, terms)
        self.rules = rules or MxRules()
        self.backend: MxBackend = backend or LocalBackend(environment)
        self.messages_by_network = HourlyCounter(self.rules.network_hourly, environment.now)
        self.messages_by_account = HourlyCounter(
            self.rules.network_hourly_per_account, environment.now
        )

    def create_session(self) -> asyncio.BaseProtocol:
        """Return a session for a new connection."""
        return MxSession(self)


class MxSession(SmtpSession):
    """A session of the MX server."""

    def __init__(self, listener: MxListener) -> None:
        super().__init__(listener)
        self._mx_listener = listener
        self._queue_id = ""  # of the current message, in the log and in Received

    async def _begin_transaction(
        self, envelope_sender: str, parameters: dict[str, str]
    ) -> SmtpTransaction:
        if self._mx_listener.messages_by_network.is_limit_reached(self.network):
            raise CommandRejected(NETWORK_LIMIT_REPLY)
        return await super()._begin_transaction(envelope_sender, parameters)

    async def _accept_recipient(
        self, transaction: SmtpTransaction, address: str
    ) -> AcceptedRecipient:
        mx = self._mx_listener
        if address.casefold() == "postmaster":  # RFC 5321, section 4.1.1.3
            options = mx.environment.options
            address = f"{address}@{options.users_default_domain or options.hostname}"
        try:
            async with asyncio.timeout(mx.rules.recipient_timeout):
                outcome = await mx.backend.accept_recipient(address, transaction.envelope_sender)
                await self._require_tls_rate_and_greylist_passed(transaction, outcome)
        except TimeoutError:
            raise CommandRejected(TRY_LATER_REPLY) from None
        return outcome

    async def _require_tls_rate_and_greylist_passed(
        self, transaction: SmtpTransaction, accepted: AcceptedRecipient
    ) -> None:
        """Raise CommandRejected if the client can't write to the recipient now.

        Checks TLS, the limit per account and greylisting.
        """
        if not self.tls_description and any(
            person.recipient.requires_tls for person in accepted.accounts
        ):
            raise CommandRejected(RECIPIENT_REQUIRES_TLS_REPLY)
        if any(
            self._mx_listener.messages_by_account.is_limit_reached(key)
            for key in self._network_account_keys([accepted])
        ):
            raise CommandRejected(MAILBOX_LIMIT_REPLY)
        if greylist := self._mx_listener.rules.greylist:
            wait = await greylist.record_attempt_and_get_wait_seconds(
                self.ip, transaction.envelope_sender, accepted.address
            )
            if wait and await find_forwarder(self._mx_listener.environment, self.ip) is None:
                raise CommandRejected(greylisted_reply(wait))

    def _network_account_keys(
        self, accepted_recipients: Sequence[AcceptedRecipient]
    ) -> set[object]:
        """Return the keys that messages to these accounts are counted by."""
        people = [person for recipient in accepted_recipients for person in recipient.accounts]
        return {(self.network, person.recipient.user_id) for person in people}

    def _added_fields(self, transaction: SmtpTransaction) -> bytes:
        """Return the Received field and assign the queue ID."""
        self._queue_id = f"{self._mx_listener.environment.new_id():x}"
        return self._received_field(transaction, self._queue_id)

    async def _deliver(self, spool: SpoolFile, transaction: SmtpTransaction) -> list[str]:
        """Deliver the message, and return a list with one reply for all recipients.

        The reply is 250 if at least one recipient has the message; the queue then retries or
        reports the failures of the others. Otherwise it is a 4xx reply if there is one, else 5xx.
        An error becomes a reply, and is logged if it is unexpected.
        """
        size, arrived = spool.size, SmtpArrival(self.client, transaction.content_digest)
        recipients = self._recipients_with_queue_id(transaction, self._queue_id)
        with spool:
            try:
                source = await spool.raw_message()
                if await asyncio.to_thread(_is_mail_loop, source):
                    return self._count_refusal_and_reply(transaction, MAIL_LOOP_REPLY)
                outcomes = await self._mx_listener.backend.deliver_for_one_reply(
                    source, recipients, transaction.envelope_sender, arrived
                )
            except Exception as error:  # noqa: BLE001 - nothing is lost: the sender tries again
                return self._count_refusal_and_reply(transaction, reply_from_error(error))
        replies = [
            log_result_and_build_reply(*recipient, size)
            for recipient in zip(recipients, outcomes, strict=True)
        ]
        reached = [
            recipient
            for recipient, outcome in zip(recipients, outcomes, strict=True)
            if not isinstance(outcome, BaseException)
        ]
        self._mx_listener.metrics.count_replies(replies, size)
        self._count_against_network_limits(reached)
        self._mx_listener.environment.reach_fault_point("reply")
        if not reached:  # the client sends it again if that can help
            return [min(replies)]  # 4xx before 5xx
        log.info("Message accepted", extra={"id": self._queue_id, "ip": self.ip})
        return [queued_reply(self._queue_id)]

    def _count_against_network_limits(
        self, accepted_recipients: Sequence[AcceptedRecipient]
    ) -> None:
        """Count a delivered message against the limits of the network."""
        if accepted_recipients:
            self._mx_listener.messages_by_network.count_event(self.network)
        for key in self._network_account_keys(accepted_recipients):
            self._mx_listener.messages_by_account.count_event(key)


def _is_mail_loop(raw_message: bytes | Path) -> bool:
    """Return True if the message has more Received fields than allowed, ours included."""
    if isinstance(raw_message, Path):
        with raw_message.open("rb") as file:
            return count_received_fields(file.read(MAX_HEADER)) > MAX_HOPS
    return count_received_fields(raw_message) > MAX_HOPS
