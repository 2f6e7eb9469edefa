"""IMAP client of connectors; belongs into a thread (RFC 3501, 4315, 6154, 7162, 2177)."""

import re
from base64 import b64decode
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from imapclient.response_parser import parse_response

from mail.connectors.imap_protocol import BROKEN, LONGEST, NEWS, Parts, Wire, fetched, moment
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
from mail.connectors.sasl import answer_of
from mail.connectors.socket_stream import Line
from models.connectors import Security

Result = TypeVar("Result")
FOLDERS = 10_000  # of an account, at most
HEADS = 1_000  # messages of one request for metadata
BODIES = 200  # messages of one FETCH
WEIGHT = 4 << 20  # bytes of one FETCH, unless a single message has more
SEARCHED = 1 << 24  # bytes of the SEARCH response with all UIDs
DENIED = 10  # refused messages after which the run fails
TOO_MANY = f"more than {MESSAGES} messages in a folder"
FLAGS = 100  # of a message
PARTING = 2.0  # seconds to wait for the response to LOGOUT
USES = ("\\all", "\\archive", "\\drafts", "\\flagged", "\\junk", "\\sent", "\\trash")
CANNOT_BE_OPENED = frozenset({b"\\noselect", b"\\nonexistent"})
RENEWED = 25 * 60.0  # seconds: servers end an IDLE after 29 minutes (RFC 2177)
UID = 1 << 32
MODSEQ = 1 << 63
# no blanks, at which flags are split, and no parentheses
FLAG = re.compile(r"\\?[!#$&'+,\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]{1,100}")
SHIFTED = re.compile(rb"&([A-Za-z0-9+,]*)-|(&)")


