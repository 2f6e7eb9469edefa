"""HTTP and WebSocket connections with deadlines. Slow clients are disconnected.

Uvicorn sets no time limit for the head of a request or for a client to read its response. Here
one pass per second checks all connections, so that a request needs no timer.
"""

import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from graph.http.response_headers import CONTENT_SECURITY_POLICY, DEFAULT_HEADERS, DENY_ALL_POLICY
from mail.network.connection_gate import ConnectionGate, IsRefused
from models.runtime.concurrency_limits import ConcurrencyLimiter, ConcurrencySlot

MAX_HEAD_SIZE = 64 << 10  # bytes of the request line and the header fields
MAX_HEADER_FIELDS = 100
MAX_PIPELINED_REQUESTS = 16  # requests that wait for the response to another one
CLOSE_TIMEOUT = 1.0  # seconds
MIN_BYTES_READ = 16 << 10  # bytes that a client must read per write timeout, if more are waiting
HTTP_VERSIONS = ("1.1", "1.0")
WEBSOCKET_INVALID_DATA = 1007  # RFC 6455, section 7.4.1
WEBSOCKET_DENIAL_EVENT = "websocket.http.response.body"

PROTOCOL_ERROR_LOG = logging.getLogger("uvicorn.error.strangers")
PROTOCOL_ERROR_LOG.setLevel(logging.ERROR)  # a malformed request is answered, not logged


@dataclass(frozen=True)
class ConnectionTracker:
    """The open connections of a server, with their limits. Timeouts are in seconds."""

    limiter: ConcurrencyLimiter
    trusted_proxies: Sequence[
        ipaddress.IPv4Network | ipaddress.IPv6Network
    ] = ()  # have no limit per address
    head_timeout: float = (
        10  # for the head of a request, after the connect or the previous response
    )
    keep_alive_timeout: float = 5  # until the next request begins
    write_timeout: float = 30  # for a client to read what was sent
    slots_by_connection: dict[object, ConcurrencySlot] = field(default_factory=dict)

    def register_unless_limit_reached(self, connection: object, address: str | None) -> bool:
        """Count a new connection from this IP address. Returns False if a limit is reached."""
        slot_limit = (
            self.limiter.limit
            if self._is_trusted_proxy_or_unix_socket(address)
            else self.limiter.limit_per_key
        )
        slot = self.limiter.acquire(address, slot_limit)
        if slot:
            self.slots_by_connection[connection] = slot
        return slot is not None

    def transfer(self, old_connection: object, new_connection: object) -> None:
        """Count the connection under another protocol object, after an upgrade to WebSocket."""
        if slot := self.slots_by_connection.pop(old_connection, None):
            self.slots_by_connection[new_connection] = slot

    def unregister(self, connection: object) -> None:
        """Stop counting a closed connection."""
        if slot := self.slots_by_connection.pop(connection, None):
            slot.release()

    def _is_trusted_proxy_or_unix_socket(self, address: str | None) -> bool:
        try:
            address_object = ipaddress.ip_address((address or "").partition("%")[0])
        except ValueError:
            return True  # a Unix socket has no IP address
        return any(address_object in network for network in self.trusted_proxies)


def error_response(status: str, error_code: str, message: str, *extra_header_lines: str) -> bytes:
    """The bytes of an HTTP response with a GraphQL error, after which the connection closes.

    `status` is the code with its reason, as in "400 Bad Request".
    """
    body = orjson.dumps({"errors": [{"message": message, "extensions": {"code": error_code}}]})
    lines = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        *(
            f"{name}: {value}"
            for name, value in {**DEFAULT_HEADERS, CONTENT_SECURITY_POLICY: DENY_ALL_POLICY}.items()
        ),
        *extra_header_lines,
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


RESPONSE_MALFORMED = error_response("400 Bad Request", "BAD_USER_INPUT", "Not an HTTP request.")
RESPONSE_TIMEOUT = error_response(
    "408 Request Timeout", "DEADLINE_EXCEEDED", "The request was not received in time."
)
RESPONSE_HEAD_TOO_LARGE = error_response(
    "431 Request Header Fields Too Large",
    "TOO_LARGE",
    f"A request header has at most {MAX_HEAD_SIZE} bytes.",
)
RESPONSE_TOO_MANY_CONNECTIONS = error_response(
    "503 Service Unavailable", "UNAVAILABLE", "Too many connections.", "Retry-After: 5"
)


@dataclass(slots=True)
class SendProgress:
    """How much of the sent data a client has not read yet."""

    unread_bytes: int = 0
    since_time: float = 0.0

    def record_progress_and_return_if_stuck(
        self, transport: Any, now: float, timeout: float
    ) -> bool:
        """True if the client read less than MIN_BYTES_READ of waiting data within the timeout.

        Call it about once per second with the time of the monotonic clock.
        """
        unsent_bytes = transport.get_write_buffer_size()
        if not unsent_bytes or not self.unread_bytes or unsent_bytes > self.unread_bytes:
            self.unread_bytes, self.since_time = unsent_bytes, now
        elif now - self.since_time >= timeout:
            if self.unread_bytes - unsent_bytes < MIN_BYTES_READ:
                return True
            self.unread_bytes, self.since_time = unsent_bytes, now
        return False


