"""Messages that are signed or sealed by dkimpy, and the DNS records of the keys."""

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

UNSIGNED_MESSAGE = (
    b"From: Carol <carol@far.example>\r\nTo: ada@example.org\r\nSubject:  A \t letter\r\n"
    b" in two lines\r\nDate: Mon, 7 Jan 2030 10:00:00 +0000\r\nMessage-ID: <1@far.example>\r\n"
    b"\r\nHello,  Ada. \r\n\tThis is it.\r\n\r\n\r\n"
)


@cache
def make_rsa_key(bits: int = 2048, exponent: int = 65537) -> tuple[bytes, str]:
    """An RSA key as PEM, and its DNS record."""
    key = generate_private_key(exponent, bits)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return pem, arc_seal.arc_key_dns_record(key)


@cache
def make_ed25519_key() -> tuple[Ed25519PrivateKey, str]:
    """An Ed25519 key and its DNS record."""
    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return key, f"v=DKIM1; k=ed25519; p={base64.b64encode(raw).decode()}"


def sign_message(
    raw: bytes = UNSIGNED_MESSAGE,
    domain: str = "far.example",
    selector: str = "s",
    **options: object,
) -> bytes:
    """Sign a message with DKIM by dkimpy and return it with the signature."""
    pem, _ = make_rsa_key()
    signature_field: bytes = dkim.sign(raw, selector.encode(), domain.encode(), pem, **options)
    return signature_field + raw


def seal_message(raw: bytes, domain: str, results: str) -> bytes:
    """Seal a message with ARC by dkimpy. `results` is the text of its Authentication-Results."""
    pem, _ = make_rsa_key()
    message_with_results = f"Authentication-Results: {domain}; {results}\r\n".encode() + raw
    seal_fields = dkim.arc_sign(message_with_results, b"s", domain.encode(), pem, domain.encode())
    return b"".join(seal_fields) + raw
