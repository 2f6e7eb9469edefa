"""Certificates made for a test, and clients that speak SMTP over them."""

import asyncio
import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.mail_servers.lmtp_client import Neighbour

NAME = "mx.example.org"
DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """One that signs certificates, and clients that believe it alone."""

    folder: Path

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        own = self._begun(self._name, self._key.public_key())
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.certificate = own.sign(self._key, hashes.SHA256())

    def _begun(self, name: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
        )

    def issue(self, host: str = NAME) -> Path:
        """A file with the key and the certificate of a host, in place of the last one."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._begun(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]), key.public_key()
        )
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        certificate = made.add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        plain = serialization.NoEncryption()
        pem = serialization.Encoding.PEM
        file = self.folder / "server.pem"
        file.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
            + certificate.public_bytes(pem)
        )
        return file

    def client(self) -> ssl.SSLContext:
        """For who believes this authority."""
        text = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        return ssl.create_default_context(cadata=text)


async def connect(port: int, *, greet: bool = True) -> Neighbour:
    """A connection in clear."""
    neighbour = Neighbour(*await asyncio.open_connection("127.0.0.1", port))
    if greet:
        await neighbour.hear()
        await neighbour.say("EHLO mx.example.net")
    return neighbour


async def wrapped(port: int, context: ssl.SSLContext, host: str = NAME) -> Neighbour:
    """A connection with TLS from its first byte, greeted."""
    opened = asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
    neighbour = Neighbour(*await opened)
    await neighbour.hear()
    await neighbour.say("EHLO mx.example.net")
    return neighbour


async def secured(neighbour: Neighbour, context: ssl.SSLContext, host: str = NAME) -> None:
    """Go on with TLS, and greet again."""
    assert (await neighbour.say("STARTTLS")).startswith("220 ")
    await neighbour.writer.start_tls(context, server_hostname=host)
    assert (await neighbour.say("EHLO mx.example.net")).startswith("250-")


async def send_rcpt(client: Neighbour, to: str, sender: str = "carol@example.net") -> str:
    """The reply to RCPT; the transaction is reset."""
    assert (await client.say(f"MAIL FROM:<{sender}>")).startswith("250")
    reply = await client.say(f"RCPT TO:<{to}>")
    await client.say("RSET")
    return reply
