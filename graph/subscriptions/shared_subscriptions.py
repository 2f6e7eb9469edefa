"""Shared subscriptions: one journal reader, one execution and one JSON text for a group.

The subscribers of a group have the same document, operation and variables, and their viewers are
the same user with the same rights. Results only depend on the user and the rights: the context
has no credential, session or address, even while a subscriber reads alone.
"""

import asyncio
import logging
import random
from collections.abc import Coroutine, Hashable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Protocol

from strawberry.http.exceptions import WebSocketDisconnected

from graph.execution.documents.document_cache import PreparedDocument
from graph.execution.operation_execution import OperationContext
from graph.execution.telemetry import OperationObserver
from graph.http.graphql_request import GraphqlRequest
from graph.subscriptions import result_stream
from graph.subscriptions.result_queue import ResultQueue
from graph.subscriptions.result_stream import StreamResult, SubscriptionSchema, SubscriptionSharing
from graph.subscriptions.sse import ConnectionWatch
from models.events.journal import StreamPositions
from models.store.outages import StorageUnavailable
from resolvers.context import Context, SubscriptionStart

log = logging.getLogger(__name__)

MEMBERS_PER_STEP = 50  # then other tasks run
MAX_WINDOW_TO_JOIN = 1.0  # seconds: a new subscriber can wait for the end of such a batch window
SLOW_DELIVERY_SECONDS = 1.0  # after a slower delivery the subscriber reads again from its position
URL_HEADERS = "host", "x-forwarded-proto"  # URLs in results depend on them


class ResultSink(Protocol):
    """The destination of the results of one subscription."""

    async def send(self, result: StreamResult | None) -> None:
        """Send a result, None for the end; returns when the client has accepted it.

        Raises WebSocketDisconnected if the client is gone.
        """


