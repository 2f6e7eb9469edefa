"""ARC chains of this server and of dkimpy, damaged and hostile chains, and sealing keys."""

import logging
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dkim
import pytest

from mail.authentication import arc, arc_seal
from mail.authentication.arc import ArcChain
from mail.authentication.arc_seal import (
    SEALS,
    UnusableSealKey,
    load_domain_key_or_none,
    make_arc_fields_or_empty,
)
from mail.authentication.dkim import AuthResult, SignedMessage
from mail.authentication.dns_queries import MessageDns
from models.runtime.environment import Environment
from tests.support.mail import signed_messages
from tests.support.mail.signed_messages import UNSIGNED_MESSAGE, make_rsa_key, sign_message
from tests.support.mail_servers.dns_zone_server import DnsZoneServer, make_dns_zone, run_dns_zone

NOW = 1_900_000_000
RESULTS = "mx.example.org; spf=pass smtp.mailfrom=far.example; dmarc=pass header.from=far.example"
DNS_TXT_RECORDS = {
    f"s._domainkey.{name}": make_rsa_key()[1]
    for name in ("example.org", "list.example", "x.example")
}


@pytest.fixture
def key_folder(tmp_path: Path) -> Path:
    """Folder with the sealing key of example.org."""
    path = tmp_path / "keys"
    path.mkdir()
    write_key(path, "s._domainkey.example.org")
    return path


def write_key(key_folder: Path, name: str, pem: bytes | None = None, mode: int = 0o600) -> Path:
    path = key_folder / f"{name}.pem"
    path.write_bytes(make_rsa_key()[0] if pem is None else pem)
    path.chmod(mode)
    return path


@pytest.fixture
async def dns_server() -> AsyncIterator[DnsZoneServer]:
    server = make_dns_zone(DNS_TXT_RECORDS)
    async with run_dns_zone(server):
        yield server


def environment_with_arc_keys(
    environment: Environment, key_folder: Path | None, dns_server: DnsZoneServer
) -> Environment:
    dns_address = f"127.0.0.1:{dns_server.port}"
    options = replace(
        environment.options,
        arc_keys_folder=key_folder,
        dns_resolver=dns_address,
        hostname="mx.example.org",
    )
    return replace(environment, options=options)


async def check_arc_chain(dns_server: DnsZoneServer, raw: bytes) -> ArcChain:
    message_dns = MessageDns(f"127.0.0.1:{dns_server.port}")
    return await arc.check_chain(message_dns, SignedMessage.from_bytes(raw), NOW)


def dkimpy_arc_result(raw: bytes, txt_records: Mapping[str, str] = DNS_TXT_RECORDS) -> str:
    def query_txt(name: bytes, timeout: int = 5) -> bytes:  # noqa: ARG001 - dkimpy passes it by name
        return txt_records.get(name.decode().rstrip("."), "").encode()

    try:
        result, _, _ = dkim.arc_verify(raw, dnsfunc=query_txt)
    except Exception:  # noqa: BLE001 - dkimpy raises many types for an invalid field
        return "fail"
    return str(result.decode())


async def test_dkimpy_accepts_each_seal_of_a_chain(
    environment: Environment, key_folder: Path, dns_server: DnsZoneServer
) -> None:
    # dkimpy reads the system clock, and the clock of tests is ahead.
    arc_environment = replace(
        environment_with_arc_keys(environment, key_folder, dns_server),
        now=lambda: datetime.now(UTC),
    )
    raw = sign_message()
    assert (await check_arc_chain(dns_server, raw)).result is AuthResult.NONE
    for seal_count in range(1, 5):
        fields = await make_arc_fields_or_empty(arc_environment, raw, "example.org", RESULTS)
        assert all(len(line) <= 100 for line in fields.split(b"\r\n"))
        raw = fields + raw
        arc_chain = await check_arc_chain(dns_server, raw)
        assert (arc_chain.result, arc_chain.sealer_domains) == (
            AuthResult.PASS,
            ["example.org"] * seal_count,
        )
        assert dkimpy_arc_result(raw) == "pass"
    raw = signed_messages.seal_message(raw, "list.example", "arc=pass; dmarc=pass")
    arc_chain = await check_arc_chain(dns_server, raw)
    assert (arc_chain.result, arc_chain.sealer_domains[-1]) == (AuthResult.PASS, "list.example")
    assert b"i=6;" in await make_arc_fields_or_empty(arc_environment, raw, "EXAMPLE.org", None)


