"""One message over one SMTP connection (RFC 5321): an answer for each recipient."""

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
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

from mail.fields import needs_utf8, on_wire
from mail.queue.jobs import Pace, Result, To
from mail.queue.letters import Letter
from mail.routing import Host, Tls
from models.queue import DeliveryState

WAITING = 256 * 1024  # bytes that may lie unsent before we wait
NAP = 0.01  # seconds
GOODBYE = 5.0  # seconds for the answer to QUIT
ANSWER = 500  # characters kept of an answer
OK, GO_AHEAD, CLOSING = 250, 354, 421

_UNSAFE = re.compile(r"[\s<>\x00-\x1f\x7f]")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class NotReached(Exception):
    """No answer to a command of ours that meant this message: another server may do better."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class LeaseLost(Exception):
    """Somebody else holds these recipients now: nothing more may be sent or written."""


@dataclass
class Channel:
    """A connection to a server, and what is known of it."""

    smtp: SMTP
    host: Host
    pace: Pace
    tls: str | None = None  # protocol version and cipher

    @property
    def transport(self) -> asyncio.WriteTransport | None:
        """What bytes are written to; None once the connection is lost."""
        return cast(asyncio.WriteTransport | None, self.smtp.transport)

    def refused(self, code: int, text: str) -> Result:
        """What came of it, after an answer that was none of 2xx."""
        return Result.refused(code, text[:ANSWER], self.host.name, self.tls)

    def taken(self, code: int, text: str) -> Result:
        """What came of it, after the 250."""
        state = DeliveryState.RELAYED if self.host.relay else DeliveryState.DELIVERED
        return Result(state, code, text[:ANSWER], self.host.name, self.tls)

    async def command(self, *words: str, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        """Send a command; what the answer says in its text is made harmless."""
        encoded = [word.encode() for word in words]
        answer = await self.smtp.execute_command(*encoded, timeout=timeout or self.pace.answer)
        return SMTPResponse(answer.code, _UNPRINTABLE.sub(" ", answer.message))


@asynccontextmanager
async def connected(
    host: Host, pace: Pace, *, hostname: str, trust: ssl.SSLContext | None
) -> AsyncGenerator[Channel]:
    """A connection that is greeted, encrypted and signed in as far as `host` asks; NotReached.

    Where encryption was only a bonus and fails, the same server is tried once without.
    """
    try:
        channel = await _open(host, pace, hostname, trust)
    except _NoTls as problem:
        if host.tls is not Tls.OPPORTUNISTIC:
            raise NotReached(451, f"4.7.5 TLS failed: {problem}") from problem
        plain = replace(host, tls=Tls.NEVER)
        channel = await _open(plain, pace, hostname, trust)
    try:
        yield channel
        with contextlib.suppress(SMTPException, OSError):
            await channel.smtp.quit(timeout=GOODBYE)
    finally:
        if channel.transport is not None:
            channel.transport.abort()  # closing would still send what waits
        channel.smtp.close()


class _NoTls(Exception):
    """Encryption was offered, but did not come about."""


async def _open(host: Host, pace: Pace, hostname: str, trust: ssl.SSLContext | None) -> Channel:
    checked = host.tls in (Tls.REQUIRED, Tls.WRAPPED)
    context = (trust or ssl.create_default_context()) if checked else _unchecked()
    smtp = SMTP(
        hostname=host.name if host.tls is Tls.WRAPPED else host.address,
        port=host.port,
        local_hostname=hostname,
        timeout=pace.connect,
        use_tls=host.tls is Tls.WRAPPED,
        start_tls=False,
        tls_context=context,
    )
    try:
        if host.tls is Tls.WRAPPED and host.address != host.name:
            await smtp.connect(port=None, sock=await _reached(host, pace))
        else:
            await smtp.connect()
        await _greet(smtp)
        if host.tls not in (Tls.WRAPPED, Tls.NEVER):
            await _encrypt(smtp, host, context)
        if host.username is not None:
            await smtp.login(host.username, host.password or "")
    except BaseException as problem:
        smtp.close()
        if isinstance(problem, SMTPAuthenticationError):
            raise NotReached(454, f"4.7.0 Our password was refused: {problem.code}") from problem
        if isinstance(problem, SMTPResponseException):
            text = _UNPRINTABLE.sub(" ", problem.message)[:ANSWER]
            raise NotReached(problem.code, text) from problem
        if isinstance(problem, (SMTPException, OSError, ssl.SSLError)):
            text = _told(problem)
            raise NotReached(451, f"4.4.1 {host.name}: {text}") from problem
        raise
    encryption = smtp.get_transport_info("ssl_object")
    return Channel(smtp, host, pace, _described(encryption) if encryption else None)


async def _reached(host: Host, pace: Pace) -> socket.socket:
    """A connection to the address, for which the certificate is checked by the name."""
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


def _described(encryption: ssl.SSLObject) -> str:
    """Protocol version and cipher."""
    cipher = encryption.cipher()
    return f"{encryption.version()} {cipher[0] if cipher else ''}".strip()


async def _greet(smtp: SMTP) -> None:
    """EHLO, or HELO where that is unknown."""
    try:
        await smtp.ehlo()
    except SMTPResponseException:
        await smtp.helo()


async def _encrypt(smtp: SMTP, host: Host, context: ssl.SSLContext) -> None:
    if not smtp.supports_extension("starttls"):
        if host.tls is Tls.REQUIRED:
            raise _NoTls("not offered")
        return
    try:
        await smtp.starttls(server_hostname=host.name, tls_context=context)
        await _greet(smtp)
    except (SMTPException, OSError, ssl.SSLError) as problem:
        raise _NoTls(_told(problem)) from problem


def _unchecked() -> ssl.SSLContext:
    """Encryption without a check of the certificate: against those who only listen."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def transmit(
    channel: Channel,
    letter: Letter,
    recipients: Sequence[To],
    before_dot: Callable[[Sequence[int]], Awaitable[None]],
) -> dict[int, Result]:
    """One transaction. A result for each recipient, by the id of its delivery.

    `before_dot` is told who has been accepted, and may raise: then nothing was sent. NotReached
    where the connection ends before any of our recipients was named.
    """
    results = {to.delivery_id: problem for to in recipients if (problem := _unfit(channel, to))}
    rest = [to for to in recipients if to.delivery_id not in results]
    if not rest:
        return results
    named = False
    try:
        if problem := await _sender(channel, letter, rest):
            return results | dict.fromkeys((to.delivery_id for to in rest), problem)
        accepted = await _named(channel, rest, results)
        named = True
        if accepted:
            results |= await _data(channel, letter, accepted, before_dot)
    except (SMTPException, OSError) as problem:
        text = f"4.4.2 {channel.host.name}: {_told(problem)}"
        if not named:
            raise NotReached(451, text) from problem
        lost = channel.refused(451, text)
        results |= {to.delivery_id: lost for to in rest if to.delivery_id not in results}
    return results


