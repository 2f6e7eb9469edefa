"""`python -m bench.sink`: a mail server that takes all, and keeps nothing but the count.

It says on its standard output at which port it listens; STAT tells how many messages came, and
when the first began and the last ended.
"""

import asyncio
import time
from typing import cast

import uvloop

from bench.servers.ports import HOST

OFFERS = b"250-sink\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
END = b"\r\n.\r\n"


class Count:
    """What came."""

    messages = 0
    connections = 0
    first = 0.0
    last = 0.0


class Session(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self.held, self.taking = b"", False
        Count.connections += 1
        self.transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        """Answer all commands that are whole."""
        self.held += data
        answers = []
        while answer := self._next():
            answers.append(answer)
        if answers:
            self.transport.write(b"".join(answers))

    def _next(self) -> bytes | None:
        if self.taking:
            at = self.held.find(END)
            if at < 0:
                return None
            self.held, self.taking = self.held[at + len(END) :], False
            Count.messages += 1
            Count.last = time.time()
            return b"250 2.0.0 Taken\r\n"
        line, mark, rest = self.held.partition(b"\r\n")
        if not mark:
            return None
        self.held = rest
        return self._answer(line[:4].upper())

    def _answer(self, verb: bytes) -> bytes:
        if verb == b"EHLO":
            return OFFERS
        if verb == b"MAIL":
            Count.first = Count.first or time.time()
        if verb == b"STAT":
            told = (Count.messages, Count.connections, Count.first, Count.last)
            return f"250 {' '.join(map(str, told))}\r\n".encode()
        if verb == b"DATA":
            self.taking = True
            return b"354 Go on\r\n"
        if verb == b"QUIT":
            self.transport.write(b"221 Bye\r\n")
            self.transport.close()
            return b""
        return b"250 OK\r\n"


async def main() -> None:
    """Listen until ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Session, HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - to whoever started it
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
