"""A client that sends single SMTP or LMTP commands, and a listener backend in memory."""

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mail.delivery.listener_backend import SmtpArrival
from mail.envelope.local_recipient import LocalRecipient
from mail.recipients.recipient_routes import AcceptedAccount, AcceptedRecipient
from models.errors import NotFound
from tests.support.time_limits import HANG_SECONDS


@dataclass
class SmtpTestClient:
    """An SMTP or LMTP connection. Replies are whole; their lines are joined by LF."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_reply(self) -> str:
        """Read a reply."""
        lines = [await self._read_line()]
        while lines[-1][3:4] == "-":
            lines.append(await self._read_line())
        return "\n".join(lines)

    async def _read_line(self) -> str:
        async with asyncio.timeout(HANG_SECONDS):
            return (await self.reader.readuntil(b"\r\n")).decode().rstrip()

    async def run_command(self, line: str | bytes) -> str:
        """Send a command and return its reply."""
        raw = line if isinstance(line, bytes) else line.encode()
        self.send_bytes(raw + b"\r\n")
        return await self.read_reply()

    def send_bytes(self, raw: bytes) -> None:
        """Send bytes without waiting for a reply."""
        self.writer.write(raw)

    async def start_data(
        self, *recipients: str, sender: str = "carol@example.net", mail_parameters: str = ""
    ) -> None:
        """Send MAIL, RCPT and DATA, up to the reply 354."""
        assert (await self.run_command(f"MAIL FROM:<{sender}>{mail_parameters}")).startswith(
            "250 2.1.0"
        )
        for address in recipients:
            assert (await self.run_command(f"RCPT TO:<{address}>")).startswith("250 2.1.5")
        assert (await self.run_command("DATA")).startswith("354")

    async def read_until_closed(self) -> bytes:
        """Read until the server closes the connection, and return the bytes."""
        async with asyncio.timeout(HANG_SECONDS):
            return await self.reader.read()

    def abort_connection(self) -> None:
        """Close the connection by a TCP reset, as a crashed host does."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)


async def connect_lmtp(port: int, *, greet: bool = True) -> SmtpTestClient:
    """Connect to an LMTP listener, and send LHLO if `greet` is true."""
    client = SmtpTestClient(*await asyncio.open_connection("127.0.0.1", port))
    if greet:
        try:
            await client.read_reply()
            await client.run_command("LHLO mx.example.net")
        except BaseException:  # also if the task is cancelled
            await client.close()
            raise
    return client


async def wait_until(is_done: Callable[[], bool]) -> None:
    """Wait until a function returns true."""
    async with asyncio.timeout(HANG_SECONDS):
        while not is_done():  # noqa: ASYNC110 - listeners have no event
            await asyncio.sleep(0.01)


@dataclass
class AcceptedMessage:
    """A message that a backend in memory accepted."""

    sender: str
    to: list[str]
    raw: bytes
    was_spooled: bool


@dataclass
class InMemoryBackend:
    """A listener backend that keeps messages in memory.

    `errors_by_name` holds the error for a local part at delivery, or for "RCPT name" at RCPT.
    """

    users: dict[str, int] = field(default_factory=lambda: {"ada": 1, "bob": 2, "eve": 3})
    errors_by_name: dict[str, Exception] = field(default_factory=dict)
    accepted_messages: list[AcceptedMessage] = field(default_factory=list)
    delivery_allowed: asyncio.Event = field(default_factory=asyncio.Event)
    delivery_started: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.delivery_allowed.set()

    async def accept_recipient(self, address: str, envelope_sender: str) -> AcceptedRecipient:
        name, _, domain = address.partition("@")
        if error := self.errors_by_name.get(f"RCPT {name}"):
            raise error
        if name not in self.users or domain not in {"example.org", "bücher.example"}:
            raise NotFound(address)
        user_id = self.users[name]
        return AcceptedRecipient(
            address,
            [AcceptedAccount(LocalRecipient(user_id, 1, user_id * 10, user_id * 100, address))],
        )

    async def deliver(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival | None = None,
    ) -> Sequence[object]:
        self.delivery_started.set()
        await self.delivery_allowed.wait()
        raw = (
            raw_message
            if isinstance(raw_message, bytes)
            else await asyncio.to_thread(raw_message.read_bytes)
        )
        addresses = [recipient.address for recipient in accepted_recipients]
        outcomes = [self.errors_by_name.get(address.partition("@")[0]) for address in addresses]
        delivered = [a for a, error in zip(addresses, outcomes, strict=True) if not error]
        self.accepted_messages.append(
            AcceptedMessage(envelope_sender, delivered, raw, isinstance(raw_message, Path))
        )
        return outcomes