async def test_seal_adds_all_arc_fields_and_no_other(
    environment: Environment, key_folder: Path, dns_server: DnsZoneServer
) -> None:
    fields = await make_arc_fields_or_empty(
        environment_with_arc_keys(environment, key_folder, dns_server),
        UNSIGNED_MESSAGE,
        "example.org",
        RESULTS,
    )
    message = SignedMessage.from_bytes(fields + b"\r\n")
    assert [field.name for field in message.fields] == [
        arc.SEAL_FIELD,
        arc.SIGNATURE_FIELD,
        arc.RESULTS_FIELD,
    ]
    assert f"i=1; {RESULTS}".encode() in b" ".join(message.fields[2].raw.split())
    results = "front; spf=pass\n smtp.mailfrom=x.example\nfront; dkim=pass; " + "; ".join(
        f"dkim=fail header.d=d{n}.example" for n in range(50)
    )
    long_fields = await make_arc_fields_or_empty(
        environment_with_arc_keys(environment, key_folder, dns_server),
        UNSIGNED_MESSAGE,
        "example.org",
        results,
    )
    assert max(map(len, long_fields.split(b"\r\n"))) <= 100
    text = b" ".join(long_fields.split())
    assert b"i=1; front; spf=pass; smtp" not in text
    assert b"dkim=pass; dkim=fail header.d=d0.example;" in text
    assert (
        await check_arc_chain(dns_server, long_fields + UNSIGNED_MESSAGE)
    ).result is AuthResult.PASS
    fields_without_results = await make_arc_fields_or_empty(
        environment_with_arc_keys(environment, key_folder, dns_server),
        UNSIGNED_MESSAGE,
        "example.org",
        None,
    )
    assert b"mx.example.org; none" in fields_without_results


async def test_changed_message_breaks_the_chain_here_and_in_dkimpy(
    dns_server: DnsZoneServer,
) -> None:
    raw = signed_messages.seal_message(
        signed_messages.seal_message(sign_message(), "list.example", "dmarc=pass"),
        "x.example",
        "arc=pass",
    )
    assert (await check_arc_chain(dns_server, raw)).result is AuthResult.PASS
    generator = random.Random(3)  # noqa: S311 - reproducible
    failed_count = 0
    for _ in range(120):
        changed = bytearray(raw)
        changed[generator.randrange(len(raw))] ^= 1 << generator.randrange(6)
        our_result = (await check_arc_chain(dns_server, bytes(changed))).result
        if our_result is AuthResult.PASS:  # here a lone CR ends no header field
            assert dkimpy_arc_result(bytes(changed)) == "pass"
        failed_count += our_result is not AuthResult.PASS
    assert failed_count > 60


async def test_missing_repeated_or_failed_arc_sets_fail(dns_server: DnsZoneServer) -> None:
    sealed_once = signed_messages.seal_message(UNSIGNED_MESSAGE, "list.example", "dmarc=pass")
    raw = signed_messages.seal_message(sealed_once, "x.example", "arc=pass")
    fields = [field.raw for field in SignedMessage.from_bytes(raw).fields]
    for index in range(6):
        rest = b"".join(fields[:index] + fields[index + 1 :]) + b"\r\nHi\r\n"
        assert (await check_arc_chain(dns_server, rest)).result is AuthResult.FAIL
    assert (await check_arc_chain(dns_server, fields[0] + raw)).result is AuthResult.FAIL
    for cv in (b"cv=none", b"cv=fail", b"cv=", b"cv=pass; cv=pass"):
        assert (
            await check_arc_chain(dns_server, raw.replace(b"cv=pass", cv))
        ).result is AuthResult.FAIL
    for number in (b"i=0", b"i=3", b"i=-1", b"i=99999", b"i=x", b"j=2"):
        assert (
            await check_arc_chain(dns_server, raw.replace(b"i=2", number))
        ).result is AuthResult.FAIL


async def test_oversized_chains_and_invalid_fields_fail(dns_server: DnsZoneServer) -> None:
    sealed_once = signed_messages.seal_message(UNSIGNED_MESSAGE, "list.example", "dmarc=pass")
    many_sets = b"".join(
        b"".join(
            field.raw
            for field in SignedMessage.from_bytes(
                sealed_once.replace(b"i=1;", b"i=%d;" % n)
            ).fields[:3]
        )
        for n in range(1, 400)
    )
    assert (
        await check_arc_chain(dns_server, many_sets + UNSIGNED_MESSAGE)
    ).result is AuthResult.FAIL
    for junk in (b"", b";;", b"\xff", b"i=1" * 10_000, b"i=1; a=rsa-sha256; d=x; s=y; b=!"):
        fields = b"".join(name.encode() + b": " + junk + b"\r\n" for name in arc.ARC_FIELDS)
        assert (
            await check_arc_chain(dns_server, fields + UNSIGNED_MESSAGE)
        ).result is AuthResult.FAIL


