"""Chains of ARC: ours and those of dkimpy, changed ones, hostile ones; and the keys that seal."""

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
from mail.authentication.arc_seal import SEALS, UnusableSealKey, load_domain_key, seal_fields
from mail.authentication.dkim import AuthResult, SignedMessage
from mail.authentication.dns_queries import MessageDns
from models.runtime.environment import Environment
from tests.support.mail import signed_messages
from tests.support.mail.signed_messages import LETTER, pair, signed
from tests.support.mail_servers.dns_zone_server import Zone, asking, zone

NOW = 1_900_000_000
RESULTS = "mx.example.org; spf=pass smtp.mailfrom=far.example; dmarc=pass header.from=far.example"
TEXTS = {f"s._domainkey.{name}": pair()[1] for name in ("example.org", "list.example", "x.example")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the key of example.org lies."""
    made = tmp_path / "keys"
    made.mkdir()
    put(made, "s._domainkey.example.org")
    return made


def put(folder: Path, name: str, pem: bytes | None = None, mode: int = 0o600) -> Path:
    path = folder / f"{name}.pem"
    path.write_bytes(pair()[0] if pem is None else pem)
    path.chmod(mode)
    return path


@pytest.fixture
async def there() -> AsyncIterator[Zone]:
    made = zone(TEXTS)
    async with asking(made):
        yield made


def keyed(world: Environment, folder: Path | None, there: Zone) -> Environment:
    place = f"127.0.0.1:{there.port}"
    options = replace(world.options, arc_keys=folder, dns_resolver=place, hostname="mx.example.org")
    return replace(world, options=options)


async def chain(there: Zone, raw: bytes) -> ArcChain:
    names = MessageDns(f"127.0.0.1:{there.port}")
    return await arc.check_chain(names, SignedMessage.from_bytes(raw), NOW)


def theirs(raw: bytes, texts: Mapping[str, str] = TEXTS) -> str:
    def ask(name: bytes, timeout: int = 5) -> bytes:  # noqa: ARG001 - dkimpy names it
        return texts.get(name.decode().rstrip("."), "").encode()

    try:
        result, _, _ = dkim.arc_verify(raw, dnsfunc=ask)
    except Exception:  # noqa: BLE001 - it raises of many kinds where a field is none
        return "fail"
    return str(result.decode())


async def test_what_we_seal_others_believe_link_by_link(
    world: Environment, folder: Path, there: Zone
) -> None:
    # dkimpy reads the clock itself, and that of tests is ahead
    ours = replace(keyed(world, folder, there), now=lambda: datetime.now(UTC))
    raw = signed()
    assert (await chain(there, raw)).result is AuthResult.NONE
    for many in range(1, 5):
        fields = await seal_fields(ours, raw, "example.org", RESULTS)
        assert all(len(line) <= 100 for line in fields.split(b"\r\n"))
        raw = fields + raw
        found = await chain(there, raw)
        assert (found.result, found.sealer_domains) == (AuthResult.PASS, ["example.org"] * many)
        assert theirs(raw) == "pass"
    raw = signed_messages.sealed(raw, "list.example", "arc=pass; dmarc=pass")
    found = await chain(there, raw)
    assert (found.result, found.sealer_domains[-1]) == (AuthResult.PASS, "list.example")
    assert b"i=6;" in await seal_fields(ours, raw, "EXAMPLE.org", None)


async def test_only_arc_fields_are_added_and_all_of_them(
    world: Environment, folder: Path, there: Zone
) -> None:
    fields = await seal_fields(keyed(world, folder, there), LETTER, "example.org", RESULTS)
    message = SignedMessage.from_bytes(fields + b"\r\n")
    assert [each.name for each in message.fields] == [
        arc.SEAL_FIELD,
        arc.SIGNATURE_FIELD,
        arc.RESULTS_FIELD,
    ]
    assert f"i=1; {RESULTS}".encode() in b" ".join(message.fields[2].raw.split())
    lines = "front; spf=pass\n smtp.mailfrom=x.example\nfront; dkim=pass; " + "; ".join(
        f"dkim=fail header.d=d{n}.example" for n in range(50)
    )
    many = await seal_fields(keyed(world, folder, there), LETTER, "example.org", lines)
    assert max(map(len, many.split(b"\r\n"))) <= 100
    text = b" ".join(many.split())
    assert b"i=1; front; spf=pass; smtp" not in text
    assert b"dkim=pass; dkim=fail header.d=d0.example;" in text
    assert (await chain(there, many + LETTER)).result is AuthResult.PASS
    bare = await seal_fields(keyed(world, folder, there), LETTER, "example.org", None)
    assert b"mx.example.org; none" in bare


async def test_a_changed_message_breaks_the_chain_for_both(there: Zone) -> None:
    raw = signed_messages.sealed(
        signed_messages.sealed(signed(), "list.example", "dmarc=pass"), "x.example", "arc=pass"
    )
    assert (await chain(there, raw)).result is AuthResult.PASS
    dice = random.Random(3)  # noqa: S311 - the same in each run
    broken = 0
    for _ in range(120):
        changed = bytearray(raw)
        changed[dice.randrange(len(raw))] ^= 1 << dice.randrange(6)
        mine = (await chain(there, bytes(changed))).result
        if mine is AuthResult.PASS:  # what a lone CR divides we do not take for a header
            assert theirs(bytes(changed)) == "pass"
        broken += mine is not AuthResult.PASS
    assert broken > 60


async def test_links_that_are_missing_doubled_or_found_broken_before(there: Zone) -> None:
    one = signed_messages.sealed(LETTER, "list.example", "dmarc=pass")
    raw = signed_messages.sealed(one, "x.example", "arc=pass")
    fields = [each.raw for each in SignedMessage.from_bytes(raw).fields]
    for at in range(6):
        rest = b"".join(fields[:at] + fields[at + 1 :]) + b"\r\nHi\r\n"
        assert (await chain(there, rest)).result is AuthResult.FAIL
    assert (await chain(there, fields[0] + raw)).result is AuthResult.FAIL
    for cv in (b"cv=none", b"cv=fail", b"cv=", b"cv=pass; cv=pass"):
        assert (await chain(there, raw.replace(b"cv=pass", cv))).result is AuthResult.FAIL
    for number in (b"i=0", b"i=3", b"i=-1", b"i=99999", b"i=x", b"j=2"):
        assert (await chain(there, raw.replace(b"i=2", number))).result is AuthResult.FAIL


async def test_endless_chains_and_nonsense_end(there: Zone) -> None:
    one = signed_messages.sealed(LETTER, "list.example", "dmarc=pass")
    many = b"".join(
        b"".join(
            each.raw
            for each in SignedMessage.from_bytes(one.replace(b"i=1;", b"i=%d;" % n)).fields[:3]
        )
        for n in range(1, 400)
    )
    assert (await chain(there, many + LETTER)).result is AuthResult.FAIL
    for junk in (b"", b";;", b"\xff", b"i=1" * 10_000, b"i=1; a=rsa-sha256; d=x; s=y; b=!"):
        fields = b"".join(name.encode() + b": " + junk + b"\r\n" for name in arc.ARC_FIELDS)
        assert (await chain(there, fields + LETTER)).result is AuthResult.FAIL


async def test_a_chain_that_is_broken_or_unknown_is_not_sealed_on(
    world: Environment, folder: Path, there: Zone
) -> None:
    ours = keyed(world, folder, there)
    raw = signed_messages.sealed(LETTER, "list.example", "dmarc=pass")
    before = [SEALS.value("chain"), SEALS.value("dns")]
    assert await seal_fields(ours, raw.replace(b"Hello", b"Hullo"), "example.org", RESULTS) == b""
    assert [SEALS.value("chain"), SEALS.value("dns")] == [before[0] + 1, before[1]]
    del there.records["s._domainkey.x.example", "TXT"]
    there.broken.add("s._domainkey.x.example")
    raw = signed_messages.sealed(LETTER, "x.example", "dmarc=pass")
    assert await seal_fields(ours, raw, "example.org", RESULTS) == b""
    assert [SEALS.value("chain"), SEALS.value("dns")] == [before[0] + 1, before[1] + 1]


async def test_a_key_that_cannot_be_used_costs_a_line_and_not_the_mail(
    world: Environment, folder: Path, there: Zone, caplog: pytest.LogCaptureFixture
) -> None:
    ours = keyed(world, folder, there)
    caplog.set_level(logging.WARNING)
    assert await seal_fields(ours, LETTER, "other.example", None) == b""
    assert await seal_fields(keyed(world, None, there), LETTER, "example.org", None) == b""
    assert not caplog.records
    for name, pem, mode in (
        ("readable", None, 0o644),
        ("text", b"no key", 0o600),
        ("large", b"x" * 20_000, 0o600),
        ("short", pair(1024)[0].replace(b"A", b"B", 9), 0o600),
    ):
        put(folder, f"s._domainkey.{name}.example", pem, mode)
        assert await seal_fields(ours, LETTER, f"{name}.example", None) == b""
    gone = keyed(world, folder / "gone", there)
    assert await seal_fields(gone, LETTER, "example.org", None) == b""
    assert len(caplog.records) == 5
    assert "BEGIN" not in caplog.text


def test_the_last_of_several_keys_is_taken_and_a_changed_one_is_read_again(folder: Path) -> None:
    put(folder, "a._domainkey.example.org")
    put(folder, "t._domainkey.example.org")
    put(folder, "z._domainkey.sub.example.org")
    found = load_domain_key(folder, "example.org")
    assert found is not None
    assert (found.selector, found.domain) == ("t", "example.org")
    put(folder, "t._domainkey.example.org", b"broken")
    with pytest.raises(UnusableSealKey):
        load_domain_key(folder, "example.org")
    assert load_domain_key(folder, "rg") is None
    assert arc_seal.DOMAINKEY_LABEL in (folder / "t._domainkey.example.org.pem").name


def test_whose_seal_overrules() -> None:
    found = ArcChain(AuthResult.PASS, (), ["first.example", "list.example", "last.example"])
    trust = ["List.example", "last.example"]
    assert arc.trusted_sealer(found, trust, {1: True}) == "list.example"
    assert arc.trusted_sealer(found, trust, {2: True, 1: True}) == "last.example"
    assert arc.trusted_sealer(found, trust, {0: True}) is None
    assert arc.trusted_sealer(found, ["list.example"], {1: True}) is None
    assert arc.trusted_sealer(found, [], {0: True, 1: True, 2: True}) is None
    assert (
        arc.trusted_sealer(ArcChain(AuthResult.FAIL, (), found.sealer_domains), trust, {2: True})
        is None
    )
