"""The DNS checks of a domain against servers that respond, lie, fail or are silent."""

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
from pydantic import SecretStr

from graph.app import create_app
from models.domains.dns_record_values import DnsRecordPurpose
from models.errors import Forbidden
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.context import Context
from resolvers.domains import dns_queries, dns_records
from resolvers.domains.dns_records import DnsRecordsKey
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient
from tests.support.mail_servers.smtp_and_dns_servers import FakeDnsServer, run_dns_server
from tests.support.operations.domain_operations import create_domain
from tests.support.sample_mutations import SAMPLE_CALLS

DNS_RECORDS_QUERY = """query ($name: String!, $check: Boolean!) { domain(by: {name: $name}) {
  dnsRecords(check: $check) {
    type name value purpose state found problem optionalReason } } }"""
CORRECT_RECORDS = {
    ("new.example", "MX"): ["10 mx.example.org."],
    ("new.example", "TXT"): ['"v=spf1 mx " "-all"', '"other"'],
    ("_dmarc.new.example", "TXT"): ['"v=DMARC1; p=reject"'],
    ("_smtp._tls.new.example", "TXT"): ['"v=TLSRPTv1; rua=mailto:a@new.example"'],
}
CHECKED_PURPOSES = ["MX", "SPF", "DMARC", "TLS_RPT"]


@dataclass
class LyingDnsServer(FakeDnsServer):
    """A DNS server that answers some names with invalid responses."""

    lies: dict[str, str] = field(default_factory=dict)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        lie = self.lies.get(question.name.to_text(True))
        response = dns.message.make_response(query)
        if lie == "garbage":
            self.transport.sendto(b"\xff" * 40, addr)
        elif lie == "another id":
            response.id ^= 1
            self.transport.sendto(response.to_wire(), addr)
        elif lie == "another name":
            response.answer.append(dns.rrset.from_text("evil.example.", 60, "IN", "MX", "1 evil."))
            self.transport.sendto(response.to_wire(), addr)
        elif lie == "a circle":
            query_name = question.name.to_text()
            for owner, target in ((query_name, "b.example."), ("b.example.", query_name)):
                response.answer.append(dns.rrset.from_text(owner, 60, "IN", "CNAME", target))
            self.transport.sendto(response.to_wire(), addr)
        elif lie == "late":
            asyncio.get_running_loop().call_later(1.0, super().datagram_received, data, addr)
        else:
            super().datagram_received(data, addr)


@asynccontextmanager
async def client_with_dns(
    client: GraphQLClient, dns_names: FakeDnsServer
) -> AsyncIterator[GraphQLClient]:
    """Yield a client of a server that uses these DNS names."""
    with TemporaryDirectory() as folder:
        async with run_dns_server(dns_names):
            options = replace(
                client.environment.options, dns_resolver=f"127.0.0.1:{dns_names.port}"
            )
            server_environment = replace(client.environment, options=options)
            app = create_app(server_environment, spool_folder=Path(folder))
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                yield GraphQLClient(http, server_environment, client.user, client.secret)


async def load_checks_by_purpose(
    client: GraphQLClient, name: str = "new.example"
) -> dict[str, Any]:
    """Return the checked DNS records by purpose."""
    records = (await client(DNS_RECORDS_QUERY, name=name, check=True))["domain"]["dnsRecords"]
    configured = [record for record in records if record["value"] is not None]
    by_purpose = {record["purpose"]: record for record in configured}
    assert sorted(by_purpose) == sorted(CHECKED_PURPOSES)
    return by_purpose


def state_letters(checks: dict[str, Any]) -> str:
    """A letter for each state: the first one, but X for MISMATCH."""
    states = [checks[name]["state"] for name in CHECKED_PURPOSES]
    return "".join("X" if state == "MISMATCH" else state[0] for state in states)


@pytest.fixture
async def client_with_domain(root: GraphQLClient) -> GraphQLClient:
    await create_domain(root, "new.example")
    return root


