"""DKIM verification: examples of the RFCs, signatures of dkimpy, and hostile signatures."""

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
from mail.authentication.public_keys import (
    DkimPublicKey,
    KeyNotFound,
    WeakKey,
    parse_dkim_key_record,
)
from tests.support.mail.signed_messages import (
    UNSIGNED_MESSAGE,
    make_ed25519_key,
    make_rsa_key,
    sign_message,
)
from tests.support.mail_servers.dns_zone_server import DnsZoneServer, make_dns_zone, run_dns_zone

NOW = 1_900_000_000
RFC_8463_MESSAGE = b"""\
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
"""
RFC_8463_SIGNED_MESSAGE = (
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
    + RFC_8463_MESSAGE
)
RFC_8463_DNS_RECORDS = {
    "brisbane._domainkey.football.example.com": "v=DKIM1; k=ed25519; "
    "p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    "test._domainkey.football.example.com": "v=DKIM1; k=rsa; "
    "p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/"
    "J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBf"
    "O2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB",
}
KEY_RECORD_NAME = "s._domainkey.far.example"


async def verify_message(
    raw: bytes, txt_records: Mapping[str, str] | DnsZoneServer, now: int = NOW
) -> list[DkimResult]:
    dns_server = (
        txt_records if isinstance(txt_records, DnsZoneServer) else make_dns_zone(txt_records)
    )
    timeout = 0.3 if dns_server.silent_names else TOTAL_TIMEOUT
    async with run_dns_zone(dns_server) as dns_address:
        return await verify_signatures(
            MessageDns(dns_address, timeout=timeout),
            SignedMessage.from_bytes(raw),
            now,
            "far.example",
        )


async def verify_one_signature(raw: bytes, record: str | None = None) -> AuthResult:
    (verified,) = await verify_message(raw, {KEY_RECORD_NAME: record or make_rsa_key()[1]})
    return verified.result


async def test_rfc_8463_example_passes() -> None:
    raw = RFC_8463_SIGNED_MESSAGE.replace(b"\n", b"\r\n")
    results = await verify_message(raw, RFC_8463_DNS_RECORDS)
    assert [(result.result, result.algorithm, result.selector) for result in results] == [
        (AuthResult.PASS, "ed25519-sha256", "brisbane"),
        (AuthResult.PASS, "rsa-sha256", "test"),
    ]
    for changed in (raw.replace(b"lost", b"won"), raw.replace(b"ready?", b"late?")):
        assert {
            result.result for result in await verify_message(changed, RFC_8463_DNS_RECORDS)
        } == {AuthResult.FAIL}
    # Bare LF.
    assert {
        result.result
        for result in await verify_message(RFC_8463_SIGNED_MESSAGE, RFC_8463_DNS_RECORDS)
    } == {AuthResult.PASS}


@pytest.mark.parametrize(
    ("body", "expected_simple", "expected_relaxed"),
    [
        (b"", b"\r\n", b""),
        (b"\r\n\r\n", b"\r\n", b""),
        (b" C \r\nD \t E\r\n\r\n\r\n", b" C \r\nD \t E\r\n", b" C\r\nD E\r\n"),  # RFC 6376, 3.4.5
        (b"a", b"a\r\n", b"a\r\n"),
        (b"a\r\r\n\r\n", b"a\r\r\n", b"a\r\r\n"),
        (b"\r\n \t\r\n", b"\r\n \t\r\n", b""),
    ],
)
def test_simple_and_relaxed_body_canonicalization(
    body: bytes, expected_simple: bytes, expected_relaxed: bytes
) -> None:
    assert simple_body(body) == expected_simple
    assert relaxed_body(body) == expected_relaxed


async def test_dkimpy_signed_messages_get_the_same_results_as_in_dkimpy() -> None:
    """Intact messages and messages with one changed bit."""
    generator = random.Random(1)  # noqa: S311 - reproducible
    pem, record = make_rsa_key(1024)
    fragments = [
        b"a",
        b" ",
        b"\t",
        b"\r\n",
        b"\r\n\r\n",
        b".",
        b"xyz",
        b"  \r\n",
        b"=",
        b"\xc3\xa9",
    ]
    passed_count = 0
    dns_server = make_dns_zone({KEY_RECORD_NAME: record})
    async with run_dns_zone(dns_server) as dns_address:
        for _ in range(50):
            body = b"".join(generator.choices(fragments, k=generator.randrange(30))) + b"\r\n"
            raw = UNSIGNED_MESSAGE[: UNSIGNED_MESSAGE.index(b"\r\n\r\n") + 4] + body
            canonicalizations = generator.choices([b"relaxed", b"simple"], k=2)
            signed_raw = (
                dkim.sign(raw, b"s", b"far.example", pem, canonicalize=tuple(canonicalizations))
                + raw
            )
            (our_result,) = await verify_signatures(
                MessageDns(dns_address), SignedMessage.from_bytes(signed_raw), NOW, ""
            )
            assert our_result.result is AuthResult.PASS
            changed = bytearray(signed_raw)
            changed[generator.randrange(len(signed_raw))] ^= 1 << generator.randrange(6)
            our_results = await verify_signatures(
                MessageDns(dns_address), SignedMessage.from_bytes(bytes(changed)), NOW, ""
            )
            is_valid = any(result.result is AuthResult.PASS for result in our_results)
            assert is_valid == is_valid_for_dkimpy(bytes(changed), record), bytes(changed)
            passed_count += is_valid
    assert passed_count < 30  # few changes keep a signature valid


