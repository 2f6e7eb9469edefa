"""What our domains sign: checked by our own verifier, and by dkimpy."""

import base64
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mail.authentication import private_keys
from mail.authentication.dkim import AuthResult, SignedMessage, verify_signatures
from mail.authentication.dkim_signature import sign_message
from mail.authentication.dns_queries import MessageDns
from mail.authentication.private_keys import Algorithm, DkimPrivateKey, DkimSigner, UnusableKey
from tests.support.mail.signed_messages import LETTER
from tests.support.mail_servers.dns_zone_server import asking, zone

NOW = 1_700_000_000  # dkimpy takes none of times to come
KEYS = {
    Algorithm.RSA: private_keys.generate_key(Algorithm.RSA),
    Algorithm.ED25519: private_keys.generate_key(Algorithm.ED25519),
}
BOTH = [DkimSigner("far.example", kind.lower(), KEYS[kind]) for kind in Algorithm]
RECORDS = {
    f"{one.selector}._domainkey.far.example": private_keys.dns_record(
        one.key.algorithm, one.key.public_key_text()
    )
    for one in BOTH
}


async def checked(raw: bytes, now: int = NOW) -> dict[str, AuthResult]:
    """What our verifier says, by algorithm."""
    async with asking(zone(RECORDS)) as place:
        found = await verify_signatures(
            MessageDns(place), SignedMessage.from_bytes(raw), now, "far.example"
        )
    return {one.algorithm: one.result for one in found}


def by_dkimpy(raw: bytes, index: int) -> bool:
    """What dkimpy says of the so-manieth signature."""

    def ask(name: bytes, timeout: int = 5) -> bytes:
        del timeout
        return RECORDS.get(name.decode().rstrip("."), "").encode()

    return bool(dkim.DKIM(raw).verify(idx=index, dnsfunc=ask))


GOOD = {"rsa-sha256": AuthResult.PASS, "ed25519-sha256": AuthResult.PASS}


@pytest.mark.parametrize(
    "raw",
    [
        LETTER,
        LETTER.replace(b"\r\n", b"\n"),
        b"From: a@far.example\r\n\r\n",
        b"From: a@far.example\r\n\r\n\r\n\r\n",
        b"From: a@far.example\r\nSubject: " + b"x" * 5000 + b"\r\n\r\n" + b"y" * 20_000,
        b"From: =?utf-8?b?w7w=?= <a@far.example>\r\nTo: b@c.de,\r\n\td@e.fr\r\n\r\n \t x \r\n\t\r",
        b"From: a@far.example\r\nSubject: \xc3\xbcber\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n",
        b"from:a@far.example\r\nTO:b@c.de\r\nCc:\r\n\r\nText without an end",
        LETTER.replace(b"\r\n\r\n", b"\r\nTo: twice@example.org\r\n\r\n", 1),
    ],
)
async def test_others_can_check_it(raw: bytes) -> None:
    made = await sign_message(BOTH, raw, NOW)
    assert made.startswith(b"DKIM-Signature: v=1; a=rsa-sha256;")
    assert max(map(len, made.split(b"\r\n"))) < 100
    assert await checked(made + raw) == GOOD
    wired = raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert [by_dkimpy(made + wired, nth) for nth in (0, 1)] == [True, True]


async def test_a_file_is_signed_as_its_bytes_are(tmp_path: Path) -> None:
    raw = LETTER + b"line\r\n" * 100_000
    path = tmp_path / "letter"
    path.write_bytes(raw)
    made = await sign_message(BOTH[:1], path, NOW)
    assert made == await sign_message(BOTH[:1], raw, NOW)
    assert await checked(made + raw) == {"rsa-sha256": AuthResult.PASS}


