"""Plain HTTP for challenges of ACME alone, where nobody else answers at port 80.

One short request for each connection, and nothing of what else HTTP can do.
"""

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

from mail.network.ip_networks import network
from mail.tls.acme_client import TOKEN, WELL_KNOWN
from merganser.server import sockets
from merganser.server.processes.process_roles import Part
from merganser.settings.settings import Settings
from models.runtime.concurrency_limits import Crowd
from models.runtime.environment import World
from resolvers.certificates import acme_worker

log = logging.getLogger(__name__)

NAME = "ACME_HTTP"
HEAD = 8192  # bytes of a request
PATIENCE = 10.0  # seconds for it, and for the answer to be taken
CONNECTIONS, EACH = 200, 20  # at once, and of one network
ASKED = re.compile(
    rf"(GET|HEAD) {re.escape(WELL_KNOWN)}([A-Za-z0-9_-]{{1,{TOKEN}}}) HTTP/1\.[01]\r\n".encode()
)


class Proving:
    """The listener."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._crowd = Crowd(CONNECTIONS, EACH)
        self._servers: list[asyncio.Server] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._servers[0].sockets[0].getsockname()[1]
        return port

    async def start(self, **where: object) -> None:
        """Listen at `host` and `port`, or on `sock`."""
        server = await asyncio.start_server(self._come, limit=HEAD, **where)  # type: ignore[arg-type]  # ty: ignore[invalid-argument-type]
        self._servers.append(server)

    def close(self) -> None:
        """Listen no more; who is here ends soon, or with the loop."""
        for server in self._servers:
            server.close()

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        ip = str(peer[0]).partition("%")[0] if isinstance(peer, tuple) else None
        seat = self._crowd.enter(network(ip))
        try:
            if seat is not None:
                async with asyncio.timeout(PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # nobody who has to prove anything
        except Exception:  # a listener's edge: the next connection may go well
            log.exception("a challenge was not answered")
        finally:
            if seat is not None:
                seat.leave()
            writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await writer.wait_closed()

    async def _answer(self, head: bytes) -> bytes:
        asked = ASKED.match(head)
        found = await acme_worker.answer(self._world, asked[2].decode()) if asked else None
        status, text = ("200 OK", found) if found else ("404 Not Found", "There is nothing here.\n")
        body = text.encode()
        fields = (
            f"HTTP/1.1 {status}",
            "Content-Type: application/octet-stream",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        )
        whole = "\r\n".join((*fields, "", "")).encode()
        return whole if asked and asked[1] == b"HEAD" else whole + body


async def listen(
    settings: Settings, world: World, part: Part, stack: AsyncExitStack
) -> Sequence[Proving]:
    """Listen, where a setting says so; the stack ends it."""
    if settings.acme_http is None:
        return []
    one = Proving(world)
    stack.callback(one.close)
    if NAME in part.smtp:
        for bound in part.smtp[NAME]:
            await one.start(sock=bound)
        return [one]
    host, port = sockets.split_host_port(settings.acme_http)
    try:
        await one.start(host=host, port=port)
    except OSError as problem:
        raise sockets.bind_failure(NAME, settings.acme_http, problem) from problem
    return [one]