class Imap:
    """An IMAP session with a remote server. Each method blocks, and raises RemoteFailure."""

    def __init__(self, line: Line, largest: int) -> None:
        self.line = line
        self.largest = largest  # bytes of a message
        self.capabilities: frozenset[str] = frozenset()
        self._made: Wire | None = None
        self._exists = 0

    @property
    def _wire(self) -> Wire:
        if self._made is None:
            raise Failure(self.line.stage, "there is no connection")
        return self._made

    def sign_in(self) -> None:
        """Connect, with TLS if it is configured, and sign in."""
        self._made = self._do(Stage.CONNECT, lambda: Wire(self.line, self.largest))
        if self._wire.state == "AUTH":
            raise Failure(Stage.GREETING, "the server lets anybody in, and so cannot be trusted")
        if self.line.server.security is Security.STARTTLS:
            if "STARTTLS" not in self._wire.capabilities:
                raise Failure(Stage.TLS, "the server offers no STARTTLS")
            self._do(Stage.TLS, self._wire.start_tls)
        self.capabilities = self._do(Stage.LOGIN, self._wire.learn)
        self._do(Stage.LOGIN, self._authenticate)
        self.capabilities = self._do(Stage.LOGIN, lambda: self._wire.learn(told=True))
        wanted = [each for each in ("CONDSTORE", "QRESYNC") if each in self.capabilities]
        if wanted and "ENABLE" in self.capabilities:
            with suppress(Denied):  # the server offers more than it accepts
                names = " ".join(wanted).encode()
                self._do(Stage.LOGIN, lambda: self._wire.ask("ENABLE", names))

    def _authenticate(self) -> None:
        wire, server = self._wire, self.line.server
        if server.mechanism in ("XOAUTH2", "OAUTHBEARER", "CRAM-MD5"):
            wire.authenticate_by(server.mechanism, answer_of(server, server.mechanism))
        elif server.mechanism == "PLAIN" and "AUTH=PLAIN" in self.capabilities:
            wire.authenticate_by("PLAIN", answer_of(server, "PLAIN"))
        elif "LOGINDISABLED" in self.capabilities:
            raise Failure(Stage.LOGIN, "the server takes no password over this connection")
        else:
            wire.log_in(server.username, server.secret)

    def leave(self) -> None:
        """Send LOGOUT and wait for the response for at most LOGOUT_TIMEOUT."""
        if self._made is not None:
            with suppress(*BROKEN, Failure):
                self._made.sock.settimeout(PARTING)
                self._made.logout()

    def close(self) -> None:
        """Close the connection in any state."""
        self.line.close()

    def folders(self) -> list[Listed]:
        """List the mailboxes that can be opened, in the order of the server."""
        found: dict[bytes, Listed] = {}
        for known, delimiter, raw in self._names("LIST"):
            if known & CANNOT_BE_OPENED or not raw:
                continue
            use = next((one for one in USES if one.encode() in known), None)
            found.setdefault(raw, Listed(raw, levels(raw, delimiter), use))
        return list(found.values())

    def subscribed(self) -> frozenset[bytes]:
        """List the raw names of the subscribed mailboxes; they need not exist."""
        return frozenset(raw for _, _, raw in self._names("LSUB"))

    def _names(self, command: str) -> list[tuple[frozenset[bytes], Any, bytes]]:
        """List the flags, the delimiter and the name of each mailbox."""

        def ask() -> list[tuple[frozenset[bytes], Any, bytes]]:
            found = []
            for parts in self._wire.answers(command, command, b'""', b'"*"'):
                told: Any = parse_response([one for one in parts if one != b""])
                flags, delimiter, name = told
                raw = name if isinstance(name, bytes) else str(name or "").encode()
                known = frozenset(flag.lower() for flag in flags if isinstance(flag, bytes))
                found.append((known, delimiter, raw))
                self._wire.renew()
                if len(found) > FOLDERS:
                    raise Failure(Stage.LIST, f"more than {FOLDERS} folders")
            return found

        return self._do(Stage.LIST, ask)

    def open(self, folder: Listed, *, write: bool) -> Opened:
        """Open a mailbox for reading, or for changes too."""
        answer = self._do(Stage.FETCH, lambda: self._wire.select_(folder.raw, write=write))
        if write and "READ-ONLY" in answer:
            raise Failure(Stage.FETCH, "the folder can only be read, and nothing deleted in it")
        validity = _number(answer.get("UIDVALIDITY"), UID)
        if not validity:
            raise Failure(Stage.FETCH, "the server names no UIDVALIDITY")
        exists = _number(answer.get("EXISTS"), UID)
        if exists is None:
            raise Failure(Stage.FETCH, "the server does not say how many messages there are")
        self._wire.validity, self._exists = validity, exists
        return Opened(validity, _number(answer.get("HIGHESTMODSEQ"), MODSEQ) or 0, exists)

    def marks(self) -> list[str]:
        """The UIDs of the open mailbox, in ascending order."""
        found = self._search(b"ALL")
        if not found and self._exists and not self._wire.vanished:
            # a connector that mirrors deletions would delete all of them
            raise Failure(Stage.FETCH, f"the server names none of its {self._exists} messages")
        return [str(uid) for uid in sorted(found)]

    def _search(self, what: bytes) -> set[int]:
        def ask() -> set[int]:
            found: set[int] = set()
            self._wire.longest = SEARCHED
            try:
                for parts in self._wire.answers("SEARCH", "UID", b"SEARCH", what):
                    numbers = b" ".join(parts).partition(b"(")[0]
                    if len(found) + numbers.count(b" ") > MESSAGES:
                        raise Failure(Stage.FETCH, TOO_MANY)
                    found.update(_uids(numbers))
            finally:
                self._wire.longest = LONGEST
            return found

        return self._do(Stage.FETCH, ask)

    def heads(self, marks: Sequence[str]) -> list[Head]:
        """Fetch size, flags and date of messages by UID; deleted messages are omitted."""
        found: list[Head] = []
        for some in _parts(marks, HEADS):
            told = self._told(some, b"(UID FLAGS INTERNALDATE RFC822.SIZE)")
            for mark in some:
                if one := told.get(int(mark)):
                    size = one.get(b"RFC822.SIZE")
                    size = size if isinstance(size, int) else 0
                    date = moment(one.get(b"INTERNALDATE"))
                    found.append(Head(mark, size, _flags(one.get(b"FLAGS")), date))
        return found

    def bodies(self, heads: Sequence[Head]) -> Iterator[tuple[Head, bytes]]:
        """Yield the messages with their content, as they arrive.

        Deleted messages, and those over the size limit, are omitted.
        """
        denied = 0
        for some in _loads(heads):
            left = yield from self._bodies(some)
            for one in left:  # one unreadable message must not stop the others
                denied += len((yield from self._bodies([one])))
                if denied > DENIED:
                    raise Failure(Stage.FETCH, "the server gives none of these messages")

    def _bodies(self, some: Sequence[Head]) -> Generator[tuple[Head, bytes], None, list[Head]]:
        """Fetch the messages of one batch; return those that the server has refused."""
        wanted = {int(one.mark): one for one in some}
        coming = self._fetch(spans(wanted).encode(), b"(UID BODY.PEEK[])", messages=True)
        try:
            while one := self._do(Stage.FETCH, lambda: next(coming, None)):
                raw = one[1].get(b"BODY[]")
                if isinstance(raw, bytes) and (head := wanted.pop(one[0], None)):
                    self._wire.renew()
                    yield head, raw
        except Denied:
            return list(wanted.values())
        return []

    def changed(self, modseq: int) -> dict[str, frozenset[str]]:
        """Fetch the flags of messages that were changed since a MODSEQ, by UID.

        Fetches the flags of all messages if the server refuses CHANGEDSINCE.
        """
        try:
            told = self._told((), b"(UID FLAGS)", b"(CHANGEDSINCE %d)" % modseq)
        except Denied:
            told = self._told((), b"(UID FLAGS)")
        return {str(uid): _flags(one[b"FLAGS"]) for uid, one in told.items() if b"FLAGS" in one}

    def flags(self, marks: Sequence[str]) -> dict[str, frozenset[str]]:
        """Fetch the flags of messages by UID."""
        found: dict[str, frozenset[str]] = {}
        for some in _parts(marks, HEADS):
            told = self._told(some, b"(UID FLAGS)")
            for mark in some:
                if b"FLAGS" in (one := told.get(int(mark), {})):
                    found[mark] = _flags(one[b"FLAGS"])
        return found

    def _told(self, marks: Sequence[str], *what: bytes) -> dict[int, dict[bytes, Any]]:
        """Fetch items of these messages, or of all, by UID."""
        asked = {int(mark) for mark in marks}
        ids = spans(asked).encode() if asked else b"1:*"

        def ask() -> dict[int, dict[bytes, Any]]:
            found: dict[int, dict[bytes, Any]] = {}
            for uid, told in self._fetch(ids, *what):
                if asked and uid not in asked:
                    continue
                if uid not in found:
                    self._wire.renew()
                found.setdefault(uid, {}).update(told)
                if len(found) > MESSAGES:
                    raise Failure(Stage.FETCH, TOO_MANY)
            return found

        return self._do(Stage.FETCH, ask)

    def _fetch(
        self, ids: bytes, *what: bytes, messages: bool = False
    ) -> Iterator[tuple[int, dict[bytes, Any]]]:
        """Yield the UID and the items of each message, as they arrive."""
        wire = self._wire
        wire.messages = messages
        try:
            for parts in wire.answers("FETCH", "UID", b"FETCH", ids, *what):
                if wire.skipped:
                    wire.skipped = False
                elif (one := fetched(parts)) is not None:
                    yield one
        finally:
            wire.messages = False

    def delete(self, marks: Sequence[str]) -> None:
        """Delete messages of the open mailbox.

        Messages that other clients have marked as deleted stay.
        """
        for some in _parts(marks, HEADS):
            ids = spans(int(mark) for mark in some).encode()
            self._tell("UID", b"STORE", ids, b"+FLAGS.SILENT", b"(\\Deleted)")
            if "UIDPLUS" in self.capabilities:
                self._tell("UID", b"EXPUNGE", ids)
                continue
            marked = {str(uid) for uid in self._search(b"DELETED")}
            if marked and marked <= set(some):
                self._tell("EXPUNGE")

    def _tell(self, name: str, *arguments: bytes) -> None:
        self._do(Stage.DELETE, lambda: self._wire.ask(name, *arguments))

    def wait(self, seconds: float) -> bool:
        """Wait with IDLE until messages of the open mailbox arrive or go.

        Returns false after the timeout. Raises RemoteFailure if the server offers no
        IDLE.
        """
        if "IDLE" not in self.capabilities:
            raise Failure(Stage.LISTEN, "the server offers no IDLE")
        kinds = self._do(Stage.LISTEN, lambda: self._wire.idle(min(seconds, RENEWED)))
        return bool(kinds & NEWS)

    def _do(self, stage: Stage, work: Callable[[], Result]) -> Result:
        self.line.stage = stage
        try:
            return work()
        except (*BROKEN, Failure) as problem:
            raise self.line.failure(problem) from None


