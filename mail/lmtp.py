"""Receiving mail from a neighbour (LMTP, RFC 2033)."""

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, AnyStr, cast

from aiosmtpd.lmtp import LMTP
from sqlalchemy.exc import StatementError

from mail import intake, messagetrace
from mail.forwarding import Held
from mail.household import Household, Post
from mail.lmtplimits import Limits, limits_of
from mail.routes import Loop, Taken
from mail.spool import Body, Budget, NoRoom, Spool, claim, room
from mail.wire import (
    NO_ADDRESS,
    Overlong,
    Transaction,
    Vanished,
    Wire,
    Wrong,
    begun,
    command,
    need_utf8,
    path,
)
from models.errors import Invalid, NotFound, OverQuota, RateLimited, Refused, Unavailable
from models.options import MIB
from models.world import World

log = logging.getLogger(__name__)

DISCARD_MAX = 256 * MIB  # bytes of a refused message that we read on for, to stay in step

MISTAKES = ("500", "501", "502", "503", "504", "555")  # of the client's program, not of its mail

TRY_LATER = "451 4.3.0 Try again later"
NO_ROOM = "452 4.3.1 No room for it now, try again later"
NUL_BYTES = "554 5.6.0 A message has no NUL bytes"
TOO_LARGE = "552 5.3.4 Message too large"
FAR_TOO_LARGE = "421 4.3.0 Far too large, hanging up"
LINE_TOO_LONG = "500 5.5.2 Line too long"
CLOSING = "421 4.3.2 Shutting down, come back later"

# RFC 3463: nobody there is final; a full mailbox may have room tomorrow
REFUSALS: dict[type[Refused], str] = {
    NotFound: "550 5.1.1 No such user here",
    OverQuota: "452 4.2.2 Mailbox full",
    Invalid: NO_ADDRESS,
    RateLimited: "450 4.2.1 Too much mail for this mailbox, try again later",
    Unavailable: TRY_LATER,
    Loop: "554 5.4.6 The mail goes in circles",
    Held: "554 5.7.1 Spam is not sent on",
}


class Lmtp:
    """The listener, and all that its sessions share."""

    def __init__(
        self,
        world: World,
        spool: Path,
        limits: Limits | None = None,
        post: Post | None = None,
        *,
        share: int = 1,
    ) -> None:
        self.world = world
        self.spool = spool
        self._given = limits
        self._share = share
        self.post = post or Household(world)
        self.budget = Budget(self.limits.budget)
        self.sessions: set[Conversation] = set()
        self.closing = False
        self.port = 0
        self._deliveries: set[asyncio.Task[list[str]]] = set()
        self._servers: list[asyncio.Server] = []
        self._claim: int | None = None

    @property
    def limits(self) -> Limits:
        """What a session that begins now is bound to: the largest message is a setting."""
        return self._given or limits_of(self.world.options, self._share)

    async def start(self, **where: Any) -> None:
        """Listen at `host` and `port`, or on `sock`; `port` is then the one it took."""
        self._claim = self._claim or await asyncio.to_thread(claim, self.spool)
        loop = asyncio.get_running_loop()
        try:
            self._servers.append(await loop.create_server(lambda: Conversation(self), **where))
        except OSError:
            self._release()
            raise
        self.port = self._servers[0].sockets[0].getsockname()[1]

    async def close(self, timeout: float = 30) -> None:  # noqa: ASYNC109 - when patience ends
        """Take no new mail, let DATA that has begun come to its end, then hang up.

        What still runs after so many seconds is given up; it was not acknowledged.
        """
        self.closing = True
        for server in self._servers:
            server.close()
        for session in list(self.sessions):
            if not session.receiving:
                session.dismiss(CLOSING)
        await self._gone(timeout)
        for session in list(self.sessions):
            session.dismiss(CLOSING)
        await self._gone(1)
        for session in list(self.sessions):
            session.abort()
        for task in self._deliveries:
            task.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        self._release()

    def _release(self) -> None:
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    async def _gone(self, patience: float) -> None:
        waiting = [session.gone for session in self.sessions] + list(self._deliveries)
        if waiting:
            await asyncio.wait(waiting, timeout=patience)

    def has_room(self, size: int) -> bool:
        """Whether a message of that size may come now."""
        free = room(self.spool) - self.limits.disk_reserve
        return self.budget.fits(size) and size <= free

    async def deliver(self, spool: Spool, transaction: Transaction) -> list[str]:
        """Deliver even if the client goes away meanwhile; one reply for each recipient."""
        task = asyncio.create_task(self._deliver(spool, transaction))
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)
        return await asyncio.shield(task)

    async def _deliver(self, spool: Spool, transaction: Transaction) -> list[str]:
        size = spool.size
        replies = await self._replies(spool, transaction)
        intake.count(replies, size)
        return replies

    async def _replies(self, spool: Spool, transaction: Transaction) -> list[str]:
        size, queue_id = spool.size, messagetrace.new_id(self.world)
        to = [replace(each, queue_id=queue_id) for each in transaction.recipients]
        with spool:
            try:
                source = await spool.source()
                outcomes = await self.post.deliver(source, to, transaction.sender)
            except Exception as error:  # noqa: BLE001 - nothing is lost: the sender tries again
                return [refusal(error)] * len(to)
        self.world.fault("reply")
        return [_answer(*each, size) for each in zip(to, outcomes, strict=True)]


