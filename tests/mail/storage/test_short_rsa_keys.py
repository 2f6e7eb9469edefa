"""Encryption to short RSA keys, decrypted with GnuPG, and damaged OpenPGP certificates."""

import base64
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mail.storage import openpgp_encryption, openpgp_short_rsa
from models.runtime.environment import Environment
from tests.support.accounts.openpgp_keys import RSA_1024_KEY, SIGN_ONLY_KEY, make_public_key

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class GnuPgKeyring:
    """GnuPG with its own keyring."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)

    def __call__(self, *arguments: str, stdin_data: bytes = b"") -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--yes"]
        options = ["--pinentry-mode", "loopback", "--passphrase", "", "--trust-model", "always"]
        result = subprocess.run(
            [*command, *options, *arguments], input=stdin_data, capture_output=True, check=False
        )
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout


@pytest.fixture
def gpg(tmp_path: Path) -> GnuPgKeyring:
    if shutil.which("gpg") is None:
        pytest.skip("GnuPG is not installed")
    return GnuPgKeyring(tmp_path / "g")


@pytest.mark.parametrize(
    ("key_parameters", "bits"),
    [
        (("rsa1024", "default", "10y"), 1024),
        (("rsa1536", "default", "0"), 1536),
        (("rsa1024", "encr,sign,cert", "0"), 1024),
    ],
)
async def test_gnupg_decrypts_message_for_short_rsa_key(
    gpg: GnuPgKeyring, environment: Environment, key_parameters: tuple[str, str, str], bits: int
) -> None:
    gpg("--quick-gen-key", "Eve <eve@example.org>", *key_parameters)
    if key_parameters[1] == "default":
        key_lines = gpg("--list-keys", "--with-colons").decode().splitlines()
        (fingerprint,) = [line.split(":")[9] for line in key_lines if line.startswith("fpr")][:1]
        if sum(line.startswith("fpr") for line in key_lines) == 1:
            gpg("--quick-add-key", fingerprint, key_parameters[0], "encr", key_parameters[2])
    armored = gpg("--armor", "--export", "eve@example.org").decode()
    key = openpgp_short_rsa.parse_encryption_key_or_none(armored, datetime.now(UTC))
    assert key is not None
    assert (key.bit_length, key.user_id) == (bits, "Eve <eve@example.org>")
    assert (key.expires_at is None) == (key_parameters[2] == "0")
    for content in (b"", b"Hello\r\n", bytes(range(256)) * 1000):
        assert gpg("--decrypt", stdin_data=openpgp_short_rsa.encrypt(content, key)) == content
    raw = b"Subject: Hi\r\nContent-Type: text/plain\r\n\r\nSecret\r\n"
    encrypted = await openpgp_encryption.encrypt_to_keys(environment, raw, [armored])
    pgp_message = encrypted[
        encrypted.index(b"-----BEGIN PGP MESSAGE") : encrypted.index(b"\r\n--=_", 400)
    ]
    assert b"Secret" not in encrypted
    assert b"Secret" in gpg("--decrypt", stdin_data=pgp_message)


def test_other_keys_are_not_parsed_as_short_rsa() -> None:
    for armored in (SIGN_ONLY_KEY, make_public_key("Eve <eve@example.org>")):
        assert openpgp_short_rsa.parse_encryption_key_or_none(armored, NOW) is None


@pytest.mark.parametrize(
    ("position", "expected"),
    [(-450, "4f13b7015f628a45"), (-20, "4f13b7015f628a45"), (40, None)],
)
def test_subkey_without_valid_signature_is_not_used(position: int, expected: str | None) -> None:
    """The primary key is used if a bit of the subkey or of its signature differs."""
    original = openpgp_short_rsa.parse_encryption_key_or_none(RSA_1024_KEY, NOW)
    assert original is not None
    assert original.key_id.hex() == "cb1e4887ec0d9762"
    head, body, tail = split_armor(RSA_1024_KEY)
    damaged = bytearray(body)
    damaged[position] ^= 1
    key = openpgp_short_rsa.parse_encryption_key_or_none(
        head + base64.encodebytes(bytes(damaged)).decode() + tail, NOW
    )
    assert (key and key.key_id.hex()) == expected


def split_armor(armored: str) -> tuple[str, bytes, str]:
    lines = armored.strip().splitlines()
    start = lines.index("") + 1
    end = next(n for n, line in enumerate(lines) if line.startswith("=") and len(line) == 5)
    body = base64.b64decode("".join(lines[start:end]))
    return "\n".join(lines[:start]) + "\n", body, lines[-1] + "\n"
