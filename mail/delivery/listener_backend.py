"""Who takes mail that has come in: the accounts of our own store."""

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
    """How a message came by SMTP: by whom, and as what."""

    client: Client
    digest: str  # SHA-256, hex, without what we have written on top


class Post(Protocol):
    """Who knows the recipients, and takes their mail."""

    async def accept(self, address: str, sender: str) -> Taken:
        """Where mail from this envelope sender to the address goes, or a refusal."""

    async def deliver(
        self,
        source: bytes | Path,
        taken: Sequence[Taken],
        sender: str,
        arrived: Arrived | None = None,
    ) -> Sequence[object]:
        """What came of each, in order; an exception is an answer too. Then all is durable.

        What has not `arrived` by SMTP was handed over by a neighbour, who is believed.
        """


@dataclass(frozen=True, slots=True)
class Household:
    """The post of the users in our own store."""

    world: World

    async def accept(self, address: str, sender: str) -> Taken:
        """Find out where mail for the address goes."""
        return await recipient_routes.accept(self.world, address, sender)

    async def deliver(
        self,
        source: bytes | Path,
        taken: Sequence[Taken],
        sender: str,
        arrived: Arrived | None = None,
    ) -> Sequence[object]:
        """Deliver at once to all of them; whoever is named twice receives it once."""
        how = (arrived.client, arrived.digest) if arrived else (None, None)
        mail = await pipeline.receive(self.world, source, sender, *how)
        outcomes = await pipeline.deliver(self.world, mail, taken)
        await success_dsn.after(self.world, mail, taken, outcomes)
        return outcomes

    async def later(
        self, source: bytes | Path, taken: Sequence[Taken], sender: str, arrived: Arrived
    ) -> None:
        """Queue it for these, in the name of the platform."""
        await redirect.put_off(self.world, source, (arrived.digest, sender), taken)
