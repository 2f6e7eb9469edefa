"""HTTP and WebSocket connections with deadlines. Slow clients are disconnected.

Uvicorn sets no time limit for the head of a request or for a client to read its response. Here
one pass per second checks all connections, so that a request needs no timer.
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

HEAD_MAX = 64 << 10  # bytes of the request line and the header fields
HEADERS_MAX = 100
PIPELINED_MAX = 16  # requests that wait for the response to another one
PARTING = 1.0  # seconds
WRITTEN_LEAST = 16 << 10  # bytes that a client must read per write timeout, if more are waiting
VERSIONS = ("1.1", "1.0")
INVALID_DATA = 1007  # RFC 6455, section 7.4.1
REFUSED = "websocket.http.response.body"

QUIET = logging.getLogger("uvicorn.error.strangers")
QUIET.setLevel(logging.ERROR)  # a malformed request is answered, not logged


@dataclass(frozen=True)
class Desk:
    """The open connections of a server, with their limits. Timeouts are in seconds."""

    crowd: Crowd
    trusted: Sequence[
        ipaddress.IPv4Network | ipaddress.IPv6Network
    ] = ()  # have no limit per address
    head: float = 10  # for the head of a request, after the connect or the previous response
    idle: float = 5  # until the next request begins
    write: float = 30  # for a client to read what was sent
    here: dict[object, Seat] = field(default_factory=dict)

    def enter(self, connection: object, address: str | None) -> bool:
        """Count a new connection from this IP address. Returns False if a limit is reached."""
        each = self.crowd.most if self._is_trusted(address) else self.crowd.each
        slot = self.crowd.enter(address, each)
        if slot:
            self.here[connection] = slot
        return slot is not None

    def pass_on(self, one: object, other: object) -> None:
        """Count the connection under another protocol object, after an upgrade to WebSocket."""
        if slot := self.here.pop(one, None):
            self.here[other] = slot

    def leave(self, connection: object) -> None:
        """Stop counting a closed connection."""
        if slot := self.here.pop(connection, None):
            slot.leave()

    def _is_trusted(self, address: str | None) -> bool:
        try:
            address_object = ipaddress.ip_address((address or "").partition("%")[0])
        except ValueError:
            return True  # a Unix socket has no IP address
        return any(address_object in network for network in self.trusted)


def answer(status: str, code: str, message: str, *more: str) -> bytes:
    """The bytes of an HTTP response with a GraphQL error, after which the connection closes.

    `status` is the code with its reason, as in "400 Bad Request".
    """
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
    """How much of the sent data a client has not read yet."""

    left: int = 0
    since: float = 0.0

    def stuck(self, transport: Any, now: float, most: float) -> bool:
        """True if the client read less than MIN_BYTES_READ of waiting data within the timeout.

        Call it about once per second with the time of the monotonic clock.
        """
        left = transport.get_write_buffer_size()
        if not left or not self.left or left > self.left:
            self.left, self.since = left, now
        elif now - self.since >= most:
            if self.left - left < WRITTEN_LEAST:
                return True
            self.left, self.since = left, now
        return False


class Http(HttpToolsProtocol):
    """One HTTP connection with its deadlines and limits."""

    tracker: Desk

    def connection_made(self, transport: Any) -> None:
        """Accept the connection, or respond with 503 if there are too many."""
        self.logger = QUIET
        super().connection_made(transport)
        self.until = time.monotonic() + self.tracker.head  # 0 while a request is answered
        self.head = 0  # bytes received
        self.over = False
        self.active: Any = None  # pipelined requests wait for its response
        self.writing = Writing()
        if not self.tracker.enter(self, self.client[0] if self.client else None):
            self._end(CROWDED)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection."""
        self.tracker.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes. Responds with 431 if the head of a request is too large."""
        if self.over:
            return
        super().data_received(data)
        if self.until and not self.over:
            self.head += len(data)
            if self.head > HEAD_MAX:
                self._end(OVERSIZE)

    def on_headers_complete(self) -> None:
        """Begin with a request. Raises ValueError, which becomes status 400, beyond a limit."""
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
        """Set the deadline for the next request."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self.until = time.monotonic() + self.tracker.idle + self.tracker.head

    def handle_websocket_upgrade(self) -> None:
        """Pass the connection to the WebSocket protocol."""
        super().handle_websocket_upgrade()
        self.tracker.pass_on(self, self.transport.get_protocol())

    def send_400_response(self, msg: str) -> None:
        """Respond with status 400 and a GraphQL error, in place of uvicorn's text."""
        self._end(MALFORMED)

    def resume_writing(self) -> None:
        """Note that the client has read what was sent."""
        self.writing.left = 0
        super().resume_writing()

    def sweep(self, now: float) -> None:
        """Close the connection if a deadline of the monotonic clock has passed."""
        is_late = self.until and now > self.until
        if (is_late and self.over) or self.writing.stuck(self.transport, now, self.tracker.write):
            self.transport.abort()
        elif is_late and not self.transport.is_closing():
            self._end(LATE if self.head else b"")

    def _end(self, last: bytes) -> None:
        """Send a last response and close.

        A client that is still sending may lose the response if the connection is reset, so it
        gets CLOSE_TIMEOUT to read it.
        """
        if self.over or self.transport.is_closing():
            return
        self.over, self.until = True, time.monotonic() + PARTING
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        active = self.active
        if active is not None and not active.response_complete:
            active.disconnected = True  # the app's response goes nowhere
            active.message_event.set()
            last = b"" if active.response_started else last
        self.transport.write(last)
        self.transport.write_eof()


class Socket(WebSocketsSansIOProtocol):
    """One WebSocket connection with its deadlines."""

    tracker: Desk

    def connection_made(self, transport: Any) -> None:
        """Take the connection over from the HTTP protocol."""
        super().connection_made(transport)
        self.until = time.monotonic() + self.tracker.head
        self.writing = Writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection."""
        self.tracker.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes. A malformed handshake gets an HTTP response with status 400."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(MALFORMED)
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """Pass a message to the app. A text message that is not UTF-8 closes with code 1007."""
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
        """Send an event of the app. After a denial response the handshake counts as complete.

        Otherwise uvicorn would log an error.
        """
        await super().send(message)
        if message["type"] == REFUSED and not message.get("more_body", False):
            self.handshake_complete = True

    def resume_writing(self) -> None:
        """Note that the client has read what was sent."""
        self.writing.left = 0
        super().resume_writing()

    def sweep(self, now: float) -> None:
        """Close the connection if a deadline of the monotonic clock has passed."""
        is_late = not self.handshake_initiated and now > self.until
        if is_late or self.writing.stuck(self.transport, now, self.tracker.write):
            self.transport.abort()


def protocols(tracker: Desk) -> tuple[type[Http], type[Socket]]:
    """Subclasses of both protocols that use this tracker, since uvicorn creates their objects."""
    return type("Http", (Http,), {"tracker": tracker}), type(
        "Socket", (Socket,), {"tracker": tracker}
    )
