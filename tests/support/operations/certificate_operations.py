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

NAME = "mx.example.org"
DAY = datetime.timedelta(days=1)
# the clock of tests is set to a time in the validity of 90 days
BEGIN = datetime.datetime(2029, 12, 1, tzinfo=datetime.UTC)
CERTIFICATE = """id serverName altNames description fingerprint fingerprintSha256 issuer acme
  acmeNames acmeState createdAt beginsAt expiresAt"""
SET = f"""mutation ($input: CertificateSetInput!) {{ certificateSet(input: $input) {{
  certificate {{ {CERTIFICATE} }} warnings {{ code path }}
  errors {{ __typename code message path index ... on ValidationError {{ constraint }} }} }} }}"""
DELETE = """mutation ($input: CertificateDeleteInput!) {
  certificateDelete(input: $input) { deletedIds revokedIds
  errors { __typename code message path index
  ... on ValidationError { constraint } ... on UnavailableError { component } } } }"""
RENEW = """mutation ($input: IdsInput!) { certificateRenew(input: $input) {
  certificates { serverName acmeState } errors { __typename code message path index } } }"""
LIST = """
query ($query: String, $altNames: Boolean, $first: Int, $after: String, $last: Int) {
  certificates(query: $query, altNames: $altNames, first: $first, after: $after, last: $last) {
    totalCount nodes { id serverName } pageInfo { hasNextPage endCursor } } }"""
ONE = f"query ($by: CertificateRef!) {{ certificate(by: $by) {{ {CERTIFICATE} }} }}"


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """An RSA key, made once for each size."""
    return rsa.generate_private_key(65537, bits)


def pem_of_key(key: Any, password: bytes | None = None) -> str:
    """The private key as PEM, encrypted if a password is given."""
    encryption: Any = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    pem: str = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()
    return pem


def pem_of(certificate: x509.Certificate) -> str:
    """The certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM).decode()


@dataclass
class Signer:
    """A certificate authority."""

    name: str = "Test CA"
    by: "Signer | None" = None
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        signer = self.by or self
        builder = signer.begun(self.name, self.key.public_key())
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate = builder.sign(signer.key, hashes.SHA256())

    def begun(
        self, name: str, key: Any, begins_at: datetime.datetime = BEGIN, days: int = 90
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
            .not_valid_before(begins_at)
            .not_valid_after(begins_at + days * DAY)
        )

    def issue(  # noqa: PLR0913 - a test varies one of them
        self,
        names: Sequence[str] = (NAME,),
        key: Any = None,
        *,
        common: str = "",
        begin: datetime.datetime = BEGIN,
        days: int = 90,
        clients: bool = False,
    ) -> tuple[str, str]:
        """Issue a certificate. Returns the certificate and its key as PEM."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = self.begun(common, key.public_key(), begin, days)
        if names:
            alternative_names = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternative_names, critical=False)
        if clients:
            key_usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
            builder = builder.add_extension(key_usage, critical=False)
        return pem_of(builder.sign(self.key, hashes.SHA256())), pem_of_key(key)

    @property
    def pem(self) -> str:
        return pem_of(self.certificate)


async def put(client: GraphQLClient, **input_fields: Any) -> Any:
    """Run certificateSet and return its payload."""
    return (await client(SET, input=input_fields))["certificateSet"]


async def stored(client: GraphQLClient, name: str = NAME, **options: Any) -> Any:
    """Issue and store a certificate, and return it."""
    certificate, key = Signer().issue(options.pop("names", (name,)), **options)
    payload = await put(client, serverName=name, cert=certificate, privateKey=key)
    assert payload["errors"] == []
    return payload["certificate"]
