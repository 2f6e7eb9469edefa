"""Encrypting to short RSA keys: GnuPG reads it; what is changed in a certificate is refused."""

import base64
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mail.storage import openpgp_encryption, openpgp_short_rsa
from models.runtime.environment import Environment
from tests.support.accounts.openpgp_keys import RSA_1024, SIGNS_ONLY, key_of

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class Gpg:
    """GnuPG with a key ring of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)

    def __call__(self, *words: str, given: bytes = b"") -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--yes"]
        more = ["--pinentry-mode", "loopback", "--passphrase", "", "--trust-model", "always"]
        done = subprocess.run(
            [*command, *more, *words], input=given, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@pytest.fixture
def gpg(tmp_path: Path) -> Gpg:
    if shutil.which("gpg") is None:
        pytest.skip("GnuPG is not installed")
    return Gpg(tmp_path / "g")


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        (("rsa1024", "default", "10y"), 1024),
        (("rsa1536", "default", "0"), 1536),
        (("rsa1024", "encr,sign,cert", "0"), 1024),
    ],
)
async def test_gnupg_decrypts_what_is_encrypted_to_a_short_key(
    gpg: Gpg, world: Environment, words: tuple[str, str, str], bits: int
) -> None:
    gpg("--quick-gen-key", "Eve <eve@example.org>", *words)
    if words[1] == "default":
        ring = gpg("--list-keys", "--with-colons").decode().splitlines()
        (finger,) = [line.split(":")[9] for line in ring if line.startswith("fpr")][:1]
        if sum(line.startswith("fpr") for line in ring) == 1:
            gpg("--quick-add-key", finger, words[0], "encr", words[2])
    armored = gpg("--armor", "--export", "eve@example.org").decode()
    key = openpgp_short_rsa.parse_encryption_key(armored, datetime.now(UTC))
    assert key is not None
    assert (key.bit_length, key.user_id) == (bits, "Eve <eve@example.org>")
    assert (key.expires_at is None) == (words[2] == "0")
    for content in (b"", b"Hello\r\n", bytes(range(256)) * 1000):
        assert gpg("--decrypt", given=openpgp_short_rsa.encrypt(content, key)) == content
    raw = b"Subject: Hi\r\nContent-Type: text/plain\r\n\r\nSecret\r\n"
    made = await openpgp_encryption.encrypt_to_keys(world, raw, [armored])
    inner = made[made.index(b"-----BEGIN PGP MESSAGE") : made.index(b"\r\n--=_", 400)]
    assert b"Secret" not in made
    assert b"Secret" in gpg("--decrypt", given=inner)


def test_other_keys_are_not_read_as_short() -> None:
    for armored in (SIGNS_ONLY, key_of("Eve <eve@example.org>")):
        assert openpgp_short_rsa.parse_encryption_key(armored, NOW) is None


@pytest.mark.parametrize(
    ("place", "expected"),
    [(-450, "4f13b7015f628a45"), (-20, "4f13b7015f628a45"), (40, None)],
)
def test_a_key_without_a_valid_signature_is_not_used(place: int, expected: str | None) -> None:
    """A bit differs in the subkey, in its signature, or in the primary key, which remains else."""
    original = openpgp_short_rsa.parse_encryption_key(RSA_1024, NOW)
    assert original is not None
    assert original.key_id.hex() == "cb1e4887ec0d9762"
    head, body, tail = _divided(RSA_1024)
    damaged = bytearray(body)
    damaged[place] ^= 1
    found = openpgp_short_rsa.parse_encryption_key(
        head + base64.encodebytes(bytes(damaged)).decode() + tail, NOW
    )
    assert (found and found.key_id.hex()) == expected


def _divided(armored: str) -> tuple[str, bytes, str]:
    lines = armored.strip().splitlines()
    start = lines.index("") + 1
    end = next(n for n, line in enumerate(lines) if line.startswith("=") and len(line) == 5)
    body = base64.b64decode("".join(lines[start:end]))
    return "\n".join(lines[:start]) + "\n", body, lines[-1] + "\n"
