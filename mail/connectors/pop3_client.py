"""POP3 client of connectors; belongs into a thread (RFC 1939, 2449, 2595, 5034)."""

import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from mail.connectors.remote_server import (
    MESSAGES,
    Denied,
    Failure,
    Head,
    Listed,
    Opened,
    Stage,
    said,
)
from mail.connectors.sasl import CHALLENGES, answer_of
from mail.connectors.socket_stream import NO_REASON, NONSENSE, Line, Reader
from models.connectors import Security

Result = TypeVar("Result")
INBOX = Listed(b"INBOX", ["INBOX"], None)
LONGEST = 1 << 20  # bytes of a line
LISTED = 1 << 27  # bytes of a list of all messages
DENIED = 10  # refused messages after which the run fails
PARTING = 2.0  # seconds to wait for the response to QUIT
LINES = 200  # lines of the response to CAPA
DIGITS = 18
MARK = re.compile(r"[!-9;-~]{1,70}")  # RFC 1939, without the colon, which is a separator elsewhere
TEMPORARY = ("[IN-USE]", "[LOGIN-DELAY]", "[SYS/TEMP]")  # RFC 2449, 3206
BROKEN = (OSError, EOFError, ValueError, LookupError, AttributeError)


class _Wire:
    """The commands of POP3. Raises RequestRefused for -ERR."""

    def __init__(self, line: Line, largest: int) -> None:
        self.line, self.largest = line, largest
        self.sock = line.open()
        if line.server.security is Security.TLS:
            self.sock = line.secured(self.sock)
        self.reader = Reader(line, self.sock)
        line.stage = Stage.GREETING
        self._answer()

    def _raw(self) -> bytes:
        return self.reader.line(LONGEST)

    def _line(self) -> bytes:
        line = self._raw()
        return line[:-2] if line.endswith(b"\r\n") else line[:-1]

    def _answer(self) -> bytes:
        line = self._line()
        if line.startswith(b"-ERR"):
            raise Denied(self.line.stage, self.line.told(line[4:]) or NO_REASON)
        if not line.startswith(b"+"):
            raise Failure(self.line.stage, NONSENSE)
        return line

    def say(self, command: str) -> bytes:
        """Send a command and return its one-line response."""
        if any(sign in command for sign in "\r\n\0"):
            raise Failure(self.line.stage, "POP3 takes no names and passwords of several lines")
        self.sock.sendall(f"{command}\r\n".encode())
        return self._answer()

    def listed(self, command: str) -> list[bytes]:
        """Send a command and return the lines of its response."""
        self.say(command)
        lines, size = list[bytes](), 0
        while (line := self._line()) != b".":
            size += len(line)
            if size > LISTED or len(lines) >= MESSAGES:
                raise Failure(self.line.stage, f"more than {MESSAGES} messages")
            lines.append(line[1:] if line.startswith(b"..") else line)
        return lines

    def secure(self) -> None:
        """Switch to TLS with STLS. Data that came unencrypted is discarded."""
        self.say("STLS")
        self.sock = self.line.secured(self.sock)
        self.reader = Reader(self.line, self.sock)

    def authenticate(self, mechanism: str, answer: Callable[[bytes], bytes]) -> None:
        """Sign in with SASL and one response; later challenges get an empty response."""
        line, asked = self.say(f"AUTH {mechanism}"), 0
        while not line.startswith(b"+OK"):
            asked += 1
            if asked > CHALLENGES:
                raise Failure(self.line.stage, "the server asks without an end")
            reply = answer(b64decode(line[2:])) if asked == 1 else b""
            self.line.hide(reply.decode())
            line = self.say(packed := b64encode(reply).decode())
            self.line.hide(packed)

    def message(self, number: int) -> bytes | None:
        """Retrieve a message; None if it exceeds the size limit.

        It ends at a dot alone on a line with CRLF, not on a line with another ending.
        """
        self.say(f"RETR {number}")
        found, size, begins = bytearray(), 0, True
        while (line := self._raw()) != b".\r\n" or not begins:
            if begins and line.startswith(b".."):
                line = line[1:]
            begins = line.endswith(b"\r\n")
            size += len(line)
            if size > 2 * self.largest + LONGEST:
                raise Failure(Stage.FETCH, "a message that has no end")
            if size <= self.largest:
                found += line
        return bytes(found) if size <= self.largest else None


