"""MTA-STS policies, read from an HTTPS server on loopback."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mail.mime.header_encoding import NamedAddress
from mail.network.dns_resolver import enable_dnssec
from mail.network.outbound_http import PRIVATE_HOST_TEXT
from mail.routing import mta_sts
from mail.routing.mx_hosts import OutboundSettings, Unroutable
from mail.routing.route_selection import RouteRequest, select_route
from models.errors import InvalidInput
from models.routing.mta_sts import MtaStsMode
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.mail.tls_certificates import (
    CertificatePair,
    client_tls_context,
    make_certificate,
    server_tls_context,
)
from tests.support.mail_servers.queue_worker import (
    State,
    queue_message,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.route_rows import make_mx_dns_server
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeSmtpServer,
    run_dns_server,
    run_smtp_server,
)

MX = "mx1.example.net"
POLICY_TEXT = "version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: {age}\r\n"
ROUTE_REQUEST = RouteRequest("ada@example.org", "carol@example.net", "example.net")


@dataclass
class PolicyServer:
    """An HTTPS server that publishes one policy."""

    policy_text: str = POLICY_TEXT.format(mode="enforce", mx=MX, age=86400 * 7)
    response_head: str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain"
    requests: list[str] = field(default_factory=list)
    port: int = 0

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(request.decode())
        body = self.policy_text.encode()
        writer.write(f"{self.response_head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    @asynccontextmanager
    async def serve(self, context: ssl.SSLContext) -> AsyncGenerator[None]:
        server = await asyncio.start_server(self.respond, "127.0.0.1", self.port, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()


class MtaStsTestDomain:
    """A domain with an MX host and a policy server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = make_certificate("authority", is_authority=True)
        self.dns_names = make_mx_dns_server("example.net", MX)
        self.dns_names.records["mta-sts.example.net", "A"] = ["127.0.0.1"]
        self.set_policy_id("1")
        self.server = FakeSmtpServer()
        self.set_certificate(make_certificate(MX, issuer=self.authority))
        self.policy_server = PolicyServer()

    def set_policy_id(self, policy_id: str) -> None:
        self.dns_names.records["_mta-sts.example.net", "TXT"] = [
            f'"v=STSv1; id={policy_id};"',
            '"other"',
        ]

    def set_certificate(self, certificate: CertificatePair) -> None:
        self.server.smtp_options = {"tls_context": server_tls_context(self.folder, certificate)}

    def policy_server_context(self, *names: str) -> ssl.SSLContext:
        return server_tls_context(
            self.folder,
            make_certificate(*(names or ("mta-sts.example.net",)), issuer=self.authority),
        )

    @property
    def settings(self) -> OutboundSettings:
        return OutboundSettings(
            make_resolver=self.dns_names.make_resolver,
            mx_port=self.server.port,
            trusted_context=client_tls_context(self.authority),
            mta_sts_port=self.policy_server.port,
            allows_private_sts_hosts=True,
        )


@pytest.fixture
async def domain(tmp_path: Path) -> AsyncGenerator[MtaStsTestDomain]:
    domain = MtaStsTestDomain(tmp_path)
    async with run_dns_server(domain.dns_names), run_smtp_server(domain.server):
        yield domain


async def policy_line(environment: Environment, settings: OutboundSettings) -> str:
    """Select a route and return its log line about the MTA-STS policy."""
    route = await select_route(environment, settings, ROUTE_REQUEST)
    (line,) = [line for line in route.route_log if line.startswith("MTA-STS of")]
    return line.removeprefix("MTA-STS of example.net: ")


async def deliver_message(
    ada: GraphQLClient, environment: Environment, settings: OutboundSettings
) -> tuple[State, Any]:
    async with run_queue_worker(environment, settings):
        row = (
            await wait_until_tried(
                environment, await queue_message(ada, NamedAddress("carol@example.net"))
            )
        )["carol"]
    return row.state, row.tls if row.state is State.DELIVERED else row.last_response


