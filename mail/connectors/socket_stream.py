"""A connection to a checked address, with TLS and a rate limit.

All methods block, and so belong into a thread; `abort` ends the connection from any thread.
"""

import re
import socket
import ssl
import struct
import time
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from threading import Event

from mail.connectors.remote_server import (
    MAX_TEXT_LENGTH,
    ConnectorStage,
    RemoteFailure,
    RemoteServer,
    printable_line,
)

CONNECT_TIMEOUT = 10.0  # seconds for one address
MAX_ADDRESSES = 3  # addresses of a host
READ_SIZE = 1 << 16  # bytes of one read
MAX_DELAY = 3600.0  # seconds that a server may keep readers waiting, beyond those for its bytes
MIN_BYTES_PER_SECOND = 20  # of a slow server; faster bytes make up for earlier delays
MAX_SEARCHED_LENGTH = 4096  # characters of a text in which secrets are searched
LINGER_ZERO = struct.pack("ii", 1, 0)  # `close` sends RST
ABORTED_TEXT = "The run was cancelled."
CLOSED_TEXT = "The server closed the connection."
NO_REASON_TEXT = "The server rejected the command without a reason."
INVALID_RESPONSE_TEXT = "The response can't be parsed."
FAILED_TEXT = "The connection failed."
TEXT_BY_ERROR = (
    (ConnectionRefusedError, "Connection refused."),
    (ConnectionResetError, CLOSED_TEXT),
    (BrokenPipeError, CLOSED_TEXT),
)


@cache
def _default_tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


