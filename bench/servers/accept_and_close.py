"""`python -m bench.servers.accept_and_close KIND PORT`: accept connections and close them at once.

The least that a Python server can do with a connection: `blocking` calls accept() and close() in
a loop, `asyncio` and `uvloop` abort the transport in a protocol on the event loop of that name.
"""

import asyncio
import socket
import sys
from typing import cast

import uvloop

from bench.servers.ports import HOST

BACKLOG = 512
BLOCKING, ASYNCIO, UVLOOP = "blocking", "asyncio", "uvloop"


class AbortingProtocol(asyncio.Protocol):
    """A protocol that aborts each connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Abort the connection."""
        cast("asyncio.Transport", transport).abort()


def accept_and_close_forever(port: int) -> None:
    """Accept and close connections in a blocking loop."""
    with socket.create_server((HOST, port), backlog=BACKLOG) as listener:
        while True:
            connection, _ = listener.accept()
            connection.close()


async def abort_connections_forever(port: int) -> None:
    """Accept and abort connections in the event loop."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(AbortingProtocol, HOST, port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    kind, port_text = sys.argv[1:]
    if kind == BLOCKING:
        accept_and_close_forever(int(port_text))
    else:
        run = uvloop.run if kind == UVLOOP else asyncio.run
        run(abort_connections_forever(int(port_text)))
