"""An SMTP server that replies wrongly, slowly, endlessly or not at all at a chosen step."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mail.routing.mx_hosts import OutboundSettings, parse_next_hop

USUAL_REPLIES = {"EHLO": "250-there\r\n250 SIZE 1000000", "DATA": "354 Go on", "QUIT": "221 Bye"}


@dataclass
class MisbehavingSmtpServer:
    """Commits a fault at one step, and replies correctly at the others."""

    step: str = ""
    fault: str = ""
    fault_count: int = 1000  # faults before the server replies correctly
    offers_pipelining: bool = False
    received_lines: list[str] = field(default_factory=list)
    accepted_message_count: int = 0
    port: int = 0
    connection_count: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connection_count += 1
        try:
            await self.answer("GREETING", reader, writer)
            while line := await reader.readline():
                verb = line[:4].decode().upper().strip()
                self.received_lines.append(line.decode().strip())
                await self.answer(verb, reader, writer)
                if verb == "DATA" and not (self.step == "DATA" and self.fault_count >= 0):
                    while (await reader.readline()) not in (b".\r\n", b""):
                        pass
                    self.accepted_message_count += 1
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
        """Reply to a step, or commit the fault."""
        if self.offers_pipelining and step == "EHLO":
            usual_reply = "250-there\r\n250-PIPELINING\r\n250 SIZE 1000000"
        else:
            usual_reply = USUAL_REPLIES.get(
                step, "220 there" if step == "GREETING" else "250 2.0.0 OK"
            )
        if step != self.step or self.fault_count <= 0:
            writer.write(f"{usual_reply}\r\n".encode())
            return
        self.fault_count -= 1
        await FAULT_ACTIONS.get(self.fault, _send_text)(self.fault, usual_reply, writer)
        if self.fault == "silence":
            await reader.read()

    @asynccontextmanager
    async def run_server(self) -> AsyncGenerator[OutboundSettings]:
        """Run the server, and yield settings that relay to it."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield OutboundSettings(parse_next_hop(f"smtp://127.0.0.1:{self.port}"))
        finally:
            server.close()


async def _send_text(fault: str, _usual_reply: str, writer: asyncio.StreamWriter) -> None:
    writer.write(f"{fault}\r\n".encode())


async def _send_nothing(_fault: str, _usual_reply: str, _writer: asyncio.StreamWriter) -> None:
    return


async def _hang_up(_fault: str, _usual_reply: str, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _send_endless_reply(_fault: str, usual_reply: str, writer: asyncio.StreamWriter) -> None:
    thousand_lines = f"{usual_reply[:3]}-more and more\r\n".encode() * 1000
    for _ in range(100):
        writer.write(thousand_lines)
        await writer.drain()


async def _send_long_line(_fault: str, usual_reply: str, writer: asyncio.StreamWriter) -> None:
    writer.write(usual_reply[:3].encode() + b" " + b"x" * (1 << 20) + b"\r\n")
    await writer.drain()


async def _send_slowly(_fault: str, usual_reply: str, writer: asyncio.StreamWriter) -> None:
    for byte in f"{usual_reply[:3]} {'x' * 1000}\r\n".encode():
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.2)


FAULT_ACTIONS: dict[str, Callable[..., Awaitable[None]]] = {
    "silence": _send_nothing,
    "hang up": _hang_up,
    "endless": _send_endless_reply,
    "long": _send_long_line,
    "drip": _send_slowly,
}