def _told(problem: Exception) -> str:
    """What an exception says, fit to be kept."""
    return _UNPRINTABLE.sub(" ", str(problem) or type(problem).__name__)[:ANSWER]


def _unfit(channel: Channel, to: To) -> Result | None:
    """Why this recipient cannot be named to this server."""
    if not _written(to.address):
        return channel.refused(553, "5.1.3 Not an address")
    if needs_utf8(to.address) and not channel.smtp.supports_extension("smtputf8"):
        return channel.refused(550, _no_utf8(channel, to.address))
    return None


def _written(address: str) -> str | None:
    """The address as a command has it; None where it cannot stand in one."""
    try:
        return None if _UNSAFE.search(address) else on_wire(address)
    except idna.IDNAError:
        return None


def _no_utf8(channel: Channel, what: str) -> str:
    shown = what.encode("ascii", "backslashreplace").decode()
    return f"5.6.7 {channel.host.name} does not take addresses such as {shown} (SMTPUTF8)"


async def _sender(channel: Channel, letter: Letter, rest: Sequence[To]) -> Result | None:
    """Name the sender, with what the message needs; a result where that was refused."""
    smtp, options = channel.smtp, list[str]()
    utf8 = letter.utf8 or any(needs_utf8(each) for each in (letter.sender, *_addresses(rest)))
    if utf8 and not smtp.supports_extension("smtputf8"):
        return channel.refused(550, _no_utf8(channel, letter.sender))
    if letter.eight_bit and not smtp.supports_extension("8bitmime"):
        return channel.refused(554, f"5.6.3 {channel.host.name} takes no 8-bit text (8BITMIME)")
    if smtp.supports_extension("size"):
        most = smtp.esmtp_extensions["size"].strip()
        if most.isdecimal() and 0 < int(most) < len(letter.data):
            return channel.refused(552, f"5.3.4 {channel.host.name} takes at most {most} bytes")
        options.append(f"SIZE={len(letter.data)}")
    if letter.eight_bit or utf8:
        options.append("BODY=8BITMIME")
    if utf8:
        options.append("SMTPUTF8")
    sender = _written(letter.sender) if letter.sender else ""
    if sender is None:
        return channel.refused(553, "5.1.7 Not an address of a sender")
    answer = await channel.command("MAIL", f"FROM:<{sender}>", *options)
    if answer.code == CLOSING:
        raise NotReached(answer.code, answer.message)
    return None if answer.code == OK else channel.refused(_failing(answer.code), answer.message)


