"""`merganser domain`."""

import socket
import threading
from pathlib import Path

import dns.message
import dns.rrset
import pytest

from tests.support.clients.command_line import CommandLine


def test_a_domain_is_made_listed_renamed_and_deleted(ada: CommandLine) -> None:
    said = ada("domain", "add", "NEW.example", "--max-users", "2", "--quota", "20 GiB")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("NEW.example is made: dom_")
    ours, theirs = ada("domain", "list", "--json").json
    assert (ours["name"], ours["users"], ours["quota"]) == ("example.org", 1, 0)
    assert (theirs["name"], theirs["max_users"], theirs["quota"]) == ("new.example", 2, 20 << 30)
    table = ada("domain", "list").out
    assert "20 GiB" in table
    assert "unlimited" in table

    said = ada("domain", "rename", "example.org", "example.net", "--dry-run")
    assert (said.code, said.out.splitlines()) == (
        0,
        ["example.org would be example.net.", "Addresses: 1, users: 1, aliases: 0."],
    )
    assert "example.org" in ada("user", "list").out
    assert ada("domain", "rename", "example.org", "example.net").code == 0
    assert "ada@example.net" in ada("user", "list").out
    assert ada("domain", "delete", "new.example").out == "1 deleted.\n"
    assert [row["name"] for row in ada("domain", "list", "--json").json] == ["example.net"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("add", "example.org"), "is a domain already"),
        (("add", "a b"), "name: not a domain name"),
        (("add", "x.example", "--quota", "much"), "--quota: write a size"),
        (("add", "x.example", "--quota", "1 GiB", "--max-user-quota", "2 GiB"), "maxUserQuota"),
        (("add", "x.example", "--max-users", "-1"), "maxUsers"),
        (("rename", "nowhere.example", "x.example"), "there is no domain nowhere.example"),
        (("rename", "example.org", "example.org"), "that is its name"),
        (("delete", "example.org"), "users live in it"),
        (("delete", "nowhere.example"), "there is no domain nowhere.example"),
        (("dns", "nowhere.example"), "there is no domain nowhere.example"),
    ],
)
def test_a_refusal_is_one_sentence(ada: CommandLine, words: tuple[str, ...], sentence: str) -> None:
    said = ada("domain", *words)
    assert said.code in (1, 2)
    assert said.out == ""
    assert said.err.startswith("merganser: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err


def test_dns_is_compared_with_what_it_should_be(ada: CommandLine) -> None:
    ada.set_settings(hostname="mx.example.org")
    said = ada("domain", "dns", "example.org", "--no-check", "--json")
    assert said.code == 0
    values = {(one["type"], one["name"]): one["value"] for one in said.json}
    assert values["MX", "example.org"] == "10 mx.example.org."
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        ada.set_settings(dns_resolver=f"127.0.0.1:{server.getsockname()[1]}")
        threading.Thread(target=answer, args=(server, 4), daemon=True).start()
        said = ada("domain", "dns", "example.org", "--json")
    assert said.code == 1  # all but MX is missing
    states = {(one["type"], one["name"]): one["state"] for one in said.json}
    assert states["MX", "example.org"] == "OK"
    assert states["TXT", "_dmarc.example.org"] == "MISSING"


def answer(server: socket.socket, times: int) -> None:
    """Say of MX what is right, and of anything else that there is none."""
    for _ in range(times):
        data, peer = server.recvfrom(4096)
        query = dns.message.from_wire(data)
        made, (question,) = dns.message.make_response(query), query.question
        if question.rdtype == dns.rdatatype.MX:
            text = "10 mx.example.org."
            made.answer.append(dns.rrset.from_text(question.name, 60, "IN", "MX", text))
        server.sendto(made.to_wire(), peer)


@pytest.mark.parametrize("value", ["localhost:53", "127.0.0.1:0", "127.0.0.1:99999", "127.0.0.1"])
def test_a_name_server_is_an_address_and_a_port(ada: CommandLine, value: str) -> None:
    ada.set_settings(dns_resolver=value)
    said = ada("domain", "list")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "MERGANSER_DNS_RESOLVER is wrong: write address:port" in said.err


def test_a_key_of_arc_is_made_and_said_again(shell: CommandLine, tmp_path: Path) -> None:
    said = shell("domain", "arc-key", "example.org")
    assert (said.code, "MERGANSER_ARC_KEYS" in said.err) == (2, True)
    shell.set_settings(arc_keys=str(tmp_path / "keys"))
    made = shell("domain", "arc-key", "Bücher.example", "--selector", "a1")
    name = "a1._domainkey.xn--bcher-kva.example"
    path = tmp_path / "keys" / f"{name}.pem"
    first, record = made.out.splitlines()
    assert first == f"{path} is made. DNS should hold:"
    assert record.startswith(f'{name}. TXT "v=DKIM1; k=rsa; p=MIIB')
    assert path.stat().st_mode & 0o777 == 0o600
    again = shell("domain", "arc-key", "bücher.example", "--selector", "a1")
    assert again.out.splitlines() == [f"{path} is there. DNS should hold:", record]
    assert seals(shell) == ("ok", f"keys in {path.parent}: 1")
    path.chmod(0o644)
    assert seals(shell) == ("action", f"others may read {path.name}")
    said = shell("domain", "arc-key", "bücher.example", "--selector", "a1")
    assert (said.code, said.err) == (1, f"merganser: others may read {path.name}\n")
    for words in (
        ("a b",),
        ("example.org", "--selector", "../x"),
        ("example.org", "--selector", ""),
    ):
        assert shell("domain", "arc-key", *words).code == 2
    assert len(list((tmp_path / "keys").iterdir())) == 1


def seals(shell: CommandLine) -> tuple[str, str]:
    """What the doctor says of the keys of ARC."""
    (row,) = [row for row in shell("doctor", "--json").json if row["subject"] == "seals"]
    return row["verdict"], row["found"]


def test_keys_are_made_listed_and_rotated(ada: CommandLine) -> None:
    made = ada("domain", "dkim-add", "example.org")
    assert made.code == 0, made.err
    head, record = made.out.splitlines()
    assert head == "DNS should hold:"
    assert record.startswith('dkim._domainkey.example.org. TXT "v=DKIM1; k=rsa; p=MIIB')
    assert all(len(part) <= 255 for part in record.split('"')[1::2])
    assert ada("domain", "dkim-add", "example.org", "--bits", "7").code == 1
    assert ada("domain", "dkim-add", "far.example").code == 1
    said = ada("domain", "dkim-rotate", "example.org")
    assert (said.code, said.out.count("_domainkey.example.org. TXT")) == (0, 1)
    (old, new) = ada("domain", "dkim-list", "example.org", "--no-check", "--json").json
    assert (old["selector"], old["state"], new["state"]) == ("dkim", "ACTIVE", "PENDING")
    assert new["name"] in said.out
    assert ada("domain", "dkim-activate", "example.org", "nothing").code == 1
    assert ada("domain", "dkim-activate", "example.org", new["selector"]).code == 0
    table = ada("domain", "dkim-list", "--no-check").out
    assert ("RETIRED" in table, "ACTIVE" in table, "PRIVATE" in table) == (True, True, False)


def test_a_domain_is_made_with_a_key_or_without(ada: CommandLine) -> None:
    made, told, record = ada("domain", "add", "keyed.example").out.splitlines()
    assert made.startswith("keyed.example is made: dom_")
    assert told == "DNS should hold:"
    assert record.startswith('dkim._domainkey.keyed.example. TXT "v=DKIM1; k=rsa; p=')
    said = ada("domain", "add", "bare.example", "--no-dkim")
    assert (said.code, said.err, said.out.count("\n")) == (0, "", 1)
    assert said.out.startswith("bare.example is made: dom_")
    for name, states in (("keyed.example", ["PENDING"]), ("bare.example", [])):
        listed = ada("domain", "dkim-list", name, "--no-check", "--json").json
        assert [one["state"] for one in listed] == states
    assert ada("domain", "dkim-add", "bare.example").code == 0  # later, all the same
