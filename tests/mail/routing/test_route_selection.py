"""Which way mail takes: transports, relay hosts, the next hop, the servers of its domain."""

from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from mail.mime.header_encoding import NamedAddress
from mail.routing.mx_hosts import NextHop, OutboundSettings, TlsLevel, Unroutable, parse_next_hop
from mail.routing.password_contexts import relay_host_context, transport_context
from mail.routing.route_selection import HostPort, RouteRequest, parse_host_port, select_route
from models.domains.tables import Domain
from models.routing.tables import RelayHost, TlsPolicyLevel
from models.runtime.environment import Environment
from models.users.tables import User
from tests.conftest import Client
from tests.support.mail_servers.queue_worker import State, send, settled, working
from tests.support.mail_servers.route_rows import exchanged, policy, transport
from tests.support.mail_servers.smtp_and_dns_servers import (
    Names,
    Server,
    answering,
    listening,
    server_tls,
    trust,
)

TO = RouteRequest("ada@example.org", "carol@deep.mail.example.net", "deep.mail.example.net")


async def first(
    world: Environment, asked: RouteRequest = TO, route: OutboundSettings | None = None
) -> NextHop:
    return (
        await select_route(world, route or OutboundSettings(parse_next_hop("hop.example")), asked)
    ).next_hops[0]


async def relay_of(world: Environment, domain: str, **more: Any) -> int:
    """A relay host that a domain names."""
    key = world.new_id()
    secret = (
        world.secret_box.encrypt("secret", relay_host_context(key))
        if more.get("username")
        else None
    )
    usual = {"host": "relay.example", "secret": secret}
    row = RelayHost(id=key, created_at=world.now(), **(usual | more))
    async with world.write_session() as session:
        session.add(row)
        named = update(Domain).where(col(Domain.name) == domain)
        await session.exec(named.values(relay_host_id=key))
    return key


async def test_the_nearest_transport_is_taken(world: Environment) -> None:
    await transport(world, "/^carol@.*example\\.net$/", "pattern.example")
    assert (await first(world)).name == "pattern.example"
    for destination in (".net", ".example.net", ".mail.example.net", "deep.mail.example.net"):
        await transport(world, destination, f"by{destination.replace('.', '-')}.example")
        assert (await first(world)).name == f"by{destination.replace('.', '-')}.example"
    await transport(world, "carol@deep.mail.example.net", "[192.0.2.1]:2525")
    found = await first(world)
    assert (found.name, found.port, found.is_relay) == ("192.0.2.1", 2525, True)
    other = RouteRequest("", "dave@deep.mail.example.net", "deep.mail.example.net")
    assert (await first(world, other)).name == "bydeep-mail-example-net.example"
    unlike = RouteRequest("", "dave@mail.example.com", "mail.example.com")
    assert (await first(world, unlike)).name == "hop.example"


@pytest.mark.usefixtures("ada")
async def test_what_is_not_active_is_no_way(world: Environment) -> None:
    await transport(world, "deep.mail.example.net", "there.example", active=False)
    await relay_of(world, "example.org", active=False)
    assert (await first(world)).name == "hop.example"


async def test_a_domain_above_is_not_the_domain_itself(world: Environment) -> None:
    await transport(world, ".example.net", "above.example")
    itself = RouteRequest("", "dave@example.net", "example.net")
    assert (await first(world, itself)).name == "hop.example"


@pytest.mark.usefixtures("ada")
async def test_the_relay_host_is_that_of_the_senders_domain(world: Environment) -> None:
    await relay_of(world, "example.org", username="us", port=587)
    found = await first(world)
    assert found == NextHop(
        "relay.example", 587, "relay.example", TlsLevel.REQUIRED, "us", "secret", is_relay=True
    )
    assert "secret" not in repr(found)
    for sender in ("", "eve@example.com"):
        asked = RouteRequest(sender, TO.recipient, TO.domain)
        assert (await first(world, asked)).name == "hop.example"
    await transport(world, TO.domain, "there.example")
    assert (await first(world)).name == "there.example"


@pytest.mark.usefixtures("ada")
async def test_a_password_goes_nowhere_in_the_clear(world: Environment) -> None:
    key = await relay_of(world, "example.org", username="us", tls=False)
    assert (await first(world)).tls_level is TlsLevel.REQUIRED
    await policy(world, "[relay.example]:25", TlsPolicyLevel.NONE)
    assert (await first(world)).tls_level is TlsLevel.REQUIRED
    async with world.write_session() as session:
        row = await session.get(RelayHost, key)
        assert row is not None
        row.secret = world.secret_box.encrypt("secret", transport_context(key))
    with pytest.raises(Unroutable) as problem:
        await first(world)
    assert problem.value.reply_code == 451


