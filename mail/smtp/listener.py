"""The listener of LMTP and SMTP and what its sessions share."""

import asyncio
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

from mail.envelope.smtp_replies import (
    NETWORK_BANNED_REPLY,
    SHUTDOWN_REPLY,
    session_terminated_reply,
)
from mail.network.gated_server import GatedServer
from mail.smtp.connection_limits import SessionLimits, limits_from_options
from mail.smtp.metrics import ProtocolMetrics
from mail.smtp.spool_file import ByteBudget, free_disk_bytes, lock_and_clean_spool_folder
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionService


class ListenerSession(Protocol):
    """A session as its listener uses it."""

    is_receiving: bool  # between the 354 reply and the final replies
    closed: asyncio.Future[None]

    def close_with_reply(self, smtp_reply: str) -> None:
        """Send a reply and close the connection."""

    def abort(self) -> None:
        """Close the connection at once."""


class SmtpFamilyListener:
    """A listener with its sessions, byte budget and running deliveries."""

    metrics: ProtocolMetrics  # of its protocol
    service: SessionService  # of its sessions

    def __init__(
        self,
        environment: Environment,
        spool_folder: Path,
        limits: SessionLimits | None = None,
        *,
        process_count: int = 1,
    ) -> None:
        self.environment = environment
        self.spool_folder = spool_folder
        self._fixed_limits = limits
        self._process_count = process_count
        self.byte_budget = ByteBudget(self.limits.byte_budget)
        self.sessions: set[ListenerSession] = set()
        self.is_closing = False
        self.port = 0
        self._deliveries: set[asyncio.Task[list[str]]] = set()
        self._servers: list[GatedServer] = []
        self._folder_lock: int | None = None

    @property
    def limits(self) -> SessionLimits:
        """The limits of a session that begins now. The message size is a setting."""
        return self._fixed_limits or limits_from_options(
            self.environment.options, self._process_count
        )

    def create_session(self) -> asyncio.BaseProtocol:
        """Return a session for a new connection."""
        raise NotImplementedError

    @property
    def _sends_refusal(self) -> bool:
        """True if a banned network gets a reply. With TLS from the first byte there is none."""
        return True

    def _refusal_of_ip(self, ip: str | None) -> bytes | None:
        """Return what a refused client gets instead of a session; None to accept it.

        Banned networks are refused, and all clients while the node is DRAINING or DOWN.
        """
        environment = self.environment
        if reason := environment.own_node.refusal_reason:
            reply = session_terminated_reply(environment.options.hostname, reason)
        elif environment.refuses_ip(ip):
            reply = NETWORK_BANNED_REPLY.format(hostname=environment.options.hostname)
        else:
            return None
        return f"{reply}\r\n".encode() if self._sends_refusal else b""

    async def start(
        self, host: str = "", port: int = 0, *, sock: socket.socket | None = None
    ) -> None:
        """Listen at an IP address and port, or use a listening socket.

        `port` is then the port in use.
        """
        self._folder_lock = self._folder_lock or await asyncio.to_thread(
            lock_and_clean_spool_folder, self.spool_folder
        )
        try:
            if sock is None:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                sock = socket.create_server((host, port), family=family)
                # Connections inherit it. Otherwise the last reply to pipelined commands waits 40 ms
                # for the acknowledgement of the reply before it.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            self._release_folder()
            raise
        self._servers.append(GatedServer(sock, self._refusal_of_ip, self.create_session))
        self.port = self._servers[0].socket.getsockname()[1]

    async def close(self, timeout: float = 30) -> None:  # noqa: ASYNC109 - when patience ends
        """Stop accepting mail, wait for messages in DATA, then close all connections.

        Deliveries that run longer than the timeout in seconds are cancelled; they were not
        acknowledged.
        """
        self.is_closing = True
        reply = SHUTDOWN_REPLY.format(hostname=self.environment.options.hostname)
        for server in self._servers:
            server.close()
        for session in list(self.sessions):
            if not session.is_receiving:
                session.close_with_reply(reply)
        await self._wait_until_closed(timeout)
        for session in list(self.sessions):
            session.close_with_reply(reply)
        await self._wait_until_closed(1)
        for session in list(self.sessions):
            session.abort()
        for task in self._deliveries:
            task.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        self._release_folder()

    def _release_folder(self) -> None:
        """Release the lock of the spool folder."""
        if self._folder_lock is not None:
            os.close(self._folder_lock)
            self._folder_lock = None

    async def _wait_until_closed(self, max_wait: float) -> None:
        """Wait until sessions and deliveries have ended, at most this number of seconds."""
        waiting = [session.closed for session in self.sessions] + list(self._deliveries)
        if waiting:
            await asyncio.wait(waiting, timeout=max_wait)

    def has_room(self, message_size: int) -> bool:
        """Return True if a message of that size can be received now."""
        free_bytes = free_disk_bytes(self.spool_folder) - self.limits.disk_reserve
        return self.byte_budget.fits(message_size) and message_size <= free_bytes

    async def run_shielded_from_disconnect(
        self, delivery: Coroutine[Any, Any, list[str]]
    ) -> list[str]:
        """Run a delivery to its end even if the client disconnects. Returns the replies."""
        task = asyncio.create_task(delivery)
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)
        return await asyncio.shield(task)
