"""What IMAP is asked for, by imapclient, in a thread (RFC 3501, 4315, 6154, 7162, 2177)."""

import imaplib
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

from imapclient import IMAPClient, SocketTimeout
from imapclient.exceptions import IMAPClientError, LoginError, ProtocolError
from imapclient.imap_utf7 import decode as utf7
from imapclient.response_parser import parse_fetch_response

from mail.connectors.lines import Line
from mail.connectors.servers import Failure, Head, Listed, Opened, Stage, said
from models.connectors import Security

Result = TypeVar("Result")
FOLDERS = 10_000  # of an account, at most
HEADS = 1_000  # messages asked for at once
BODIES = 200  # fetched at once
WEIGHT = 4 << 20  # bytes fetched at once, unless one message alone has more
LITERAL = 1 << 16  # bytes of any other answer
USES = ("\\all", "\\archive", "\\drafts", "\\flagged", "\\junk", "\\sent", "\\trash")
ALL = ("1:*",)
CANNOT_BE_OPENED = frozenset({b"\\noselect", b"\\nonexistent"})
RENEWED = 25 * 60.0  # seconds: servers end an IDLE after 29 minutes (RFC 2177)
BROKEN = (OSError, EOFError, imaplib.IMAP4.error, IMAPClientError, ProtocolError, ValueError,
          TypeError, KeyError, IndexError, AttributeError, RecursionError)  # fmt: skip


class _Wire(imaplib.IMAP4):
    """imaplib over our line, which takes no more than was asked for."""

    def __init__(self, line: Line, largest: int) -> None:
        self.line, self.largest = line, largest
        super().__init__(line.server.host, line.server.port)

    def open(self, host: str = "", port: int = 0, timeout: float | None = None) -> None:
        del timeout
        self.host, self.port = host, port
        found = self.line.open()
        if self.line.server.security is Security.TLS:
            found = self.line.secured(found)
        self.line.stage = Stage.GREETING
        self.sock, self.file = found, found.makefile("rb")

    def read(self, size: int) -> bytes:
        if size > self.largest:
            raise Failure(self.line.stage, f"a literal of {size} bytes, which nobody asked for")
        got = bytearray()
        while len(got) < size:
            piece = self.file.read(min(size - len(got), 1 << 16))
            if not piece:
                raise Failure(self.line.stage, "the connection ended within a message")
            got += piece
            self.line.pace(len(piece))
        return bytes(got)


class _Client(IMAPClient):  # type: ignore[misc]
    """imapclient over our line, for which names of folders are bytes of any kind."""

    def __init__(self, line: Line, largest: int) -> None:
        self.line, self.largest = line, largest
        patience = SocketTimeout(None, line.server.timeout)
        super().__init__(line.server.host, line.server.port, ssl=False, timeout=patience)
        self.folder_encode = False

    def _create_IMAP4(self) -> _Wire:  # noqa: N802 - its name
        return _Wire(self.line, self.largest)

    def _normalise_folder(self, folder: bytes | str) -> bytes:
        folder = folder.encode() if isinstance(folder, str) else folder
        return b'"' + folder.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'

    def starttls(self, ssl_context: ssl.SSLContext | None = None) -> bytes:
        """Switch to TLS; what came before under no protection is forgotten."""
        del ssl_context
        typ, data = self._imap._simple_command("STARTTLS")  # noqa: SLF001
        self._checkok("starttls", typ, data)
        self._imap.sock = self.line.secured(self._imap.sock)
        self._imap.file = self._imap.sock.makefile("rb")
        self._cached_capabilities = None
        return cast("bytes", data[0])