class Pop:
    """A POP3 session, which has one mailbox. Each method blocks, and raises RemoteFailure."""

    def __init__(self, line: Line, largest: int) -> None:
        self.line, self.largest = line, largest
        self.capabilities: frozenset[str] = frozenset()
        self._made: _Wire | None = None
        self._numbers: dict[str, int] = {}  # message numbers by message id
        self._sizes: dict[int, int] = {}
        self._deletes = False

    @property
    def _wire(self) -> _Wire:
        if self._made is None:
            raise Failure(self.line.stage, "there is no connection")
        return self._made

    def sign_in(self) -> None:
        """Connect, with TLS if it is configured, and sign in."""
        self._made = self._do(Stage.CONNECT, lambda: _Wire(self.line, self.largest))
        if self.line.server.security is Security.STARTTLS:
            self._do(Stage.TLS, self._wire.secure)
        with suppress(Denied):  # old servers have no CAPA
            found = self._do(Stage.GREETING, lambda: self._wire.listed("CAPA"))
            self.capabilities = frozenset(said(line).upper() for line in found[:LINES])
        self._do(Stage.LOGIN, self._authenticate)

    def _authenticate(self) -> None:
        wire, server = self._wire, self.line.server
        try:
            if server.mechanism in ("XOAUTH2", "OAUTHBEARER", "CRAM-MD5"):
                wire.authenticate(server.mechanism, answer_of(server, server.mechanism))
            elif server.mechanism == "PLAIN" and self._by_sasl():
                wire.authenticate("PLAIN", answer_of(server, "PLAIN"))
            else:
                wire.say(f"USER {server.username}")
                wire.say(f"PASS {server.secret}")
        except Denied as problem:
            for_good = not problem.message.upper().startswith(TEMPORARY)
            raise Failure(Stage.LOGIN, problem.message, refused=for_good) from None

    def _by_sasl(self) -> bool:
        """True if the server accepts the password only by SASL."""
        offered = {word for line in self.capabilities if line.startswith("SASL ")
                   for word in line.split()}  # fmt: skip
        return "PLAIN" in offered and "USER" not in self.capabilities

    def leave(self) -> None:
        """Send QUIT.

        The server deletes messages only then, so its failure is raised after deletions.
        """
        if self._made is None:
            return
        if self._deletes:
            self._do(Stage.DELETE, lambda: self._wire.say("QUIT"))
            return
        with suppress(*BROKEN, Failure):
            self._made.sock.settimeout(PARTING)
            self._made.say("QUIT")

    def close(self) -> None:
        """Close the connection in any state."""
        self.line.close()

    def folders(self) -> list[Listed]:
        """The only mailbox, INBOX."""
        return [INBOX]

    def subscribed(self) -> frozenset[bytes]:
        """The raw name of the only mailbox."""
        return frozenset({INBOX.raw})

    def open(self, folder: Listed, *, write: bool) -> Opened:
        """Read the list of messages."""
        del folder, write
        self._sizes = {}
        for line in self._do(Stage.LIST, lambda: self._wire.listed("LIST")):
            number, size = (_number(word) for word in [*line.split(), b"", b""][:2])
            if not number or size is None:
                raise Failure(Stage.LIST, "the server lists what are no messages")
            self._sizes[number] = size
        return Opened(0, 0, len(self._sizes))

    def marks(self) -> list[str]:
        """The ids of all messages from UIDL, in order."""
        try:
            lines = self._do(Stage.LIST, lambda: self._wire.listed("UIDL"))
        except Denied as problem:
            text = f"the server cannot tell messages apart (UIDL): {problem.message}"
            raise Failure(Stage.LIST, text) from None
        self._numbers = {}
        for line in lines:
            number, _, mark = line.partition(b" ")
            if not (known := _number(number)) or not mark.strip():
                raise Failure(Stage.LIST, "the server gives no UIDL of a message")
            self._numbers[self._fresh(mark.strip())] = known
        if len(self._numbers) < len(self._sizes):
            raise Failure(Stage.LIST, "the server does not give the UIDL of every message")
        return list(self._numbers)

    def _fresh(self, mark: bytes) -> str:
        """A unique id for a message: some servers give several messages one UIDL."""
        found, copies = _mark(mark), 1
        while found in self._numbers:
            copies += 1
            found = _digest(b"%d %s" % (copies, mark))
        return found

    def heads(self, marks: Sequence[str]) -> list[Head]:
        """The sizes of messages; POP3 has neither flags nor dates."""
        known = [(mark, self._numbers[mark]) for mark in marks if mark in self._numbers]
        return [Head(mark, self._sizes.get(number, 0), frozenset(), None) for mark, number in known]

    def bodies(self, heads: Sequence[Head]) -> Iterator[tuple[Head, bytes]]:
        """Yield the messages with their content.

        Refused messages, and those over the size limit, are omitted.
        """
        denied = 0
        for one in heads:
            if (number := self._numbers.get(one.mark)) is None:
                continue
            try:
                raw = self._do(Stage.FETCH, partial(self._wire.message, number))
            except Denied:  # one unreadable message must not stop the others
                denied += 1
                if denied > DENIED:
                    raise
                continue
            if raw is not None:
                yield one, raw

    def delete(self, marks: Sequence[str]) -> None:
        """Mark messages as deleted; the server deletes them at the end of the session."""
        for mark in marks:
            if (number := self._numbers.get(mark)) is not None:
                self._deletes = True
                self._do(Stage.DELETE, partial(self._wire.say, f"DELE {number}"))

    def _do(self, stage: Stage, work: Callable[[], Result]) -> Result:
        self.line.stage = stage
        try:
            return work()
        except (*BROKEN, Failure) as problem:
            raise self.line.failure(problem) from None


def _number(word: bytes) -> int | None:
    return int(word) if word.isdigit() and len(word) <= DIGITS else None


def _mark(told: bytes) -> str:
    """The id of a message: a UIDL that RFC 1939 allows, else its digest."""
    text = told.decode("latin-1")
    return text if MARK.fullmatch(text) else _digest(told)


def _digest(told: bytes) -> str:
    return hashlib.sha256(told).hexdigest()
