"""Server-sent events, and the disconnection of clients after their credential has ended."""

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from weakref import WeakSet

from graphql import GraphQLError

from graph.execution.operation_execution import Operation
from graph.http.graphql_request import EVENTS, Rejected, encode
from graph.subscriptions.result_stream import Told
from graph.types.scalars import cursor, position
from models.events.journal import Position
from models.users.roles import Role
from resolvers.context import Trail, Viewer

log = logging.getLogger(__name__)

Ended = Callable[[Viewer], Awaitable[bool]]
Kicked = Callable[[Collection[int]], Awaitable[Mapping[int, datetime]]]
ENDED = "sign in again: the credential has ended"
KICKED = "the connection was ended: sign in again"
HEADERS = {
    "Content-Type": f"{EVENTS}; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # nginx would buffer small events
}


@dataclass(frozen=True, slots=True)
class Farewell:
    """The reason of a disconnection; `cancels_operations` if running operations are cancelled."""

    text: str = ENDED
    force: bool = True

    @property
    def said(self) -> str:
        """The reason text of the WebSocket close frame."""
        return "Forbidden" if self.text == ENDED else self.text

    @property
    def error(self) -> dict[str, Any]:
        """The GraphQL error. Its code tells clients to sign in again."""
        return {"message": self.text, "extensions": {"code": "UNAUTHENTICATED"}}


FAREWELL = Farewell()
GATHER = 0.1  # changed credentials of this time are checked together
NEVER = datetime.min.replace(tzinfo=UTC)


class Follower(Protocol):
    """An open WebSocket or event stream."""

    since: datetime

    @property
    def viewer(self) -> Viewer: ...

    async def end(self, farewell: Farewell) -> None:
        """Send the reason and close the connection, within a few seconds."""

    def break_off(self) -> None:
        """Close because the server stops, so that the client connects again."""


class Watch:
    """The open connections, and the task that disconnects them when their credential has ended."""

    def __init__(
        self,
        now: Callable[[], datetime],
        ended: Ended | None,
        every: float,
        kicked: Kicked | None = None,
    ) -> None:
        self.now = now
        self.ended = ended
        self.kicked = kicked
        self.every = every  # seconds
        self.followers: set[Follower] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._ending = set[asyncio.Task[None]]()
        self._gone = set[Viewer]()  # until they are disconnected
        self._parting = WeakSet[Follower]()
        self._recalled = set[int | None]()
        self._broken_off = False

    def add(self, follower: Follower) -> None:
        """Add a connection. The periodic check runs while there are connections."""
        self.followers.add(follower)
        if self._broken_off:
            follower.break_off()
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._run())

    def remove(self, follower: Follower) -> None:
        """Remove a connection."""
        self.followers.discard(follower)
        if not self.followers and self._sweeping:
            self._sweeping.cancel()
            self._sweeping = None

    def expired(self, viewer: Viewer) -> bool:
        """True if the viewer's credential has expired, or is known to have ended."""
        if self._gone and viewer in self._gone:
            return True
        return viewer.ends_at is not None and viewer.ends_at <= self.now()

    async def end(self, which: Callable[[Viewer], bool]) -> None:
        """Disconnect all connections with a viewer that meets the condition."""
        await self._end([one for one in self.followers if which(one.viewer)])

    async def _end(self, gone: Iterable[Follower], farewell: Farewell = FAREWELL) -> None:
        gone = list(gone)
        self._parting.update(gone)
        await asyncio.gather(*(follower.end(farewell) for follower in gone))

    def break_off(self) -> None:
        """Close all connections because the server stops. Clients connect again later."""
        self._broken_off = True
        for follower in self.followers:
            follower.break_off()

    def dismiss(self) -> None:
        """Disconnect the viewers with expired credentials in the background."""
        self._soon(self.end(self.expired))

    def of(self, user_ids: Collection[int]) -> Sequence[Viewer]:
        """Return the viewers of these users, one for each connection."""
        return [one.viewer for one in self.followers if _whose(one.viewer) in user_ids]

    def kick(self, user_ids: Collection[int], reason: str | None, *, force: bool) -> None:
        """Disconnect all connections of these users in the background."""
        gone = [one for one in self.followers if _whose(one.viewer) in user_ids]
        self._soon(self._end(gone, Farewell(reason or KICKED, force)))

    async def judge(self, viewers: Collection[Viewer]) -> None:
        """Check these viewers' credentials and disconnect, in the background, those that ended."""
        gone = {viewer for viewer in viewers if await self._has_ended(viewer)}
        if gone:
            self._gone |= gone
            self._soon(self._part(gone))

    async def _part(self, gone: set[Viewer]) -> None:
        await self.end(gone.__contains__)
        self._gone -= gone

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        ending = asyncio.create_task(work)
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    def recall(self, account: int | None) -> None:
        """Check the credentials of a user soon; None checks all, 0 those without a user."""
        if not self.followers:
            return
        if not self._recalled:
            self._soon(self._look())
        self._recalled.add(account)

    async def _look(self) -> None:
        await asyncio.sleep(GATHER)
        recalled, self._recalled = self._recalled, set()
        try:
            await self.sweep(None if None in recalled else recalled)
        except Exception:  # in a database outage: the next check repeats it
            log.exception("recalled credentials were not looked at")

    async def sweep(self, accounts: set[int | None] | None = None) -> None:
        """Disconnect connections with an ended credential or closed by an administrator.

        Checks each viewer once, of these users or of all, and reads all kick times at once.
        """
        viewers = {
            one.viewer
            for one in self.followers.difference(self._parting)
            if accounts is None or accounts.intersection(_recallable(one.viewer))
        }
        gone = {viewer for viewer in viewers if await self._has_ended(viewer)}
        await self.end(gone.__contains__)
        users = {_whose(viewer) for viewer in viewers - gone} - {0}
        times = await self.kicked(users) if self.kicked and users else {}
        away = [
            one
            for one in self.followers.difference(self._parting)
            if one.since < times.get(_whose(one.viewer), NEVER)
        ]
        await self._end(away, Farewell(KICKED, force=False))

    async def _has_ended(self, viewer: Viewer) -> bool:
        if viewer.role is Role.PUBLIC and not viewer.pending_for:
            return False
        return self.expired(viewer) or (self.ended is not None and await self.ended(viewer))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.every)
            try:
                await self.sweep()
            except Exception:  # the store may be away for a while: the next sweep sees again
                log.exception("the sweep of credentials failed")


