"""Private keys that domains sign with: made, read as others write them, and their public halves."""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mail.authentication.public_keys import EXPONENT, LONGEST, SHORTEST, NoKey, Weak, parsed
from models.domains.dkim_keys import DkimAlgorithm

SIZES = (1024, 2048, 3072, 4096)  # bits of RSA keys that are made
TEXT = 16 << 10  # characters of a key that is brought along
RAW = 32  # bytes of a key of Ed25519

Algorithm = DkimAlgorithm


class Unusable(Exception):
    """A key that nothing can be signed with; says why, and nothing of the key."""


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs."""

    key: RSAPrivateKey | Ed25519PrivateKey = field(repr=False)

    @property
    def algorithm(self) -> Algorithm:
        """What it signs with."""
        return Algorithm.RSA if isinstance(self.key, RSAPrivateKey) else Algorithm.ED25519

    @property
    def bits(self) -> int | None:
        """Of an RSA key; None of others."""
        return self.key.key_size if isinstance(self.key, RSAPrivateKey) else None

    @property
    def name(self) -> str:
        """As a signature names it in a=."""
        return f"{self.algorithm.lower()}-sha256"

    def sign(self, digest: bytes) -> bytes:
        """The proof over a SHA-256 digest."""
        if isinstance(self.key, RSAPrivateKey):
            return self.key.sign(digest, PKCS1v15(), Prehashed(SHA256()))
        return self.key.sign(digest)

    def public(self) -> str:
        """The public half as DNS has it in p=: SPKI of RSA, the bare 32 bytes of Ed25519."""
        return half(self.key.public_key())

    def pem(self) -> str:
        """The key as it is stored, sealed by others."""
        how = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        return self.key.private_bytes(*how).decode()


@dataclass(frozen=True, slots=True)
class Signer:
    """A key of a domain, and where DNS has its other half."""

    domain: str  # as the wire has it
    selector: str
    key: PrivateKey


def half(key: RSAPublicKey | Ed25519PublicKey) -> str:
    """A public half as DNS has it in p=."""
    how = (
        (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if isinstance(key, RSAPublicKey)
        else (Encoding.Raw, PublicFormat.Raw)
    )
    return base64.b64encode(key.public_bytes(*how)).decode()


def made(algorithm: Algorithm, bits: int = 2048) -> PrivateKey:
    """Another key. One of RSA takes a while, in a thread that holds nobody up."""
    if algorithm is Algorithm.ED25519:
        return PrivateKey(Ed25519PrivateKey.generate())
    return PrivateKey(generate_private_key(65537, bits))


def read(text: str, *, ours: bool = False) -> PrivateKey:
    """A key as PEM (PKCS #1, PKCS #8), or the bare bytes of Ed25519 as Base64; Unusable.

    One of `ours` was checked before: of an RSA key that takes longest by far.
    """
    text = text.strip()
    if len(text) > TEXT:
        raise Unusable(f"at most {TEXT} characters")
    if not text.startswith("-----"):
        return PrivateKey(_bare(text))
    try:
        key = load_pem_private_key(text.encode(), None, unsafe_skip_rsa_key_validation=ours)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Unusable("no key that can be read without a password") from None
    if isinstance(key, Ed25519PrivateKey):
        return PrivateKey(key)
    if not isinstance(key, RSAPrivateKey):
        raise Unusable("neither RSA nor Ed25519")
    exponent = key.private_numbers().public_numbers.e
    if not SHORTEST <= key.key_size <= LONGEST or exponent.bit_length() > EXPONENT:
        raise Unusable(f"an RSA key has {SHORTEST} to {LONGEST} bits, and a usual exponent")
    return PrivateKey(key)


def _bare(text: str) -> Ed25519PrivateKey:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise Unusable("neither PEM nor Base64") from None
    if len(raw) != RAW:
        raise Unusable(f"a key of Ed25519 has {RAW} bytes")
    return Ed25519PrivateKey.from_private_bytes(raw)


def record(algorithm: Algorithm, public: str) -> str:
    """The TXT record of a public half (RFC 6376, section 3.6.1; RFC 8463, section 3)."""
    return f"v=DKIM1; k={algorithm.lower()}; p={public}"


def is_record(text: str, public: str) -> bool:
    """Whether a record has this public half, and lets mail be signed with it."""
    try:
        return half(parsed(text).key) == public
    except (NoKey, Weak):
        return False


def fingerprint(public: str, kind: str = "sha256") -> str:
    """SHA-256 of the public half, or another digest, as pairs of hex digits."""
    digest = hashlib.new(kind, base64.b64decode(public), usedforsecurity=False).digest()
    return ":".join(f"{byte:02x}" for byte in digest)
