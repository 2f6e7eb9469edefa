"""A TCP proxy to a PostgreSQL server on a Unix socket. It can cut connections and use TLS."""

import asyncio
import contextlib
import ssl
import struct
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
ACCEPT_STEPS = 5  # of the event loop, from `accept` to the task of the connection
SOCKET_NAME = ".s.PGSQL.5432"


@dataclass
class PostgresProxy:
    """A proxy on loopback; `url` is the address of the same database over TCP."""

    unix_socket_url: str  # URL with the folder of the Unix socket as `host`
    tls: ssl.SSLContext | None = None
    port: int = 0
    tls_request_count: int = 0  # connections that asked for TLS
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _clients: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"postgresql://postgres:x@127.0.0.1:{self.port}{urlsplit(self.unix_socket_url).path}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut_connections(self) -> None:
        """Abort all connections and stop listening."""
        if self._server:
            self._server.close()
        is_quiet = False
        while not is_quiet:
            for writer in list(self._open):
                writer.transport.abort()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for _ in range(ACCEPT_STEPS):  # a connection that was just accepted begins its task
                await asyncio.sleep(0)
            is_quiet = not self._tasks and not self._open
        self._server = None

    def announce_shutdown(self) -> None:
        """Tell all clients that PostgreSQL shuts down; their connections stay open."""
        fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
        for writer in self._clients:
            writer.write(b"E" + struct.pack("!i", 4 + len(fields)) + fields)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._open.add(writer)
        self._clients.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._pass_on(reader, writer)
        self._open.discard(writer)
        self._clients.discard(writer)
        writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(8)
        if first == SSL_REQUEST:
            self.tls_request_count += 1
            writer.write(b"S" if self.tls else b"N")
            await writer.drain()
            if self.tls:
                await writer.start_tls(self.tls)
            first = b""
        folder = parse_qs(urlsplit(self.unix_socket_url).query)["host"][0]
        server_reader, server_writer = await asyncio.open_unix_connection(f"{folder}/{SOCKET_NAME}")
        self._open.add(server_writer)
        copies: list[asyncio.Future[None]] = []
        try:
            server_writer.write(first)
            copies += [
                asyncio.ensure_future(_copy_bytes(reader, server_writer)),
                asyncio.ensure_future(_copy_bytes(server_reader, writer)),
            ]
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(server_writer)
            server_writer.transport.abort()
            for copy in copies:
                copy.cancel()


async def _copy_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