def _recallable(viewer: Viewer) -> set[int]:
    """Return the IDs of the users that this viewer's credential depends on."""
    return {_whose(viewer), *filter(None, [viewer.actor_id])}


def _whose(viewer: Viewer) -> int:
    return viewer.user_id or viewer.pending_for


class EventStream:
    """One subscription as server-sent events.

    Each result from the journal has the cursor after it as `id`, even if the document doesn't
    select the cursor. A client that connects again sends the last `id` as `Last-Event-ID` and gets
    the events after it (HTML standard, section 9.2). Raises Rejected if that is no cursor.
    """

    def __init__(self, context: Operation, *, heartbeat: float) -> None:
        self.viewer = context.viewer
        self.since = context.world.now()
        self.heartbeat = heartbeat  # seconds
        context.trail = Trail(self._begin, _last_event(context.headers))
        self._over: Farewell | None = None
        self._broken_off = False
        self._queue: asyncio.Queue[str] = asyncio.Queue(1)  # the generator waits for the reader
        self._source: asyncio.Task[None] | None = None

    async def end(self, farewell: Farewell) -> None:
        """Send the reason and complete the stream."""
        self._over = farewell
        if self._source:
            self._source.cancel()

    def break_off(self) -> None:
        """End the stream without `complete`, so that the client connects again."""
        self._broken_off = True
        if self._source:
            self._source.cancel()

    async def text(self, results: AsyncGenerator[Told], watch: Watch) -> AsyncGenerator[str]:
        """Yield the events of all results, and a comment after each silent heartbeat interval."""
        self._source = source = asyncio.create_task(self._drain(results))
        watch.add(self)
        try:
            async with aclosing(self._events(source)) as events:
                async for event in events:
                    yield event
            if not self._broken_off:
                yield self.ending(self._over)
        finally:
            watch.remove(self)
            source.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({source})

    def written(self, told: Told) -> str:
        """Return the text of the events for a result."""
        place = "" if told.cursor is None else _id(told.cursor)
        return place + _event("next", told.text)

    def ending(self, farewell: Farewell | None) -> str:
        """Return the text of the last events, with the error of a disconnection."""
        why = _event("next", _json({"errors": [farewell.error]})) if farewell else ""
        return why + _event("complete", "")

    def _begin(self, place: Position) -> None:
        """Send the start position, so that a client without events can resume there."""
        self._queue.put_nowait(f"{_id(place)}\n")

    async def _drain(self, results: AsyncGenerator[Told]) -> None:
        """Read all results in one task, since generators can depend on their task."""
        async with aclosing(results):
            async for told in results:
                await self._queue.put(self.written(told))

    async def _events(self, source: asyncio.Task[None]) -> AsyncGenerator[str]:
        """Yield the queued events, and a comment for each heartbeat interval without one."""
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
            raise error  # not of a resolver: Strawberry turns those into results


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


def one_event(kind: str | None, payload: object) -> str:
    """Return the text of one event with JSON data. Without a type it is a "message"."""
    return _event(kind, _json(payload)) if kind else f"data: {_json(payload)}\n\n"


def _event(kind: str, data: str) -> str:
    """Return the text of one event, with the line ends that the client urql requires."""
    return f"event: {kind}\ndata: {data}\n\n"


def _json(payload: object) -> str:
    return encode(payload).decode()


def one_result(payload: object) -> str:
    """Return the text of a complete stream with one result."""
    return _event("next", _json(payload)) + _event("complete", "")
