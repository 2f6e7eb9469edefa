"""MX hosts with private addresses are used only if a setting allows it."""

from dataclasses import replace
from itertools import product
from typing import Any

import dns.message
import dns.rdatatype
import pytest

from mail.mime.header_encoding import NamedAddress
from mail.outbound.route_test import run_route_test
from mail.routing.mx_hosts import OutboundSettings, Unroutable
from mail.routing.route_selection import RouteRequest, select_route
from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import (
    State,
    queue_message,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.route_rows import add_transport, make_mx_dns_server
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeDnsServer,
    FakeSmtpServer,
    run_dns_server,
    run_smtp_server,
)
from tests.support.operations.domain_operations import (
    ERRORS,
    NO_DOMAIN_LIMITS,
    create_domain,
    run_mutation,
)

SENDER, RECIPIENT = "ada@example.org", "carol@example.net"
MX = "mx1.example.net"
PRIVATE_ADDRESSES = [
    ("A", "127.0.0.1"), ("A", "127.8.9.10"), ("A", "10.0.0.1"), ("A", "172.16.0.1"),
    ("A", "192.168.1.1"), ("A", "169.254.169.254"), ("A", "100.64.0.1"), ("A", "0.0.0.0"),  # noqa: S104
    ("A", "224.0.0.1"), ("A", "255.255.255.255"), ("AAAA", "::1"), ("AAAA", "::"),
    ("AAAA", "fd00::1"), ("AAAA", "fe80::1"), ("AAAA", "::ffff:127.0.0.1"),
    ("AAAA", "::ffff:10.0.0.1"), ("AAAA", "64:ff9b::7f00:1"), ("AAAA", "2002:7f00:1::"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def forbid_private_mx(environment: Environment) -> None:
    """Set the default of the setting, which the test environment changes."""
    set_mx_private(environment, private=False)


def set_mx_private(environment: Environment, *, private: bool) -> None:
    options = replace(environment.options, mx_allow_private_networks=private)
    environment.use_options_unless_outdated(
        CommittedOptions(options, environment.options_position + 1)
    )


async def find_addresses(
    environment: Environment, dns_names: FakeDnsServer, domain: str = "example.net"
) -> tuple[list[str], Any]:
    """Return the addresses of the next hops and the log lines of the route."""
    log_lines: list[str] = []
    async with run_dns_server(dns_names):
        settings = OutboundSettings(make_resolver=dns_names.make_resolver)
        request = RouteRequest(SENDER, f"carol@{domain}", domain)
        route = await select_route(environment, settings, request, log_lines)
    return [next_hop.address for next_hop in route.next_hops], log_lines


async def routing_error(
    environment: Environment, dns_names: FakeDnsServer, domain: str = "example.net"
) -> str:
    with pytest.raises(Unroutable) as problem:
        await find_addresses(environment, dns_names, domain)
    return f"{problem.value.reply_code} {problem.value.reply_text}"


async def test_private_address_is_used_only_if_allowed(environment: Environment) -> None:
    for case in each_case(product(PRIVATE_ADDRESSES, [True, False])):
        with case as ((kind, address), by_mx):
            set_mx_private(environment, private=False)
            name = MX if by_mx else "example.net"
            records = {(name, kind): [address]} | (
                {("example.net", "MX"): [f"10 {MX}."]} if by_mx else {}
            )
            assert (
                await routing_error(environment, FakeDnsServer(records))
                == f"550 5.4.4 {name} has only private IP addresses"
            )
            set_mx_private(environment, private=True)
            addresses, log_lines = await find_addresses(environment, FakeDnsServer(records))
            assert len(addresses) == 1
            assert "skipped" not in "".join(log_lines)


async def test_only_public_addresses_of_mx_hosts_are_used(environment: Environment) -> None:
    dns_names = FakeDnsServer(
        {
            ("example.net", "MX"): ["10 in.example.net.", f"20 {MX}.", "30 gone.example.net."],
            ("in.example.net", "A"): ["10.0.0.1"],
            (MX, "A"): [*(f"10.0.0.{nth}" for nth in range(1, 9)), "8.8.8.8"],
            (MX, "AAAA"): ["::1", "2606:4700::1111"],
        }
    )
    addresses, log_lines = await find_addresses(environment, dns_names)
    assert addresses == ["8.8.8.8", "2606:4700::1111"]
    reason = "skipped, private network and MERGANSER_MX_ALLOW_PRIVATE_NETWORKS is off"
    assert log_lines[0] == f"in.example.net (10.0.0.1): {reason}"
    assert f"{MX} (::1): {reason}" in log_lines
    assert f"example.net: MX 20 {MX} (8.8.8.8, 2606:4700::1111)" in log_lines


@pytest.mark.parametrize("silent", [MX, "mx2.example.net"])
async def test_dns_failure_beside_private_address_is_temporary(
    environment: Environment, silent: str
) -> None:
    """An address that DNS fails to return can be public, so that a retry is useful."""
    dns_names = NamesWithoutAaaa(
        {
            ("example.net", "MX"): [f"10 {MX}.", "20 mx2.example.net."],
            (MX, "A"): ["127.0.0.1"],
            ("mx2.example.net", "A"): ["127.0.0.1"],
        },
        silent,
    )
    assert (await routing_error(environment, dns_names)).startswith("451 4.4.3 DNS lookup of ")


class NamesWithoutAaaa(FakeDnsServer):
    """A name server that fails for the IPv6 addresses of one host."""

    def __init__(self, records: dict[tuple[str, str], list[str]], name: str) -> None:
        super().__init__(records)
        self.host_without_aaaa = name

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data).question[0]
        question = query.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(query.rdtype)
        self.servfail_names = (
            {self.host_without_aaaa} if question == (self.host_without_aaaa, "AAAA") else set()
        )
        super().datagram_received(data, addr)


async def test_message_to_domain_with_private_mx_bounces(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_dns_server(make_mx_dns_server("example.net", MX)) as dns_names,
        run_smtp_server(FakeSmtpServer()) as server,
    ):
        settings = OutboundSettings(make_resolver=dns_names.make_resolver, mx_port=server.port)
        async with run_queue_worker(environment, settings):
            rows = await wait_until_tried(
                environment, await queue_message(ada, NamedAddress(RECIPIENT))
            )
            assert (rows["carol"].state, rows["carol"].last_code) == (State.BOUNCED, 550)
            assert rows["carol"].last_response == f"5.4.4 {MX} has only private IP addresses"
            assert server.session_count == 0
            set_mx_private(environment, private=True)
            rows = await wait_until_tried(
                environment, await queue_message(ada, NamedAddress(RECIPIENT))
            )
            assert rows["carol"].state is State.DELIVERED
    assert len(server.messages) == 1


@pytest.mark.usefixtures("ada")
async def test_route_test_reports_private_address(environment: Environment) -> None:
    async with (
        run_dns_server(make_mx_dns_server("example.net", MX)) as dns_names,
        run_smtp_server(FakeSmtpServer()) as server,
    ):
        result = await run_route_test(
            environment,
            OutboundSettings(make_resolver=dns_names.make_resolver, mx_port=server.port),
            SENDER,
            RECIPIENT,
        )
    assert (result.is_accepted, result.log_lines, server.session_count) == (
        False,
        [
            f"{MX} (127.0.0.1): skipped, private network and "
            "MERGANSER_MX_ALLOW_PRIVATE_NETWORKS is off",
            f"no route: 550 5.4.4 {MX} has only private IP addresses",
        ],
        0,
    )


async def test_transport_to_private_address_is_used(
    ada: GraphQLClient, environment: Environment
) -> None:
    dns_names = make_mx_dns_server("far.example", "mx1.far.example")
    async with run_dns_server(dns_names), run_smtp_server(FakeSmtpServer()) as server:
        await add_transport(environment, RECIPIENT, f"[127.0.0.1]:{server.port}")
        await add_transport(
            environment, "dave@example.net", f"far.example:{server.port}", lookup_mx=True
        )
        async with run_queue_worker(
            environment, OutboundSettings(make_resolver=dns_names.make_resolver)
        ):
            rows = await wait_until_tried(
                environment,
                await queue_message(ada, NamedAddress(RECIPIENT), NamedAddress("dave@example.net")),
            )
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert sorted(mail.to[0] for mail in server.messages) == [RECIPIENT, "dave@example.net"]


async def test_backup_mx_domain_can_have_private_mx(
    root: GraphQLClient, environment: Environment
) -> None:
    """An alias of the domain can't, since its maker need not be an ADMIN."""
    await create_domain(
        root, "held.example", backupMx=True, relayAllRecipients=True, **NO_DOMAIN_LIMITS
    )
    document = f"""mutation ($input: AliasDomainCreateInput!) {{
      aliasDomainCreate(input: $input) {{ aliasDomain {{ id }} {ERRORS} }} }}"""
    alias_input = {"alias": "second.example", "domain": {"name": "held.example"}}
    assert (await run_mutation(root, document, **alias_input))[1] == []
    dns_names = make_mx_dns_server("held.example", "mx1.held.example")
    dns_names.records["second.example", "MX"] = ["10 mx1.held.example."]
    assert (await find_addresses(environment, dns_names, "held.example"))[0] == ["127.0.0.1"]
    assert (await routing_error(environment, dns_names, "second.example")).startswith("550 5.4.4")
