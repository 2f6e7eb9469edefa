"""DKIM signatures of our domains, checked by our verifier and by dkimpy."""

import base64
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mail.authentication import private_keys
from mail.authentication.dkim import AuthResult, SignedMessage, verify_signatures
from mail.authentication.dkim_signature import make_signature_fields_or_empty
from mail.authentication.dns_queries import MessageDns
from mail.authentication.private_keys import Algorithm, DkimPrivateKey, DkimSigner, UnusableKey
from tests.support.case_loop import each_case
from tests.support.mail.signed_messages import UNSIGNED_MESSAGE
from tests.support.mail_servers.dns_zone_server import make_dns_zone, run_dns_zone

NOW = 1_700_000_000  # dkimpy accepts no signature time in the future
KEYS = {
    Algorithm.RSA: private_keys.generate_key(Algorithm.RSA),
    Algorithm.ED25519: private_keys.generate_key(Algorithm.ED25519),
}
SIGNERS = [DkimSigner("far.example", kind.lower(), KEYS[kind]) for kind in Algorithm]
DNS_TXT_RECORDS = {
    f"{signer.selector}._domainkey.far.example": private_keys.dns_record(
        signer.key.algorithm, signer.key.public_key_text()
    )
    for signer in SIGNERS
}


async def verify_with_our_verifier(raw: bytes, now: int = NOW) -> dict[str, AuthResult]:
    """Verify the signatures of a message and return the results by algorithm."""
    async with run_dns_zone(make_dns_zone(DNS_TXT_RECORDS)) as dns_address:
        results = await verify_signatures(
            MessageDns(dns_address), SignedMessage.from_bytes(raw), now, "far.example"
        )
    return {result.algorithm: result.result for result in results}


def is_valid_for_dkimpy(raw: bytes, index: int) -> bool:
    """True if dkimpy accepts the signature at this index."""

    def query_txt(name: bytes, timeout: int = 5) -> bytes:
        del timeout
        return DNS_TXT_RECORDS.get(name.decode().rstrip("."), "").encode()

    return bool(dkim.DKIM(raw).verify(idx=index, dnsfunc=query_txt))


BOTH_PASS = {"rsa-sha256": AuthResult.PASS, "ed25519-sha256": AuthResult.PASS}


@pytest.mark.parametrize(
    "raw",
    [
        UNSIGNED_MESSAGE,
        UNSIGNED_MESSAGE.replace(b"\r\n", b"\n"),
        b"From: a@far.example\r\n\r\n",
        b"From: a@far.example\r\n\r\n\r\n\r\n",
        b"From: a@far.example\r\nSubject: " + b"x" * 5000 + b"\r\n\r\n" + b"y" * 20_000,
        b"From: =?utf-8?b?w7w=?= <a@far.example>\r\nTo: b@c.de,\r\n\td@e.fr\r\n\r\n \t x \r\n\t\r",
        b"From: a@far.example\r\nSubject: \xc3\xbcber\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n",
        b"from:a@far.example\r\nTO:b@c.de\r\nCc:\r\n\r\nText without an end",
        UNSIGNED_MESSAGE.replace(b"\r\n\r\n", b"\r\nTo: twice@example.org\r\n\r\n", 1),
    ],
)
async def test_signatures_are_valid_for_us_and_for_dkimpy(raw: bytes) -> None:
    signature_fields = await make_signature_fields_or_empty(SIGNERS, raw, NOW)
    assert signature_fields.startswith(b"DKIM-Signature: v=1; a=rsa-sha256;")
    assert max(map(len, signature_fields.split(b"\r\n"))) < 100
    assert await verify_with_our_verifier(signature_fields + raw) == BOTH_PASS
    transmitted = raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert [is_valid_for_dkimpy(signature_fields + transmitted, index) for index in (0, 1)] == [
        True,
        True,
    ]


async def test_file_and_its_bytes_get_the_same_signature(tmp_path: Path) -> None:
    raw = UNSIGNED_MESSAGE + b"line\r\n" * 100_000
    path = tmp_path / "letter"
    path.write_bytes(raw)
    signature_fields = await make_signature_fields_or_empty(SIGNERS[:1], path, NOW)
    assert signature_fields == await make_signature_fields_or_empty(SIGNERS[:1], raw, NOW)
    assert await verify_with_our_verifier(signature_fields + raw) == {"rsa-sha256": AuthResult.PASS}


