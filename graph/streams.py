"""Subscriptions that last: server-sent events, and the end of those whose credential has ended."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Protocol

from graphql import GraphQLError

from graph.bodies import EVENTS, Rejected, encode
from graph.feeds import Told
from graph.policy import Operation
from graph.scalars import cursor, position
from models.journal import Position
from models.roles import Role
from resolvers.context import Trail, Viewer

log = logging.getLogger(__name__)

Ended = Callable[[Viewer], Awaitable[bool]]
ENDED = {
    "message": "sign in again: the credential has ended",
    "extensions": {"code": "UNAUTHENTICATED"},
}
HEADERS = {
    "Content-Type": f"{EVENTS}; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # nginx would keep small events back
}


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
    """One subscription as server-sent events.

    What comes of the journal has the cursor behind it as `id`, whether or not the document asks
    for one. A client that connects again says in `Last-Event-ID` what it got last, and goes on
    from there (HTML standard, section 9.2). Raises Rejected where that is no cursor.
    """

    def __init__(self, context: Operation, *, heartbeat: float) -> None:
        self.viewer = context.viewer
        self.heartbeat = heartbeat  # seconds
        context.trail = Trail(self._begin, _last_event(context.headers))
        self._over = False
        self._queue: asyncio.Queue[str] = asyncio.Queue(1)  # the generator waits for the reader
        self._source: asyncio.Task[None] | None = None

    async def end(self) -> None:
        """Say that the credential has ended, and complete."""
        self._over = True
        if self._source:
            self._source.cancel()

    async def text(self, results: AsyncGenerator[Told], watch: Watch) -> AsyncGenerator[str]:
        """The events, and a comment where none came for a while."""
        self._source = source = asyncio.create_task(self._drain(results))
        watch.add(self)
        try:
            async with aclosing(self._events(source)) as events:
                async for event in events:
                    yield event
            if self._over:
                yield _event("next", _json({"errors": [ENDED]}))
            yield _event("complete", "")
        finally:
            watch.remove(self)
            source.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({source})

    def _begin(self, place: Position) -> None:
        """Tell where the stream begins: who is cut off before the first event misses none."""
        self._queue.put_nowait(f"{_id(place)}\n")

    async def _drain(self, results: AsyncGenerator[Told]) -> None:
        """Ask for results in one task: generators may hold what belongs to a task."""
        async with aclosing(results):
            async for told in results:
                place = "" if told.cursor is None else _id(told.cursor)
                await self._queue.put(place + _event("next", told.text))

    async def _events(self, source: asyncio.Task[None]) -> AsyncGenerator[str]:
        """The events, and a comment for each heartbeat."""
        getting = asyncio.create_task(self._queue.get())
        try:
            while not self._over:
                await asyncio.wait(
                    {getting, source},
                    timeout=self.heartbeat,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if getting.done():
                    yield getting.result()
                    getting = asyncio.create_task(self._queue.get())
                elif not source.done():
                    yield ": ping\n\n"
                elif self._queue.empty():
                    break
            await asyncio.wait({source})
        finally:
            getting.cancel()
        if not source.cancelled() and (error := source.exception()):
            raise error  # Strawberry turns those of resolvers into results: this is another bug


def _last_event(headers: Mapping[str, str]) -> Position | None:
    text = headers.get("last-event-id")
    if not text:
        return None
    try:
        return position(text)
    except GraphQLError:
        raise Rejected(400, "BAD_CURSOR", "Last-Event-ID is not a cursor of the journal.") from None


def _id(place: Position) -> str:
    return f"id: {cursor(place)}\n"


def _event(kind: str, data: str) -> str:
    """One event. Its lines end as urql needs them: it looks for no other ends than these."""
    return f"event: {kind}\ndata: {data}\n\n"


def _json(payload: object) -> str:
    return encode(payload).decode()


def one_result(payload: object) -> str:
    """A stream of one result, which is complete."""
    return _event("next", _json(payload)) + _event("complete", "")
