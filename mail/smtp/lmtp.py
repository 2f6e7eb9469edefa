"""The LMTP server: mail from trusted servers (RFC 2033)."""

import asyncio
import logging
from pathlib import Path

from mail.delivery.listener_backend import Household, Post
from mail.recipients.recipient_routes import Taken
from mail.smtp import metrics
from mail.smtp.connection_limits import Limits
from mail.smtp.line_protocol import Transaction
from mail.smtp.listener import Listener
from mail.smtp.replies import refusal
from mail.smtp.session import Conversation
from mail.smtp.spool_file import Spool
from mail.storage import message_trace
from models.runtime.environment import World

log = logging.getLogger(__name__)


class Lmtp(Listener):
    """The LMTP listener. Its backend accepts recipients and delivers messages."""

    intake = metrics.LMTP

    def __init__(
        self,
        world: World,
        spool: Path,
        limits: Limits | None = None,
        post: Post | None = None,
        *,
        share: int = 1,
    ) -> None:
        super().__init__(world, spool, limits, share=share)
        self.post = post or Household(world)

    def converse(self) -> asyncio.BaseProtocol:
        """Return a session for a new connection."""
        return LmtpSession(self)


class LmtpSession(Conversation):
    """An LMTP session without AUTH and STARTTLS: clients are trusted by their network."""

    hello = "LHLO"

    def __init__(self, listener: Lmtp) -> None:
        super().__init__(listener)
        self._post = listener.post
        self._verbs |= {"LHLO": self._lhlo, "HELO": self._helo, "EHLO": self._helo}

    async def _opened(self) -> str:
        return f"220 {self.hostname} LMTP"

    async def _lhlo(self, argument: str) -> str:
        return self._greet() if argument else "501 5.5.4 Say LHLO and your name"

    async def _helo(self, _argument: str) -> str:
        return "500 5.5.1 This is LMTP, say LHLO"

    async def _help(self, _argument: str) -> str:
        return "214 2.0.0 LHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT"

    async def _accepted(self, transaction: Transaction, address: str) -> Taken:
        return await self._post.accept(address, transaction.sender)

    def _refused(self, transaction: Transaction, trouble: str) -> list[str]:
        return super()._refused(transaction, trouble) * len(transaction.recipients)

    async def _done(self, spool: Spool, transaction: Transaction) -> list[str]:
        """Deliver the message and return one reply per recipient."""
        size = spool.size
        to = self._taken(transaction, message_trace.new_id(self.listener.world))
        with spool:
            try:
                source = await spool.source()
                found = await self._post.deliver(source, to, transaction.sender)
            except Exception as error:  # noqa: BLE001 - nothing is lost: the sender tries again
                return self._refused(transaction, refusal(error))
        self.listener.world.fault("reply")
        replies = [answer(*each, size) for each in zip(to, found, strict=True)]
        self.listener.intake.count(replies, size)
        return replies


def answer(taken: Taken, outcome: object, size: int) -> str:
    """Return the reply for a recipient and log the result."""
    user = taken.user_id
    if isinstance(outcome, BaseException):
        reply = refusal(outcome, user=user)
        log.info("not delivered", extra={"user": user, "bytes": size, "reply": reply})
        return reply
    log.info("delivered", extra={"user": user, "bytes": size})
    return f"250 2.0.0 Delivered as {taken.queue_id}"


async def listen(
    world: World, host: str, port: int, *, spool: Path, limits: Limits | None = None
) -> Lmtp:
    """Start an LMTP listener for local accounts. Port 0 selects a free port."""
    lmtp = Lmtp(world, spool, limits)
    await lmtp.start(host=host, port=port)
    return lmtp
