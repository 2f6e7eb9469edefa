"""Sockets that the server listens on."""

import asyncio
import socket

import pytest

from merganser.server.sockets import open_listening_sockets
from tests.support.time_limits import HANG_SECONDS


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
async def test_accepted_connections_send_small_packets_at_once(address: str) -> None:
    """With Nagle's algorithm, the body of a response waits until its head is acknowledged."""
    options: asyncio.Queue[int] = asyncio.Queue()

    def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        options.put_nowait(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    (bound,) = open_listening_sockets("HTTP", address)
    async with await asyncio.start_server(accept, sock=bound):
        _, writer = await asyncio.open_connection(*bound.getsockname()[:2])
        async with asyncio.timeout(HANG_SECONDS):
            assert await options.get() == 1
        writer.close()
