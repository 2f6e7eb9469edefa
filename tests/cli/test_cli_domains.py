"""Tests of `merganser domain`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.command_line import CommandLine
from tests.support.mail_servers.dns_zone_server import DnsZoneServer, make_dns_zone, txt_rdata
from tests.support.mail_servers.dns_zone_thread import run_dns_zone_in_thread
from tests.support.mail_servers.smtp_and_dns_servers import SERVER_PEM

HOST = "mx.example.org"
ALL_RECORDS = {
    (HOST, "A"): ["9.8.7.6"],
    ("6.7.8.9.in-addr.arpa", "PTR"): [f"{HOST}."],
    ("example.org", "MX"): [f"10 {HOST}."],
    ("example.org", "TXT"): [txt_rdata("v=spf1 mx ~all")],
    ("_dmarc.example.org", "TXT"): [txt_rdata("v=DMARC1; p=reject")],
    ("_smtp._tls.example.org", "TXT"): [txt_rdata("v=TLSRPTv1; rua=mailto:a@example.org")],
}


def test_domain_is_created_listed_renamed_and_deleted(ada: CommandLine) -> None:
    result = ada("domain", "add", "NEW.example", "--max-users", "2", "--quota", "20 GiB")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("NEW.example created: dom_")
    existing_domain, new_domain = ada("domain", "list", "--json").json
    assert (existing_domain["name"], existing_domain["users"], existing_domain["quota"]) == (
        "example.org",
        1,
        None,
    )
    assert (new_domain["name"], new_domain["max_users"], new_domain["quota"]) == (
        "new.example",
        2,
        20 << 30,
    )
    table = ada("domain", "list").out
    assert "20 GiB" in table
    assert "unlimited" in table

    result = ada("domain", "rename", "example.org", "example.net", "--dry-run")
    assert (result.code, result.out.splitlines()) == (
        0,
        ["example.org would be example.net.", "Addresses: 1, users: 1, aliases: 0."],
    )
    assert "example.org" in ada("user", "list").out
    assert ada("domain", "rename", "example.org", "example.net").code == 0
    assert "ada@example.net" in ada("user", "list").out
    assert ada("domain", "delete", "new.example").out == "1 deleted.\n"
    assert [row["name"] for row in ada("domain", "list", "--json").json] == ["example.net"]


def test_deleted_domain_is_removed_from_api_key(ada: CommandLine) -> None:
    ada("domain", "add", "new.example")
    domain_options = ("--domain", "new.example", "--domain", "example.org")
    ada("api-key", "create", "--name", "partner", "--role", "DOMAIN_ADMIN", *domain_options)
    (key,) = ada("api-key", "list", "--json").json
    assert key["domains"] == ["example.org", "new.example"]
    ada("domain", "delete", "new.example")
    (key,) = ada("api-key", "list", "--json").json
    assert key["domains"] == ["example.org"]


@pytest.mark.parametrize(
    ("arguments", "error_text"),
    [
        (("add", "example.org"), "The domain example.org already exists"),
        (("add", "a b"), "name: Not a domain name."),
        (("add", "x.example", "--quota", "much"), "--quota: write a size"),
        (("add", "x.example", "--quota", "1 GiB", "--max-user-quota", "2 GiB"), "maxUserQuota"),
        (("add", "x.example", "--max-users", "-1"), "maxUsers"),
        (("rename", "nowhere.example", "x.example"), "Domain not found: nowhere.example."),
        (
            ("rename", "example.org", "example.org"),
            "The new name must differ from the current name.",
        ),
        (("delete", "example.org"), "The domain has users."),
        (("delete", "nowhere.example"), "Domain not found: nowhere.example."),
        (("dns", "nowhere.example"), "Domain not found: nowhere.example."),
    ],
)
def test_domain_error_is_reported_in_one_line(
    ada: CommandLine, arguments: tuple[str, ...], error_text: str
) -> None:
    result = ada("domain", *arguments)
    assert result.code in (1, 2)
    assert result.out == ""
    assert result.err.startswith("merganser: ")
    assert result.err.count("\n") == 1
    assert error_text in result.err


def test_dns_records_are_compared_with_expected_ones(ada: CommandLine) -> None:
    ada.set_settings(hostname=HOST)
    result = ada("domain", "dns", "example.org", "--no-check", "--json")
    assert result.code == 0
    values = {(record["type"], record["name"]): record["value"] for record in result.json}
    assert values["MX", "example.org"] == f"10 {HOST}."
    zone = make_dns_zone({}, MX={"example.org": f"10 {HOST}."})
    with run_dns_zone_in_thread(zone) as name_server:
        ada.set_settings(dns_resolver=name_server)
        result = ada("domain", "dns", "example.org", "--json")
    assert result.code == 1  # all but MX is missing
    states = {(record["type"], record["name"]): record["state"] for record in result.json}
    assert states["MX", "example.org"] == "OK"
    assert states["TXT", "_dmarc.example.org"] == "MISSING"


@dataclass
class PublishingZone(DnsZoneServer):
    """Publishes all records after it has answered the first query for the DMARC record."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        super().datagram_received(data, addr)
        if self.queries[-1] == ("_dmarc.example.org", "TXT"):
            self.records |= ALL_RECORDS


