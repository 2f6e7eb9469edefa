"""The interface between listeners and the delivery of received messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mail.delivery import pipeline, success_dsn
from mail.envelope.client import SmtpClientInfo
from mail.queue import redirect
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
        """Return where a message to the address goes. Raises Refused if it is not accepted."""

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


@dataclass(frozen=True, slots=True)
class LocalBackend:
    """The backend that delivers to the accounts and forwards of this server."""

    environment: Environment

    async def accept_recipient(self, address: str, envelope_sender: str) -> AcceptedRecipient:
        """Return where a message to the address goes. Raises Refused if it is not accepted."""
        return await recipient_routes.accept_recipient(self.environment, address, envelope_sender)

    async def deliver(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival | None = None,
    ) -> Sequence[object]:
        """Deliver a message to all recipients. An account that is named twice stores it once."""
        how = (arrival.client, arrival.content_digest) if arrival else (None, None)
        mail = await pipeline.read_and_verify_incoming(
            self.environment, raw_message, envelope_sender, *how
        )
        outcomes = await pipeline.deliver(self.environment, mail, accepted_recipients)
        await success_dsn.enqueue_wanted_success_dsn(
            self.environment, mail, accepted_recipients, outcomes
        )
        return outcomes

    async def enqueue_for_retry(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival,
    ) -> None:
        """Enqueue a message for recipients that could not be delivered to at once."""
        await redirect.enqueue_for_later_local_delivery(
            self.environment,
            raw_message,
            (arrival.content_digest, envelope_sender),
            accepted_recipients,
        )