async def test_records_without_check_are_not_looked_up(client_with_domain: GraphQLClient) -> None:
    dns_names = FakeDnsServer({})
    async with client_with_dns(client_with_domain, dns_names) as client:
        response = await client(DNS_RECORDS_QUERY, name="new.example", check=False)
    records = response["domain"]["dnsRecords"]
    assert {record["state"] for record in records} == {"UNKNOWN"}
    purposes = {*DnsRecordPurpose} - {"DKIM_PENDING", "REVERSE_DNS"}
    assert {record["purpose"] for record in records} == purposes
    problem_by_purpose = {
        record["purpose"]: record["problem"]
        for record in records
        if record["value"] is None and record["type"] != "AAAA"
    }
    assert problem_by_purpose == {
        "HOST_ADDRESS": "Publish the public IPv4 address of the server.",
        "DKIM": "Create a DKIM key for the domain.",
        "MTA_STS": "Set mtaSts.mode to testing or enforce.",
        "MTA_STS_HOST": "Set mtaSts.mode to testing or enforce.",
        "DANE": "Add a TLS certificate for the name of this server.",
        **dict.fromkeys(
            ("AUTOCONFIG", "AUTODISCOVER", "IMAPS", "SUBMISSIONS"),
            "This server does not offer the service.",
        ),
    }
    assert {record["problem"] for record in records if record["value"] is not None} == {
        "Not looked up."
    }


async def test_correct_records_are_ok_and_txt_strings_are_joined(
    client_with_domain: GraphQLClient,
) -> None:
    async with client_with_dns(client_with_domain, FakeDnsServer(CORRECT_RECORDS)) as client:
        checks = await load_checks_by_purpose(client)
    assert state_letters(checks) == "OOOO"
    assert checks["SPF"]["found"] == ["v=spf1 mx -all"]
    assert checks["MX"]["found"] == ["10 mx.example.org."]
    assert {check["problem"] for check in checks.values()} == {None}


async def test_wrong_and_missing_records_have_different_states(
    client_with_domain: GraphQLClient,
) -> None:
    records = {
        ("new.example", "MX"): ["10 mx.elsewhere.example."],
        ("new.example", "TXT"): ['"just a text"'],
        ("_dmarc.new.example", "A"): ["192.0.2.1"],  # the name exists without a TXT record
    }
    async with client_with_dns(client_with_domain, FakeDnsServer(records)) as client:
        checks = await load_checks_by_purpose(client)
    assert state_letters(checks) == "XMMM"
    assert checks["MX"]["found"] == ["10 mx.elsewhere.example."]
    assert checks["SPF"]["found"] == []


async def test_failing_or_silent_server_gives_unknown_states(
    client_with_domain: GraphQLClient,
) -> None:
    dns_names = FakeDnsServer(
        CORRECT_RECORDS,
        servfail_names={"_dmarc.new.example"},
        silent_names={"_smtp._tls.new.example", "new.example"},
    )
    async with client_with_dns(client_with_domain, dns_names) as client:
        checks = await load_checks_by_purpose(client)
    assert state_letters(checks) == "UUUU"
    assert checks["DMARC"]["problem"] == "The name server reports an error: NoNameservers."
    assert {checks[name]["problem"] for name in ("MX", "SPF", "TLS_RPT")} == {
        "The name server did not respond in time."
    }


@pytest.mark.parametrize("lie", ["garbage", "another id", "another name", "a circle"])
async def test_invalid_dns_response_is_ignored(client_with_domain: GraphQLClient, lie: str) -> None:
    dns_names = LyingDnsServer(CORRECT_RECORDS, lies={"new.example": lie})
    async with client_with_dns(client_with_domain, dns_names) as client:
        checks = await load_checks_by_purpose(client)
    assert state_letters(checks)[2:] == "OO"
    assert checks["MX"]["state"] in ("UNKNOWN", "MISSING")
    assert checks["MX"]["found"] == []