def levels(raw: bytes, delimiter: Any) -> list[str]:
    """The name of a mailbox, split into decoded levels."""
    sign = delimiter if isinstance(delimiter, bytes) and delimiter else None
    return [_text(level) for level in (raw.split(sign) if sign else [raw]) if level]


def _text(raw: bytes) -> str:
    """Decode a level of a name: modified UTF-7 (RFC 3501, section 5.1.3), UTF-8 or Latin-1."""
    try:
        if raw.isascii():
            return SHIFTED.sub(_unshifted, raw).decode()
        return raw.decode()
    except ValueError:
        return raw.decode("latin-1")


def _unshifted(found: re.Match[bytes]) -> bytes:
    if found[2]:
        raise ValueError(found[2])
    if not found[1]:
        return b"&"
    packed = found[1].replace(b",", b"/")
    return b64decode(packed + b"=" * (-len(packed) % 4)).decode("utf-16-be").encode()


def _number(parts: Parts | None, below: int) -> int | None:
    """The last value of a response as a number; None if it is no number below the limit."""
    said_last = parts[-1] if parts else None
    if not isinstance(said_last, bytes) or not said_last.isdigit() or len(said_last) > 19:  # noqa: PLR2004
        return None
    return found if (found := int(said_last)) < below else None


def _uids(numbers: bytes) -> Iterator[int]:
    for number in numbers.split():
        if not number.isdigit() or len(number) > 10:  # noqa: PLR2004
            raise ValueError(number)
        if 0 < int(number) < UID:
            yield int(number)


