"""Certificate authorities and certificates in PEM, valid and invalid, for tests."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.conftest import GraphQLClient

SERVER_NAME = "mx.example.org"
ONE_DAY = datetime.timedelta(days=1)
# the clock of tests is set to a time in the validity of 90 days
CERTIFICATE_BEGIN = datetime.datetime(2029, 12, 1, tzinfo=datetime.UTC)
CERTIFICATE_FIELDS = """id serverName altNames description fingerprint fingerprintSha256 issuer acme
  acmeNames acmeState acmeError acmeNextOrderAt createdAt startsAt expiresAt"""
CERTIFICATE_SET = f"""mutation ($input: CertificateSetInput!) {{ certificateSet(input: $input) {{
  certificate {{ {CERTIFICATE_FIELDS} }} warnings {{ code path }}
  errors {{ __typename code message path ... on ValidationError {{ constraint }} }} }} }}"""
CERTIFICATE_DELETE = """mutation ($input: CertificateDeleteInput!) {
  certificateDelete(input: $input) { deletedIds revokedIds
  errors { __typename code message path
  ... on ValidationError { constraint } ... on UnavailableError { component } } } }"""
CERTIFICATE_RENEW = """mutation ($input: CertificateRenewInput!) { certificateRenew(input: $input) {
  certificates { serverName acmeState acmeError acmeNextOrderAt }
  errors { __typename code message path } } }"""
CERTIFICATES_QUERY = """
query ($filter: CertificateFilter, $first: Int, $after: String, $last: Int) {
  certificates(filter: $filter, first: $first, after: $after, last: $last) {
    totalCount nodes { id serverName } pageInfo { hasNextPage endCursor } } }"""
CERTIFICATE_QUERY = (
    f"query ($by: CertificateRef!) {{ certificate(by: $by) {{ {CERTIFICATE_FIELDS} }} }}"
)


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """An RSA key, made once for each size."""
    return rsa.generate_private_key(65537, bits)


def private_key_pem(key: Any, password: bytes | None = None) -> str:
    """The private key as PEM, encrypted if a password is given."""
    encryption: Any = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    pem: str = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()
    return pem


def certificate_pem(certificate: x509.Certificate) -> str:
    """The certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM).decode()


@dataclass
class CertificateSigner:
    """A certificate authority."""

    name: str = "Test CA"
    issuer: "CertificateSigner | None" = None
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        signer = self.issuer or self
        builder = signer.certificate_builder(self.name, self.key.public_key())
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate = builder.sign(signer.key, hashes.SHA256())

    def certificate_builder(
        self, name: str, key: Any, starts_at: datetime.datetime = CERTIFICATE_BEGIN, days: int = 90
    ) -> x509.CertificateBuilder:
        """A builder of a certificate that this authority issues."""
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        subject_attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject_attributes))
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(starts_at)
            .not_valid_after(starts_at + days * ONE_DAY)
        )

    def issue_certificate(  # noqa: PLR0913 - a test varies one of them
        self,
        names: Sequence[str] = (SERVER_NAME,),
        key: Any = None,
        *,
        common_name: str = "",
        begin: datetime.datetime = CERTIFICATE_BEGIN,
        days: int = 90,
        for_clients: bool = False,
    ) -> tuple[str, str]:
        """Issue a certificate. Returns the certificate and its key as PEM."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = self.certificate_builder(common_name, key.public_key(), begin, days)
        if names:
            alternative_names = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternative_names, critical=False)
        if for_clients:
            key_usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
            builder = builder.add_extension(key_usage, critical=False)
        return certificate_pem(builder.sign(self.key, hashes.SHA256())), private_key_pem(key)

    @property
    def pem(self) -> str:
        return certificate_pem(self.certificate)


async def set_certificate(client: GraphQLClient, **input_fields: Any) -> Any:
    """Run certificateSet and return its payload."""
    return (await client(CERTIFICATE_SET, input=input_fields))["certificateSet"]


async def store_certificate(client: GraphQLClient, name: str = SERVER_NAME, **options: Any) -> Any:
    """Issue and store a certificate, and return it."""
    certificate, key = CertificateSigner().issue_certificate(
        options.pop("names", (name,)), **options
    )
    payload = await set_certificate(client, serverName=name, cert=certificate, privateKey=key)
    assert payload["errors"] == []
    return payload["certificate"]
