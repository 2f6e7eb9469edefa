"""Admission of operations: rate budgets, concurrency limits and the right to introspection."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Protocol

from graphql import GraphQLError

from graph.execution.response_size import MAX_RESPONSE_BYTES, ResponseBudget
from graph.http.rate_budgets import (
    ADMIN_ROLES,
    RateBudgets,
    anonymous_payer_key,
    document_reading_points,
    min_capacity_of_viewer,
    payer_key,
)
from models.errors import RateLimited, ServiceUnavailable
from models.runtime.concurrency_limits import ConcurrencyLimiter, ConcurrencySlot
from models.users.roles import Role
from resolvers.context import Context
from resolvers.viewer import Viewer

Introspection = Literal["open", "signed-in", "off"]

MAX_UNREAD_RESPONSES = 8  # of one WebSocket; each response takes memory until it is read
RETRY_AFTER = timedelta(seconds=1)
CHECK_SECONDS = 0.25  # after this time a running query listens for the disconnection of its client
BUDGET_EMPTY = "The budget is spent: wait before the next operation."


class SocketReader(Protocol):
    """A client that reads responses from one WebSocket."""

    unread: int


class ConnectionRegistry(Protocol):
    """The open WebSockets and event streams of this process."""

    def viewers_of_users(self, user_ids: Collection[int]) -> Sequence[Viewer]:
        """Return the viewers of these users, one for each connection."""

    def disconnect_users(
        self, user_ids: Collection[int], reason: str | None, *, cancels_operations: bool
    ) -> None:
        """Disconnect all connections of these users in the background."""


@dataclass(eq=False, slots=True)
class RequestClient:
    """The client of one HTTP request, which can disconnect before the response."""

    receive: Callable[[], Awaitable[Any]]  # of ASGI, after the body
    has_left: bool = False
    task: "asyncio.Task[Any] | None" = None  # runs the operation
    was_checked: bool = False  # the operation already ran at the last check
    listener: "asyncio.Task[None] | None" = None

    async def cancel_on_disconnect(self) -> None:
        """Wait until the client disconnects, then cancel the task."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if self.task:
            self.has_left = True
            self.task.cancel()


class ClientMonitor:
    """A periodic check of running queries, which cancels queries of disconnected clients.

    Most queries end before the first check and cost nothing.
    """

    def __init__(self) -> None:
        self._clients: set[RequestClient] = set()
        self._is_scheduled = False

    def add(self, client: RequestClient) -> None:
        """Add the client of a query that starts in the current task."""
        client.task = asyncio.current_task()
        self._clients.add(client)
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_later(CHECK_SECONDS, self._watch_long_running_clients)

    def remove(self, client: RequestClient) -> None:
        """Remove the client of a query that has ended."""
        client.task = None
        self._clients.discard(client)
        if client.listener:
            client.listener.cancel()

    def _watch_long_running_clients(self) -> None:
        for presence in self._clients:
            if presence.was_checked and presence.listener is None:
                presence.listener = asyncio.create_task(presence.cancel_on_disconnect())
            presence.was_checked = True
        self._is_scheduled = bool(self._clients)
        if self._is_scheduled:
            asyncio.get_running_loop().call_later(CHECK_SECONDS, self._watch_long_running_clients)


