"""Tests of what `merganser doctor` finds: disk, clock, reverse DNS and the age of backups."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from merganser.doctor.clock import is_clock_synchronized_or_none
from merganser.doctor.findings import Finding, Verdict
from merganser.doctor.postgres import findings_of_facts
from merganser.doctor.reverse_dns import check_reverse_dns
from merganser.settings.settings import Settings
from tests.support.clients.command_line import CommandLine
from tests.support.mail_servers.dns_zone_server import make_dns_zone, run_dns_zone

HOST = "mx.merganser-mail.org"
OTHER_HOST = "host9.provider.net"
ADDRESS, REVERSE_NAME = "9.9.9.9", "9.9.9.9.in-addr.arpa"


def findings_of(shell: CommandLine, subject: str) -> list[tuple[str, str]]:
    """The verdicts and texts of a check."""
    rows = shell("doctor", "--json").json
    return [(row["verdict"], row["found"]) for row in rows if row["subject"] == subject]


def test_doctor_reports_a_disk_with_less_than_the_reserve(shell: CommandLine) -> None:
    assert {verdict for verdict, _ in findings_of(shell, "disk")} <= {"ok", "hint"}
    shell.set_settings(disk_reserve="4000 TB")
    assert {verdict for verdict, _ in findings_of(shell, "disk")} == {"action"}


def test_doctor_reports_whether_the_clock_is_synchronized(shell: CommandLine) -> None:
    ((verdict, text),) = findings_of(shell, "clock")
    is_unsynchronized = is_clock_synchronized_or_none() is False
    assert verdict == ("hint" if is_unsynchronized else "ok")
    assert text.endswith("not synchronized") is is_unsynchronized


async def reverse_dns_findings(ptr_names: dict[str, str], **settings: str) -> list[Finding]:
    """Check the host name with these PTR records."""
    addresses = {HOST: ADDRESS, OTHER_HOST: ADDRESS, "private.provider.net": "10.0.0.1"}
    async with run_dns_zone(make_dns_zone({}, A=addresses, PTR=ptr_names)) as name_server:
        values: dict[str, Any] = {"hostname": HOST, "dns_resolver": name_server, **settings}
        return await check_reverse_dns(Settings(**values))


@pytest.mark.parametrize(
    ("ptr_names", "verdict", "text"),
    [
        ({REVERSE_NAME: f"{HOST.upper()}."}, Verdict.OK, f"{ADDRESS} has the name {HOST}"),
        ({}, Verdict.ACTION, f"{ADDRESS} has no PTR record"),
        (
            {REVERSE_NAME: f"{OTHER_HOST}."},
            Verdict.HINT,
            f"{ADDRESS} has the name {OTHER_HOST}, and not {HOST}",
        ),
        (
            {REVERSE_NAME: "unknown.provider.net."},
            Verdict.ACTION,
            f"{ADDRESS} has the name unknown.provider.net, which doesn't lead back to it",
        ),
    ],
)
async def test_reverse_dns_of_the_host_name(
    ptr_names: dict[str, str], verdict: Verdict, text: str
) -> None:
    (finding,) = await reverse_dns_findings(ptr_names)
    assert (finding.subject, finding.verdict, finding.found) == ("reverse DNS", verdict, text)
    assert bool(finding.remedy) is (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    "settings",
    [
        {"hostname": "localhost"},
        {"hostname": "mx.provider.example"},
        {"hostname": "private.provider.net"},
        {"hostname": "no-address.provider.net"},
        {"next_hop": "smtp://relay.provider.net:25"},
    ],
)
async def test_reverse_dns_is_not_checked_without_own_public_address(
    settings: dict[str, str],
) -> None:
    assert await reverse_dns_findings({}, **settings) == []


async def test_silent_name_server_is_a_hint() -> None:
    zone = make_dns_zone({}, A={HOST: ADDRESS})
    zone.servfail_names.add(REVERSE_NAME)
    async with run_dns_zone(zone) as name_server:
        settings = Settings(hostname=HOST, dns_resolver=name_server)
        (finding,) = await check_reverse_dns(settings)
    assert (finding.verdict, finding.found) == (Verdict.HINT, f"no response for {ADDRESS}")


def test_doctor_reports_missing_dns_records(shell: CommandLine) -> None:
    for name in ("merganser-mail.org", "unknown-mail.org", "broken-mail.org"):
        assert shell("domain", "add", name).code == 0

    async def dns_findings() -> list[tuple[str, str]]:
        mail_server = {"merganser-mail.org": f"10 {HOST}."}
        zone = make_dns_zone({}, A={HOST: ADDRESS}, MX=mail_server)
        zone.servfail_names.add("broken-mail.org")
        async with run_dns_zone(zone) as name_server:
            shell.set_settings(hostname=HOST, dns_resolver=name_server)
            return await asyncio.to_thread(findings_of, shell, "DNS")

    found = asyncio.run(dns_findings())
    assert found[0] == ("ok", f"{HOST} has A {ADDRESS}")
    assert sorted(found[1:]) == [
        ("action", "unknown-mail.org has no MX and no A record"),
        ("hint", "no response for broken-mail.org (NoNameservers)"),
        ("ok", f"merganser-mail.org has MX 10 {HOST}."),
    ]


def test_doctor_reports_the_age_of_the_newest_backup(ada: CommandLine, tmp_path: Path) -> None:
    target = tmp_path / "backups"
    ((verdict, _),) = findings_of(ada, "backup")
    assert verdict == "hint"  # no target is set
    ada.set_settings(backup_target=str(target), backup_max_age="2 h")
    assert findings_of(ada, "backup") == [("action", f"the folder {target} does not exist")]
    assert not target.exists()
    target.mkdir()
    assert findings_of(ada, "backup") == [("action", f"{target} has no complete backup")]
    ada.set_settings(backup_target=str(tmp_path / ("x" * 300)))  # the system refuses to look
    ((verdict, text),) = findings_of(ada, "backup")
    assert (verdict, "File name too long" in text) == ("action", True)
    ada.set_settings(backup_target=str(target))
    result = ada("backup", target, "--json")
    assert result.code == 0, result.err
    id_ = result.json["id"]
    assert findings_of(ada, "backup") == [("ok", f"the newest backup, {id_}, is 0.0 h old")]

    path = target / "db" / f"{id_}.manifest.json"
    manifest = json.loads(path.read_bytes())
    began_at = datetime.now(UTC) - timedelta(hours=3)
    path.write_text(json.dumps({**manifest, "began_at": began_at.isoformat()}))
    assert findings_of(ada, "backup") == [("action", f"the newest backup, {id_}, is 3.0 h old")]
    ada.set_settings(backup_max_age="4 h")
    path.write_text(json.dumps({**manifest, "missing_objects": ["ab/cd", "ab/ef"]}))
    ((verdict, text),) = findings_of(ada, "backup")
    assert (verdict, text.endswith("lacks 2 objects that the store has lost")) == ("hint", True)
    path.write_bytes(b"{")
    ((verdict, text),) = findings_of(ada, "backup")
    assert (verdict, text.startswith("can't be read: ")) == ("action", True)


GOOD_POSTGRES = {
    "version": "15.2 (Debian)",
    "major_version": 15,
    "encoding": "UTF8",
    "connections": 110,
    "can_create_tables": True,
    "address": "10.0.0.7",
    "has_tls": True,
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {},
            [(Verdict.OK, "version 15.2 (Debian), UTF8, 110 connections, enough for 2 processes")],
        ),
        (
            {"version": "14.9", "major_version": 14},
            [(Verdict.ACTION, "version 14.9")],
        ),
        (
            {"encoding": "LATIN1", "can_create_tables": False},
            [
                (Verdict.ACTION, "the database has the encoding LATIN1"),
                (Verdict.ACTION, "the user of the URL can't create tables"),
            ],
        ),
        (
            {"connections": 54},
            [(Verdict.HINT, "54 connections; a process of Merganser can need 55")],
        ),
        (
            {"has_tls": False},
            [(Verdict.HINT, "the connection to 10.0.0.7 is not encrypted")],
        ),
    ],
)
def test_facts_of_postgres_have_findings(
    changed: dict[str, Any], expected: list[tuple[Verdict, str]]
) -> None:
    found = findings_of_facts(SimpleNamespace(**{**GOOD_POSTGRES, **changed}))
    assert [(finding.verdict, finding.found) for finding in found] == expected
    assert all(finding.remedy for finding in found if finding.verdict is not Verdict.OK)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", None])
def test_local_connections_to_postgres_need_no_tls(address: str | None) -> None:
    facts = SimpleNamespace(**{**GOOD_POSTGRES, "has_tls": False, "address": address})
    assert [finding.verdict for finding in findings_of_facts(facts)] == [Verdict.OK]
