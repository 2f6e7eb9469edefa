"""Tests of `merganser domain`."""

import socket
import threading
from pathlib import Path

import dns.message
import dns.rrset
import pytest

from tests.support.clients.command_line import CommandLine


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
    ada.set_settings(hostname="mx.example.org")
    result = ada("domain", "dns", "example.org", "--no-check", "--json")
    assert result.code == 0
    values = {(record["type"], record["name"]): record["value"] for record in result.json}
    assert values["MX", "example.org"] == "10 mx.example.org."
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        ada.set_settings(dns_resolver=f"127.0.0.1:{server.getsockname()[1]}")
        threading.Thread(target=answer_dns_queries, args=(server, 4), daemon=True).start()
        result = ada("domain", "dns", "example.org", "--json")
    assert result.code == 1  # all but MX is missing
    states = {(record["type"], record["name"]): record["state"] for record in result.json}
    assert states["MX", "example.org"] == "OK"
    assert states["TXT", "_dmarc.example.org"] == "MISSING"


def answer_dns_queries(server: socket.socket, count: int) -> None:
    """Answer MX queries with the expected record and all other queries with none."""
    for _ in range(count):
        data, peer = server.recvfrom(4096)
        query = dns.message.from_wire(data)
        response, (question,) = dns.message.make_response(query), query.question
        if question.rdtype == dns.rdatatype.MX:
            text = "10 mx.example.org."
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "MX", text))
        server.sendto(response.to_wire(), peer)


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
