"""What POP3 is asked for, by poplib, in a thread (RFC 1939, 2449, 2595, 5034)."""

import base64
import poplib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from socket import socket
from typing import Any, TypeVar

from mail.connectors.lines import Line
from mail.connectors.servers import Failure, Head, Listed, Opened, Stage, said
from models.connectors import Security

Result = TypeVar("Result")
INBOX = Listed(b"INBOX", ["INBOX"], None)
LONGEST = 1 << 20  # bytes of a line
BROKEN = (OSError, EOFError, poplib.error_proto, ValueError, IndexError)


class _Wire(poplib.POP3):
    """poplib over our line, for lines as long as mail has them."""

    def __init__(self, line: Line, largest: int) -> None:
        self.line, self.largest = line, largest
        super().__init__(line.server.host, line.server.port)

    def _create_socket(self, timeout: float) -> socket:
        del timeout
        found = self.line.open()
        if self.line.server.security is Security.TLS:
            found = self.line.secured(found)
        self.line.stage = Stage.GREETING
        return found

    def _getline(self) -> tuple[bytes, int]:
        line = self.file.readline(LONGEST + 1)
        if not line:
            raise EOFError
        if len(line) > LONGEST:
            raise Failure(self.line.stage, f"a line of more than {LONGEST} bytes")
        self.line.pace(len(line))
        return line.rstrip(b"\r\n") if line.endswith(b"\r\n") else line[:-1], len(line)

    def secure(self) -> None:
        """Switch to TLS by STLS; what came before under no protection is forgotten."""
        self._shortcmd("STLS")
        self.sock = self.line.secured(self.sock)
        self.file = self.sock.makefile("rb")

    def message(self, number: int) -> bytes:
        """A message, of which no more is taken than any may have."""
        self._putcmd(f"RETR {number}")
        self._getresp()
        lines, size = [], 0
        line, many = self._getline()
        while line != b".":
            size += many
            if size > self.largest + (1 << 16):
                raise Failure(Stage.FETCH, "a message that is larger than it was said to be")
            lines.append(line[1:] if line.startswith(b"..") else line)
            line, many = self._getline()
        return b"\r\n".join([*lines, b""])


class Pop:
    """A session, which has one folder. Each method waits, and raises Failure."""

    def __init__(self, line: Line, largest: int) -> None:
        self.line, self.largest = line, largest
        self.capabilities: frozenset[str] = frozenset()
        self._client: Any = None
        self._numbers: dict[str, int] = {}  # of messages, by their UIDL
        self._sizes: dict[int, int] = {}

    def sign_in(self) -> None:
        """Connect, with TLS where that is asked for, and sign in."""
        self._client = self._do(Stage.CONNECT, lambda: _Wire(self.line, self.largest))
        with suppress(Failure):
            self._learn()
        if self.line.server.security is Security.STARTTLS:
            self._do(Stage.TLS, self._client.secure)
            with suppress(Failure):
                self._learn()
        self._do(Stage.LOGIN, self._authenticate)

    def _learn(self) -> None:
        told = self._do(Stage.GREETING, self._client.capa)
        self.capabilities = frozenset(
            said(" ".join([name, *arguments])).upper() for name, arguments in told.items()
        )

    def _authenticate(self) -> None:
        client, server = self._client, self.line.server
        try:
            if server.mechanism in ("XOAUTH2", "OAUTHBEARER"):
                client._shortcmd(f"AUTH {server.mechanism} {_token(server)}")  # noqa: SLF001
            else:
                client.user(server.username)
                client.pass_(server.secret)
        except poplib.error_proto as problem:
            words = said(problem.args[0] if problem.args else problem)
            text = words.replace(server.secret, "…") or "refused"
            raise Failure(Stage.LOGIN, text, refused=True) from None

    def leave(self) -> None:
        """Say goodbye: only then is deleted what was to be."""
        if self._client is not None:
            with suppress(*BROKEN, Failure):
                self._client.quit()

    def close(self) -> None:
        """Give the connection back, in whatever state it is."""
        if self._client is not None:
            with suppress(*BROKEN):
                self._client.close()
        self.line.close()

    def folders(self) -> list[Listed]:
        """The one there is."""
        return [INBOX]

    def open(self, folder: Listed, *, write: bool) -> Opened:
        """List what there is."""
        del folder, write
        _, sizes, _ = self._do(Stage.LIST, self._client.list)
        self._sizes = self._do(Stage.LIST, lambda: dict(_pairs(sizes)))
        return Opened(0, 0, len(self._sizes))

    def marks(self) -> list[str]:
        """The UIDLs, in order."""
        try:
            _, lines, _ = self._do(Stage.LIST, self._client.uidl)
        except Failure as problem:
            raise Failure(Stage.LIST, f"the server names no UIDL: {problem.message}") from None
        self._numbers = {}
        for line in lines:
            number, _, mark = line.partition(b" ")
            if number.isdigit() and mark.strip():
                self._numbers[said(mark)] = int(number)
        return list(self._numbers)

    def heads(self, marks: Sequence[str]) -> list[Head]:
        """Their sizes; POP3 knows neither flags nor dates."""
        known = [(mark, self._numbers[mark]) for mark in marks if mark in self._numbers]
        return [Head(mark, self._sizes.get(number, 0), frozenset(), None) for mark, number in known]

    def bodies(self, heads: Sequence[Head]) -> Iterator[tuple[Head, bytes]]:
        """These messages, one by one."""
        for one in heads:
            number = self._numbers[one.mark]
            yield one, self._do(Stage.FETCH, lambda number=number: self._client.message(number))

    def delete(self, marks: Sequence[str]) -> None:
        """Have these deleted at the end of the session."""
        for mark in marks:
            if mark in self._numbers:
                self._do(Stage.DELETE, lambda mark=mark: self._client.dele(self._numbers[mark]))

    def _do(self, stage: Stage, work: Callable[[], Result]) -> Result:
        self.line.stage = stage
        try:
            return work()
        except BROKEN as problem:
            raise self.line.failure(problem) from None


def _pairs(lines: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    for line in lines:
        number, size = line.split()[:2]
        yield int(number), int(size)


def _token(server: Any) -> str:
    """The first answer of both mechanisms (RFC 7628; Google's XOAUTH2)."""
    bearer = f"auth=Bearer {server.secret}\x01\x01"
    who = f"n,a={server.username},\x01" if server.mechanism == "OAUTHBEARER" else (
        f"user={server.username}\x01"
    )
    return base64.b64encode(f"{who}{bearer}".encode()).decode()
