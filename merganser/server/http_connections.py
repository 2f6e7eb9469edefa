"""Connections of HTTP and WebSocket, each with its deadlines: who is slow is dropped.

Uvicorn waits for ever for the head of a request, and for a peer to read. Here one sweep a second
looks at all connections; a request takes no timer of its own.
"""

import ipaddress
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from graph.http.response_headers import NOTHING, POLICY, USUAL
from models.runtime.concurrency_limits import Crowd, Seat

HEAD_MAX = 64 << 10  # bytes of a request line and its headers
HEADERS_MAX = 100
PIPELINED_MAX = 16  # requests that wait for the answer to another one
PARTING = 1.0  # seconds
WRITTEN_LEAST = 16 << 10  # bytes that a peer reads while `write` lasts, where it has more to read
VERSIONS = ("1.1", "1.0")
INVALID_DATA = 1007  # RFC 6455, section 7.4.1
REFUSED = "websocket.http.response.body"

QUIET = logging.getLogger("uvicorn.error.strangers")
QUIET.setLevel(logging.ERROR)  # that a stranger speaks no HTTP is said to the stranger


@dataclass(frozen=True)
class Desk:
    """What all connections of a server share. Times are in seconds."""

    crowd: Crowd
    trusted: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network] = ()  # proxies, for many
    head: float = 10  # for the head of a request, from the open connection or the last answer
    idle: float = 5  # until a new request begins
    write: float = 30  # for a peer to read what it was sent
    here: dict[object, Seat] = field(default_factory=dict)

    def enter(self, connection: object, address: str | None) -> bool:
        """Whether there is room for one more connection, of this address."""
        each = self.crowd.most if self._is_trusted(address) else self.crowd.each
        seat = self.crowd.enter(address, each)
        if seat:
            self.here[connection] = seat
        return seat is not None

    def pass_on(self, one: object, other: object) -> None:
        """The connection is another protocol's from now on."""
        if seat := self.here.pop(one, None):
            self.here[other] = seat

    def leave(self, connection: object) -> None:
        """Make room."""
        if seat := self.here.pop(connection, None):
            seat.leave()

    def _is_trusted(self, address: str | None) -> bool:
        try:
            known = ipaddress.ip_address((address or "").partition("%")[0])
        except ValueError:
            return True  # a socket of this machine
        return any(known in network for network in self.trusted)


def answer(status: str, code: str, message: str, *more: str) -> bytes:
    """A whole answer, from one who hangs up."""
    body = orjson.dumps({"errors": [{"message": message, "extensions": {"code": code}}]})
    lines = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        *(f"{name}: {value}" for name, value in {**USUAL, POLICY: NOTHING}.items()),
        *more,
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


MALFORMED = answer("400 Bad Request", "BAD_USER_INPUT", "This is no HTTP request.")
LATE = answer("408 Request Timeout", "DEADLINE_EXCEEDED", "The request did not come in time.")
OVERSIZE = answer(
    "431 Request Header Fields Too Large", "TOO_LARGE", f"A head has at most {HEAD_MAX} bytes."
)
CROWDED = answer(
    "503 Service Unavailable", "UNAVAILABLE", "Too many connections.", "Retry-After: 5"
)


@dataclass(slots=True)
class Writing:
    """How much a peer has left unread."""

    left: int = 0
    since: float = 0.0

    def stuck(self, transport: Any, now: float, most: float) -> bool:
        """Whether the peer reads nothing, or next to nothing, for too long."""
        left = transport.get_write_buffer_size()
        if not left or not self.left or left > self.left:
            self.left, self.since = left, now
        elif now - self.since >= most:
            if self.left - left < WRITTEN_LEAST:
                return True
            self.left, self.since = left, now
        return False


class Http(HttpToolsProtocol):
    """One connection of HTTP."""

    desk: Desk

    def connection_made(self, transport: Any) -> None:
        """Let somebody in, or say that there is no room."""
        self.logger = QUIET
        super().connection_made(transport)
        self.until = time.monotonic() + self.desk.head  # 0 while a request is answered
        self.head = 0  # bytes of it that have come
        self.over = False
        self.active: Any = None  # the request that is being answered; others wait behind it
        self.writing = Writing()
        if not self.desk.enter(self, self.client[0] if self.client else None):
            self._end(CROWDED)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget them."""
        self.desk.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, but no head without end."""
        if self.over:
            return
        super().data_received(data)
        if self.until and not self.over:
            self.head += len(data)
            if self.head > HEAD_MAX:
                self._end(OVERSIZE)

    def on_headers_complete(self) -> None:
        """Begin with a request; ValueError, which is answered 400, where it has no measure."""
        if len(self.headers) > HEADERS_MAX or len(self.pipeline) > PIPELINED_MAX:
            raise ValueError("too much")
        if self.parser is not None and self.parser.get_http_version() not in VERSIONS:
            raise ValueError("a version of which we know nothing")
        self.until, self.head = 0.0, 0
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.active = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self.until = time.monotonic() + self.desk.idle + self.desk.head

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over."""
        super().handle_websocket_upgrade()
        self.desk.pass_on(self, self.transport.get_protocol())

    def send_400_response(self, msg: str) -> None:
        """Say in JSON that this is no HTTP."""
        self._end(MALFORMED)

    def resume_writing(self) -> None:
        """The peer has read."""
        self.writing.left = 0
        super().resume_writing()

    def sweep(self, now: float) -> None:
        """Drop the peer if it is too slow."""
        late = self.until and now > self.until
        if (late and self.over) or self.writing.stuck(self.transport, now, self.desk.write):
            self.transport.abort()
        elif late and not self.transport.is_closing():
            self._end(LATE if self.head else b"")

    def _end(self, last: bytes) -> None:
        """Say the last word. Who is cut off while sending may not hear it: we wait for a moment."""
        if self.over or self.transport.is_closing():
            return
        self.over, self.until = True, time.monotonic() + PARTING
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        active = self.active
        if active is not None and not active.response_complete:
            active.disconnected = True  # whoever answers it is heard by nobody
            active.message_event.set()
            last = b"" if active.response_started else last
        self.transport.write(last)
        self.transport.write_eof()


class Socket(WebSocketsSansIOProtocol):
    """One WebSocket."""

    desk: Desk

    def connection_made(self, transport: Any) -> None:
        """Take the connection over."""
        super().connection_made(transport)
        self.until = time.monotonic() + self.desk.head
        self.writing = Writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget them."""
        self.desk.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; who does not shake hands is told, in the only protocol there is before."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(MALFORMED)
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """Hand a message to the app; text that is none ends the socket, and no more is said."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.fail(INVALID_DATA)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        """Send, and know that a refusal ends the handshake too: uvicorn would log an error."""
        await super().send(message)
        if message["type"] == REFUSED and not message.get("more_body", False):
            self.handshake_complete = True

    def resume_writing(self) -> None:
        """The peer has read."""
        self.writing.left = 0
        super().resume_writing()

    def sweep(self, now: float) -> None:
        """Drop the peer if it is too slow."""
        late = not self.handshake_initiated and now > self.until
        if late or self.writing.stuck(self.transport, now, self.desk.write):
            self.transport.abort()


def protocols(desk: Desk) -> tuple[type[Http], type[Socket]]:
    """The protocols of one server."""
    return type("Http", (Http,), {"desk": desk}), type("Socket", (Socket,), {"desk": desk})
