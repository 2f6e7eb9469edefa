"""What DNS says of a domain, asked of a server that answers, lies, or is silent."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dns.message
import dns.rrset
import httpx
import pytest

from graph.app import create_app
from models.errors import Forbidden
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.context import Context, Viewer
from resolvers.domains import dns_records
from resolvers.domains.dns_records import DnsRecordsKey
from tests.conftest import Client
from tests.support.mail_servers.smtp_and_dns_servers import Names, answering
from tests.support.operations.domain_operations import made

RECORDS = """query ($name: String!, $check: Boolean!) { domain(by: {name: $name}) {
  dnsRecords(check: $check) { type name value purpose state found problem } } }"""
RIGHT = {
    ("new.example", "MX"): ["10 mx.example.org."],
    ("new.example", "TXT"): ['"v=spf1 mx " "-all"', '"other"'],
    ("_dmarc.new.example", "TXT"): ['"v=DMARC1; p=reject"'],
    ("_smtp._tls.new.example", "TXT"): ['"v=TLSRPTv1; rua=mailto:a@new.example"'],
}
CHECKED = ["MX", "SPF", "DMARC", "TLS-RPT"]


@dataclass
class Liar(Names):
    """Answers what nobody asked, in each of these ways."""

    lies: dict[str, str] = field(default_factory=dict)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        lie = self.lies.get(question.name.to_text(True))
        answer = dns.message.make_response(query)
        if lie == "garbage":
            self.transport.sendto(b"\xff" * 40, addr)
        elif lie == "another id":
            answer.id ^= 1
            self.transport.sendto(answer.to_wire(), addr)
        elif lie == "another name":
            answer.answer.append(dns.rrset.from_text("evil.example.", 60, "IN", "MX", "1 evil."))
            self.transport.sendto(answer.to_wire(), addr)
        elif lie == "a circle":
            asked = question.name.to_text()
            for begin, end in ((asked, "b.example."), ("b.example.", asked)):
                answer.answer.append(dns.rrset.from_text(begin, 60, "IN", "CNAME", end))
            self.transport.sendto(answer.to_wire(), addr)
        elif lie == "late":
            asyncio.get_running_loop().call_later(1.0, super().datagram_received, data, addr)
        else:
            super().datagram_received(data, addr)


@asynccontextmanager
async def asking(client: Client, names: Names) -> AsyncIterator[Client]:
    """The client of a server that asks these names."""
    with TemporaryDirectory() as folder:
        async with answering(names):
            options = replace(client.world.options, dns_resolver=f"127.0.0.1:{names.port}")
            world = replace(client.world, options=options)
            app = create_app(world, spool_folder=Path(folder))
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                yield Client(http, world, client.user, client.secret)


async def states(client: Client, name: str = "new.example") -> dict[str, Any]:
    """What is found of the records that can be right or wrong, by what they are for."""
    found = (await client(RECORDS, name=name, check=True))["domain"]["dnsRecords"]
    there = [one for one in found if not one["value"].startswith("not configured")]
    named = {one["purpose"].partition(":")[0]: one for one in there}
    named["MX"] = named.pop("Mail for the domain comes here")
    assert sorted(named) == sorted(CHECKED)
    return named


def short(found: dict[str, Any]) -> str:
    """The first letters of the states."""
    return "".join(found[name]["state"][0] for name in CHECKED)


@pytest.fixture
async def there(root: Client) -> Client:
    await made(root, "new.example")
    return root


async def test_unasked_nothing_is_looked_up(there: Client) -> None:
    names = Names({})
    async with asking(there, names) as client:
        answer = await client(RECORDS, name="new.example", check=False)
    found = answer["domain"]["dnsRecords"]
    assert {one["state"] for one in found} == {"UNKNOWN"}
    assert {one["problem"] for one in found} == {"not looked up", "not configured"}
    kinds = {one["purpose"].partition(":")[0] for one in found}
    assert kinds >= {"SPF", "DKIM", "DMARC", "MTA-STS", "TLS-RPT", "DANE"}
    unset = [one for one in found if one["value"].startswith("not configured: ")]
    assert len(unset) == 8
    assert all(one["problem"] == "not configured" for one in unset)


async def test_right_records_are_right_and_texts_are_joined(there: Client) -> None:
    async with asking(there, Names(RIGHT)) as client:
        found = await states(client)
    assert short(found) == "OOOO"
    assert found["SPF"]["found"] == ["v=spf1 mx -all"]
    assert found["MX"]["found"] == ["10 mx.example.org."]
    assert {one["problem"] for one in found.values()} == {None}


async def test_wrong_and_missing_records_are_told_apart(there: Client) -> None:
    records = {
        ("new.example", "MX"): ["10 mx.elsewhere.example."],
        ("new.example", "TXT"): ['"just a text"'],
        ("_dmarc.new.example", "A"): ["192.0.2.1"],  # the name is there, and has no TXT
    }
    async with asking(there, Names(records)) as client:
        found = await states(client)
    assert short(found) == "DMMM"
    assert found["MX"]["found"] == ["10 mx.elsewhere.example."]
    assert found["SPF"]["found"] == []


async def test_a_server_that_fails_or_is_silent_proves_nothing(there: Client) -> None:
    names = Names(
        RIGHT, broken={"_dmarc.new.example"}, silent={"_smtp._tls.new.example", "new.example"}
    )
    async with asking(there, names) as client:
        began = time.monotonic()
        found = await states(client)
        took = time.monotonic() - began
    assert short(found) == "UUUU"
    assert "fails" in found["DMARC"]["problem"]
    assert {found[name]["problem"] for name in ("MX", "SPF", "TLS-RPT")} == {"no answer in time"}
    assert took < dns_records.OPERATION_TIMEOUT * 2


@pytest.mark.parametrize("lie", ["garbage", "another id", "another name", "a circle"])
async def test_a_lie_is_not_believed(there: Client, lie: str) -> None:
    names = Liar(RIGHT, lies={"new.example": lie})
    async with asking(there, names) as client:
        found = await states(client)
    assert short(found)[2:] == "OO"
    assert found["MX"]["state"] in ("UNKNOWN", "MISSING")
    assert found["MX"]["found"] == []


async def test_a_slow_answer_within_the_deadline_counts(there: Client) -> None:
    names = Liar(RIGHT, lies=dict.fromkeys({name for name, _ in RIGHT}, "late"))
    async with asking(there, names) as client:
        began = time.monotonic()
        assert short(await states(client)) == "OOOO"
        assert time.monotonic() - began < dns_records.OPERATION_TIMEOUT  # side by side


async def test_where_no_server_listens_all_is_unknown(there: Client) -> None:
    names = Names(RIGHT)
    async with answering(names):
        pass
    options = replace(there.world.options, dns_resolver=f"127.0.0.1:{names.port}")
    ctx = Context(replace(there.world, options=options), Viewer(role=Role.ROOT))
    (found,) = await dns_records.load_records_by_domain(
        ctx, [DnsRecordsKey("new.example", is_backup_mx=False, checks_dns=True)]
    )
    assert {one.judged.state for one in found} == {"UNKNOWN"}


async def test_many_domains_share_one_deadline(there: Client) -> None:
    silent = {f"{begin}d{n}.example" for n in range(20) for begin in ("", "_dmarc.", "_smtp._tls.")}
    for n in range(20):
        await made(there, f"d{n}.example")
    async with asking(there, Names({}, silent=silent)) as client:
        began = time.monotonic()
        answer = await client("{ domains { nodes { dnsRecords(check: true) { state } } } }")
        took = time.monotonic() - began
    assert len(answer["domains"]["nodes"]) == 20
    assert took < dns_records.OPERATION_TIMEOUT * 2


async def test_a_look_up_takes_no_part_in_a_unit(there: Client, world: Environment) -> None:
    ctx = Context(world, Viewer(role=Role.ROOT))
    question = DnsRecordsKey("new.example", is_backup_mx=False, checks_dns=True)
    async with ctx.write_session():
        with pytest.raises(Forbidden):
            await dns_records.load_records_by_domain(ctx, [question])
        (found,) = await dns_records.load_records_by_domain(
            ctx, [replace(question, checks_dns=False)]
        )
    assert len(found) == 12
    assert there


async def test_dns_is_for_those_who_administer(there: Client, ada: Client) -> None:
    document = "{ viewer { user { domain { dnsRecords { name } } } } }"
    answer = await ada.raw(document)
    assert answer["errors"][0]["extensions"] == {"code": "FORBIDDEN"}
    cost = (await there.raw(RECORDS, name="new.example", check=False))["extensions"]["cost"]
    assert cost["requested"] > 20


async def test_a_name_in_unicode_is_asked_for_in_ascii(there: Client) -> None:
    await made(there, "bücher.example")
    records = {("xn--bcher-kva.example", "MX"): ["10 mx.example.org."]}
    async with asking(there, Names(records)) as client:
        found = await states(client, "bücher.example")
    assert short(found) == "OMMM"
