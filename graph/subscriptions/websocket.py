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

from graph.execution.documents.documents_by_hash import Persisted
from graph.execution.operation_execution import Operation
from graph.http.graphql_request import Question, Rejected, encode, names_document, question
from graph.subscriptions.result_queue import Outbox
from graph.subscriptions.result_stream import Told
from graph.subscriptions.shared_subscriptions import Groups, Seat
from graph.subscriptions.sse import FAREWELL, Farewell, Watch
from models.store.outages import unavailable
from resolvers.context import Viewer

log = logging.getLogger(__name__)

REASON_MAX = 123  # RFC 6455, section 5.5
ID_MAX = 256
SOON = 0.05
PARTING = 5.0  # to a client that may not read
BROKEN = 1011
AGAIN_LATER = 1013  # clients connect again later; after 4429 they would not
UNGREETED = 4401
FORBIDDEN = 4403
TAKEN = 4409

Shape = Mapping[str, tuple[type | None, ...]]  # by member; None: it can be missing
FRAMES: Mapping[str, Shape] = {
    "connection_init": {"payload": (dict, None)},
    "ping": {"payload": (dict, None)},
    "pong": {"payload": (dict, None)},
    "subscribe": {"id": (str,), "payload": (dict,)},
    "complete": {"id": (str,)},
}
SUBSCRIBE: Shape = {
    "query": (str, None),
    "documentId": (str, None),
    "variables": (dict, None),
    "operationName": (str, None),
    "extensions": (dict, None),
}


class Adapter(ASGIWebSocketAdapter):
    """A WebSocket adapter that sends nothing after the close and closes once."""

    unread = 0  # messages that the client has not read

    async def send_json(self, message: Mapping[str, object]) -> None:
        if self._closed():
            raise WebSocketDisconnected
        self.unread += 1
        try:
            await super().send_json(message)
        finally:
            self.unread -= 1
        await asyncio.sleep(0)  # a client that always sends would block other tasks

    async def send_text(self, text: str) -> None:
        """Send a text frame. Raises WebSocketDisconnected if the client is gone."""
        if self._closed():
            raise WebSocketDisconnected
        self.unread += 1
        try:
            await self.ws.send({"type": "websocket.send", "text": text})
        except WebSocketDisconnect as gone:
            raise WebSocketDisconnected from gone
        finally:
            self.unread -= 1

    async def close(self, code: int, reason: str) -> None:
        if self._closed():
            return
        short = reason.encode()[:REASON_MAX].decode(errors="ignore")
        with suppress(WebSocketDisconnect):  # the client closed first
            await super().close(code, short)

    def _closed(self) -> bool:
        states = self.ws.application_state, self.ws.client_state
        return WebSocketState.DISCONNECTED in states


class Crowded(Exception):
    """The signed-in user has too many WebSockets and streams."""


class Desk(Protocol):
    """The parts of the endpoint that a WebSocket uses."""

    watch: Watch
    groups: Groups
    persisted: Persisted


class Running:
    """One operation of a WebSocket, to which its results are sent."""

    __slots__ = ("handler", "id", "seat")

    def __init__(self, handler: "Handler", id_: str, asked: Question) -> None:
        self.handler = handler
        self.id = id_
        self.seat = Seat(handler.desk.groups, asked, handler.context, handler.outbox, self)

    async def send(self, told: Told | None) -> None:
        """Send a result; at the end (None) remove the operation from the WebSocket."""
        if told is None:
            if self.handler.forget(self):
                await self.handler.send_message({"id": self.id, "type": "complete"})
        elif told.refused:
            self.handler.forget(self)
            await self.refuse([error.formatted for error in told.result.errors or ()])
        else:
            head = encode(self.id).decode()
            text = f'{{"id":{head},"type":"next","payload":{told.text}}}'
            await self.handler.adapter.send_text(text)

    async def refuse(self, errors: Sequence[object]) -> None:
        """Send an `error` message, which ends the operation."""
        payload = cast("Any", errors)
        await self.handler.send_message({"id": self.id, "type": "error", "payload": payload})


