"""Lookup of MX hosts with a name server on loopback."""

import pytest

from mail.routing.mx_hosts import NextHop, OutboundSettings, TlsLevel, Unroutable, parse_next_hop
from mail.routing.route_selection import RouteRequest, select_route
from models.errors import InvalidInput
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.mail_servers.queue_worker import (
    State,
    queue_message,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeDnsServer,
    FakeSmtpServer,
    run_dns_server,
    run_smtp_server,
    server_tls_context,
)


async def find_next_hops(
    environment: Environment, settings: OutboundSettings, domain: str
) -> list[NextHop]:
    """Return the next hops of mail for a domain."""
    return (
        await select_route(environment, settings, RouteRequest("", f"carol@{domain}", domain))
    ).next_hops


async def test_mx_hosts_are_tried_in_order_of_preference(
    ada: GraphQLClient, environment: Environment
) -> None:
    dns_names = FakeDnsServer(
        {
            ("example.net", "MX"): ["10 dead.example.net.", "20 mx1.example.net.", "5 nix."],
            ("dead.example.net", "A"): ["127.0.0.2"],
            ("mx1.example.net", "A"): ["127.0.0.1"],
        }
    )
    server = FakeSmtpServer(smtp_options={"tls_context": server_tls_context()})
    async with run_dns_server(dns_names), run_smtp_server(server) as running_server:
        settings = OutboundSettings(
            make_resolver=dns_names.make_resolver, mx_port=running_server.port
        )
        assert [
            host.name for host in await find_next_hops(environment, settings, "example.net")
        ] == [
            "dead.example.net",
            "mx1.example.net",
        ]
        async with run_queue_worker(environment, settings):
            rows = await wait_until_tried(environment, await queue_message(ada))
    assert {(row.state, row.mx) for row in rows.values()} == {(State.DELIVERED, "mx1.example.net")}
    assert rows["carol"].tls.startswith("TLSv1.")
    assert running_server.messages[0].used_tls


@pytest.mark.parametrize(
    ("domain", "code", "status"),
    [
        ("null.example", 556, "5.1.10"),
        ("missing.example", 550, "5.1.2"),
        ("broken.example", 451, "4.4.3"),
        ("silent.example", 451, "4.4.3"),
        ("half.example", 451, "4.4.3"),
        ("bare.example", 550, "5.4.4"),
        ("ours.example", 550, "5.4.6"),
        ("[127.0.0.1]", 550, "5.1.2"),
        ("a..b", 550, "5.1.2"),
    ],
)
async def test_domain_without_mx_host_has_specific_error(
    environment: Environment, domain: str, code: int, status: str
) -> None:
    dns_names = FakeDnsServer(
        {
            ("null.example", "MX"): ["0 ."],
            ("bare.example", "TXT"): ["x"],
            ("half.example", "MX"): ["1 broken.example.", "2 missing.example."],
            ("ours.example", "MX"): ["1 MX.example.org.", "2 other.example."],
        },
        servfail_names={"broken.example"},
        silent_names={"silent.example"},
    )
    async with run_dns_server(dns_names):
        with pytest.raises(Unroutable) as problem:
            await find_next_hops(
                environment, OutboundSettings(make_resolver=dns_names.make_resolver), domain
            )
    assert (problem.value.reply_code, problem.value.reply_text[: len(status)]) == (code, status)


async def test_domain_without_mx_record_is_its_own_host(environment: Environment) -> None:
    dns_names = FakeDnsServer(
        {
            ("xn--bcher-kva.example", "A"): ["192.0.2.1"],
            ("xn--bcher-kva.example", "AAAA"): ["2001:db8::1"],
        }
    )
    async with run_dns_server(dns_names):
        next_hops = await find_next_hops(
            environment, OutboundSettings(make_resolver=dns_names.make_resolver), "bücher.example"
        )
    assert [(host.name, host.address, host.port) for host in next_hops] == [
        ("xn--bcher-kva.example", "192.0.2.1", 25),
        ("xn--bcher-kva.example", "2001:db8::1", 25),
    ]


@pytest.mark.parametrize("text", ["", "http://x", "smtp://", "smtp://x:99999", "x?tls=maybe"])
def test_invalid_next_hop_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_next_hop(text)


def test_next_hop_has_default_port_and_tls_level() -> None:
    assert (parse_next_hop("relay").port, parse_next_hop("relay").tls_level) == (
        25,
        TlsLevel.OPPORTUNISTIC,
    )
    assert (parse_next_hop("smtps://relay").port, parse_next_hop("smtps://relay").tls_level) == (
        465,
        TlsLevel.WRAPPED,
    )
    assert "secret" not in repr(parse_next_hop("smtp://us:secret@relay"))
