"""A neighbour that says what it is told, and a household that keeps mail in memory."""

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

PATIENCE = 60  # seconds; a torturous letter takes some on a busy machine


@dataclass
class Neighbour:
    """One connection. `say` returns the whole reply, with its lines joined by a newline."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hear(self) -> str:
        lines = [await self._line()]
        while lines[-1][3:4] == "-":
            lines.append(await self._line())
        return "\n".join(lines)

    async def _line(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return (await self.reader.readuntil(b"\r\n")).decode().rstrip()

    async def say(self, line: str | bytes) -> str:
        raw = line if isinstance(line, bytes) else line.encode()
        self.send(raw + b"\r\n")
        return await self.hear()

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def begin(self, *to: str, sender: str = "carol@example.net", more: str = "") -> None:
        """All up to the 354 of DATA."""
        assert (await self.say(f"MAIL FROM:<{sender}>{more}")).startswith("250 2.1.0")
        for address in to:
            assert (await self.say(f"RCPT TO:<{address}>")).startswith("250 2.1.5")
        assert (await self.say("DATA")).startswith("354")

    async def ended(self) -> bytes:
        """What comes until we are hung up on."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    def reset(self) -> None:
        """Go at once, as a host that crashes."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)


async def connect(port: int, *, greet: bool = True) -> Neighbour:
    neighbour = Neighbour(*await asyncio.open_connection("127.0.0.1", port))
    if greet:
        await neighbour.hear()
        await neighbour.say("LHLO mx.example.net")
    return neighbour


async def until(come: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not come():  # noqa: ASYNC110 - the listener has no event for that
            await asyncio.sleep(0.01)


@dataclass
class Letter:
    sender: str
    to: list[str]
    raw: bytes
    spooled: bool


@dataclass
class Memory:
    """A post whose users are named here. `refuse` answers for the moment of delivery."""

    users: dict[str, int] = field(default_factory=lambda: {"ada": 1, "bob": 2, "eve": 3})
    refuse: dict[str, Exception] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.open.set()

    async def accept_recipient(self, address: str, sender: str) -> AcceptedRecipient:
        name, _, domain = address.partition("@")
        if error := self.refuse.get(f"RCPT {name}"):
            raise error
        if name not in self.users or domain not in {"example.org", "bücher.example"}:
            raise NotFound(address)
        key = self.users[name]
        return AcceptedRecipient(
            address, [AcceptedAccount(LocalRecipient(key, 1, key * 10, key * 100, address))]
        )

    async def deliver(
        self,
        source: bytes | Path,
        taken: Sequence[AcceptedRecipient],
        sender: str,
        arrived: SmtpArrival | None = None,
    ) -> Sequence[object]:
        self.reached.set()
        await self.open.wait()
        raw = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
        addresses = [to.address for to in taken]
        outcomes = [self.refuse.get(address.partition("@")[0]) for address in addresses]
        there = [a for a, refused in zip(addresses, outcomes, strict=True) if not refused]
        self.letters.append(Letter(sender, there, raw, isinstance(source, Path)))
        return outcomes
