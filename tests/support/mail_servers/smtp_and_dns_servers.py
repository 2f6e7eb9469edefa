"""Neighbours on loopback: a mail server that answers as told, and a name server."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from aiosmtpd.smtp import SMTP, AuthResult, Envelope
from dns.asyncresolver import Resolver

PEM = Path(__file__).with_name("server.pem")


@dataclass(frozen=True, slots=True)
class Mail:
    """What the server took."""

    sender: str
    to: list[str]
    raw: bytes
    options: list[str]
    helo: str
    encrypted: bool


@dataclass
class Server:
    """A mail server. `replies` are for recipients, by their local part; else they are taken."""

    replies: dict[str, str] = field(default_factory=dict)
    after_dot: list[str] = field(default_factory=list)  # replies, one each; then 250
    hang_up: bool = False  # after the dot, once, without a word
    gate: asyncio.Event | None = None  # the answer to the dot waits for it
    features: dict[str, Any] = field(default_factory=lambda: {"enable_SMTPUTF8": True})
    mails: list[Mail] = field(default_factory=list)
    sessions: int = 0
    logins: list[str] = field(default_factory=list)
    dots: int = 0
    port: int = 0

    async def handle_RCPT(  # noqa: N802
        self, _server: Any, _session: Any, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        reply = self.replies.get(address.partition("@")[0], "250 2.1.5 OK")
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802
        self.dots += 1
        if self.gate:
            await self.gate.wait()
        if self.after_dot:
            return self.after_dot.pop(0)
        assert isinstance(envelope.content, bytes)
        self.mails.append(
            Mail(
                envelope.mail_from or "",
                envelope.rcpt_tos,
                envelope.content,
                envelope.mail_options,
                session.host_name,
                session.ssl is not None,
            )
        )
        if self.hang_up:
            self.hang_up = False
            server.transport.abort()
        return "250 2.0.0 Taken"

    def authenticate(
        self, _server: Any, _session: Any, _envelope: Any, _how: str, data: Any
    ) -> Any:
        self.logins.append(data.login.decode())
        return AuthResult(success=data.password == b"secret", handled=False)

    def session(self) -> SMTP:
        self.sessions += 1
        return SMTP(self, hostname="there", **self.features)


@asynccontextmanager
async def listening(
    server: Server, host: str = "127.0.0.1", port: int = 0, *, tls: bool = False
) -> AsyncGenerator[Server]:
    """Listen, on any free port where none is named; with `tls` from the first byte on."""
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        server.session, host, port, ssl=server_tls() if tls else None
    )
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    return context


def trust() -> ssl.SSLContext:
    """A client that trusts our server's certificate, for mx1.example.net and 127.0.0.1."""
    return ssl.create_default_context(cafile=PEM)


@dataclass
class Names(asyncio.DatagramProtocol):
    """A name server: records by name and type. SERVFAIL for `broken`, silence for `silent`."""

    records: dict[tuple[str, str], list[str]]
    broken: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    signed: set[str] | None = None  # names whose answers are checked; None: all, where asked for
    port: int = 0
    transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name, kind = question.name.to_text(True), dns.rdatatype.to_text(question.rdtype)
        answer = dns.message.make_response(query)
        if name in self.silent:
            return
        if name in self.broken:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif found := self.records.get((name, kind)):
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *found))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        if query.ednsflags & dns.flags.DO and (self.signed is None or name in self.signed):
            answer.flags |= dns.flags.AD
        self.transport.sendto(answer.to_wire(), addr)

    def resolver(self) -> Resolver:
        resolver = Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self.port
        resolver.timeout = resolver.lifetime = 0.5
        return resolver


@asynccontextmanager
async def answering(names: Names) -> AsyncGenerator[Names]:
    """Answer on a free UDP port of 127.0.0.1."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: names, local_addr=("127.0.0.1", 0))
    names.port = transport.get_extra_info("sockname")[1]
    try:
        yield names
    finally:
        transport.close()
