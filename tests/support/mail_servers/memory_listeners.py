"""The ways by which mail comes in, each with a post in memory, for what is tried on all of them."""

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
from mail.smtp.submission_server import SmtpSubmitter, SubmissionListener
from mail.storage.blobs.object_stores import FolderStore
from mail.tls.server_tls import CertificateFiles
from models.errors import AuthenticationFailed, Forbidden
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.database import Database
from tests.support.mail_servers.lmtp_client import Letter, Memory, Neighbour
from tests.support.mail_servers.smtp_client import Authority, secured

KINDS = ["lmtp", "mx", "submission"]
SECRET = base64.b64encode(b"\0ada\0secret").decode()


@dataclass
class Post(Memory):
    """A household, and a clerk that knows ada by her password."""

    asked: list[str] = field(default_factory=list)  # for recipients
    tried: list[tuple[str, str]] = field(default_factory=list)  # names and passwords

    async def accept_recipient(self, address: str, sender: str) -> AcceptedRecipient:
        self.asked.append(address)
        return await super().accept_recipient(address, sender)

    async def enqueue_for_retry(
        self,
        source: bytes | Path,
        taken: Sequence[AcceptedRecipient],
        sender: str,
        arrived: SmtpArrival,
    ) -> None:
        raise AssertionError("nobody is refused at the end")

    async def sign_in(self, name: str, password: str, ip: str | None) -> SmtpSubmitter:
        self.tried.append((name, password))
        if (name, password) != ("ada", "secret"):
            raise AuthenticationFailed
        return SmtpSubmitter(1, name, 1, ip)

    async def check_sender(self, writer: SmtpSubmitter, sender: str) -> None:
        if sender != "carol@example.net":
            raise Forbidden("you may not send as that")

    async def submit(
        self,
        writer: SmtpSubmitter,
        source: bytes | Path,
        sender: str,
        to: Sequence[tuple[str, DsnRequest]],
    ) -> str:
        raw = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
        self.letters.append(
            Letter(sender, [address for address, _ in to], raw, isinstance(source, Path))
        )
        return "1"


@dataclass
class Door:
    """A listener and its post."""

    kind: str
    listener: SmtpFamilyListener
    post: Post
    authority: Authority

    @property
    def hello(self) -> bytes:
        return b"LHLO x" if self.kind == "lmtp" else b"EHLO x"

    async def arrive(self) -> Neighbour:
        """A connection that has heard the greeting and said nothing."""
        opened = asyncio.open_connection("127.0.0.1", self.listener.port)
        neighbour = Neighbour(*await opened)
        assert (await neighbour.hear()).startswith("220 ")
        return neighbour

    async def enter(self) -> Neighbour:
        """One that may send now."""
        neighbour = await self.arrive()
        assert (await neighbour.say(self.hello)).startswith("250")
        if self.kind == "submission":
            await secured(neighbour, self.authority.client())
            assert (await neighbour.say(f"AUTH PLAIN {SECRET}")).startswith("235")
        return neighbour


@asynccontextmanager
async def opened(kind: str, folder: Path, **limits: Any) -> AsyncIterator[Door]:
    """A door of this kind."""
    authority, post = Authority(folder), Post()
    database = Database(f"sqlite+aiosqlite:///{folder}/mail.db")
    options = Options(hostname="mx.example.org")
    world = Environment(database, FolderStore(folder / "blobs"), b"secret", options=options)
    each = limits.pop(
        "max_connections_per_network", SmtpListenerConfig().max_connections_per_network
    )
    within = replace(SessionLimits(), **limits)
    terms = SmtpListenerConfig(
        within, max_connections_per_network=each, certificates=CertificateFiles(authority.issue())
    )
    listener: SmtpFamilyListener
    if kind == "lmtp":
        listener = LmtpListener(world, folder / "spool", within, post)
    elif kind == "mx":
        listener = MxListener(world, folder / "spool", terms, MxRules(0, 0), post)
    else:
        listener = SubmissionListener(world, folder / "spool", terms, post)
    await listener.start(host="127.0.0.1", port=0)
    try:
        yield Door(kind, listener, post, authority)
    finally:
        await listener.close(1)
        await database.close()
