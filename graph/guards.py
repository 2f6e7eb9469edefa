"""What stands between a stranger and the work: budgets, crowds, and who may look at the schema."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Protocol

from graphql import GraphQLError, OperationType

from graph.budgets import Budgets, payer, reading
from graph.crowds import Crowd
from models.errors import RateLimited, Unavailable
from models.roles import Role
from resolvers.context import Context, Viewer

Introspection = Literal["open", "signed-in", "off"]

UNREAD = 8  # answers that may wait for the peer of a socket; each takes memory until it is read
SOON = timedelta(seconds=1)
LISTENING = 0.25  # seconds that a query runs before we listen whether its client is still there
EMPTY = "The budget is spent: wait before the next operation."


class Reader(Protocol):
    """Somebody who reads our answers, one after the other."""

    unread: int


@dataclass
class Presence:
    """Whether the client of one request is still there."""

    receive: Callable[[], Awaitable[Any]]  # of ASGI; the body has been read
    gone: bool = False

    async def watch(self, running: asyncio.Task[Any]) -> None:
        """Cancel `running` when the client goes."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        running.cancel()


@dataclass(frozen=True)
class Guards:
    """All that one process allows. Without any an operation is bounded by `Limits` alone."""

    budgets: Budgets = field(default_factory=Budgets)
    operations: Crowd = field(default_factory=lambda: Crowd(1000, 100))
    followers: Crowd = field(default_factory=lambda: Crowd(100_000, 200))  # sockets and streams
    introspection: Introspection = "open"

    def charge(self, ctx: Context, cost: dict[str, int]) -> list[GraphQLError]:
        """Let the viewer pay for an operation; what its bucket holds is written into `cost`."""
        if not (rate := self.budgets.rates.of(ctx.viewer)):
            return []
        left, wait = self.budgets.take(payer(ctx), rate, max(cost["requested"], 1))
        cost |= {"available": int(left), "restoreRate": rate}
        return [_spent(wait)] if wait else []

    def unread(self, ctx: Context, text: str) -> GraphQLError | None:
        """Let the viewer pay for a document that is not known yet; an error where they cannot."""
        if not (rate := self.budgets.rates.of(ctx.viewer)):
            return None
        _, wait = self.budgets.take(payer(ctx), rate, reading(text))
        return _spent(wait) if wait else None

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
        return max(crowd.most // 2, crowd.each) if viewer.speaks_for_others else crowd.each


def _spent(wait: float) -> GraphQLError:
    seconds = max(1, round(wait + 0.5))
    return GraphQLError(EMPTY, extensions={"code": "RATE_LIMITED", "retryAfterSeconds": seconds})


@contextmanager
def running(ctx: Any, kind: OperationType) -> Generator[None]:
    """Count a query or mutation while it runs, and end a query whose client has gone.

    Raises RateLimited where its payer has too many at once or does not read, Unavailable where
    too many run of all together.
    """
    guards: Guards | None = getattr(ctx, "guards", None)
    if guards is None:
        yield
        return
    crowd = guards.operations
    if ctx.reader is not None and ctx.reader.unread >= UNREAD:
        raise RateLimited("Read the answers that wait for you.", retry_after=SOON)
    seat = crowd.enter(payer(ctx), guards.each(ctx.viewer, crowd))
    if seat is None:
        if crowd.full:
            raise Unavailable("Too many operations run at once: try again.")
        raise RateLimited("Too many of your operations run at once.", retry_after=SOON)
    presence: Presence | None = ctx.presence if kind is OperationType.QUERY else None
    try:
        with _watched(presence):
            yield
    finally:
        seat.leave()


@contextmanager
def _watched(presence: Presence | None) -> Generator[None]:
    task = asyncio.current_task()
    if presence is None or task is None:
        yield
        return
    watching: list[asyncio.Task[None]] = []

    def listen() -> None:
        watching.append(asyncio.create_task(presence.watch(task)))

    timer = asyncio.get_running_loop().call_later(LISTENING, listen)
    try:
        yield
    finally:
        timer.cancel()
        for each in watching:
            each.cancel()