@dataclass(slots=True)
class RemoteConnection:
    """A connection to a remote server, which can be aborted from another thread."""

    server: RemoteServer
    addresses: Sequence[str]  # checked addresses: the name is not resolved again
    tls_context: ssl.SSLContext | None = None  # instead of the system's trust store
    stage: ConnectorStage = ConnectorStage.CONNECT
    _socket: socket.socket | None = field(default=None, repr=False)
    _aborted: Event = field(default_factory=Event, repr=False)
    _next_read_at: float = 0.0  # monotonic time until which the rate limit makes reads wait
    _delay: float = 0.0  # seconds
    _hidden_texts: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        self.hide_secret(self.server.secret)

    def connect(self) -> socket.socket:
        """Connect to the first address that answers. Raises RemoteFailure if none does."""
        last = OSError("no address")
        for address in self.addresses[:MAX_ADDRESSES]:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            new_socket = self._socket = socket.socket(family, socket.SOCK_STREAM)
            self.raise_if_aborted()
            new_socket.settimeout(min(CONNECT_TIMEOUT, self.server.timeout))
            try:
                new_socket.connect((address, self.server.port))
            except OSError as problem:
                new_socket.close()
                self.raise_if_aborted()
                last = problem
                continue
            self.raise_if_aborted()
            new_socket.settimeout(self.server.timeout)
            return new_socket
        raise self.failure_from(last)

    def start_tls(self, plain_socket: socket.socket) -> socket.socket:
        """Wrap the socket in TLS; the certificate must be valid for the host name."""
        self.stage = ConnectorStage.TLS
        context = self.tls_context or _default_tls_context()
        tls_socket = context.wrap_socket(
            plain_socket, server_hostname=self.server.host, do_handshake_on_connect=False
        )
        self._socket = tls_socket  # set before the handshake, so that `abort` can end it
        self.raise_if_aborted()
        tls_socket.do_handshake()
        return tls_socket

    def wait_for_rate(self, byte_count: int) -> None:
        """Wait as long as the rate limit requires after these bytes."""
        if self.server.bytes_per_second:
            now = time.monotonic()
            self._next_read_at = (
                max(self._next_read_at, now) + byte_count / self.server.bytes_per_second
            )
            self._aborted.wait(self._next_read_at - now)
            self.raise_if_aborted()

    def count_delay(self, waited_seconds: float, byte_count: int) -> None:
        """Count the time that a read has waited for these bytes.

        Raises RemoteFailure for a server that sends just enough to avoid the timeout, since a run
        would never end.
        """
        self._delay = max(self._delay + waited_seconds - byte_count / MIN_BYTES_PER_SECOND, 0.0)
        if self._delay > MAX_DELAY:
            raise RemoteFailure(self.stage, "The server responds too slowly.")

    def abort(self) -> None:
        """End the connection, also while another thread waits for it.

        Can be called from any thread.
        """
        self._aborted.set()
        if (open_socket := self._socket) is not None:
            with suppress(OSError):  # already closed
                # not the shutdown of TLS, after which encrypted bytes would be read as plain ones
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. Only for the thread that uses it.

        After `abort` the connection is reset: a server whose send window is full would otherwise
        keep it open for up to two minutes.
        """
        if self._socket is not None:
            if self._aborted.is_set():
                with suppress(OSError):  # already closed
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            self._socket.close()

    def raise_if_aborted(self) -> None:
        """Raise RemoteFailure if the connection was aborted."""
        if self._aborted.is_set():
            raise RemoteFailure(self.stage, ABORTED_TEXT)

    def hide_secret(self, secret: str) -> None:
        """Remove a secret from all texts of the server that are shown later."""
        if secret:
            escaped = secret.replace("\\", "\\\\").replace('"', '\\"')
            packed = b64encode(secret.encode()).decode()
            self._hidden_texts |= {secret, escaped, packed} - {""}

    def printable_text_without_secrets(self, raw_text: object) -> str:
        """A text of the server in printable form, without secrets.

        The server can send a secret with other white space. Therefore both are compared in
        printable form.
        """
        text = printable_line(raw_text)
        secrets = sorted({printable_line(secret) for secret in self._hidden_texts} - {""}, key=len)
        longest = len(secrets[-1]) if secrets else 0
        is_cut = len(text) > MAX_SEARCHED_LENGTH + longest
        text = text[: MAX_SEARCHED_LENGTH + longest]
        for secret in reversed(secrets):
            text = re.sub(re.escape(secret), lambda _: "…", text, flags=re.IGNORECASE)
        if is_cut:  # the end can be the first part of a secret
            text = text[: max(0, len(text) - longest)]
        return text[:MAX_TEXT_LENGTH].rstrip()

    def failure_from(self, problem: BaseException) -> RemoteFailure:
        """The RemoteFailure for an exception, with a text for the owner of the connector."""
        if self._aborted.is_set():
            return RemoteFailure(self.stage, ABORTED_TEXT)
        if isinstance(problem, RemoteFailure):
            return problem
        stage = ConnectorStage.TLS if isinstance(problem, ssl.SSLError) else self.stage
        if isinstance(problem, ssl.SSLCertVerificationError):
            reason = self.printable_text_without_secrets(problem.verify_message)
            text = f"The TLS certificate is invalid: {reason}."
        elif isinstance(problem, ssl.SSLError):
            why = (
                self.printable_text_without_secrets(problem.reason or "connection closed")
                .replace("_", " ")
                .lower()
            )
            text = f"The TLS handshake failed: {why}."
        elif isinstance(problem, TimeoutError):
            text = f"The server did not respond within {self.server.timeout:g} seconds."
        elif isinstance(problem, OSError):
            text = next(
                (words for kind, words in TEXT_BY_ERROR if isinstance(problem, kind)), FAILED_TEXT
            )
        else:  # some libraries put bytes of the server into the exception
            words = problem.args[0] if problem.args else None
            text = (
                self.printable_text_without_secrets(words) if isinstance(words, bytes) else ""
            ) or INVALID_RESPONSE_TEXT
        return RemoteFailure(stage, text)


class BoundedReader:
    """A reader of a connection with limits on the bytes in memory."""

    def __init__(self, connection: RemoteConnection, source: socket.socket) -> None:
        self._connection, self._source = connection, source
        self._buffer = bytearray()

    def read_line(self, max_size: int) -> bytes:
        """Read a line with its end. Raises RemoteFailure if it is longer than `max_size`."""
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0 and len(self._buffer) <= max_size:
            seen = len(self._buffer)
            self._receive_more()
        if not 0 <= end < max_size:
            raise RemoteFailure(
                self._connection.stage, f"A line of the response has more than {max_size} bytes."
            )
        return self._take_from_buffer(end + 1)

    def read_exactly(self, size: int) -> bytes:
        """Read exactly `size` bytes."""
        while len(self._buffer) < size:
            self._receive_more()
        return self._take_from_buffer(size)

    def skip(self, size: int) -> None:
        """Read and discard `size` bytes."""
        while size:
            if not self._buffer:
                self._receive_more()
            size -= len(self._take_from_buffer(min(size, len(self._buffer))))

    def wait_for_line_within(self, timeout: float) -> bool:
        """True if a line, or the beginning of a long one, arrives within the timeout."""
        until = time.monotonic() + timeout
        try:
            while b"\n" not in self._buffer and len(self._buffer) < READ_SIZE:
                self._source.settimeout(max(until - time.monotonic(), 0.001))
                self._connection.wait_for_rate(len(self._receive()))
        except TimeoutError:
            return False
        except OSError as problem:
            raise self._connection.failure_from(problem) from None
        finally:
            self._source.settimeout(self._connection.server.timeout)
        return True

    def close(self) -> None:
        """Do nothing, for libraries that close their source: the connection closes its socket."""

    def _receive_more(self) -> None:
        began_at = time.monotonic()
        try:
            chunk = self._receive()
        except OSError as problem:
            raise self._connection.failure_from(problem) from None
        self._connection.count_delay(time.monotonic() - began_at, len(chunk))
        self._connection.wait_for_rate(len(chunk))

    def _receive(self) -> bytes:
        """Receive bytes into the buffer, and return them.

        Blocks the thread. The caller must limit the size of the buffer, and keep the rate limit.
        Raises RemoteFailure if the connection ends or is aborted, and the OSError of the socket.
        """
        chunk = self._source.recv(
            min(READ_SIZE, self._connection.server.bytes_per_second or READ_SIZE)
        )
        self._connection.raise_if_aborted()
        if not chunk:
            raise RemoteFailure(self._connection.stage, CLOSED_TEXT)
        self._buffer += chunk
        return chunk

    def _take_from_buffer(self, size: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data
