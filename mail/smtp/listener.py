"""The listener of LMTP and SMTP and what its sessions share."""

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

from mail.envelope.smtp_replies import SHUTDOWN_REPLY
from mail.smtp.connection_limits import SessionLimits, limits_from_options
from mail.smtp.metrics import ProtocolMetrics
from mail.smtp.spool_file import ByteBudget, free_disk_bytes, lock_and_clean_spool_folder
from models.runtime.environment import Environment


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
        self._servers: list[asyncio.Server] = []
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

    async def start(self, **address: Any) -> None:
        """Listen at `host` and `port`, or on `sock`. `port` is then the port in use."""
        self._folder_lock = self._folder_lock or await asyncio.to_thread(
            lock_and_clean_spool_folder, self.spool_folder
        )
        loop = asyncio.get_running_loop()
        try:
            self._servers.append(await loop.create_server(self.create_session, **address))
        except OSError:
            self._release_folder()
            raise
        self.port = self._servers[0].sockets[0].getsockname()[1]

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
        free = free_disk_bytes(self.spool_folder) - self.limits.disk_reserve
        return self.byte_budget.fits(message_size) and message_size <= free

    async def run_to_end(self, delivery: Coroutine[Any, Any, list[str]]) -> list[str]:
        """Run a delivery to its end even if the client disconnects. Returns the replies."""
        task = asyncio.create_task(delivery)
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)
        return await asyncio.shield(task)
