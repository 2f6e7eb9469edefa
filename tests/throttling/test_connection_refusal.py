"""Connections of banned networks: refused by each listener before TLS and before any statement."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import SQLModel

from graph.app import create_app
from mail.network.connection_gate import ConnectionGate
from mail.smtp.connection_limits import SessionLimits
from mail.smtp.lmtp import LmtpListener
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.throttling.ban_changes import refresh_refused_networks_from_database
from mail.tls.server_tls import CertificateFiles
from merganser.server.acme_http import AcmeHttpListener
from merganser.server.http_server import create_http_server
from merganser.server.sockets import open_listening_sockets
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.runtime.machine_addresses import machine_ip_addresses
from tests.conftest import GraphQLClient
from tests.support.mail_servers.lmtp_client import InMemoryBackend, SmtpTestClient, wait_until
from tests.support.mail_servers.memory_listeners import MemoryListenerBackend
from tests.support.mail_servers.smtp_client import CertificateAuthority
from tests.support.operations.platform.ban_operations import add_bans, update_policy

BANNED = "203.0.113.7"
BANNED_REPLY = "554 5.7.1 mx.example.org Your network is banned\r\n"
PROXY_HEADER = f"PROXY TCP4 {BANNED} 192.0.2.1 4711 25\r\n".encode()
TLS_HELLO = b"\x16\x03\x01\x00\xa5"  # begin of a record


def own_ip() -> str:
    """Return an IPv4 address of this machine other than loopback, from which a test can connect."""
    addresses = [ip for ip in machine_ip_addresses() if ":" not in ip]
    if not addresses:
        pytest.skip("this machine has only loopback addresses")
    return addresses[0]


async def read_all(port: int, source: str, sent: bytes = b"") -> bytes:
    """Connect from an address of this machine, send data, and read until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    received = b""
    try:
        writer.write(sent)
        async with asyncio.timeout(60):
            received = await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()
    return received


@asynccontextmanager
async def run_mx(
    environment: Environment, folder: Path, **options: Any
) -> AsyncIterator[MxListener]:
    authority = CertificateAuthority(folder)
    config = SmtpListenerConfig(
        certificates=CertificateFiles(authority.issue_certificate()), **options
    )
    listener = MxListener(
        environment, folder / "spool", config, MxRules(0, 0), MemoryListenerBackend()
    )
    await listener.start(host="127.0.0.1", port=0)
    yield listener
    await listener.close(1)


@pytest.fixture
async def ban_of_own_ip(
    admin_client: GraphQLClient, environment: Environment, statements: list[str]
) -> str:
    """Ban the address of this machine that tests connect from. No statement is recorded so far."""
    source = own_ip()
    await add_bans(admin_client, source)
    assert environment.refuses_ip(source)
    del statements[:]
    return source


@pytest.mark.parametrize("implicit_tls", [False, True])
async def test_mx_refuses_banned_network(
    environment: Environment,
    tmp_path: Path,
    ban_of_own_ip: str,
    statements: list[str],
    implicit_tls: bool,
) -> None:
    async with run_mx(environment, tmp_path, implicit_tls=implicit_tls) as listener:
        reply = await read_all(listener.port, ban_of_own_ip)
        assert reply.decode() == ("" if implicit_tls else BANNED_REPLY)
        assert not listener.sessions
        assert statements == []
        if not implicit_tls:
            assert (await read_all(listener.port, "127.0.0.1", b"QUIT\r\n")).startswith(b"220")


@pytest.mark.parametrize("implicit_tls", [False, True])
async def test_mx_refuses_banned_network_behind_proxy(
    environment: Environment,
    admin_client: GraphQLClient,
    tmp_path: Path,
    implicit_tls: bool,
) -> None:
    await add_bans(admin_client, BANNED)
    options = {"implicit_tls": implicit_tls, "proxy_networks": ("127.0.0.0/8",)}
    async with run_mx(environment, tmp_path, **options) as listener:
        reply = await read_all(listener.port, "127.0.0.1", PROXY_HEADER)
        assert reply.decode() == ("" if implicit_tls else BANNED_REPLY)
        if not implicit_tls:
            accepted = PROXY_HEADER.replace(b"203.0.113.7", b"203.0.113.8")
            assert (await read_all(listener.port, "127.0.0.1", accepted + b"QUIT\r\n")).startswith(
                b"220"
            )


