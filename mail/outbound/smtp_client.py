"""The SMTP client (RFC 5321): one message over one connection, with a result per recipient."""

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import cast

import idna
from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPException,
    SMTPResponse,
    SMTPResponseException,
    SMTPServerDisconnected,
)

from mail.envelope.delivery_jobs import Pace, Result, To
from mail.mime.header_encoding import needs_utf8, on_wire
from mail.outbound.smtp_protocol import Wire, taken_over
from mail.outbound.tls_client import Contexts, NoTls, looked_at
from mail.outbound.wire_format import Letter
from mail.queue import dsn_requests
from mail.routing.mx_hosts import Host, Tls
from models.queue.tables import DeliveryState

WAITING = 256 * 1024  # in the write buffer
NAP = 0.01  # seconds
GOODBYE = 5.0  # seconds for the answer to QUIT
ANSWER = 500  # stored of a reply
OK, GO_AHEAD, CLOSING = 250, 354, 421
UNREAD = (501, 555)  # syntax error in parameters, or unknown (RFC 5321, section 4.1.1.11)

_UNSAFE = re.compile(r"[\s<>\x00-\x1f\x7f]")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class NotReached(Exception):
    """The server failed before it decided on a recipient. Another server can be attempted."""

    def __init__(self, code: int, text: str, *, down: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.down = down  # it would fail for every message


class LeaseLost(Exception):
    """Another process holds the lease of these recipients: nothing more may be sent or written."""


@dataclass(eq=False)
class Channel:
    """An open connection to an SMTP server with its state."""

    smtp: SMTP
    host: Host
    pace: Pace
    wire: Wire
    tls: str | None = None  # version, cipher and certificate check
    messages: int = 0  # messages sent over it
    begun: bool = False  # between MAIL and its end
    sound: bool = True  # for another message

    def refused(self, code: int, text: str) -> Result:
        """The delivery result for a negative reply."""
        return Result.refused(code, text[:ANSWER], self.host.name, self.tls)

    def taken(self, code: int, text: str, *, reports: bool) -> Result:
        """The delivery result for a positive reply to the final dot.

        `is_reported_remotely` is True if the server sends the success report.
        """
        state = DeliveryState.RELAYED if self.host.relay else DeliveryState.DELIVERED
        return Result(state, code, text[:ANSWER], self.host.name, self.tls, told_there=reports)

    def offers(self, extension: str) -> bool:
        """True if the server offers this ESMTP extension."""
        return self.smtp.supports_extension(extension)

    async def command(self, *words: str, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        """Send a command and return its reply. Raises SMTPException if there is none."""
        self.wire.command(" ".join(words).encode())
        return await self.heard(timeout)

    async def heard(self, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        """Return the next reply. Raises SMTPException if there is none."""
        answer = await self.wire.answer(timeout or self.pace.answer)
        self.sound = self.sound and answer.code != CLOSING
        return answer

    async def ready(self) -> bool:
        """End an unfinished transaction with RSET. Returns True if another message can be sent."""
        if self.begun:
            try:
                self.begun = (await self.command("RSET")).code != OK
            except (SMTPException, OSError):
                self.sound = False
        return self.sound and not self.begun and self.wire.open

    def drop(self) -> None:
        """Close the connection at once, without QUIT. HttpRequestFailed bytes are lost."""
        self.wire.transport.abort()

    async def close(self) -> None:
        """Send QUIT and close the connection."""
        try:
            with contextlib.suppress(SMTPException, OSError):
                await self.command("QUIT", timeout=GOODBYE)
        finally:
            self.drop()


async def connect(host: Host, pace: Pace, *, hostname: str, contexts: Contexts) -> Channel:
    """Open a connection with EHLO, TLS and login as the host requires. Raises ServerFailed.

    If opportunistic TLS fails, it connects once more without TLS.
    """
    try:
        return await _open(host, pace, hostname, contexts)
    except NoTls as problem:
        if host.tls is not Tls.OPPORTUNISTIC:
            raise NotReached(451, f"4.7.5 TLS failed: {problem}") from problem
        plain = replace(host, tls=Tls.NEVER)
        return await _open(plain, pace, hostname, contexts)


async def _open(host: Host, pace: Pace, hostname: str, contexts: Contexts) -> Channel:
    """Open a connection. Raises ServerFailed, or TlsFailed if TLS fails."""
    context = contexts.of(host)
    smtp = SMTP(
        hostname=host.name if host.tls is Tls.WRAPPED else host.address,
        port=host.port,
        local_hostname=hostname,
        timeout=pace.connect,
        use_tls=host.tls is Tls.WRAPPED,
        start_tls=False,
        tls_context=context,
    )
    tls: str | None = None
    try:
        async with asyncio.timeout(pace.greeting):
            if host.tls is Tls.WRAPPED:
                tls = await _wrapped(smtp, host, pace)
            else:
                await smtp.connect()
            await _greet(smtp)
            if host.tls not in (Tls.WRAPPED, Tls.NEVER):
                tls = await _encrypt(smtp, host, context)
            if host.username is not None:
                await smtp.login(host.username, host.password or "")
        wire = taken_over(smtp.transport)
    except BaseException as problem:
        _dropped(smtp)
        if isinstance(problem, SMTPAuthenticationError):
            raise NotReached(454, f"4.7.0 Our password was refused: {problem.code}") from problem
        if isinstance(problem, SMTPResponseException):
            text = _UNPRINTABLE.sub(" ", problem.message)[:ANSWER]
            raise NotReached(_failing(problem.code), text, down=True) from problem
        if isinstance(problem, (SMTPException, OSError, ssl.SSLError)):
            text = _told(problem)
            raise NotReached(451, f"4.4.1 {host.name}: {text}", down=True) from problem
        raise
    return Channel(smtp, host, pace, wire, tls)


def _dropped(smtp: SMTP) -> None:
    if smtp.transport is not None:
        cast(asyncio.WriteTransport, smtp.transport).abort()  # close() would send buffered bytes
    smtp.close()


async def _wrapped(smtp: SMTP, host: Host, pace: Pace) -> str:
    """Connect with TLS from the first byte. Returns the TLS description. Raises TlsFailed."""
    try:
        if host.address != host.name:
            await smtp.connect(port=None, sock=await _reached(host, pace))
        else:
            await smtp.connect()
    except ssl.SSLCertVerificationError as problem:
        raise NoTls(_told(problem)) from problem
    return looked_at(_encryption(smtp), host)


async def _reached(host: Host, pace: Pace) -> socket.socket:
    """A socket that is connected to the IP address, so that TLS can check the host name."""
    family = socket.AF_INET6 if ":" in host.address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        async with asyncio.timeout(pace.connect):
            await asyncio.get_running_loop().sock_connect(made, (host.address, host.port))
    except BaseException:
        made.close()
        raise
    return made


def _encryption(smtp: SMTP) -> ssl.SSLObject:
    """The TLS object of the connection. Raises TlsFailed if the connection is lost."""
    found = smtp.get_transport_info("ssl_object")
    if not isinstance(found, ssl.SSLObject):
        raise NoTls("the connection is lost")
    return found


async def _greet(smtp: SMTP) -> None:
    """Send EHLO, or HELO if the server does not know EHLO."""
    try:
        await smtp.ehlo()
    except SMTPResponseException as problem:
        if problem.code == CLOSING:
            raise
        await smtp.helo()


async def _encrypt(smtp: SMTP, host: Host, context: ssl.SSLContext) -> str | None:
    """Send STARTTLS and return the TLS description.

    Returns None if TLS is opportunistic and not offered. Raises TlsFailed if it fails.
    """
    if not smtp.supports_extension("starttls"):
        if host.tls is not Tls.OPPORTUNISTIC:
            raise NoTls("not offered")
        return None
    try:
        await smtp.starttls(server_hostname=host.name, tls_context=context)
        told = looked_at(_encryption(smtp), host)
        await _greet(smtp)
    except (SMTPException, OSError, ssl.SSLError) as problem:
        raise NoTls(_told(problem)) from problem
    return told


async def transmit(
    channel: Channel,
    letter: Letter,
    recipients: Sequence[To],
    before_dot: Callable[[Sequence[int]], Awaitable[None]],
    asked: Sequence[str] | None = None,
) -> dict[int, Result]:
    """Run one transaction. Returns a result for each recipient, by delivery id.

    `before_final_dot` gets the accepted delivery ids before the final dot; if it raises, the
    message is not sent. Raises ServerFailed if the connection ends before all RCPT replies.
    `dsn_parameters` are the parameters of MAIL. With them, recipients that the server may have
    refused because of DSN parameters have no result; the caller repeats them with None.
    """
    results = {
        recipient.delivery_id: problem
        for recipient in recipients
        if (problem := _unfit(channel, recipient))
    }
    rest = [recipient for recipient in recipients if recipient.delivery_id not in results]
    if not rest:
        return results
    opened = _opened(channel, letter, rest, asked)
    if isinstance(opened, Result):
        return results | dict.fromkeys((recipient.delivery_id for recipient in rest), opened)
    named = (_recipient(recipient, dsn=asked is not None) for recipient in rest)
    said = _Said(channel, [opened, *named, "DATA"], dsn=asked is not None)
    channel.messages += 1
    try:
        async with asyncio.timeout(channel.pace.envelope):
            if problem := await _sender(channel, said):
                if said.unread(problem.code):
                    return results
                return results | dict.fromkeys(
                    (recipient.delivery_id for recipient in rest), problem
                )
            accepted = await _named(said, rest, results)
        said.named = True
        if accepted:
            results |= await _data(said, letter, accepted, before_dot)
        else:
            await said.abandon()
    except (SMTPException, OSError) as problem:
        channel.sound = False
        text = f"4.4.2 {channel.host.name}: {_told(problem)}"
        if not said.named:
            raise NotReached(451, text) from problem
        lost = channel.refused(451, text)
        results |= {
            recipient.delivery_id: lost
            for recipient in rest
            if recipient.delivery_id not in results
        }
    return results


class _Said:
    """The commands of a transaction: sent together with PIPELINING, else one by one."""

    def __init__(self, channel: Channel, commands: list[str], *, dsn: bool) -> None:
        self.channel = channel
        self.dsn = dsn  # the commands have DSN parameters
        self.named = False
        self._left = [command.encode() for command in commands]
        self._together = channel.offers("pipelining")
        self._begun = False

    def unread(self, code: int) -> bool:
        """True if a reply can refer to the DSN parameters and not to the address."""
        return self.dsn and code in UNREAD

    async def next(self) -> SMTPResponse:
        """Send the next command, unless it is sent already, and return its reply."""
        if not self._begun or not self._together:
            self.channel.wire.command(*(self._left if self._together else self._left[:1]))
            self._begun = True
        del self._left[0]
        return await self.channel.heard()

    async def abandon(self) -> None:
        """Read the replies to commands that are already sent. No message is sent."""
        while self._together and self._left:
            last = len(self._left) == 1
            answer = await self.next()
            if (
                last and answer.code == GO_AHEAD
            ):  # no recipient is left, so an empty message ends DATA
                await self.channel.command(".")


async def answered(channel: Channel, *words: str) -> SMTPResponse:
    """Send a command and return its reply, cut to `MAX_REPLY_CHARACTERS`. Raises ServerFailed."""
    try:
        code, text = await channel.command(*words)
    except (SMTPException, OSError) as problem:
        channel.sound = False
        raise NotReached(451, f"4.4.2 {channel.host.name}: {_told(problem)}") from problem
    return SMTPResponse(code, text[:ANSWER])


def _told(problem: Exception) -> str:
    """The text of an exception in printable ASCII, cut to `MAX_REPLY_CHARACTERS`."""
    return _UNPRINTABLE.sub(" ", str(problem) or type(problem).__name__)[:ANSWER]


def _unfit(channel: Channel, to: To) -> Result | None:
    """The result for a recipient that can't be sent to this server. None if it can."""
    if not written(to.address):
        return channel.refused(553, "5.1.3 Not an address")
    if needs_utf8(to.address) and not channel.offers("smtputf8"):
        return channel.refused(550, _no_utf8(channel, to.address))
    return None


def written(address: str) -> str | None:
    """The address as SMTP commands have it. None if it is invalid."""
    try:
        return None if _UNSAFE.search(address) else on_wire(address)
    except idna.IDNAError:
        return None


def _no_utf8(channel: Channel, what: str) -> str:
    shown = what.encode("ascii", "backslashreplace").decode()
    return f"5.6.7 {channel.host.name} does not take addresses such as {shown} (SMTPUTF8)"


def _opened(
    channel: Channel, letter: Letter, rest: Sequence[To], asked: Sequence[str] | None
) -> Result | str:
    """The MAIL command with its parameters, or a result if the server can't take the message."""
    options = list[str]()
    utf8 = letter.utf8 or any(needs_utf8(address) for address in (letter.sender, *_addresses(rest)))
    if utf8 and not channel.offers("smtputf8"):
        return channel.refused(550, _no_utf8(channel, letter.sender))
    if letter.eight_bit and not channel.offers("8bitmime"):
        return channel.refused(554, f"5.6.3 {channel.host.name} takes no 8-bit text (8BITMIME)")
    if channel.offers("size"):
        most = channel.smtp.esmtp_extensions["size"].strip()
        if most.isdecimal() and 0 < int(most) < len(letter.data):
            return channel.refused(552, f"5.3.4 {channel.host.name} takes at most {most} bytes")
        options.append(f"SIZE={len(letter.data)}")
    if letter.eight_bit or utf8:
        options.append("BODY=8BITMIME")
    if utf8:
        options.append("SMTPUTF8")
    options += asked or ()
    sender = written(letter.sender) if letter.sender else ""
    if sender is None:
        return channel.refused(553, "5.1.7 Not an address of a sender")
    return " ".join([f"MAIL FROM:<{sender}>", *options])


def _recipient(to: To, *, dsn: bool) -> str:
    """The RCPT command of a recipient."""
    asked = dsn_requests.of_recipient(to) if dsn else ()
    return " ".join([f"RCPT TO:<{on_wire(to.address)}>", *asked])


async def _sender(channel: Channel, said: _Said) -> Result | None:
    """Read the reply to MAIL. Returns a result if the sender is refused."""
    answer = await said.next()
    if answer.code == CLOSING:
        raise NotReached(answer.code, answer.message, down=True)
    channel.begun = answer.code == OK
    if answer.code == OK:
        return None
    await said.abandon()
    return channel.refused(_failing(answer.code), answer.message)


def _addresses(recipients: Sequence[To]) -> list[str]:
    return [recipient.address for recipient in recipients]


async def _named(said: _Said, recipients: Sequence[To], results: dict[int, Result]) -> list[To]:
    """Read the replies to RCPT. Returns the accepted recipients.

    Refused recipients get a result, unless the reply may refer to the DSN parameters.
    """
    accepted = []
    for to in recipients:
        answer = await said.next()
        if answer.code in (OK, 251):
            accepted.append(to)
        elif not said.unread(answer.code):
            failed = said.channel.refused(_failing(answer.code), answer.message)
            results[to.delivery_id] = failed
        if answer.code == CLOSING:
            raise SMTPServerDisconnected(answer.message)
    return accepted


def _failing(code: int) -> int:
    """The reply code, or 451 if it is no failure code."""
    return code if 400 <= code < 600 else 451  # noqa: PLR2004 - RFC 5321, section 4.2.1


async def _data(
    said: _Said,
    letter: Letter,
    accepted: Sequence[To],
    before_dot: Callable[[Sequence[int]], Awaitable[None]],
) -> dict[int, Result]:
    """Send the message after the reply to DATA. Returns the results by delivery id."""
    ids, channel = [recipient.delivery_id for recipient in accepted], said.channel
    answer = await said.next()
    if answer.code != GO_AHEAD:
        return dict.fromkeys(ids, channel.refused(_failing(answer.code), answer.message))
    async with asyncio.timeout(channel.pace.data):
        await _write(channel, letter)
    await before_dot(ids)
    try:
        answer = await channel.command(".", timeout=channel.pace.final)
    except (SMTPException, OSError) as problem:
        channel.sound = False
        text = f"4.4.2 {channel.host.name} did not say whether it took it: {_told(problem)}"
        state = DeliveryState.DEFERRED
        lost = Result(state, 451, text, channel.host.name, channel.tls, after_dot=True)
        return dict.fromkeys(ids, lost)
    channel.begun = False
    if answer.code == OK:
        return dict.fromkeys(ids, channel.taken(answer.code, answer.message, reports=said.dsn))
    return dict.fromkeys(ids, channel.refused(_failing(answer.code), answer.message))


async def _write(channel: Channel, letter: Letter) -> None:
    """Write the message with dot stuffing, but without the final dot."""
    async with aclosing(letter.pieces()) as pieces:
        async for piece in pieces:
            await _drained(channel)
            dotted = piece.replace(b"\n.", b"\n..")
            channel.wire.write(b"." + dotted if piece.startswith(b".") else dotted)


async def _drained(channel: Channel) -> None:
    """Wait until the write buffer is small.

    Raises SMTPServerDisconnected if the connection is lost or nothing is sent for `stall_timeout`.
    """
    last, since = -1, asyncio.get_running_loop().time()
    while channel.wire.open:
        waiting = channel.wire.transport.get_write_buffer_size()
        if waiting < WAITING:
            return
        now = asyncio.get_running_loop().time()
        if waiting != last:
            last, since = waiting, now
        elif now - since > channel.pace.stall:
            raise SMTPServerDisconnected("the message was not taken any further")
        await asyncio.sleep(NAP)
    raise SMTPServerDisconnected("connection lost while the message was sent")
