"""Test certificates, and SMTP clients with TLS."""

import asyncio
import datetime
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.mail_servers.lmtp_client import SmtpTestClient

SERVER_NAME = "mx.example.org"
ONE_DAY = datetime.timedelta(days=1)


@dataclass
class CertificateAuthority:
    """A certificate authority, and TLS contexts that trust only it."""

    folder: Path

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        builder = self._certificate_builder(self._name, self._key.public_key())
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.certificate = builder.sign(self._key, hashes.SHA256())

    def _certificate_builder(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - ONE_DAY)
            .not_valid_after(now + ONE_DAY)
        )

    def issue_certificate(self, host: str = SERVER_NAME, *addresses: str) -> Path:
        """Write the key and certificate of a host to a file, which replaces the last one.

        The certificate is also valid for the IP addresses.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._certificate_builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]), key.public_key()
        )
        names = [x509.DNSName(host), *(x509.IPAddress(ip_address(text)) for text in addresses)]
        extension = x509.SubjectAlternativeName(names)
        certificate = builder.add_extension(extension, critical=False).sign(
            self._key, hashes.SHA256()
        )
        encryption = serialization.NoEncryption()
        encoding = serialization.Encoding.PEM
        file = self.folder / "server.pem"
        file.write_bytes(
            key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, encryption)
            + certificate.public_bytes(encoding)
        )
        return file

    def write_certificate(self) -> Path:
        """Write the certificate of the authority to a file."""
        file = self.folder / "authority.pem"
        file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return file

    def client_context(self) -> ssl.SSLContext:
        """A client context that trusts this authority."""
        certificate_text = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        return ssl.create_default_context(cadata=certificate_text)


async def connect_smtp(port: int, *, greet: bool = True) -> SmtpTestClient:
    """Connect without TLS, and send EHLO if `greet` is true."""
    client = SmtpTestClient(*await asyncio.open_connection("127.0.0.1", port))
    if greet:
        await client.read_reply()
        await client.run_command("EHLO mx.example.net")
    return client


async def connect_with_implicit_tls(
    port: int, context: ssl.SSLContext, host: str = SERVER_NAME
) -> SmtpTestClient:
    """Connect with TLS from the first byte (RFC 8314), and send EHLO."""
    connection = asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
    client = SmtpTestClient(*await connection)
    await client.read_reply()
    await client.run_command("EHLO mx.example.net")
    return client


async def start_tls(
    client: SmtpTestClient, context: ssl.SSLContext, host: str = SERVER_NAME
) -> None:
    """Start TLS by STARTTLS, and send EHLO again."""
    assert (await client.run_command("STARTTLS")).startswith("220 ")
    await client.writer.start_tls(context, server_hostname=host)
    assert (await client.run_command("EHLO mx.example.net")).startswith("250-")


async def send_rcpt(
    client: SmtpTestClient, recipient: str, sender: str = "carol@example.net"
) -> str:
    """Send MAIL and RCPT, and return the reply to RCPT; the transaction is reset."""
    assert (await client.run_command(f"MAIL FROM:<{sender}>")).startswith("250")
    reply = await client.run_command(f"RCPT TO:<{recipient}>")
    await client.run_command("RSET")
    return reply
