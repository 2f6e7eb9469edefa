"""Authorities and certificates of tests: what is sent as PEM, good and bad."""

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

from tests.conftest import Client

NAME = "mx.example.org"
DAY = datetime.timedelta(days=1)
# the clock of tests stands at its beginning
BEGIN = datetime.datetime(2029, 12, 1, tzinfo=datetime.UTC)
CERTIFICATE = """id serverName altNames description fingerprint fingerprintSha256 issuer acme
  acmeNames acmeState createdAt beginsAt expiresAt"""
SET = f"""mutation ($input: CertificateSetInput!) {{ certificateSet(input: $input) {{
  certificate {{ {CERTIFICATE} }} warnings {{ code path }}
  errors {{ __typename code message path index ... on ValidationError {{ constraint }} }} }} }}"""
DELETE = """mutation ($input: CertificateDeleteInput!) { certificateDelete(input: $input) {
  deletedIds revokedIds errors { __typename code message path index
  ... on ValidationError { constraint } ... on UnavailableError { component } } } }"""
RENEW = """mutation ($input: IdsInput!) { certificateRenew(input: $input) {
  certificates { serverName acmeState } errors { __typename code message path index } } }"""
LIST = """query ($query: String, $altNames: Boolean, $first: Int, $after: String, $last: Int) {
  certificates(query: $query, altNames: $altNames, first: $first, after: $after, last: $last) {
    totalCount nodes { id serverName } pageInfo { hasNextPage endCursor } } }"""
ONE = f"query ($by: CertificateRef!) {{ certificate(by: $by) {{ {CERTIFICATE} }} }}"


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def pem_of_key(key: Any, password: bytes | None = None) -> str:
    lock: Any = serialization.NoEncryption()
    if password:
        lock = serialization.BestAvailableEncryption(password)
    text: str = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock).decode()
    return text


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


@dataclass
class Signer:
    """An authority."""

    name: str = "Test CA"
    by: "Signer | None" = None
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        above = self.by or self
        made = above.begun(self.name, self.key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = made.sign(above.key, hashes.SHA256())

    def begun(
        self, name: str, key: Any, begin: datetime.datetime = BEGIN, days: int = 90
    ) -> x509.CertificateBuilder:
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        common = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name(common))
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + days * DAY)
        )

    def issue(  # noqa: PLR0913 - each is what one test is about
        self,
        names: Sequence[str] = (NAME,),
        key: Any = None,
        *,
        common: str = "",
        begin: datetime.datetime = BEGIN,
        days: int = 90,
        clients: bool = False,
    ) -> tuple[str, str]:
        """A certificate and its key, PEM."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        made = self.begun(common, key.public_key(), begin, days)
        if names:
            found = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            made = made.add_extension(found, critical=False)
        if clients:
            use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
            made = made.add_extension(use, critical=False)
        return pem_of(made.sign(self.key, hashes.SHA256())), pem_of_key(key)

    @property
    def pem(self) -> str:
        return pem_of(self.certificate)


async def put(client: Client, **given: Any) -> Any:
    """What certificateSet says."""
    return (await client(SET, input=given))["certificateSet"]


async def stored(client: Client, name: str = NAME, **more: Any) -> Any:
    """A certificate that is made and stored for a name."""
    cert, key = Signer().issue(more.pop("names", (name,)), **more)
    answer = await put(client, serverName=name, cert=cert, privateKey=key)
    assert answer["errors"] == []
    return answer["certificate"]