def test_wait_ends_when_dns_has_all_required_records(ada: CommandLine) -> None:
    ada.set_settings(hostname=HOST)
    zone = PublishingZone({(HOST, "A"): ["9.8.7.6"]})
    with run_dns_zone_in_thread(zone) as name_server:
        ada.set_settings(dns_resolver=name_server)
        result = ada("domain", "dns", "example.org", "--wait", "--json")
    assert (result.code, result.err.count("\n")) == (0, 1)
    assert result.err.startswith("Waiting for ")
    assert "TXT _dmarc.example.org" in result.err
    assert result.err.endswith(" Next query in 1 s.\n")
    states = {(record["type"], record["name"]): record["state"] for record in result.json}
    assert {states[kind, name] for name, kind in ALL_RECORDS} == {"OK"}


def test_wait_fails_after_the_timeout_with_the_missing_records(ada: CommandLine) -> None:
    ada.set_settings(hostname=HOST)
    zone = DnsZoneServer({key: ALL_RECORDS[key] for key in ALL_RECORDS if key[1] != "PTR"})
    with run_dns_zone_in_thread(zone) as name_server:
        ada.set_settings(dns_resolver=name_server)
        result = ada("domain", "dns", "example.org", "--wait", "--timeout", "1 s")
    assert result.code == 1
    assert "MISSING" in result.out
    *progress_lines, last_line = result.err.splitlines()
    names = "PTR 6.7.8.9.in-addr.arpa"
    assert progress_lines
    for line in progress_lines:
        assert line.startswith(f"Waiting for 1 of 6 records: {names}. Next query in ")
    assert last_line == f"merganser: After 1 s, DNS does not show these records: {names}"


def test_wait_needs_dns(ada: CommandLine) -> None:
    result = ada("domain", "dns", "example.org", "--wait", "--no-check")
    assert (result.code, result.out) == (2, "")
    assert result.err == "merganser: --wait queries DNS: omit --no-check.\n"


@pytest.mark.parametrize("is_signed", [True, False])
def test_missing_tlsa_record_is_an_error_only_with_dnssec(
    ada: CommandLine, *, is_signed: bool
) -> None:
    ada.set_settings(hostname=HOST, tls_cert=str(SERVER_PEM), tls_key=str(SERVER_PEM))
    zone = DnsZoneServer(ALL_RECORDS)
    if is_signed:
        zone.dnssec_names = {"example.org", f"_25._tcp.{HOST}"}
    with run_dns_zone_in_thread(zone) as name_server:
        ada.set_settings(dns_resolver=name_server)
        table = ada("domain", "dns", "example.org")
        result = ada("domain", "dns", "example.org", "--json")
    assert table.code == result.code == int(is_signed)
    (record,) = (record for record in result.json if record["type"] == "TLSA")
    assert (record["state"], record["optional_reason"] is None) == ("MISSING", is_signed)
    (line,) = (line for line in table.out.splitlines() if "TLSA" in line)
    assert ("Optional: The name server confirms no DNSSEC" in line) is not is_signed


@pytest.mark.parametrize("value", ["localhost:53", "127.0.0.1:0", "127.0.0.1:99999", "127.0.0.1"])
def test_dns_resolver_needs_address_and_port(ada: CommandLine, value: str) -> None:
    ada.set_settings(dns_resolver=value)
    result = ada("domain", "list")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "MERGANSER_DNS_RESOLVER is wrong: write address:port" in result.err


