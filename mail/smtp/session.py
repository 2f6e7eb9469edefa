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

from mail.envelope import smtp_replies
from mail.network.byte_stream import ConnectionClosed
from mail.recipients.recipient_routes import AcceptedRecipient, RejectedRecipient
from mail.smtp.command_usage import UNKNOWN_VERB, CommandUsage
from mail.smtp.connection_limits import SessionLimits
from mail.smtp.line_protocol import (
    BareLineFeed,
    CommandLineTooLong,
    CommandReader,
    CommandRejected,
    SmtpTransaction,
    parse_address_and_parameters,
    parse_verb_and_argument,
    pop_parameters_into_transaction,
    pop_recipient_dsn_request,
    require_smtputf8_for_address,
)
from mail.smtp.listener import SmtpFamilyListener
from mail.smtp.replies import MISTAKE_CODES, reply_from_error
from mail.smtp.session_peer import peer_of_transport
from mail.smtp.spool_file import DataParser, OutOfSpoolSpace, SpoolFile
from models.errors import NotFound, RequestError
from models.runtime.options import MIB
from models.sessions.live_sessions import (
    ActivityClock,
    SessionPeer,
    SessionService,
    SessionTermination,
)

log = logging.getLogger(__name__)

END_OF_HEADER = b"\r\n"  # ends the header if the first line would continue an added field
MAX_TRACED_REJECTIONS = 100  # refused recipients in the delivery trace of a message
MAX_DISCARDED = 256 * MIB  # bytes of a refused message that are read and discarded

CommandHandler = Callable[[str], Awaitable[str]]  # takes the argument, returns the reply


