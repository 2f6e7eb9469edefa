"""Signatures of DKIM: the examples of the RFCs, those of dkimpy, and hostile ones."""

import base64
import random
import re
from collections.abc import Mapping

import dkim
import pytest

from mail.authentication.body_canonicalization import relaxed_body, simple_body
from mail.authentication.dkim import (
    MAX_SIGNATURES,
    AuthResult,
    DkimResult,
    SignedMessage,
    header_digest,
    parse_signature,
    verify_signatures,
)
from mail.authentication.dns_queries import TOTAL_TIMEOUT, MessageDns
from mail.authentication.header_fields import parse_tags
from mail.authentication.public_keys import DkimPublicKey, KeyNotFound, WeakKey, parse_record
from tests.support.mail.signed_messages import LETTER, edwards, pair, signed
from tests.support.mail_servers.dns_zone_server import Zone, asking, zone

NOW = 1_900_000_000
DINNER = b"""\
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
"""
RFC_8463 = (
    b"""\
DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
"""
    + DINNER
)
KEYS = {
    "brisbane._domainkey.football.example.com": "v=DKIM1; k=ed25519; "
    "p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    "test._domainkey.football.example.com": "v=DKIM1; k=rsa; "
    "p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/"
    "J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBf"
    "O2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB",
}
OURS = "s._domainkey.far.example"


async def check(raw: bytes, texts: Mapping[str, str] | Zone, now: int = NOW) -> list[DkimResult]:
    there = texts if isinstance(texts, Zone) else zone(texts)
    seconds = 0.3 if there.silent else TOTAL_TIMEOUT
    async with asking(there) as place:
        return await verify_signatures(
            MessageDns(place, timeout=seconds), SignedMessage.from_bytes(raw), now, "far.example"
        )


async def result(raw: bytes, record: str | None = None) -> AuthResult:
    (found,) = await check(raw, {OURS: record or pair()[1]})
    return found.result


async def test_the_example_of_rfc_8463() -> None:
    raw = RFC_8463.replace(b"\n", b"\r\n")
    found = await check(raw, KEYS)
    assert [(each.result, each.algorithm, each.selector) for each in found] == [
        (AuthResult.PASS, "ed25519-sha256", "brisbane"),
        (AuthResult.PASS, "rsa-sha256", "test"),
    ]
    for changed in (raw.replace(b"lost", b"won"), raw.replace(b"ready?", b"late?")):
        assert {each.result for each in await check(changed, KEYS)} == {AuthResult.FAIL}
    assert {each.result for each in await check(RFC_8463, KEYS)} == {AuthResult.PASS}  # LF alone


@pytest.mark.parametrize(
    ("body", "simple", "relaxed"),
    [
        (b"", b"\r\n", b""),
        (b"\r\n\r\n", b"\r\n", b""),
        (b" C \r\nD \t E\r\n\r\n\r\n", b" C \r\nD \t E\r\n", b" C\r\nD E\r\n"),  # RFC 6376, 3.4.5
        (b"a", b"a\r\n", b"a\r\n"),
        (b"a\r\r\n\r\n", b"a\r\r\n", b"a\r\r\n"),
        (b"\r\n \t\r\n", b"\r\n \t\r\n", b""),
    ],
)
def test_canonical_bodies(body: bytes, simple: bytes, relaxed: bytes) -> None:
    assert simple_body(body) == simple
    assert relaxed_body(body) == relaxed


async def test_messages_that_another_program_signs_and_changed_ones() -> None:
    """Ours and dkimpy are of one mind about each, whole or with a bit turned over."""
    dice = random.Random(1)  # noqa: S311 - the same in each run
    pem, record = pair(1024)
    pieces = [b"a", b" ", b"\t", b"\r\n", b"\r\n\r\n", b".", b"xyz", b"  \r\n", b"=", b"\xc3\xa9"]
    passed = 0
    there = zone({OURS: record})
    async with asking(there) as place:
        for _ in range(50):
            body = b"".join(dice.choices(pieces, k=dice.randrange(30))) + b"\r\n"
            raw = LETTER[: LETTER.index(b"\r\n\r\n") + 4] + body
            forms = dice.choices([b"relaxed", b"simple"], k=2)
            whole = dkim.sign(raw, b"s", b"far.example", pem, canonicalize=tuple(forms)) + raw
            (own,) = await verify_signatures(
                MessageDns(place), SignedMessage.from_bytes(whole), NOW, ""
            )
            assert own.result is AuthResult.PASS
            changed = bytearray(whole)
            changed[dice.randrange(len(whole))] ^= 1 << dice.randrange(6)
            own_view = await verify_signatures(
                MessageDns(place), SignedMessage.from_bytes(bytes(changed)), NOW, ""
            )
            ours = any(each.result is AuthResult.PASS for each in own_view)
            assert ours == _theirs(bytes(changed), record), bytes(changed)
            passed += ours
    assert passed < 30  # few changes do not matter


