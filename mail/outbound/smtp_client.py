"""The SMTP client (RFC 5321): one message over one connection, with a result per recipient."""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import idna
from aiosmtplib import (
    SMTP,
    SMTPException,
    SMTPResponse,
    SMTPServerDisconnected,
)

from mail.addresses.quoted_local_part import has_valid_quotes, remove_needless_quotes
from mail.envelope.delivery_jobs import DeliveryResult, JobRecipient, QueueLimits
from mail.mime.header_encoding import needs_smtputf8, with_ascii_domain
from mail.outbound.smtp_protocol import SmtpProtocol
from mail.outbound.wire_format import WireMessage
from mail.queue import dsn_requests
from mail.routing.mx_hosts import NextHop
from models.queue.tables import DeliveryState

MAX_UNSENT_BYTES = 256 * 1024  # in the write buffer
DRAIN_POLL_SECONDS = 0.01  # seconds
QUIT_TIMEOUT = 5.0  # seconds for the answer to QUIT
MAX_REPLY_CHARACTERS = 500  # stored of a reply
OK, GO_AHEAD, CLOSING = 250, 354, 421
PARAMETER_ERROR_CODES = (
    501,
    555,
)  # syntax error in parameters, or unknown (RFC 5321, section 4.1.1.11)

_UNSAFE = re.compile(r"[\s<>\x00-\x1f\x7f]")
UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class ServerFailed(Exception):
    """The server failed before it decided on a recipient. Another server can be attempted."""

    def __init__(
        self,
        reply_code: int,
        reply_text: str,
        *,
        is_unreachable: bool = False,
        accepts_no_mail: bool = False,
    ) -> None:
        super().__init__(reply_text)
        self.reply_code = reply_code
        self.reply_text = reply_text
        self.is_unreachable = is_unreachable  # it would fail for every message
        self.accepts_no_mail = accepts_no_mail  # its greeting says so: a retry is useless

    def deferred_result(self, server: str) -> DeliveryResult:
        """The delivery result if a later attempt can succeed."""
        return DeliveryResult(DeliveryState.DEFERRED, self.reply_code, self.reply_text, server)


class LeaseLost(Exception):
    """Another process holds the lease of these recipients: nothing more may be sent or written."""