def is_valid_for_dkimpy(raw: bytes, record: str) -> bool:
    def query_txt(name: bytes, timeout: int = 5) -> bytes:  # noqa: ARG001 - dkimpy passes it by name
        return record.encode() if name == f"{KEY_RECORD_NAME}.".encode() else b""

    try:
        return bool(dkim.verify(raw, dnsfunc=query_txt))
    except Exception:  # noqa: BLE001 - dkimpy raises many types for an invalid signature
        return False


async def test_added_author_or_text_fails_and_unsigned_field_passes() -> None:
    raw = sign_message()
    assert await verify_one_signature(raw) is AuthResult.PASS
    assert await verify_one_signature(b"X-Spam: no\r\n" + raw) is AuthResult.PASS
    assert await verify_one_signature(
        raw.replace(b"From: Carol", b"From: Eve <eve@x.example>\r\nFrom: Carol")
    ) is (AuthResult.FAIL)
    assert await verify_one_signature(raw + b"More.\r\n") is AuthResult.FAIL


async def test_length_tag_does_not_allow_appended_text() -> None:
    raw = sign_message(length=True)
    assert b"l=" in raw
    assert await verify_one_signature(raw) is AuthResult.PASS
    assert await verify_one_signature(raw + b"<a href=https://evil.example>\r\n") is AuthResult.FAIL


