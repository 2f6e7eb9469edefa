"""The MX server: mail from other servers for local recipients (SMTP, RFC 5321)."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mail.authentication.forwarding_hosts import forwarder_of
from mail.delivery.listener_backend import Arrived, Household, Post
from mail.limits.rate_counter import Rates
from mail.queue.redirect import HOPS
from mail.recipients.recipient_routes import Loop, Taken
from mail.smtp import metrics
from mail.smtp.line_protocol import Transaction, Wrong
from mail.smtp.lmtp import answer
from mail.smtp.received_header import hops
from mail.smtp.replies import REFUSALS, TRY_LATER, refusal
from mail.smtp.smtp_server import Smtp, SmtpSession, Terms
from mail.smtp.spool_file import Spool
from mail.spam.greylist import Greylist
from models.runtime.environment import World

log = logging.getLogger(__name__)

HEAD = 1 << 20  # bytes of a large message that are searched for Received fields

NEEDS_TLS = "530 5.7.0 Mail for this address must come over TLS"
NETWORK_FULL = "450 4.7.1 Too many messages from your network, try again later"
MAILBOX_FULL = "450 4.2.1 Too many of your messages for this mailbox, try again later"


class Doorway(Post, Protocol):
    """A backend that can also enqueue messages it could not deliver."""

    async def later(
        self, source: bytes | Path, taken: Sequence[Taken], sender: str, arrived: Arrived
    ) -> None:
        """Enqueue the message for these recipients, with a DSN if it fails. Then it is durable."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits for clients of the MX server."""

    network_rate: int = 1000  # messages per network and hour; 0: no limit
    mailbox_rate: int = 100  # of these to one account
    patience: float = 8  # seconds to check a recipient
    greylist: Greylist | None = None


class Mx(Smtp):
    """The MX listener."""

    intake = metrics.SMTP

    def __init__(
        self,
        world: World,
        spool: Path,
        terms: Terms,
        rules: Rules | None = None,
        post: Doorway | None = None,
    ) -> None:
        super().__init__(world, spool, terms)
        self.rules = rules or Rules()
        self.post: Doorway = post or Household(world)
        self.networks = Rates(self.rules.network_rate, world.now)
        self.mailboxes = Rates(self.rules.mailbox_rate, world.now)

    def converse(self) -> asyncio.BaseProtocol:
        """Return a session for a new connection."""
        return MxSession(self)


class MxSession(SmtpSession):
    """A session of the MX server."""

    def __init__(self, listener: Mx) -> None:
        super().__init__(listener)
        self._mx = listener
        self._key = ""  # of the current message, in the log and in Received

    async def _begun(self, sender: str, parameters: dict[str, str]) -> Transaction:
        if self._mx.networks.full(self.network):
            raise Wrong(NETWORK_FULL)
        return await super()._begun(sender, parameters)

    async def _accepted(self, transaction: Transaction, address: str) -> Taken:
        mx = self._mx
        if address.casefold() == "postmaster":  # RFC 5321, section 4.1.1.3
            options = mx.world.options
            address = f"{address}@{options.default_domain or options.hostname}"
        try:
            async with asyncio.timeout(mx.rules.patience):
                taken = await mx.post.accept(address, transaction.sender)
                await self._welcome(transaction, taken)
        except TimeoutError:
            raise Wrong(TRY_LATER) from None
        return taken

    async def _welcome(self, transaction: Transaction, taken: Taken) -> None:
        """Raise CommandRejected if the client can't write to the recipient now.

        Checks TLS, the limit per account and greylisting.
        """
        if not self.tls and any(person.to.tls_only for person in taken.people):
            raise Wrong(NEEDS_TLS)
        if any(self._mx.mailboxes.full(key) for key in self._mailboxes([taken])):
            raise Wrong(MAILBOX_FULL)
        if greylist := self._mx.rules.greylist:
            wait = await greylist.wait(self.ip, transaction.sender, taken.address)
            if wait and await forwarder_of(self._mx.world, self.ip) is None:
                raise Wrong(f"451 4.7.1 Not seen before, try again in {wait} seconds")

    def _mailboxes(self, taken: Sequence[Taken]) -> set[object]:
        """Return the keys that messages to these accounts are counted by."""
        people = [person for each in taken for person in each.people]
        return {(self.network, person.to.user_id) for person in people}

    def _on_top(self, transaction: Transaction) -> bytes:
        """Return the Received field and assign the queue ID."""
        self._key = f"{self._mx.world.key():x}"
        return self._hop(transaction, self._key)

    async def _done(self, spool: Spool, transaction: Transaction) -> list[str]:
        """Deliver the message and return one reply for all recipients."""
        size, arrived = spool.size, Arrived(self.client, transaction.digest)
        sender = transaction.sender
        to = self._taken(transaction, self._key)
        with spool:
            try:
                source = await spool.source()
                if await asyncio.to_thread(_circles, source):
                    return self._refused(transaction, REFUSALS[Loop])
                outcomes = await self._mx.post.deliver(source, to, sender, arrived)
            except Exception as error:  # noqa: BLE001 - nothing is lost: the sender tries again
                return self._refused(transaction, refusal(error))
            replies = [answer(*each, size) for each in zip(to, outcomes, strict=True)]
            failed = [
                each
                for each, outcome in zip(to, outcomes, strict=True)
                if isinstance(outcome, BaseException)
            ]
            reply = await self._reply(replies, failed, (source, sender, arrived))
        self._mx.intake.count(replies, size)
        self._count([each for each in to if each not in failed])
        self._mx.world.fault("reply")
        return [reply]

    async def _reply(
        self, replies: list[str], failed: list[Taken], came: tuple[bytes | Path, str, Arrived]
    ) -> str:
        """Return one reply for the results of all recipients.

        If all failed, the client must send the message again if that can help. If some failed, the
        queue retries for them and reports to the sender.
        """
        if len(failed) == len(replies):
            return min(replies)  # 4xx before 5xx
        if failed:
            source, sender, arrived = came
            try:
                await self._mx.post.later(source, failed, sender, arrived)
            except Exception as error:  # noqa: BLE001 - the client sends it again; it is stored once
                return refusal(error)
        log.info("taken", extra={"id": self._key, "ip": self.ip})
        return f"250 2.0.0 Taken as {self._key}"

    def _count(self, taken: Sequence[Taken]) -> None:
        """Count a delivered message against the limits of the network."""
        if taken:
            self._mx.networks.add(self.network)
        for key in self._mailboxes(taken):
            self._mx.mailboxes.add(key)


def _circles(source: bytes | Path) -> bool:
    """Return True if the message has more Received fields than allowed, ours included."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return hops(file.read(HEAD)) > HOPS
    return hops(source) > HOPS
