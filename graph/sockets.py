"""graphql-transport-ws: the frames of one WebSocket."""

import asyncio
import logging
from collections.abc import Mapping
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

from graph.bodies import Rejected, names_document, question
from graph.persisted import Persisted
from graph.policy import Operation
from graph.streams import ENDED, Watch
from resolvers.context import Viewer

log = logging.getLogger(__name__)

REASON_MAX = 123  # bytes of a close reason: RFC 6455, section 5.5
ID_MAX = 256  # characters of an operation's id
PARTING = 5.0  # seconds to say goodbye to a peer who may not read
FORBIDDEN = 4403
BROKEN = 1011
AGAIN_LATER = 1013  # clients try again, after a while: 4429 would tell them not to

Shape = Mapping[str, tuple[type | None, ...]]  # of the members of an object; None: may be missing
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
    """Sends nothing after the end, and closes once."""

    unread = 0  # messages that wait for the peer to read

    async def send_json(self, message: Mapping[str, object]) -> None:
        if self._closed():
            raise WebSocketDisconnected
        self.unread += 1
        try:
            await super().send_json(message)
        finally:
            self.unread -= 1
        await asyncio.sleep(0)  # a source that is never idle would let nobody else run

    async def close(self, code: int, reason: str) -> None:
        if self._closed():
            return
        short = reason.encode()[:REASON_MAX].decode(errors="ignore")
        with suppress(WebSocketDisconnect):  # the peer was faster
            await super().close(code, short)

    def _closed(self) -> bool:
        states = self.ws.application_state, self.ws.client_state
        return WebSocketState.DISCONNECTED in states


class Crowded(Exception):
    """Whoever signs in has too many sockets and streams already."""


class Desk(Protocol):
    """What a socket needs of the endpoint."""

    watch: Watch
    persisted: Persisted


class Handler(BaseGraphQLTransportWSHandler[Operation, None]):
    """Strawberry's handler, made strict about frames.

    It would close the socket on a syntax error; `Documents` makes that a fault like others.
    """

    @property
    def viewer(self) -> Viewer:
        """Who signed in by this socket."""
        return self.context.viewer

    @property
    def watch(self) -> Watch:
        """Who sends us away when the credential ends."""
        return cast("Desk", self.view).watch

    async def handle_message(self, message: Message) -> None:
        """Answer one frame."""
        if fault := frame_fault(message):
            await self.handle_invalid_message(fault)
            return
        try:
            await super().handle_message(message)
        except WebSocketDisconnected:
            raise
        except Exception:  # the edge of a listener: one bug ends one socket, and is logged once
            log.exception("a socket broke", extra={"request_id": self.context.request_id})
            await self.websocket.close(BROKEN, "Internal error")

    async def handle_connection_init(self, message: ConnectionInitMessage) -> None:
        """Sign in. Nobody is watched before that."""
        if message.get("payload") is None:
            message = {"type": "connection_init", "payload": {}}
        self.context.reader = cast("Adapter", self.websocket)
        try:
            await super().handle_connection_init(message)
        except Crowded:
            await self.websocket.close(AGAIN_LATER, "Too many sockets are open")
        if self.connection_acknowledged:
            self.watch.add(self)

    async def handle_ping(self, message: PingMessage) -> None:
        """Send back what came."""
        pong: PongMessage = {"type": "pong"}
        if payload := message.get("payload"):
            pong["payload"] = payload
        await self.send_message(pong)

    async def handle_subscribe(self, message: SubscribeMessage) -> None:
        """Begin an operation."""
        if self.connection_acknowledged and self.watch.expired(self.viewer):
            await self.end()
        elif self._full() and self.connection_acknowledged and message["id"] not in self.operations:
            await self._refuse(
                message["id"],
                f"{self.max_subscriptions_per_connection} operations run on this socket already",
                {"code": "RATE_LIMITED", "retryAfterSeconds": 1},
            )
        elif self.connection_acknowledged and message["id"] not in self.operations:
            await self._begin(message)
        else:
            await super().handle_subscribe(message)  # closes the socket

    async def _begin(self, message: SubscribeMessage) -> None:
        """Find the document that is named, before Strawberry drops all but its text."""
        try:
            asked = question(message["payload"])
            asked = await cast("Desk", self.view).persisted.resolve(asked, self.context)
        except Rejected as refusal:
            await self._refuse(message["id"], refusal.message, refusal.extensions)
            return
        await super().handle_subscribe(
            {**message, "payload": {**message["payload"], "query": asked.query}}
        )

    async def _refuse(self, id_: str, message: str, extensions: dict[str, object]) -> None:
        error = GraphQLError(message, extensions=extensions)
        await self.send_message({"id": id_, "type": "error", "payload": [error.formatted]})

    def _full(self) -> bool:
        most = self.max_subscriptions_per_connection
        return most is not None and len(self.operations) >= most

    async def handle_task_exception(self, error: Exception) -> None:
        """Log a bug. That the peer has gone in the middle of an event is none."""
        if not isinstance(error, WebSocketDisconnected):
            await super().handle_task_exception(error)

    async def shutdown(self) -> None:
        """End what runs."""
        self.watch.remove(self)
        await super().shutdown()

    async def end(self) -> None:
        """Tell each operation that the credential has ended, then close."""
        operations = list(self.operations.values())
        for operation in operations:
            if operation.task:
                operation.task.cancel()
        with suppress(TimeoutError, WebSocketDisconnected):
            async with asyncio.timeout(PARTING):
                for operation in operations:
                    await operation.send_operation_message(
                        {"id": operation.id, "type": "error", "payload": [cast("Any", ENDED)]}
                    )
        with suppress(TimeoutError):
            async with asyncio.timeout(PARTING):
                await self.websocket.close(FORBIDDEN, "Forbidden")


def frame_fault(frame: object) -> str | None:
    """What is wrong with the shape of a frame, in words; None where nothing is."""
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
