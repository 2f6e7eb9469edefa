"""Ways out are tried against real servers, and nothing is sent."""

from dataclasses import replace

import pytest
from pydantic import SecretStr

from mail.outbound.route_test import run_route_test
from mail.routing.mx_hosts import OutboundSettings, outbound_settings_from_options, parse_next_hop
from mail.routing.password_contexts import relay_host_context, transport_context
from models.errors import NotFound
from models.routing.tables import RelayHost, Transport
from models.runtime.environment import Environment
from tests.support.mail_servers.route_rows import exchanged
from tests.support.mail_servers.smtp_and_dns_servers import (
    Server,
    answering,
    listening,
    server_tls,
    trust,
)

SENDER, FAR = "ada@example.org", "carol@example.net"


@pytest.mark.usefixtures("ada")
async def test_a_way_is_tried_up_to_the_recipient(world: Environment) -> None:
    names = exchanged("example.net", "mx1.example.net")
    server = Server({"gone": "550 5.1.1 No such user"}, features={"tls_context": server_tls()})
    async with answering(names), listening(server) as there:
        route = OutboundSettings(make_resolver=names.resolver, mx_port=there.port)
        good = await run_route_test(world, route, SENDER, FAR)
        bad = await run_route_test(world, route, SENDER, "gone@example.net")
        nowhere = await run_route_test(world, route, SENDER, "carol@example.com")
    assert good.is_accepted
    assert good.log_lines == [
        "example.net: MX 10 mx1.example.net (127.0.0.1)",
        "MTA-STS of example.net: no policy",
        "TLS to mx1.example.net: OPPORTUNISTIC",
        f"connecting to mx1.example.net (127.0.0.1), port {there.port}",
        good.log_lines[4],
        "it offers: 8BITMIME, AUTH, HELP, SIZE",
        "> MAIL FROM:<ada@example.org>",
        "< 250 OK",
        "> RCPT TO:<carol@example.net>",
        "< 250 2.1.5 OK",
        "> RSET",
        "< 250 OK",
    ]
    assert good.log_lines[4].startswith("encrypted: TLSv1.3 ")
    assert not bad.is_accepted
    assert "< 550 5.1.1 No such user" in bad.log_lines
    assert nowhere.log_lines[-1] == "no way: 550 5.1.2 There is no domain example.com"
    assert there.mails == []


@pytest.mark.usefixtures("ada")
async def test_a_relay_host_is_tried_with_its_password_which_is_not_told(
    world: Environment,
) -> None:
    features = {"tls_context": server_tls(), "auth_require_tls": True}
    async with listening(Server()) as there:
        there.features = {**features, "authenticator": there.authenticate}
        for word, ok in (("secret", True), ("hunter2", False)):
            key = world.new_id()
            relay = RelayHost(
                id=key,
                host="127.0.0.1",
                port=there.port,
                username="us",
                secret=world.secret_box.encrypt(word, relay_host_context(key)),
                active=False,
                created_at=world.now(),
            )
            async with world.write_session() as session:
                session.add(relay)
            probed = await run_route_test(
                world, OutboundSettings(trusted_context=trust()), SENDER, FAR, relay_host_id=key
            )
            assert probed.is_accepted is ok, probed.log_lines
            assert word not in "\n".join(probed.log_lines)
            assert "signing in as us" in probed.log_lines
    assert probed.log_lines[-1].startswith("failed: 454 4.7.0 Our password was refused")
    assert there.mails == []


@pytest.mark.usefixtures("ada")
async def test_a_transport_is_tried_without_a_recipient(world: Environment) -> None:
    async with listening(Server()) as there:
        key = world.new_id()
        row = Transport(
            id=key,
            destination="example.com",
            next_hop=f"[127.0.0.1]:{there.port}",
            created_at=world.now(),
        )
        async with world.write_session() as session:
            session.add(row)
        probed = await run_route_test(world, OutboundSettings(), transport_id=key)
        async with world.write_session() as session:
            again = await session.get(Transport, key)
            assert again is not None
            again.username = "us"
            again.secret = world.secret_box.encrypt("secret", transport_context(key))
        unsafe = await run_route_test(world, OutboundSettings(), transport_id=key)
    assert probed.is_accepted
    assert probed.log_lines[-4:] == ["> MAIL FROM:<>", "< 250 OK", "> RSET", "< 250 OK"]
    assert not unsafe.is_accepted
    assert "4.7.5 TLS failed: not offered" in unsafe.log_lines[-1]
    assert there.logins == []


@pytest.mark.usefixtures("ada")
async def test_what_is_not_there_cannot_be_tried(world: Environment) -> None:
    for relay_host, transport in ((1, None), (None, 1), (None, None)):
        with pytest.raises(NotFound):
            await run_route_test(
                world, OutboundSettings(), relay_host_id=relay_host, transport_id=transport
            )
    ours = await run_route_test(world, OutboundSettings(), SENDER, "bob@example.org")
    assert (ours.is_accepted, len(ours.log_lines)) == (True, 1)


async def test_the_route_is_made_of_the_options(world: Environment) -> None:
    hop = SecretStr("smtp://us:secret@relay.example:2525")
    options = replace(
        world.options, next_hop=hop, dns_resolver="127.0.0.1:5353", dns_validates=True
    )
    route = outbound_settings_from_options(replace(world, options=options))
    assert route.next_hop == parse_next_hop(hop.get_secret_value())
    assert route.trusts_dnssec
    assert route.make_resolver().port == 5353
    assert "secret" not in repr(route)