class SmtpFamilySession(SMTP):
    """A session. Subclasses add the parts of their protocol."""

    line_length_limit = 64 << 10  # the stream's buffer; CommandReader and DataParser limit lines
    greeting_commands = "HELO/EHLO"  # expected first command

    def __init__(self, listener: SmtpFamilyListener) -> None:
        limits: SessionLimits = listener.limits
        super().__init__(
            None,
            enable_SMTPUTF8=True,
            hostname=listener.environment.options.hostname,
            timeout=limits.command_timeout,
            loop=asyncio.get_running_loop(),
        )
        self.listener = listener
        self.limits = limits
        self.is_receiving = False  # between the 354 reply and the final replies
        self._is_delivering = False  # between the end of the message and the final replies
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self.session_id = listener.environment.new_id()
        self.connected_at = listener.environment.now()
        self.peer = SessionPeer()
        self._activity_clock = ActivityClock()
        self._termination_reply: str | None = None  # ends the session after the message
        self._transaction: SmtpTransaction | None = None
        self._has_greeted = False
        self._mistake_count = self._unknown_recipient_count = self._command_count = 0
        self._command_usage = CommandUsage(listener.environment.usage, self)
        self._is_ending = False
        self._deadline = self.loop.time() + limits.session_timeout
        self._held_replies: list[str] = []  # replies to pipelined commands
        self._handlers: dict[str, CommandHandler] = {
            "MAIL": self._handle_mail,
            "RCPT": self._handle_rcpt,
            "DATA": self._handle_data,
            "RSET": self._handle_rset,
            "NOOP": self._handle_noop,
            "VRFY": self._handle_vrfy,
            "HELP": self._handle_help,
            "QUIT": self._handle_quit,
        }

    @property
    def service(self) -> SessionService:
        """The service of the listener."""
        return self.listener.service

    @property
    def user_id(self) -> int | None:
        """The user who has signed in; None without one."""
        return None

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last command or piece of a message."""
        return self._activity_clock.idle_seconds

    @property
    def subscription_count(self) -> int:
        """The session has no GraphQL subscriptions."""
        return 0

    def terminate(self, termination: SessionTermination) -> None:
        """Close the session with reply 421; unless forced, after the message in DATA.

        A delivery always ends first: the client would send a delivered message again after 421.
        """
        reply = smtp_replies.session_terminated_reply(self.hostname, termination.reason)
        if self._is_delivering or (self.is_receiving and not termination.is_forced):
            self._termination_reply = reply
        else:
            self.close_with_reply(reply)

    async def _set_up_session_and_get_greeting(self) -> str:
        """Return the greeting, or the reply with which the session ends."""
        raise NotImplementedError

    async def _begin_transaction(
        self, envelope_sender: str, parameters: dict[str, str]
    ) -> SmtpTransaction:
        """Return the transaction of MAIL. Raises CommandRejected or RequestError."""
        return pop_parameters_into_transaction(envelope_sender, parameters)

    async def _accept_recipient(
        self, transaction: SmtpTransaction, address: str
    ) -> AcceptedRecipient:
        """Return where mail for a recipient goes. Raises CommandRejected or RequestError."""
        raise NotImplementedError

    def _added_fields(self, transaction: SmtpTransaction) -> bytes:
        """Return the header fields that are added to the message."""
        del transaction
        return b""

    async def _deliver(self, spool: SpoolFile, transaction: SmtpTransaction) -> list[str]:
        """Deliver or enqueue the message and return the replies to DATA."""
        raise NotImplementedError

    def _count_refusal_and_reply(self, transaction: SmtpTransaction, smtp_reply: str) -> list[str]:
        """Count a refused message and return the replies to DATA."""
        self.listener.metrics.count_replies([smtp_reply] * len(transaction.accepted_recipients))
        return [smtp_reply]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the session; close it if there are too many."""
        super().connection_made(transport)
        self.peer = peer_of_transport(cast("asyncio.Transport", transport))
        self.listener.sessions.add(self)
        self.listener.environment.live_sessions.add(self)
        self.listener.metrics.open_sessions.add()
        if self.listener.is_closing:
            self.close_with_reply(self._with_hostname(smtp_replies.SHUTDOWN_REPLY))
        elif len(self.listener.sessions) > self.limits.max_connections:
            self.close_with_reply(self._with_hostname(smtp_replies.TOO_MANY_CONNECTIONS_REPLY))

    def connection_lost(self, error: Exception | None) -> None:
        """Unregister the session after its task has ended."""
        super().connection_lost(error)
        if self._handler_coroutine is not None:
            self._handler_coroutine.add_done_callback(self._remove_session)

    def _remove_session(self, task: asyncio.Task[None]) -> None:
        """Unregister the session."""
        del task
        self.listener.sessions.discard(self)
        self.listener.environment.live_sessions.remove(self)
        self.listener.metrics.open_sessions.add(amount=-1)
        if not self.closed.done():
            self.closed.set_result(None)

    def eof_received(self) -> bool | None:
        """Let the session finish the commands it has received."""
        # aiosmtpd's method would cancel a running delivery
        return asyncio.StreamReaderProtocol.eof_received(self)

    def close_with_reply(self, smtp_reply: str) -> None:
        """Cancel what the session does, send a reply and close the connection."""
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()
        if self.transport is not None and not self.transport.is_closing():
            self._write(f"{smtp_reply}\r\n".encode())
            self.transport.close()

    def abort(self) -> None:
        """Close the connection at once, for a client that does not read."""
        if self.transport is not None:
            cast("asyncio.WriteTransport", self.transport).abort()

    def _write(self, raw: bytes) -> None:
        """Write bytes to the connection."""
        cast("asyncio.WriteTransport", self.transport).write(raw)

    def _reset_timeout(self, duration: float | None = None) -> None:
        """Restart the timeout, but not beyond the deadline of the session."""
        self._activity_clock.note_activity()
        left = max(self._deadline - self.loop.time(), 0.001)
        super()._reset_timeout(min(duration or self.limits.command_timeout, left))

    def _timeout_cb(self) -> None:
        transport = cast("asyncio.WriteTransport", self.transport)
        if transport.get_write_buffer_size():
            self.abort()
        else:
            self.close_with_reply(self._with_hostname(smtp_replies.TIMEOUT_REPLY))

    async def push(self, status: AnyStr) -> None:
        """Send a reply after those held back. Raises ConnectionClosed."""
        text = status if isinstance(status, str) else status.decode()
        replies, self._held_replies = [*self._held_replies, text, ""], []
        if self.transport is None:
            raise ConnectionClosed
        try:
            self._write("\r\n".join(replies).encode())
            await self._writer.drain()
        except ConnectionError:
            raise ConnectionClosed from None

    async def _handle_client(self) -> None:
        self._command_reader = CommandReader(self._reader)
        try:
            greeting = await self._set_up_session_and_get_greeting()
            await self._send_or_hold_reply(greeting)
            await self._count_mistake_and_end_at_limit(greeting)
            while not self._is_ending:
                reply = await self._handle_command()
                self._command_usage.count_command_with_reply(reply)
                await self._send_or_hold_reply(reply)
                await self._count_mistake_and_end_at_limit(reply)
        except ConnectionClosed:
            pass
        finally:
            if self.is_receiving:
                log.info("Session ended in DATA")
            if self.transport is not None:
                self.transport.close()

    async def _send_or_hold_reply(self, smtp_reply: str) -> None:
        """Send a reply, or hold it back if another pipelined command is buffered."""
        if self._transaction and self._command_reader.has_buffered_line and not self._is_ending:
            self._held_replies.append(smtp_reply)  # replies to pipelined commands are sent together
        elif smtp_reply:
            await self.push(smtp_reply)

    async def _count_mistake_and_end_at_limit(self, smtp_reply: str) -> None:
        """Count a reply to a mistake, and end the session if a limit is reached."""
        self._mistake_count += smtp_reply.startswith(MISTAKE_CODES)
        if self._is_ending:
            return
        if ending := self._closing_reply_at_limit():
            self._is_ending = True
            is_abuse = self._is_abuse_limit_reached()
            await self.push(ending)
            if is_abuse:
                await self._count_abuse_and_ban_at_limit()

    async def _count_abuse_and_ban_at_limit(self) -> None:
        """Count a limit that the client has reached. LMTP clients are trusted."""

    def _is_abuse_limit_reached(self) -> bool:
        """True if the session ends because of mistakes or unknown recipients.

        Many commands are no abuse: a host that sends many messages needs them.
        """
        return (
            self._mistake_count > self.limits.max_mistakes
            or self._unknown_recipient_count > self.limits.max_unknown_recipients
        )

    def _closing_reply_at_limit(self) -> str | None:
        """Return the reply with which the session ends now, None if it continues."""
        if self._termination_reply is not None:
            return self._termination_reply
        if self.listener.is_closing:
            return self._with_hostname(smtp_replies.SHUTDOWN_REPLY)
        if self._mistake_count > self.limits.max_mistakes:
            return self._with_hostname(smtp_replies.TOO_MANY_ERRORS_REPLY)
        if self._unknown_recipient_count > self.limits.max_unknown_recipients:
            return self._with_hostname(smtp_replies.TOO_MANY_UNKNOWN_RECIPIENTS_REPLY)
        if self._command_count >= self.limits.max_commands:
            return self._with_hostname(smtp_replies.TOO_MANY_COMMANDS_REPLY)
        return None

    def _with_hostname(self, reply_template: str) -> str:
        """Return a reply that ends the session, with the name of this server."""
        return reply_template.format(hostname=self.hostname)

    async def _handle_command(self) -> str:
        """Handle one command and return its reply; "" if it is already sent."""
        try:
            verb, argument = parse_verb_and_argument(await self._command_reader.read_line())
            self._reset_timeout()
            self._command_count += 1
            self._command_usage.begin_command(verb if verb in self._handlers else UNKNOWN_VERB)
            if verb not in self._handlers:
                return smtp_replies.UNKNOWN_COMMAND_REPLY
            return await self._handlers[verb](argument)
        except CommandLineTooLong:
            return smtp_replies.LINE_TOO_LONG_REPLY
        except ConnectionClosed:
            raise
        except CommandRejected as wrong:
            reply = str(wrong)
            self._is_ending |= isinstance(wrong, BareLineFeed)
        except Exception as error:  # noqa: BLE001 - an error of one session must not stop the listener
            reply = reply_from_error(error)
        if self.is_receiving:  # message data follows and must not be read as commands
            self._is_ending = True
            if not reply.startswith("421"):
                return self._with_hostname(smtp_replies.SERVER_ERROR_REPLY)
        return reply

    def _extensions(self) -> list[str]:
        """Return the extensions for the reply to EHLO or LHLO."""
        size = f"SIZE {self.limits.max_message_size}"
        return ["PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"]

    def _reset_and_reply_to_greeting(self) -> str:
        """Reset the session and return the reply to EHLO or LHLO."""
        self._has_greeted, self._transaction = True, None
        *lines, last = [self.hostname, *self._extensions()]
        return "\r\n".join([*(f"250-{line}" for line in lines), f"250 {last}"])

    async def _handle_noop(self, _argument: str) -> str:
        return smtp_replies.NOOP_REPLY

    async def _handle_rset(self, argument: str) -> str:
        if argument:
            return smtp_replies.syntax_reply("RSET")
        self._transaction = None
        return smtp_replies.RESET_REPLY

    async def _handle_vrfy(self, argument: str) -> str:
        if not argument:
            return smtp_replies.syntax_reply("VRFY address")
        return smtp_replies.CANNOT_VRFY_REPLY

    async def _handle_help(self, _argument: str) -> str:
        return smtp_replies.help_reply(" ".join(self._handlers))

    async def _handle_quit(self, argument: str) -> str:
        if argument:
            return smtp_replies.syntax_reply("QUIT")
        self._is_ending = True
        return smtp_replies.BYE_REPLY

    async def _handle_mail(self, argument: str) -> str:
        if not self._has_greeted:
            return smtp_replies.greeting_required_reply(self.greeting_commands)
        if self._transaction:
            return smtp_replies.NESTED_MAIL_REPLY
        sender, parameters = parse_address_and_parameters("FROM:", argument)
        transaction = await self._begin_transaction(sender, parameters)
        if transaction.declared_size > self.limits.max_message_size:
            return smtp_replies.TOO_LARGE_REPLY
        if not self.listener.has_room(transaction.declared_size):
            return smtp_replies.NO_SPACE_REPLY
        self._transaction = transaction
        return smtp_replies.SENDER_OK_REPLY

    async def _handle_rcpt(self, argument: str) -> str:
        if not self._transaction:
            return smtp_replies.MAIL_REQUIRED_REPLY
        address, parameters = parse_address_and_parameters("TO:", argument)
        dsn_request = pop_recipient_dsn_request(self._transaction, parameters)
        if not address:
            return smtp_replies.BAD_RECIPIENT_REPLY
        require_smtputf8_for_address(address, smtputf8=self._transaction.smtputf8)
        if len(self._transaction.accepted_recipients) >= self.limits.max_recipients:
            return smtp_replies.TOO_MANY_RECIPIENTS_REPLY
        try:
            outcome = await self._accept_recipient(self._transaction, address)
        except RequestError as error:
            self._unknown_recipient_count += isinstance(error, NotFound)
            reply = reply_from_error(error)
            self.listener.metrics.count_replies([reply])
            self._note_rejected(address, reply)
            raise
        except CommandRejected as wrong:
            self._note_rejected(address, str(wrong))
            raise
        self._transaction.accepted_recipients.append(replace(outcome, dsn_request=dsn_request))
        return smtp_replies.RECIPIENT_OK_REPLY

    def _note_rejected(self, address: str, smtp_reply: str) -> None:
        """Note a refused recipient for the delivery trace."""
        if self._transaction and len(self._transaction.rejected_recipients) < MAX_TRACED_REJECTIONS:
            self._transaction.rejected_recipients.append(RejectedRecipient(address, smtp_reply))

    def _recipients_with_queue_id(
        self, transaction: SmtpTransaction, queue_id: str
    ) -> list[AcceptedRecipient]:
        """Return the recipients with the queue ID; the first one has the refused recipients."""
        recipients = [
            replace(recipient, queue_id=queue_id) for recipient in transaction.accepted_recipients
        ]
        return [
            replace(recipients[0], rejected_recipients=transaction.rejected_recipients),
            *recipients[1:],
        ]

    async def _handle_data(self, argument: str) -> str:
        if argument:
            return smtp_replies.syntax_reply("DATA")
        if not self._transaction:
            return smtp_replies.MAIL_REQUIRED_REPLY
        if not self._transaction.accepted_recipients:
            return smtp_replies.RCPT_REQUIRED_REPLY
        if not self.listener.has_room(self._transaction.declared_size):
            return smtp_replies.NO_SPACE_REPLY
        await self.push(smtp_replies.START_DATA_REPLY)
        self.is_receiving = True
        transaction, self._transaction = self._transaction, None
        replies = await self._receive_and_deliver(transaction)
        self.is_receiving = False
        return "\r\n".join(replies)

    async def _receive_and_deliver(self, transaction: SmtpTransaction) -> list[str]:
        """Read the message into a spool file, deliver it and return the replies."""
        with ExitStack() as until_handed_over:
            spool = SpoolFile(self.listener.spool_folder, self.listener.byte_budget)
            until_handed_over.enter_context(spool)
            deadline = self._deadline
            self._deadline = min(deadline, self.loop.time() + self.limits.message_timeout)
            refusal = await self._read_into_spool_or_refuse(spool, transaction)
            self._deadline = deadline
            if refusal:
                return self._count_refusal_and_reply(transaction, refusal)
            until_handed_over.pop_all()
        super()._reset_timeout(self.limits.delivery_timeout)
        self._is_delivering = True
        try:
            return await self.listener.run_shielded_from_disconnect(
                self._deliver(spool, transaction)
            )
        finally:
            self._is_delivering = False

    async def _read_into_spool_or_refuse(
        self, spool: SpoolFile, transaction: SmtpTransaction
    ) -> str | None:
        """Read the message into the spool file. Returns a reply if it is refused, else None.

        Raises CommandRejected if a refused message is far too large.
        """
        body, refusal, seen, rest = DataParser(), None, 0, b""
        digest, on_top = hashlib.sha256(), self._added_fields(transaction)
        while not body.has_ended:
            added, rest = body.split_at_end_of_data(await self._command_reader.read_piece())
            self._reset_timeout()
            if added and not seen:
                self.listener.environment.reach_fault_point("data")
                on_top += END_OF_HEADER if added[:1] in b" \t" else b""
            seen += len(added)
            digest.update(added)
            refusal = refusal or await self._append_to_spool_or_refuse(
                spool, body, on_top + added, seen
            )
            on_top = b""
            if refusal:
                spool.discard()
                if seen > self.limits.max_message_size + MAX_DISCARDED:
                    raise CommandRejected(self._with_hostname(smtp_replies.FAR_TOO_LARGE_REPLY))
        self._command_reader.push_back(rest)
        transaction.content_digest = digest.hexdigest()
        return refusal

    async def _append_to_spool_or_refuse(
        self, spool: SpoolFile, body: DataParser, data: bytes, received_size: int
    ) -> str | None:
        """Add bytes to the spool file. Returns a reply if the message is refused."""
        if received_size > self.limits.max_message_size:
            return smtp_replies.TOO_LARGE_REPLY
        if body.has_long_line:
            return smtp_replies.LINE_TOO_LONG_REPLY
        try:
            await spool.append(data)
        except (OutOfSpoolSpace, OSError) as error:
            return reply_from_error(error)
        return None