class SubscriptionGroups:
    """The subscription groups of one endpoint, and the tasks that read for them."""

    def __init__(self, schema: SubscriptionSchema, connection_watch: ConnectionWatch) -> None:
        self.schema = schema
        self.connection_watch = connection_watch
        self.groups_by_key: dict[Hashable, SubscriptionGroup] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start_task(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a task that `cancel_tasks` can end."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel_tasks(self) -> None:
        """Cancel all reading tasks and wait until they have ended."""
        if tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def try_to_join_or_create_group(
        self, subscriber: "Subscriber", positions: StreamPositions
    ) -> bool:
        """Join the subscriber's group if the group is at its positions; create a missing group.

        Returns False if the subscriber must read alone until it has caught up.
        """
        key = subscriber.sharing_key
        if key is None:
            return False
        group = self.groups_by_key.get(key)
        if group is None:
            group = self.groups_by_key[key] = SubscriptionGroup(
                self, key, subscriber.request, subscriber.context, positions
            )
        if group.positions != positions:
            group.catching_up.add(subscriber)
            return False
        group.add(subscriber)
        return True

    async def check_and_try_to_join(self, subscriber: "Subscriber") -> bool:
        """Check and prepare a subscription; return True if the subscriber joined a group."""
        sharing = self._check_and_set_sharing_key(subscriber)
        if sharing is None:
            return False
        after = sharing.after_positions
        if subscriber.subscription_start and subscriber.subscription_start.last_seen is not None:
            after = subscriber.last_seen = subscriber.subscription_start.last_seen
        group = self.groups_by_key.get(subscriber.sharing_key)
        if group and sharing.debounce <= MAX_WINDOW_TO_JOIN:
            if after is None:
                subscriber.report_start_position(group.positions)
            return self.try_to_join_or_create_group(
                subscriber, group.positions if after is None else after
            )
        try:
            current_positions = await sharing.load_positions(subscriber.context)
        except Exception:  # noqa: BLE001 - the subscriber's own stream reports the error
            return False
        if after is None:
            subscriber.delivered_positions = current_positions
            subscriber.report_start_position(current_positions)
        if after not in (None, current_positions):
            return False
        group = self.groups_by_key.get(subscriber.sharing_key)
        if (
            group and sharing.debounce > MAX_WINDOW_TO_JOIN
        ):  # the group's window can take long: don't wait for it
            group.catching_up.add(subscriber)
            return False
        return self.try_to_join_or_create_group(subscriber, current_positions)

    def _check_and_set_sharing_key(self, subscriber: "Subscriber") -> SubscriptionSharing | None:
        """Return how a subscription can be shared, and set the subscriber's sharing key.

        Returns None if it can't be shared or will be refused.
        """
        subscription = result_stream.find_subscription_document(
            self.schema, subscriber.request, subscriber.context
        )
        if subscription is None:
            return None
        subscriber.start_observing(subscription)
        opened = result_stream.check_and_charge_subscription(
            self.schema, subscription, subscriber.request, subscriber.context
        )
        if isinstance(opened, list):
            return None
        if isinstance(subscriber.context, OperationContext):
            subscriber.context = replace(subscriber.context, paid=True)
        if not subscriber.context.viewer.user_id:
            return None
        sharing = result_stream.subscription_sharing(opened, subscriber.request)
        if sharing:
            subscriber.context = context_without_viewer_credential(subscriber.context)
            subscriber.sharing_key = (
                subscriber.request.document_text,
                subscriber.request.operation_name,
                sharing.variables_json,
                subscriber.context.viewer,
                subscriber.context.viewer.auth_version,
                tuple(_url_headers(subscriber.context).items()),
            )
        return sharing


def context_without_viewer_credential(context: Context) -> Context:
    """Return the context of a group: without credential, session and address of the viewer.

    URLs that are signed with it end with an event that ends all credentials, as a new password.
    """
    viewer = replace(context.viewer, token_id=None, api_key_id=None, expires_at=None)
    context_copy = replace(
        context,
        viewer=viewer,
        connection_params=None,
        client_ip=None,
        session_id=None,
        subscription_start=None,
    )
    if isinstance(context_copy, OperationContext):
        return replace(
            context_copy,
            headers=_url_headers(context_copy),
            observer=None,
            presence=None,
            connection_slot=None,
            reader=None,
            live=None,
        )
    return context_copy


def _context_from_position(context: Context, positions: StreamPositions) -> Context:
    """Return the same context for a stream that starts after these positions."""
    return replace(context, subscription_start=SubscriptionStart(lambda _position: None, positions))


def _url_headers(context: Context) -> dict[str, str]:
    headers = context.headers if isinstance(context, OperationContext) else {}
    return {name: headers[name] for name in URL_HEADERS if name in headers}


class SubscriptionGroup:
    """The members of one group, their common position and the task that reads for them."""

    def __init__(
        self,
        groups: SubscriptionGroups,
        key: Hashable,
        request: GraphqlRequest,
        context: Context,
        positions: StreamPositions,
    ) -> None:
        self.groups = groups
        self.key = key
        self.request = request
        self.context = context
        self.positions = positions
        self.members: set[Subscriber] = set()
        self.catching_up: set[Subscriber] = (
            set()
        )  # they read alone until they reach the group's position
        guarded = replace(
            _context_from_position(context, positions),
            drop_ended_subscribers=self._check_credentials,
        )
        self._task = groups.start_task(self._read_results(guarded))

    def add(self, subscriber: "Subscriber") -> None:
        """Add a subscriber that has received the same results as the group."""
        self.catching_up.discard(subscriber)
        self.members.add(subscriber)
        subscriber.group, subscriber.delivered_positions = self, self.positions
        # shared objects save memory
        subscriber.sharing_key, subscriber.request, subscriber.context = (
            self.key,
            self.request,
            self.context,
        )

    def remove(self, subscriber: "Subscriber") -> None:
        """Remove a subscriber. A group without members ends."""
        self.catching_up.discard(subscriber)
        self.members.discard(subscriber)
        if not self.members:
            self._task.cancel()
            self._remove_from_groups()

    async def _check_credentials(self) -> None:
        await self.groups.connection_watch.check_and_disconnect_ended(
            {seat.viewer for seat in self.members}
        )

    def _remove_from_groups(self) -> None:
        if self.groups.groups_by_key.get(self.key) is self:
            del self.groups.groups_by_key[self.key]

    async def _read_results(self, context: Context) -> None:
        try:
            async with aclosing(
                result_stream.stream_results(self.groups.schema, self.request, context)
            ) as results:
                async for result in results:
                    await self._distribute(result)
            await self._distribute(None)
        except Exception:  # the edge of a task: each member reads alone
            log.exception("a group broke")
            for seat in list(self.members):
                seat.sharing_key = None
                seat.read_again_alone()
        finally:
            self._remove_from_groups()

    async def _distribute(self, result: StreamResult | None) -> None:
        if result and result.positions is not None:
            self.positions = result.positions
        ended = False
        for index, seat in enumerate(list(self.members)):
            if seat not in self.members:  # it left in the meantime
                continue
            if self.groups.connection_watch.is_known_to_have_ended(seat.viewer):
                ended = True
            else:
                seat.result_queue.put(seat, result)
            if index % MEMBERS_PER_STEP == MEMBERS_PER_STEP - 1:
                await asyncio.sleep(0)
        if ended:
            self.groups.connection_watch.disconnect_expired_soon()
        for seat in list(self.catching_up):
            if (
                self.members
                and seat.delivered_positions == self.positions
                and not seat.is_delivering
            ):
                seat.stop_reading_alone()
                self.add(seat)


class Subscriber:
    """One subscription of one connection. It reads alone while it catches up, then in a group.

    `delivered_positions` are the positions after the last delivered result. Results that were
    dropped later are read again from there.
    """

    __slots__ = (
        "__weakref__",
        "context",
        "delivered_positions",
        "group",
        "groups",
        "has_left",
        "is_delivering",
        "last_seen",
        "observer",
        "request",
        "result_queue",
        "sharing_key",
        "sink",
        "subscription_start",
        "task",
        "viewer",
    )  # fmt: skip

    def __init__(
        self,
        groups: SubscriptionGroups,
        request: GraphqlRequest,
        context: Context,
        result_queue: "ResultQueue[Subscriber]",
        sink: ResultSink,
    ) -> None:
        self.groups = groups
        self.request = request
        self.context = context
        self.viewer = context.viewer
        self.subscription_start = context.subscription_start
        self.observer: OperationObserver | None = None
        self.result_queue = result_queue
        self.sink = sink
        self.sharing_key: Hashable = None  # of its group; None if it can't be shared
        self.group: SubscriptionGroup | None = None
        self.last_seen: StreamPositions | None = None  # from Last-Event-ID
        self.delivered_positions: StreamPositions | None = None
        self.is_delivering = False
        self.has_left = False
        self.task: asyncio.Task[None] | None = None

    def start_observing(self, document: PreparedDocument) -> None:
        """Start to measure and log the subscription."""
        self.observer = observed = OperationObserver(self.context, self.request.document_text)
        observed.set_document(document)
        observed.cost = document.cost_with_variables(self.request.variables)
        observed.start_stream()

    def report_start_position(self, positions: StreamPositions) -> None:
        """Report the start position, so that a client without results can resume there."""
        if self.subscription_start:
            self.subscription_start.on_start(positions)

    def start(self) -> None:
        """Start the subscription in a task."""
        self.task = self.groups.start_task(self._join_or_read_alone())

    def read_again_alone(self) -> None:
        """Read alone from the position after the last delivered result."""
        self._leave_group()
        if not self.has_left:
            self.task = self.groups.start_task(self._read_alone())

    def on_results_dropped(self) -> None:
        """Leave the group, since the connection is slower than the group."""
        self._leave_group()

    def stop_reading_alone(self) -> None:
        """Cancel the task in which the subscriber reads alone."""
        if self.task:
            self.task.cancel()
            self.task = None

    def leave(self) -> None:
        """End the subscription."""
        self.has_left = True
        self.stop_reading_alone()
        self._leave_group()
        self._end_observing()

    def _end_observing(self) -> None:
        observed, self.observer = self.observer, None
        if observed:
            observed.end_stream()

    def _leave_group(self) -> None:
        group, self.group = self.group, None
        if group is None and self.sharing_key is not None:
            group = self.groups.groups_by_key.get(self.sharing_key)
            if group:
                group.catching_up.discard(self)
        elif group:
            group.remove(self)

    async def deliver(self, result: StreamResult | None) -> None:
        """Send a result to the client, unless the subscription has ended."""
        if self.has_left:
            return
        await self.sink.send(result)
        if result is None:
            self._end_observing()
            return
        if self.observer:
            self.observer.count_event(result.result)
        if result.positions is not None:
            self.delivered_positions = result.positions

    async def _join_or_read_alone(self) -> None:
        try:
            found = await self.groups.check_and_try_to_join(self)
        except Exception:  # the edge of a task
            log.exception("a subscription broke at its beginning")
            found = False
        if not found:
            await self._read_alone()
        elif not self.has_left:
            self.task = None

    async def _read_alone(self) -> None:
        try:
            while not await self._read_until_end_or_group():
                pass
        except WebSocketDisconnected:
            self.has_left = True
        except Exception:  # the edge of a task: a bug ends one stream, and is logged once
            log.exception("a stream broke")
            self._leave_group()
            with suppress(Exception):
                await self.sink.send(None)

    async def _check_credential(self) -> None:
        await self.groups.connection_watch.check_and_disconnect_ended({self.viewer})

    async def _read_until_end_or_group(self) -> bool:
        """Read until the end or until a group is joined; False if reading must start again."""
        positions = self.last_seen if self.delivered_positions is None else self.delivered_positions
        context = (
            self.context if positions is None else _context_from_position(self.context, positions)
        )
        context = replace(context, drop_ended_subscribers=self._check_credential)
        try:
            return await self._read_with_context(context)
        except StorageUnavailable as failure:
            if (
                self.delivered_positions is None and self.last_seen is None
            ):  # it has no position to resume from
                await self.deliver(
                    result_stream.outage_result(self.groups.schema, failure, context)
                )
            else:
                pause = failure.retry_after.total_seconds()
                await asyncio.sleep(random.uniform(pause / 5, pause))  # noqa: S311 - spreads load
                return False
        self._leave_group()
        await self.deliver(None)
        return True

    async def _read_with_context(self, context: Context) -> bool:
        """Read results with a context; return True at the end or when a group is joined."""
        clock = asyncio.get_running_loop().time
        async with aclosing(
            result_stream.stream_results(self.groups.schema, self.request, context)
        ) as results:
            async for result in results:
                if self.groups.connection_watch.is_known_to_have_ended(self.viewer):
                    self.groups.connection_watch.disconnect_expired_soon()
                    return True
                started_at, self.is_delivering = clock(), True
                await self.deliver(result)
                await asyncio.sleep(0)  # a source that never waits would block other tasks
                self.is_delivering = False
                if (
                    result.positions is not None
                    and not result.has_more
                    and self.groups.try_to_join_or_create_group(self, result.positions)
                ):
                    self.task = None
                    return True
                if result.positions is not None and clock() - started_at > SLOW_DELIVERY_SECONDS:
                    return False
        self._leave_group()
        await self.deliver(None)
        return True
