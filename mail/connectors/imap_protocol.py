"""imaplib over our line: no answer is larger than was asked for, and each is seen as it comes."""

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

LITERAL = 1 << 16  # bytes, where it is no message
LONGEST = 1 << 20  # bytes of a line
BUDGET = 4 << 20  # bytes of what nobody asked for, in one answer
EXTENSIONS = 200
TEMPORARY = ("[UNAVAILABLE]", "[INUSE]", "[LIMIT]", "[SERVERBUG]", "[CONTACTADMIN]")  # RFC 5530
NEWS = frozenset({"EXISTS", "EXPUNGE", "VANISHED"})
BROKEN = (OSError, EOFError, imaplib.IMAP4.error, IMAPClientError, ValueError, TypeError,
          LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)  # fmt: skip

Parts = list[Any]  # of an untagged answer: bytes, and pairs of bytes and a literal


class Wire(imaplib.IMAP4):
    """A session as imaplib has it. Whoever asks is told what comes, and Denied."""

    sock: socket
    # what imaplib has, and its types keep to themselves
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
        self.messages = False  # whether a literal may be one
        self.skipped = False  # whether one was too large
        self.vanished = False  # whether messages of the open folder have been deleted
        self.validity = 0
        self._left = BUDGET
        try:
            super().__init__(line.server.host, line.server.port)
        except imaplib.IMAP4.error:
            self._look()  # whether it said goodbye
            raise

    # ------------------------------------------------------------ what imaplib calls

    def open(self, host: str = "", port: int = 0, timeout: float | None = None) -> None:
        """Connect."""
        del timeout
        self.host, self.port = host, port
        found = self.line.open()
        if self.line.server.security is Security.TLS:
            found = self.line.secured(found)
        self.line.stage = Stage.GREETING
        self.sock, self.reader = found, Reader(self.line, found)

    def read(self, size: int) -> bytes:
        """A literal, if it is no larger than it may be."""
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
        """A line, if it is no longer than it may be."""
        found = self.reader.line(self.longest)
        self._spend(len(found))
        return found

    def _get_line(self) -> bytes:
        found = self.readline()
        if not found.endswith(b"\r\n"):
            raise Failure(self.line.stage, "a line that ends unlike lines of IMAP")
        if found.startswith(b"*") or found.count(b" ") != 1:
            return found[:-2]
        return found[:-2] + b" "  # imaplib wants words behind an OK, which some do not say

    def send(self, data: Any) -> None:
        """Send."""
        try:
            self.sock.sendall(data)
        except OSError as problem:
            raise self.line.failure(problem) from None

    def shutdown(self) -> None:
        """Nothing: the socket is the line's."""

    def _check_bye(self) -> None:
        self._look()

    def _log(self, line: str) -> None:
        """Keep nothing: what is sent may be secret, what comes may be long."""

    # ------------------------------------------------------------ asking

    def ask(self, name: str, *arguments: bytes) -> dict[str, Parts]:
        """All that comes for a command, by its kind."""
        for _ in self.answers("", name, *arguments):
            pass  # nothing is of no kind
        return self.untagged_responses

    def answers(self, kind: str, name: str, *arguments: bytes) -> Iterator[Parts]:
        """The answers of a kind, one by one. With "" they are all kept instead."""
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
        """Let as much come again: what came was asked for."""
        self._left = BUDGET + self.longest + (self.largest if self.messages else 0)

    def _end(self, tag: bytes) -> None:
        done = self.tagged_commands.pop(tag)
        if done is None or done[0] != "OK":
            words = self.line.told(done[1][0]) if done else ""
            raise Denied(self.line.stage, words or NO_REASON)

    def _look(self) -> None:
        """What may come at any time."""
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

    # ------------------------------------------------------------ commands of their own

    def learn(self, *, told: bool = False) -> frozenset[str]:
        """Which extensions there are, where `told` as it was just said."""
        found = self.untagged_responses.get("CAPABILITY") if told else None
        found = found or self.ask("CAPABILITY").get("CAPABILITY", [])
        words = b" ".join(one for one in found if isinstance(one, bytes))
        return frozenset(said(word).upper() for word in words.split()[:EXTENSIONS])

    def start_tls(self) -> None:
        """Switch to TLS; what came before under no protection is forgotten."""
        self.ask("STARTTLS")
        self.sock = self.line.secured(self.sock)
        self.reader = Reader(self.line, self.sock)
        self.untagged_responses.clear()

    def log_in(self, name: str, secret: str) -> None:
        """Sign in with a command of IMAP itself."""
        self._begin()
        tag = self._new_tag()
        self.send(tag + b" LOGIN")
        if self._argument(tag, name.encode()) and self._argument(tag, secret.encode()):
            self.send(b"\r\n")
        self._entered(tag)

    def _argument(self, tag: bytes, word: bytes) -> bool:
        """Send it quoted, or as a literal; whether the server wants it."""
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
        """Sign in by SASL, with one answer; to what is asked after it nothing is said."""
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
        """Open a folder."""
        self.validity, self.vanished, self.is_readonly = 0, False, True
        written = quoted(name)
        self.literal = name if written is None else None
        told = self.ask("SELECT" if write else "EXAMINE", *([] if written is None else [written]))
        self.state = "SELECTED"
        return told

    def idle(self, seconds: float) -> set[str]:
        """The kinds of what comes until anything does."""
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
    """A quoted string; None where only a literal can have it."""
    if not word.isascii() or any(sign in word for sign in b"\r\n\0"):
        return None
    return b'"' + word.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def fetched(parts: Parts) -> tuple[int, dict[bytes, Any]] | None:
    """A UID and what is told of it; None where it is of none, as what comes unasked may be."""
    found: Any = parse_response(parts)
    if len(found) != 2 or not isinstance(found[1], tuple) or len(found[1]) % 2:  # noqa: PLR2004
        raise ValueError(found)
    names, values = found[1][::2], found[1][1::2]
    told = {bytes(name).upper(): value for name, value in zip(names, values, strict=True)}
    uid = told.get(b"UID")
    return (uid, told) if isinstance(uid, int) else None


def moment(told: Any) -> datetime | None:
    """An INTERNALDATE; None where it is none."""
    try:
        found: datetime = parse_to_datetime(told, normalise=False)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError, AttributeError):
        return None
