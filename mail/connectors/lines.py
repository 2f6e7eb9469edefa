"""A connection to an address that was checked, with TLS, at the pace that is allowed.

All of this waits, and so belongs to a thread; `cut` ends it from outside.
"""

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from mail.connectors.servers import Failure, Server, Stage, said

CONNECTING = 10.0  # seconds for one address
TRIED = 3  # addresses of a host


@cache
def _usual_trust() -> ssl.SSLContext:
    return ssl.create_default_context()


@dataclass(slots=True)
class Line:
    """The way to a server."""

    server: Server
    addresses: Sequence[str]  # that may be connected to: the name is not looked up again
    trust: ssl.SSLContext | None = None  # instead of the system's
    stage: Stage = Stage.CONNECT
    _socket: socket.socket | None = field(default=None, repr=False)
    _cut: bool = False
    _owed: float = 0.0  # when what was read so far may have been read

    def open(self) -> socket.socket:
        """Connect to the first address that answers; Failure where none does."""
        last: OSError | None = None
        for address in self.addresses[:TRIED]:
            try:
                found = socket.create_connection(
                    (address, self.server.port), min(CONNECTING, self.server.timeout)
                )
            except OSError as problem:
                last = problem
                continue
            self._socket = found
            self._check()
            found.settimeout(self.server.timeout)
            return found
        raise self.failure(last or OSError("no address"))

    def secured(self, plain: socket.socket) -> socket.socket:
        """The connection within TLS, whose certificate is for the name of the host."""
        self.stage = Stage.TLS
        context = self.trust or _usual_trust()
        self._socket = context.wrap_socket(plain, server_hostname=self.server.host)
        self._check()
        return self._socket

    def pace(self, many: int) -> None:
        """Wait until so many bytes more may have been read."""
        if self.server.rate:
            now = time.monotonic()
            self._owed = max(self._owed, now) + many / self.server.rate
            while not self._cut and (left := self._owed - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))
            self._check()

    def cut(self) -> None:
        """End the connection, whoever is waiting for it. For any thread."""
        self._cut = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                self._socket.close()

    def close(self) -> None:
        """Give the connection back. For the thread that has used it."""
        if self._socket is not None:
            self._socket.close()

    def _check(self) -> None:
        if self._cut:
            self.cut()
            raise Failure(self.stage, "the run was ended")

    def failure(self, problem: BaseException) -> Failure:
        """What went wrong, in words for whoever set up the account."""
        if isinstance(problem, Failure):
            return problem
        if self._cut:
            return Failure(self.stage, "the run was ended")
        if isinstance(problem, ssl.SSLCertVerificationError):
            return Failure(Stage.TLS, f"the certificate is not good: {problem.verify_message}")
        if isinstance(problem, ssl.SSLError):
            return Failure(Stage.TLS, f"TLS failed: {said(problem.reason or problem)}")
        if isinstance(problem, TimeoutError):
            return Failure(self.stage, f"no answer within {self.server.timeout:g} seconds")
        if isinstance(problem, ConnectionRefusedError):
            return Failure(self.stage, "nobody listens there")
        if isinstance(problem, OSError):
            return Failure(self.stage, "the connection failed")
        return Failure(self.stage, said(problem) or "the connection ended")
