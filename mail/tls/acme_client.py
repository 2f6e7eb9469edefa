"""Interface and values of the ACME client (RFC 8555): certificates by HTTP-01 challenges.

mail/tls/acme_library_client.py implements the client. mail/tls/acme_connection.py opens it.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from models.base64url import encode_base64url

RSA_KEY_SIZE = 2048
DEFAULT_ADVICE_SECONDS = 6 * 60 * 60  # without Retry-After (RFC 9773, section 4.3.3)
MAX_MESSAGE_CHARACTERS = 300  # of an error text
MAX_TOKEN_CHARACTERS = 200  # the key authorization can have twice as many
CHALLENGE_PATH = "/.well-known/acme-challenge/"
RATE_LIMITED = "rateLimited"
UNKNOWN_ACCOUNT = "accountDoesNotExist"
UNREASONABLE = "badRevocationReason"
SERVER_FAILURE = "serverInternal"


class AcmeError(Exception):
    """An ACME request failed: a text for administrators, and the error type of RFC 8555 if any."""

    def __init__(self, message: str, *, error_type: str = "") -> None:
        text = "".join(sign if sign.isprintable() else " " for sign in message)
        super().__init__(text[:MAX_MESSAGE_CHARACTERS])
        self.code = error_type


class AcmeServerUnavailable(AcmeError):
    """The ACME server can't be reached, or fails itself. Another attempt needs no change here."""


class RevocationReason(StrEnum):
    """The reason for revoking a certificate (RFC 5280, section 5.3.1)."""

    UNSPECIFIED = "UNSPECIFIED"
    KEY_COMPROMISE = "KEY_COMPROMISE"
    AFFILIATION_CHANGED = "AFFILIATION_CHANGED"
    SUPERSEDED = "SUPERSEDED"
    CESSATION_OF_OPERATION = "CESSATION_OF_OPERATION"


@dataclass(frozen=True, slots=True)
class AcmeServer:
    """An ACME server: its directory URL, CA file, and external account binding."""

    directory_url: str
    ca_file: Path | None = None
    user_agent: str = "merganser"
    # key id and HMAC, base64url
    external_binding: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RenewalAdvice:
    """The window in which a server suggests the renewal (RFC 9773), and how long it is valid."""

    start: datetime.datetime
    end: datetime.datetime
    valid_for: datetime.timedelta


@dataclass(frozen=True, slots=True)
class HttpChallenge:
    """An HTTP-01 challenge: the key authorization that the server must find under the token."""

    token: str
    key_authorization: str
    challenge_body: Any = field(repr=False)


def new_account_key() -> str:
    """Generate an ECDSA key for an ACME account, as PEM."""
    return _private_key_pem(ec.generate_private_key(ec.SECP256R1()))


def new_certificate_key() -> str:
    """Generate an RSA key for a certificate, as PEM. All mail servers support RSA."""
    return _private_key_pem(rsa.generate_private_key(65537, RSA_KEY_SIZE))


def _private_key_pem(private_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    no_encryption, key_format = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    return private_key.private_bytes(Encoding.PEM, key_format, no_encryption).decode()


def certificate_renewal_id(chain_pem: str) -> str | None:
    """The renewal id (RFC 9773, section 4.1) of the first certificate of a PEM chain.

    None if the certificate has no authority key identifier.
    """
    certificate = x509.load_pem_x509_certificate(chain_pem.encode())
    try:
        extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        return None
    serial = certificate.serial_number.to_bytes(
        certificate.serial_number.bit_length() // 8 + 1, "big"
    )
    key = extension.value.key_identifier
    return f"{encode_base64url(key)}.{encode_base64url(serial)}" if key else None


def certificate_request_pem(key_pem: str, dns_names: Sequence[str]) -> bytes:
    """The certificate signing request for these names, as PEM."""
    private_key: Any = serialization.load_pem_private_key(key_pem.encode(), None)
    alternative_names = x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    has_own_digest = isinstance(private_key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    csr = builder.add_extension(alternative_names, critical=False).sign(
        private_key, None if has_own_digest else hashes.SHA256()
    )
    return csr.public_bytes(Encoding.PEM)


class AcmeClient(Protocol):
    """A client of an ACME server. All methods block and raise AcmeError."""

    @property
    def accepts_orders(self) -> bool:
        """True if the directory has a URL for new orders, as each ACME directory must have."""

    @property
    def caa_identities(self) -> tuple[str, ...]:
        """The CAA identities of the authority. Empty if it publishes none."""

    @property
    def has_renewal_info(self) -> bool:
        """True if the server publishes renewal windows (RFC 9773)."""

    def load_renewal_advice(self, chain_pem: str) -> RenewalAdvice:
        """Load the suggested renewal window of a certificate. Raises AcmeError if it is invalid."""

    def register_or_use_account(self, account_url: str | None, contact_address: str) -> str:
        """Use the account with this URL, or create one and agree to the terms. Returns its URL."""

    def create_order(
        self, csr_pem: bytes, dns_names: Sequence[str], replaced_id: str | None = None
    ) -> list[str]:
        """Order a certificate for these names. Returns the authorization URLs.

        `replaced_id` is the renewal id of the certificate that it replaces (RFC 9773, section 5).
        """

    def load_challenge_unless_valid(self, authorization_url: str) -> HttpChallenge | None:
        """Load the HTTP-01 challenge of an authorization. None if it is valid already."""

    def answer_challenge(self, challenge: HttpChallenge) -> None:
        """Tell the server that the challenge can be checked."""

    def poll_authorizations_and_return_are_valid(self) -> bool:
        """Poll the pending authorizations once. Returns True if all are valid.

        Raises AcmeError if the server refused one. It returns after about two seconds, so callers
        must repeat it.
        """

    def finalize_order(self) -> None:
        """Tell the server to issue the certificate."""

    def poll_certificate_or_none(self) -> str | None:
        """Poll for the certificate chain, as PEM. None if it is not issued yet."""

    def revoke(self, chain_pem: str, reason: RevocationReason) -> None:
        """Revoke the first certificate of a chain with this account.

        It is no error if it is revoked already.
        """

    def close(self) -> None:
        """Close the connections to the server."""


def failure_of_names(dns_names: Sequence[str], reason: str, *, error_type: str = "") -> AcmeError:
    """The failure for these names, with the reason of the first one."""
    other_names = f" Also affected: {', '.join(dns_names[1:])}." if dns_names[1:] else ""
    return AcmeError(f"{dns_names[0]}: {reason}{other_names}", error_type=error_type)
