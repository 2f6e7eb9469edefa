"""Messages that others have signed, and the records by which that is checked."""

import base64
from functools import cache

import dkim
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mail.authentication import arc_seal

LETTER = (
    b"From: Carol <carol@far.example>\r\nTo: ada@example.org\r\nSubject:  A \t letter\r\n"
    b" in two lines\r\nDate: Mon, 7 Jan 2030 10:00:00 +0000\r\nMessage-ID: <1@far.example>\r\n"
    b"\r\nHello,  Ada. \r\n\tThis is it.\r\n\r\n\r\n"
)


@cache
def pair(bits: int = 2048, exponent: int = 65537) -> tuple[bytes, str]:
    """A key of RSA as PEM, and its record."""
    key = generate_private_key(exponent, bits)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return pem, arc_seal.dns_record(key)


@cache
def edwards() -> tuple[Ed25519PrivateKey, str]:
    """A key of Ed25519, and its record."""
    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return key, f"v=DKIM1; k=ed25519; p={base64.b64encode(raw).decode()}"


def signed(
    raw: bytes = LETTER, domain: str = "far.example", selector: str = "s", **more: object
) -> bytes:
    """The message with a signature by dkimpy on top."""
    pem, _ = pair()
    made: bytes = dkim.sign(raw, selector.encode(), domain.encode(), pem, **more)
    return made + raw


def sealed(raw: bytes, domain: str, results: str) -> bytes:
    """The message with a seal by dkimpy on top; `results` are what it has found out."""
    pem, _ = pair()
    told = f"Authentication-Results: {domain}; {results}\r\n".encode() + raw
    fields = dkim.arc_sign(told, b"s", domain.encode(), pem, domain.encode())
    return b"".join(fields) + raw