def _flags(told: Any) -> frozenset[str]:
    """The valid flags of a response; system flags in the spelling of RFC 3501."""
    found: set[str] = set()
    for one in told if isinstance(told, tuple) else ():
        text = said(one) if isinstance(one, bytes | int) else ""
        if FLAG.fullmatch(text) and len(found) < FLAGS:
            found.add("\\" + text[1:].capitalize() if text.startswith("\\") else text)
    return frozenset(found)


def _parts(marks: Sequence[str], most: int) -> Iterable[Sequence[str]]:
    return (marks[at : at + most] for at in range(0, len(marks), most))


def _loads(heads: Sequence[Head]) -> Iterator[list[Head]]:
    """Yield batches of messages for one FETCH each."""
    some: list[Head] = []
    weight = 0
    for one in heads:
        if some and (len(some) == BODIES or weight + one.size > WEIGHT):
            yield some
            some, weight = [], 0
        some.append(one)
        weight += one.size
    if some:
        yield some


def spans(uids: Iterable[int]) -> str:
    """The UIDs as an IMAP sequence set: `1:3,5`."""
    found: list[list[int]] = []
    for uid in sorted(uids):
        if found and found[-1][1] == uid - 1:
            found[-1][1] = uid
        else:
            found.append([uid, uid])
    return ",".join(str(a) if a == b else f"{a}:{b}" for a, b in found)
