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

from graph.execution.operation_execution import OperationContext
from graph.http.graphql_request import EVENT_STREAM, RequestRejected, encode_json
from graph.subscriptions.result_stream import StreamResult
from graph.types.scalars import decode_cursor, encode_cursor
from models.events.journal import StreamPositions
from models.sessions.live_sessions import (
    ActivityClock,
    LiveSession,
    LiveSessionRegistry,
    SessionService,
    SessionTermination,
)
from models.users.roles import Role
from resolvers.context import SubscriptionStart
from resolvers.viewer import Viewer

log = logging.getLogger(__name__)

HasCredentialEnded = Callable[[Viewer], Awaitable[bool]]
LoadKickTimes = Callable[[Collection[int]], Awaitable[Mapping[int, datetime]]]
CREDENTIAL_ENDED = "Sign in again: the credential has expired."
DISCONNECTED_BY_ADMINISTRATOR = "Sign in again: the connection was closed."
EVENT_STREAM_HEADERS = {
    "Content-Type": f"{EVENT_STREAM}; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # nginx would buffer small events
}


@dataclass(frozen=True, slots=True)
class DisconnectReason:
    """The reason of a disconnection; `cancels_operations` if running operations are cancelled.

    With `asks_to_reconnect` the client connects again and resumes its subscriptions.
    """

    text: str = CREDENTIAL_ENDED
    cancels_operations: bool = True
    asks_to_reconnect: bool = False

    @property
    def close_reason(self) -> str:
        """The reason text of the WebSocket close frame."""
        return "Forbidden" if self.text == CREDENTIAL_ENDED else self.text

    @property
    def graphql_error(self) -> dict[str, Any]:
        """The GraphQL error. Its code tells clients to sign in again."""
        return {"message": self.text, "extensions": {"code": "UNAUTHENTICATED"}}


CREDENTIAL_ENDED_REASON = DisconnectReason()
FINISH_SECONDS = 60.0  # for running queries and mutations
POLL_SECONDS = 0.05  # between two looks whether they have ended
CHANGE_BATCH_SECONDS = 0.1  # changed credentials of this time are checked together
NEVER = datetime.min.replace(tzinfo=UTC)


class OpenConnection(LiveSession, Protocol):
    """An open WebSocket or event stream."""

    @property
    def viewer(self) -> Viewer: ...

    async def disconnect(self, reason: DisconnectReason) -> None:
        """Send the reason and close the connection, within a few seconds.

        If the reason doesn't cancel operations, queries and mutations have FINISH_SECONDS to end.
        """

    def close_for_shutdown(self) -> None:
        """Close because the server stops, so that the client connects again."""


