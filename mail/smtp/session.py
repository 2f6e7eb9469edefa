"""A session of SMTP or LMTP, from its greeting to its end (RFC 5321, RFC 2033).

Shared by LMTP, the MX server and submission: commands and their order, the message and its end,
limits, and the end of the session.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import AnyStr, cast

from aiosmtpd.smtp import SMTP

from mail.network.byte_stream import Vanished
from mail.recipients.recipient_routes import Away, Taken
from mail.smtp.connection_limits import Limits
from mail.smtp.line_protocol import (
    NO_ADDRESS,
    BareLineFeed,
    Overlong,
    Transaction,
    Wire,
    Wrong,
    begun,
    command,
    need_utf8,
    path,
    wanted,
)
from mail.smtp.listener import Listener
from mail.smtp.replies import (
    CLOSING,
    CROWDED,
    FAR_TOO_LARGE,
    LINE_TOO_LONG,
    MISTAKES,
    NO_ROOM,
    TOO_LARGE,
    WAITED,
    refusal,
)
from mail.smtp.spool_file import Body, NoRoom, Spool
from models.errors import NotFound, Refused
from models.runtime.options import MIB

log = logging.getLogger(__name__)

NO_HEADER = b"\r\n"  # ends the header if the first line would continue an added field
TOLD = 100  # refused recipients in the delivery trace of a message
DISCARD_MAX = 256 * MIB  # bytes of a refused message that are read and discarded

Verb = Callable[[str], Awaitable[str]]  # takes the argument, returns the reply


class Conversation(SMTP):
    """A session. Subclasses add the parts of their protocol."""

    line_length_limit = 64 << 10  # the stream's buffer; CommandReader and DataParser limit lines
    hello = "EHLO"  # expected first command

    def __init__(self, listener: Listener) -> None:
        limits: Limits = listener.limits
        super().__init__(
            None,
            enable_SMTPUTF8=True,
            hostname=listener.world.options.hostname,
            timeout=limits.timeout,
            loop=asyncio.get_running_loop(),
        )
        self.listener = listener
        self.limits = limits
        self.receiving = False  # between the 354 reply and the final replies
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self._transaction: Transaction | None = None
        self._greeted = False
        self._mistakes = self._strangers = self._commands = 0
        self._leaving = False
        self._ends = self.loop.time() + limits.lifetime
        self._held: list[str] = []  # replies to pipelined commands
        self._verbs: dict[str, Verb] = {
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "RSET": self._rset,
            "NOOP": self._noop,
            "VRFY": self._vrfy,
            "HELP": self._help,
            "QUIT": self._quit,
        }

    async def _opened(self) -> str:
        """Return the greeting, or the reply with which the session ends."""
        raise NotImplementedError

    async def _begun(self, sender: str, parameters: dict[str, str]) -> Transaction:
        """Return the transaction of MAIL. Raises CommandRejected or Refused."""
        return begun(sender, parameters)

    async def _accepted(self, transaction: Transaction, address: str) -> Taken:
        """Return where mail for a recipient goes. Raises CommandRejected or Refused."""
        raise NotImplementedError

    def _on_top(self, transaction: Transaction) -> bytes:
        """Return the header fields that are added to the message."""
        del transaction
        return b""

    async def _done(self, spool: Spool, transaction: Transaction) -> list[str]:
        """Deliver or enqueue the message and return the replies to DATA."""
        raise NotImplementedError

    def _refused(self, transaction: Transaction, trouble: str) -> list[str]:
        """Count a refused message and return the replies to DATA."""
        self.listener.intake.count([trouble] * len(transaction.recipients))
        return [trouble]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the session; close it if there are too many."""
        super().connection_made(transport)
        self.listener.sessions.add(self)
        self.listener.intake.sessions.add()
        if self.listener.closing:
            self.dismiss(CLOSING)
        elif len(self.listener.sessions) > self.limits.connections:
            self.dismiss(CROWDED)

    def connection_lost(self, error: Exception | None) -> None:
        """Unregister the session after its task has ended."""
        super().connection_lost(error)
        if self._handler_coroutine is not None:
            self._handler_coroutine.add_done_callback(self._forget)

    def _forget(self, ended: asyncio.Task[None]) -> None:
        """Unregister the session."""
        del ended
        self.listener.sessions.discard(self)
        self.listener.intake.sessions.add(by=-1)
        if not self.gone.done():
            self.gone.set_result(None)

    def eof_received(self) -> bool | None:
        """Let the session finish the commands it has received."""
        # aiosmtpd's method would cancel a running delivery
        return asyncio.StreamReaderProtocol.eof_received(self)

    def dismiss(self, reply: str) -> None:
        """Cancel what the session does, send a reply and close the connection."""
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()
        if self.transport is not None and not self.transport.is_closing():
            self._send(f"{reply}\r\n".encode())
            self.transport.close()

    def abort(self) -> None:
        """Close the connection at once, for a client that does not read."""
        if self.transport is not None:
            cast("asyncio.WriteTransport", self.transport).abort()

    def _send(self, raw: bytes) -> None:
        """Write bytes to the connection."""
        cast("asyncio.WriteTransport", self.transport).write(raw)

    def _reset_timeout(self, duration: float | None = None) -> None:
        """Restart the timeout, but not beyond the deadline of the session."""
        left = max(self._ends - self.loop.time(), 0.001)
        super()._reset_timeout(min(duration or self.limits.timeout, left))

    def _timeout_cb(self) -> None:
        transport = cast("asyncio.WriteTransport", self.transport)
        if transport.get_write_buffer_size():
            self.abort()
        else:
            self.dismiss(WAITED)

    async def push(self, status: AnyStr) -> None:
        """Send a reply after those held back. Raises ConnectionClosed."""
        text = status if isinstance(status, str) else status.decode()
        replies, self._held = [*self._held, text, ""], []
        if self.transport is None:
            raise Vanished
        try:
            self._send("\r\n".join(replies).encode())
            await self._writer.drain()
        except ConnectionError:
            raise Vanished from None

    async def _handle_client(self) -> None:
        self._wire = Wire(self._reader)
        try:
            await self._say(await self._opened())
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
        """Send or hold back a reply, count mistakes and end the session at a limit."""
        if self._transaction and self._wire.ahead and not self._leaving:
            self._held.append(reply)  # replies to pipelined commands are sent together
        elif reply:
            await self.push(reply)
        self._mistakes += reply.startswith(MISTAKES)
        if self._leaving:
            return
        if ending := self._ending():
            self._leaving = True
            await self.push(ending)

    def _ending(self) -> str | None:
        """Return the reply with which the session ends now, None if it continues."""
        if self.listener.closing:
            return CLOSING
        if self._mistakes > self.limits.mistakes:
            return "421 4.7.0 Too many mistakes"
        if self._strangers > self.limits.strangers:
            return "421 4.7.0 Too many recipients that nobody knows"
        if self._commands >= self.limits.commands:
            return "421 4.7.0 Too many commands, come back for more"
        return None

    async def _turn(self) -> str:
        """Handle one command and return its reply; "" if it is already sent."""
        try:
            verb, argument = command(await self._wire.line())
            self._reset_timeout()
            self._commands += 1
            if verb not in self._verbs:
                return "500 5.5.1 Unknown command"
            return await self._verbs[verb](argument)
        except Overlong:
            return LINE_TOO_LONG
        except Vanished:
            raise
        except Wrong as wrong:
            reply = str(wrong)
            self._leaving |= isinstance(wrong, BareLineFeed)
        except Exception as error:  # noqa: BLE001 - an error of one session must not stop the listener
            reply = refusal(error)
        if self.receiving:  # message data follows and must not be read as commands
            self._leaving = True
            return reply if reply.startswith("421") else "421 4.3.0 Try again later"
        return reply

    def _offers(self) -> list[str]:
        """Return the extensions for the reply to EHLO or LHLO."""
        size = f"SIZE {self.limits.message_max}"
        return ["PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"]

    def _greet(self) -> str:
        """Reset the session and return the reply to EHLO or LHLO."""
        self._greeted, self._transaction = True, None
        *lines, last = [self.hostname, *self._offers()]
        return "\r\n".join([*(f"250-{line}" for line in lines), f"250 {last}"])

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
        return f"214 2.0.0 {self.hello} {' '.join(self._verbs)}"

    async def _quit(self, argument: str) -> str:
        if argument:
            return "501 5.5.4 QUIT stands alone"
        self._leaving = True
        return "221 2.0.0 Bye"

    async def _mail(self, argument: str) -> str:
        if not self._greeted:
            return f"503 5.5.1 Say {self.hello} first"
        if self._transaction:
            return "503 5.5.1 One message at a time"
        sender, parameters = path("FROM:", argument)
        transaction = await self._begun(sender, parameters)
        if transaction.size > self.limits.message_max:
            return TOO_LARGE
        if not self.listener.has_room(transaction.size):
            return NO_ROOM
        self._transaction = transaction
        return "250 2.1.0 For whom"

    async def _rcpt(self, argument: str) -> str:
        if not self._transaction:
            return "503 5.5.1 Say MAIL first"
        address, parameters = path("TO:", argument)
        wish = wanted(self._transaction, parameters)
        if not address:
            return NO_ADDRESS
        need_utf8(address, utf8=self._transaction.utf8)
        if len(self._transaction.recipients) >= self.limits.recipients:
            return "452 4.5.3 Too many recipients, send it to the others again"
        try:
            taken = await self._accepted(self._transaction, address)
        except Refused as error:
            self._strangers += isinstance(error, NotFound)
            reply = refusal(error)
            self.listener.intake.count([reply])
            self._turned_away(address, reply)
            raise
        except Wrong as wrong:
            self._turned_away(address, str(wrong))
            raise
        self._transaction.recipients.append(replace(taken, wish=wish))
        return "250 2.1.5 Known here"

    def _turned_away(self, address: str, reply: str) -> None:
        """Note a refused recipient for the delivery trace."""
        if self._transaction and len(self._transaction.turned_away) < TOLD:
            self._transaction.turned_away.append(Away(address, reply))

    def _taken(self, transaction: Transaction, queue_id: str) -> list[Taken]:
        """Return the recipients with the queue ID; the first one has the refused recipients."""
        to = [replace(each, queue_id=queue_id) for each in transaction.recipients]
        return [replace(to[0], beside=transaction.turned_away), *to[1:]]

    async def _data(self, argument: str) -> str:
        if argument:
            return "501 5.5.4 DATA stands alone"
        if not self._transaction or not self._transaction.recipients:
            return "503 5.5.1 Nobody to deliver to"
        if not self.listener.has_room(self._transaction.size):
            return NO_ROOM
        await self.push("354 End with a line of one dot")
        self.receiving = True
        transaction, self._transaction = self._transaction, None
        replies = await self._receive(transaction)
        self.receiving = False
        return "\r\n".join(replies)

    async def _receive(self, transaction: Transaction) -> list[str]:
        """Read the message into a spool file, deliver it and return the replies."""
        with ExitStack() as until_handed_over:
            spool = Spool(self.listener.spool, self.listener.budget)
            until_handed_over.enter_context(spool)
            ends = self._ends
            self._ends = min(ends, self.loop.time() + self.limits.message_timeout)
            trouble = await self._fill(spool, transaction)
            self._ends = ends
            if trouble:
                return self._refused(transaction, trouble)
            until_handed_over.pop_all()
        super()._reset_timeout(self.limits.delivery_timeout)
        return await self.listener.finish(self._done(spool, transaction))

    async def _fill(self, spool: Spool, transaction: Transaction) -> str | None:
        """Read the message into the spool file. Returns a reply if it is refused, else None.

        Raises CommandRejected if a refused message is far too large.
        """
        body, trouble, seen, rest = Body(), None, 0, b""
        digest, on_top = hashlib.sha256(), self._on_top(transaction)
        while not body.ended:
            added, rest = body.feed(await self._wire.piece())
            self._reset_timeout()
            if added and not seen:
                self.listener.world.fault("data")
                on_top += NO_HEADER if added[:1] in b" \t" else b""
            seen += len(added)
            digest.update(added)
            trouble = trouble or await self._keep(spool, body, on_top + added, seen)
            on_top = b""
            if trouble:
                spool.discard()
                if seen > self.limits.message_max + DISCARD_MAX:
                    raise Wrong(FAR_TOO_LARGE)
        self._wire.back(rest)
        transaction.digest = digest.hexdigest()
        return trouble

    async def _keep(self, spool: Spool, body: Body, added: bytes, seen: int) -> str | None:
        """Add bytes to the spool file. Returns a reply if the message is refused."""
        if seen > self.limits.message_max:
            return TOO_LARGE
        if body.overlong:
            return LINE_TOO_LONG
        try:
            await spool.add(added)
        except (NoRoom, OSError) as error:
            return refusal(error)
        return None
