"""IMAP protocol on top of imaplib, with limits on the size of every response."""

import imaplib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from socket import socket
from typing import Any

from imapclient.datetime_util import parse_to_datetime
from imapclient.exceptions import IMAPClientError
from imapclient.response_parser import parse_response

from mail.connectors.remote_server import Denied, Failure, Stage, said
from mail.connectors.sasl import CHALLENGES
from mail.connectors.socket_stream import HUNG_UP, NO_REASON, Line, Reader
from models.connectors import Security

LITERAL = 1 << 16  # bytes of a literal that is no message
LONGEST = 1 << 20  # bytes of a line
BUDGET = 4 << 20  # bytes of unrequested data in one response
EXTENSIONS = 200
TEMPORARY = ("[UNAVAILABLE]", "[INUSE]", "[LIMIT]", "[SERVERBUG]", "[CONTACTADMIN]")  # RFC 5530
NEWS = frozenset({"EXISTS", "EXPUNGE", "VANISHED"})
BROKEN = (OSError, EOFError, imaplib.IMAP4.error, IMAPClientError, ValueError, TypeError,
          LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)  # fmt: skip

Parts = list[Any]  # of an untagged response: bytes, and pairs of bytes and a literal


class Wire(imaplib.IMAP4):
    """An IMAP session of imaplib that yields responses as they arrive.

    Raises RequestRefused for NO.
    """

    sock: socket
    # attributes of imaplib that its type stubs omit
    state: str
    literal: Any
    untagged_responses: dict[str, Parts]
    tagged_commands: dict[bytes, Any]
    continuation_response: Any
    is_readonly: bool
    _command: Callable[..., bytes]
    _get_response: Callable[[], bytes | None]
    _new_tag: Callable[[], bytes]

    def __init__(self, line: Line, largest: int) -> None:
        self.line, self.largest = line, largest  # bytes of a message
        self.longest = LONGEST
        self.messages = False  # true if a literal can be a message
        self.skipped = False  # true if a literal was too large
        self.vanished = False  # true if messages of the open mailbox were deleted
        self.validity = 0
        self._left = BUDGET
        try:
            super().__init__(line.server.host, line.server.port)
        except imaplib.IMAP4.error:
            self._look()  # raises for BYE
            raise

    def open(self, host: str = "", port: int = 0, timeout: float | None = None) -> None:
        """Connect, with TLS if it is configured. imaplib calls this."""
        del timeout
        self.host, self.port = host, port
        found = self.line.open()
        if self.line.server.security is Security.TLS:
            found = self.line.secured(found)
        self.line.stage = Stage.GREETING
        self.sock, self.reader = found, Reader(self.line, found)

    def read(self, size: int) -> bytes:
        """Read a literal. A message that is somewhat too large is skipped.

        Raises RemoteFailure if the literal is larger than that.
        """
        most = self.largest if self.messages else LITERAL
        if self.messages and most < size <= 2 * most:
            self.skipped = True
            self._spend(LITERAL)
            self.reader.skip(size)
            return b""
        if size > most:
            text = f"a literal of {size} bytes, which nobody asked for"
            raise Failure(self.line.stage, text)
        self._spend(size)
        return self.reader.exactly(size)

    def readline(self) -> bytes:
        """Read a line. Raises RemoteFailure if it is too long."""
        found = self.reader.line(self.longest)
        self._spend(len(found))
        return found

    def _get_line(self) -> bytes:
        found = self.readline()
        if not found.endswith(b"\r\n"):
            raise Failure(self.line.stage, "a line that ends unlike lines of IMAP")
        if found.startswith(b"*") or found.count(b" ") != 1:
            return found[:-2]
        return found[:-2] + b" "  # imaplib requires text after OK, which some servers omit

    def send(self, data: Any) -> None:
        """Send bytes. Raises RemoteFailure."""
        try:
            self.sock.sendall(data)
        except OSError as problem:
            raise self.line.failure(problem) from None

    def shutdown(self) -> None:
        """Do nothing: the connection closes its socket."""

    def _check_bye(self) -> None:
        self._look()

    def _log(self, line: str) -> None:
        """Log nothing: requests can contain secrets, responses can be long."""

    def ask(self, name: str, *arguments: bytes) -> dict[str, Parts]:
        """Send a command and return all untagged responses by kind. Raises RequestRefused."""
        for _ in self.answers("", name, *arguments):
            pass  # no response has an empty kind
        return self.untagged_responses

    def answers(self, kind: str, name: str, *arguments: bytes) -> Iterator[Parts]:
        """Send a command and yield its untagged responses of a kind.

        With "" all are collected instead.
        """
        self._begin()
        tag = self._command(name, *arguments)
        while self.tagged_commands[tag] is None:
            self._get_response()
            self._look()
            if kind:
                found = self.untagged_responses.pop(kind, None)
                self.untagged_responses.clear()
                if found is not None:
                    yield found
        self._end(tag)

    def _begin(self) -> None:
        self.untagged_responses.clear()
        self.renew()

    def renew(self) -> None:
        """Reset the byte limit, since the received data was requested."""
        self._left = BUDGET + self.longest + (self.largest if self.messages else 0)

    def _end(self, tag: bytes) -> None:
        done = self.tagged_commands.pop(tag)
        if done is None or done[0] != "OK":
            words = self.line.told(done[1][0]) if done else ""
            raise Denied(self.line.stage, words or NO_REASON)

    def _look(self) -> None:
        """Handle responses that can come at any time.

        Raises RemoteFailure for BYE or a new UIDVALIDITY.
        """
        there = self.untagged_responses
        if (last := there.get("BYE")) is not None:
            words = self.line.told(last[-1]) if isinstance(last[-1], bytes) else ""
            raise Failure(self.line.stage, f"{HUNG_UP}: {words}" if words else HUNG_UP)
        self.vanished = self.vanished or "EXPUNGE" in there or "VANISHED" in there
        told = there.get("UIDVALIDITY")
        if self.validity and told and told[-1] != str(self.validity).encode():
            raise Failure(self.line.stage, "the server has numbered the folder anew meanwhile")

    def _spend(self, many: int) -> None:
        self._left -= many
        if self._left < 0:
            raise Failure(self.line.stage, "the server says far more than was asked for")

    def learn(self, *, told: bool = False) -> frozenset[str]:
        """The capabilities of the server.

        With `use_announced`, those of the last response are used if it has them.
        """
        found = self.untagged_responses.get("CAPABILITY") if told else None
        found = found or self.ask("CAPABILITY").get("CAPABILITY", [])
        words = b" ".join(one for one in found if isinstance(one, bytes))
        return frozenset(said(word).upper() for word in words.split()[:EXTENSIONS])

    def start_tls(self) -> None:
        """Switch to TLS. Responses that came unencrypted are discarded."""
        self.ask("STARTTLS")
        self.sock = self.line.secured(self.sock)
        self.reader = Reader(self.line, self.sock)
        self.untagged_responses.clear()

    def log_in(self, name: str, secret: str) -> None:
        """Sign in with LOGIN. Raises RemoteFailure."""
        self._begin()
        tag = self._new_tag()
        self.send(tag + b" LOGIN")
        if self._argument(tag, name.encode()) and self._argument(tag, secret.encode()):
            self.send(b"\r\n")
        self._entered(tag)

    def _argument(self, tag: bytes, word: bytes) -> bool:
        """Send an argument quoted or as a literal; false if the server has refused the literal."""
        if (written := quoted(word)) is not None:
            self.send(b" " + written)
            return True
        self.send(b" {%d}\r\n" % len(word))
        while self._get_response() is not None:
            self._look()
            if self.tagged_commands[tag] is not None:
                return False
        self.send(word)
        return True

    def authenticate_by(self, mechanism: str, answer: Callable[[bytes], bytes]) -> None:
        """Sign in with SASL and one response; later challenges get an empty response.

        Raises RemoteFailure.
        """
        self._begin()
        tag = self._new_tag()
        self.send(tag + b" AUTHENTICATE " + mechanism.encode() + b"\r\n")
        asked = 0
        while self.tagged_commands[tag] is None:
            if self._get_response() is not None:
                self._look()
                continue
            asked += 1
            if asked > CHALLENGES:
                raise Failure(self.line.stage, "the server asks without an end")
            reply = answer(b64decode(self.continuation_response or b"")) if asked == 1 else b""
            self.line.hide(reply.decode())
            self.send(b64encode(reply) + b"\r\n")
        self._entered(tag)

    def _entered(self, tag: bytes) -> None:
        while self.tagged_commands[tag] is None:
            self._get_response()
            self._look()
        try:
            self._end(tag)
        except Denied as problem:
            for_good = not problem.message.upper().startswith(TEMPORARY)
            raise Failure(self.line.stage, problem.message, refused=for_good) from None
        self.state = "AUTH"

    def select_(self, name: bytes, *, write: bool) -> dict[str, Parts]:
        """Open a mailbox with SELECT or EXAMINE and return the responses by kind."""
        self.validity, self.vanished, self.is_readonly = 0, False, True
        written = quoted(name)
        self.literal = name if written is None else None
        told = self.ask("SELECT" if write else "EXAMINE", *([] if written is None else [written]))
        self.state = "SELECTED"
        return told

    def idle(self, seconds: float) -> set[str]:
        """Wait with IDLE for a response, and return the kinds of the responses."""
        self._begin()
        tag = self._new_tag()
        self.send(tag + b" IDLE\r\n")
        while self._get_response() is not None:
            self._look()
            if self.tagged_commands[tag] is not None:
                self._end(tag)
                raise Failure(self.line.stage, "the server does not wait, as it had offered")
        if not self.untagged_responses.keys() & NEWS and self.reader.waiting(seconds):
            self._get_response()
            self._look()
        self.send(b"DONE\r\n")
        while self.tagged_commands[tag] is None:
            self._get_response()
            self._look()
        self._end(tag)
        return set(self.untagged_responses)


def quoted(word: bytes) -> bytes | None:
    """The text as an IMAP quoted string; None if it needs a literal."""
    if not word.isascii() or any(sign in word for sign in b"\r\n\0"):
        return None
    return b'"' + word.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def fetched(parts: Parts) -> tuple[int, dict[bytes, Any]] | None:
    """The UID and the items of a FETCH response; None if it has no UID, as an unsolicited one."""
    found: Any = parse_response(parts)
    if len(found) != 2 or not isinstance(found[1], tuple) or len(found[1]) % 2:  # noqa: PLR2004
        raise ValueError(found)
    names, values = found[1][::2], found[1][1::2]
    told = {bytes(name).upper(): value for name, value in zip(names, values, strict=True)}
    uid = told.get(b"UID")
    return (uid, told) if isinstance(uid, int) else None


def moment(told: Any) -> datetime | None:
    """The time of an INTERNALDATE; None if it is invalid."""
    try:
        found: datetime = parse_to_datetime(told, normalise=False)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError, AttributeError):
        return None