def _answer(taken: Taken, outcome: object, size: int) -> str:
    user = taken.user_id
    if isinstance(outcome, BaseException):
        reply = refusal(outcome, user=user)
        log.info("not delivered", extra={"user": user, "bytes": size, "reply": reply})
        return reply
    log.info("delivered", extra={"user": user, "bytes": size})
    return f"250 2.0.0 Delivered as {taken.queue_id}"


def refusal(error: BaseException, *, user: int | None = None) -> str:
    """The reply to what went wrong. A bug is logged, without whose mail it was but the key."""
    if isinstance(error, Refused):
        return REFUSALS.get(type(error), "550 5.7.1 Refused")
    if isinstance(error, NoRoom) or getattr(error, "errno", None) == errno.ENOSPC:
        return NO_ROOM
    if isinstance(error, StatementError):
        error.hide_parameters = True  # they are the mail itself
    log.error("receiving failed", exc_info=error, extra={"user": user})
    return TRY_LATER


class Conversation(LMTP):
    """One session. It offers no AUTH and no STARTTLS: neighbours are trusted by their address."""

    line_length_limit = 64 << 10  # the stream's buffer; lines are measured by Wire and Body

    def __init__(self, lmtp: Lmtp) -> None:
        limits, options = lmtp.limits, lmtp.world.options
        super().__init__(
            None,
            enable_SMTPUTF8=True,
            hostname=options.hostname,
            timeout=limits.timeout,
            loop=asyncio.get_running_loop(),
        )
        self.lmtp = lmtp
        self.limits = limits
        self.receiving = False  # between 354 and the replies
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self._transaction: Transaction | None = None
        self._greeted = False
        self._mistakes = 0
        self._leaving = False
        self._held: list[str] = []  # replies to commands behind which others have come
        self._verbs: dict[str, Callable[[str], Awaitable[str]]] = {
            "LHLO": self._lhlo,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "RSET": self._rset,
            "NOOP": self._noop,
            "VRFY": self._vrfy,
            "HELP": self._help,
            "QUIT": self._quit,
            "HELO": self._helo,
            "EHLO": self._helo,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        super().connection_made(transport)
        self.lmtp.sessions.add(self)
        intake.SESSIONS.add()
        if self.lmtp.closing:
            self.dismiss(CLOSING)
        elif len(self.lmtp.sessions) > self.limits.connections:
            self.dismiss("421 4.3.2 Too many connections, come back later")

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the session, once it has cleaned up behind itself."""
        super().connection_lost(error)
        if self._handler_coroutine is not None:
            self._handler_coroutine.add_done_callback(self._forget)

    def _forget(self, _ended: asyncio.Task[None]) -> None:
        self.lmtp.sessions.discard(self)
        intake.SESSIONS.add(by=-1)
        if not self.gone.done():
            self.gone.set_result(None)

    def eof_received(self) -> bool | None:
        """Let the session come to its end by itself: what was said before still counts."""
        # not aiosmtpd's, which breaks off a delivery that is under way
        return asyncio.StreamReaderProtocol.eof_received(self)

    def dismiss(self, reply: str) -> None:
        """Say why and hang up, whatever the session is doing."""
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()
        if self.transport is not None and not self.transport.is_closing():
            transport = cast("asyncio.WriteTransport", self.transport)
            transport.write(f"{reply}\r\n".encode())
            transport.close()

    def abort(self) -> None:
        """Hang up on a client that does not even take our last words."""
        if self.transport is not None:
            cast("asyncio.WriteTransport", self.transport).abort()

    def _timeout_cb(self) -> None:
        transport = cast("asyncio.WriteTransport", self.transport)
        if transport.get_write_buffer_size():
            self.abort()
        else:
            self.dismiss("421 4.4.2 Waited too long for you")

    async def push(self, status: AnyStr) -> None:
        """Send a reply, behind those that are held back; Vanished where nobody takes it."""
        text = status if isinstance(status, str) else status.decode()
        replies, self._held = [*self._held, text], []
        try:
            await super().push("\r\n".join(replies))
        except ConnectionError:
            raise Vanished from None

    async def _handle_client(self) -> None:
        self._wire = Wire(self._reader)
        try:
            await self._say(f"220 {self.hostname} LMTP")
            while not self._leaving:
                await self._say(await self._turn())
        except Vanished:
            pass
        finally:
            if self.receiving:
                log.info("session ended inside DATA")
            if self.transport is not None:
                self.transport.close()

    async def _say(self, reply: str) -> None:
        if self._transaction and self._wire.ahead:
            self._held.append(reply)  # commands in a row are answered in one piece
        else:
            await self.push(reply)
        self._mistakes += reply.startswith(MISTAKES)
        if self._leaving:
            return
        self._leaving = self.lmtp.closing or self._mistakes > self.limits.mistakes
        if self._leaving:
            await self.push(CLOSING if self.lmtp.closing else "421 4.7.0 Too many mistakes")

    async def _turn(self) -> str:
        """Take one command, and return the reply to it."""
        try:
            verb, argument = command(await self._wire.line())
            self._reset_timeout()
            if verb not in self._verbs:
                return "500 5.5.1 Unknown command"
            return await self._verbs[verb](argument)
        except Overlong:
            return LINE_TOO_LONG
        except Vanished:
            raise
        except Wrong as wrong:
            reply = str(wrong)
        except Exception as error:  # noqa: BLE001 - one session's trouble is not the listener's
            reply = refusal(error)
        if self.receiving:  # what follows is mail, and must not be taken for commands
            self._leaving = True
            return reply if reply.startswith("421") else "421 4.3.0 Try again later"
        return reply

    async def _lhlo(self, argument: str) -> str:
        if not argument:
            return "501 5.5.4 Say LHLO and your name"
        self._greeted, self._transaction = True, None
        return (
            f"250-{self.hostname}\r\n250-PIPELINING\r\n250-SIZE {self.limits.message_max}\r\n"
            "250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES"
        )

    async def _helo(self, _argument: str) -> str:
        return "500 5.5.1 This is LMTP, say LHLO"

    async def _noop(self, _argument: str) -> str:
        return "250 2.0.0 Fine"

    async def _rset(self, argument: str) -> str:
        if argument:
            return "501 5.5.4 RSET stands alone"
        self._transaction = None
        return "250 2.0.0 Forgotten"

    async def _vrfy(self, argument: str) -> str:
        if not argument:
            return "501 5.5.4 Say VRFY and an address"
        return "252 2.5.0 Send the mail and see"

    async def _help(self, _argument: str) -> str:
        return "214 2.0.0 LHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT"

    async def _quit(self, argument: str) -> str:
        if argument:
            return "501 5.5.4 QUIT stands alone"
        self._leaving = True
        return "221 2.0.0 Bye"

    async def _mail(self, argument: str) -> str:
        if not self._greeted:
            return "503 5.5.1 Say LHLO first"
        if self._transaction:
            return "503 5.5.1 One message at a time"
        sender, parameters = path("FROM:", argument)
        transaction = begun(sender, parameters)
        if transaction.size > self.limits.message_max:
            return TOO_LARGE
        if not self.lmtp.has_room(transaction.size):
            return NO_ROOM
        self._transaction = transaction
        return "250 2.1.0 For whom"

    async def _rcpt(self, argument: str) -> str:
        if not self._transaction:
            return "503 5.5.1 Say MAIL first"
        address, parameters = path("TO:", argument)
        if parameters:
            return "555 5.5.4 RCPT has no parameters here"
        if not address:
            return NO_ADDRESS
        need_utf8(address, utf8=self._transaction.utf8)
        if len(self._transaction.recipients) >= self.limits.recipients:
            return "452 4.5.3 Too many recipients, send it to the others again"
        try:
            sender = self._transaction.sender
            self._transaction.recipients.append(await self.lmtp.post.accept(address, sender))
        except Refused as error:
            intake.count([refusal(error)])
            raise
        return "250 2.1.5 Known here"

    async def _data(self, argument: str) -> str:
        if argument:
            return "501 5.5.4 DATA stands alone"
        if not self._transaction or not self._transaction.recipients:
            return "503 5.5.1 Nobody to deliver to"
        if not self.lmtp.has_room(self._transaction.size):
            return NO_ROOM
        await self.push("354 End with a line of one dot")
        self.receiving = True
        transaction, self._transaction = self._transaction, None
        replies = await self._receive(transaction)
        self.receiving = False
        return "\r\n".join(replies)

    async def _receive(self, transaction: Transaction) -> list[str]:
        with ExitStack() as until_handed_over:
            spool = Spool(self.lmtp.spool, self.lmtp.budget)
            until_handed_over.enter_context(spool)
            if trouble := await self._fill(spool):
                replies = [trouble] * len(transaction.recipients)
                intake.count(replies)
                return replies
            until_handed_over.pop_all()
        self._reset_timeout(self.limits.delivery_timeout)
        return await self.lmtp.deliver(spool, transaction)

    async def _fill(self, spool: Spool) -> str | None:
        """Read to the message's end; what is wrong with it, if anything."""
        body, trouble, seen, rest = Body(), None, 0, b""
        while not body.ended:
            added, rest = body.feed(await self._wire.piece())
            self._reset_timeout()
            if added and not seen:
                self.lmtp.world.fault("data")
            seen += len(added)
            trouble = trouble or await self._keep(spool, body, added)
            if trouble:
                spool.discard()
                if seen > self.limits.message_max + DISCARD_MAX:
                    raise Wrong(FAR_TOO_LARGE)
        self._wire.back(rest)
        return trouble

    async def _keep(self, spool: Spool, body: Body, added: bytes) -> str | None:
        if spool.size + len(added) > self.limits.message_max:
            return TOO_LARGE
        if body.overlong:
            return LINE_TOO_LONG
        if body.nul:
            return NUL_BYTES
        try:
            await spool.add(added)
        except (NoRoom, OSError) as error:
            return refusal(error)
        return None


async def listen(
    world: World, host: str, port: int, *, spool: Path, limits: Limits | None = None
) -> Lmtp:
    """Listen for LMTP, with our own users as recipients; port 0 takes any free one."""
    lmtp = Lmtp(world, spool, limits)
    await lmtp.start(host=host, port=port)
    return lmtp