def _theirs(raw: bytes, record: str) -> bool:
    def ask(name: bytes, timeout: int = 5) -> bytes:  # noqa: ARG001 - dkimpy names it
        return record.encode() if name == f"{OURS}.".encode() else b""

    try:
        return bool(dkim.verify(raw, dnsfunc=ask))
    except Exception:  # noqa: BLE001 - it raises of many kinds where a signature is none
        return False


async def test_what_is_added_to_a_signed_message_shows() -> None:
    raw = signed()
    assert await result(raw) is AuthResult.PASS
    assert await result(b"X-Spam: no\r\n" + raw) is AuthResult.PASS
    assert await result(
        raw.replace(b"From: Carol", b"From: Eve <eve@x.example>\r\nFrom: Carol")
    ) is (AuthResult.FAIL)
    assert await result(raw + b"More.\r\n") is AuthResult.FAIL


async def test_a_length_that_leaves_out_the_end_is_not_heard() -> None:
    raw = signed(length=True)
    assert b"l=" in raw
    assert await result(raw) is AuthResult.PASS
    assert await result(raw + b"<a href=https://evil.example>\r\n") is AuthResult.FAIL


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ("v=DKIM1; p=", AuthResult.PERMERROR),
        ("v=DKIM2; p=AAAA", AuthResult.PERMERROR),
        ("v=DKIM1; k=rsa; h=sha1; p={p}", AuthResult.PERMERROR),
        ("v=DKIM1; h=sha1:sha256; s=email; p={p}", AuthResult.PASS),
        ("v=DKIM1; s=tlsrpt; p={p}", AuthResult.PERMERROR),
        ("k=rsa; p={p}; unknown=1", AuthResult.PASS),
        ("p={p}", AuthResult.PASS),
        ("k=rsa; v=DKIM1; p={p}", AuthResult.PERMERROR),
        ("v=DKIM1; k=ed25519; p={p}", AuthResult.PERMERROR),
        ("v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=", AuthResult.FAIL),
        ("v=DKIM1; p=!!!", AuthResult.PERMERROR),
        ("v=DKIM1; p={p}; p={p}", AuthResult.PERMERROR),
        ("no record", AuthResult.PERMERROR),
        ("\udcff;;;", AuthResult.PERMERROR),
        ("v=DKIM1; p=" + "A" * 60_000, AuthResult.PERMERROR),
        (";" * 9000, AuthResult.PERMERROR),
    ],
)
async def test_records_of_keys(record: str, wanted: AuthResult) -> None:
    key = pair()[1].partition("p=")[2]
    assert await result(signed(), record.replace("{p}", key)) is wanted


def test_keys_that_prove_nothing() -> None:
    short = (
        "v=DKIM1; p=MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAuwIDAQAB"
    )
    with pytest.raises((WeakKey, KeyNotFound)):
        parse_record(short)
    long = base64.b64encode(_der(16_384, 65537)).decode()
    with pytest.raises((WeakKey, KeyNotFound)):
        parse_record(f"v=DKIM1; p={long}")
    slow = base64.b64encode(_der(2048, (1 << 2000) + 1)).decode()
    with pytest.raises((WeakKey, KeyNotFound)):
        parse_record(f"v=DKIM1; p={slow}")
    assert isinstance(parse_record(pair(1024)[1]), DkimPublicKey)


