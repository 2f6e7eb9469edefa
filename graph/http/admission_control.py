"""Admission of operations: rate budgets, concurrency limits and the right to introspection."""

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

UNREAD = 8  # of one WebSocket; each response takes memory until it is read
SOON = timedelta(seconds=1)
LISTENING = 0.25  # after this time a running query listens for the disconnection of its client
EMPTY = "The budget is spent: wait before the next operation."


class Reader(Protocol):
    """A client that reads responses from one WebSocket."""

    unread: int


class Live(Protocol):
    """The open WebSockets and event streams of this process."""

    def of(self, user_ids: Collection[int]) -> Sequence[Viewer]:
        """Return the viewers of these users, one for each connection."""

    def kick(self, user_ids: Collection[int], reason: str | None, *, force: bool) -> None:
        """Disconnect all connections of these users in the background."""


@dataclass(eq=False, slots=True)
class Presence:
    """The client of one HTTP request, which can disconnect before the response."""

    receive: Callable[[], Awaitable[Any]]  # of ASGI, after the body
    gone: bool = False
    task: "asyncio.Task[Any] | None" = None  # runs the operation
    old: bool = False  # the operation already ran at the last check
    watch: "asyncio.Task[None] | None" = None

    async def listen(self) -> None:
        """Wait until the client disconnects, then cancel the task."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if self.task:
            self.gone = True
            self.task.cancel()


class Lookout:
    """A periodic check of running queries, which cancels queries of disconnected clients.

    Most queries end before the first check and cost nothing.
    """

    def __init__(self) -> None:
        self._running: set[Presence] = set()
        self._looking = False

    def add(self, presence: Presence) -> None:
        """Add the client of a query that starts in the current task."""
        presence.task = asyncio.current_task()
        self._running.add(presence)
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(LISTENING, self._look)

    def remove(self, presence: Presence) -> None:
        """Remove the client of a query that has ended."""
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
    """The rate budgets and concurrency limits of one process."""

    budgets: Budgets = field(default_factory=Budgets)
    operations: Crowd = field(default_factory=lambda: Crowd(1000, 100))
    followers: Crowd = field(default_factory=lambda: Crowd(100_000, 200))  # and WebSockets
    introspection: Introspection = "open"
    lookout: Lookout = field(default_factory=Lookout)
    answer_max: int = ANSWER_MAX

    def charge(self, ctx: Context, cost: dict[str, int]) -> list[GraphQLError]:
        """Charge the viewer's rate budget for an operation and add its state to `cost`.

        Returns an error if the budget is used up, else an empty list.
        """
        if not (rate := self.budgets.rates.of(ctx.viewer)):
            return []
        points, most = max(cost["requested"], 1), least(ctx.viewer)
        left, wait = self.budgets.take(payer(ctx), rate, points, least=most)
        cost["available"], cost["restoreRate"] = int(left), rate
        return [_spent(wait)] if wait else []

    def unread(self, ctx: Context, text: str) -> GraphQLError | None:
        """Charge for reading a document that is not cached; return an error if it can't be paid."""
        if not (rate := self.budgets.rates.of(ctx.viewer)):
            return None
        _, wait = self.budgets.take(payer(ctx), rate, reading(text), least=least(ctx.viewer))
        return _spent(wait) if wait else None

    def answer_budget(self, ctx: Context) -> AnswerBudget:
        """Create the response budget of an operation, which charges the viewer for read bytes."""

        def pay(points: int) -> None:
            if not (rate := self.budgets.rates.of(ctx.viewer)):
                return
            most = least(ctx.viewer)
            _, wait = self.budgets.take(payer(ctx), rate, min(points, most), least=most)
            if wait:
                raise RateLimited(EMPTY, retry_after=timedelta(seconds=round(wait + 0.5)))

        return AnswerBudget(self.answer_max, pay)

    def hides(self, viewer: Viewer | None) -> str | None:
        """Return the error code if the viewer may not use introspection; None if it may."""
        if self.introspection == "open":
            return None
        if self.introspection == "off":
            return "FORBIDDEN"
        stranger = viewer is None or viewer.role is Role.PUBLIC
        return "UNAUTHENTICATED" if stranger else None

    def each(self, viewer: Viewer, crowd: Crowd) -> int:
        """Return how many slots of a limiter a viewer can hold: an API key of ADMIN half of all."""
        if viewer.role not in FOR_MANY or viewer.token_id is not None:
            return crowd.each
        return max(crowd.most // 2, crowd.each)


def _spent(wait: float) -> GraphQLError:
    seconds = max(1, round(wait + 0.5))
    return GraphQLError(EMPTY, extensions={"code": "RATE_LIMITED", "retryAfterSeconds": seconds})


class Running:
    """A context manager that holds a concurrency slot while an operation runs.

    It cancels the operation when its client disconnects, unless the operation outlives its client.
    The constructor raises RateLimited if the payer runs too many operations or doesn't read
    responses, ServiceUnavailable if the process runs too many.
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