async def test_enforced_policy_is_applied(
    ada: GraphQLClient, environment: Environment, domain: MtaStsTestDomain
) -> None:
    async with domain.policy_server.serve(domain.policy_server_context()):
        state, tls = await deliver_message(ada, environment, domain.settings)
        assert (state, tls.endswith("(MTA-STS)")) == (State.DELIVERED, True)
        domain.set_certificate(make_certificate("elsewhere.example", issuer=domain.authority))
        state, response = await deliver_message(ada, environment, domain.settings)
        assert (state, response[:27]) == (State.DEFERRED, "4.7.5 TLS handshake failed:")
        domain.server.smtp_options = {}
        state, response = await deliver_message(ada, environment, domain.settings)
        assert (state, response) == (
            State.DEFERRED,
            "4.7.5 TLS handshake failed: STARTTLS not offered",
        )
    assert len(domain.policy_server.requests) == 1
    assert domain.policy_server.requests[0].startswith("GET /.well-known/mta-sts.txt HTTP/1.1\r\n")
    assert "Host: mta-sts.example.net" in domain.policy_server.requests[0]
    assert [mail.used_tls for mail in domain.server.messages] == [True]


async def test_mx_host_outside_policy_is_not_used(
    ada: GraphQLClient, environment: Environment, domain: MtaStsTestDomain
) -> None:
    domain.dns_names.records["example.net", "MX"] = [f"20 {MX}.", "10 evil.example."]
    domain.dns_names.records["evil.example", "A"] = ["127.0.0.1"]
    async with domain.policy_server.serve(domain.policy_server_context()):
        route = await select_route(environment, domain.settings, ROUTE_REQUEST)
        assert [next_hop.name for next_hop in route.next_hops] == [MX]
        del domain.dns_names.records["example.net", "MX"][0]
        state, response = await deliver_message(ada, environment, domain.settings)
    assert (state, response) == (
        State.DEFERRED,
        "4.7.5 The MTA-STS policy does not match evil.example",
    )


async def test_cached_policy_is_used_until_it_expires(
    environment: Environment, domain: MtaStsTestDomain, clock: ManualClock
) -> None:
    async with domain.policy_server.serve(domain.policy_server_context()):
        assert await policy_line(environment, domain.settings) == "policy 1, fetched now (enforce)"
        assert await policy_line(environment, domain.settings) == "policy 1 (enforce)"
        domain.policy_server.policy_text = POLICY_TEXT.format(
            mode="testing", mx="*.example.net", age=86400 * 7
        )
        domain.set_policy_id("2")
        assert await policy_line(environment, domain.settings) == "policy 2, fetched now (testing)"
        domain.policy_server.policy_text = POLICY_TEXT.format(
            mode="enforce", mx="*.example.net", age=86400 * 7
        )
        domain.set_policy_id("3")
        assert await policy_line(environment, domain.settings) == "policy 3, fetched now (enforce)"
        domain.policy_server.response_head = "HTTP/1.1 301 Moved\r\nLocation: https://evil.example/"
        domain.set_policy_id("4")
        assert (await policy_line(environment, domain.settings)).startswith(
            "cached policy: Unexpected status"
        )
        request_count = len(domain.policy_server.requests)
        assert await policy_line(environment, domain.settings) == "cached policy (enforce)"
        # No request follows a failed one at once.
        assert len(domain.policy_server.requests) == request_count
        del domain.dns_names.records["_mta-sts.example.net", "TXT"]
        clock.tick(days=6)
        assert await policy_line(environment, domain.settings) == "cached policy (enforce)"
        clock.tick(days=2)
        assert await policy_line(environment, domain.settings) == "no policy"
        domain.set_policy_id("5")
        assert await policy_line(environment, domain.settings) == (
            "policy not available: Unexpected status 301"
        )
        assert await policy_line(environment, domain.settings) == "policy not available"
        domain.policy_server.response_head = "HTTP/1.1 200 OK"
        clock.tick(minutes=6)
        assert await policy_line(environment, domain.settings) == "policy 5, fetched now (enforce)"


async def test_policy_is_refreshed_before_it_expires(
    environment: Environment, domain: MtaStsTestDomain, clock: ManualClock
) -> None:
    async with domain.policy_server.serve(domain.policy_server_context()):
        await policy_line(environment, domain.settings)
        clock.tick(days=2)
        assert await policy_line(environment, domain.settings) == "policy 1, fetched now (enforce)"
    clock.tick(days=6)
    # The policy server is stopped.
    assert "cached policy" in await policy_line(environment, domain.settings)