async def test_a_transport_may_look_up_the_servers_of_its_next_hop(world: Environment) -> None:
    names = exchanged("far.example", "mx1.far.example", "mx2.far.example")
    await transport(world, TO.domain, "far.example:2525", lookup_mx=True)
    async with answering(names):
        way = await select_route(world, OutboundSettings(make_resolver=names.resolver), TO)
    assert [(each.name, each.address, each.port) for each in way.next_hops] == [
        ("mx1.far.example", "127.0.0.1", 2525),
        ("mx2.far.example", "127.0.0.2", 2525),
    ]
    assert way.destination == "far.example"
    assert way.route_log[0] == "recipient: transport deep.mail.example.net to far.example:2525"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mail.example", HostPort("mail.example", 25, is_bracketed=False)),
        ("Mail.example:587", HostPort("mail.example", 587, is_bracketed=False)),
        ("[mail.example]", HostPort("mail.example", 25, is_bracketed=True)),
        ("[2001:db8::1]:465", HostPort("2001:db8::1", 465, is_bracketed=True)),
    ],
)
def test_next_hops_are_read(text: str, found: HostPort) -> None:
    assert parse_host_port(text) == found


@pytest.mark.parametrize("text", ["", "[]", "[a", "[a]b", "a:b", "a:0", "a:65536", ":25", "a:٣"])
def test_what_is_no_next_hop_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_host_port(text)


async def test_recipients_of_one_message_take_different_ways(
    ada: Client, world: Environment
) -> None:
    async with listening(Server()) as usual, listening(Server()) as special:
        await transport(world, "dave@example.net", f"[127.0.0.1]:{special.port}")
        route = OutboundSettings(parse_next_hop(f"smtp://127.0.0.1:{usual.port}"))
        async with working(world, route):
            rows = await settled(world, await send(ada))
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert [mail.to for mail in usual.mails] == [["carol@example.net"]]
    assert [mail.to for mail in special.mails] == [["dave@example.net"]]


async def test_a_relay_host_is_signed_in_to(ada: Client, world: Environment) -> None:
    async with listening(Server()) as there:
        there.features = {"tls_context": server_tls(), "authenticator": there.authenticate}
        await relay_of(world, "example.org", username="us", host="127.0.0.1", port=there.port)
        async with working(world, OutboundSettings(trusted_context=trust())):
            rows = await settled(world, await send(ada))
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert there.logins == ["us"]
    assert there.mails[0].encrypted
    assert rows["carol"].tls.endswith("(verified)")


async def test_who_wants_tls_never_sends_in_the_clear(ada: Client, world: Environment) -> None:
    async with world.write_session() as session:
        wanting = update(User).where(col(User.id) == ada.user.id)
        await session.exec(wanting.values(tls_enforce_out=True))
    names = exchanged("example.net", "mx1.example.net", "mx2.example.net")
    clear = Server()
    async with answering(names), listening(clear):
        route = OutboundSettings(make_resolver=names.resolver, mx_port=clear.port)
        async with working(world, route):
            rows = await settled(world, await send(ada, NamedAddress("carol@example.net")))
            assert (rows["carol"].state, rows["carol"].last_code) == (State.DEFERRED, 451)
            assert clear.mails == []
        better = Server(features={"tls_context": server_tls()})
        async with listening(better, "127.0.0.2", clear.port), working(world, route):
            rows = await settled(world, await send(ada, NamedAddress("dave@example.net")))
    assert (rows["dave"].state, rows["dave"].mx) == (State.DELIVERED, "mx2.example.net")
    assert rows["dave"].tls.startswith("TLSv1.3 ")
    assert clear.mails == []


async def test_ourselves_among_the_servers_leave_only_better_ones(world: Environment) -> None:
    records = {
        ("backup.example", "MX"): ["10 main.example.", "20 mx.example.org.", "20 other.example."],
        ("main.example", "A"): ["127.0.0.1"],
        ("other.example", "A"): ["127.0.0.2"],
    }
    names = Names(records)
    async with answering(names):
        asked = RouteRequest("", "carol@backup.example", "backup.example")
        way = await select_route(world, OutboundSettings(make_resolver=names.resolver), asked)
    assert [each.name for each in way.next_hops] == ["main.example"]