class ConnectionWatch:
    """The open connections, and the task that disconnects them when their credential has ended."""

    def __init__(
        self,
        current_time: Callable[[], datetime],
        has_credential_ended: HasCredentialEnded | None,
        check_interval: float,
        load_kick_times: LoadKickTimes | None = None,
        live_sessions: LiveSessionRegistry | None = None,
    ) -> None:
        self.current_time = current_time
        self.has_credential_ended = has_credential_ended
        self.load_kick_times = load_kick_times
        self.check_interval = check_interval  # seconds
        self.live_sessions = LiveSessionRegistry() if live_sessions is None else live_sessions
        self.connections: set[OpenConnection] = set()
        self._check_task: asyncio.Task[None] | None = None
        self._background_tasks = set[asyncio.Task[None]]()
        self._ended_viewers = set[Viewer]()  # until they are disconnected
        self._disconnecting = WeakSet[OpenConnection]()
        self._changed_user_ids = set[int | None]()
        self._is_shutting_down = False

    def add(self, connection: OpenConnection) -> None:
        """Add a connection. The periodic check runs while there are connections."""
        self.connections.add(connection)
        self.live_sessions.add(connection)
        if self._is_shutting_down:
            connection.close_for_shutdown()
        if self._check_task is None or self._check_task.done():
            self._check_task = asyncio.create_task(self._disconnect_ended_and_kicked_forever())

    def remove(self, connection: OpenConnection) -> None:
        """Remove a connection."""
        self.connections.discard(connection)
        self.live_sessions.remove(connection)
        if not self.connections and self._check_task:
            self._check_task.cancel()
            self._check_task = None

    def is_known_to_have_ended(self, viewer: Viewer) -> bool:
        """True if the viewer's credential has expired, or is known to have ended."""
        if self._ended_viewers and viewer in self._ended_viewers:
            return True
        return viewer.expires_at is not None and viewer.expires_at <= self.current_time()

    async def disconnect_viewers(self, is_affected: Callable[[Viewer], bool]) -> None:
        """Disconnect all connections with a viewer that meets the condition."""
        await self._disconnect(
            [connection for connection in self.connections if is_affected(connection.viewer)]
        )

    async def _disconnect(
        self,
        connections: Iterable[OpenConnection],
        reason: DisconnectReason = CREDENTIAL_ENDED_REASON,
    ) -> None:
        connections = list(connections)
        self._disconnecting.update(connections)
        await asyncio.gather(*(follower.disconnect(reason) for follower in connections))

    def close_all_for_shutdown(self) -> None:
        """Close all connections because the server stops. Clients connect again later."""
        self._is_shutting_down = True
        for follower in self.connections:
            follower.close_for_shutdown()

    def disconnect_expired_soon(self) -> None:
        """Disconnect the viewers with expired credentials in the background."""
        self._run_in_background(self.disconnect_viewers(self.is_known_to_have_ended))

    def viewers_of_users(self, user_ids: Collection[int]) -> Sequence[Viewer]:
        """Return the viewers of these users, one for each connection."""
        return [
            connection.viewer
            for connection in self.connections
            if viewer_user_id(connection.viewer) in user_ids
        ]

    def disconnect_users(
        self, user_ids: Collection[int], reason: str | None, *, cancels_operations: bool
    ) -> None:
        """Disconnect all connections of these users in the background."""
        termination = SessionTermination(reason, cancels_operations)
        for connection in self.connections:
            if viewer_user_id(connection.viewer) in user_ids:
                self.terminate_soon(connection, termination)

    def terminate_soon(self, connection: OpenConnection, termination: SessionTermination) -> None:
        """Disconnect a connection in the background. Unless forced, its operations can end."""
        reason = termination.reason or DISCONNECTED_BY_ADMINISTRATOR
        self._run_in_background(
            self._disconnect(
                [connection],
                DisconnectReason(
                    reason, termination.is_forced, asks_to_reconnect=termination.asks_to_reconnect
                ),
            )
        )

    async def check_and_disconnect_ended(self, viewers: Collection[Viewer]) -> None:
        """Check these viewers' credentials and disconnect, in the background, those that ended."""
        ended = {viewer for viewer in viewers if await self._has_ended(viewer)}
        if ended:
            self._ended_viewers |= ended
            self._run_in_background(self._disconnect_ended_viewers(ended))

    async def _disconnect_ended_viewers(self, ended_viewers: set[Viewer]) -> None:
        await self.disconnect_viewers(ended_viewers.__contains__)
        self._ended_viewers -= ended_viewers

    def _run_in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)

    def recheck_credentials_soon(self, user_id: int | None) -> None:
        """Check the credentials of a user soon; None checks all, 0 those without a user."""
        if not self.connections:
            return
        if not self._changed_user_ids:
            self._run_in_background(self._wait_and_disconnect_changed_users())
        self._changed_user_ids.add(user_id)

    async def _wait_and_disconnect_changed_users(self) -> None:
        await asyncio.sleep(CHANGE_BATCH_SECONDS)
        changed_user_ids, self._changed_user_ids = self._changed_user_ids, set()
        try:
            await self.disconnect_ended_and_kicked(
                None if None in changed_user_ids else changed_user_ids
            )
        except Exception:  # in a database outage: the next check repeats it
            log.exception("Could not check the revoked credentials")

    async def disconnect_ended_and_kicked(self, user_ids: set[int | None] | None = None) -> None:
        """Disconnect connections with an ended credential or closed by an administrator.

        Checks each viewer once, of these users or of all, and reads all kick times at once.
        """
        viewers = {
            connection.viewer
            for connection in self.connections.difference(self._disconnecting)
            if user_ids is None or user_ids.intersection(_credential_user_ids(connection.viewer))
        }
        ended = {viewer for viewer in viewers if await self._has_ended(viewer)}
        await self.disconnect_viewers(ended.__contains__)
        connected_user_ids = {viewer_user_id(viewer) for viewer in viewers - ended} - {0}
        kick_times = (
            await self.load_kick_times(connected_user_ids)
            if self.load_kick_times and connected_user_ids
            else {}
        )
        kicked = [
            connection
            for connection in self.connections.difference(self._disconnecting)
            if connection.connected_at < kick_times.get(viewer_user_id(connection.viewer), NEVER)
        ]
        for connection in kicked:  # their operations can take long to end
            self.terminate_soon(connection, SessionTermination())

    async def _has_ended(self, viewer: Viewer) -> bool:
        if viewer.role is Role.PUBLIC and not viewer.pending_user_id:
            return False
        return self.is_known_to_have_ended(viewer) or (
            self.has_credential_ended is not None and await self.has_credential_ended(viewer)
        )

    async def _disconnect_ended_and_kicked_forever(self) -> None:
        while True:
            await asyncio.sleep(self.check_interval)
            try:
                await self.disconnect_ended_and_kicked()
            except Exception:  # the database may be down for some time: the next sweep checks again
                log.exception("Check of credentials failed")


