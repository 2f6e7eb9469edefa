"""A server that refuses connections before the event loop has a transport for them.

A refused connection costs little more than accept() and close(). The event loop would create a
transport and a protocol for it.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

# Returns None to accept a connection from this IP address, else what a refused client gets.
RefusalOfIp = Callable[[str | None], bytes | None]

LINGER_SECONDS = 1.0  # that a refused client has to read the refusal, although it has sent data
MAX_LINGERING = 64  # refused connections; beyond them the oldest is closed
RECENT_SECONDS = 0.1  # that a refusal holds for further connections of its IP address
MAX_RECENT_REFUSALS = 1000  # IP addresses
ACCEPT_RETRY_DELAY = 1.0  # seconds after an error, such as too many open files
# With MSG_MORE, Linux sends the refusal in one segment with the FIN of the shutdown that follows.
SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL | getattr(socket, "MSG_MORE", 0))


class GatedServer:
    """Accepts the connections of a listening socket, and hands those that are not refused over."""

    def __init__(
        self,
        listening_socket: socket.socket,
        refusal_of_ip: RefusalOfIp,
        create_session: Callable[[], asyncio.BaseProtocol],
    ) -> None:
        self.socket = listening_socket
        self._refusal_of_ip = refusal_of_ip
        self._create_session = create_session
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        self._recent_refusals: dict[str | None, bytes] = {}  # by IP address
        self._forget_refusals_at = 0.0  # by the event loop's clock
        self._handovers = set[asyncio.Task[Any]]()
        # with the times of the event loop at which they are closed, in this order
        self._lingering = deque[tuple[float, socket.socket]]()
        self._linger_timer: asyncio.TimerHandle | None = None
        listening_socket.setblocking(False)
        self._accept_connections()

    def _accept_connections(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self.socket.fileno(), self._accept_one)

    def _accept_one(self) -> None:
        """Accept a connection. The event loop calls this again while others wait."""
        try:
            connection, peer = self.socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the client has gone
        except OSError as problem:
            log.error("Could not accept a connection", extra={"problem": str(problem)})
            self._loop.remove_reader(self.socket.fileno())
            self._loop.call_later(ACCEPT_RETRY_DELAY, self._accept_connections)
            return
        # a Unix socket has no IP address
        ip = peer[0].partition("%")[0] if isinstance(peer, tuple) else None
        refusal = self._recent_or_new_refusal(ip)
        if refusal is None:
            connection.setblocking(False)
            task = self._loop.create_task(self._hand_over(connection))
            self._handovers.add(task)
            task.add_done_callback(self._handovers.discard)
        elif refusal:
            self._refuse(connection, refusal)
        else:
            connection.close()

    def _recent_or_new_refusal(self, ip: str | None) -> bytes | None:
        """Return the refusal of a client. One of the same IP address is used again for a moment."""
        now = self._loop.time()
        if now >= self._forget_refusals_at or len(self._recent_refusals) >= MAX_RECENT_REFUSALS:
            self._recent_refusals.clear()
            self._forget_refusals_at = now + RECENT_SECONDS
        refusal = self._recent_refusals.get(ip)
        if refusal is None:
            refusal = self._refusal_of_ip(ip)
            if refusal is not None:
                self._recent_refusals[ip] = refusal
        return refusal

    async def _hand_over(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._create_session, connection)
        except OSError:  # the client has gone
            connection.close()

    def _refuse(self, connection: socket.socket, refusal: bytes) -> None:
        """Send a refusal, and close the connection a little later.

        If a client has sent data that nobody reads, close() resets the connection at once, and the
        client can lose the refusal.
        """
        try:
            connection.send(refusal, SEND_FLAGS)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # the client has gone
            connection.close()
            return
        self._lingering.append((self._loop.time() + LINGER_SECONDS, connection))
        if len(self._lingering) > MAX_LINGERING:
            self._lingering.popleft()[1].close()
        if self._linger_timer is None:
            self._linger_timer = self._loop.call_later(LINGER_SECONDS, self._close_lingering)

    def _close_lingering(self) -> None:
        """Close the refused connections whose time is over."""
        now, lingering = self._loop.time(), self._lingering
        while lingering and lingering[0][0] <= now:
            lingering.popleft()[1].close()
        self._linger_timer = (
            self._loop.call_later(lingering[0][0] - now, self._close_lingering)
            if lingering
            else None
        )

    def close(self) -> None:
        """Stop accepting connections. Those that were handed over stay open."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self.socket.fileno())
        self.socket.close()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        while self._lingering:
            self._lingering.popleft()[1].close()
