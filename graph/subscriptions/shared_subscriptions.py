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
from graph.subscriptions.subscription_context import (
    context_from_position,
    context_without_credential_and_client,
    url_headers,
)
from models.events.journal import StreamPositions
from models.store.outages import StorageUnavailable
from resolvers.context import Context, SubscriptionStart

log = logging.getLogger(__name__)

MEMBERS_PER_STEP = 50  # then other tasks run
MAX_WINDOW_TO_JOIN = 1.0  # seconds: a new subscriber can wait for the end of such a batch window
SLOW_DELIVERY_SECONDS = 1.0  # after a slower delivery the subscriber reads again from its position


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

    async def check_charge_and_try_to_join(self, subscriber: "Subscriber") -> bool:
        """Check and prepare a subscription; return True if the subscriber joined a group."""
        sharing = self._check_charge_and_set_sharing_key(subscriber)
        if sharing is None:
            return False
        after = sharing.after_positions
        if subscriber.last_seen is not None:
            after = subscriber.last_seen
        group = self.groups_by_key.get(subscriber.sharing_key)
        if group and sharing.debounce <= MAX_WINDOW_TO_JOIN and not group.is_interrupted:
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

    def _check_charge_and_set_sharing_key(
        self, subscriber: "Subscriber"
    ) -> SubscriptionSharing | None:
        """Return how a subscription can be shared, and set the subscriber's sharing key.

        Returns None if it can't be shared or will be refused.
        """
        subscription = result_stream.find_subscription_charging_if_uncached(
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
        sharing = result_stream.subscription_sharing_or_none(opened, subscriber.request)
        if sharing:
            subscriber.context = context_without_credential_and_client(subscriber.context)
            subscriber.sharing_key = (
                subscriber.request.document_text,
                subscriber.request.operation_name,
                sharing.variables_json,
                subscriber.context.viewer,
                subscriber.context.viewer.auth_version,
                tuple(url_headers(subscriber.context).items()),
            )
        return sharing


async def wait_before_reading_again(failure: StorageUnavailable) -> None:
    """Wait from a fifth of the time to retry to the whole time, so that retries are spread."""
    pause = failure.retry_after.total_seconds()
    await asyncio.sleep(random.uniform(pause / 5, pause))  # noqa: S311 - no secret


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
        # they read alone until they reach the group's position
        self.catching_up: set[Subscriber] = set()
        self.is_interrupted = False  # by an outage; new subscribers don't wait for its end
        self._task = groups.start_task(self._read_and_distribute_results())

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

    def remove_subscriber_or_end_group(self, subscriber: "Subscriber") -> None:
        """Remove a subscriber. A group without members ends."""
        self.catching_up.discard(subscriber)
        self.members.discard(subscriber)
        if not self.members:
            self._task.cancel()
            self._remove_from_groups()

    async def _check_credentials(self) -> None:
        await self.groups.connection_watch.check_and_disconnect_ended(
            {subscriber.viewer for subscriber in self.members}
        )

    def _remove_from_groups(self) -> None:
        if self.groups.groups_by_key.get(self.key) is self:
            del self.groups.groups_by_key[self.key]

    async def _read_and_distribute_results(self) -> None:
        try:
            while not await self._distribute_until_end_or_outage():
                pass
        except Exception:  # the edge of a task: each member reads alone until it has caught up
            log.exception("Subscription group failed with an internal error")
            for subscriber in list(self.members):
                subscriber.leave_and_read_again()
        finally:
            self._remove_from_groups()

    async def _distribute_until_end_or_outage(self) -> bool:
        """Distribute the results after the group's position; return True at their end.

        In an outage the members stay, and reading starts again from the same position.
        """
        context = replace(
            context_from_position(self.context, self.positions),
            drop_ended_subscribers=self._check_credentials,
        )
        try:
            async with aclosing(
                result_stream.stream_results(self.groups.schema, self.request, context)
            ) as results:
                async for result in results:
                    self.is_interrupted = False
                    await self._distribute_and_admit_caught_up(result)
        except StorageUnavailable as failure:
            self.is_interrupted = True
            await wait_before_reading_again(failure)
            return False
        await self._distribute_and_admit_caught_up(None)
        return True

    async def _distribute_and_admit_caught_up(self, result: StreamResult | None) -> None:
        if result and result.positions is not None:
            self.positions = result.positions
        ended = False
        for index, subscriber in enumerate(list(self.members)):
            if subscriber not in self.members:  # it left in the meantime
                continue
            if self.groups.connection_watch.is_known_to_have_ended(subscriber.viewer):
                ended = True
            else:
                subscriber.result_queue.put_dropping_all_if_full(subscriber, result)
            if index % MEMBERS_PER_STEP == MEMBERS_PER_STEP - 1:
                await asyncio.sleep(0)
        if ended:
            self.groups.connection_watch.disconnect_expired_soon()
        for subscriber in list(self.catching_up):
            if (
                self.members
                and subscriber.delivered_positions == self.positions
                and not subscriber.is_delivering
            ):
                subscriber.stop_reading_alone()
                self.add(subscriber)


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
        self.context = replace(context, resolved_arguments={})
        self.viewer = context.viewer
        self.subscription_start = context.subscription_start
        self.observer: OperationObserver | None = None
        self.result_queue = result_queue
        self.sink = sink
        self.sharing_key: Hashable = None  # of its group; None if it can't be shared
        self.group: SubscriptionGroup | None = None
        self.last_seen = context.last_seen_position  # from Last-Event-ID
        self.delivered_positions: StreamPositions | None = None
        self.is_delivering = False
        self.has_left = False
        self.task: asyncio.Task[None] | None = None

    def start_observing(self, document: PreparedDocument) -> None:
        """Start to measure and log the subscription."""
        self.observer = observed = OperationObserver(self.context, self.request.document_text)
        observed.set_document_and_count_subscription(document)
        observed.cost = document.cost_with_variables(self.request.variables)
        observed.start_stream()

    def report_start_position(self, positions: StreamPositions) -> None:
        """Report the start position, so that a client without results can resume there."""
        if self.subscription_start:
            self.subscription_start.on_start(positions)

    def _note_and_report_start_position(self, positions: StreamPositions) -> None:
        """Remember the start position, so that reading can start again there after an outage."""
        self.delivered_positions = positions
        self.report_start_position(positions)

    def start(self) -> None:
        """Start the subscription in a task."""
        self.task = self.groups.start_task(self._join_or_read_alone())

    def read_again_alone(self) -> None:
        """Read alone from the position after the last delivered result."""
        self._leave_group()
        if not self.has_left:
            self.task = self.groups.start_task(self._read_alone())

    def leave_and_read_again(self) -> None:
        """Leave the group, and read alone after the waiting results have been delivered.

        Reading from an earlier position would deliver the waiting results twice.
        """
        self._leave_group()
        self.result_queue.read_again_when_empty(self)

    def on_results_dropped(self) -> None:
        """Leave the group, since the connection is slower than the group."""
        self._leave_group()

    def stop_reading_alone(self) -> None:
        """Cancel the task in which the subscriber reads alone."""
        if self.task:
            self.task.cancel()
            self.task = None

    def end_subscription(self) -> None:
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
            group.remove_subscriber_or_end_group(self)

    async def deliver(self, result: StreamResult | None) -> None:
        """Send a result to the client, unless the subscription has ended."""
        if self.has_left:
            return
        await self.sink.send(result)
        if result is None:
            self._end_observing()
            return
        if self.observer and not result.is_position_update:
            self.observer.count_event(result.result)
        self.delivered_positions = result.positions
        if result.positions is None:  # the subscription can't resume, or the stream ends
            self.last_seen = None

    async def _join_or_read_alone(self) -> None:
        try:
            group = await self.groups.check_charge_and_try_to_join(self)
        except Exception:  # the edge of a task
            log.exception("Subscription failed to start with an internal error")
            group = False
        if not group:
            await self._read_alone()
        elif not self.has_left:
            self.task = None

    async def _read_alone(self) -> None:
        try:
            while not await self._read_and_return_if_finished():
                pass
        except WebSocketDisconnected:
            self.has_left = True
        except Exception:  # the edge of a task: a bug ends one stream, and is logged once
            log.exception("Subscription stream failed with an internal error")
            self._leave_group()
            with suppress(WebSocketDisconnected):
                await self.sink.send(None)

    async def _check_credential(self) -> None:
        await self.groups.connection_watch.check_and_disconnect_ended({self.viewer})

    async def _read_and_return_if_finished(self) -> bool:
        """Read until the end or until a group is joined; False if reading must start again."""
        positions = self.last_seen if self.delivered_positions is None else self.delivered_positions
        start = SubscriptionStart(self._note_and_report_start_position, positions)
        context = replace(
            self.context, subscription_start=start, drop_ended_subscribers=self._check_credential
        )
        try:
            return await self._read_results_until_finished_or_slow(context)
        except StorageUnavailable as failure:
            if (
                self.delivered_positions is None and self.last_seen is None
            ):  # it has no position to resume from
                await self.deliver(
                    result_stream.outage_result(self.groups.schema, failure, context)
                )
            else:
                await wait_before_reading_again(failure)
                return False
        self._leave_group()
        await self.deliver(None)
        return True

    async def _read_results_until_finished_or_slow(self, context: Context) -> bool:
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