async def test_slow_responses_are_awaited_concurrently(
    client_with_domain: GraphQLClient,
) -> None:
    """One after the other, the responses would take longer than the timeout."""
    dns_names = LyingDnsServer(
        CORRECT_RECORDS, lies=dict.fromkeys({name for name, _ in CORRECT_RECORDS}, "late")
    )
    async with client_with_dns(client_with_domain, dns_names) as client:
        assert state_letters(await load_checks_by_purpose(client)) == "OOOO"


async def test_missing_dns_server_gives_unknown_states(client_with_domain: GraphQLClient) -> None:
    dns_names = FakeDnsServer(CORRECT_RECORDS)
    async with run_dns_server(dns_names):
        pass
    options = replace(
        client_with_domain.environment.options, dns_resolver=f"127.0.0.1:{dns_names.port}"
    )
    ctx = Context(replace(client_with_domain.environment, options=options), Viewer(role=Role.ROOT))
    (records,) = await dns_records.compute_expected_records_and_query_dns(
        ctx, [DnsRecordsKey("new.example", is_backup_mx=False, checks_dns=True)]
    )
    assert {record.check.state for record in records} == {"UNKNOWN"}


async def test_many_domains_share_one_timeout(client_with_domain: GraphQLClient) -> None:
    silent = {
        f"{prefix}d{n}.example" for n in range(20) for prefix in ("", "_dmarc.", "_smtp._tls.")
    }
    for n in range(20):
        await create_domain(client_with_domain, f"d{n}.example")
    async with client_with_dns(
        client_with_domain, FakeDnsServer({}, silent_names=silent)
    ) as client:
        started_at = time.monotonic()
        response = await client("{ domains { nodes { dnsRecords(check: true) { state } } } }")
        duration = time.monotonic() - started_at
    assert len(response["domains"]["nodes"]) == 20
    assert duration < dns_queries.OPERATION_TIMEOUT * 10  # one after the other it takes 20


async def test_dns_check_in_a_transaction_is_refused(
    client_with_domain: GraphQLClient, environment: Environment
) -> None:
    ctx = Context(environment, Viewer(role=Role.ROOT))
    key = DnsRecordsKey("new.example", is_backup_mx=False, checks_dns=True)
    async with ctx.write_session():
        with pytest.raises(Forbidden):
            await dns_records.compute_expected_records_and_query_dns(ctx, [key])
        (records,) = await dns_records.compute_expected_records_and_query_dns(
            ctx, [replace(key, checks_dns=False)]
        )
    assert len(records) == 14
    assert client_with_domain


async def test_dns_records_need_an_admin(
    client_with_domain: GraphQLClient, ada: GraphQLClient
) -> None:
    document = "{ viewer { user { domain { dnsRecords { name } } } } }"
    response = await ada.execute(document)
    assert response["errors"][0]["extensions"] == {"code": "FORBIDDEN"}
    cost = (await client_with_domain.execute(DNS_RECORDS_QUERY, name="new.example", check=False))[
        "extensions"
    ]["cost"]
    assert cost["requested"] > 20


async def test_unicode_domain_is_looked_up_in_ascii(client_with_domain: GraphQLClient) -> None:
    await create_domain(client_with_domain, "bücher.example")
    records = {("xn--bcher-kva.example", "MX"): ["10 mx.example.org."]}
    async with client_with_dns(client_with_domain, FakeDnsServer(records)) as client:
        checks = await load_checks_by_purpose(client, "bücher.example")
    assert state_letters(checks) == "OMMM"


HOST = "mx.example.org"
GLOBAL_ADDRESS, PRIVATE_ADDRESS, IPV6_ADDRESS = "9.8.7.6", "10.0.0.1", "2600::1"
REVERSE_NAME = "6.7.8.9.in-addr.arpa"
IPV6_REVERSE_NAME = f"1.{'0.' * 27}0.0.6.2.ip6.arpa"


