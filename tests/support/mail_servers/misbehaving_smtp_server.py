"""A server that answers wrongly, slowly, endlessly or not at all, at the step that is chosen."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from mail.routing.mx_hosts import OutboundSettings, parse_next_hop
from tests.support.mail_servers.queue_worker import PACE

QUICK = replace(
    PACE,
    connect_timeout=1.0,
    greeting_timeout=1.5,
    reply_timeout=1.0,
    envelope_timeout=1.5,
    final_reply_timeout=1.0,
)
USUAL = {"EHLO": "250-there\r\n250 SIZE 1000000", "DATA": "354 Go on", "QUIT": "221 Bye"}


@dataclass
class Bad:
    """A server that does at one step what it should not; at the others, what it should."""

    step: str = ""
    what: str = ""
    times: int = 1000  # then it behaves
    together: bool = False  # it takes several commands at once
    said: list[str] = field(default_factory=list)
    taken: int = 0
    port: int = 0
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.answer("GREETING", reader, writer)
            while line := await reader.readline():
                verb = line[:4].decode().upper().strip()
                self.said.append(line.decode().strip())
                await self.answer(verb, reader, writer)
                if verb == "DATA" and not (self.step == "DATA" and self.times >= 0):
                    while (await reader.readline()) not in (b".\r\n", b""):
                        pass
                    self.taken += 1
                    await self.answer("DOT", reader, writer)
                if verb == "QUIT":
                    break
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async def answer(
        self, step: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self.together and step == "EHLO":
            usual = "250-there\r\n250-PIPELINING\r\n250 SIZE 1000000"
        else:
            usual = USUAL.get(step, "220 there" if step == "GREETING" else "250 2.0.0 OK")
        if step != self.step or self.times <= 0:
            writer.write(f"{usual}\r\n".encode())
            return
        self.times -= 1
        await DEEDS.get(self.what, _said)(self.what, usual, writer)
        if self.what == "silence":
            await reader.read()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[OutboundSettings]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield OutboundSettings(parse_next_hop(f"smtp://127.0.0.1:{self.port}"))
        finally:
            server.close()


async def _said(what: str, _usual: str, writer: asyncio.StreamWriter) -> None:
    writer.write(f"{what}\r\n".encode())


async def _silence(_what: str, _usual: str, _writer: asyncio.StreamWriter) -> None:
    return


async def _hang_up(_what: str, _usual: str, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _endless(_what: str, usual: str, writer: asyncio.StreamWriter) -> None:
    for _ in range(100_000):
        writer.write(f"{usual[:3]}-more and more\r\n".encode())
        await writer.drain()


async def _long(_what: str, usual: str, writer: asyncio.StreamWriter) -> None:
    writer.write(usual[:3].encode() + b" " + b"x" * (1 << 20) + b"\r\n")
    await writer.drain()


async def _drip(_what: str, usual: str, writer: asyncio.StreamWriter) -> None:
    for byte in f"{usual[:3]} {'x' * 1000}\r\n".encode():
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.2)


DEEDS: dict[str, Callable[..., Awaitable[None]]] = {
    "silence": _silence,
    "hang up": _hang_up,
    "endless": _endless,
    "long": _long,
    "drip": _drip,
}