async def test_abuse_of_smtp_sessions_leads_to_ban_and_ends_sessions(
    environment: Environment, admin_client: GraphQLClient, tmp_path: Path
) -> None:
    await update_policy(admin_client, maxAttempts=2)
    source = own_ip()
    async with run_mx(environment, tmp_path) as listener:
        open_session = SmtpTestClient(
            *await asyncio.open_connection("127.0.0.1", listener.port, local_addr=(source, 0))
        )
        await open_session.read_reply()
        for _ in range(2):
            replies = await read_all(listener.port, source, b"FOO\r\n" * 30)
            assert b"421 4.7.0 mx.example.org Error: too many errors" in replies
        await wait_until(lambda: environment.refuses_ip(source))
        assert (await read_all(listener.port, source)).decode() == BANNED_REPLY
        assert (await open_session.run_command("NOOP")).startswith("250")
        assert "banned" in await open_session.read_reply()
        await open_session.close()


async def test_many_commands_are_no_abuse(
    environment: Environment, admin_client: GraphQLClient, tmp_path: Path
) -> None:
    await update_policy(admin_client, maxAttempts=1)
    source = own_ip()
    async with run_mx(environment, tmp_path, limits=SessionLimits(max_commands=10)) as listener:
        replies = await read_all(listener.port, source, b"NOOP\r\n" * 11)
        assert b"421 4.7.0" in replies
        assert (await read_all(listener.port, source, b"QUIT\r\n")).startswith(b"220")


async def test_abuse_from_loopback_is_not_counted(
    environment: Environment, admin_client: GraphQLClient, tmp_path: Path
) -> None:
    await update_policy(admin_client, maxAttempts=1)
    async with run_mx(environment, tmp_path) as listener:
        for _ in range(3):
            replies = await read_all(listener.port, "127.0.0.1", b"FOO\r\n" * 30)
            assert b"too many errors" in replies


async def test_lmtp_refuses_banned_network(
    environment: Environment, tmp_path: Path, ban_of_own_ip: str
) -> None:
    listener = LmtpListener(environment, tmp_path / "spool", backend=InMemoryBackend())
    await listener.start(host="127.0.0.1", port=0)
    assert (await read_all(listener.port, ban_of_own_ip)).decode() == BANNED_REPLY
    await listener.close(1)


@asynccontextmanager
async def run_http(environment: Environment, folder: Path, **settings: Any) -> AsyncIterator[int]:
    """Run the HTTP server as `merganser serve` does; yield its port."""
    app = create_app(environment, spool_folder=folder)
    bound = open_listening_sockets("HTTP", "127.0.0.1:0")
    server = create_http_server(app, Settings(data=folder, **settings))
    task = asyncio.create_task(server.serve(sockets=list(bound)))
    await wait_until(lambda: server.started)
    yield bound[0].getsockname()[1]
    server.should_exit = True
    await task
    for listening_socket in bound:
        listening_socket.close()
    await app.end_subscriptions()


