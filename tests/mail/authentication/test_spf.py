"""SPF: the vectors of RFC 7208 with a name server on loopback, and hostile records."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mail.authentication import spf
from mail.authentication.dkim import AuthResult
from mail.authentication.dns_queries import MessageDns
from mail.authentication.spf import SpfResult
from tests.support.mail_servers.dns_zone_server import (
    DnsZoneServer,
    make_dns_zone,
    run_dns_zone,
    txt_rdata,
)

VECTORS = Path(__file__).with_name("vectors") / "rfc7208-tests.yml"
SCENARIOS = list(yaml.safe_load_all(VECTORS.read_text()))
CLIENT_IP = "192.0.2.1"


def zone_of_scenario(data: dict[str, Any]) -> DnsZoneServer:
    """DNS zone of a scenario. SPF records become TXT records of names without any TXT record."""
    records: dict[tuple[str, str], list[str]] = {}
    failing_names = set()
    for name, name_entries in data.items():
        record_entries = [entry for entry in name_entries if isinstance(entry, dict)]
        lower_name = name.lower()
        has_txt = any("TXT" in entry for entry in record_entries)
        if "TIMEOUT" in name_entries:
            failing_names.add(lower_name)
        records.setdefault((lower_name, "NS"), [])
        for entry in record_entries:
            ((record_type, value),) = entry.items()
            if value == "TIMEOUT":
                failing_names.add(lower_name)
            elif value != "NONE" and not (record_type == "SPF" and has_txt):
                record_type = "TXT" if record_type == "SPF" else record_type
                records.setdefault((lower_name, record_type), []).append(
                    record_text(record_type, value)
                )
    return DnsZoneServer(records, servfail_names=failing_names)


def record_text(record_type: str, value: Any) -> str:
    if record_type == "TXT":
        parts = value if isinstance(value, list) else [value]
        # an empty TXT record, not a missing one
        return " ".join(txt_rdata(part) for part in parts) or '""'
    if record_type == "MX":
        return f"{value[0]} {value[1].rstrip('.')}."
    return f"{value.rstrip('.')}." if record_type in ("PTR", "CNAME") else str(value)


async def check_spf(
    dns_server: DnsZoneServer, ip: str, sender: str, helo: str = "mx.far.example"
) -> SpfResult:
    async with run_dns_zone(dns_server) as dns_address:
        return await spf.check_sender(MessageDns(dns_address, max_queries=100), ip, helo, sender)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda item: item["description"])
async def test_rfc_7208_vectors(scenario: dict[str, Any]) -> None:
    dns_server = zone_of_scenario(scenario["zonedata"])
    differences = {}
    for name, case in scenario["tests"].items():
        sender = case.get("mailfrom") or ""
        result = await check_spf(dns_server, str(case["host"]), sender, case["helo"])
        expected = case["result"] if isinstance(case["result"], list) else [case["result"]]
        if result.result.value not in expected:
            differences[name] = result, expected
    assert not differences


async def test_result_names_the_checked_domain() -> None:
    dns_server = make_dns_zone(
        {"far.example": "v=spf1 ip4:192.0.2.0/24 -all", "mx.far.example": "v=spf1 a -all"}
    )
    assert await check_spf(dns_server, CLIENT_IP, "carol@FAR.example") == SpfResult(
        AuthResult.PASS, "far.example"
    )
    assert await check_spf(dns_server, "198.51.100.1", "c@far.example") == SpfResult(
        AuthResult.FAIL, "far.example"
    )
    assert (
        await check_spf(dns_server, f"::ffff:{CLIENT_IP}", "c@far.example")
    ).result is AuthResult.PASS
    result = await check_spf(dns_server, CLIENT_IP, "")
    assert (result.domain, result.is_helo, result.result) == (
        "mx.far.example",
        True,
        AuthResult.FAIL,
    )


@pytest.mark.parametrize(
    "helo", ["[192.0.2.1]", "localhost", "", "a" * 300, "..", "\x00\xff", "a b"]
)
async def test_invalid_helo_name_is_none(helo: str) -> None:
    assert (await check_spf(make_dns_zone({}), CLIENT_IP, "", helo)).result is AuthResult.NONE


async def test_too_many_lookups_are_permerror() -> None:
    dns_server = make_dns_zone(
        {f"i{n}.example": f"v=spf1 include:i{n + 1}.example -all" for n in range(50)}
    )
    assert (await check_spf(dns_server, CLIENT_IP, "c@i0.example")).result is AuthResult.PERMERROR
    assert len(dns_server.queries) <= spf.MAX_LOOKUP_TERMS + 1
    dns_server = make_dns_zone({"a.example": "v=spf1 include:a.example redirect=a.example"})
    assert (await check_spf(dns_server, CLIENT_IP, "c@a.example")).result is AuthResult.PERMERROR
    mechanisms = " ".join(f"a:h{n}.example" for n in range(400))
    dns_server = make_dns_zone({"a.example": f"v=spf1 {mechanisms} -all"})
    assert (await check_spf(dns_server, CLIENT_IP, "c@a.example")).result is AuthResult.PERMERROR
    assert len(dns_server.queries) <= spf.MAX_VOID_LOOKUPS + 2


async def test_dns_query_limit_of_a_message_is_kept() -> None:
    servers = " ".join(f"mx:m{n}.example" for n in range(10))
    dns_server = make_dns_zone({"a.example": f"v=spf1 {servers} -all"})
    for n in range(10):
        dns_server.records[f"m{n}.example", "MX"] = [
            f"{number} h{n}x{number}.example." for number in range(10)
        ]
        for number in range(10):
            dns_server.records[f"h{n}x{number}.example", "A"] = ["198.51.100.1"]
    async with run_dns_zone(dns_server) as dns_address:
        result = await spf.check_sender(MessageDns(dns_address), CLIENT_IP, "mx", "c@a.example")
    assert result.result is AuthResult.PERMERROR
    assert len(dns_server.queries) == 20


async def test_dns_timeout_or_cname_loop_is_not_pass() -> None:
    dns_server = make_dns_zone({"a.example": "v=spf1 a:slow.example -all"})
    dns_server.silent_names.add("slow.example")
    async with run_dns_zone(dns_server) as dns_address:
        result = await spf.check_sender(
            MessageDns(dns_address, timeout=0.3), CLIENT_IP, "mx", "c@a.example"
        )
    assert result.result is AuthResult.TEMPERROR
    cname_loop = {"c.example": "d.example.", "d.example": "c.example."}
    dns_server = make_dns_zone({"a.example": "v=spf1 a:c.example -all"}, CNAME=cname_loop)
    assert (await check_spf(dns_server, CLIENT_IP, "c@a.example")).result in (
        AuthResult.TEMPERROR,
        AuthResult.FAIL,
    )


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 a:%{d1000000000000}.example -all",
        "v=spf1 exists:%{L}.%{l99}.example -all",
        "v=spf1 " + "ip4:192.0.2.9 " * 3000,
        "v=spf1 a/99",
        "v=spf1 ip6:" + ":" * 500,
        "v=spf1 include:" + "a." * 400 + "example",
        "v=spf1 exists:%{ir}.%{v}.%{p}.x.example -all",
        "v=spf1 a:" + "/1" * 15_000 + "x -all",
        "v=spf1 " + "%{s}." * 90 + "x.example -all",
        "v=spf1 exists:" + "%{S}." * 80 + "x.example",
        "v=spf1 \xff\xfe -all",
        "v=spf1 a:b\\.c.example",
        "v=spf1 ptr ptr ptr ptr:x.example ~all",
    ],
)
async def test_hostile_record_returns_a_result(record: str) -> None:
    dns_server = DnsZoneServer({("a.example", "TXT"): [txt_rdata(record.encode("latin-1"))]})
    for sender in ("c@a.example", "\xff\x00" * 40 + "@a.example", "." * 300 + "@a.example"):
        assert isinstance((await check_spf(dns_server, CLIENT_IP, sender)).result, AuthResult)
