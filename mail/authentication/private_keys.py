"""Private DKIM keys: generation, parsing, signing, and their DNS records."""

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

from mail.authentication.public_keys import (
    MAX_EXPONENT_BITS,
    MAX_RSA_BITS,
    MIN_RSA_BITS,
    KeyNotFound,
    WeakKey,
    parse_dkim_key_record,
)
from models.domains.dkim_keys import DkimAlgorithm

RSA_SIZES = (1024, 2048, 3072, 4096)  # bits of new RSA keys
MAX_KEY_TEXT = 16 << 10  # characters of an imported key
ED25519_KEY_SIZE = 32  # bytes of an Ed25519 key

Algorithm = DkimAlgorithm


class UnusableKey(Exception):
    """A key that can't sign. The text gives the reason and nothing of the key."""


@dataclass(frozen=True, slots=True)
class DkimPrivateKey:
    """A private key that signs messages."""

    key: RSAPrivateKey | Ed25519PrivateKey = field(repr=False)

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm of the key."""
        return Algorithm.RSA if isinstance(self.key, RSAPrivateKey) else Algorithm.ED25519

    @property
    def bits(self) -> int | None:
        """The bits of an RSA key; None for Ed25519."""
        return self.key.key_size if isinstance(self.key, RSAPrivateKey) else None

    @property
    def algorithm_tag(self) -> str:
        """The value of a= in a signature."""
        return f"{self.algorithm.lower()}-sha256"

    def sign(self, digest: bytes) -> bytes:
        """Sign a SHA-256 digest."""
        if isinstance(self.key, RSAPrivateKey):
            return self.key.sign(digest, PKCS1v15(), Prehashed(SHA256()))
        return self.key.sign(digest)

    def public_key_text(self) -> str:
        """The public key for p= of the DNS record, in base64.

        This is the SPKI of an RSA key, and the 32 bytes of an Ed25519 key.
        """
        return encode_public_key(self.key.public_key())

    def to_pem(self) -> str:
        """The key as PEM. The caller encrypts it before it is stored."""
        pem_options = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        return self.key.private_bytes(*pem_options).decode()


@dataclass(frozen=True, slots=True)
class DkimSigner:
    """A signing key with the domain and selector of its DNS record."""

    domain: str  # as A-labels
    selector: str
    key: DkimPrivateKey


def encode_public_key(key: RSAPublicKey | Ed25519PublicKey) -> str:
    """The public key for p= of a DNS record, in base64."""
    public_options = (
        (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if isinstance(key, RSAPublicKey)
        else (Encoding.Raw, PublicFormat.Raw)
    )
    return base64.b64encode(key.public_bytes(*public_options)).decode()


def generate_key(algorithm: Algorithm, bits: int = 2048) -> DkimPrivateKey:
    """Generate a key. RSA takes a while and belongs into a thread."""
    if algorithm is Algorithm.ED25519:
        return DkimPrivateKey(Ed25519PrivateKey.generate())
    return DkimPrivateKey(generate_private_key(65537, bits))


def parse_dkim_private_key(text: str, *, is_trusted: bool = False) -> DkimPrivateKey:
    """Parse a key in PEM (PKCS #1, PKCS #8), or the bytes of an Ed25519 key in base64.

    Raises UnusableKey. With `is_trusted`, the slow validation of an RSA key is skipped, since
    it was done before.
    """
    text = text.strip()
    if len(text) > MAX_KEY_TEXT:
        raise UnusableKey(f"The key has at most {MAX_KEY_TEXT} characters.")
    if not text.startswith("-----"):
        return DkimPrivateKey(_parse_ed25519(text))
    try:
        key = load_pem_private_key(text.encode(), None, unsafe_skip_rsa_key_validation=is_trusted)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableKey("The key can't be parsed, or is encrypted with a password.") from None
    if isinstance(key, Ed25519PrivateKey):
        return DkimPrivateKey(key)
    if not isinstance(key, RSAPrivateKey):
        raise UnusableKey("The key must be RSA or Ed25519.")
    exponent = key.private_numbers().public_numbers.e
    if (
        not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
        or exponent.bit_length() > MAX_EXPONENT_BITS
    ):
        raise UnusableKey(
            f"An RSA key must have from {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, and a "
            "usual exponent."
        )
    return DkimPrivateKey(key)


def _parse_ed25519(text: str) -> Ed25519PrivateKey:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise UnusableKey("The key must be PEM or base64.") from None
    if len(raw) != ED25519_KEY_SIZE:
        raise UnusableKey(f"An Ed25519 key must have {ED25519_KEY_SIZE} bytes.")
    return Ed25519PrivateKey.from_private_bytes(raw)


def dns_record(algorithm: Algorithm, public_key_text: str) -> str:
    """The TXT record of a public key (RFC 6376, section 3.6.1; RFC 8463, section 3)."""
    return f"v=DKIM1; k={algorithm.lower()}; p={public_key_text}"


def is_record_of_key(record: str, public_key_text: str) -> bool:
    """True if a TXT record has this public key and allows signatures of mail."""
    try:
        return encode_public_key(parse_dkim_key_record(record).key) == public_key_text
    except (KeyNotFound, WeakKey):
        return False


def fingerprint(public_key_text: str, hash_name: str = "sha256") -> str:
    """The SHA-256 or another digest of the public key, as pairs of hex digits."""
    digest = hashlib.new(
        hash_name, base64.b64decode(public_key_text), usedforsecurity=False
    ).digest()
    return ":".join(f"{byte:02x}" for byte in digest)
