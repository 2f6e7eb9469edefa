"""The interface between listeners and the delivery of received messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mail.delivery import failed_deliveries, pipeline, success_dsn
from mail.envelope.client import SmtpClientInfo
from mail.inbound.incoming_message import IncomingMessage
from mail.recipients import recipient_routes
from mail.recipients.recipient_routes import AcceptedRecipient
from models.runtime.environment import Environment


@dataclass(frozen=True, slots=True)
class SmtpArrival:
    """The client that sent a message by SMTP, and the digest of the message."""

    client: SmtpClientInfo
    content_digest: str  # SHA-256 in hex, without the header fields we added


class ListenerBackend(Protocol):
    """The backend of a listener: it accepts recipients and delivers messages."""

    async def accept_recipient(self, address: str, envelope_sender: str) -> AcceptedRecipient:
        """Return where a message to the address goes. Raises RequestError if it is not accepted."""

    async def deliver(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival | None = None,
    ) -> Sequence[object]:
        """Deliver a message; return one result per recipient, an exception for a refused one.

        On return all is durable. A message without `arrival` came from a trusted server by LMTP.
        """


class MxBackend(ListenerBackend, Protocol):
    """A backend of a listener that gives one reply for all recipients."""

    async def deliver_for_one_reply(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival,
    ) -> Sequence[object]:
        """Deliver as `deliver`; if a recipient took the message, the client can delete it.

        The queue then retries temporary failures and reports permanent refusals. Raises if that
        can't be queued.
        """


@dataclass(frozen=True, slots=True)
class LocalBackend:
    """The backend that delivers to the accounts and forwards of this server."""

    environment: Environment

    async def accept_recipient(self, address: str, envelope_sender: str) -> AcceptedRecipient:
        """Return where a message to the address goes. Raises RequestError if it is not accepted."""
        return await recipient_routes.accept_recipient(self.environment, address, envelope_sender)

    async def deliver(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival | None = None,
    ) -> Sequence[object]:
        """Deliver a message to all recipients. An account that is named twice stores it once."""
        _, outcomes = await self._read_and_deliver(
            raw_message, accepted_recipients, envelope_sender, arrival
        )
        return outcomes

    async def deliver_for_one_reply(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival,
    ) -> Sequence[object]:
        """Deliver a message, and queue what failed if a recipient took it."""
        incoming, outcomes = await self._read_and_deliver(
            raw_message, accepted_recipients, envelope_sender, arrival
        )
        if failures := failed_deliveries.failures_if_partly_accepted(accepted_recipients, outcomes):
            await failed_deliveries.enqueue_failed_deliveries(self.environment, incoming, failures)
        return outcomes

    async def _read_and_deliver(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival | None,
    ) -> tuple[IncomingMessage, list[object]]:
        """Return the message as it was delivered, and one result per recipient."""
        client_and_digest = (arrival.client, arrival.content_digest) if arrival else (None, None)
        incoming = await pipeline.read_and_verify_incoming(
            self.environment, raw_message, envelope_sender, *client_and_digest
        )
        outcomes = await pipeline.deliver_to_accepted_recipients(
            self.environment, incoming, accepted_recipients
        )
        await success_dsn.enqueue_wanted_success_dsn_or_log_error(
            self.environment, incoming, accepted_recipients, outcomes
        )
        return incoming, outcomes
