"""LMTP, MX and submission listeners with a backend in memory, for tests of all three."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mail.delivery.listener_backend import SmtpArrival
from mail.envelope.dsn_parameters import DsnRequest
from mail.recipients.recipient_routes import AcceptedRecipient
from mail.smtp.connection_limits import SessionLimits
from mail.smtp.listener import SmtpFamilyListener
from mail.smtp.lmtp import LmtpListener
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_backend import SmtpSubmitter
from mail.smtp.submission_server import SubmissionListener
from mail.storage.blobs.object_stores import FolderStore
from mail.tls.server_tls import CertificateFiles
from models.errors import AuthenticationFailed, Forbidden
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.database import Database
from tests.support.mail_servers.lmtp_client import AcceptedMessage, InMemoryBackend, SmtpTestClient
from tests.support.mail_servers.smtp_client import CertificateAuthority, start_tls

LISTENER_KINDS = ["lmtp", "mx", "submission"]
AUTH_PLAIN_RESPONSE = base64.b64encode(b"\0ada\0secret").decode()


@dataclass
class MemoryListenerBackend(InMemoryBackend):
    """A recording backend in memory. It knows the user ada with the password "secret"."""

    checked_recipients: list[str] = field(default_factory=list)
    sign_in_attempts: list[tuple[str, str]] = field(default_factory=list)  # usernames and passwords

    async def accept_recipient(self, address: str, envelope_sender: str) -> AcceptedRecipient:
        self.checked_recipients.append(address)
        return await super().accept_recipient(address, envelope_sender)

    async def deliver_for_one_reply(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival,
    ) -> Sequence[object]:
        outcomes = await self.deliver(raw_message, accepted_recipients, envelope_sender, arrival)
        assert all(outcomes) or not any(outcomes), "no message is accepted in part"
        return outcomes

    async def sign_in(self, login_name: str, password: str, ip: str | None) -> SmtpSubmitter:
        self.sign_in_attempts.append((login_name, password))
        if (login_name, password) != ("ada", "secret"):
            raise AuthenticationFailed
        return SmtpSubmitter(1, login_name, 1, ip)

    async def sign_in_by_token(
        self, login_name: str | None, token: str, ip: str | None
    ) -> SmtpSubmitter:
        """Refuse every token."""
        raise AuthenticationFailed

    async def is_still_signed_in(self, submitter: SmtpSubmitter) -> bool:
        """No credential ends."""
        del submitter
        return True

    async def require_sender_and_sending_limits(
        self, submitter: SmtpSubmitter, envelope_sender: str
    ) -> None:
        if envelope_sender != "carol@example.net":
            raise Forbidden("you may not send as that")

    async def submit(
        self,
        submitter: SmtpSubmitter,
        raw_message: bytes | Path,
        envelope_sender: str,
        recipients: Sequence[tuple[str, DsnRequest]],
    ) -> str:
        raw = (
            raw_message
            if isinstance(raw_message, bytes)
            else await asyncio.to_thread(raw_message.read_bytes)
        )
        self.accepted_messages.append(
            AcceptedMessage(
                envelope_sender,
                [address for address, _ in recipients],
                raw,
                isinstance(raw_message, Path),
            )
        )
        return "1"


@dataclass
class MemoryListener:
    """A running listener with its backend."""

    kind: str
    listener: SmtpFamilyListener
    backend: MemoryListenerBackend
    authority: CertificateAuthority

    @property
    def greeting_command(self) -> bytes:
        return b"LHLO x" if self.kind == "lmtp" else b"EHLO x"

    async def connect(self) -> SmtpTestClient:
        """Connect and read the greeting."""
        connection = asyncio.open_connection("127.0.0.1", self.listener.port)
        client = SmtpTestClient(*await connection)
        assert (await client.read_reply()).startswith("220 ")
        return client

    async def open_sending_session(self) -> SmtpTestClient:
        """Connect, greet and sign in, so that messages can be sent."""
        client = await self.connect()
        assert (await client.run_command(self.greeting_command)).startswith("250")
        if self.kind == "submission":
            await start_tls(client, self.authority.client_context())
            assert (await client.run_command(f"AUTH PLAIN {AUTH_PLAIN_RESPONSE}")).startswith("235")
        return client


@asynccontextmanager
async def run_memory_listener(
    kind: str, folder: Path, **limits: Any
) -> AsyncIterator[MemoryListener]:
    """Run a listener of this kind; `limits` are fields of SessionLimits."""
    authority, post = CertificateAuthority(folder), MemoryListenerBackend()
    database = Database(f"sqlite+aiosqlite:///{folder}/mail.db")
    options = Options(hostname="mx.example.org")
    environment = Environment(database, FolderStore(folder / "blobs"), b"secret", options=options)
    connections_per_network = limits.pop(
        "max_connections_per_network", SmtpListenerConfig().max_connections_per_network
    )
    session_limits = replace(SessionLimits(), **limits)
    config = SmtpListenerConfig(
        session_limits,
        max_connections_per_network=connections_per_network,
        certificates=CertificateFiles(authority.issue_certificate()),
    )
    listener: SmtpFamilyListener
    if kind == "lmtp":
        listener = LmtpListener(environment, folder / "spool", session_limits, post)
    elif kind == "mx":
        listener = MxListener(environment, folder / "spool", config, MxRules(0, 0), post)
    else:
        listener = SubmissionListener(environment, folder / "spool", config, post)
    await listener.start(host="127.0.0.1", port=0)
    try:
        yield MemoryListener(kind, listener, post, authority)
    finally:
        await listener.close(1)
        await database.close()
