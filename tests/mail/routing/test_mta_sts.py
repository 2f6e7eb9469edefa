"""Policies that domains publish (MTA-STS), read from a real HTTPS server on loopback."""

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
from mail.routing import mta_sts
from mail.routing.mx_hosts import OutboundSettings, Unroutable
from mail.routing.route_selection import RouteRequest, select_route
from models.errors import InvalidInput
from models.routing.mta_sts import MtaStsMode
from models.runtime.environment import Environment
from tests.conftest import Client, Clock
from tests.support.mail.tls_certificates import Pair, made, shown, trusting
from tests.support.mail_servers.queue_worker import State, send, settled, working
from tests.support.mail_servers.route_rows import exchanged
from tests.support.mail_servers.smtp_and_dns_servers import Server, answering, listening

MX = "mx1.example.net"
PAGE = "version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: {age}\r\n"
ASKED = RouteRequest("ada@example.org", "carol@example.net", "example.net")


@dataclass
class Publisher:
    """Who publishes the policy: an HTTPS server of one page."""

    page: str = PAGE.format(mode="enforce", mx=MX, age=86400 * 7)
    head: str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain"
    asked: list[str] = field(default_factory=list)
    port: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(request.decode())
        body = self.page.encode()
        writer.write(f"{self.head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    @asynccontextmanager
    async def publishing(self, context: ssl.SSLContext) -> AsyncGenerator[None]:
        server = await asyncio.start_server(self.answer, "127.0.0.1", self.port, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()


class Far:
    """A domain with a server for mail and one for its policy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = made("authority", authority=True)
        self.names = exchanged("example.net", MX)
        self.names.records["mta-sts.example.net", "A"] = ["127.0.0.1"]
        self.id("1")
        self.server = Server()
        self.show(made(MX, by=self.authority))
        self.publisher = Publisher()

    def id(self, text: str) -> None:
        self.names.records["_mta-sts.example.net", "TXT"] = [f'"v=STSv1; id={text};"', '"other"']

    def show(self, own: Pair) -> None:
        self.server.features = {"tls_context": shown(self.folder, own)}

    def context(self, *names: str) -> ssl.SSLContext:
        return shown(self.folder, made(*(names or ("mta-sts.example.net",)), by=self.authority))

    @property
    def route(self) -> OutboundSettings:
        return OutboundSettings(
            make_resolver=self.names.resolver,
            mx_port=self.server.port,
            trusted_context=trusting(self.authority),
            mta_sts_port=self.publisher.port,
            allows_private_sts_hosts=True,
        )


@pytest.fixture
async def far(tmp_path: Path) -> AsyncGenerator[Far]:
    there = Far(tmp_path)
    async with answering(there.names), listening(there.server):
        yield there


async def told(world: Environment, route: OutboundSettings) -> str:
    """What the way says of the policy."""
    way = await select_route(world, route, ASKED)
    (line,) = [line for line in way.route_log if line.startswith("MTA-STS of")]
    return line.removeprefix("MTA-STS of example.net: ")


async def came(ada: Client, world: Environment, route: OutboundSettings) -> tuple[State, Any]:
    async with working(world, route):
        row = (await settled(world, await send(ada, NamedAddress("carol@example.net"))))["carol"]
    return row.state, row.tls if row.state is State.DELIVERED else row.last_response


async def test_what_is_enforced_is_kept_to(ada: Client, world: Environment, far: Far) -> None:
    async with far.publisher.publishing(far.context()):
        state, tls = await came(ada, world, far.route)
        assert (state, tls.endswith("(MTA-STS)")) == (State.DELIVERED, True)
        far.show(made("elsewhere.example", by=far.authority))
        state, text = await came(ada, world, far.route)
        assert (state, text[:17]) == (State.DEFERRED, "4.7.5 TLS failed:")
        far.server.features = {}
        state, text = await came(ada, world, far.route)
        assert (state, text) == (State.DEFERRED, "4.7.5 TLS failed: not offered")
    assert len(far.publisher.asked) == 1
    assert far.publisher.asked[0].startswith("GET /.well-known/mta-sts.txt HTTP/1.1\r\n")
    assert "Host: mta-sts.example.net" in far.publisher.asked[0]
    assert [mail.encrypted for mail in far.server.mails] == [True]


async def test_servers_it_does_not_name_get_nothing(
    ada: Client, world: Environment, far: Far
) -> None:
    far.names.records["example.net", "MX"] = [f"20 {MX}.", "10 evil.example."]
    far.names.records["evil.example", "A"] = ["127.0.0.1"]
    async with far.publisher.publishing(far.context()):
        way = await select_route(world, far.route, ASKED)
        assert [each.name for each in way.next_hops] == [MX]
        del far.names.records["example.net", "MX"][0]
        state, text = await came(ada, world, far.route)
    assert (state, text) == (State.DEFERRED, "4.7.5 MTA-STS does not name evil.example")


async def test_it_holds_while_its_domain_says_nothing(
    world: Environment, far: Far, clock: Clock
) -> None:
    async with far.publisher.publishing(far.context()):
        assert await told(world, far.route) == "its policy 1, read just now (enforce)"
        assert await told(world, far.route) == "its policy 1 (enforce)"
        far.publisher.page = PAGE.format(mode="testing", mx="*.example.net", age=86400 * 7)
        far.id("2")
        assert await told(world, far.route) == "its policy 2, read just now (testing)"
        far.publisher.page = PAGE.format(mode="enforce", mx="*.example.net", age=86400 * 7)
        far.id("3")
        assert await told(world, far.route) == "its policy 3, read just now (enforce)"
        far.publisher.head = "HTTP/1.1 301 Moved\r\nLocation: https://evil.example/"
        far.id("4")
        assert (await told(world, far.route)).startswith("its policy as it was read before: status")
        asked = len(far.publisher.asked)
        assert await told(world, far.route) == "its policy as it was read before (enforce)"
        assert len(far.publisher.asked) == asked  # nobody is asked again at once
        del far.names.records["_mta-sts.example.net", "TXT"]
        clock.tick(days=6)
        assert await told(world, far.route) == "its policy as it was read before (enforce)"
        clock.tick(days=2)
        assert await told(world, far.route) == "no policy"
        far.id("5")
        assert (await told(world, far.route)).startswith("its policy could not be read: status 301")
        assert await told(world, far.route) == "its policy could not be read"
        far.publisher.head = "HTTP/1.1 200 OK"
        clock.tick(minutes=6)
        assert await told(world, far.route) == "its policy 5, read just now (enforce)"


async def test_a_policy_is_read_again_before_it_ends(
    world: Environment, far: Far, clock: Clock
) -> None:
    async with far.publisher.publishing(far.context()):
        await told(world, far.route)
        clock.tick(days=2)
        assert await told(world, far.route) == "its policy 1, read just now (enforce)"
    clock.tick(days=6)
    assert "as it was read before" in await told(world, far.route)  # nobody is there


@pytest.mark.parametrize(
    ("page", "head", "names"),
    [
        ("x" * (mta_sts.MAX_POLICY_BYTES + 1), "HTTP/1.1 200 OK", ()),
        ("version: STSv2\nmode: enforce\nmx: a.example\nmax_age: 1", "HTTP/1.1 200 OK", ()),
        (PAGE.format(mode="enforce", mx=MX, age=1), "HTTP/1.1 404 Gone", ()),
        (PAGE.format(mode="enforce", mx=MX, age=1), "HTTP/1.1 200 OK", ("example.net",)),
        (PAGE.format(mode="enforce", mx=MX, age=1), "nonsense", ()),
    ],
    ids=["large", "version", "missing", "certificate", "garbage"],
)
async def test_what_is_no_policy_asks_for_nothing(
    world: Environment, far: Far, page: str, head: str, names: tuple[str, ...]
) -> None:
    far.publisher.page, far.publisher.head = page, head
    async with far.publisher.publishing(far.context(*names)):
        assert (await told(world, far.route)).startswith("its policy could not be read")


async def test_our_own_networks_are_not_asked(world: Environment, far: Far) -> None:
    async with far.publisher.publishing(far.context()):
        outward = replace(far.route, allows_private_sts_hosts=False)
        assert await told(world, outward) == "its policy could not be read: the host is inside"
    assert far.publisher.asked == []


async def test_dane_comes_first(ada: Client, world: Environment, far: Far) -> None:
    own = made("elsewhere.example")
    far.show(own)
    record = f"_{far.server.port}._tcp.{MX}", "TLSA"
    far.names.records[record] = [f"3 1 1 {own.digest()}"]
    async with far.publisher.publishing(far.context()):
        route = replace(
            far.route, trusts_dnssec=True, make_resolver=lambda: enable_dnssec(far.names.resolver())
        )
        state, tls = await came(ada, world, route)
    assert (state, tls.endswith("(DANE)")) == (State.DELIVERED, True)
    assert far.publisher.asked == []


@pytest.mark.parametrize("mode", ["testing", "none"])
async def test_what_is_not_enforced_keeps_nothing_back(
    ada: Client, world: Environment, far: Far, mode: str
) -> None:
    far.publisher.page = PAGE.format(mode=mode, mx="other.example", age=600)
    far.server.features = {}
    async with far.publisher.publishing(far.context()):
        assert await came(ada, world, far.route) == (State.DELIVERED, None)


async def test_no_server_left_is_unroutable_for_now(world: Environment, far: Far) -> None:
    far.publisher.page = PAGE.format(mode="enforce", mx="other.example", age=600)
    async with far.publisher.publishing(far.context()):
        with pytest.raises(Unroutable) as problem:
            await select_route(world, far.route, ASKED)
    assert (problem.value.reply_code, problem.value.reply_text[:5]) == (451, "4.7.5")


def test_a_policy_is_read() -> None:
    mx = "mx: Mail.Example.com\nmx: *.example.net"
    text = f"version: STSv1\nmode: enforce\n{mx}\nmax_age: 9999999999\nfuture: x"
    found = mta_sts.parse_policy(text.encode())
    assert (found.mode, found.max_age) == (MtaStsMode.ENFORCE, mta_sts.MAX_POLICY_AGE)
    assert found.is_listed("mail.example.com")
    assert found.is_listed("MX.example.net.")
    for name in ("example.net", "a.b.example.net", "mail.example.com.evil.example"):
        assert not found.is_listed(name)


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
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        mta_sts.parse_policy(text.encode())