@pytest.mark.parametrize(
    ("record", "expected"),
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
async def test_key_record_decides_the_result(record: str, expected: AuthResult) -> None:
    key = make_rsa_key()[1].partition("p=")[2]
    assert await verify_one_signature(sign_message(), record.replace("{p}", key)) is expected


def test_too_short_or_too_costly_keys_are_refused() -> None:
    short_record = (
        "v=DKIM1; p=MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAuwIDAQAB"
    )
    with pytest.raises((WeakKey, KeyNotFound)):
        parse_dkim_key_record(short_record)
    long_key = base64.b64encode(pkcs1_public_key(16_384, 65537)).decode()
    with pytest.raises((WeakKey, KeyNotFound)):
        parse_dkim_key_record(f"v=DKIM1; p={long_key}")
    slow_key = base64.b64encode(pkcs1_public_key(2048, (1 << 2000) + 1)).decode()
    with pytest.raises((WeakKey, KeyNotFound)):
        parse_dkim_key_record(f"v=DKIM1; p={slow_key}")
    assert isinstance(parse_dkim_key_record(make_rsa_key(1024)[1]), DkimPublicKey)


def pkcs1_public_key(bits: int, exponent: int) -> bytes:
    """PKCS #1 encoding of an RSA public key with an arbitrary modulus."""

    def der_integer(value: int) -> bytes:
        raw = value.to_bytes(value.bit_length() // 8 + 1, "big")
        return b"\x02" + der_length(len(raw)) + raw

    body = der_integer((1 << bits) - 159) + der_integer(exponent)
    return b"\x30" + der_length(len(body)) + body


def der_length(size: int) -> bytes:
    return bytes([0x82, size >> 8, size & 255])


async def test_rsa_1024_passes_and_rsa_sha1_does_not() -> None:
    pem, record = make_rsa_key(1024)
    raw = dkim.sign(UNSIGNED_MESSAGE, b"s", b"far.example", pem) + UNSIGNED_MESSAGE
    assert await verify_one_signature(raw, record) is AuthResult.PASS
    sha1_signed = sign_message().replace(b"rsa-sha256", b"rsa-sha1")
    assert await verify_one_signature(sha1_signed) is AuthResult.POLICY


async def test_signature_outside_of_its_time_or_domain_is_invalid() -> None:
    raw = sign_message()
    time_tag = re.search(rb"t=(\d+);", raw)
    assert time_tag
    expired = raw.replace(time_tag[0], time_tag[0] + b" x=%d;" % (NOW - 1))
    assert await verify_one_signature(expired) is AuthResult.FAIL
    assert (
        await verify_one_signature(raw.replace(time_tag[0], time_tag[0] + b" x=5;"))
        is AuthResult.PERMERROR
    )
    assert await verify_one_signature(
        raw.replace(b"d=far.example", b"d=far.example; i=@other.example")
    ) is (AuthResult.PERMERROR)
    strict_record = make_rsa_key()[1].replace("v=DKIM1;", "v=DKIM1; t=s;")
    assert await verify_one_signature(raw, strict_record) is AuthResult.PASS
    subdomain_signed = sign_message(identity=b"@news.far.example")
    assert await verify_one_signature(subdomain_signed) is AuthResult.PASS
    assert await verify_one_signature(subdomain_signed, strict_record) is AuthResult.PERMERROR


async def test_ed25519_signature_is_verified() -> None:
    """The RSA signature of a signed message is replaced by an Ed25519 signature."""
    key, record = make_ed25519_key()
    raw = sign_message().replace(b"a=rsa-sha256", b"a=ed25519-sha256")
    unsigned_raw = re.sub(rb"b=[A-Za-z0-9+/=\s]+\r\n(?=From)", b"b=AA==\r\n", raw, count=1)
    message = SignedMessage.from_bytes(unsigned_raw)
    signature = parse_signature(message.fields[0], parse_tags(message.fields[0].value))
    signature_value = base64.b64encode(key.sign(header_digest(message, signature)))
    signed_raw = unsigned_raw.replace(b"b=AA==", b"b=" + signature_value)
    assert await verify_one_signature(signed_raw, record) is AuthResult.PASS
    assert (
        await verify_one_signature(signed_raw.replace(b"Hello", b"Hullo"), record)
        is AuthResult.FAIL
    )
    # The DNS record has an RSA key.
    assert await verify_one_signature(signed_raw) is AuthResult.FAIL


async def test_dns_failure_is_temperror() -> None:
    for failure_kind in ("servfail_names", "silent_names"):
        dns_server = make_dns_zone({}, A={"far.example": "192.0.2.1"})
        getattr(dns_server, failure_kind).add(KEY_RECORD_NAME)
        (verified,) = await verify_message(sign_message(), dns_server)
        assert verified.result is AuthResult.TEMPERROR
    (verified,) = await verify_message(sign_message(), {})
    assert verified.result is AuthResult.PERMERROR


async def test_only_ten_signatures_are_verified() -> None:
    signature_field = sign_message().removesuffix(UNSIGNED_MESSAGE)
    raw = (
        b"".join(signature_field.replace(b"s=s;", b"s=s%d;" % n) for n in range(100))
        + UNSIGNED_MESSAGE
    )
    dns_server = make_dns_zone(
        {f"s{n}._domainkey.far.example": make_rsa_key()[1] for n in range(100)}
    )
    results = await verify_message(raw, dns_server)
    assert len(results) == MAX_SIGNATURES
    assert len(dns_server.queries) == MAX_SIGNATURES


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
async def test_invalid_signature_field_does_not_change_the_other_result(field: bytes) -> None:
    raw = b"DKIM-Signature: " + field + b"\r\n" + sign_message()
    results = await verify_message(raw, {KEY_RECORD_NAME: make_rsa_key()[1]})
    assert sorted(result.result for result in results) == [AuthResult.PASS, AuthResult.PERMERROR]


@pytest.mark.parametrize(
    "raw",
    [b"", b"\r\n", b"\n\n", b"no header at all", b"From", b":\r\n\r\n", b" x\r\n", b"\xff" * 5000,
     b"A: b\rFrom: c\r\n\r\n", b"DKIM-Signature: v=1\r\nno field\r\n\r\nbody", b"\r" * 99],
)  # fmt: skip
async def test_arbitrary_bytes_never_pass(raw: bytes) -> None:
    assert all(result.result is not AuthResult.PASS for result in await verify_message(raw, {}))


async def test_large_hostile_body_is_verified_in_linear_time() -> None:
    """Blanks, line ends, and blanks between letters."""
    for body in (b" " * 8_000_000, b"\r\n" * 4_000_000, b"a \t" * 2_000_000, b"\r" * 4_000_000):
        raw = sign_message()[:-4] + body + b"x\r\n"
        assert await verify_one_signature(raw) is AuthResult.FAIL


async def test_large_hostile_header_is_verified_in_linear_time() -> None:
    for header, expected in (
        (b"a:\r\n" * 250_000, AuthResult.PERMERROR),
        (b"A: " + b" \t" * 600_000 + b"\r\n", AuthResult.PERMERROR),
        (b"A: " + b" \t" * 400_000 + b"\r\n", AuthResult.PASS),
        (b"A: b\r\n" * 9000, AuthResult.PASS),
    ):
        assert await verify_one_signature(header + sign_message()) is expected