async def test_failed_or_unverifiable_chain_is_not_sealed(
    environment: Environment, key_folder: Path, dns_server: DnsZoneServer
) -> None:
    arc_environment = environment_with_arc_keys(environment, key_folder, dns_server)
    raw = signed_messages.seal_message(UNSIGNED_MESSAGE, "list.example", "dmarc=pass")
    counts_before = [SEALS.value("chain"), SEALS.value("dns")]
    assert (
        await make_arc_fields_or_empty(
            arc_environment, raw.replace(b"Hello", b"Hullo"), "example.org", RESULTS
        )
        == b""
    )
    assert [SEALS.value("chain"), SEALS.value("dns")] == [counts_before[0] + 1, counts_before[1]]
    del dns_server.records["s._domainkey.x.example", "TXT"]
    dns_server.servfail_names.add("s._domainkey.x.example")
    raw = signed_messages.seal_message(UNSIGNED_MESSAGE, "x.example", "dmarc=pass")
    assert await make_arc_fields_or_empty(arc_environment, raw, "example.org", RESULTS) == b""
    assert [SEALS.value("chain"), SEALS.value("dns")] == [
        counts_before[0] + 1,
        counts_before[1] + 1,
    ]


async def test_unusable_key_is_logged_and_the_message_is_not_sealed(
    environment: Environment,
    key_folder: Path,
    dns_server: DnsZoneServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arc_environment = environment_with_arc_keys(environment, key_folder, dns_server)
    caplog.set_level(logging.WARNING)
    assert (
        await make_arc_fields_or_empty(arc_environment, UNSIGNED_MESSAGE, "other.example", None)
        == b""
    )
    assert (
        await make_arc_fields_or_empty(
            environment_with_arc_keys(environment, None, dns_server),
            UNSIGNED_MESSAGE,
            "example.org",
            None,
        )
        == b""
    )
    assert not caplog.records
    for name, pem, mode in (
        ("readable", None, 0o644),
        ("text", b"no key", 0o600),
        ("large", b"x" * 20_000, 0o600),
        ("short", make_rsa_key(1024)[0].replace(b"A", b"B", 9), 0o600),
    ):
        write_key(key_folder, f"s._domainkey.{name}.example", pem, mode)
        assert (
            await make_arc_fields_or_empty(
                arc_environment, UNSIGNED_MESSAGE, f"{name}.example", None
            )
            == b""
        )
    environment_without_folder = environment_with_arc_keys(
        environment, key_folder / "gone", dns_server
    )
    assert (
        await make_arc_fields_or_empty(
            environment_without_folder, UNSIGNED_MESSAGE, "example.org", None
        )
        == b""
    )
    assert len(caplog.records) == 5
    assert "BEGIN" not in caplog.text


def test_last_key_of_a_domain_is_used_and_reloaded_after_a_change(key_folder: Path) -> None:
    write_key(key_folder, "a._domainkey.example.org")
    write_key(key_folder, "t._domainkey.example.org")
    write_key(key_folder, "z._domainkey.sub.example.org")
    key = load_domain_key_or_none(key_folder, "example.org")
    assert key is not None
    assert (key.selector, key.domain) == ("t", "example.org")
    write_key(key_folder, "t._domainkey.example.org", b"broken")
    with pytest.raises(UnusableSealKey):
        load_domain_key_or_none(key_folder, "example.org")
    assert load_domain_key_or_none(key_folder, "rg") is None
    assert arc_seal.DOMAINKEY_LABEL in (key_folder / "t._domainkey.example.org.pem").name


def test_last_trusted_sealer_with_dmarc_pass_overrules() -> None:
    arc_chain = ArcChain(AuthResult.PASS, (), ["first.example", "list.example", "last.example"])
    trusted_domains = ["List.example", "last.example"]
    assert (
        arc.find_trusted_sealer_of_dmarc_pass(arc_chain, trusted_domains, [False, True, False])
        == "list.example"
    )
    assert (
        arc.find_trusted_sealer_of_dmarc_pass(arc_chain, trusted_domains, [False, True, True])
        == "last.example"
    )
    assert (
        arc.find_trusted_sealer_of_dmarc_pass(arc_chain, trusted_domains, [True, False, False])
        is None
    )
    assert (
        arc.find_trusted_sealer_of_dmarc_pass(arc_chain, ["list.example"], [False, True, False])
        is None
    )
    assert arc.find_trusted_sealer_of_dmarc_pass(arc_chain, [], [True, True, True]) is None
    assert (
        arc.find_trusted_sealer_of_dmarc_pass(
            ArcChain(AuthResult.FAIL, (), arc_chain.sealer_domains),
            trusted_domains,
            [False, False, True],
        )
        is None
    )
