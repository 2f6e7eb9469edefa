"""Subscriptions that last: server-sent events, and the end of those whose credential has ended."""

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
    "X-Accel-Buffering": "no",  # nginx would keep small events back
}


@dataclass(frozen=True, slots=True)
class Farewell:
    """What is said to those who are sent away, and whether what they run is cut short."""

    text: str = ENDED
    force: bool = True

    @property
    def said(self) -> str:
        """As the reason of a closing frame."""
        return "Forbidden" if self.text == ENDED else self.text

    @property
    def error(self) -> dict[str, Any]:
        """As an error of GraphQL: clients sign in again."""
        return {"message": self.text, "extensions": {"code": "UNAUTHENTICATED"}}


FAREWELL = Farewell()
GATHER = 0.1  # seconds in which recalls are looked at together
NEVER = datetime.min.replace(tzinfo=UTC)


class Follower(Protocol):
    """Somebody who stays: a socket, or one stream of events."""

    since: datetime

    @property
    def viewer(self) -> Viewer: ...

    async def end(self, farewell: Farewell) -> None:
        """Say why, and hang up. Takes a few seconds at most."""

    def break_off(self) -> None:
        """The server stops: say nothing that keeps the peer from coming back."""


class Watch:
    """Those who stay, and the one sweep that sends away whose credential has ended."""

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
        self._gone = set[Viewer]()  # who is being sent away
        self._parting = WeakSet[Follower]()  # they are being sent away
        self._recalled = set[int | None]()
        self._broken_off = False

    def add(self, follower: Follower) -> None:
        """Begin to watch. The sweep runs as long as there is somebody."""
        self.followers.add(follower)
        if self._broken_off:
            follower.break_off()
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._run())

    def remove(self, follower: Follower) -> None:
        """Stop watching."""
        self.followers.discard(follower)
        if not self.followers and self._sweeping:
            self._sweeping.cancel()
            self._sweeping = None

    def expired(self, viewer: Viewer) -> bool:
        """Say whether the viewer's credential is over, as far as that is known here."""
        if self._gone and viewer in self._gone:
            return True
        return viewer.ends_at is not None and viewer.ends_at <= self.now()

    async def end(self, which: Callable[[Viewer], bool]) -> None:
        """Send away at once whoever is meant: a credential was revoked, a user disabled."""
        await self._end([one for one in self.followers if which(one.viewer)])

    async def _end(self, gone: Iterable[Follower], farewell: Farewell = FAREWELL) -> None:
        gone = list(gone)
        self._parting.update(gone)
        await asyncio.gather(*(follower.end(farewell) for follower in gone))

    def break_off(self) -> None:
        """Let all go who would stay: the server stops, and they come back to the next one."""
        self._broken_off = True
        for follower in self.followers:
            follower.break_off()

    def dismiss(self) -> None:
        """Send away, soon, whose credential's time is over."""
        self._soon(self.end(self.expired))

    def of(self, user_ids: Collection[int]) -> Sequence[Viewer]:
        """Who is here of these users, once for each connection."""
        return [one.viewer for one in self.followers if _whose(one.viewer) in user_ids]

    def kick(self, user_ids: Collection[int], reason: str | None, *, force: bool) -> None:
        """Begin to send away all connections of these users."""
        gone = [one for one in self.followers if _whose(one.viewer) in user_ids]
        self._soon(self._end(gone, Farewell(reason or KICKED, force)))

    async def judge(self, viewers: Collection[Viewer]) -> None:
        """Find out whose of these credentials has ended: they are `expired`, and sent away soon."""
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
        """Look, soon, at credentials of an account; 0: at those of none, None: at all."""
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
        except Exception:  # the store may be away for a while: the next sweep sees again
            log.exception("recalled credentials were not looked at")

    async def sweep(self, accounts: set[int | None] | None = None) -> None:
        """Send away whose credential has ended, and whom another process kicked.

        Asks once for each viewer, of these accounts or of all, and once for all kicks.
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
    """The accounts with which this viewer's credential may end."""
    return {_whose(viewer), *filter(None, [viewer.actor_id])}


def _whose(viewer: Viewer) -> int:
    return viewer.user_id or viewer.pending_for


class EventStream:
    """One subscription as server-sent events.

    What comes of the journal has the cursor behind it as `id`, whether or not the document asks
    for one. A client that connects again says in `Last-Event-ID` what it got last, and goes on
    from there (HTML standard, section 9.2). Raises Rejected where that is no cursor.
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
        """Say why, and complete."""
        self._over = farewell
        if self._source:
            self._source.cancel()

    def break_off(self) -> None:
        """Stop in the middle: a client that hears of no end connects again."""
        self._broken_off = True
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
            if not self._broken_off:
                yield self.ending(self._over)
        finally:
            watch.remove(self)
            source.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({source})

    def written(self, told: Told) -> str:
        """A result, as events."""
        place = "" if told.cursor is None else _id(told.cursor)
        return place + _event("next", told.text)

    def ending(self, farewell: Farewell | None) -> str:
        """The end, and why it is one where somebody is sent away."""
        why = _event("next", _json({"errors": [farewell.error]})) if farewell else ""
        return why + _event("complete", "")

    def _begin(self, place: Position) -> None:
        """Tell where the stream begins: who is cut off before the first event misses none."""
        self._queue.put_nowait(f"{_id(place)}\n")

    async def _drain(self, results: AsyncGenerator[Told]) -> None:
        """Ask for results in one task: generators may hold what belongs to a task."""
        async with aclosing(results):
            async for told in results:
                await self._queue.put(self.written(told))

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


def one_event(kind: str | None, payload: object) -> str:
    """One event with this as its data; of no kind it is a "message"."""
    return _event(kind, _json(payload)) if kind else f"data: {_json(payload)}\n\n"


def _event(kind: str, data: str) -> str:
    """One event. Its lines end as urql needs them: it looks for no other ends than these."""
    return f"event: {kind}\ndata: {data}\n\n"


def _json(payload: object) -> str:
    return encode(payload).decode()


def one_result(payload: object) -> str:
    """A stream of one result, which is complete."""
    return _event("next", _json(payload)) + _event("complete", "")
