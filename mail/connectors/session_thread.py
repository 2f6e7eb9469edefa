"""A session with a remote server in a thread of its own, which can be ended from outside."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from mail.connectors.imap_client import ImapSession
from mail.connectors.pop3_client import Pop3Session
from mail.connectors.remote_server import ConnectorStage, RemoteFailure, RemoteMessage, RemoteServer
from mail.connectors.socket_stream import RemoteConnection
from mail.network.outbound_http import HttpRequestFailed, NetworkPolicy
from models.connectors import ConnectorProtocol

Result = TypeVar("Result")
CHUNK_SIZE = 4 << 20  # bytes of messages that are handed over together


class ThreadedSession:
    """A blocking session that the event loop uses through its thread."""

    def __init__(
        self,
        remote: ImapSession | Pop3Session,
        connection: RemoteConnection,
        thread: ThreadPoolExecutor,
    ) -> None:
        self.remote, self.connection, self._thread = remote, connection, thread

    async def run_in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function in the thread of the session. Raises RemoteFailure."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def stream_messages(
        self, messages: Sequence[RemoteMessage]
    ) -> AsyncGenerator[list[tuple[RemoteMessage, bytes]]]:
        """Yield groups of messages; the next group is fetched while the caller handles one.

        Raises RemoteFailure after the messages that came before it.
        """
        source = self.remote.fetch_messages(messages)
        next_result = asyncio.ensure_future(self.run_in_thread(_next_messages_and_failure, source))
        ended = False
        try:
            while not ended:
                next_messages, failure = await next_result
                ended = failure is not None or not next_messages
                if not ended:
                    next_result = asyncio.ensure_future(
                        self.run_in_thread(_next_messages_and_failure, source)
                    )
                if next_messages:
                    yield next_messages
                if failure is not None:
                    raise failure
        finally:
            if not ended:  # the caller has stopped while a response is coming
                self.connection.abort()
            await asyncio.wait([next_result])


def _next_messages_and_failure(
    messages: Iterator[tuple[RemoteMessage, bytes]],
) -> tuple[list[tuple[RemoteMessage, bytes]], RemoteFailure | None]:
    """The next messages up to CHUNK_SIZE bytes, and the failure after them."""
    next_messages: list[tuple[RemoteMessage, bytes]] = []
    weight = 0
    try:
        for head, raw in messages:
            next_messages.append((head, raw))
            weight += len(raw)
            if weight >= CHUNK_SIZE:
                break
    except RemoteFailure as problem:
        return next_messages, problem
    return next_messages, None


@asynccontextmanager
async def connect_and_sign_in_session(
    server: RemoteServer,
    network_policy: NetworkPolicy,
    max_message_size: int,
    tls_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[ThreadedSession]:
    """Sign in to a remote server, and log out at the end. Raises RemoteFailure.

    Connects only to the addresses that `network_policy` has checked.
    """
    try:
        addresses = await network_policy.resolve_allowed(server.host, server.port)
    except HttpRequestFailed as problem:
        raise RemoteFailure(ConnectorStage.RESOLVE, str(problem)) from None
    line = RemoteConnection(server, addresses, tls_context)
    remote = (ImapSession if server.protocol is ConnectorProtocol.IMAP else Pop3Session)(
        line, max_message_size
    )
    thread = ThreadPoolExecutor(1, "connector")
    session = ThreadedSession(remote, line, thread)
    try:
        await session.run_in_thread(remote.connect_and_sign_in)
        yield session
        await session.run_in_thread(remote.log_out)
    except BaseException:
        line.abort()
        raise
    finally:
        thread.submit(remote.close)
        thread.shutdown(wait=False)
