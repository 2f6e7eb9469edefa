"""The listener of LMTP and SMTP and what its sessions share."""

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

from mail.smtp.connection_limits import Limits, limits_of
from mail.smtp.metrics import Intake
from mail.smtp.replies import CLOSING
from mail.smtp.spool_file import Budget, claim, room
from models.runtime.environment import World


class Session(Protocol):
    """A session as its listener uses it."""

    receiving: bool  # between the 354 reply and the final replies
    gone: asyncio.Future[None]

    def dismiss(self, reply: str) -> None:
        """Send a reply and close the connection."""

    def abort(self) -> None:
        """Close the connection at once."""


class Listener:
    """A listener with its sessions, byte budget and running deliveries."""

    intake: Intake  # of its protocol

    def __init__(
        self, world: World, spool: Path, limits: Limits | None = None, *, share: int = 1
    ) -> None:
        self.world = world
        self.spool = spool
        self._given = limits
        self._share = share
        self.budget = Budget(self.limits.budget)
        self.sessions: set[Session] = set()
        self.closing = False
        self.port = 0
        self._work: set[asyncio.Task[list[str]]] = set()
        self._servers: list[asyncio.Server] = []
        self._claim: int | None = None

    @property
    def limits(self) -> Limits:
        """The limits of a session that begins now. The message size is a setting."""
        return self._given or limits_of(self.world.options, self._share)

    def converse(self) -> asyncio.BaseProtocol:
        """Return a session for a new connection."""
        raise NotImplementedError

    async def start(self, **where: Any) -> None:
        """Listen at `host` and `port`, or on `sock`. `port` is then the port in use."""
        self._claim = self._claim or await asyncio.to_thread(claim, self.spool)
        loop = asyncio.get_running_loop()
        try:
            self._servers.append(await loop.create_server(self.converse, **where))
        except OSError:
            self._release()
            raise
        self.port = self._servers[0].sockets[0].getsockname()[1]

    async def close(self, timeout: float = 30) -> None:  # noqa: ASYNC109 - when patience ends
        """Stop accepting mail, wait for messages in DATA, then close all connections.

        Deliveries that run longer than the timeout in seconds are cancelled; they were not
        acknowledged.
        """
        self.closing = True
        for server in self._servers:
            server.close()
        for session in list(self.sessions):
            if not session.receiving:
                session.dismiss(CLOSING)
        await self._gone(timeout)
        for session in list(self.sessions):
            session.dismiss(CLOSING)
        await self._gone(1)
        for session in list(self.sessions):
            session.abort()
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        self._release()

    def _release(self) -> None:
        """Release the lock of the spool folder."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    async def _gone(self, patience: float) -> None:
        """Wait until sessions and deliveries have ended, at most this number of seconds."""
        waiting = [session.gone for session in self.sessions] + list(self._work)
        if waiting:
            await asyncio.wait(waiting, timeout=patience)

    def has_room(self, size: int) -> bool:
        """Return True if a message of that size can be received now."""
        free = room(self.spool) - self.limits.disk_reserve
        return self.budget.fits(size) and size <= free

    async def finish(self, work: Coroutine[Any, Any, list[str]]) -> list[str]:
        """Run a delivery to its end even if the client disconnects. Returns the replies."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return await asyncio.shield(task)