class Imap:
    """A session. Each method waits, and raises Failure."""

    def __init__(self, line: Line, largest: int) -> None:
        self.line = line
        self.largest = largest  # bytes of a message
        self.capabilities: frozenset[str] = frozenset()
        self._client: Any = None
        self._writes = False

    # ------------------------------------------------------------ coming and going

    def sign_in(self) -> None:
        """Connect, with TLS where that is asked for, and sign in."""
        self._client = self._do(Stage.CONNECT, lambda: _Client(self.line, self.largest))
        server = self.line.server
        if server.security is Security.STARTTLS:
            self.line.stage = Stage.TLS
            if not self._do(Stage.TLS, lambda: self._client.has_capability("STARTTLS")):
                raise Failure(Stage.TLS, "the server offers no STARTTLS")
            self._do(Stage.TLS, self._client.starttls)
        self._do(Stage.LOGIN, self._authenticate)
        self._learn()

    def _authenticate(self) -> None:
        client, server = self._client, self.line.server
        try:
            if server.mechanism == "XOAUTH2":
                client.oauth2_login(server.username, server.secret)
            elif server.mechanism == "OAUTHBEARER":
                client.oauthbearer_login(server.username, server.secret)
            elif server.mechanism == "CRAM-MD5":
                client._imap.login_cram_md5(server.username, server.secret)  # noqa: SLF001
            elif server.mechanism == "PLAIN" and client.has_capability("AUTH=PLAIN"):
                client.plain_login(server.username, server.secret)
            else:
                client.login(server.username, server.secret)
        except imaplib.IMAP4.abort:
            raise
        except (LoginError, imaplib.IMAP4.error) as problem:
            words = said(problem).replace(server.secret, "…")
            raise Failure(Stage.LOGIN, words or "refused", refused=True) from None

    def _learn(self) -> None:
        """Which extensions there are; those that tell what changed are switched on."""
        asked = self._do(Stage.LOGIN, self._client.capabilities)
        self.capabilities = frozenset(said(each).upper() for each in asked)
        wanted = [each for each in ("CONDSTORE", "QRESYNC") if each in self.capabilities]
        if wanted and "ENABLE" in self.capabilities:
            self._do(Stage.LOGIN, lambda: self._client.enable(*wanted))

    def leave(self) -> None:
        """Say goodbye; what the server says to it is not waited for long."""
        if self._client is not None:
            with suppress(*BROKEN, Failure):
                self._client.socket().settimeout(2)
                self._client.logout()

    def close(self) -> None:
        """Give the connection back, in whatever state it is."""
        if self._client is not None:
            with suppress(*BROKEN):
                self._client.shutdown()
        self.line.close()

    # ------------------------------------------------------------ folders

    def folders(self) -> list[Listed]:
        """The folders that can be opened, in the server's order."""
        found = []
        for flags, delimiter, name in self._do(Stage.LIST, self._client.list_folders):
            known = {bytes(flag).lower() for flag in flags}
            raw = name if isinstance(name, bytes) else str(name).encode()
            if known & CANNOT_BE_OPENED or not raw:
                continue
            use = next((one for one in USES if one.encode() in known), None)
            found.append(Listed(raw, _levels(raw, delimiter), use))
            if len(found) > FOLDERS:
                raise Failure(Stage.LIST, f"more than {FOLDERS} folders")
        return found

    def open(self, folder: Listed, *, write: bool) -> Opened:
        """Open a folder, to be changed or only read."""
        self._writes = write
        answer = self._do(
            Stage.FETCH, lambda: self._client.select_folder(folder.raw, readonly=not write)
        )
        validity = answer.get(b"UIDVALIDITY")
        if not isinstance(validity, int):
            raise Failure(Stage.FETCH, "the server names no UIDVALIDITY")
        modseq = answer.get(b"HIGHESTMODSEQ", 0)
        return Opened(validity, modseq if isinstance(modseq, int) else 0, answer[b"EXISTS"])

    # ------------------------------------------------------------ messages

    def marks(self) -> list[str]:
        """The UIDs of the folder that is open, in order."""
        found = self._do(Stage.FETCH, lambda: self._client.search("ALL"))
        return [str(uid) for uid in sorted({int(uid) for uid in found if int(uid) > 0})]

    def heads(self, marks: Sequence[str]) -> list[Head]:
        """Size, flags and date of these; those that are gone are left out."""
        found: list[Head] = []
        for some in _parts(marks, HEADS):
            told = self._fetch(some, "FLAGS INTERNALDATE RFC822.SIZE")
            for mark in some:
                if (one := told.get(int(mark))) and b"RFC822.SIZE" in one:
                    size = one[b"RFC822.SIZE"]
                    date = one.get(b"INTERNALDATE")
                    found.append(Head(mark, int(size), _flags(one.get(b"FLAGS")), date))
        return found

    def bodies(self, heads: Sequence[Head]) -> Iterator[tuple[Head, bytes]]:
        """These messages, some at a time; those that are gone, and what is none, are left out."""
        for some in _loads(heads):
            told = self._fetch([one.mark for one in some], "BODY.PEEK[]")
            for one in some:
                raw = told.pop(int(one.mark), {}).get(b"BODY[]")
                if isinstance(raw, bytes):
                    yield one, raw

    def changed(self, modseq: int) -> dict[str, frozenset[str]]:
        """The flags of what has changed since then."""
        told = self._fetch(ALL, "FLAGS", f"CHANGEDSINCE {modseq}")
        return {str(uid): _flags(one[b"FLAGS"]) for uid, one in told.items() if b"FLAGS" in one}

    def flags(self, marks: Sequence[str]) -> dict[str, frozenset[str]]:
        """The flags of these."""
        found: dict[str, frozenset[str]] = {}
        for some in _parts(marks, HEADS):
            told = self._fetch(some, "FLAGS")
            found |= {str(uid): _flags(one.get(b"FLAGS")) for uid, one in told.items()}
        return found

    def _fetch(self, marks: Sequence[str], what: str, modifier: str = "") -> dict[int, Any]:
        """What is told of these, by UID."""
        ids = marks[0] if marks == ALL else spans(int(mark) for mark in marks)

        def ask() -> dict[int, Any]:
            wanted = [f"({each})" for each in (what, modifier) if each]
            typ, data = self._client._imap.uid("FETCH", ids, *wanted)  # noqa: SLF001
            self._client._checkok("fetch", typ, data)  # noqa: SLF001
            return dict(parse_fetch_response(data, normalise_times=False))

        return self._do(Stage.FETCH, ask)

    def delete(self, marks: Sequence[str]) -> None:
        """Delete these of the folder that is open, and nothing that others have marked."""
        for some in _parts(marks, HEADS):
            ids = spans(int(mark) for mark in some)
            self._do(Stage.DELETE, lambda ids=ids: self._client.delete_messages(ids, silent=True))
            if "UIDPLUS" in self.capabilities:
                self._do(Stage.DELETE, lambda ids=ids: self._client.uid_expunge(ids))
                continue
            marked = self._do(Stage.DELETE, lambda: self._client.search("DELETED"))
            if {str(uid) for uid in marked} <= set(some):
                self._do(Stage.DELETE, lambda: self._client.expunge())

    def wait(self, seconds: float) -> bool:
        """Wait until something happens in the folder that is open, by IDLE."""
        self._do(Stage.LISTEN, self._client.idle)
        heard = self._do(Stage.LISTEN, lambda: self._client.idle_check(min(seconds, RENEWED)))
        self._do(Stage.LISTEN, self._client.idle_done)
        return any(len(one) > 1 and one[1] in (b"EXISTS", b"EXPUNGE") for one in heard)

    def _do(self, stage: Stage, work: Callable[[], Result]) -> Result:
        self.line.stage = stage
        try:
            return work()
        except BROKEN as problem:
            raise self.line.failure(problem) from None


def _levels(raw: bytes, delimiter: Any) -> list[str]:
    """The name of a folder, level by level: modified UTF-7, or as some send it, any other."""
    try:
        text = utf7(raw) if raw.isascii() else raw.decode()
    except (UnicodeError, ValueError):
        text = raw.decode("latin-1")
    sign = delimiter.decode("latin-1") if isinstance(delimiter, bytes) and delimiter else None
    return [level for level in (text.split(sign) if sign else [text]) if level]


def _flags(told: Any) -> frozenset[str]:
    return frozenset(said(flag) for flag in told or () if isinstance(flag, bytes))


def _parts(marks: Sequence[str], most: int) -> Iterable[Sequence[str]]:
    return (marks[at : at + most] for at in range(0, len(marks), most))


def _loads(heads: Sequence[Head]) -> Iterator[list[Head]]:
    """As many as are fetched at once."""
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
    """A set of messages as IMAP writes it: `1:3,5`."""
    found: list[list[int]] = []
    for uid in sorted(uids):
        if found and found[-1][1] == uid - 1:
            found[-1][1] = uid
        else:
            found.append([uid, uid])
    return ",".join(str(a) if a == b else f"{a}:{b}" for a, b in found)


