"""Servers that only DNS names are not looked for in our own networks, unless a setting says so."""

from dataclasses import replace
from typing import Any

import dns.message
import dns.rdatatype
import pytest

from mail.mime.header_encoding import NamedAddress
from mail.outbound.route_test import run_route_test
from mail.routing.mx_hosts import OutboundSettings, Unroutable
from mail.routing.route_selection import RouteRequest, select_route
from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import Client
from tests.support.mail_servers.queue_worker import State, send, settled, working
from tests.support.mail_servers.route_rows import exchanged, transport
from tests.support.mail_servers.smtp_and_dns_servers import Names, Server, answering, listening
from tests.support.operations.domain_operations import ERRORS, UNLIMITED, done, made

SENDER, FAR = "ada@example.org", "carol@example.net"
MX = "mx1.example.net"
INSIDE = [
    ("A", "127.0.0.1"), ("A", "127.8.9.10"), ("A", "10.0.0.1"), ("A", "172.16.0.1"),
    ("A", "192.168.1.1"), ("A", "169.254.169.254"), ("A", "100.64.0.1"), ("A", "0.0.0.0"),  # noqa: S104
    ("A", "224.0.0.1"), ("A", "255.255.255.255"), ("AAAA", "::1"), ("AAAA", "::"),
    ("AAAA", "fd00::1"), ("AAAA", "fe80::1"), ("AAAA", "::ffff:127.0.0.1"),
    ("AAAA", "::ffff:10.0.0.1"), ("AAAA", "64:ff9b::7f00:1"), ("AAAA", "2002:7f00:1::"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def as_usual(world: Environment) -> None:
    """The setting is as it is where nobody touches it."""
    allowed(world, private=False)


def allowed(world: Environment, *, private: bool) -> None:
    options = replace(world.options, mx_private=private)
    world.apply_options(CommittedOptions(options, world.options_position + 1))


async def way(
    world: Environment, names: Names, domain: str = "example.net"
) -> tuple[list[str], Any]:
    """The addresses that would be connected to, and what is told of them."""
    trail: list[str] = []
    async with answering(names):
        route, asked = (
            OutboundSettings(make_resolver=names.resolver),
            RouteRequest(SENDER, f"carol@{domain}", domain),
        )
        found = await select_route(world, route, asked, trail)
    return [each.address for each in found.next_hops], trail


async def refused(world: Environment, names: Names, domain: str = "example.net") -> str:
    with pytest.raises(Unroutable) as problem:
        await way(world, names, domain)
    return f"{problem.value.reply_code} {problem.value.reply_text}"


@pytest.mark.parametrize(("kind", "address"), INSIDE)
@pytest.mark.parametrize("by_mx", [True, False])
async def test_an_address_inside_is_none(
    world: Environment, kind: str, address: str, *, by_mx: bool
) -> None:
    name = MX if by_mx else "example.net"
    records = {(name, kind): [address]} | ({("example.net", "MX"): [f"10 {MX}."]} if by_mx else {})
    assert await refused(world, Names(records)) == f"550 5.4.4 {name} has private addresses only"
    allowed(world, private=True)
    found, trail = await way(world, Names(records))
    assert len(found) == 1
    assert "left out" not in "".join(trail)


async def test_of_several_only_public_ones_are_tried(world: Environment) -> None:
    names = Names(
        {
            ("example.net", "MX"): ["10 in.example.net.", f"20 {MX}.", "30 gone.example.net."],
            ("in.example.net", "A"): ["10.0.0.1"],
            (MX, "A"): [*(f"10.0.0.{nth}" for nth in range(1, 9)), "8.8.8.8"],
            (MX, "AAAA"): ["::1", "2606:4700::1111"],
        }
    )
    found, trail = await way(world, names)
    assert found == ["8.8.8.8", "2606:4700::1111"]
    why = "left out, it is inside, and MERGANSER_MX_PRIVATE is off"
    assert trail[0] == f"in.example.net (10.0.0.1): {why}"
    assert f"{MX} (::1): {why}" in trail
    assert f"example.net: MX 20 {MX} (8.8.8.8, 2606:4700::1111)" in trail


@pytest.mark.parametrize("silent", [MX, "mx2.example.net"])
async def test_what_dns_does_not_say_may_be_public(world: Environment, silent: str) -> None:
    """One server is inside; of another, or of its other addresses, nothing is known now."""
    names = Halved(
        {
            ("example.net", "MX"): [f"10 {MX}.", "20 mx2.example.net."],
            (MX, "A"): ["127.0.0.1"],
            ("mx2.example.net", "A"): ["127.0.0.1"],
        },
        silent,
    )
    assert (await refused(world, names)).startswith("451 4.4.3 DNS does not answer")


class Halved(Names):
    """Does not know the IPv6 addresses of a server."""

    def __init__(self, records: dict[tuple[str, str], list[str]], name: str) -> None:
        super().__init__(records)
        self.halved = name

    def datagram_received(self, data: bytes, addr: Any) -> None:
        asked = dns.message.from_wire(data).question[0]
        whole = asked.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(asked.rdtype)
        self.broken = {self.halved} if whole == (self.halved, "AAAA") else set()
        super().datagram_received(data, addr)


async def test_mail_to_such_a_domain_comes_back(ada: Client, world: Environment) -> None:
    async with answering(exchanged("example.net", MX)) as names, listening(Server()) as there:
        route = OutboundSettings(make_resolver=names.resolver, mx_port=there.port)
        async with working(world, route):
            rows = await settled(world, await send(ada, NamedAddress(FAR)))
            assert (rows["carol"].state, rows["carol"].last_code) == (State.BOUNCED, 550)
            assert rows["carol"].last_response == f"5.4.4 {MX} has private addresses only"
            assert there.sessions == 0
            allowed(world, private=True)
            rows = await settled(world, await send(ada, NamedAddress(FAR)))
            assert rows["carol"].state is State.DELIVERED
    assert len(there.mails) == 1


@pytest.mark.usefixtures("ada")
async def test_a_try_says_why(world: Environment) -> None:
    async with answering(exchanged("example.net", MX)) as names, listening(Server()) as there:
        probed = await run_route_test(
            world, OutboundSettings(make_resolver=names.resolver, mx_port=there.port), SENDER, FAR
        )
    assert (probed.is_accepted, probed.log_lines, there.sessions) == (
        False,
        [
            f"{MX} (127.0.0.1): left out, it is inside, and MERGANSER_MX_PRIVATE is off",
            f"no way: 550 5.4.4 {MX} has private addresses only",
        ],
        0,
    )


async def test_what_an_administrator_has_named_may_be_inside(
    ada: Client, world: Environment
) -> None:
    names = exchanged("far.example", "mx1.far.example")
    async with answering(names), listening(Server()) as there:
        await transport(world, FAR, f"[127.0.0.1]:{there.port}")
        await transport(world, "dave@example.net", f"far.example:{there.port}", lookup_mx=True)
        async with working(world, OutboundSettings(make_resolver=names.resolver)):
            rows = await settled(
                world, await send(ada, NamedAddress(FAR), NamedAddress("dave@example.net"))
            )
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert sorted(mail.to[0] for mail in there.mails) == [FAR, "dave@example.net"]


async def test_a_domain_that_we_are_a_backup_of_may_be_inside(
    root: Client, world: Environment
) -> None:
    """But no other name of it: who may give it one need be no ADMIN."""
    await made(root, "held.example", backupMx=True, relayAllRecipients=True, **UNLIMITED)
    document = f"""mutation ($input: DomainAliasCreateInput!) {{
      domainAliasCreate(input: $input) {{ domainAlias {{ id }} {ERRORS} }} }}"""
    given = {"alias": "second.example", "domain": "held.example"}
    assert (await done(root, document, **given))[1] == []
    names = exchanged("held.example", "mx1.held.example")
    names.records["second.example", "MX"] = ["10 mx1.held.example."]
    assert (await way(world, names, "held.example"))[0] == ["127.0.0.1"]
    assert (await refused(world, names, "second.example")).startswith("550 5.4.4")