def _credential_user_ids(viewer: Viewer) -> set[int]:
    """Return the IDs of the users that this viewer's credential depends on."""
    return {viewer_user_id(viewer), *filter(None, [viewer.actor_id, viewer.key_owner_id])}


def viewer_user_id(viewer: Viewer) -> int:
    """Return the user of a viewer, also if the second factor is missing; 0 without a user."""
    return viewer.user_id or viewer.pending_user_id


class OperationResults(Protocol):
    """The results of one operation."""

    @property
    def is_subscription(self) -> bool:
        """True while a subscription runs, false for a query or mutation."""

    def pull_results(self) -> AsyncGenerator[StreamResult]:
        """Yield the results; the next is read when the reader asks for it."""


class EventStream:
    """One operation, in most cases a subscription, as server-sent events.

    Each result from the journal has the cursor after it as `id`, even if the document doesn't
    select the cursor. A result without data has no `id`, since its events were not delivered. A
    client that connects again sends the last `id` as `Last-Event-ID` and gets the events after it
    (HTML standard, section 9.2). Raises RequestRejected if that is no cursor.
    """

    service = SessionService.EVENT_STREAM

    def __init__(self, context: OperationContext, *, heartbeat: float) -> None:
        self.viewer = context.viewer
        self.session_id = context.live_session_id = context.environment.new_id()
        self.connected_at = context.environment.now()
        self.peer = context.peer
        self._activity_clock = ActivityClock()
        self._watch: ConnectionWatch | None = None
        self.heartbeat = heartbeat  # seconds
        context.subscription_start = SubscriptionStart(
            self._send_start_position, _parse_last_event_id_or_none(context.headers)
        )
        self._disconnect_reason: DisconnectReason | None = None
        self._is_shutting_down = False
        self._queue: asyncio.Queue[str] = asyncio.Queue(1)  # the generator waits for the reader
        self._operation: OperationResults | None = None
        self._results_task: asyncio.Task[None] | None = None

    @property
    def user_id(self) -> int | None:
        """The user of the stream; None without one."""
        return viewer_user_id(self.viewer) or None

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last event."""
        return self._activity_clock.idle_seconds

    @property
    def subscription_count(self) -> int:
        """1 if the operation is a subscription, else 0."""
        return int(self._is_subscription)

    @property
    def _is_subscription(self) -> bool:
        return self._operation is not None and self._operation.is_subscription

    def terminate(self, termination: SessionTermination) -> None:
        """End the stream in the background; unless forced, after its query or mutation."""
        if self._watch is not None:
            self._watch.terminate_soon(self, termination)

    async def disconnect(self, reason: DisconnectReason) -> None:
        """Send the reason and complete the stream.

        If the reason doesn't cancel operations, a query or mutation can end first, which completes
        the stream without the reason. If the client is to connect again, the stream ends without
        reason and without `complete`.
        """
        task = self._results_task
        if task and not reason.cancels_operations:
            for _ in range(int(FINISH_SECONDS / POLL_SECONDS)):
                if self._is_subscription or task.done():
                    break
                await asyncio.sleep(POLL_SECONDS)
        if task and task.done():
            return
        if reason.asks_to_reconnect:
            self.close_for_shutdown()
            return
        self._disconnect_reason = reason
        if task:
            task.cancel()

    def close_for_shutdown(self) -> None:
        """End the stream without `complete`, so that the client connects again."""
        self._is_shutting_down = True
        if self._results_task:
            self._results_task.cancel()

    async def stream_events(
        self, operation: OperationResults, watch: ConnectionWatch
    ) -> AsyncGenerator[str]:
        """Yield the events of all results, and a comment after each silent heartbeat interval."""
        self._operation = operation
        results = operation.pull_results()
        self._results_task = source = asyncio.create_task(self._queue_results(results))
        self._watch = watch
        watch.add(self)
        try:
            async with aclosing(self._queued_events_and_heartbeats(source)) as events:
                async for event in events:
                    yield event
            if not self._is_shutting_down:
                yield self.final_events(self._disconnect_reason)
        finally:
            watch.remove(self)
            source.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({source})

    def event_text_from_result(self, result: StreamResult) -> str:
        """Return the text of the events for a result."""
        positions = result.client_positions
        event_id = "" if positions is None else _id_line(positions)
        if result.is_position_update:
            return f"{event_id}\n"
        return event_id + _format_event("next", result.json_text)

    def final_events(self, reason: DisconnectReason | None) -> str:
        """Return the text of the last events, with the error of a disconnection."""
        reason_event = (
            _format_event("next", _json_text({"errors": [reason.graphql_error]})) if reason else ""
        )
        return reason_event + _format_event("complete", "")

    def _send_start_position(self, positions: StreamPositions) -> None:
        """Send the start position, so that a client without events can resume there."""
        self._queue.put_nowait(f"{_id_line(positions)}\n")

    async def _queue_results(self, results: AsyncGenerator[StreamResult]) -> None:
        """Read all results in one task, since generators can depend on their task."""
        async with aclosing(results):
            async for result in results:
                self._activity_clock.note_activity()
                await self._queue.put(self.event_text_from_result(result))

    async def _queued_events_and_heartbeats(
        self, results_task: asyncio.Task[None]
    ) -> AsyncGenerator[str]:
        """Yield the queued events, and a comment for each heartbeat interval without one."""
        next_event = asyncio.create_task(self._queue.get())
        try:
            while not self._disconnect_reason:
                await asyncio.wait(
                    {next_event, results_task},
                    timeout=self.heartbeat,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if next_event.done():
                    yield next_event.result()
                    next_event = asyncio.create_task(self._queue.get())
                elif not results_task.done():
                    yield ": ping\n\n"
                elif self._queue.empty():
                    break
            await asyncio.wait({results_task})
        finally:
            next_event.cancel()
        if not results_task.cancelled() and (error := results_task.exception()):
            raise error  # not of a resolver: Strawberry turns those into results


def _parse_last_event_id_or_none(headers: Mapping[str, str]) -> StreamPositions | None:
    text = headers.get("last-event-id")
    if not text:
        return None
    try:
        return decode_cursor(text)
    except GraphQLError:
        raise RequestRejected(
            400, "BAD_CURSOR", "Last-Event-ID is not a cursor of the journal."
        ) from None


def _id_line(positions: StreamPositions) -> str:
    return f"id: {encode_cursor(positions)}\n"


def format_event(event_type: str | None, payload: object) -> str:
    """Return the text of one event with JSON data. Without a type it is a "message"."""
    return (
        _format_event(event_type, _json_text(payload))
        if event_type
        else f"data: {_json_text(payload)}\n\n"
    )


def _format_event(event_type: str, data: str) -> str:
    """Return the text of one event, with the line ends that the client urql requires."""
    return f"event: {event_type}\ndata: {data}\n\n"


def _json_text(payload: object) -> str:
    return encode_json(payload).decode()


def format_single_result(payload: object) -> str:
    """Return the text of a complete stream with one result."""
    return _format_event("next", _json_text(payload)) + _format_event("complete", "")
