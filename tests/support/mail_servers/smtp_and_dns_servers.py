"""A scripted SMTP server and a DNS server on loopback."""

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

from tests.support.time_limits import HANG_SECONDS

SERVER_PEM = Path(__file__).with_name("server.pem")


@dataclass(frozen=True, slots=True)
class ReceivedSmtpMessage:
    """A message that the SMTP server accepted."""

    sender: str
    to: list[str]
    raw: bytes
    mail_options: list[str]
    greeting_name: str
    used_tls: bool


@dataclass
class FakeSmtpServer:
    """An SMTP server. `rcpt_replies` are replies to RCPT by local part; the default is 250."""

    rcpt_replies: dict[str, str] = field(default_factory=dict)
    # replies to DATA, one for each message; then 250
    data_replies: list[str] = field(default_factory=list)
    hangs_up_after_data: bool = False  # closes the connection once after DATA, without a reply
    data_gate: asyncio.Event | None = None  # the reply to DATA waits for it
    smtp_options: dict[str, Any] = field(default_factory=lambda: {"enable_SMTPUTF8": True})
    messages: list[ReceivedSmtpMessage] = field(default_factory=list)
    session_count: int = 0  # connections so far
    logins: list[str] = field(default_factory=list)
    data_count: int = 0  # messages received, accepted or not
    port: int = 0

    async def handle_RCPT(  # noqa: N802
        self, _server: Any, _session: Any, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        reply = self.rcpt_replies.get(address.partition("@")[0], "250 2.1.5 OK")
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802
        self.data_count += 1
        if self.data_gate:
            await self.data_gate.wait()
        if self.data_replies:
            return self.data_replies.pop(0)
        assert isinstance(envelope.content, bytes)
        self.messages.append(
            ReceivedSmtpMessage(
                envelope.mail_from or "",
                envelope.rcpt_tos,
                envelope.content,
                envelope.mail_options,
                session.host_name,
                session.ssl is not None,
            )
        )
        if self.hangs_up_after_data:
            self.hangs_up_after_data = False
            server.transport.abort()
        return "250 2.0.0 Taken"

    def authenticate(
        self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any
    ) -> Any:
        self.logins.append(data.login.decode())
        return AuthResult(success=data.password == b"secret", handled=False)

    def make_session(self) -> SMTP:
        """Make the protocol of a new connection."""
        self.session_count += 1
        return SMTP(self, hostname="there", **self.smtp_options)


@asynccontextmanager
async def run_smtp_server(
    server: FakeSmtpServer, host: str = "127.0.0.1", port: int = 0, *, tls: bool = False
) -> AsyncGenerator[FakeSmtpServer]:
    """Run an SMTP server, on a free port by default; with `tls` from the first byte."""
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        server.make_session, host, port, ssl=server_tls_context() if tls else None
    )
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


def server_tls_context() -> ssl.SSLContext:
    """A TLS context with the certificate of the test server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SERVER_PEM)
    return context


def trusting_tls_context() -> ssl.SSLContext:
    """A client context that trusts the test server, for mx1.example.net and 127.0.0.1."""
    return ssl.create_default_context(cafile=SERVER_PEM)


@dataclass
class FakeDnsServer(asyncio.DatagramProtocol):
    """A DNS server with records by name and type.

    Names in `servfail_names` get SERVFAIL, names in `silent_names` no reply.
    """

    records: dict[tuple[str, str], list[str]]
    servfail_names: set[str] = field(default_factory=set)
    silent_names: set[str] = field(default_factory=set)
    dnssec_names: set[str] | None = None  # names with the AD flag; None: all
    port: int = 0
    transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name, record_type = question.name.to_text(True), dns.rdatatype.to_text(question.rdtype)
        response = dns.message.make_response(query)
        if name in self.silent_names:
            return
        if name in self.servfail_names:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif record_data := self.records.get((name, record_type)):
            response.answer.append(
                dns.rrset.from_text(question.name, 60, "IN", record_type, *record_data)
            )
        elif not any(record_name == name for record_name, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        self.set_dnssec_status(query, response, name)
        self.transport.sendto(response.to_wire(), addr)

    def set_dnssec_status(
        self, query: dns.message.Message, response: dns.message.Message, name: str
    ) -> None:
        """Set the AD flag of a signed name if the query asks for it (RFC 6840, section 5.8)."""
        is_requested = query.ednsflags & dns.flags.DO or query.flags & dns.flags.AD
        if is_requested and (self.dnssec_names is None or name in self.dnssec_names):
            response.flags |= dns.flags.AD

    def make_resolver(self) -> Resolver:
        """Make a resolver that asks this server."""
        resolver = Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self.port
        resolver.timeout = resolver.lifetime = 0.5 if self.silent_names else HANG_SECONDS
        return resolver


@asynccontextmanager
async def run_dns_server(server: FakeDnsServer, port: int = 0) -> AsyncGenerator[FakeDnsServer]:
    """Run a DNS server on this UDP port of 127.0.0.1, or on a free one."""
    loop = asyncio.get_running_loop()
    address = ("127.0.0.1", port)
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=address)
    server.port = transport.get_extra_info("sockname")[1]
    try:
        yield server
    finally:
        transport.close()