class HttpConnection(HttpToolsProtocol):
    """One HTTP connection with its deadlines and limits."""

    tracker: ConnectionTracker

    def connection_made(self, transport: Any) -> None:
        """Accept the connection, or respond with 503 if there are too many."""
        self.logger = PROTOCOL_ERROR_LOG
        super().connection_made(transport)
        # 0 while a request is answered
        self.deadline = time.monotonic() + self.tracker.head_timeout
        self.head_size = 0  # bytes received
        self.is_ending = False
        self.active_request: Any = None  # pipelined requests wait for its response
        self.send_progress = SendProgress()
        if not self.tracker.register_unless_limit_reached(
            self, self.client[0] if self.client else None
        ):
            self._abandon_requests_and_send_last_response(RESPONSE_TOO_MANY_CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection."""
        self.tracker.unregister(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes. Responds with 431 if the head of a request is too large."""
        if self.is_ending:
            return
        super().data_received(data)
        if self.deadline and not self.is_ending:
            self.head_size += len(data)
            if self.head_size > MAX_HEAD_SIZE:
                self._abandon_requests_and_send_last_response(RESPONSE_HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Begin with a request. Raises ValueError, which becomes status 400, beyond a limit."""
        if len(self.headers) > MAX_HEADER_FIELDS or len(self.pipeline) > MAX_PIPELINED_REQUESTS:
            raise ValueError("too many header fields or requests")
        if self.parser is not None and self.parser.get_http_version() not in HTTP_VERSIONS:
            raise ValueError("unsupported HTTP version")
        self.deadline, self.head_size = 0.0, 0
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.active_request = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Set the deadline for the next request."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self.deadline = (
                time.monotonic() + self.tracker.keep_alive_timeout + self.tracker.head_timeout
            )

    def handle_websocket_upgrade(self) -> None:
        """Pass the connection to the WebSocket protocol."""
        super().handle_websocket_upgrade()
        self.tracker.transfer(self, self.transport.get_protocol())

    def send_400_response(self, msg: str) -> None:
        """Respond with status 400 and a GraphQL error, in place of uvicorn's text."""
        self._abandon_requests_and_send_last_response(RESPONSE_MALFORMED)

    def resume_writing(self) -> None:
        """Record that the client has read all bytes that were sent."""
        self.send_progress.unread_bytes = 0
        super().resume_writing()

    def close_if_too_slow(self, now: float) -> None:
        """Close the connection if a deadline of the monotonic clock has passed."""
        is_late = self.deadline and now > self.deadline
        if (is_late and self.is_ending) or self.send_progress.record_progress_and_return_if_stuck(
            self.transport, now, self.tracker.write_timeout
        ):
            self.transport.abort()
        elif is_late and not self.transport.is_closing():
            self._abandon_requests_and_send_last_response(
                RESPONSE_TIMEOUT if self.head_size else b""
            )

    def _abandon_requests_and_send_last_response(self, response: bytes) -> None:
        """Abandon the requests of the connection, send a last response, and close our side.

        A client that is still sending may lose the response if the connection is reset, so it
        gets CLOSE_TIMEOUT to read it. Nothing is sent if a response has already begun.
        """
        if self.is_ending or self.transport.is_closing():
            return
        self.is_ending, self.deadline = True, time.monotonic() + CLOSE_TIMEOUT
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        active = self.active_request
        if active is not None and not active.response_complete:
            active.disconnected = True  # the app's response goes nowhere
            active.message_event.set()
            response = b"" if active.response_started else response
        self.transport.write(response)
        self.transport.write_eof()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """One WebSocket connection with its deadlines."""

    tracker: ConnectionTracker

    def connection_made(self, transport: Any) -> None:
        """Take the connection over from the HTTP protocol."""
        super().connection_made(transport)
        self.deadline = time.monotonic() + self.tracker.head_timeout
        self.send_progress = SendProgress()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection."""
        self.tracker.unregister(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes. A malformed handshake gets an HTTP response with status 400."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(RESPONSE_MALFORMED)
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """Pass a message to the app. A text message that is not UTF-8 closes with code 1007."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.fail(WEBSOCKET_INVALID_DATA)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        """Send an event of the app. After a denial response the handshake counts as complete.

        Otherwise uvicorn would log an error.
        """
        await super().send(message)
        if message["type"] == WEBSOCKET_DENIAL_EVENT and not message.get("more_body", False):
            self.handshake_complete = True

    def resume_writing(self) -> None:
        """Record that the client has read all bytes that were sent."""
        self.send_progress.unread_bytes = 0
        super().resume_writing()

    def close_if_too_slow(self, now: float) -> None:
        """Close the connection if a deadline of the monotonic clock has passed."""
        is_late = not self.handshake_initiated and now > self.deadline
        if is_late or self.send_progress.record_progress_and_return_if_stuck(
            self.transport, now, self.tracker.write_timeout
        ):
            self.transport.abort()


def bind_protocol_classes(
    tracker: ConnectionTracker,
) -> tuple[type[HttpConnection], type[WebSocketConnection]]:
    """Subclasses of both protocols that use this tracker, since uvicorn creates their objects."""
    return type("HttpConnection", (HttpConnection,), {"tracker": tracker}), type(
        "Socket", (WebSocketConnection,), {"tracker": tracker}
    )


def gated_protocol_factory(
    protocol_class: type[HttpConnection], is_refused: IsRefused
) -> Callable[..., ConnectionGate]:
    """Return the function that uvicorn calls for each connection instead of the class.

    Connections of refused addresses are closed before an object of the class is created.
    """

    def create_gate(*arguments: Any, **options: Any) -> ConnectionGate:
        return ConnectionGate(is_refused, partial(protocol_class, *arguments, **options))

    return create_gate