def http_request(path: str = "/health/live", **headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_http_closes_connections_of_banned_network(
    environment: Environment, tmp_path: Path, ban_of_own_ip: str, statements: list[str]
) -> None:
    async with run_http(environment, tmp_path) as port:
        assert await read_all(port, ban_of_own_ip, http_request()) == b""
        assert statements == []
        assert (await read_all(port, "127.0.0.1", http_request())).startswith(b"HTTP/1.1 200")


async def test_http_behind_proxy_answers_403(
    environment: Environment, tmp_path: Path, admin_client: GraphQLClient, statements: list[str]
) -> None:
    await add_bans(admin_client, BANNED)
    async with run_http(environment, tmp_path) as port:
        del statements[:]
        banned = http_request("/graphql?query={__typename}", X_Forwarded_For=BANNED)
        response = await read_all(port, "127.0.0.1", banned)
        assert response.startswith(b"HTTP/1.1 403")
        assert b'"FORBIDDEN"' in response
        upgrade = {
            "Upgrade": "websocket", "Sec_WebSocket_Key": "x3JJHMbDL1EzLkh9GBhXDw==",
            "Sec_WebSocket_Version": "13",
        }  # fmt: skip
        handshake = http_request("/graphql", X_Forwarded_For=BANNED, **upgrade)
        handshake = handshake.replace(b"Connection: close", b"Connection: Upgrade")
        assert (await read_all(port, "127.0.0.1", handshake)).startswith(b"HTTP/1.1 403")
        # the last address is the one that the trusted proxy has added
        for forwarded in ("203.0.113.8", f"{BANNED}, 203.0.113.8", "unknown", "127.0.0.1"):
            request = http_request(X_Forwarded_For=forwarded)
            assert (await read_all(port, "127.0.0.1", request)).startswith(b"HTTP/1.1 200")
        assert statements == []


async def test_header_of_untrusted_client_neither_evades_nor_causes_a_refusal(
    environment: Environment, tmp_path: Path, admin_client: GraphQLClient
) -> None:
    source = own_ip()
    await add_bans(admin_client, BANNED)
    async with run_http(environment, tmp_path) as port:
        request = http_request(X_Forwarded_For=BANNED)
        assert (await read_all(port, source, request)).startswith(b"HTTP/1.1 200")
        await add_bans(admin_client, source)
        request = http_request(X_Forwarded_For="127.0.0.1")
        assert await read_all(port, source, request) == b""


async def test_open_http_connection_of_banned_network_gets_403(
    environment: Environment, tmp_path: Path, admin_client: GraphQLClient
) -> None:
    source = own_ip()
    async with run_http(environment, tmp_path, http_keep_alive=timedelta(minutes=5)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        request = http_request().replace(b"Connection: close\r\n", b"")
        writer.write(request)
        async with asyncio.timeout(60):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await add_bans(admin_client, source)
            writer.write(request)
            assert b"HTTP/1.1 403" in await reader.read()
        writer.close()


async def test_acme_listener_refuses_banned_network(
    environment: Environment, ban_of_own_ip: str, statements: list[str]
) -> None:
    listener = AcmeHttpListener(environment)
    await listener.start(host="127.0.0.1", port=0)
    assert await read_all(listener.port, ban_of_own_ip, http_request()) == b""
    assert statements == []
    assert (await read_all(listener.port, "127.0.0.1", http_request())).startswith(b"HTTP/1.1")
    await listener.close()


async def test_refused_connection_costs_no_tls_handshake(
    environment: Environment, tmp_path: Path, ban_of_own_ip: str
) -> None:
    async with run_mx(environment, tmp_path, implicit_tls=True) as listener:
        context = ssl.create_default_context()
        connection = asyncio.open_connection(
            "127.0.0.1",
            listener.port,
            ssl=context,
            server_hostname="mx.example.org",
            local_addr=(ban_of_own_ip, 0),
        )
        with pytest.raises(OSError):  # noqa: PT011 - reset or closed, no certificate error
            await connection
        assert await read_all(listener.port, ban_of_own_ip, TLS_HELLO) == b""


async def test_gate_hands_unix_sockets_over(tmp_path: Path) -> None:
    greeted = asyncio.Event()

    class Session(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            greeted.set()
            transport.close()

    refused: list[str | None] = []

    def is_refused(ip: str | None) -> bool:
        refused.append(ip)
        return ip is not None

    path = str(tmp_path / "socket")
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: ConnectionGate(is_refused, Session), path)
    _, writer = await asyncio.open_unix_connection(path)
    async with asyncio.timeout(60):
        await greeted.wait()
    writer.close()
    server.close()
    assert refused == [None]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # the tables are not shared
async def test_refusal_needs_no_database(environment: Environment, tmp_path: Path) -> None:
    """The last known bans stay in force while the database does not answer."""
    source = own_ip()
    environment.refused_networks.set_or_remove_ban(
        source, environment.now() + timedelta(hours=1), environment.now()
    )
    async with run_mx(environment, tmp_path) as listener:
        async with environment.database.engine.begin() as connection:
            await connection.run_sync(SQLModel.metadata.tables["network_bans"].drop)
        assert (await read_all(listener.port, source)).decode() == BANNED_REPLY
        with pytest.raises(Exception, match="network_bans"):
            await refresh_refused_networks_from_database(environment)
        assert environment.refuses_ip(source)