@pytest.mark.parametrize(
    "field",
    [b"From: b@far.example", b"Subject: Other", b"To: c@d.ef", b"Date: now", b"Reply-To: x@y.z",
     b"Cc: x@y.z", b"Message-ID: <2@x>"],
)  # fmt: skip
@pytest.mark.parametrize("above", [True, False])
async def test_added_visible_field_breaks_the_signature(field: bytes, *, above: bool) -> None:
    signature_fields = await make_signature_fields_or_empty(SIGNERS, UNSIGNED_MESSAGE, NOW)
    head, _, body = UNSIGNED_MESSAGE.partition(b"\r\n\r\n")
    changed = (
        field + b"\r\n" + signature_fields + UNSIGNED_MESSAGE
        if above
        else signature_fields + head + b"\r\n" + field
    )
    complete = changed if above else changed + b"\r\n\r\n" + body
    assert set((await verify_with_our_verifier(complete)).values()) == {AuthResult.FAIL}


async def test_changed_message_fails_and_added_trace_fields_do_not() -> None:
    signature_fields = await make_signature_fields_or_empty(SIGNERS, UNSIGNED_MESSAGE, NOW)
    for changed in (
        UNSIGNED_MESSAGE.replace(b"Ada", b"Eve"),
        UNSIGNED_MESSAGE.replace(b"A \t letter", b"A later"),
    ):
        assert set((await verify_with_our_verifier(signature_fields + changed)).values()) == {
            AuthResult.FAIL
        }
    trace_fields = b"X-Spam: no\r\nReceived: by somebody\r\nDKIM-Signature: v=1; a=none\r\n"
    assert (
        BOTH_PASS.items()
        <= (
            await verify_with_our_verifier(trace_fields + signature_fields + UNSIGNED_MESSAGE)
        ).items()
    )
    # The first signature stays valid.
    second_signature_fields = await make_signature_fields_or_empty(
        SIGNERS, signature_fields + UNSIGNED_MESSAGE, NOW
    )
    assert (
        await verify_with_our_verifier(
            second_signature_fields + signature_fields + UNSIGNED_MESSAGE
        )
    ) == BOTH_PASS


async def test_signature_with_a_lifetime_expires() -> None:
    signature_fields = await make_signature_fields_or_empty(
        SIGNERS[:1], UNSIGNED_MESSAGE, NOW, lifetime=100
    )
    assert await verify_with_our_verifier(signature_fields + UNSIGNED_MESSAGE, NOW + 50) == {
        "rsa-sha256": AuthResult.PASS
    }
    assert (
        AuthResult.PASS
        not in (
            await verify_with_our_verifier(signature_fields + UNSIGNED_MESSAGE, NOW + 1000)
        ).values()
    )


@pytest.mark.parametrize("raw", [b"", b"no field\r\n\r\nx", b"To: b@c.de\r\n\r\nx"])
async def test_message_without_from_is_not_signed(raw: bytes) -> None:
    assert await make_signature_fields_or_empty(SIGNERS, raw, NOW) == b""


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_key_round_trip_keeps_the_public_key(algorithm: Algorithm) -> None:
    key = KEYS[algorithm]
    assert (
        private_keys.parse_dkim_private_key(key.to_pem()).public_key_text() == key.public_key_text()
    )
    assert private_keys.parse_dkim_private_key(f"\n {key.to_pem()} \n").algorithm is algorithm
    assert len(private_keys.fingerprint(key.public_key_text())) == 95
    assert key.bits == (2048 if algorithm is Algorithm.RSA else None)
    assert "PRIVATE" not in repr(key)


def test_raw_ed25519_bytes_are_parsed_as_a_key() -> None:
    raw = bytes(range(32))
    key = private_keys.parse_dkim_private_key(base64.b64encode(raw).decode())
    assert key.algorithm is Algorithm.ED25519
    assert len(base64.b64decode(key.public_key_text())) == 32
    assert private_keys.dns_record(key.algorithm, key.public_key_text()).startswith(
        "v=DKIM1; k=ed25519; p="
    )


def unsupported_keys() -> list[str]:
    encoding = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    elliptic_key = ec.generate_private_key(ec.SECP256R1())
    dsa_key = dsa.generate_private_key(2048)
    truncated_key = private_keys.generate_key(Algorithm.RSA, 1024).to_pem()
    return [
        elliptic_key.private_bytes(*encoding).decode(),
        dsa_key.private_bytes(*encoding).decode(),
        truncated_key[:-60],
    ]


def test_unsupported_key_is_refused_without_its_text() -> None:
    texts = ["", "x", "a" * 44, "-----BEGIN PRIVATE KEY-----", "A" * 20_000, *unsupported_keys()]
    for case in each_case(texts):
        with case as text:
            with pytest.raises(UnusableKey) as error:
                private_keys.parse_dkim_private_key(text)
            assert not text.strip() or text not in str(error.value)


def test_rsa_key_has_algorithm_tag_and_dns_record() -> None:
    key: DkimPrivateKey = KEYS[Algorithm.RSA]
    assert key.algorithm_tag == "rsa-sha256"
    assert private_keys.dns_record(key.algorithm, key.public_key_text()).startswith(
        "v=DKIM1; k=rsa; p=MII"
    )
