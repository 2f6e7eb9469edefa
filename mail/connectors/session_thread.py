"""A session with a remote server in a thread of its own, which can be ended from outside."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from mail.connectors.imap_client import Imap
from mail.connectors.pop3_client import Pop
from mail.connectors.remote_server import Failure, Head, Server, Stage
from mail.connectors.socket_stream import Line
from mail.network.outbound_http import Gate, Unsent
from models.connectors import Protocol

Result = TypeVar("Result")
READY = 4 << 20  # bytes of messages that are handed over together


class Session:
    """A blocking session that the event loop uses through its thread."""

    def __init__(self, remote: Imap | Pop, line: Line, thread: ThreadPoolExecutor) -> None:
        self.remote, self.line, self._thread = remote, line, thread

    async def do(self, work: Callable[..., Result], *given: Any) -> Result:
        """Run a function in the thread of the session. Raises RemoteFailure."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    async def bodies(self, heads: Sequence[Head]) -> AsyncGenerator[list[tuple[Head, bytes]]]:
        """Yield groups of messages; the next group is fetched while the caller handles one.

        Raises RemoteFailure after the messages that came before it.
        """
        source = self.remote.bodies(heads)
        coming = asyncio.ensure_future(self.do(_some, source))
        ended = False
        try:
            while not ended:
                some, failure = await coming
                ended = failure is not None or not some
                if not ended:
                    coming = asyncio.ensure_future(self.do(_some, source))
                if some:
                    yield some
                if failure is not None:
                    raise failure
        finally:
            if not ended:  # the caller has stopped while a response is coming
                self.line.cut()
            await asyncio.wait([coming])


def _some(source: Iterator[tuple[Head, bytes]]) -> tuple[list[tuple[Head, bytes]], Failure | None]:
    """The next messages up to CHUNK_SIZE bytes, and the failure after them."""
    found: list[tuple[Head, bytes]] = []
    weight = 0
    try:
        for head, raw in source:
            found.append((head, raw))
            weight += len(raw)
            if weight >= READY:
                break
    except Failure as problem:
        return found, problem
    return found, None


@asynccontextmanager
async def session(
    server: Server, gate: Gate, largest: int, trust: ssl.SSLContext | None = None
) -> AsyncGenerator[Session]:
    """Sign in to a remote server, and log out at the end. Raises RemoteFailure.

    Connects only to the addresses that `gate` has checked.
    """
    try:
        addresses = await gate.allowed(server.host, server.port)
    except Unsent as problem:
        raise Failure(Stage.RESOLVE, str(problem)) from None
    line = Line(server, addresses, trust)
    remote = (Imap if server.protocol is Protocol.IMAP else Pop)(line, largest)
    thread = ThreadPoolExecutor(1, "connector")
    made = Session(remote, line, thread)
    try:
        await made.do(remote.sign_in)
        yield made
        await made.do(remote.leave)
    finally:
        line.cut()
        thread.submit(remote.close)
        thread.shutdown(wait=False)
