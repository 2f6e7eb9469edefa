"""Who takes mail that has come in: the accounts of our own store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mail import pipeline, routes
from mail.routes import Taken
from models.world import World


class Post(Protocol):
    """Who knows the recipients, and takes their mail."""

    async def accept(self, address: str, sender: str) -> Taken:
        """Where mail from this envelope sender to the address goes, or a refusal."""

    async def deliver(
        self, source: bytes | Path, taken: Sequence[Taken], sender: str
    ) -> Sequence[object]:
        """What came of each, in order; an exception is an answer too. Then all is durable."""


@dataclass(frozen=True, slots=True)
class Household:
    """The post of the users in our own store."""

    world: World

    async def accept(self, address: str, sender: str) -> Taken:
        """Find out where mail for the address goes."""
        return await routes.accept(self.world, address, sender)

    async def deliver(
        self, source: bytes | Path, taken: Sequence[Taken], sender: str
    ) -> Sequence[object]:
        """Deliver at once to all of them; whoever is named twice receives it once."""
        mail = await pipeline.receive(self.world, source, sender)
        return await pipeline.deliver(self.world, mail, taken)
