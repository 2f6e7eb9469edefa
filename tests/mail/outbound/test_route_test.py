"""Ways out are tried against real servers, and nothing is sent."""

from dataclasses import replace

import pytest
from pydantic import SecretStr

from mail.outbound.route_test import probe
from mail.routing.mx_hosts import Route, next_hop, route_of
from mail.routing.password_contexts import place_of_relay, place_of_transport
from models.errors import NotFound
from models.routing.tables import RelayHost, Transport
from models.runtime.environment import World
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
async def test_a_way_is_tried_up_to_the_recipient(world: World) -> None:
    names = exchanged("example.net", "mx1.example.net")
    server = Server({"gone": "550 5.1.1 No such user"}, features={"tls_context": server_tls()})
    async with answering(names), listening(server) as there:
        route = Route(resolver=names.resolver, port=there.port)
        good = await probe(world, route, SENDER, FAR)
        bad = await probe(world, route, SENDER, "gone@example.net")
        nowhere = await probe(world, route, SENDER, "carol@example.com")
    assert good.ok
    assert good.log == [
        "example.net: MX 10 mx1.example.net (127.0.0.1)",
        "MTA-STS of example.net: no policy",
        "TLS to mx1.example.net: OPPORTUNISTIC",
        f"connecting to mx1.example.net (127.0.0.1), port {there.port}",
        good.log[4],
        "it offers: 8BITMIME, AUTH, HELP, SIZE",
        "> MAIL FROM:<ada@example.org>",
        "< 250 OK",
        "> RCPT TO:<carol@example.net>",
        "< 250 2.1.5 OK",
        "> RSET",
        "< 250 OK",
    ]
    assert good.log[4].startswith("encrypted: TLSv1.3 ")
    assert not bad.ok
    assert "< 550 5.1.1 No such user" in bad.log
    assert nowhere.log[-1] == "no way: 550 5.1.2 There is no domain example.com"
    assert there.mails == []


@pytest.mark.usefixtures("ada")
async def test_a_relay_host_is_tried_with_its_password_which_is_not_told(world: World) -> None:
    features = {"tls_context": server_tls(), "auth_require_tls": True}
    async with listening(Server()) as there:
        there.features = {**features, "authenticator": there.authenticate}
        for word, ok in (("secret", True), ("hunter2", False)):
            key = world.key()
            relay = RelayHost(
                id=key,
                host="127.0.0.1",
                port=there.port,
                username="us",
                secret=world.vault.seal(word, place_of_relay(key)),
                active=False,
                created_at=world.now(),
            )
            async with world.write() as session:
                session.add(relay)
            probed = await probe(world, Route(trust=trust()), SENDER, FAR, relay_host_id=key)
            assert probed.ok is ok, probed.log
            assert word not in "\n".join(probed.log)
            assert "signing in as us" in probed.log
    assert probed.log[-1].startswith("failed: 454 4.7.0 Our password was refused")
    assert there.mails == []


@pytest.mark.usefixtures("ada")
async def test_a_transport_is_tried_without_a_recipient(world: World) -> None:
    async with listening(Server()) as there:
        key = world.key()
        row = Transport(
            id=key,
            destination="example.com",
            next_hop=f"[127.0.0.1]:{there.port}",
            created_at=world.now(),
        )
        async with world.write() as session:
            session.add(row)
        probed = await probe(world, Route(), transport_id=key)
        async with world.write() as session:
            again = await session.get(Transport, key)
            assert again is not None
            again.username = "us"
            again.secret = world.vault.seal("secret", place_of_transport(key))
        unsafe = await probe(world, Route(), transport_id=key)
    assert probed.ok
    assert probed.log[-4:] == ["> MAIL FROM:<>", "< 250 OK", "> RSET", "< 250 OK"]
    assert not unsafe.ok
    assert "4.7.5 TLS failed: not offered" in unsafe.log[-1]
    assert there.logins == []


@pytest.mark.usefixtures("ada")
async def test_what_is_not_there_cannot_be_tried(world: World) -> None:
    for relay_host, transport in ((1, None), (None, 1), (None, None)):
        with pytest.raises(NotFound):
            await probe(world, Route(), relay_host_id=relay_host, transport_id=transport)
    ours = await probe(world, Route(), SENDER, "bob@example.org")
    assert (ours.ok, len(ours.log)) == (True, 1)


async def test_the_route_is_made_of_the_options(world: World) -> None:
    hop = SecretStr("smtp://us:secret@relay.example:2525")
    options = replace(
        world.options, next_hop=hop, dns_resolver="127.0.0.1:5353", dns_validates=True
    )
    route = route_of(replace(world, options=options))
    assert route.next_hop == next_hop(hop.get_secret_value())
    assert route.validates
    assert route.resolver().port == 5353
    assert "secret" not in repr(route)
