"""One message over one SMTP connection (RFC 5321): an answer for each recipient."""

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

WAITING = 256 * 1024  # bytes that may lie unsent before we wait
NAP = 0.01  # seconds
GOODBYE = 5.0  # seconds for the answer to QUIT
ANSWER = 500  # characters kept of an answer
OK, GO_AHEAD, CLOSING = 250, 354, 421
UNREAD = (501, 555)  # to parameters: of another form, or unknown (RFC 5321, section 4.1.1.11)

_UNSAFE = re.compile(r"[\s<>\x00-\x1f\x7f]")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class NotReached(Exception):
    """No answer to a command of ours that meant this message: another server may do better."""

    def __init__(self, code: int, text: str, *, down: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.down = down  # it talks to nobody, so others need not try


class LeaseLost(Exception):
    """Somebody else holds these recipients now: nothing more may be sent or written."""


@dataclass(eq=False)
class Channel:
    """A connection to a server, and what is known of it."""

    smtp: SMTP
    host: Host
    pace: Pace
    wire: Wire
    tls: str | None = None  # protocol version and cipher, and how its certificate was checked
    messages: int = 0  # that it was used for
    begun: bool = False  # a transaction has not come to its end
    sound: bool = True  # it can be used again

    def refused(self, code: int, text: str) -> Result:
        """What came of it, after an answer that was none of 2xx."""
        return Result.refused(code, text[:ANSWER], self.host.name, self.tls)

    def taken(self, code: int, text: str, *, reports: bool) -> Result:
        """What came of it, after the 250; `reports` says whether the server tells the sender."""
        state = DeliveryState.RELAYED if self.host.relay else DeliveryState.DELIVERED
        return Result(state, code, text[:ANSWER], self.host.name, self.tls, told_there=reports)

    def offers(self, extension: str) -> bool:
        """Whether the server has said that it knows this."""
        return self.smtp.supports_extension(extension)

    async def command(self, *words: str, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        """Send a command; the answer to it."""
        self.wire.command(" ".join(words).encode())
        return await self.heard(timeout)

    async def heard(self, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        """The next answer."""
        answer = await self.wire.answer(timeout or self.pace.answer)
        self.sound = self.sound and answer.code != CLOSING
        return answer

    async def ready(self) -> bool:
        """Whether another message can be sent; what was left of the last one is taken back."""
        if self.begun:
            try:
                self.begun = (await self.command("RSET")).code != OK
            except (SMTPException, OSError):
                self.sound = False
        return self.sound and not self.begun and self.wire.open

    def drop(self) -> None:
        """End it, without a word, and without what still waits to be sent."""
        self.wire.transport.abort()

    async def close(self) -> None:
        """Say goodbye, and end it."""
        try:
            with contextlib.suppress(SMTPException, OSError):
                await self.command("QUIT", timeout=GOODBYE)
        finally:
            self.drop()


async def connect(host: Host, pace: Pace, *, hostname: str, contexts: Contexts) -> Channel:
    """A connection that is greeted, encrypted and signed in as far as `host` asks; NotReached.

    Where encryption was only a bonus and fails, the same server is tried once without.
    """
    try:
        return await _open(host, pace, hostname, contexts)
    except NoTls as problem:
        if host.tls is not Tls.OPPORTUNISTIC:
            raise NotReached(451, f"4.7.5 TLS failed: {problem}") from problem
        plain = replace(host, tls=Tls.NEVER)
        return await _open(plain, pace, hostname, contexts)


async def _open(host: Host, pace: Pace, hostname: str, contexts: Contexts) -> Channel:
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
        cast(asyncio.WriteTransport, smtp.transport).abort()  # closing would send what waits
    smtp.close()


async def _wrapped(smtp: SMTP, host: Host, pace: Pace) -> str:
    """Connect with TLS from the first byte on; what it is, once it is as it should be."""
    try:
        if host.address != host.name:
            await smtp.connect(port=None, sock=await _reached(host, pace))
        else:
            await smtp.connect()
    except ssl.SSLCertVerificationError as problem:
        raise NoTls(_told(problem)) from problem
    return looked_at(_encryption(smtp), host)


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


def _encryption(smtp: SMTP) -> ssl.SSLObject:
    found = smtp.get_transport_info("ssl_object")
    if not isinstance(found, ssl.SSLObject):
        raise NoTls("the connection is lost")
    return found


async def _greet(smtp: SMTP) -> None:
    """EHLO, or HELO where that is unknown."""
    try:
        await smtp.ehlo()
    except SMTPResponseException as problem:
        if problem.code == CLOSING:
            raise
        await smtp.helo()


async def _encrypt(smtp: SMTP, host: Host, context: ssl.SSLContext) -> str | None:
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
    """One transaction. A result for each recipient, by the id of its delivery.

    `before_dot` is told who has been accepted, and may raise: then nothing was sent. NotReached
    where the connection ends before any of our recipients was named. `asked` is what a server
    that offers DSN is told of the message; with it those have no result whom it may have refused
    for that: it is to be asked for them once more, with None.
    """
    results = {to.delivery_id: problem for to in recipients if (problem := _unfit(channel, to))}
    rest = [to for to in recipients if to.delivery_id not in results]
    if not rest:
        return results
    opened = _opened(channel, letter, rest, asked)
    if isinstance(opened, Result):
        return results | dict.fromkeys((to.delivery_id for to in rest), opened)
    named = (_recipient(to, dsn=asked is not None) for to in rest)
    said = _Said(channel, [opened, *named, "DATA"], dsn=asked is not None)
    channel.messages += 1
    try:
        async with asyncio.timeout(channel.pace.envelope):
            if problem := await _sender(channel, said):
                if said.unread(problem.code):
                    return results
                return results | dict.fromkeys((to.delivery_id for to in rest), problem)
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
        results |= {to.delivery_id: lost for to in rest if to.delivery_id not in results}
    return results


class _Said:
    """The commands of a transaction: at once where the server can take that, else in turn."""

    def __init__(self, channel: Channel, commands: list[str], *, dsn: bool) -> None:
        self.channel = channel
        self.dsn = dsn  # its parameters are in them
        self.named = False  # all recipients
        self._left = [command.encode() for command in commands]
        self._together = channel.offers("pipelining")
        self._begun = False

    def unread(self, code: int) -> bool:
        """Whether an answer may mean the parameters of DSN, and not the address."""
        return self.dsn and code in UNREAD

    async def next(self) -> SMTPResponse:
        """The answer to the next command."""
        if not self._begun or not self._together:
            self.channel.wire.command(*(self._left if self._together else self._left[:1]))
            self._begun = True
        del self._left[0]
        return await self.channel.heard()

    async def abandon(self) -> None:
        """Go no further; what was said already is heard out, and comes to nothing."""
        while self._together and self._left:
            last = len(self._left) == 1
            answer = await self.next()
            if last and answer.code == GO_AHEAD:  # nobody is left whom it could go to
                await self.channel.command(".")


async def answered(channel: Channel, *words: str) -> SMTPResponse:
    """The answer to a command, cut where it is long; NotReached where there is none."""
    try:
        code, text = await channel.command(*words)
    except (SMTPException, OSError) as problem:
        channel.sound = False
        raise NotReached(451, f"4.4.2 {channel.host.name}: {_told(problem)}") from problem
    return SMTPResponse(code, text[:ANSWER])


def _told(problem: Exception) -> str:
    """What an exception says, fit to be kept."""
    return _UNPRINTABLE.sub(" ", str(problem) or type(problem).__name__)[:ANSWER]


def _unfit(channel: Channel, to: To) -> Result | None:
    """Why this recipient cannot be named to this server."""
    if not written(to.address):
        return channel.refused(553, "5.1.3 Not an address")
    if needs_utf8(to.address) and not channel.offers("smtputf8"):
        return channel.refused(550, _no_utf8(channel, to.address))
    return None


def written(address: str) -> str | None:
    """The address as a command has it; None where it cannot stand in one."""
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
    """The command that names the sender, with what the message needs; or why it cannot be sent."""
    options = list[str]()
    utf8 = letter.utf8 or any(needs_utf8(each) for each in (letter.sender, *_addresses(rest)))
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
    """The command that names a recipient."""
    asked = dsn_requests.of_recipient(to) if dsn else ()
    return " ".join([f"RCPT TO:<{on_wire(to.address)}>", *asked])


async def _sender(channel: Channel, said: _Said) -> Result | None:
    """Name the sender; a result where that was refused."""
    answer = await said.next()
    if answer.code == CLOSING:
        raise NotReached(answer.code, answer.message, down=True)
    channel.begun = answer.code == OK
    if answer.code == OK:
        return None
    await said.abandon()
    return channel.refused(_failing(answer.code), answer.message)


def _addresses(recipients: Sequence[To]) -> list[str]:
    return [to.address for to in recipients]


async def _named(said: _Said, recipients: Sequence[To], results: dict[int, Result]) -> list[To]:
    """Name the recipients; those that are refused get their result, the others are returned.

    One whose parameters may be what was refused gets none, and is not returned.
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
    """An answer that is no failure, where it makes no sense, is one that may pass."""
    return code if 400 <= code < 600 else 451  # noqa: PLR2004 - RFC 5321, section 4.2.1


async def _data(
    said: _Said,
    letter: Letter,
    accepted: Sequence[To],
    before_dot: Callable[[Sequence[int]], Awaitable[None]],
) -> dict[int, Result]:
    ids, channel = [to.delivery_id for to in accepted], said.channel
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
    """Send the message, all but the dot, no faster than it is taken."""
    async with aclosing(letter.pieces()) as pieces:
        async for piece in pieces:
            await _drained(channel)
            dotted = piece.replace(b"\n.", b"\n..")
            channel.wire.write(b"." + dotted if piece.startswith(b".") else dotted)


async def _drained(channel: Channel) -> None:
    """Wait until little lies unsent; SMTPServerDisconnected when nothing moves for long."""
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