@dataclass(frozen=True)
class AdmissionControl:
    """The rate budgets and concurrency limits of one process."""

    budgets: RateBudgets = field(default_factory=RateBudgets)
    operation_limiter: ConcurrencyLimiter = field(
        default_factory=lambda: ConcurrencyLimiter(1000, 100)
    )
    stream_limiter: ConcurrencyLimiter = field(
        default_factory=lambda: ConcurrencyLimiter(100_000, 200)
    )  # and WebSockets
    introspection: Introspection = "open"
    client_monitor: ClientMonitor = field(default_factory=ClientMonitor)
    max_response_bytes: int = MAX_RESPONSE_BYTES

    def charge_operation_and_extend_cost(
        self, ctx: Context, cost: dict[str, int]
    ) -> list[GraphQLError]:
        """Charge the viewer's rate budget for an operation and add its state to `cost`.

        Returns an error if the budget is used up, else an empty list.
        """
        if not (rate := self.budgets.rates.points_per_second_of_viewer(ctx.viewer)):
            return []
        points, min_capacity = max(cost["requested"], 1), min_capacity_of_viewer(ctx.viewer)
        points_left, wait = self.budgets.take_points_if_enough(
            payer_key(ctx), rate, points, min_capacity=min_capacity
        )
        cost["available"], cost["restoreRate"] = int(points_left), rate
        return [_budget_empty_error(wait)] if wait else []

    def charge_document_reading(self, ctx: Context, document_text: str) -> GraphQLError | None:
        """Charge for reading a document that is not cached; return an error if it can't be paid."""
        if not (rate := self.budgets.rates.points_per_second_of_viewer(ctx.viewer)):
            return None
        _, wait = self.budgets.take_points_if_enough(
            payer_key(ctx),
            rate,
            document_reading_points(document_text),
            min_capacity=min_capacity_of_viewer(ctx.viewer),
        )
        return _budget_empty_error(wait) if wait else None

    def charge_anonymous_request(self, client_ip: str | None, points: int) -> None:
        """Charge the rate budget of anonymous clients of a network for a request.

        Raises RateLimited if the budget is used up.
        """
        if not (rate := self.budgets.rates.anonymous):
            return
        payer = anonymous_payer_key(client_ip)
        _, wait = self.budgets.take_points_if_enough(payer, rate, points)
        if wait:
            raise RateLimited(BUDGET_EMPTY, retry_after=timedelta(seconds=round(wait + 0.5)))

    def charge_viewer(self, ctx: Context, points: int) -> None:
        """Charge the viewer's rate budget for a request that is no GraphQL operation.

        Raises RateLimited if the budget is used up.
        """
        if not (rate := self.budgets.rates.points_per_second_of_viewer(ctx.viewer)):
            return
        min_capacity = min_capacity_of_viewer(ctx.viewer)
        _, wait = self.budgets.take_points_if_enough(
            payer_key(ctx), rate, points, min_capacity=min_capacity
        )
        if wait:
            raise RateLimited(BUDGET_EMPTY, retry_after=timedelta(seconds=round(wait + 0.5)))

    def new_response_budget_charging_viewer(self, ctx: Context) -> ResponseBudget:
        """Create the response budget of an operation, which charges the viewer for read bytes."""

        def charge_points(points: int) -> None:
            self.charge_viewer(ctx, min(points, min_capacity_of_viewer(ctx.viewer)))

        return ResponseBudget(self.max_response_bytes, charge_points)

    def introspection_error_code(self, viewer: Viewer | None) -> str | None:
        """Return the error code if the viewer may not use introspection; None if it may."""
        if self.introspection == "open":
            return None
        if self.introspection == "off":
            return "FORBIDDEN"
        if viewer is not None and viewer.role is not Role.PUBLIC:
            return None
        is_pending = viewer is not None and viewer.pending_user_id
        return "SECOND_FACTOR_REQUIRED" if is_pending else "UNAUTHENTICATED"

    def slot_limit_of_viewer(self, viewer: Viewer, limiter: ConcurrencyLimiter) -> int:
        """Return how many slots of a limiter a viewer can hold at the same time.

        An API key with the role ADMIN or ROOT can hold half of all, but at least `limit_per_key`.
        Others can hold `limit_per_key`.
        """
        if viewer.role not in ADMIN_ROLES or viewer.token_id is not None:
            return limiter.limit_per_key
        return max(limiter.limit // 2, limiter.limit_per_key)


def _budget_empty_error(seconds_to_wait: float) -> GraphQLError:
    seconds = max(1, round(seconds_to_wait + 0.5))
    return GraphQLError(
        BUDGET_EMPTY, extensions={"code": "RATE_LIMITED", "retryAfterSeconds": seconds}
    )


class AdmittedOperation:
    """A context manager that holds a concurrency slot while an operation runs.

    It cancels the operation when its client disconnects, unless the operation outlives its client.
    The constructor raises RateLimited if the payer runs too many operations or doesn't read
    responses, ServiceUnavailable if the process runs too many.
    """

    __slots__ = ("_client", "_concurrency_slot", "_guards")

    def __init__(self, ctx: Any, *, outlives_client: bool) -> None:
        self._guards: AdmissionControl | None = getattr(ctx, "guards", None)
        self._concurrency_slot: ConcurrencySlot | None = None
        self._client: RequestClient | None = None
        if self._guards is not None:
            self._client = None if outlives_client else ctx.presence
            self._concurrency_slot = self._acquire_operation_slot_or_refuse(self._guards, ctx)

    @staticmethod
    def _acquire_operation_slot_or_refuse(guards: AdmissionControl, ctx: Any) -> ConcurrencySlot:
        if ctx.reader is not None and ctx.reader.unread >= MAX_UNREAD_RESPONSES:
            raise RateLimited(
                "Too many unread results: read the results that were sent before.",
                retry_after=RETRY_AFTER,
            )
        limiter = guards.operation_limiter
        if slot := limiter.acquire(
            payer_key(ctx), guards.slot_limit_of_viewer(ctx.viewer, limiter)
        ):
            return slot
        if limiter.is_full:
            raise ServiceUnavailable("Too many operations are running: retry later.")
        raise RateLimited(
            "Too many operations of the client are running: retry later.", retry_after=RETRY_AFTER
        )

    def __enter__(self) -> None:
        if self._guards and self._client:
            self._guards.client_monitor.add(self._client)

    def __exit__(self, *_: object) -> None:
        if self._guards and self._client:
            self._guards.client_monitor.remove(self._client)
        if self._concurrency_slot:
            self._concurrency_slot.release()
