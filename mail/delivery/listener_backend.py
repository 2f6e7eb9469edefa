"""The interface between listeners and the delivery of received messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mail.delivery import pipeline, success_dsn
from mail.envelope.client import Client
from mail.queue import redirect
from mail.recipients import recipient_routes
from mail.recipients.recipient_routes import Taken
from models.runtime.environment import World


@dataclass(frozen=True, slots=True)
class Arrived:
    """The client that sent a message by SMTP, and the digest of the message."""

    client: Client
    digest: str  # SHA-256 in hex, without the header fields we added


class Post(Protocol):
    """The backend of a listener: it accepts recipients and delivers messages."""

    async def accept(self, address: str, sender: str) -> Taken:
        """Return where a message to the address goes. Raises Refused if it is not accepted."""

    async def deliver(
        self,
        source: bytes | Path,
        taken: Sequence[Taken],
        sender: str,
        arrived: Arrived | None = None,
    ) -> Sequence[object]:
        """Deliver a message; return one result per recipient, an exception for a refused one.

        On return all is durable. A message without `arrival` came from a trusted server by LMTP.
        """


@dataclass(frozen=True, slots=True)
class Household:
    """The backend that delivers to the accounts and forwards of this server."""

    world: World

    async def accept(self, address: str, sender: str) -> Taken:
        """Return where a message to the address goes. Raises Refused if it is not accepted."""
        return await recipient_routes.accept(self.world, address, sender)

    async def deliver(
        self,
        source: bytes | Path,
        taken: Sequence[Taken],
        sender: str,
        arrived: Arrived | None = None,
    ) -> Sequence[object]:
        """Deliver a message to all recipients. An account that is named twice stores it once."""
        how = (arrived.client, arrived.digest) if arrived else (None, None)
        mail = await pipeline.receive(self.world, source, sender, *how)
        outcomes = await pipeline.deliver(self.world, mail, taken)
        await success_dsn.after(self.world, mail, taken, outcomes)
        return outcomes

    async def later(
        self, source: bytes | Path, taken: Sequence[Taken], sender: str, arrived: Arrived
    ) -> None:
        """Enqueue a message for recipients that could not be delivered to at once."""
        await redirect.put_off(self.world, source, (arrived.digest, sender), taken)