def _der(bits: int, exponent: int) -> bytes:
    """A public key of RSA as PKCS #1 has it, with a modulus that is none."""

    def number(value: int) -> bytes:
        raw = value.to_bytes(value.bit_length() // 8 + 1, "big")
        return b"\x02" + _length(len(raw)) + raw

    body = number((1 << bits) - 159) + number(exponent)
    return b"\x30" + _length(len(body)) + body


def _length(size: int) -> bytes:
    return bytes([0x82, size >> 8, size & 255])


async def test_a_key_of_few_bits_is_not_accepted() -> None:
    pem, record = pair(1024)
    raw = dkim.sign(LETTER, b"s", b"far.example", pem) + LETTER
    assert await result(raw, record) is AuthResult.PASS
    old = signed().replace(b"rsa-sha256", b"rsa-sha1")
    assert await result(old) is AuthResult.POLICY


async def test_a_signature_holds_for_its_time_and_its_domain() -> None:
    raw = signed()
    given = re.search(rb"t=(\d+);", raw)
    assert given
    ending = raw.replace(given[0], given[0] + b" x=%d;" % (NOW - 1))
    assert await result(ending) is AuthResult.FAIL
    assert await result(raw.replace(given[0], given[0] + b" x=5;")) is AuthResult.PERMERROR
    assert await result(raw.replace(b"d=far.example", b"d=far.example; i=@other.example")) is (
        AuthResult.PERMERROR
    )
    strict = pair()[1].replace("v=DKIM1;", "v=DKIM1; t=s;")
    assert await result(raw, strict) is AuthResult.PASS
    below = signed(identity=b"@news.far.example")
    assert await result(below) is AuthResult.PASS
    assert await result(below, strict) is AuthResult.PERMERROR


async def test_edwards_keys() -> None:
    """Signed by hand: the signature of RSA with its proof replaced."""
    key, record = edwards()
    raw = signed().replace(b"a=rsa-sha256", b"a=ed25519-sha256")
    bare = re.sub(rb"b=[A-Za-z0-9+/=\s]+\r\n(?=From)", b"b=AA==\r\n", raw, count=1)
    message = SignedMessage.from_bytes(bare)
    own = parse_signature(message.fields[0], parse_tags(message.fields[0].value))
    proof = base64.b64encode(key.sign(header_digest(message, own)))
    whole = bare.replace(b"b=AA==", b"b=" + proof)
    assert await result(whole, record) is AuthResult.PASS
    assert await result(whole.replace(b"Hello", b"Hullo"), record) is AuthResult.FAIL
    assert await result(whole) is AuthResult.FAIL  # the key there is of RSA


async def test_dns_that_does_not_answer_is_no_verdict() -> None:
    for trouble in ("broken", "silent"):
        there = zone({}, A={"far.example": "192.0.2.1"})
        getattr(there, trouble).add(OURS)
        (found,) = await check(signed(), there)
        assert found.result is AuthResult.TEMPERROR
    (found,) = await check(signed(), {})
    assert found.result is AuthResult.PERMERROR


async def test_a_hundred_signatures_are_ten() -> None:
    one = signed().removesuffix(LETTER)
    raw = b"".join(one.replace(b"s=s;", b"s=s%d;" % n) for n in range(100)) + LETTER
    there = zone({f"s{n}._domainkey.far.example": pair()[1] for n in range(100)})
    found = await check(raw, there)
    assert len(found) == MAX_SIGNATURES
    assert len(there.asked) == MAX_SIGNATURES


@pytest.mark.parametrize(
    "field",
    [
        b"v=1", b"", b";;;", b"v=1; v=1", b"v=1; a=rsa-sha256; d=; s=; h=from; bh=; b=",
        b"v=1; a=rsa-sha256; d=a b; s=x; h=from; bh=AA==; b=AA==",
        b"v=1; a=rsa-sha256; d=far.example; s=../x; h=from; bh=AA==; b=AA==",
        b"v=1; a=rsa-sha256; d=far.example; s=x; h=to; bh=AA==; b=AA==",
        b"v=1; a=rsa-sha256; d=far.example; s=x; h=from; bh=\xff; b=AA==",
        b"v=1; a=rsa-sha256; d=\xff.example; s=x; h=from; bh=AA==; b=AA==",
        b"v=1; a=rsa-sha256; c=x/y; d=far.example; s=x; h=from; bh=AA==; b=AA==",
        b"v=1; a=rsa-sha256; d=far.example; s=x; h=" + b"from:" * 5000 + b"; bh=AA==; b=AA==",
        b"v=1; t=99999999999999999999; x=1; d=far.example; s=x; h=from; bh=AA==; b=AA==",
        b"a=" * 100_000, b"\x00" * 1000, b"x=1;" * 1000,
    ],
)  # fmt: skip
async def test_a_signature_that_is_none_is_an_error_of_its_own(field: bytes) -> None:
    raw = b"DKIM-Signature: " + field + b"\r\n" + signed()
    found = await check(raw, {OURS: pair()[1]})
    assert sorted(each.result for each in found) == [AuthResult.PASS, AuthResult.PERMERROR]


@pytest.mark.parametrize(
    "raw",
    [b"", b"\r\n", b"\n\n", b"no header at all", b"From", b":\r\n\r\n", b" x\r\n", b"\xff" * 5000,
     b"A: b\rFrom: c\r\n\r\n", b"DKIM-Signature: v=1\r\nno field\r\n\r\nbody", b"\r" * 99],
)  # fmt: skip
async def test_any_bytes_are_looked_at(raw: bytes) -> None:
    assert all(each.result is not AuthResult.PASS for each in await check(raw, {}))


async def test_a_large_hostile_body_takes_no_time_beyond_its_size() -> None:
    """Blanks, line ends, and blanks between letters: none is looked at byte by byte."""
    for body in (b" " * 8_000_000, b"\r\n" * 4_000_000, b"a \t" * 2_000_000, b"\r" * 4_000_000):
        raw = signed()[:-4] + body + b"x\r\n"
        assert await result(raw) is AuthResult.FAIL


async def test_a_large_hostile_header_takes_no_time_beyond_its_size() -> None:
    for head, wanted in (
        (b"a:\r\n" * 250_000, AuthResult.PERMERROR),
        (b"A: " + b" \t" * 600_000 + b"\r\n", AuthResult.PERMERROR),
        (b"A: " + b" \t" * 400_000 + b"\r\n", AuthResult.PASS),
        (b"A: b\r\n" * 9000, AuthResult.PASS),
    ):
        assert await result(head + signed()) is wanted