@pytest.mark.parametrize(
    "field",
    [b"From: b@far.example", b"Subject: Other", b"To: c@d.ef", b"Date: now", b"Reply-To: x@y.z",
     b"Cc: x@y.z", b"Message-ID: <2@x>"],
)  # fmt: skip
@pytest.mark.parametrize("above", [True, False])
async def test_nobody_adds_a_field_that_is_shown(field: bytes, *, above: bool) -> None:
    made = await sign_message(BOTH, LETTER, NOW)
    head, _, body = LETTER.partition(b"\r\n\r\n")
    changed = field + b"\r\n" + made + LETTER if above else made + head + b"\r\n" + field
    whole = changed if above else changed + b"\r\n\r\n" + body
    assert set((await checked(whole)).values()) == {AuthResult.FAIL}


async def test_what_is_changed_fails_and_what_is_not_ours_is_not_signed() -> None:
    made = await sign_message(BOTH, LETTER, NOW)
    for changed in (LETTER.replace(b"Ada", b"Eve"), LETTER.replace(b"A \t letter", b"A later")):
        assert set((await checked(made + changed)).values()) == {AuthResult.FAIL}
    before = b"X-Spam: no\r\nReceived: by somebody\r\nDKIM-Signature: v=1; a=none\r\n"
    assert GOOD.items() <= (await checked(before + made + LETTER)).items()
    again = await sign_message(BOTH, made + LETTER, NOW)  # signed anew: the first one stays good
    assert (await checked(again + made + LETTER)) == GOOD


async def test_a_signature_may_end() -> None:
    made = await sign_message(BOTH[:1], LETTER, NOW, lifetime=100)
    assert await checked(made + LETTER, NOW + 50) == {"rsa-sha256": AuthResult.PASS}
    assert AuthResult.PASS not in (await checked(made + LETTER, NOW + 1000)).values()


@pytest.mark.parametrize("raw", [b"", b"no field\r\n\r\nx", b"To: b@c.de\r\n\r\nx"])
async def test_what_has_no_author_is_not_signed(raw: bytes) -> None:
    assert await sign_message(BOTH, raw, NOW) == b""


@pytest.mark.parametrize("kind", list(Algorithm))
def test_keys_are_read_as_they_are_written(kind: Algorithm) -> None:
    key = KEYS[kind]
    assert private_keys.parse_key(key.to_pem()).public_key_text() == key.public_key_text()
    assert private_keys.parse_key(f"\n {key.to_pem()} \n").algorithm is kind
    assert len(private_keys.fingerprint(key.public_key_text())) == 95
    assert key.bits == (2048 if kind is Algorithm.RSA else None)
    assert "PRIVATE" not in repr(key)


def test_the_bare_bytes_of_ed25519_are_a_key() -> None:
    raw = bytes(range(32))
    key = private_keys.parse_key(base64.b64encode(raw).decode())
    assert key.algorithm is Algorithm.ED25519
    assert len(base64.b64decode(key.public_key_text())) == 32
    assert private_keys.dns_record(key.algorithm, key.public_key_text()).startswith(
        "v=DKIM1; k=ed25519; p="
    )


def others() -> list[str]:
    how = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    elliptic = ec.generate_private_key(ec.SECP256R1())
    old = dsa.generate_private_key(2048)
    small = private_keys.generate_key(Algorithm.RSA, 1024).to_pem()
    return [elliptic.private_bytes(*how).decode(), old.private_bytes(*how).decode(), small[:-60]]


@pytest.mark.parametrize(
    "text", ["", "x", "a" * 44, "-----BEGIN PRIVATE KEY-----", "A" * 20_000, *others()]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UnusableKey) as refused:
        private_keys.parse_key(text)
    assert not text.strip() or text not in str(refused.value)


def test_a_key_in_use_says_what_it_is() -> None:
    key: DkimPrivateKey = KEYS[Algorithm.RSA]
    assert key.algorithm_tag == "rsa-sha256"
    assert private_keys.dns_record(key.algorithm, key.public_key_text()).startswith(
        "v=DKIM1; k=rsa; p=MII"
    )
