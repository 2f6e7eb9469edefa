"""A TCP proxy that can drop or stall its connections."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_SIZE = 1 << 16


class TcpProxy:
    """Forwards connections to a port of this machine."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.connection_count = 0  # connections so far
        self.remaining_bytes: int | None = (
            None  # bytes of responses that are still forwarded; None: all
        )
        self.is_exhausted = asyncio.Event()  # set when no more bytes are forwarded
        self._connections: dict[asyncio.Task[None], asyncio.Event] = {}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server
        self._server.close()
        while self._connections:
            await self.drop_connections()

    @property
    def url(self) -> str:
        assert self._server
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/graphql"

    async def drop_connections(self) -> int:
        """Abort all connections and return their number."""
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        return len(connections)

    def stall_connections(self) -> None:
        """Stop forwarding on all open connections, without closing them."""
        for is_forwarding in self._connections.values():
            is_forwarding.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        is_forwarding = asyncio.Event()
        is_forwarding.set()
        connection = asyncio.ensure_future(self._forward_both_ways(reader, writer, is_forwarding))
        self._connections[connection] = is_forwarding
        with suppress(asyncio.CancelledError, OSError):
            await connection
        del self._connections[connection]
        writer.transport.abort()

    async def _forward_both_ways(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_forwarding: asyncio.Event,
    ) -> None:
        opening = asyncio.ensure_future(asyncio.open_connection("127.0.0.1", self.target_port))
        try:
            target_reader, target_writer = await asyncio.shield(opening)
        except asyncio.CancelledError:
            while not opening.done():  # otherwise its connection would stay open
                with suppress(asyncio.CancelledError):  # drop_connections may run twice
                    await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                opening.result()[1].transport.abort()
            raise
        forwarders = [
            asyncio.ensure_future(self._forward(reader, target_writer, is_forwarding)),
            asyncio.ensure_future(
                self._forward(target_reader, writer, is_forwarding, is_response=True)
            ),
        ]
        try:
            await asyncio.wait(forwarders, return_when=asyncio.FIRST_COMPLETED)
        finally:
            target_writer.transport.abort()  # first, since drop_connections may run meanwhile
            for forwarder in forwarders:
                forwarder.cancel()
            await asyncio.gather(*forwarders, return_exceptions=True)

    async def _forward(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        is_forwarding: asyncio.Event,
        *,
        is_response: bool = False,
    ) -> None:
        while chunk := await source.read(CHUNK_SIZE):
            if is_response and self.remaining_bytes is not None:
                chunk, self.remaining_bytes = (
                    chunk[: self.remaining_bytes],
                    max(0, self.remaining_bytes - len(chunk)),
                )
                if not self.remaining_bytes:
                    self.is_exhausted.set()
                    is_forwarding.clear()
            else:
                await is_forwarding.wait()
            target.write(chunk)
            await target.drain()
