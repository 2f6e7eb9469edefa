"""Taking connections: what listeners of LMTP and SMTP share, and what their sessions share."""

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
    """A conversation, as its listener knows it."""

    receiving: bool  # between 354 and the replies
    gone: asyncio.Future[None]

    def dismiss(self, reply: str) -> None:
        """Say why and hang up."""

    def abort(self) -> None:
        """Hang up."""


class Listener:
    """A listener, and all that its sessions share."""

    intake: Intake  # what is counted

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
        """What a session that begins now is bound to: the largest message is a setting."""
        return self._given or limits_of(self.world.options, self._share)

    def converse(self) -> asyncio.BaseProtocol:
        """A session for a connection that has come."""
        raise NotImplementedError

    async def start(self, **where: Any) -> None:
        """Listen at `host` and `port`, or on `sock`; `port` is then the one it took."""
        self._claim = self._claim or await asyncio.to_thread(claim, self.spool)
        loop = asyncio.get_running_loop()
        try:
            self._servers.append(await loop.create_server(self.converse, **where))
        except OSError:
            self._release()
            raise
        self.port = self._servers[0].sockets[0].getsockname()[1]

    async def close(self, timeout: float = 30) -> None:  # noqa: ASYNC109 - when patience ends
        """Take no new mail, let DATA that has begun come to its end, then hang up.

        What still runs after so many seconds is given up; it was not acknowledged.
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
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    async def _gone(self, patience: float) -> None:
        waiting = [session.gone for session in self.sessions] + list(self._work)
        if waiting:
            await asyncio.wait(waiting, timeout=patience)

    def has_room(self, size: int) -> bool:
        """Whether a message of that size may come now."""
        free = room(self.spool) - self.limits.disk_reserve
        return self.budget.fits(size) and size <= free

    async def finish(self, work: Coroutine[Any, Any, list[str]]) -> list[str]:
        """Do this even if the client goes away meanwhile; the replies that it comes to."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return await asyncio.shield(task)
