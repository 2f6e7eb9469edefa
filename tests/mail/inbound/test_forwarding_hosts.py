"""Mail of trusted forwarding hosts, with SMTP sessions, a name server and a scanner on loopback."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mail.authentication.forwarding_hosts import find_forwarder
from mail.authentication.sender_networks import find_sender_networks_or_raise
from mail.envelope.client import SmtpClientInfo as Peer
from mail.inbound.sender_verification import RejectedByDmarc
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.spam.greylist import Greylist
from mail.spam.verdict import VerdictReason
from models.errors import InvalidInput, ServiceUnavailable
from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import GraphQLClient, raw_message
from tests.support.mail.inbound_authentication import (
    deliver_from_peer,
    message_verification,
    use_dns_zone,
)
from tests.support.mail.signed_messages import UNSIGNED_MESSAGE
from tests.support.mail_servers.dns_zone_server import DnsZoneServer, make_dns_zone, run_dns_zone
from tests.support.mail_servers.scanner_servers import (
    rspamd_reply,
    send_and_hang_up,
)
from tests.support.mail_servers.smtp_client import connect_smtp, send_rcpt
from tests.support.operations.domain_operations import run_mutation
from tests.support.servers.scripted_server import run_scripted_server

CREATE = """mutation ($input: ForwardingHostCreateInput!) { forwardingHostCreate(input: $input) {
  forwardingHosts { host source filterSpam } errors { code message path } } }"""
DELETE = """mutation ($input: ForwardingHostDeleteInput!) { forwardingHostDelete(input: $input) {
  deletedIds errors { code message path } } }"""
FORWARDING_PEER = Peer("198.51.100.7", "mx.hop.example")
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def dns_server() -> AsyncIterator[DnsZoneServer]:
    dns_zone = make_dns_zone(
        {"far.example": "v=spf1 ip4:192.0.2.1 -all", "_dmarc.far.example": "v=DMARC1; p=reject"}
    )
    async with run_dns_zone(dns_zone):
        yield dns_zone


async def add_forwarding_host(root: GraphQLClient, name: str, **arguments: Any) -> list[str]:
    payload, errors = await run_mutation(root, CREATE, hostname=name, **arguments)
    assert errors == []
    return [host["host"] for host in payload["forwardingHosts"]]


async def test_forwarding_host_is_exempt_from_dmarc_rejection(
    ada: GraphQLClient, root: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    use_dns_zone(ada.environment, dns_server, dmarc_on_failure="reject")
    with pytest.raises(RejectedByDmarc):
        await deliver_from_peer(ada, UNSIGNED_MESSAGE, FORWARDING_PEER)
    assert await add_forwarding_host(root, "198.51.100.0/24", filterSpam=True) == [
        "198.51.100.0/24"
    ]
    verification = await message_verification(
        ada, await deliver_from_peer(ada, UNSIGNED_MESSAGE, FORWARDING_PEER)
    )
    assert verification["specialUse"] == "INBOX"
    # The results are recorded nevertheless.
    assert (verification["spf"], verification["dmarc"]) == (
        None,
        "fail",
    )
    with pytest.raises(RejectedByDmarc):
        await deliver_from_peer(
            ada, UNSIGNED_MESSAGE + b"x\r\n", Peer("198.51.101.7", "mx.hop.example")
        )
    _, errors = await run_mutation(root, DELETE, forwardingHosts=[{"host": "198.51.100.0/24"}])
    assert errors == []
    with pytest.raises(RejectedByDmarc):  # immediately
        await deliver_from_peer(ada, UNSIGNED_MESSAGE + b"y\r\n", FORWARDING_PEER)


@pytest.mark.parametrize(("filters_spam", "folder"), [(True, "JUNK"), (False, "INBOX")])
async def test_spam_of_a_forwarding_host_is_filtered_if_enabled(
    ada: GraphQLClient,
    root: GraphQLClient,
    dns_server: DnsZoneServer,
    filters_spam: bool,
    folder: str,
) -> None:
    await add_forwarding_host(root, FORWARDING_PEER.ip_address or "", filterSpam=filters_spam)
    async with run_scripted_server(
        send_and_hang_up(rspamd_reply(12.0, action="add header"))
    ) as port:
        use_dns_zone(ada.environment, dns_server, rspamd_url=f"http://127.0.0.1:{port}")
        verification = await message_verification(
            ada, await deliver_from_peer(ada, UNSIGNED_MESSAGE, FORWARDING_PEER)
        )
    assert verification["specialUse"] == folder


async def test_spam_of_a_forwarding_host_is_not_rejected(
    ada: GraphQLClient, root: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    async with run_scripted_server(send_and_hang_up(rspamd_reply(99.0, action="reject"))) as port:
        use_dns_zone(ada.environment, dns_server, rspamd_url=f"http://127.0.0.1:{port}")
        with pytest.raises(Exception, match="spam"):
            await deliver_from_peer(ada, UNSIGNED_MESSAGE, Peer("192.0.2.1", "mx.far.example"))
        await add_forwarding_host(root, FORWARDING_PEER.ip_address or "")
        verification = await message_verification(
            ada, await deliver_from_peer(ada, UNSIGNED_MESSAGE, FORWARDING_PEER)
        )
    assert verification["specialUse"] == "INBOX"


async def test_sender_rules_apply_to_a_forwarding_host(
    ada: GraphQLClient, root: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    use_dns_zone(ada.environment, dns_server)
    await add_forwarding_host(root, FORWARDING_PEER.ip_address or "")
    block = """mutation { senderRuleCreate(input: {scope: {user: {username: "ada"}}, action: BLOCK,
      patterns: ["far.example"]}) { errors { message } } }"""
    assert (await ada(block))["senderRuleCreate"]["errors"] == []
    verification = await message_verification(
        ada, await deliver_from_peer(ada, UNSIGNED_MESSAGE, FORWARDING_PEER)
    )
    assert verification["specialUse"] == "JUNK"
    assert VerdictReason.RULE == "RULE"


async def test_forwarding_host_is_not_greylisted(
    ada: GraphQLClient, root: GraphQLClient, tmp_path: Path
) -> None:
    environment = ada.environment
    rules = MxRules(greylist=Greylist(environment, timedelta(minutes=5), timedelta(days=30)))
    listener = MxListener(environment, tmp_path / "spool", SmtpListenerConfig(), rules)
    await listener.start(host="127.0.0.1", port=0)
    client = await connect_smtp(listener.port)
    assert (await send_rcpt(client, ada.address)).startswith("451 4.7.1")
    await add_forwarding_host(root, "127.0.0.1")
    assert (await send_rcpt(client, ada.address)).startswith("250")
    assert (await send_rcpt(client, "nobody@example.org")).startswith("550")
    await client.start_data(ada.address)
    client.send_bytes(raw_message() + b".\r\n")
    assert (await client.read_reply()).startswith("250")
    await client.close()
    await listener.close(1)


async def test_narrowest_network_of_forwarding_hosts_is_used(
    root: GraphQLClient, environment: Environment
) -> None:
    await add_forwarding_host(root, "203.0.113.0/24", filterSpam=True)
    await add_forwarding_host(root, "203.0.113.9")
    await add_forwarding_host(root, "2001:db8::/32")
    for ip, host in (
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.8", "203.0.113.0/24"),
        ("::ffff:203.0.113.8", "203.0.113.0/24"),
        ("2001:db8:1::5", "2001:db8::/32"),
    ):
        forwarding_host = await find_forwarder(environment, ip)
        assert forwarding_host is not None, ip
        assert (forwarding_host.host, forwarding_host.filter_spam) == (
            host,
            host == "203.0.113.0/24",
        )
    for other_ip in ("203.0.114.1", "2001:db9::1", "nonsense", "", None):
        assert await find_forwarder(environment, other_ip) is None


SPF_NAMES: dict[str, tuple[dict[str, str], list[str]]] = {
    "spf.example": (
        {"spf.example": "v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::1 a:mx.spf.example "
         "include:more.example ?ip4:10.0.0.0/8 -ip4:11.0.0.1 exists:%{i}.x.example ptr -all",
         "more.example": "v=spf1 mx/28 redirect=last.example",
         "last.example": "v=spf1 ip4:198.51.100.1 include:spf.example ~all"},
        ["192.0.2.0/24", "2001:db8::1", "203.0.113.5", "203.0.113.0/28", "198.51.100.1"],
    ),
    "bare.example": ({}, ["203.0.113.5"]),
    "mx.spf.example": ({}, ["203.0.113.5"]),
    "six.example": ({"six.example": "v=spf1 -all"}, ["2001:db8::25"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SPF_NAMES)
async def test_hostname_resolves_to_its_spf_networks(name: str) -> None:
    txt_records, expected = SPF_NAMES[name]
    dns_zone = make_dns_zone(
        txt_records,
        A={"mx.spf.example": "203.0.113.5"},
        AAAA={"six.example": "2001:db8::25"},
        MX={"more.example": "10 mx.spf.example.", "bare.example": "10 mx.spf.example."},
    )
    async with run_dns_zone(dns_zone) as dns_address:
        assert await find_sender_networks_or_raise(dns_address, name) == expected


async def test_hostname_without_usable_networks_is_refused() -> None:
    mechanisms = " ".join(f"ip4:192.0.{n // 256}.{n % 256}" for n in range(250))
    include_chain = {f"l{n}.example": f"v=spf1 include:l{n + 1}.example -all" for n in range(40)}
    dns_zone = make_dns_zone(
        {
            "all.example": "v=spf1 +all",
            "wide.example": "v=spf1 ip4:0.0.0.0/1 -all",
            "odd.example": "v=spf1 nonsense",
            "many.example": f"v=spf1 {mechanisms} -all",
            **include_chain,
        },
        MX={"null.example": "0 ."},
    )
    dns_zone.servfail_names.add("broken.example")
    async with run_dns_zone(dns_zone) as dns_address:
        for name, rule in (
            ("all.example", "RANGE"),
            ("wide.example", "RANGE"),
            ("odd.example", "SPF"),
            ("many.example", "MAX"),
            ("l0.example", "SPF"),
            ("null.example", "UNKNOWN"),
            ("none.example", "UNKNOWN"),
        ):
            with pytest.raises(InvalidInput) as error:
                await find_sender_networks_or_raise(dns_address, name)
            assert (error.value.constraint, error.value.path) == (rule, ["hostname"]), name
        with pytest.raises(ServiceUnavailable):
            await find_sender_networks_or_raise(dns_address, "broken.example")
        assert len(dns_zone.queries) < 100


async def test_hostname_is_resolved_when_it_is_added(
    root: GraphQLClient, environment: Environment
) -> None:
    dns_zone = make_dns_zone({"hop.example": "v=spf1 ip4:192.0.2.0/28 ip4:192.0.2.77 -all"})
    async with run_dns_zone(dns_zone) as dns_address:
        environment.use_options_unless_outdated(
            CommittedOptions(
                replace(environment.options, dns_resolver=dns_address),
                environment.options_position + 1,
            )
        )
        payload, errors = await run_mutation(root, CREATE, hostname="Hop.Example")
        assert errors == []
        assert payload["forwardingHosts"] == [
            {"host": host, "source": "hop.example", "filterSpam": False}
            for host in ("192.0.2.0/28", "192.0.2.77")
        ]
        _, errors = await run_mutation(root, CREATE, hostname="hop.example")
        assert [error["code"] for error in errors] == ["CONFLICT"]
        payload, errors = await run_mutation(root, CREATE, hostname="hop.example", filterSpam=True)
        assert errors == []
        assert [host["filterSpam"] for host in payload["forwardingHosts"]] == [True, True]
        dns_zone.records["hop.example", "TXT"] = ['"v=spf1 ip4:192.0.2.77 ip4:192.0.2.78 -all"']
        dns_zone.records["other.example", "TXT"] = ['"v=spf1 ip4:192.0.2.77 ip4:192.0.2.99 -all"']
        assert await add_forwarding_host(root, "other.example") == ["192.0.2.77", "192.0.2.99"]
    listed = await root("{ forwardingHosts { totalCount nodes { host source } } }")
    assert listed["forwardingHosts"]["totalCount"] == 3
    sources = {node["host"]: node["source"] for node in listed["forwardingHosts"]["nodes"]}
    assert sources["192.0.2.77"] == "other.example"