def test_arc_key_is_created_once_and_shown_again(shell: CommandLine, tmp_path: Path) -> None:
    result = shell("domain", "arc-key", "example.org")
    assert (result.code, "MERGANSER_ARC_KEYS_FOLDER" in result.err) == (2, True)
    shell.set_settings(arc_keys_folder=str(tmp_path / "keys"))
    first_result = shell("domain", "arc-key", "Bücher.example", "--selector", "a1")
    name = "a1._domainkey.xn--bcher-kva.example"
    path = tmp_path / "keys" / f"{name}.pem"
    first, record = first_result.out.splitlines()
    assert first == f"{path} was created. Publish this DNS record:"
    assert record.startswith(f'{name}. TXT "v=DKIM1; k=rsa; p=MIIB')
    assert path.stat().st_mode & 0o777 == 0o600
    second_result = shell("domain", "arc-key", "bücher.example", "--selector", "a1")
    assert second_result.out.splitlines() == [f"{path} exists. Publish this DNS record:", record]
    assert arc_key_check(shell) == ("ok", f"keys in {path.parent}: 1")
    path.chmod(0o644)
    assert arc_key_check(shell) == ("action", f"Other users of the machine can read {path.name}.")
    result = shell("domain", "arc-key", "bücher.example", "--selector", "a1")
    assert (result.code, result.err) == (
        1,
        f"merganser: Other users of the machine can read {path.name}.\n",
    )
    for arguments in (
        ("a b",),
        ("example.org", "--selector", "../x"),
        ("example.org", "--selector", ""),
    ):
        assert shell("domain", "arc-key", *arguments).code == 2
    assert len(list((tmp_path / "keys").iterdir())) == 1


def arc_key_check(shell: CommandLine) -> tuple[str, str]:
    """Return what `merganser doctor` reports about the ARC keys."""
    (row,) = [row for row in shell("doctor", "--json").json if row["subject"] == "ARC keys"]
    return row["verdict"], row["found"]


def test_dkim_keys_are_created_listed_and_rotated(ada: CommandLine) -> None:
    add_result = ada("domain", "dkim-add", "example.org")
    assert add_result.code == 0, add_result.err
    first_line, record = add_result.out.splitlines()
    assert first_line == "Publish these DNS records:"
    assert record.startswith('dkim._domainkey.example.org. TXT "v=DKIM1; k=rsa; p=MIIB')
    assert all(len(part) <= 255 for part in record.split('"')[1::2])
    assert ada("domain", "dkim-add", "example.org", "--bits", "7").code == 1
    assert ada("domain", "dkim-add", "far.example").code == 1
    result = ada("domain", "dkim-rotate", "example.org")
    assert (result.code, result.out.count("_domainkey.example.org. TXT")) == (0, 1)
    (old_key, new_key) = ada("domain", "dkim-list", "example.org", "--no-check", "--json").json
    assert (old_key["selector"], old_key["state"], new_key["state"]) == (
        "dkim",
        "ACTIVE",
        "PENDING",
    )
    assert new_key["name"] in result.out
    assert ada("domain", "dkim-activate", "example.org", "nothing").code == 1
    assert ada("domain", "dkim-activate", "example.org", new_key["selector"]).code == 0
    table = ada("domain", "dkim-list", "--no-check").out
    assert ("RETIRED" in table, "ACTIVE" in table, "PRIVATE" in table) == (True, True, False)


def test_domain_is_created_with_or_without_dkim_key(ada: CommandLine) -> None:
    created_line, dns_line, record = ada("domain", "add", "keyed.example").out.splitlines()
    assert created_line.startswith("keyed.example created: dom_")
    assert dns_line == "Publish these DNS records:"
    assert record.startswith('dkim._domainkey.keyed.example. TXT "v=DKIM1; k=rsa; p=')
    result = ada("domain", "add", "bare.example", "--no-dkim")
    assert (result.code, result.err, result.out.count("\n")) == (0, "", 1)
    assert result.out.startswith("bare.example created: dom_")
    for name, states in (("keyed.example", ["PENDING"]), ("bare.example", [])):
        keys = ada("domain", "dkim-list", name, "--no-check", "--json").json
        assert [key["state"] for key in keys] == states
    assert ada("domain", "dkim-add", "bare.example").code == 0  # a key can be added later