async def load_records_by_name(
    client: GraphQLClient, records: dict[tuple[str, str], list[str]], **fields: Any
) -> dict[tuple[str, str], Any]:
    """Check the records of new.example against DNS with these records, by type and name."""
    dns_names = FakeDnsServer({**CORRECT_RECORDS, **records}, **fields)
    async with client_with_dns(client, dns_names) as checking_client:
        response = await checking_client(DNS_RECORDS_QUERY, name="new.example", check=True)
    checked_records = response["domain"]["dnsRecords"]
    assert len({(record["type"], record["name"]) for record in checked_records}) == len(
        checked_records
    )
    return {(record["type"], record["name"]): record for record in checked_records}


async def test_reverse_dns_of_public_addresses_is_checked(
    client_with_domain: GraphQLClient,
) -> None:
    records = {
        (HOST, "A"): [GLOBAL_ADDRESS, PRIVATE_ADDRESS],
        (HOST, "AAAA"): [IPV6_ADDRESS],
        (REVERSE_NAME, "PTR"): [f"{HOST}."],
    }
    checked = await load_records_by_name(client_with_domain, records)
    reverse_records = {name: record for (kind, name), record in checked.items() if kind == "PTR"}
    assert {name: record["state"] for name, record in reverse_records.items()} == {
        REVERSE_NAME: "OK",
        IPV6_REVERSE_NAME: "MISSING",
    }
    for record in reverse_records.values():
        assert (record["value"], record["purpose"], record["optionalReason"]) == (
            f"{HOST}.", "REVERSE_DNS", None,
        )  # fmt: skip
    assert [kind for kind, _ in checked][:4] == ["A", "AAAA", "PTR", "PTR"]
    assert sorted(checked["A", HOST]["found"]) == sorted([GLOBAL_ADDRESS, PRIVATE_ADDRESS])
    assert (checked["A", HOST]["value"], checked["A", HOST]["problem"]) == (None, None)


async def test_missing_address_has_the_instruction_what_to_publish(
    client_with_domain: GraphQLClient,
) -> None:
    checked = await load_records_by_name(client_with_domain, {})
    assert {kind for kind, _ in checked}.isdisjoint({"PTR"})
    for kind, protocol in (("A", "IPv4"), ("AAAA", "IPv6")):
        record = checked[kind, HOST]
        assert (record["state"], record["problem"]) == (
            "MISSING", f"Publish the public {protocol} address of the server."
        )  # fmt: skip
        assert bool(record["optionalReason"]) is (kind == "AAAA")


async def test_reverse_dns_is_not_needed_if_another_server_sends(
    client_with_domain: GraphQLClient,
) -> None:
    environment = client_with_domain.environment
    options = replace(environment.options, next_hop=SecretStr("smtp://relay.example.org"))
    client = replace(client_with_domain, environment=replace(environment, options=options))
    checked = await load_records_by_name(client, {(HOST, "A"): [GLOBAL_ADDRESS]})
    assert {kind for kind, _ in checked}.isdisjoint({"PTR"})


TLSA_NAME = f"_25._tcp.{HOST}"


@pytest.mark.parametrize(
    ("signed_names", "published", "state", "is_required"),
    [
        ({"new.example", TLSA_NAME}, False, "MISSING", True),
        ({"new.example", TLSA_NAME}, True, "MISMATCH", True),
        ({"new.example"}, False, "MISSING", False),
        ({TLSA_NAME}, False, "MISSING", False),
        (set(), True, "MISMATCH", False),
    ],
)
async def test_tlsa_record_is_required_if_dnssec_signs_domain_and_host(
    client_with_domain: GraphQLClient,
    signed_names: set[str],
    state: str,
    *,
    published: bool,
    is_required: bool,
) -> None:
    set_certificate = await SAMPLE_CALLS["certificateSet"](client_with_domain, client_with_domain)
    assert (await set_certificate(client_with_domain))["errors"] == []
    records = {(TLSA_NAME, "TLSA"): [f"3 1 1 {'ab' * 32}"]} if published else {}
    checked = await load_records_by_name(client_with_domain, records, dnssec_names=signed_names)
    record = checked["TLSA", TLSA_NAME]
    assert record["state"] == state
    if is_required:
        assert record["optionalReason"] is None
    else:
        assert "RFC 7672" in record["optionalReason"]
