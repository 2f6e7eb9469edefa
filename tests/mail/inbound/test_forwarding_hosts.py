"""Mail of hosts that forward to us: real sessions, a name server and a judge on loopback."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mail.authentication.forwarding_hosts import find_forwarder
from mail.authentication.sender_networks import find_networks
from mail.envelope.client import SmtpClientInfo as Peer
from mail.inbound.sender_verification import RejectedByDmarc
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.spam.greylist import Greylist
from mail.spam.verdict import VerdictReason
from models.errors import InvalidInput, ServiceUnavailable
from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import Client, raw_message
from tests.support.mail.inbound_authentication import (
    deliver_from_peer,
    message_verification,
    use_dns_zone,
)
from tests.support.mail.signed_messages import LETTER
from tests.support.mail_servers.dns_zone_server import Zone, asking, zone
from tests.support.mail_servers.scanner_servers import report, rude, says
from tests.support.mail_servers.smtp_client import connect, send_rcpt
from tests.support.operations.domain_operations import done

CREATE = """mutation ($input: ForwardingHostCreateInput!) { forwardingHostCreate(input: $input) {
  hosts { host source filterSpam } errors { code message path index } } }"""
DELETE = """mutation ($input: ForwardingHostDeleteInput!) { forwardingHostDelete(input: $input) {
  deletedIds errors { code message path index } } }"""
HOP = Peer("198.51.100.7", "mx.hop.example")
pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
async def there() -> AsyncIterator[Zone]:
    made = zone(
        {"far.example": "v=spf1 ip4:192.0.2.1 -all", "_dmarc.far.example": "v=DMARC1; p=reject"}
    )
    async with asking(made):
        yield made


async def trust(root: Client, name: str, **more: Any) -> list[str]:
    answer, errors = await done(root, CREATE, hostname=name, **more)
    assert errors == []
    return [each["host"] for each in answer["hosts"]]


async def test_it_is_not_refused_for_what_its_sender_publishes(
    ada: Client, root: Client, there: Zone
) -> None:
    use_dns_zone(ada.world, there, dmarc_policy="reject")
    with pytest.raises(RejectedByDmarc):
        await deliver_from_peer(ada, LETTER, HOP)
    assert await trust(root, "198.51.100.0/24", filterSpam=True) == ["198.51.100.0/24"]
    found = await message_verification(ada, await deliver_from_peer(ada, LETTER, HOP))
    assert found["specialUse"] == "INBOX"
    assert (found["spf"], found["dmarc"]) == (None, "fail")  # what was found is told all the same
    with pytest.raises(RejectedByDmarc):
        await deliver_from_peer(ada, LETTER + b"x\r\n", Peer("198.51.101.7", "mx.hop.example"))
    _, errors = await done(root, DELETE, hosts=["198.51.100.0/24"])
    assert errors == []
    with pytest.raises(RejectedByDmarc):  # at once
        await deliver_from_peer(ada, LETTER + b"y\r\n", HOP)


@pytest.mark.parametrize(("filtered", "folder"), [(True, "JUNK"), (False, "INBOX")])
async def test_its_spam_is_filtered_or_not(
    ada: Client, root: Client, there: Zone, filtered: bool, folder: str
) -> None:
    await trust(root, HOP.ip_address or "", filterSpam=filtered)
    async with rude(says(report(12.0, action="add header"))) as port:
        use_dns_zone(ada.world, there, rspamd=f"http://127.0.0.1:{port}")
        found = await message_verification(ada, await deliver_from_peer(ada, LETTER, HOP))
    assert found["specialUse"] == folder


async def test_what_would_be_refused_comes_in(ada: Client, root: Client, there: Zone) -> None:
    async with rude(says(report(99.0, action="reject"))) as port:
        use_dns_zone(ada.world, there, rspamd=f"http://127.0.0.1:{port}")
        with pytest.raises(Exception, match="spam"):
            await deliver_from_peer(ada, LETTER, Peer("192.0.2.1", "mx.far.example"))
        await trust(root, HOP.ip_address or "")
        found = await message_verification(ada, await deliver_from_peer(ada, LETTER, HOP))
    assert found["specialUse"] == "INBOX"


async def test_the_recipients_own_rules_count(ada: Client, root: Client, there: Zone) -> None:
    use_dns_zone(ada.world, there)
    await trust(root, HOP.ip_address or "")
    block = """mutation { senderRuleCreate(input: {scope: {user: {username: "ada"}}, action: BLOCK,
      patterns: ["far.example"]}) { errors { message } } }"""
    assert (await ada(block))["senderRuleCreate"]["errors"] == []
    found = await message_verification(ada, await deliver_from_peer(ada, LETTER, HOP))
    assert found["specialUse"] == "JUNK"
    assert VerdictReason.RULE == "RULE"


async def test_it_is_not_put_off(ada: Client, root: Client, tmp_path: Path) -> None:
    world = ada.world
    rules = MxRules(greylist=Greylist(world, timedelta(minutes=5), timedelta(days=30)))
    listener = MxListener(world, tmp_path / "spool", SmtpListenerConfig(), rules)
    await listener.start(host="127.0.0.1", port=0)
    client = await connect(listener.port)
    assert (await send_rcpt(client, ada.address)).startswith("451 4.7.1")
    await trust(root, "127.0.0.1")
    assert (await send_rcpt(client, ada.address)).startswith("250")
    assert (await send_rcpt(client, "nobody@example.org")).startswith("550")
    await client.begin(ada.address)
    client.send(raw_message() + b".\r\n")
    assert (await client.hear()).startswith("250")
    await client.close()
    await listener.close(1)


async def test_the_narrowest_network_decides(root: Client, world: Environment) -> None:
    await trust(root, "203.0.113.0/24", filterSpam=True)
    await trust(root, "203.0.113.9")
    await trust(root, "2001:db8::/32")
    for ip, host in (
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.8", "203.0.113.0/24"),
        ("::ffff:203.0.113.8", "203.0.113.0/24"),
        ("2001:db8:1::5", "2001:db8::/32"),
    ):
        found = await find_forwarder(world, ip)
        assert found is not None, ip
        assert (found.host, found.filter_spam) == (host, host == "203.0.113.0/24")
    for other in ("203.0.114.1", "2001:db9::1", "nonsense", "", None):
        assert await find_forwarder(world, other) is None


NAMES: dict[str, tuple[dict[str, str], list[str]]] = {
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


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_is_what_dns_says_it_sends_from(name: str) -> None:
    texts, wanted = NAMES[name]
    made = zone(
        texts,
        A={"mx.spf.example": "203.0.113.5"},
        AAAA={"six.example": "2001:db8::25"},
        MX={"more.example": "10 mx.spf.example.", "bare.example": "10 mx.spf.example."},
    )
    async with asking(made) as place:
        assert await find_networks(place, name) == wanted


async def test_names_that_cannot_be_are_refused() -> None:
    many = " ".join(f"ip4:192.0.{n // 256}.{n % 256}" for n in range(250))
    loops = {f"l{n}.example": f"v=spf1 include:l{n + 1}.example -all" for n in range(40)}
    made = zone(
        {
            "all.example": "v=spf1 +all",
            "wide.example": "v=spf1 ip4:0.0.0.0/1 -all",
            "odd.example": "v=spf1 nonsense",
            "many.example": f"v=spf1 {many} -all",
            **loops,
        },
        MX={"null.example": "0 ."},
    )
    made.broken.add("broken.example")
    async with asking(made) as place:
        for name, rule in (
            ("all.example", "range"),
            ("wide.example", "range"),
            ("odd.example", "spf"),
            ("many.example", "max"),
            ("l0.example", "spf"),
            ("null.example", "unknown"),
            ("none.example", "unknown"),
        ):
            with pytest.raises(InvalidInput) as refused:
                await find_networks(place, name)
            assert (refused.value.constraint, refused.value.path) == (rule, ["hostname"]), name
        with pytest.raises(ServiceUnavailable):
            await find_networks(place, "broken.example")
        assert len(made.asked) < 100


async def test_a_name_is_looked_up_at_once(root: Client, world: Environment) -> None:
    made = zone({"hop.example": "v=spf1 ip4:192.0.2.0/28 ip4:192.0.2.77 -all"})
    async with asking(made) as place:
        world.apply_options(
            CommittedOptions(replace(world.options, dns_resolver=place), world.options_position + 1)
        )
        answer, errors = await done(root, CREATE, hostname="Hop.Example")
        assert errors == []
        assert answer["hosts"] == [
            {"host": host, "source": "hop.example", "filterSpam": False}
            for host in ("192.0.2.0/28", "192.0.2.77")
        ]
        _, errors = await done(root, CREATE, hostname="hop.example")
        assert [error["code"] for error in errors] == ["CONFLICT"]
        answer, errors = await done(root, CREATE, hostname="hop.example", filterSpam=True)
        assert errors == []
        assert [each["filterSpam"] for each in answer["hosts"]] == [True, True]
        made.records["hop.example", "TXT"] = ['"v=spf1 ip4:192.0.2.77 ip4:192.0.2.78 -all"']
        made.records["other.example", "TXT"] = ['"v=spf1 ip4:192.0.2.77 ip4:192.0.2.99 -all"']
        assert await trust(root, "other.example") == ["192.0.2.77", "192.0.2.99"]
    listed = await root("{ forwardingHosts { totalCount nodes { host source } } }")
    assert listed["forwardingHosts"]["totalCount"] == 3
    sources = {each["host"]: each["source"] for each in listed["forwardingHosts"]["nodes"]}
    assert sources["192.0.2.77"] == "other.example"
