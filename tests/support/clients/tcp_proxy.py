"""A line between two that can be cut, and one that dies without a word."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

PIECE = 1 << 16


class Proxy:
    """Passes on what is said to a port of this machine, and what comes back from there."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.opened = 0  # connections so far
        self.room: int | None = None  # bytes that still come back from there; None: all
        self.dry = asyncio.Event()  # there was no more room
        self._lines: dict[asyncio.Task[None], asyncio.Event] = {}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._server
        self._server.close()
        while self._lines:
            await self.cut()

    @property
    def url(self) -> str:
        assert self._server
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/graphql"

    async def cut(self) -> int:
        """End all connections without a farewell; how many there were."""
        lines = list(self._lines)
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)
        return len(lines)

    def mute(self) -> None:
        """Let nothing more through on the connections that there are; they stay open."""
        for passing in self._lines.values():
            passing.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        passing = asyncio.Event()
        passing.set()
        line = asyncio.ensure_future(self._join(reader, writer, passing))
        self._lines[line] = passing
        with suppress(asyncio.CancelledError, OSError):
            await line
        del self._lines[line]
        writer.transport.abort()

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event
    ) -> None:
        opening = asyncio.ensure_future(asyncio.open_connection("127.0.0.1", self.to))
        try:
            there, back = await asyncio.shield(opening)
        except asyncio.CancelledError:
            while not opening.done():  # otherwise its connection would stay open
                with suppress(asyncio.CancelledError):  # the line may be cut twice
                    await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                opening.result()[1].transport.abort()
            raise
        ways = [
            asyncio.ensure_future(self._pass(reader, back, passing)),
            asyncio.ensure_future(self._pass(there, writer, passing, narrow=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            back.transport.abort()  # first, since the connections may be cut during the wait
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(
        self,
        source: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        passing: asyncio.Event,
        *,
        narrow: bool = False,
    ) -> None:
        while piece := await source.read(PIECE):
            if narrow and self.room is not None:
                piece, self.room = piece[: self.room], max(0, self.room - len(piece))
                if not self.room:
                    self.dry.set()
                    passing.clear()
            else:
                await passing.wait()
            to.write(piece)
            await to.drain()
