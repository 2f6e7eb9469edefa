"""SPF: the vectors of RFC 7208, by a server on loopback, and what makes it ask on and on."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mail.authentication import spf
from mail.authentication.dkim import AuthResult
from mail.authentication.dns_queries import MessageDns
from mail.authentication.spf import SpfResult
from tests.support.mail_servers.dns_zone_server import Zone, asking, quoted, zone

VECTORS = Path(__file__).with_name("vectors") / "rfc7208-tests.yml"
SCENARIOS = list(yaml.safe_load_all(VECTORS.read_text()))
CLIENT = "192.0.2.1"


def _zone(data: dict[str, Any]) -> Zone:
    """The zone of a scenario: SPF records stand for TXT where there is none of these."""
    records: dict[tuple[str, str], list[str]] = {}
    broken = set()
    for name, entries in data.items():
        known, at = [each for each in entries if isinstance(each, dict)], name.lower()
        texts = any("TXT" in each for each in known)
        if "TIMEOUT" in entries:
            broken.add(at)
        records.setdefault((at, "NS"), [])
        for each in known:
            ((kind, value),) = each.items()
            if value == "TIMEOUT":
                broken.add(at)
            elif value != "NONE" and not (kind == "SPF" and texts):
                kind = "TXT" if kind == "SPF" else kind
                records.setdefault((at, kind), []).append(_text(kind, value))
    return Zone(records, broken=broken)


def _text(kind: str, value: Any) -> str:
    if kind == "TXT":
        parts = value if isinstance(value, list) else [value]
        return " ".join(quoted(part) for part in parts) or '""'  # none at all is no record
    if kind == "MX":
        return f"{value[0]} {value[1].rstrip('.')}."
    return f"{value.rstrip('.')}." if kind in ("PTR", "CNAME") else str(value)


async def check(there: Zone, ip: str, sender: str, helo: str = "mx.far.example") -> SpfResult:
    async with asking(there) as place:
        return await spf.check_sender(MessageDns(place, max_queries=100), ip, helo, sender)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each["description"])
async def test_the_vectors_of_the_rfc(scenario: dict[str, Any]) -> None:
    there = _zone(scenario["zonedata"])
    wrong = {}
    for name, case in scenario["tests"].items():
        sender = case.get("mailfrom") or ""
        found = await check(there, str(case["host"]), sender, case["helo"])
        wanted = case["result"] if isinstance(case["result"], list) else [case["result"]]
        if found.result.value not in wanted:
            wrong[name] = found, wanted
    assert not wrong


async def test_it_says_which_name_was_judged() -> None:
    there = zone({"far.example": "v=spf1 ip4:192.0.2.0/24 -all", "mx.far.example": "v=spf1 a -all"})
    assert await check(there, CLIENT, "carol@FAR.example") == SpfResult(
        AuthResult.PASS, "far.example"
    )
    assert await check(there, "198.51.100.1", "c@far.example") == SpfResult(
        AuthResult.FAIL, "far.example"
    )
    assert (await check(there, f"::ffff:{CLIENT}", "c@far.example")).result is AuthResult.PASS
    found = await check(there, CLIENT, "")
    assert (found.domain, found.is_helo, found.result) == ("mx.far.example", True, AuthResult.FAIL)


@pytest.mark.parametrize(
    "helo", ["[192.0.2.1]", "localhost", "", "a" * 300, "..", "\x00\xff", "a b"]
)
async def test_a_name_that_is_none_has_no_record(helo: str) -> None:
    assert (await check(zone({}), CLIENT, "", helo)).result is AuthResult.NONE


async def test_includes_without_end_come_to_one() -> None:
    there = zone({f"i{n}.example": f"v=spf1 include:i{n + 1}.example -all" for n in range(50)})
    assert (await check(there, CLIENT, "c@i0.example")).result is AuthResult.PERMERROR
    assert len(there.asked) <= spf.MAX_LOOKUP_TERMS + 1
    there = zone({"a.example": "v=spf1 include:a.example redirect=a.example"})
    assert (await check(there, CLIENT, "c@a.example")).result is AuthResult.PERMERROR
    many = " ".join(f"a:h{n}.example" for n in range(400))
    there = zone({"a.example": f"v=spf1 {many} -all"})
    assert (await check(there, CLIENT, "c@a.example")).result is AuthResult.PERMERROR
    assert len(there.asked) <= spf.MAX_VOID_LOOKUPS + 2


async def test_the_budget_of_a_message_holds() -> None:
    servers = " ".join(f"mx:m{n}.example" for n in range(10))
    there = zone({"a.example": f"v=spf1 {servers} -all"})
    for n in range(10):
        there.records[f"m{n}.example", "MX"] = [f"{at} h{n}x{at}.example." for at in range(10)]
        for at in range(10):
            there.records[f"h{n}x{at}.example", "A"] = ["198.51.100.1"]
    async with asking(there) as place:
        found = await spf.check_sender(MessageDns(place), CLIENT, "mx", "c@a.example")
    assert found.result is AuthResult.PERMERROR
    assert len(there.asked) == 20


async def test_a_server_that_is_silent_or_in_circles_is_no_verdict() -> None:
    there = zone({"a.example": "v=spf1 a:slow.example -all"})
    there.silent.add("slow.example")
    async with asking(there) as place:
        found = await spf.check_sender(MessageDns(place, timeout=0.3), CLIENT, "mx", "c@a.example")
    assert found.result is AuthResult.TEMPERROR
    circle = {"c.example": "d.example.", "d.example": "c.example."}
    there = zone({"a.example": "v=spf1 a:c.example -all"}, CNAME=circle)
    assert (await check(there, CLIENT, "c@a.example")).result in (
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
async def test_no_record_breaks_it(record: str) -> None:
    there = Zone({("a.example", "TXT"): [quoted(record.encode("latin-1"))]})
    for sender in ("c@a.example", "\xff\x00" * 40 + "@a.example", "." * 300 + "@a.example"):
        assert isinstance((await check(there, CLIENT, sender)).result, AuthResult)
