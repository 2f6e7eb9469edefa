"""The server that refuses connections before a transport exists."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mail.network import gated_server
from mail.network.gated_server import GatedServer

REFUSAL = b"554 5.7.1 mx.example.org Your network is banned\r\n"
TIMEOUT = 60.0  # seconds; a busy machine is slow


class GreetingSession(asyncio.Protocol):
    """A session that greets and ends when the client does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"220 hello\r\n")


class Refusals:
    """The refusal of each client, and the addresses that were looked up."""

    def __init__(self) -> None:
        self.refusal: bytes | None = REFUSAL
        self.ips: list[str | None] = []

    def refusal_of_ip(self, ip: str | None) -> bytes | None:
        self.ips.append(ip)
        return self.refusal


@pytest.fixture
def refusals() -> Refusals:
    return Refusals()


@pytest.fixture
async def server(refusals: Refusals) -> AsyncIterator[GatedServer]:
    listening = socket.create_server(("127.0.0.1", 0))
    opened = GatedServer(listening, refusals.refusal_of_ip, GreetingSession)
    yield opened
    opened.close()


def connect(server: GatedServer) -> socket.socket:
    client = socket.create_connection(server.socket.getsockname(), timeout=TIMEOUT)
    client.setblocking(False)
    return client


async def read_to_end(client: socket.socket) -> bytes:
    loop, received = asyncio.get_running_loop(), b""
    async with asyncio.timeout(TIMEOUT):
        while data := await loop.sock_recv(client, 4096):
            received += data
    return received


async def test_client_that_talks_first_reads_the_whole_refusal(server: GatedServer) -> None:
    with connect(server) as client:
        client.send(b"EHLO early.example.org\r\n" * 100)
        assert await read_to_end(client) == REFUSAL
        client.send(b"QUIT\r\n")  # the connection is not reset before the client has read


async def test_refused_connections_are_closed_soon(
    server: GatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated_server, "MAX_LINGERING", 3)
    monkeypatch.setattr(gated_server, "LINGER_SECONDS", 0.1)
    clients = [connect(server) for _ in range(10)]
    for client in clients:
        assert await read_to_end(client) == REFUSAL
    assert len(server._lingering) <= 3  # noqa: SLF001 - the bound
    async with asyncio.timeout(TIMEOUT):
        while server._lingering:  # noqa: ASYNC110, SLF001 - no event
            await asyncio.sleep(0.02)
    for client in clients:
        client.close()


async def test_refusal_holds_only_a_moment(server: GatedServer, refusals: Refusals) -> None:
    for _ in range(3):
        with connect(server) as client:
            assert await read_to_end(client) == REFUSAL
    assert set(refusals.ips) == {"127.0.0.1"}
    refusals.refusal = None
    await asyncio.sleep(2 * gated_server.RECENT_SECONDS)
    with connect(server) as client:
        received = await asyncio.get_running_loop().sock_recv(client, 100)
    assert received == b"220 hello\r\n"
    refusals.refusal = b""
    with connect(server) as client:  # an accepted address is looked up each time
        assert await read_to_end(client) == b""


async def test_unix_socket_has_no_address(refusals: Refusals, tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    listening.listen()
    refusals.refusal = None
    server = GatedServer(listening, refusals.refusal_of_ip, GreetingSession)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "socket"))
    assert await reader.readline() == b"220 hello\r\n"
    assert refusals.ips == [None]
    writer.close()
    server.close()


async def test_too_many_open_files_pause_the_server(
    server: GatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated_server, "ACCEPT_RETRY_DELAY", 0.1)
    client = connect(server)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno(), limits[1]))
    try:
        await asyncio.sleep(0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert await read_to_end(client) == REFUSAL
    client.close()


async def test_closed_server_accepts_nothing(server: GatedServer) -> None:
    address = server.socket.getsockname()
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=TIMEOUT)
