"""Commands and replies of an open SMTP connection, as an asyncio protocol.

Commands can be pipelined (RFC 2920): replies wait in order until they are read. The connection is
aborted if the server sends unexpected or endless replies.
"""

import asyncio
import re
from collections import deque
from typing import cast

from aiosmtplib import SMTPReadTimeoutError, SMTPResponse, SMTPServerDisconnected

MAX_LINE_BYTES = 8192  # of one line of a reply
MAX_REPLY_BYTES = 32 * 1024  # of a reply

_UNSAFE = re.compile(rb"[\x00-\x1f\x7f]")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class SmtpProtocol(asyncio.Protocol):
    """The SMTP protocol on an open transport."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.expected_replies = 0  # replies that have not arrived
        self._buffer = bytearray()
        self._lines: list[str] = []  # of an unfinished reply
        self._reply_size = 0
        self._replies: deque[SMTPResponse] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error_text: str | None = None
        transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """True if the connection is open."""
        return self._error_text is None and not self.transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write bytes. Raises SMTPServerDisconnected if the connection is lost."""
        if not self.is_open:
            raise SMTPServerDisconnected(self._error_text or "connection lost")
        self.transport.write(data)

    def write_commands(self, *commands: bytes) -> None:
        """Write commands, each of which gets a reply.

        Raises ValueError if a command contains a control character.
        """
        if any(_UNSAFE.search(line) for line in commands):
            raise ValueError("a command holds a control character")
        self.expected_replies += len(commands)
        self.write(b"".join(line + b"\r\n" for line in commands))

    async def read_reply(self, seconds: float) -> SMTPResponse:
        """Return the next reply, in printable ASCII. Raises SMTPException if none comes in time."""
        if self._replies:  # it arrived with the previous reply
            return self._replies.popleft()
        try:
            async with asyncio.timeout(seconds):
                while not self._replies:
                    if self._error_text is not None:
                        raise SMTPServerDisconnected(self._error_text)
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        except TimeoutError as problem:
            self._abort("response timed out")
            raise SMTPReadTimeoutError("response timed out") from problem
        return self._replies.popleft()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes into replies."""
        self._buffer += data
        while self._error_text is None and (line_end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[: line_end + 1])
            del self._buffer[: line_end + 1]
            self._parse_line(line)
        if len(self._buffer) > MAX_LINE_BYTES:
            self._abort("response line too long")
        self._wake_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let `read_reply` raise."""
        if self._error_text is None:
            self._error_text = str(exc) if exc else "connection lost"
        self._wake_reader()

    def _parse_line(self, line: bytes) -> None:
        """Add a line to the current reply. Aborts the connection if it is invalid."""
        self._reply_size += len(line)
        code, separator = line[:3], line[3:4]
        if not self.expected_replies and code != b"421":
            self._abort("unexpected response")
        elif self._reply_size > MAX_REPLY_BYTES or len(line) > MAX_LINE_BYTES:
            self._abort("response too long")
        elif not code.isdigit():
            self._abort("response can't be parsed")
        else:
            self._lines.append(line[4:].decode("utf-8", "replace").strip())
            if separator != b"-":
                text = _UNPRINTABLE.sub(" ", " ".join(self._lines))
                self._lines, self._reply_size = [], 0
                self.expected_replies = max(self.expected_replies - 1, 0)
                self._replies.append(SMTPResponse(int(code), text))

    def _abort(self, reason: str) -> None:
        self._error_text = self._error_text or reason
        self.transport.abort()

    def _wake_reader(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


def take_over_transport(transport: asyncio.BaseTransport | None) -> SmtpProtocol:
    """Attach the protocol to an open transport. Raises SMTPServerDisconnected if it is closed."""
    if transport is None or transport.is_closing():
        raise SMTPServerDisconnected("connection lost")
    return SmtpProtocol(cast(asyncio.Transport, transport))