def _addresses(recipients: Sequence[To]) -> list[str]:
    return [to.address for to in recipients]


async def _named(
    channel: Channel, recipients: Sequence[To], results: dict[int, Result]
) -> list[To]:
    """Name the recipients; those that are refused get their result, the others are returned."""
    accepted = []
    for to in recipients:
        answer = await channel.command("RCPT", f"TO:<{on_wire(to.address)}>")
        if answer.code in (OK, 251):
            accepted.append(to)
        else:
            results[to.delivery_id] = channel.refused(_failing(answer.code), answer.message)
        if answer.code == CLOSING:
            raise SMTPServerDisconnected(answer.message)
    return accepted


def _failing(code: int) -> int:
    """An answer that is no failure, where it makes no sense, is one that may pass."""
    return code if 400 <= code < 600 else 451  # noqa: PLR2004 - RFC 5321, section 4.2.1


async def _data(
    channel: Channel,
    letter: Letter,
    accepted: Sequence[To],
    before_dot: Callable[[Sequence[int]], Awaitable[None]],
) -> dict[int, Result]:
    ids = [to.delivery_id for to in accepted]
    answer = await channel.command("DATA")
    if answer.code != GO_AHEAD:
        return dict.fromkeys(ids, channel.refused(_failing(answer.code), answer.message))
    await _write(channel, letter)
    await before_dot(ids)
    try:
        answer = await channel.command(".", timeout=channel.pace.final)
    except (SMTPException, OSError) as problem:
        text = f"4.4.2 {channel.host.name} did not say whether it took it: {_told(problem)}"
        state = DeliveryState.DEFERRED
        lost = Result(state, 451, text, channel.host.name, channel.tls, after_dot=True)
        return dict.fromkeys(ids, lost)
    if answer.code == OK:
        return dict.fromkeys(ids, channel.taken(answer.code, answer.message))
    return dict.fromkeys(ids, channel.refused(_failing(answer.code), answer.message))


async def _write(channel: Channel, letter: Letter) -> None:
    """Send the message, all but the dot, no faster than it is taken."""
    async with aclosing(letter.pieces()) as pieces:
        async for piece in pieces:
            await _drained(channel)
            if channel.smtp.protocol is None:
                raise SMTPServerDisconnected("connection lost while the message was sent")
            dotted = piece.replace(b"\n.", b"\n..")
            channel.smtp.protocol.write(b"." + dotted if piece.startswith(b".") else dotted)


async def _drained(channel: Channel) -> None:
    """Wait until little lies unsent; SMTPServerDisconnected when nothing moves for long."""
    last, since = -1, asyncio.get_running_loop().time()
    while (transport := channel.transport) is not None:
        waiting = transport.get_write_buffer_size()
        if waiting < WAITING:
            return
        now = asyncio.get_running_loop().time()
        if waiting != last:
            last, since = waiting, now
        elif now - since > channel.pace.stall:
            raise SMTPServerDisconnected("the message was not taken any further")
        await asyncio.sleep(NAP)
    raise SMTPServerDisconnected("connection lost while the message was sent")
