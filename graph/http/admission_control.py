"""What stands between a stranger and the work: budgets, crowds, and who may look at the schema."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Protocol

from graphql import GraphQLError

from graph.execution.response_size import ANSWER_MAX, AnswerBudget
from graph.http.rate_budgets import FOR_MANY, Budgets, least, payer, reading
from models.errors import RateLimited, Unavailable
from models.runtime.concurrency_limits import Crowd, Seat
from models.users.roles import Role
from resolvers.context import Context, Viewer

Introspection = Literal["open", "signed-in", "off"]

UNREAD = 8  # answers that may wait for the peer of a socket; each takes memory until it is read
SOON = timedelta(seconds=1)
LISTENING = 0.25  # seconds that a query runs before we listen whether its client is still there
EMPTY = "The budget is spent: wait before the next operation."


class Reader(Protocol):
    """Somebody who reads our answers, one after the other."""

    unread: int


class Live(Protocol):
    """Those who are connected to this process by a WebSocket or a stream of events."""

    def of(self, user_ids: Collection[int]) -> Sequence[Viewer]:
        """Who is here of these users, once for each connection."""

    def kick(self, user_ids: Collection[int], reason: str | None, *, force: bool) -> None:
        """Begin to send them away."""


@dataclass(eq=False, slots=True)
class Presence:
    """The client of one request, who may leave before it is answered."""

    receive: Callable[[], Awaitable[Any]]  # of ASGI; the body has been read
    gone: bool = False
    task: "asyncio.Task[Any] | None" = None  # that answers
    old: bool = False  # it has been working for a while
    watch: "asyncio.Task[None] | None" = None

    async def listen(self) -> None:
        """Cancel the task when the client goes."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if self.task:
            self.gone = True
            self.task.cancel()


class Lookout:
    """Looks now and then at the queries that run, and listens whether anybody waits for those.

    Most are answered before it looks: nothing is done for them.
    """

    def __init__(self) -> None:
        self._running: set[Presence] = set()
        self._looking = False

    def add(self, presence: Presence) -> None:
        """A query begins, in the task that calls this."""
        presence.task = asyncio.current_task()
        self._running.add(presence)
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(LISTENING, self._look)

    def remove(self, presence: Presence) -> None:
        """It has ended."""
        presence.task = None
        self._running.discard(presence)
        if presence.watch:
            presence.watch.cancel()

    def _look(self) -> None:
        for presence in self._running:
            if presence.old and presence.watch is None:
                presence.watch = asyncio.create_task(presence.listen())
            presence.old = True
        self._looking = bool(self._running)
        if self._looking:
            asyncio.get_running_loop().call_later(LISTENING, self._look)


@dataclass(frozen=True)
class Guards:
    """All that one process allows. Without any an operation is bounded by `Limits` alone."""

    budgets: Budgets = field(default_factory=Budgets)
    operations: Crowd = field(default_factory=lambda: Crowd(1000, 100))
    followers: Crowd = field(default_factory=lambda: Crowd(100_000, 200))  # sockets and streams
    introspection: Introspection = "open"
    lookout: Lookout = field(default_factory=Lookout)
    answer_max: int = ANSWER_MAX  # bytes of one answer

    def charge(self, ctx: Context, cost: dict[str, int]) -> list[GraphQLError]:
        """Let the viewer pay for an operation; what its bucket holds is written into `cost`."""
        if not (rate := self.budgets.rates.of(ctx.viewer)):
            return []
        points, most = max(cost["requested"], 1), least(ctx.viewer)
        left, wait = self.budgets.take(payer(ctx), rate, points, least=most)
        cost["available"], cost["restoreRate"] = int(left), rate
        return [_spent(wait)] if wait else []

    def unread(self, ctx: Context, text: str) -> GraphQLError | None:
        """Let the viewer pay for a document that is not known yet; an error where they cannot."""
        if not (rate := self.budgets.rates.of(ctx.viewer)):
            return None
        _, wait = self.budgets.take(payer(ctx), rate, reading(text), least=least(ctx.viewer))
        return _spent(wait) if wait else None

    def answer_budget(self, ctx: Context) -> AnswerBudget:
        """The limit of one answer; the viewer pays for the bytes that are read for it."""

        def pay(points: int) -> None:
            if not (rate := self.budgets.rates.of(ctx.viewer)):
                return
            most = least(ctx.viewer)
            _, wait = self.budgets.take(payer(ctx), rate, min(points, most), least=most)
            if wait:
                raise RateLimited(EMPTY, retry_after=timedelta(seconds=round(wait + 0.5)))

        return AnswerBudget(self.answer_max, pay)

    def hides(self, viewer: Viewer | None) -> str | None:
        """The code with which this viewer is refused to look at the schema; None where it may."""
        if self.introspection == "open":
            return None
        if self.introspection == "off":
            return "FORBIDDEN"
        stranger = viewer is None or viewer.role is Role.PUBLIC
        return "UNAUTHENTICATED" if stranger else None

    def each(self, viewer: Viewer, crowd: Crowd) -> int:
        """How many places of a crowd one payer may take: a front end may take half of all."""
        if viewer.role not in FOR_MANY or viewer.token_id is not None:
            return crowd.each
        return max(crowd.most // 2, crowd.each)


def _spent(wait: float) -> GraphQLError:
    seconds = max(1, round(wait + 0.5))
    return GraphQLError(EMPTY, extensions={"code": "RATE_LIMITED", "retryAfterSeconds": seconds})


class Running:
    """Counts an operation while it runs, and ends it when its client goes, unless it `lasts`.

    To enter raises RateLimited where its payer has too many at once or does not read,
    Unavailable where too many run of all together.
    """

    __slots__ = ("_guards", "_presence", "_seat")

    def __init__(self, ctx: Any, *, lasts: bool) -> None:
        self._guards: Guards | None = getattr(ctx, "guards", None)
        self._seat: Seat | None = None
        self._presence: Presence | None = None
        if self._guards is not None:
            self._presence = None if lasts else ctx.presence
            self._seat = self._admitted(self._guards, ctx)

    @staticmethod
    def _admitted(guards: Guards, ctx: Any) -> Seat:
        if ctx.reader is not None and ctx.reader.unread >= UNREAD:
            raise RateLimited("Read the answers that wait for you.", retry_after=SOON)
        crowd = guards.operations
        if seat := crowd.enter(payer(ctx), guards.each(ctx.viewer, crowd)):
            return seat
        if crowd.full:
            raise Unavailable("Too many operations run at once: try again.")
        raise RateLimited("Too many of your operations run at once.", retry_after=SOON)

    def __enter__(self) -> None:
        if self._guards and self._presence:
            self._guards.lookout.add(self._presence)

    def __exit__(self, *_: object) -> None:
        if self._guards and self._presence:
            self._guards.lookout.remove(self._presence)
        if self._seat:
            self._seat.leave()