@dataclass(eq=False)
class SmtpConnection:
    """An open connection to an SMTP server with its state."""

    smtp: SMTP
    host: NextHop
    limits: QueueLimits
    protocol: SmtpProtocol
    tls_description: str | None = None  # version, cipher and certificate check
    message_count: int = 0  # messages sent over it
    is_in_transaction: bool = False  # between MAIL and its end
    is_reusable: bool = True  # for another message

    def refusal_result(self, reply_code: int, reply_text: str) -> DeliveryResult:
        """The delivery result for a negative reply."""
        return DeliveryResult.from_refusal(
            reply_code, reply_text[:MAX_REPLY_CHARACTERS], self.host.name, self.tls_description
        )

    def result_of_accepted_message(
        self, reply_code: int, reply_text: str, *, is_reported_remotely: bool
    ) -> DeliveryResult:
        """The delivery result for a positive reply to the final dot.

        The state is RELAYED if the host is a relay, otherwise DELIVERED. `is_reported_remotely` is
        True if the server got the DSN parameters, and so sends the success DSN (RFC 3461).
        """
        state = DeliveryState.RELAYED if self.host.is_relay else DeliveryState.DELIVERED
        return DeliveryResult(
            state,
            reply_code,
            reply_text[:MAX_REPLY_CHARACTERS],
            self.host.name,
            self.tls_description,
            is_reported_remotely=is_reported_remotely,
        )

    def has_extension(self, extension: str) -> bool:
        """True if the server offers this ESMTP extension."""
        return self.smtp.supports_extension(extension)

    async def send_command(self, *words: str, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        """Send a command and return its reply. Raises SMTPException if there is none."""
        self.protocol.write_commands(" ".join(words).encode())
        return await self.read_reply(timeout)

    async def read_reply(self, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        """Return the next reply. Raises SMTPException if there is none."""
        reply = await self.protocol.read_reply(timeout or self.limits.reply_timeout)
        self.is_reusable = self.is_reusable and reply.code != CLOSING
        return reply

    async def try_reset_for_next_message(self) -> bool:
        """End an unfinished transaction with RSET. Returns True if another message can be sent."""
        if self.is_in_transaction:
            try:
                self.is_in_transaction = (await self.send_command("RSET")).code != OK
            except (SMTPException, OSError):
                self.is_reusable = False
        return self.is_reusable and not self.is_in_transaction and self.protocol.is_open

    def abort(self) -> None:
        """Close the connection at once, without QUIT. Unsent bytes are lost."""
        self.protocol.transport.abort()

    async def quit(self) -> None:
        """Send QUIT and close the connection."""
        try:
            with contextlib.suppress(SMTPException, OSError):
                await self.send_command("QUIT", timeout=QUIT_TIMEOUT)
        finally:
            self.abort()


async def transmit_message(
    channel: SmtpConnection,
    message: WireMessage,
    recipients: Sequence[JobRecipient],
    before_final_dot: Callable[[Sequence[int]], Awaitable[None]],
    dsn_parameters: Sequence[str] | None = None,
) -> dict[int, DeliveryResult]:
    """Run one transaction. Returns a result for each recipient, by delivery id.

    `before_final_dot` gets the accepted delivery ids before the final dot; if it raises, the
    message is not sent. Raises ServerFailed if the connection ends before all RCPT replies.
    `dsn_parameters` are the parameters of MAIL. With them, recipients that the server may have
    refused because of DSN parameters have no result; the caller repeats them with None.
    """
    results = {
        recipient.delivery_id: problem
        for recipient in recipients
        if (problem := _invalid_recipient_result_or_none(channel, recipient))
    }
    valid_recipients = [
        recipient for recipient in recipients if recipient.delivery_id not in results
    ]
    if not valid_recipients:
        return results
    mail_command = _mail_command_or_refusal(channel, message, valid_recipients, dsn_parameters)
    if isinstance(mail_command, DeliveryResult):
        return results | _same_result_for_all(valid_recipients, mail_command)
    rcpt_commands = (
        _rcpt_command(recipient, with_dsn=dsn_parameters is not None)
        for recipient in valid_recipients
    )
    sequence = _TransactionCommands(
        channel,
        [mail_command, *rcpt_commands, "DATA"],
        has_dsn_parameters=dsn_parameters is not None,
    )
    channel.message_count += 1
    try:
        async with asyncio.timeout(channel.limits.envelope_timeout):
            if problem := await _read_mail_refusal(channel, sequence):
                if sequence.may_refuse_dsn_parameters(problem.reply_code):
                    return results
                return results | _same_result_for_all(valid_recipients, problem)
            accepted = await _collect_rcpt_replies(sequence, valid_recipients, results)
        sequence.has_all_rcpt_replies = True
        if accepted:
            results |= await _send_message_data(sequence, message, accepted, before_final_dot)
        else:
            await sequence.read_remaining_replies_and_end_data()
    except (SMTPException, OSError) as problem:
        channel.is_reusable = False
        text = f"4.4.2 {channel.host.name}: {error_text(problem)}"
        if not sequence.has_all_rcpt_replies:
            raise ServerFailed(451, text) from problem
        failure = channel.refusal_result(451, text)
        unanswered = [
            recipient for recipient in valid_recipients if recipient.delivery_id not in results
        ]
        results |= _same_result_for_all(unanswered, failure)
    return results


def _same_result_for_all(
    recipients: Sequence[JobRecipient], result: DeliveryResult
) -> dict[int, DeliveryResult]:
    """Return the result for each recipient, by delivery id."""
    return dict.fromkeys((recipient.delivery_id for recipient in recipients), result)


class _TransactionCommands:
    """The commands of a transaction: sent together with PIPELINING, else one by one."""

    def __init__(
        self, channel: SmtpConnection, commands: list[str], *, has_dsn_parameters: bool
    ) -> None:
        self.channel = channel
        self.has_dsn_parameters = has_dsn_parameters  # the commands have DSN parameters
        self.has_all_rcpt_replies = False
        self._unanswered = [command.encode() for command in commands]
        self._is_pipelined = channel.has_extension("pipelining")
        self._is_started = False

    def may_refuse_dsn_parameters(self, reply_code: int) -> bool:
        """True if a reply can refer to the DSN parameters and not to the address."""
        return self.has_dsn_parameters and reply_code in PARAMETER_ERROR_CODES

    async def send_next_and_read_reply(self) -> SMTPResponse:
        """Send the next command, unless it is sent already, and return its reply."""
        if not self._is_started or not self._is_pipelined:
            self.channel.protocol.write_commands(
                *(self._unanswered if self._is_pipelined else self._unanswered[:1])
            )
            self._is_started = True
        del self._unanswered[0]
        return await self.channel.read_reply()

    async def read_remaining_replies_and_end_data(self) -> None:
        """Read the replies to the pipelined commands of a transaction without accepted recipients.

        If the server accepts DATA all the same, an empty message ends it. Does nothing without
        PIPELINING.
        """
        while self._is_pipelined and self._unanswered:
            is_last = len(self._unanswered) == 1
            reply = await self.send_next_and_read_reply()
            if (
                is_last and reply.code == GO_AHEAD
            ):  # no recipient is left, so an empty message ends DATA
                await self.channel.send_command(".")


async def send_command_and_read_reply(channel: SmtpConnection, *words: str) -> SMTPResponse:
    """Send a command and return its reply, cut to `MAX_REPLY_CHARACTERS`. Raises ServerFailed."""
    try:
        reply_code, reply_text = await channel.send_command(*words)
    except (SMTPException, OSError) as problem:
        channel.is_reusable = False
        raise ServerFailed(451, f"4.4.2 {channel.host.name}: {error_text(problem)}") from problem
    return SMTPResponse(reply_code, reply_text[:MAX_REPLY_CHARACTERS])


def error_text(problem: Exception) -> str:
    """The text of an exception in printable ASCII, cut to `MAX_REPLY_CHARACTERS`."""
    return UNPRINTABLE.sub(" ", str(problem) or type(problem).__name__)[:MAX_REPLY_CHARACTERS]


def _invalid_recipient_result_or_none(
    channel: SmtpConnection, recipient: JobRecipient
) -> DeliveryResult | None:
    """The result for a recipient that can't be sent to this server. None if it can."""
    if not command_address_or_none(recipient.address):
        return DeliveryResult.from_refusal(553, "5.1.3 Bad destination address syntax")
    if needs_smtputf8(recipient.address) and not channel.has_extension("smtputf8"):
        return channel.refusal_result(550, _smtputf8_error_text(channel, recipient.address))
    return None


def command_address_or_none(address: str) -> str | None:
    """The address as SMTP commands have it. None if it is invalid.

    A quoted local part can contain spaces and angle brackets.
    """
    address = remove_needless_quotes(address)
    local, _, domain = address.rpartition("@")
    unquoted = f"@{domain}" if local.startswith('"') and has_valid_quotes(address) else address
    try:
        return None if _UNSAFE.search(unquoted) else with_ascii_domain(address)
    except idna.IDNAError:
        return None


def _smtputf8_error_text(channel: SmtpConnection, address: str) -> str:
    ascii_address = address.encode("ascii", "backslashreplace").decode()
    return f"5.6.7 {channel.host.name} does not support SMTPUTF8, which {ascii_address} requires"


def _mail_command_or_refusal(
    channel: SmtpConnection,
    message: WireMessage,
    recipients: Sequence[JobRecipient],
    dsn_parameters: Sequence[str] | None,
) -> DeliveryResult | str:
    """The MAIL command with its parameters, or a result if the server can't take the message."""
    parameters = list[str]()
    needs_utf8_ = message.has_utf8_header or any(
        needs_smtputf8(address) for address in (message.sender, *_recipient_addresses(recipients))
    )
    if needs_utf8_ and not channel.has_extension("smtputf8"):
        return channel.refusal_result(550, _smtputf8_error_text(channel, message.sender))
    if message.has_8bit and not channel.has_extension("8bitmime"):
        return channel.refusal_result(
            554, f"5.6.3 {channel.host.name} does not support 8BITMIME, which the message requires"
        )
    if channel.has_extension("size"):
        max_size = channel.smtp.esmtp_extensions["size"].strip()
        if max_size.isdecimal() and 0 < int(max_size) < len(message.data):
            return channel.refusal_result(
                552, f"5.3.4 {channel.host.name} accepts at most {max_size} bytes"
            )
        parameters.append(f"SIZE={len(message.data)}")
    if message.has_8bit or needs_utf8_:
        parameters.append("BODY=8BITMIME")
    if needs_utf8_:
        parameters.append("SMTPUTF8")
    parameters += dsn_parameters or ()
    sender = command_address_or_none(message.sender) if message.sender else ""
    if sender is None:
        return DeliveryResult.from_refusal(553, "5.1.7 Bad sender address syntax")
    return " ".join([f"MAIL FROM:<{sender}>", *parameters])


def _rcpt_command(recipient: JobRecipient, *, with_dsn: bool) -> str:
    """The RCPT command of a recipient."""
    parameters = dsn_requests.rcpt_to_parameters(recipient) if with_dsn else ()
    return " ".join([f"RCPT TO:<{command_address_or_none(recipient.address)}>", *parameters])


async def _read_mail_refusal(
    channel: SmtpConnection, sequence: _TransactionCommands
) -> DeliveryResult | None:
    """Read the reply to MAIL. Returns a result if the sender is refused."""
    reply = await sequence.send_next_and_read_reply()
    if reply.code == CLOSING:
        raise ServerFailed(reply.code, reply.message, is_unreachable=True)
    channel.is_in_transaction = reply.code == OK
    if reply.code == OK:
        return None
    await sequence.read_remaining_replies_and_end_data()
    return channel.refusal_result(failure_code_or_451(reply.code), reply.message)


def _recipient_addresses(recipients: Sequence[JobRecipient]) -> list[str]:
    return [recipient.address for recipient in recipients]


async def _collect_rcpt_replies(
    sequence: _TransactionCommands,
    recipients: Sequence[JobRecipient],
    results_by_delivery_id: dict[int, DeliveryResult],
) -> list[JobRecipient]:
    """Read the replies to RCPT. Returns the accepted recipients.

    Refused recipients get a result, unless the reply may refer to the DSN parameters.
    """
    accepted = []
    for recipient in recipients:
        reply = await sequence.send_next_and_read_reply()
        if reply.code in (OK, 251):
            accepted.append(recipient)
        elif not sequence.may_refuse_dsn_parameters(reply.code):
            refusal = sequence.channel.refusal_result(
                failure_code_or_451(reply.code), reply.message
            )
            results_by_delivery_id[recipient.delivery_id] = refusal
        if reply.code == CLOSING:
            raise SMTPServerDisconnected(reply.message)
    return accepted


def failure_code_or_451(reply_code: int) -> int:
    """The reply code, or 451 if it is no failure code."""
    return reply_code if 400 <= reply_code < 600 else 451  # noqa: PLR2004 - RFC 5321, section 4.2.1


async def _send_message_data(
    sequence: _TransactionCommands,
    message: WireMessage,
    accepted: Sequence[JobRecipient],
    before_final_dot: Callable[[Sequence[int]], Awaitable[None]],
) -> dict[int, DeliveryResult]:
    """Send the message after the reply to DATA. Returns the results by delivery id."""
    delivery_ids, channel = [recipient.delivery_id for recipient in accepted], sequence.channel
    reply = await sequence.send_next_and_read_reply()
    if reply.code != GO_AHEAD:
        return dict.fromkeys(
            delivery_ids, channel.refusal_result(failure_code_or_451(reply.code), reply.message)
        )
    async with asyncio.timeout(channel.limits.data_timeout):
        await _write_message(channel, message)
    await before_final_dot(delivery_ids)
    try:
        reply = await channel.send_command(".", timeout=channel.limits.final_reply_timeout)
    except (SMTPException, OSError) as problem:
        channel.is_reusable = False
        text = f"4.4.2 {channel.host.name} did not confirm the message: {error_text(problem)}"
        state = DeliveryState.DEFERRED
        uncertain_result = DeliveryResult(
            state, 451, text, channel.host.name, channel.tls_description, is_uncertain=True
        )
        return dict.fromkeys(delivery_ids, uncertain_result)
    channel.is_in_transaction = False
    if reply.code == OK:
        return dict.fromkeys(
            delivery_ids,
            channel.result_of_accepted_message(
                reply.code, reply.message, is_reported_remotely=sequence.has_dsn_parameters
            ),
        )
    return dict.fromkeys(
        delivery_ids, channel.refusal_result(failure_code_or_451(reply.code), reply.message)
    )


async def _write_message(channel: SmtpConnection, message: WireMessage) -> None:
    """Write the message with dot stuffing, but without the final dot."""
    async with aclosing(message.iter_pieces()) as chunks:
        async for chunk in chunks:
            await _wait_for_write_buffer(channel)
            stuffed = chunk.replace(b"\n.", b"\n..")
            channel.protocol.write(b"." + stuffed if chunk.startswith(b".") else stuffed)


async def _wait_for_write_buffer(channel: SmtpConnection) -> None:
    """Wait until the write buffer is small.

    Raises SMTPServerDisconnected if the connection is lost or nothing is sent for `stall_timeout`.
    """
    last_size, changed_at = -1, asyncio.get_running_loop().time()
    while channel.protocol.is_open:
        buffer_size = channel.protocol.transport.get_write_buffer_size()
        if buffer_size < MAX_UNSENT_BYTES:
            return
        now = asyncio.get_running_loop().time()
        if buffer_size != last_size:
            last_size, changed_at = buffer_size, now
        elif now - changed_at > channel.limits.stall_timeout:
            raise SMTPServerDisconnected("the rest of the message was not accepted")
        await asyncio.sleep(DRAIN_POLL_SECONDS)
    raise SMTPServerDisconnected("connection lost while the message was sent")
