"""Commands and replies of an open SMTP connection, as an asyncio protocol.

Commands can be pipelined (RFC 2920): replies wait in order until they are read. The connection is
aborted if the server sends unexpected or endless replies.
"""

import asyncio
import re
from collections import deque
from typing import cast

from aiosmtplib import SMTPReadTimeoutError, SMTPResponse, SMTPServerDisconnected

LINE = 8192  # of one line of a reply
ANSWER = 32 * 1024  # of a reply

_UNSAFE = re.compile(rb"[\x00-\x1f\x7f]")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class Wire(asyncio.Protocol):
    """The SMTP protocol on an open transport."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.expected = 0  # replies that have not arrived
        self._buffer = bytearray()
        self._lines: list[str] = []  # of an unfinished reply
        self._size = 0
        self._answers: deque[SMTPResponse] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        transport.set_protocol(self)

    @property
    def open(self) -> bool:
        """True if the connection is open."""
        return self._lost is None and not self.transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write bytes. Raises SMTPServerDisconnected if the connection is lost."""
        if not self.open:
            raise SMTPServerDisconnected(self._lost or "connection lost")
        self.transport.write(data)

    def command(self, *lines: bytes) -> None:
        """Write commands, each of which gets a reply.

        Raises ValueError if a command contains a control character.
        """
        if any(_UNSAFE.search(line) for line in lines):
            raise ValueError("a command holds a control character")
        self.expected += len(lines)
        self.write(b"".join(line + b"\r\n" for line in lines))

    async def answer(self, seconds: float) -> SMTPResponse:
        """Return the next reply, in printable ASCII. Raises SMTPException if none comes in time."""
        if self._answers:  # it arrived with the previous reply
            return self._answers.popleft()
        try:
            async with asyncio.timeout(seconds):
                while not self._answers:
                    if self._lost is not None:
                        raise SMTPServerDisconnected(self._lost)
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        except TimeoutError as problem:
            self._end("no answer in time")
            raise SMTPReadTimeoutError("no answer in time") from problem
        return self._answers.popleft()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes into replies."""
        self._buffer += data
        while self._lost is None and (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[: end + 1])
            del self._buffer[: end + 1]
            self._line(line)
        if len(self._buffer) > LINE:
            self._end("a line of its answer has no end")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let `read_reply` raise."""
        if self._lost is None:
            self._lost = str(exc) if exc else "connection lost"
        self._wake()

    def _line(self, line: bytes) -> None:
        """Add a line to the current reply. Aborts the connection if it is invalid."""
        self._size += len(line)
        code, sign = line[:3], line[3:4]
        if not self.expected and code != b"421":
            self._end("it answers what was not asked")
        elif self._size > ANSWER or len(line) > LINE:
            self._end("its answer has no end")
        elif not code.isdigit():
            self._end("its answer is no SMTP")
        else:
            self._lines.append(line[4:].decode("utf-8", "replace").strip())
            if sign != b"-":
                text = _UNPRINTABLE.sub(" ", " ".join(self._lines))
                self._lines, self._size = [], 0
                self.expected = max(self.expected - 1, 0)
                self._answers.append(SMTPResponse(int(code), text))

    def _end(self, why: str) -> None:
        self._lost = self._lost or why
        self.transport.abort()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


def taken_over(transport: asyncio.BaseTransport | None) -> Wire:
    """Attach the protocol to an open transport. Raises SMTPServerDisconnected if it is closed."""
    if transport is None or transport.is_closing():
        raise SMTPServerDisconnected("connection lost")
    return Wire(cast(asyncio.Transport, transport))
