"""The protocol graphql-transport-ws on one WebSocket."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

from graphql import GraphQLError
from starlette.websockets import WebSocketDisconnect, WebSocketState
from strawberry.asgi import ASGIWebSocketAdapter
from strawberry.http.exceptions import WebSocketDisconnected
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import (
    BaseGraphQLTransportWSHandler,
)
from strawberry.subscriptions.protocols.graphql_transport_ws.types import (
    ConnectionInitMessage,
    Message,
    PingMessage,
    PongMessage,
    SubscribeMessage,
)

from graph.execution.documents.documents_by_hash import DocumentsByHash
from graph.execution.operation_execution import OperationContext
from graph.http.graphql_request import (
    GraphqlRequest,
    RequestRejected,
    encode_json,
    is_document_named,
    parse_request_members,
)
from graph.subscriptions.result_queue import ResultQueue
from graph.subscriptions.result_stream import StreamResult
from graph.subscriptions.shared_subscriptions import Subscriber, SubscriptionGroups
from graph.subscriptions.sse import (
    CREDENTIAL_ENDED_REASON,
    FINISH_SECONDS,
    POLL_SECONDS,
    ConnectionWatch,
    DisconnectReason,
    viewer_user_id,
)
from models.sessions.live_sessions import (
    ActivityClock,
    SessionPeer,
    SessionService,
    SessionTermination,
)
from models.store.outages import storage_failure
from resolvers.viewer import Viewer

log = logging.getLogger(__name__)

MAX_REASON_BYTES = 123  # RFC 6455, section 5.5
MAX_OPERATION_ID_LENGTH = 256
DISCONNECT_SECONDS = 5.0  # to a client that may not read
INTERNAL_ERROR_CLOSE_CODE = 1011
SERVICE_RESTART_CLOSE_CODE = 1012  # clients connect again (IANA WebSocket Close Code registry)
TRY_AGAIN_LATER_CLOSE_CODE = 1013  # clients connect again later; after 4429 they would not
UNAUTHORIZED_CLOSE_CODE = 4401
FORBIDDEN_CLOSE_CODE = 4403
NETWORK_BANNED_REASON = DisconnectReason("Your network is banned.")
SUBSCRIBER_EXISTS_CLOSE_CODE = 4409

MemberTypes = Mapping[str, tuple[type | None, ...]]  # by member; None: it can be missing
FRAME_MEMBERS: Mapping[str, MemberTypes] = {
    "connection_init": {"payload": (dict, None)},
    "ping": {"payload": (dict, None)},
    "pong": {"payload": (dict, None)},
    "subscribe": {"id": (str,), "payload": (dict,)},
    "complete": {"id": (str,)},
}
SUBSCRIBE_MEMBERS: MemberTypes = {
    "query": (str, None),
    "documentId": (str, None),
    "variables": (dict, None),
    "operationName": (str, None),
    "extensions": (dict, None),
}


class WebSocketAdapter(ASGIWebSocketAdapter):
    """A WebSocket adapter that sends nothing after the close and closes once."""

    unread = 0  # messages that the client has not read

    async def send_json(self, message: Mapping[str, object]) -> None:
        if self._is_closed():
            raise WebSocketDisconnected
        self.unread += 1
        try:
            await super().send_json(message)
        finally:
            self.unread -= 1
        await asyncio.sleep(0)  # a client that always sends would block other tasks

    async def send_text(self, text: str) -> None:
        """Send a text frame. Raises WebSocketDisconnected if the client is gone."""
        if self._is_closed():
            raise WebSocketDisconnected
        self.unread += 1
        try:
            await self.ws.send({"type": "websocket.send", "text": text})
        except WebSocketDisconnect as error:
            raise WebSocketDisconnected from error
        finally:
            self.unread -= 1

    async def close(self, code: int, reason: str) -> None:
        if self._is_closed():
            return
        short = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        with suppress(WebSocketDisconnect):  # the client closed first
            await super().close(code, short)

    def _is_closed(self) -> bool:
        states = self.ws.application_state, self.ws.client_state
        return WebSocketState.DISCONNECTED in states


class TooManyConnections(Exception):
    """The signed-in user has too many WebSockets and streams."""


class NewSessionsRefused(Exception):
    """New sessions of the user are refused, while an administrator waits for their end."""


class WebSocketServer(Protocol):
    """The parts of the endpoint that a WebSocket uses."""

    connection_watch: ConnectionWatch
    subscription_groups: SubscriptionGroups
    documents_by_hash: DocumentsByHash


class WebSocketOperation:
    """One operation of a WebSocket, to which its results are sent."""

    __slots__ = ("handler", "operation_id", "subscriber")

    def __init__(
        self, handler: "WebSocketHandler", operation_id: str, request: GraphqlRequest
    ) -> None:
        self.handler = handler
        self.operation_id = operation_id
        self.subscriber = Subscriber(
            handler.server.subscription_groups, request, handler.context, handler.result_queue, self
        )

    async def send(self, result: StreamResult | None) -> None:
        """Send a result; at the end (None) remove the operation from the WebSocket.

        The protocol has no frame for a position without a result, so none is sent.
        """
        if result and result.is_position_update:
            return
        self.handler.note_activity()
        if result is None:
            if self.handler.remove_operation_if_current(self):
                await self.handler.send_message({"id": self.operation_id, "type": "complete"})
        elif result.is_refused:
            self.handler.remove_operation_if_current(self)
            await self.send_errors([error.formatted for error in result.result.errors or ()])
        else:
            head = encode_json(self.operation_id).decode()
            text = f'{{"id":{head},"type":"next","payload":{result.json_text}}}'
            await self.handler.adapter.send_text(text)

    async def send_errors(self, errors: Sequence[object]) -> None:
        """Send an `error` message, which ends the operation."""
        payload = cast("Any", errors)
        await self.handler.send_message(
            {"id": self.operation_id, "type": "error", "payload": payload}
        )


class WebSocketHandler(BaseGraphQLTransportWSHandler[OperationContext, None]):
    """Strawberry's handler with strict checks of frames and shared subscriptions."""

    operations: dict[str, WebSocketOperation]  # type: ignore[assignment]  # ty: ignore[incompatible-attribute-override]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.result_queue = ResultQueue[Subscriber]()
        self.connected_at = self.context.environment.now()
        self.session_id = self.context.live_session_id = self.context.environment.new_id()
        self._activity_clock = ActivityClock()
        self._end_reason: DisconnectReason | None = None

    @property
    def service(self) -> SessionService:
        """The service of all WebSockets."""
        return SessionService.WEBSOCKET

    @property
    def user_id(self) -> int | None:
        """The user who has signed in; None without one."""
        return viewer_user_id(self.viewer) or None

    @property
    def peer(self) -> SessionPeer:
        """The addresses of the connection."""
        return self.context.peer

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last frame of the client or result for it."""
        return self._activity_clock.idle_seconds

    @property
    def subscription_count(self) -> int:
        """Number of open subscriptions."""
        return sum(
            operation.subscriber.observer is not None for operation in self.operations.values()
        )

    def terminate(self, termination: SessionTermination) -> None:
        """Disconnect in the background; unless forced, after the running operations."""
        self.server.connection_watch.terminate_soon(self, termination)

    def note_activity(self) -> None:
        """Remember that the client is active now."""
        self._activity_clock.note_activity()

    @property
    def viewer(self) -> Viewer:
        """The viewer that signed in on this WebSocket."""
        return self.context.viewer

    @property
    def server(self) -> WebSocketServer:
        """The endpoint of this WebSocket."""
        return cast("WebSocketServer", self.view)

    @property
    def adapter(self) -> WebSocketAdapter:
        """The adapter of this WebSocket."""
        return cast("WebSocketAdapter", self.websocket)

    async def handle_message(self, message: Message) -> None:
        """Handle one frame. An invalid frame or an error closes the WebSocket."""
        self._activity_clock.note_activity()
        if fault := frame_error(message):
            await self.handle_invalid_message(fault)
            return
        try:
            await super().handle_message(message)
        except WebSocketDisconnected:
            raise
        except Exception as problem:  # the edge of a listener: it ends one socket, logged once
            log.exception(
                "WebSocket failed with an internal error",
                extra={"request_id": self.context.request_id},
            )
            if failure := storage_failure(problem):  # the code tells clients to connect again
                await self.websocket.close(TRY_AGAIN_LATER_CLOSE_CODE, failure.message)
            else:
                await self.websocket.close(INTERNAL_ERROR_CLOSE_CODE, "Internal error")

    async def handle_connection_init(self, message: ConnectionInitMessage) -> None:
        """Sign in, and add the connection to the watch of credentials."""
        if message.get("payload") is None:
            message = {"type": "connection_init", "payload": {}}
        self.context.reader = cast("WebSocketAdapter", self.websocket)
        try:
            await super().handle_connection_init(message)
        except TooManyConnections:
            await self.websocket.close(TRY_AGAIN_LATER_CLOSE_CODE, "Too many sockets are open")
        except NewSessionsRefused:
            text = "No sessions of this user are accepted now"
            await self.websocket.close(TRY_AGAIN_LATER_CLOSE_CODE, text)
        self.connection_init_timeout_task = None
        if self.connection_acknowledged:
            self.server.connection_watch.add(self)

    async def handle_ping(self, message: PingMessage) -> None:
        """Answer with a pong and the payload of the ping."""
        pong: PongMessage = {"type": "pong"}
        if payload := message.get("payload"):
            pong["payload"] = payload
        await self.send_message(pong)

    async def handle_subscribe(self, message: SubscribeMessage) -> None:
        """Start an operation, or refuse it with an error or a close code."""
        id_ = message["id"]
        if not self.connection_acknowledged:
            await self.websocket.close(UNAUTHORIZED_CLOSE_CODE, "Unauthorized")
        elif self.server.connection_watch.is_known_to_have_ended(self.viewer):
            await self.disconnect(CREDENTIAL_ENDED_REASON)
        elif self.context.environment.refuses_ip(self.context.client_ip):
            await self.disconnect(NETWORK_BANNED_REASON)
        elif self._end_reason:
            if not self._end_reason.asks_to_reconnect:  # else the client repeats it after the close
                error = self._end_reason.graphql_error
                await self._send_error(id_, error["message"], error["extensions"])
        elif id_ in self.operations:
            await self.websocket.close(
                SUBSCRIBER_EXISTS_CLOSE_CODE, f"Subscriber for {id_} already exists"
            )
        elif self._has_max_operations():
            error_text = (
                f"At most {self.max_subscriptions_per_connection} operations are allowed "
                "on one connection."
            )
            await self._send_error(
                id_, error_text, {"code": "RATE_LIMITED", "retryAfterSeconds": 1}
            )
        else:
            await self._start_operation(message)

    async def _start_operation(self, message: SubscribeMessage) -> None:
        try:
            request = parse_request_members(message["payload"])
            request = await self.server.documents_by_hash.resolve_or_register_document(
                request, self.context
            )
        except RequestRejected as refusal:
            await self._send_error(message["id"], refusal.message, refusal.extensions)
            return
        running = self.operations[message["id"]] = WebSocketOperation(self, message["id"], request)
        running.subscriber.start()

    async def _send_error(self, id_: str, message: str, extensions: dict[str, object]) -> None:
        error = GraphQLError(message, extensions=extensions)
        await self.send_message({"id": id_, "type": "error", "payload": [error.formatted]})

    def _has_max_operations(self) -> bool:
        max_operations = self.max_subscriptions_per_connection
        return max_operations is not None and len(self.operations) >= max_operations

    def remove_operation_if_current(self, operation: WebSocketOperation) -> bool:
        """Free the ID of an operation; return False if another operation has the ID."""
        if self.operations.get(operation.operation_id) is not operation:
            return False
        del self.operations[operation.operation_id]
        return True

    async def cleanup_operation(self, operation_id: str) -> None:
        """End an operation that the client has completed."""
        if running := self.operations.pop(operation_id, None):
            running.subscriber.end_subscription()

    async def shutdown(self) -> None:
        """End all operations and wait for their tasks."""
        self.server.connection_watch.remove(self)
        tasks = self._end_operations_and_return_tasks()
        await super().shutdown()
        if tasks:
            await asyncio.wait(tasks)

    def _end_operations_and_return_tasks(self) -> list[asyncio.Task[None]]:
        """End all operations, drop their waiting results, and return the tasks that still run."""
        subscribers = [running.subscriber for running in self.operations.values()]
        tasks = [subscriber.task for subscriber in subscribers if subscriber.task]
        self.operations.clear()
        for subscriber in subscribers:
            subscriber.end_subscription()
        self.result_queue.close()
        return tasks

    async def _wait_for_queries_and_mutations(self) -> None:
        """Wait until only subscriptions run, at most FINISH_SECONDS."""
        for _ in range(int(FINISH_SECONDS / POLL_SECONDS)):
            if all(operation.subscriber.observer for operation in self.operations.values()):
                break
            await asyncio.sleep(POLL_SECONDS)

    def close_for_shutdown(self) -> None:
        """Do nothing: the HTTP server closes the WebSocket with code 1012 (RFC 6455)."""

    async def disconnect(self, reason: DisconnectReason) -> None:
        """Send the reason to each operation, then close.

        If the reason doesn't cancel operations, queries and mutations can end first. If the client
        is to connect again, operations get no error, only the close frame has the reason.
        """
        self._end_reason = reason  # no operation begins
        if not reason.cancels_operations:
            await self._wait_for_queries_and_mutations()
        operations = list(self.operations.values())
        self._end_operations_and_return_tasks()
        if reason.asks_to_reconnect:  # clients repeat operations that got no error
            with suppress(TimeoutError):
                async with asyncio.timeout(DISCONNECT_SECONDS):
                    await self.websocket.close(SERVICE_RESTART_CLOSE_CODE, reason.close_reason)
            return
        with suppress(TimeoutError, WebSocketDisconnected):
            async with asyncio.timeout(DISCONNECT_SECONDS):
                for running in operations:
                    await running.send_errors([reason.graphql_error])
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCONNECT_SECONDS):
                await self.websocket.close(FORBIDDEN_CLOSE_CODE, reason.close_reason)


def frame_error(frame: object) -> str | None:
    """Return the error text of a malformed frame; None if the frame is well-formed."""
    if not isinstance(frame, dict):
        return "A frame must be a JSON object"
    kind = frame.get("type")
    if not isinstance(kind, str) or kind not in FRAME_MEMBERS:
        return "Unknown message type"
    fault = _invalid_member(frame, FRAME_MEMBERS[kind])
    if fault is None and kind == "subscribe":
        payload = frame["payload"]
        fault = _invalid_member(payload, SUBSCRIBE_MEMBERS)
        if fault is None and payload.get("query") is None and not is_document_named(payload):
            fault = "query"
    if fault is None and not 0 < len(frame.get("id", "-")) <= MAX_OPERATION_ID_LENGTH:
        fault = "id"
    return fault and f"Invalid {kind} message: {fault}"


def _invalid_member(members: Mapping[str, object], member_types: MemberTypes) -> str | None:
    for name, kinds in member_types.items():
        value = members.get(name)
        if value is None and None in kinds:
            continue
        if not isinstance(value, kinds[0] or object):
            return name
    return None
