"""Subscriptions that last: server-sent events, and the end of those whose credential has ended."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Protocol

from strawberry.http.streaming import SSETransport

from graph.bodies import EVENTS, encode, media
from graph.feeds import Told
from models.roles import Role
from resolvers.context import Viewer

log = logging.getLogger(__name__)

Ended = Callable[[Viewer], Awaitable[bool]]
ENDED = {
    "message": "sign in again: the credential has ended",
    "extensions": {"code": "UNAUTHENTICATED"},
}


class SSE(SSETransport):
    """Streams to those who accept nothing else: urql names the type with every query."""

    headers = {  # noqa: RUF012 - a ClassVar of the parent's
        **SSETransport.headers,
        "Content-Type": f"{EVENTS}; charset=utf-8",
        "Cache-Control": "no-store, no-transform",
    }

    def accepts(self, accept: str) -> bool:
        return media(accept) == EVENTS


class Follower(Protocol):
    """Somebody who stays: a socket, or one stream of events."""

    @property
    def viewer(self) -> Viewer: ...

    async def end(self) -> None:
        """Say that the credential has ended, and hang up. Takes a few seconds at most."""


class Watch:
    """Those who stay, and the one sweep that sends away whose credential has ended."""

    def __init__(self, now: Callable[[], datetime], ended: Ended | None, every: float) -> None:
        self.now = now
        self.ended = ended
        self.every = every  # seconds
        self.followers: set[Follower] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._ending = set[asyncio.Task[None]]()

    def add(self, follower: Follower) -> None:
        """Begin to watch. The sweep runs as long as there is somebody."""
        self.followers.add(follower)
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._run())

    def remove(self, follower: Follower) -> None:
        """Stop watching."""
        self.followers.discard(follower)
        if not self.followers and self._sweeping:
            self._sweeping.cancel()
            self._sweeping = None

    def expired(self, viewer: Viewer) -> bool:
        """Say whether the time of the viewer's credential is over."""
        return viewer.ends_at is not None and viewer.ends_at <= self.now()

    async def end(self, which: Callable[[Viewer], bool]) -> None:
        """Send away at once whoever is meant: a credential was revoked, a user disabled."""
        gone = [follower for follower in self.followers if which(follower.viewer)]
        await asyncio.gather(*(follower.end() for follower in gone))

    def dismiss(self) -> None:
        """Send away, soon, whose credential's time is over."""
        ending = asyncio.create_task(self.end(self.expired))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def sweep(self) -> None:
        """Send away whose credential has ended. Asks once for each of them."""
        viewers = {follower.viewer for follower in self.followers}
        gone = {viewer for viewer in viewers if await self._has_ended(viewer)}
        await self.end(gone.__contains__)

    async def _has_ended(self, viewer: Viewer) -> bool:
        if viewer.role is Role.PUBLIC:
            return False
        return self.expired(viewer) or (self.ended is not None and await self.ended(viewer))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.every)
            try:
                await self.sweep()
            except Exception:  # the store may be away for a while: the next sweep sees again
                log.exception("the sweep of credentials failed")


class EventStream:
    """One subscription as server-sent events."""

    def __init__(
        self, results: AsyncGenerator[Told, None], viewer: Viewer, *, heartbeat: float
    ) -> None:
        self.results = results
        self.viewer = viewer
        self.transport = SSE(heartbeat)
        self._over = False
        self._queue: asyncio.Queue[Told] = asyncio.Queue(1)  # the generator waits for the reader
        self._source: asyncio.Task[None] | None = None

    async def end(self) -> None:
        """Say that the credential has ended, and complete."""
        self._over = True
        if self._source:
            self._source.cancel()

    async def text(self, watch: Watch) -> AsyncGenerator[str]:
        """The events, and a comment where none came for a while."""
        self._source = source = asyncio.create_task(self._drain())
        watch.add(self)
        try:
            async with aclosing(self._events(source)) as events:
                async for told in events:
                    yield self._next(told.text) if told else self._comment()
            if self._over:
                yield self._next(encode({"errors": [ENDED]}).decode())
            yield self.transport.encode_complete()
        finally:
            watch.remove(self)
            source.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({source})

    async def _drain(self) -> None:
        """Ask for results in one task: generators may hold what belongs to a task."""
        async with aclosing(self.results) as results:
            async for result in results:
                await self._queue.put(result)

    async def _events(self, source: asyncio.Task[None]) -> AsyncGenerator[Told | None]:
        """The results, and None for each heartbeat."""
        getting = asyncio.create_task(self._queue.get())
        try:
            while not self._over:
                await asyncio.wait(
                    {getting, source},
                    timeout=self.transport.heartbeat_interval,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if getting.done():
                    yield getting.result()
                    getting = asyncio.create_task(self._queue.get())
                elif not source.done():
                    yield None
                elif self._queue.empty():
                    break
            await asyncio.wait({source})
        finally:
            getting.cancel()
        if not source.cancelled() and (error := source.exception()):
            raise error  # Strawberry turns those of resolvers into results: this is another bug

    def _next(self, payload: str) -> str:
        return self.transport.encode_event("next", payload)

    def _comment(self) -> str:
        return self.transport.encode_comment("ping")
