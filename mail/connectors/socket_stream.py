"""A connection to a checked address, with TLS and a rate limit.

All methods block, and so belong into a thread; `abort` ends the connection from any thread.
"""

import re
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from threading import Event

from mail.connectors.remote_server import Failure, Server, Stage, said

CONNECTING = 10.0  # seconds for one address
TRIED = 3  # addresses of a host
PIECE = 1 << 16  # bytes of one read
ENDED = "the run was ended"
HUNG_UP = "the server has ended the connection"
NO_REASON = "the server says no, without a reason"
NONSENSE = "an answer that cannot be understood"
OTHERWISE = "the connection failed"
FAILED = (
    (ConnectionRefusedError, "nobody listens there"),
    (ConnectionResetError, HUNG_UP),
    (BrokenPipeError, HUNG_UP),
)


@cache
def _usual_trust() -> ssl.SSLContext:
    return ssl.create_default_context()


@dataclass(slots=True)
class Line:
    """A connection to a remote server, which can be aborted from another thread."""

    server: Server
    addresses: Sequence[str]  # checked addresses: the name is not resolved again
    trust: ssl.SSLContext | None = None  # instead of the system's trust store
    stage: Stage = Stage.CONNECT
    _socket: socket.socket | None = field(default=None, repr=False)
    _cut: Event = field(default_factory=Event, repr=False)
    _owed: float = 0.0  # monotonic time until which the rate limit makes reads wait
    _hidden: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        self.hide(self.server.secret)

    def open(self) -> socket.socket:
        """Connect to the first address that answers. Raises RemoteFailure if none does."""
        last = OSError("no address")
        for address in self.addresses[:TRIED]:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            found = self._socket = socket.socket(family, socket.SOCK_STREAM)
            self.check()
            found.settimeout(min(CONNECTING, self.server.timeout))
            try:
                found.connect((address, self.server.port))
            except OSError as problem:
                found.close()
                self.check()
                last = problem
                continue
            self.check()
            found.settimeout(self.server.timeout)
            return found
        raise self.failure(last)

    def secured(self, plain: socket.socket) -> socket.socket:
        """Wrap the socket in TLS; the certificate must be valid for the host name."""
        self.stage = Stage.TLS
        context = self.trust or _usual_trust()
        found = context.wrap_socket(
            plain, server_hostname=self.server.host, do_handshake_on_connect=False
        )
        self._socket = found  # set before the handshake, so that `abort` can end it
        self.check()
        found.do_handshake()
        return found

    def pace(self, many: int) -> None:
        """Wait as long as the rate limit requires after these bytes."""
        if self.server.rate:
            now = time.monotonic()
            self._owed = max(self._owed, now) + many / self.server.rate
            self._cut.wait(self._owed - now)
            self.check()

    def cut(self) -> None:
        """End the connection, also while another thread waits for it.

        Can be called from any thread.
        """
        self._cut.set()
        if (found := self._socket) is not None:
            with suppress(OSError):  # already closed
                # not the shutdown of TLS, after which encrypted bytes would be read as plain ones
                socket.socket.shutdown(found, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. Only for the thread that uses it."""
        if self._socket is not None:
            self._socket.close()

    def check(self) -> None:
        """Raise RemoteFailure if the connection was aborted."""
        if self._cut.is_set():
            raise Failure(self.stage, ENDED)

    def hide(self, secret: str) -> None:
        """Remove a secret from all texts of the server that are shown later."""
        if secret:
            escaped = secret.replace("\\", "\\\\").replace('"', '\\"')
            packed = b64encode(secret.encode()).decode()
            self._hidden |= {secret, escaped, packed} - {""}

    def told(self, words: object) -> str:
        """A text of the server in printable form, without secrets."""
        text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
        for secret in sorted(self._hidden, key=len, reverse=True):
            spaced = r"\s+".join(map(re.escape, re.split(r"\s+", secret)))
            text = re.sub(spaced, lambda _: "…", text, flags=re.IGNORECASE)
        return said(text)

    def failure(self, problem: BaseException) -> Failure:
        """The RemoteFailure for an exception, with a text for the owner of the connector."""
        if self._cut.is_set():
            return Failure(self.stage, ENDED)
        if isinstance(problem, Failure):
            return problem
        stage = Stage.TLS if isinstance(problem, ssl.SSLError) else self.stage
        if isinstance(problem, ssl.SSLCertVerificationError):
            text = f"the certificate is not good: {self.told(problem.verify_message)}"
        elif isinstance(problem, ssl.SSLError):
            why = self.told(problem.reason or "it has ended").replace("_", " ").lower()
            text = f"TLS failed: {why}"
        elif isinstance(problem, TimeoutError):
            text = f"no answer within {self.server.timeout:g} seconds"
        elif isinstance(problem, OSError):
            text = next((words for kind, words in FAILED if isinstance(problem, kind)), OTHERWISE)
        else:  # some libraries put bytes of the server into the exception
            words = problem.args[0] if problem.args else None
            text = (self.told(words) if isinstance(words, bytes) else "") or NONSENSE
        return Failure(stage, text)


class Reader:
    """A reader of a connection with limits on the bytes in memory."""

    def __init__(self, line: Line, source: socket.socket) -> None:
        self._line, self._source = line, source
        self._kept = bytearray()

    def line(self, longest: int) -> bytes:
        """Read a line with its end. Raises RemoteFailure if it is longer than `max_size`."""
        seen = 0
        while (end := self._kept.find(b"\n", seen)) < 0 and len(self._kept) <= longest:
            seen = len(self._kept)
            self._more()
        if not 0 <= end < longest:
            raise Failure(self._line.stage, f"a line of more than {longest} bytes")
        return self._taken(end + 1)

    def exactly(self, size: int) -> bytes:
        """Read exactly `size` bytes."""
        while len(self._kept) < size:
            self._more()
        return self._taken(size)

    def skip(self, size: int) -> None:
        """Read and discard `size` bytes."""
        while size:
            if not self._kept:
                self._more()
            size -= len(self._taken(min(size, len(self._kept))))

    def waiting(self, seconds: float) -> bool:
        """True if a line, or the beginning of a long one, arrives within the timeout."""
        until = time.monotonic() + seconds
        try:
            while b"\n" not in self._kept and len(self._kept) < PIECE:
                self._source.settimeout(max(until - time.monotonic(), 0.001))
                self._receive()
        except TimeoutError:
            return False
        except OSError as problem:
            raise self._line.failure(problem) from None
        finally:
            self._source.settimeout(self._line.server.timeout)
        return True

    def close(self) -> None:
        """Do nothing, for libraries that close their source: the connection closes its socket."""

    def _more(self) -> None:
        try:
            self._receive()
        except OSError as problem:
            raise self._line.failure(problem) from None

    def _receive(self) -> None:
        piece = self._source.recv(min(PIECE, self._line.server.rate or PIECE))
        self._line.check()
        if not piece:
            raise Failure(self._line.stage, HUNG_UP)
        self._kept += piece
        self._line.pace(len(piece))

    def _taken(self, size: int) -> bytes:
        taken = bytes(memoryview(self._kept)[:size])
        del self._kept[:size]
        return taken
