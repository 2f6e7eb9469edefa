"""Who takes mail that has come in: the accounts of our own store."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mail import addresses, delivery, encrypting, rewrites
from mail.addresses import Recipient
from mail.delivery import Placed
from mail.rewrites import Came
from mail.verification import verified
from models.world import World


class Post(Protocol):
    """Who knows the recipients, and takes their mail."""

    async def accept(self, address: str) -> Recipient:
        """Whose address that is, or a refusal."""

    async def deliver(
        self, source: bytes | Path, recipients: Sequence[Recipient], sender: str
    ) -> Sequence[object]:
        """What came of each, in order; an exception is an answer too. Then all is durable."""


@dataclass(frozen=True, slots=True)
class Household:
    """The post of the users in our own store."""

    world: World

    async def accept(self, address: str) -> Recipient:
        """Find the user whose address that is."""
        return await addresses.recipient(self.world, address)

    async def deliver(
        self, source: bytes | Path, recipients: Sequence[Recipient], sender: str
    ) -> Sequence[object]:
        """Deliver at once to all of them; whoever is named twice receives it once.

        What rules have copied of it is in the queue then; where that fails the sender tries
        again, and who has it does not receive it twice.
        """
        letter = verified(self.world, await delivery.read(source))
        first: dict[tuple[int, int], Recipient] = {}
        for to in recipients:
            first.setdefault((to.user_id, to.mailbox_id), to)
        alone = asyncio.Semaphore()  # who has it encrypted has bytes of his own: one at a time

        async def receive(to: Recipient) -> Placed:
            if to.key is None:
                return await delivery.receive(self.world, letter, to, sender)
            async with alone:
                return await encrypting.receive(self.world, source, letter, to, sender)

        receiving = (receive(to) for to in first.values())
        outcomes = await asyncio.gather(*receiving, return_exceptions=True)
        by_mailbox = dict(zip(first, outcomes, strict=True))
        told = [by_mailbox[to.user_id, to.mailbox_id] for to in recipients]
        pairs = zip(recipients, told, strict=True)
        reached = [to for to, outcome in pairs if not isinstance(outcome, BaseException)]
        came = Came(source, letter, sender, [to.instead or to.address for to in recipients])
        await rewrites.copies_of_received(self.world, came, reached)
        return told