@pytest.mark.parametrize(
    ("policy_text", "response_head", "names"),
    [
        ("x" * (mta_sts.MAX_POLICY_BYTES + 1), "HTTP/1.1 200 OK", ()),
        ("version: STSv2\nmode: enforce\nmx: a.example\nmax_age: 1", "HTTP/1.1 200 OK", ()),
        (POLICY_TEXT.format(mode="enforce", mx=MX, age=1), "HTTP/1.1 404 Gone", ()),
        (POLICY_TEXT.format(mode="enforce", mx=MX, age=1), "HTTP/1.1 200 OK", ("example.net",)),
        (POLICY_TEXT.format(mode="enforce", mx=MX, age=1), "nonsense", ()),
    ],
    ids=["large", "version", "missing", "certificate", "garbage"],
)
async def test_unreadable_policy_is_not_applied(
    environment: Environment,
    domain: MtaStsTestDomain,
    policy_text: str,
    response_head: str,
    names: tuple[str, ...],
) -> None:
    domain.policy_server.policy_text, domain.policy_server.response_head = (
        policy_text,
        response_head,
    )
    async with domain.policy_server.serve(domain.policy_server_context(*names)):
        assert (await policy_line(environment, domain.settings)).startswith("policy not available")


async def test_policy_host_with_private_address_is_refused(
    environment: Environment, domain: MtaStsTestDomain
) -> None:
    async with domain.policy_server.serve(domain.policy_server_context()):
        settings = replace(domain.settings, allows_private_sts_hosts=False)
        assert (
            await policy_line(environment, settings)
            == f"policy not available: {PRIVATE_HOST_TEXT.removesuffix('.')}"
        )
    assert domain.policy_server.requests == []


async def test_dane_takes_precedence_over_mta_sts(
    ada: GraphQLClient, environment: Environment, domain: MtaStsTestDomain
) -> None:
    certificate = make_certificate("elsewhere.example")
    domain.set_certificate(certificate)
    record = f"_{domain.server.port}._tcp.{MX}", "TLSA"
    domain.dns_names.records[record] = [f"3 1 1 {certificate.digest()}"]
    async with domain.policy_server.serve(domain.policy_server_context()):
        settings = replace(
            domain.settings,
            trusts_dnssec=True,
            make_resolver=lambda: enable_dnssec(domain.dns_names.make_resolver()),
        )
        state, tls = await deliver_message(ada, environment, settings)
    assert (state, tls.endswith("(DANE)")) == (State.DELIVERED, True)
    assert domain.policy_server.requests == []


@pytest.mark.parametrize("mode", ["testing", "none"])
async def test_policy_in_testing_or_none_mode_is_not_enforced(
    ada: GraphQLClient, environment: Environment, domain: MtaStsTestDomain, mode: str
) -> None:
    domain.policy_server.policy_text = POLICY_TEXT.format(mode=mode, mx="other.example", age=600)
    domain.server.smtp_options = {}
    async with domain.policy_server.serve(domain.policy_server_context()):
        assert await deliver_message(ada, environment, domain.settings) == (
            State.DELIVERED,
            None,
        )


async def test_policy_without_matching_mx_host_is_temporary_failure(
    environment: Environment, domain: MtaStsTestDomain
) -> None:
    domain.policy_server.policy_text = POLICY_TEXT.format(
        mode="enforce", mx="other.example", age=600
    )
    async with domain.policy_server.serve(domain.policy_server_context()):
        with pytest.raises(Unroutable) as problem:
            await select_route(environment, domain.settings, ROUTE_REQUEST)
    assert (problem.value.reply_code, problem.value.reply_text[:5]) == (451, "4.7.5")


def test_policy_is_parsed() -> None:
    mx = "mx: Mail.Example.com\nmx: *.example.net"
    text = f"version: STSv1\nmode: enforce\n{mx}\nmax_age: 9999999999\nfuture: x"
    parsed = mta_sts.parse_policy(text.encode())
    assert (parsed.mode, parsed.max_age) == (MtaStsMode.ENFORCE, mta_sts.MAX_POLICY_AGE)
    assert parsed.is_listed("mail.example.com")
    assert parsed.is_listed("MX.example.net.")
    for name in ("example.net", "a.b.example.net", "mail.example.com.evil.example"):
        assert not parsed.is_listed(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version: STSv1",
        "version: STSv1\nmode: enforce\nmax_age: 1",
        "version: STSv1\nmode: strict\nmx: a.example\nmax_age: 1",
        "version: STSv1\nmode: enforce\nmx: a.example\nmax_age: -1",
        "version: STSv1\nmode: enforce\nmx: a.example\nmax_age: ٣",
        "version: STSv1\nmode: enforce\nmx: *.*.example\nmax_age: 1",
        "version: STSv1\nmode: enforce\nmx: a b\nmax_age: 1",
    ],
)
def test_malformed_policy_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        mta_sts.parse_policy(text.encode())
