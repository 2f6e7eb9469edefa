"""`python -m bench.servers.smtp_sink`: an SMTP server that counts messages and discards them.

It prints its port. The command STAT returns the number of messages and connections, when the
first message began and when the last one ended.
"""

import asyncio
import time
from typing import cast

import uvloop

from bench.servers.ports import HOST

EHLO_REPLY = b"250-sink\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
END_OF_DATA = b"\r\n.\r\n"


class SinkCounters:
    """What the sink has received; times are Unix times in seconds."""

    messages = 0
    connections = 0
    first = 0.0
    last = 0.0


class SinkProtocol(asyncio.Protocol):
    """One SMTP connection."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting."""
        # uvloop's transport does not derive from it
        self.transport = cast(asyncio.Transport, transport)
        self.held, self.taking = b"", False
        SinkCounters.connections += 1
        self.transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        """Reply to all complete commands."""
        self.held += data
        answers = []
        while answer := self._next_reply():
            answers.append(answer)
        if answers:
            self.transport.write(b"".join(answers))

    def _next_reply(self) -> bytes | None:
        """Return the reply to the next complete command or message; None if there is none."""
        if self.taking:
            at = self.held.find(END_OF_DATA)
            if at < 0:
                return None
            self.held, self.taking = self.held[at + len(END_OF_DATA) :], False
            SinkCounters.messages += 1
            SinkCounters.last = time.time()
            return b"250 2.0.0 Taken\r\n"
        line, mark, rest = self.held.partition(b"\r\n")
        if not mark:
            return None
        self.held = rest
        return self._reply_to_command(line[:4].upper())

    def _reply_to_command(self, verb: bytes) -> bytes:
        if verb == b"EHLO":
            return EHLO_REPLY
        if verb == b"MAIL":
            SinkCounters.first = SinkCounters.first or time.time()
        if verb == b"STAT":
            counts = (
                SinkCounters.messages,
                SinkCounters.connections,
                SinkCounters.first,
                SinkCounters.last,
            )
            return f"250 {' '.join(map(str, counts))}\r\n".encode()
        if verb == b"DATA":
            self.taking = True
            return b"354 Go on\r\n"
        if verb == b"QUIT":
            self.transport.write(b"221 Bye\r\n")
            self.transport.close()
            return b""
        return b"250 OK\r\n"


async def run_sink() -> None:
    """Listen until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(SinkProtocol, HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - read by the parent process
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(run_sink())