class Handler(BaseGraphQLTransportWSHandler[Operation, None]):
    """Strawberry's handler with strict checks of frames and shared subscriptions."""

    operations: dict[str, Running]  # type: ignore[assignment]  # ty: ignore[incompatible-attribute-override]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outbox = Outbox[Seat]()
        self.since = self.context.world.now()

    @property
    def viewer(self) -> Viewer:
        """The viewer that signed in on this WebSocket."""
        return self.context.viewer

    @property
    def desk(self) -> Desk:
        """The endpoint of this WebSocket."""
        return cast("Desk", self.view)

    @property
    def adapter(self) -> Adapter:
        """The adapter of this WebSocket."""
        return cast("Adapter", self.websocket)

    async def handle_message(self, message: Message) -> None:
        """Handle one frame. An invalid frame or an error closes the WebSocket."""
        if fault := frame_fault(message):
            await self.handle_invalid_message(fault)
            return
        try:
            await super().handle_message(message)
        except WebSocketDisconnected:
            raise
        except Exception as problem:  # the edge of a listener: it ends one socket, logged once
            log.exception("a socket broke", extra={"request_id": self.context.request_id})
            if failure := unavailable(problem):  # the code tells clients to connect again
                await self.websocket.close(AGAIN_LATER, failure.message)
            else:
                await self.websocket.close(BROKEN, "Internal error")

    async def handle_connection_init(self, message: ConnectionInitMessage) -> None:
        """Sign in, and add the connection to the watch of credentials."""
        if message.get("payload") is None:
            message = {"type": "connection_init", "payload": {}}
        self.context.reader = cast("Adapter", self.websocket)
        try:
            await super().handle_connection_init(message)
        except Crowded:
            await self.websocket.close(AGAIN_LATER, "Too many sockets are open")
        self.connection_init_timeout_task = None
        if self.connection_acknowledged:
            self.desk.watch.add(self)

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
            await self.websocket.close(UNGREETED, "Unauthorized")
        elif self.desk.watch.expired(self.viewer):
            await self.end(FAREWELL)
        elif id_ in self.operations:
            await self.websocket.close(TAKEN, f"Subscriber for {id_} already exists")
        elif self._full():
            said = f"{self.max_subscriptions_per_connection} operations run on this socket already"
            await self._refuse(id_, said, {"code": "RATE_LIMITED", "retryAfterSeconds": 1})
        else:
            await self._begin(message)

    async def _begin(self, message: SubscribeMessage) -> None:
        try:
            asked = question(message["payload"])
            asked = await self.desk.persisted.resolve(asked, self.context)
        except Rejected as refusal:
            await self._refuse(message["id"], refusal.message, refusal.extensions)
            return
        running = self.operations[message["id"]] = Running(self, message["id"], asked)
        running.seat.start()

    async def _refuse(self, id_: str, message: str, extensions: dict[str, object]) -> None:
        error = GraphQLError(message, extensions=extensions)
        await self.send_message({"id": id_, "type": "error", "payload": [error.formatted]})

    def _full(self) -> bool:
        most = self.max_subscriptions_per_connection
        return most is not None and len(self.operations) >= most

    def forget(self, running: Running) -> bool:
        """Free the ID of an operation; return False if another operation has the ID."""
        if self.operations.get(running.id) is not running:
            return False
        del self.operations[running.id]
        return True

    async def cleanup_operation(self, operation_id: str) -> None:
        """End an operation that the client has completed."""
        if running := self.operations.pop(operation_id, None):
            running.seat.leave()

    async def shutdown(self) -> None:
        """End all operations and wait for their tasks."""
        self.desk.watch.remove(self)
        tasks = self._stop()
        await super().shutdown()
        if tasks:
            await asyncio.wait(tasks)

    def _stop(self) -> list[asyncio.Task[None]]:
        """End all operations; return their tasks that are still ending."""
        seats = [running.seat for running in self.operations.values()]
        tasks = [seat.task for seat in seats if seat.task]
        self.operations.clear()
        for seat in seats:
            seat.leave()
        self.outbox.close()
        return tasks

    async def _settled(self) -> None:
        """Wait until only subscriptions run, at most a few seconds."""
        for _ in range(int(PARTING / SOON)):
            if all(one.seat.observed for one in self.operations.values()):
                break
            await asyncio.sleep(SOON)

    def break_off(self) -> None:
        """Do nothing: the HTTP server closes the WebSocket with code 1012 (RFC 6455)."""

    async def end(self, farewell: Farewell) -> None:
        """Send the reason to each operation, then close.

        If the reason doesn't cancel operations, queries and mutations can end first.
        """
        if not farewell.force:
            await self._settled()
        operations = list(self.operations.values())
        self._stop()
        with suppress(TimeoutError, WebSocketDisconnected):
            async with asyncio.timeout(PARTING):
                for running in operations:
                    await running.refuse([farewell.error])
        with suppress(TimeoutError):
            async with asyncio.timeout(PARTING):
                await self.websocket.close(FORBIDDEN, farewell.said)


def frame_fault(frame: object) -> str | None:
    """Return the error text of a malformed frame; None if the frame is well-formed."""
    if not isinstance(frame, dict):
        return "A frame must be a JSON object"
    kind = frame.get("type")
    if not isinstance(kind, str) or kind not in FRAMES:
        return "Unknown message type"
    fault = _fault(frame, FRAMES[kind])
    if fault is None and kind == "subscribe":
        payload = frame["payload"]
        fault = _fault(payload, SUBSCRIBE)
        if fault is None and payload.get("query") is None and not names_document(payload):
            fault = "query"
    if fault is None and not 0 < len(frame.get("id", "-")) <= ID_MAX:
        fault = "id"
    return fault and f"Invalid {kind} message: {fault}"


def _fault(found: Mapping[str, object], shape: Shape) -> str | None:
    for name, kinds in shape.items():
        value = found.get(name)
        if value is None and None in kinds:
            continue
        if not isinstance(value, kinds[0] or object):
            return name
    return None
