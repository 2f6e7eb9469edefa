"""The part of the SMTP server that MX server and submission share (RFC 5321).

It handles the client's network, TLS, the greeting and the Received field.
"""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from mail.envelope.client import Client
from mail.network.byte_stream import Vanished
from mail.network.ip_networks import network, within
from mail.smtp import proxy_protocol
from mail.smtp.connection_limits import Limits
from mail.smtp.line_protocol import Transaction
from mail.smtp.listener import Listener
from mail.smtp.received_header import HELLO, Hop
from mail.smtp.session import Conversation
from mail.tls.server_tls import Certificates, Tunnel
from models.runtime.concurrency_limits import Crowd, Seat
from models.runtime.environment import World

EACH = 20


@dataclass(frozen=True, slots=True)
class Terms:
    """The configuration of a listener. Without a certificate it offers no TLS."""

    limits: Limits = field(default_factory=Limits)
    each: int = EACH  # connections per network
    certificate: Certificates | None = None
    wrapped: bool = False  # TLS from the first byte
    proxies: tuple[str, ...] = ()  # networks of balancers that speak the PROXY protocol

    @property
    def secure(self) -> bool:
        """True if a connection that begins now can use TLS."""
        return self.certificate is not None and self.certificate.ready


class Smtp(Listener):
    """An SMTP listener with a limit of connections per network."""

    def __init__(self, world: World, spool: Path, terms: Terms) -> None:
        self.terms = terms
        self.crowd = Crowd(terms.limits.connections, terms.each)
        super().__init__(world, spool, terms.limits)

    @property
    def limits(self) -> Limits:
        """The limits of a session that begins now. The message size is a setting."""
        largest, limits = self.world.options.message_max, self.terms.limits
        return replace(limits, message_max=largest, budget=max(limits.budget, largest))


class SmtpSession(Conversation):
    """An SMTP session, without the delivery of messages."""

    def __init__(self, listener: Smtp) -> None:
        super().__init__(listener)
        self.terms = listener.terms
        self.ip: str | None = None
        self.helo = ""
        self.tls: str | None = None  # version and cipher
        self.user: str | None = None  # user who has signed in
        self._crowd = listener.crowd
        self._seat: Seat | None = None
        self._extended = False
        self._shaking = False
        self._tunnel: Tunnel | None = None
        self._verbs |= {"HELO": self._helo, "EHLO": self._ehlo, "STARTTLS": self._starttls}

    @property
    def client(self) -> Client:
        """The address, HELO name, TLS and user of the client."""
        return Client(self.ip, self.helo, self.tls, self.user)

    @property
    def network(self) -> str | None:
        """The network of the client, which limits apply to."""
        return network(self.ip)

    async def _opened(self) -> str:
        peer = cast("asyncio.Transport", self.transport).get_extra_info("peername")
        self.ip = str(peer[0]).partition("%")[0] if isinstance(peer, tuple) else None
        if within(self.ip, self.terms.proxies):
            self.ip = await proxy_protocol.real_ip(self._wire) or self.ip
        self._seat = self._crowd.enter(self.network)
        if self._seat is None:
            self._leaving = True
            return "421 4.7.0 Too many connections from your network, come back later"
        if self.terms.wrapped:
            if not self.terms.secure:
                raise Vanished  # no certificate yet, and plain text is not allowed
            await self._encrypt(self._wire.taken())
        return f"220 {self.hostname} ESMTP"

    def _forget(self, ended: asyncio.Task[None]) -> None:
        if self._seat is not None:
            self._seat.leave()
        super()._forget(ended)

    def _send(self, raw: bytes) -> None:
        if self._shaking:
            return  # the client could not read it during the handshake
        if self._tunnel is not None:
            self._tunnel.write(raw)
        else:
            super()._send(raw)

    async def _encrypt(self, came: bytes = b"") -> None:
        """Do the TLS handshake; `received` are bytes of it already read.

        Raises ConnectionClosed if the handshake fails.
        """
        assert self.terms.certificate is not None  # noqa: S101 - else it is not offered
        context = self.terms.certificate.context()
        tunnel = Tunnel(context, self._reader.read, super()._send, came)
        self._shaking = True
        self.tls = await tunnel.shake_hands()
        self._shaking, self._tunnel = False, tunnel
        self._wire.through(tunnel.read)
        self._reset_timeout()

    def dismiss(self, reply: str) -> None:
        """Cancel what the session does, send a reply and close the connection."""
        try:
            super().dismiss(reply)
        except ConnectionError:
            self.abort()

    def _offers(self) -> list[str]:
        offers = super()._offers()
        return offers if self.tls or not self.terms.secure else [*offers, "STARTTLS"]

    async def _helo(self, argument: str) -> str:
        return self._hello(argument, extended=False)

    async def _ehlo(self, argument: str) -> str:
        return self._hello(argument, extended=True)

    def _hello(self, argument: str, *, extended: bool) -> str:
        if not HELLO.fullmatch(argument):
            return f"501 5.5.4 Say {self.hello} and the name of your machine"
        self.helo, self._extended = argument, extended
        offers = self._greet()
        return offers if extended else f"250 {self.hostname}"

    async def _starttls(self, argument: str) -> str:
        """Start TLS and discard all earlier input (RFC 3207)."""
        if argument:
            return "501 5.5.4 STARTTLS stands alone"
        if not self.terms.secure:
            return "502 5.5.1 There is no TLS here"
        if self.tls:
            return "503 5.5.1 It is encrypted already"
        self._transaction, self._greeted, self.helo = None, False, ""
        await self.push("220 2.0.0 Begin")
        self._wire.taken()
        await self._encrypt()
        return ""

    def _hop(self, transaction: Transaction, key: str) -> bytes:
        """Return the Received field."""
        world = self.listener.world
        utf8 = transaction.utf8
        hop = Hop(self.client, self.hostname, key, world.now(), self._extended, utf8)
        return hop.field()
