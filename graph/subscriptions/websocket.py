"""graphql-transport-ws: the frames of one WebSocket."""

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

REASON_MAX = 123  # bytes of a close reason: RFC 6455, section 5.5
ID_MAX = 256  # characters of an operation's id
SOON = 0.05  # seconds between two looks
PARTING = 5.0  # seconds to say goodbye to a peer who may not read
BROKEN = 1011
AGAIN_LATER = 1013  # clients try again, after a while: 4429 would tell them not to
UNGREETED = 4401
FORBIDDEN = 4403
TAKEN = 4409

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
        await asyncio.sleep(0)  # a peer that is never idle would let nobody else run

    async def send_text(self, text: str) -> None:
        """Send a frame that is JSON already."""
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
    groups: Groups
    persisted: Persisted


class Running:
    """One operation of a socket: where its results go."""

    __slots__ = ("handler", "id", "seat")

    def __init__(self, handler: "Handler", id_: str, asked: Question) -> None:
        self.handler = handler
        self.id = id_
        self.seat = Seat(handler.desk.groups, asked, handler.context, handler.outbox, self)

    async def send(self, told: Told | None) -> None:
        """Send a result; its end takes the operation from the socket."""
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
        """Say why there will be no more results."""
        payload = cast("Any", errors)
        await self.handler.send_message({"id": self.id, "type": "error", "payload": payload})


class Handler(BaseGraphQLTransportWSHandler[Operation, None]):
    """Strawberry's handler, made strict about frames, with operations of our own."""

    operations: dict[str, Running]  # type: ignore[assignment]  # ty: ignore[incompatible-attribute-override]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outbox = Outbox[Seat]()
        self.since = self.context.world.now()

    @property
    def viewer(self) -> Viewer:
        """Who signed in by this socket."""
        return self.context.viewer

    @property
    def desk(self) -> Desk:
        """The endpoint."""
        return cast("Desk", self.view)

    @property
    def adapter(self) -> Adapter:
        """Our end of the socket."""
        return cast("Adapter", self.websocket)

    async def handle_message(self, message: Message) -> None:
        """Answer one frame."""
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
        """Sign in. Nobody is watched before that."""
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
        """Send back what came."""
        pong: PongMessage = {"type": "pong"}
        if payload := message.get("payload"):
            pong["payload"] = payload
        await self.send_message(pong)

    async def handle_subscribe(self, message: SubscribeMessage) -> None:
        """Begin an operation."""
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
        """Make the id of an operation free; says whether it was still that one's."""
        if self.operations.get(running.id) is not running:
            return False
        del self.operations[running.id]
        return True

    async def cleanup_operation(self, operation_id: str) -> None:
        """End what the peer wants to hear no more of."""
        if running := self.operations.pop(operation_id, None):
            running.seat.leave()

    async def shutdown(self) -> None:
        """End what runs."""
        self.desk.watch.remove(self)
        tasks = self._stop()
        await super().shutdown()
        if tasks:
            await asyncio.wait(tasks)

    def _stop(self) -> list[asyncio.Task[None]]:
        """End all operations; what of them is still ending."""
        seats = [running.seat for running in self.operations.values()]
        tasks = [seat.task for seat in seats if seat.task]
        self.operations.clear()
        for seat in seats:
            seat.leave()
        self.outbox.close()
        return tasks

    async def _settled(self) -> None:
        """Wait, for a few seconds at most, until only subscriptions run."""
        for _ in range(int(PARTING / SOON)):
            if all(one.seat.observed for one in self.operations.values()):
                break
            await asyncio.sleep(SOON)

    def break_off(self) -> None:
        """Nothing: with the server the socket is closed, and said to come back (RFC 6455, 1012)."""

    async def end(self, farewell: Farewell) -> None:
        """Tell each operation why, then close. Without force what is being answered is let end."""
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
